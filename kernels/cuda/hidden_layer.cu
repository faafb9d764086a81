// SPDX-License-Identifier: MIT
// A hidden layer: convolution, batch-norm, QuantReLU and max-pool; the math is that of
// kernels/cpu/hidden_layer.cc. Around the convolutions the batch is read twice each way, and
// between the two the constants of the channels are computed:
//
//   forward:  sums of y and y^2 per channel | t = gain * y + shift, code, pool
//   backward: sums of g and g * xhat per channel, scale gradient | dy
//
// The passes either keep the convolution's sums y in memory (elementwise.cu) or, where the input
// and the weights are codes, compute them again where they need them (recompute.cu). The search for
// the percentile, in the first steps, needs them in memory. For the layer that reads the frames,
// first_layer.cu does with one pass over dp.
#include <type_traits>

#include "kernels/cuda/activation.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;

struct Constants {
  float *gain, *shift, *xhat_gain, *xhat_shift, *inv_std;
};

__device__ void set_batch_norm(const Constants& k, int c, float gamma_c, float beta_c,
                               double sum_scale, double mean, double variance) {
  const double inv_std = 1.0 / sqrt(variance + kBatchNormEpsilon);
  const double gamma = static_cast<double>(gamma_c);
  k.inv_std[c] = static_cast<float>(inv_std);
  k.xhat_gain[c] = static_cast<float>(inv_std * sum_scale);
  k.xhat_shift[c] = static_cast<float>(-inv_std * mean);
  k.gain[c] = static_cast<float>(gamma * inv_std * sum_scale);
  k.shift[c] = static_cast<float>(static_cast<double>(beta_c) - gamma * inv_std * mean);
}

__device__ double scale_of_sums(const float* x_scale, const float* w_scale) {
  return static_cast<double>(x_scale != nullptr ? *x_scale : 1.0F) * static_cast<double>(*w_scale);
}

__device__ void update(float& value, double batch) {
  value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value) +
                             kBatchNormMomentum * batch);
}

// A channel's sums of y and y^2, from slices, [slice][channel][2] ...
struct SlicedSums {
  const double* partial;
  int channels;
  PartialSums slices;
  __device__ void of(int c, double& sum, double& squares) const {
    const auto add = [&](int which) {
      double total = 0;
      for (int group = 0; group < slices.count; ++group) {
        total += sum_of_group<1>(slices, group, [&](int slice) {
          return partial[(static_cast<size_t>(slice) * static_cast<size_t>(channels) +
                          static_cast<size_t>(c)) *
                             2 +
                         static_cast<size_t>(which)];
        });
      }
      return total;
    };
    sum = add(0);
    squares = add(1);
  }
};
// ... or from exact integers.
struct ExactSums {
  IntegerSums totals;
  __device__ void of(int c, double& sum, double& squares) const {
    unsigned long long of_y = 0, lower = 0, upper = 0;
    for (int copy = 0; copy < IntegerSums::kCopies; ++copy) {
      const unsigned long long* parts = totals.of(copy, c);
      of_y += parts[0];
      lower += parts[1];
      upper += parts[2];
    }
    sum = static_cast<double>(static_cast<long long>(of_y));
    squares = static_cast<double>(upper) * 4294967296.0 + static_cast<double>(lower);
  }
};

__device__ float scale_of_codes(float threshold, float max_code) { return threshold / max_code; }
__device__ float usable_threshold(float parameter) {
  return fmaxf(fabsf(parameter), kMinQuantizerRange);
}

// threshold: the parameter v, which turns the affine step to values into one to codes; null: that
// is not known yet, or there are no codes.
template <typename Sums>
__global__ void __launch_bounds__(kBlockThreads)
    batch_constants(int channels, Sums sums, double n, const float* x_scale, const float* w_scale,
                    const float* gamma, const float* beta, RunningStatistics running,
                    const float* threshold, float max_code, Constants constants, Scalars* s) {
  const int c = static_cast<int>(global_x());
  if (c >= channels) return;
  double sum = 0, squares = 0;
  sums.of(c, sum, squares);
  const double sum_scale = scale_of_sums(x_scale, w_scale);
  const double mean_code = sum / n;
  const double variance_code = fmax(0.0, squares / n - mean_code * mean_code);
  const double mean = sum_scale * mean_code, variance = sum_scale * sum_scale * variance_code;
  update(running.mean[c], mean);
  update(running.var[c], n > 1 ? variance * n / (n - 1) : variance);
  set_batch_norm(constants, c, gamma[c], beta[c], sum_scale, mean, variance);
  if (threshold == nullptr) return;
  const float v = usable_threshold(*threshold), act_scale = scale_of_codes(v, max_code);
  constants.gain[c] /= act_scale;
  constants.shift[c] /= act_scale;
  if (c == 0) {
    s->threshold = v;
    s->act_scale = act_scale;
  }
}

// The constants of cpu::EvaluationState, with its roundings. threshold: the parameter v, not read
// where max_code is 0.
__global__ void __launch_bounds__(kBlockThreads)
    evaluation_constants(int channels, const float* x_scale, const float* w_scale,
                         const float* gamma, const float* beta, RunningStatistics running,
                         const float* threshold, float max_code, float* gain, float* shift,
                         Scalars* s) {
  const int c = static_cast<int>(global_x());
  if (c == 0) {
    s->sum_scale = (x_scale != nullptr ? *x_scale : 1.0F) * *w_scale;
    s->threshold = max_code > 0 ? usable_threshold(*threshold) : 1.0F;
    s->act_scale = max_code > 0 ? scale_of_codes(s->threshold, max_code) : 1.0F;
  }
  if (c >= channels) return;
  const float epsilon = static_cast<float>(kBatchNormEpsilon);
  const float inv_std = __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(running.var[c], epsilon)));
  gain[c] = __fmul_rn(gamma[c], inv_std);
  shift[c] = __fsub_rn(beta[c], __fmul_rn(running.mean[c], gain[c]));
}

// What batch_constants() does with a threshold, where the percentile of the batch set it.
__global__ void __launch_bounds__(kBlockThreads)
    use_percentile(int channels, float max_code, float* gain, float* shift, Scalars* s) {
  const float act_scale = scale_of_codes(s->threshold, max_code);
  for (int c = thread_x(); c < channels; c += kBlockThreads) {
    gain[c] /= act_scale;
    shift[c] /= act_scale;
  }
  if (thread_x() == 0) s->act_scale = act_scale;
}

__global__ void __launch_bounds__(kBlockThreads)
    follow(const Scalars* s, bool first, float* threshold) {
  const float momentum = static_cast<float>(kThresholdMomentum);
  *threshold = first ? s->threshold : (1 - momentum) * *threshold + momentum * s->threshold;
}

struct BackwardConstants {
  const float *gamma, *inv_std, *xhat_gain, *xhat_shift;
  float *of_g, *of_y, *of_one;  // dy = of_g * g + of_y * y + of_one
  float *gamma_gradient, *beta_gradient;
};

// One block: totals of the channels, the threshold's gradient, batch-norm's backward constants.
__global__ void __launch_bounds__(kBlockThreads)
    backward_constants(Activation a, PartialSums slices, double n, double* partial,
                       const float* threshold, bool collected, const double* act_scale_gradient,
                       BackwardConstants k, float* threshold_gradient, Scalars* s) {
  double of_scale = 0;
  const int lane = thread_x() % kWarpLanes;
  for (int c = thread_x() / kWarpLanes; c < a.channels; c += kBlockWarps) {
    double* total = partial + static_cast<size_t>(c) * 3;  // slice 0 becomes the sum
    double sums[3];
    for (int i = 0; i < 3; ++i) {
      double sum = sum_of_group<kLanesOfGroup>(slices, lane / kLanesOfGroup, [&](int slice) {
        return total[static_cast<size_t>(slice) * static_cast<size_t>(a.channels) * 3 +
                     static_cast<size_t>(i)];
      });
      for (int step = kLanesOfGroup; step < kWarpLanes; step *= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, step);
      }
      sums[i] = sum;
    }
    if (lane == 0) {
      for (int i = 0; i < 3; ++i) total[i] = sums[i];
      of_scale += sums[2];
    }
  }
  of_scale = block_sum(of_scale);
  if (thread_x() == 0) {
    float to_threshold = 0;
    s->statistic_gradient = 0;
    if (a.max_code > 0) {
      const double extra = act_scale_gradient != nullptr ? *act_scale_gradient : 0.0;
      const double of_threshold = (of_scale + extra) / static_cast<double>(a.max_code);
      if (!collected) {
        const float v = *threshold;
        to_threshold = static_cast<float>(v > 0 ? of_threshold : v < 0 ? -of_threshold : 0.0);
      } else if (s->has_statistic != 0) {
        // The percentile is an element of the batch: the threshold's gradient is that element's.
        double* total = partial + static_cast<size_t>(a.channel_of_number(s->statistic_place)) * 3;
        const double of_element = of_threshold * static_cast<double>(s->statistic_sign);
        s->statistic_gradient = static_cast<float>(of_element);
        total[0] += of_element;
        total[1] += of_element * static_cast<double>(s->statistic_xhat);
      }
    }
    if (threshold_gradient != nullptr) *threshold_gradient = to_threshold;
  }
  __syncthreads();
  for (int c = thread_x(); c < a.channels; c += kBlockThreads) {
    const double sum_g = partial[static_cast<size_t>(c) * 3];
    const double sum_g_xhat = partial[static_cast<size_t>(c) * 3 + 1];
    k.beta_gradient[c] = static_cast<float>(sum_g);
    k.gamma_gradient[c] = static_cast<float>(sum_g_xhat);
    const double factor = static_cast<double>(k.gamma[c]) * static_cast<double>(k.inv_std[c]);
    const double mean_g = sum_g / n, mean_g_xhat = sum_g_xhat / n;
    k.of_g[c] = static_cast<float>(factor);
    k.of_y[c] = static_cast<float>(-factor * mean_g_xhat * static_cast<double>(k.xhat_gain[c]));
    k.of_one[c] =
        static_cast<float>(-factor * (mean_g + static_cast<double>(k.xhat_shift[c]) * mean_g_xhat));
  }
}

Activation activation_of(const LayerShape& layer, const Tile& x, const HiddenState& state) {
  const bool quantized = layer.act_bits != kFloatBits;
  return {layer.length,
          layer.out_channels,
          x.lanes(),
          static_cast<int>(x.frames),
          layer.pool,
          quantized ? static_cast<float>(layer.largest_code()) : 0.0F,
          static_cast<float>(layer.smallest_code),
          state.constant(HiddenState::kGain),
          state.constant(HiddenState::kShift),
          x.groups(),
          static_cast<int>(x.frames_of_batch()),
          static_cast<int>(x.first_frame)};
}

Constants constants_of(const HiddenState& state) {
  return {state.constant(HiddenState::kGain), state.constant(HiddenState::kShift),
          state.constant(HiddenState::kXhatGain), state.constant(HiddenState::kXhatShift),
          state.constant(HiddenState::kInvStd)};
}

void prepare(const LayerShape& layer, HiddenState& state, Stream stream) {
  state.channels = static_cast<size_t>(layer.out_channels);
  state.constants.reserve(state.channels * HiddenState::kConstants);
  if (state.scalars.empty()) {
    state.scalars.reserve(1);
    set_bytes(state.scalars.data(), 0, sizeof(Scalars), stream);
  }
}

float* memory_for_y(const LayerShape& layer, const Tile& x, HiddenState& state) {
  return state.y.reserve(static_cast<size_t>(layer.length) * state.channels *
                         static_cast<size_t>(x.lanes()));
}

WindowSums window_sums_of(const Weights& weights, HiddenState& state) {
  const int elements = weights.conv().taps * weights.conv().in_channels;
  return {state.totals.reserve(WindowSums::size(elements)), weights.codes(), elements};
}

WindowProducts window_products_of(const Input& x, HiddenState& state) {
  return {state.totals.reserve(WindowProducts::size(x.tile.channels)),
          WindowProducts::groups(x.tile.channels) * WindowProducts::kGroupChannels};
}

size_t words_of_winners(const Activation& a, const Tile& out) {
  return static_cast<size_t>(a.pooled_length()) * static_cast<size_t>(out.quads()) *
         static_cast<size_t>(a.lanes) / 8 * 2;
}

double elements_of_channel(const Activation& a) {
  return static_cast<double>(a.batch_frames) * a.length;
}

// Sums of all ranks in place of those of this share: [group of the batch][channel][count].
template <int kLanes>
double* sums_of_all(const Weights& weights, const Activation& a, const double* partial, int count,
                    PartialSums& sums, Stream stream) {
  const size_t row_size = static_cast<size_t>(a.channels) * static_cast<size_t>(count);
  RowsOfGroups rows(*weights.ranks(), a.groups, row_size, stream);
  rows.template put<kLanes>(partial, row_size, sums);
  rows.exchange();
  sums = rows.sums();
  return rows.rows();
}

}  // namespace

void hidden_forward_train(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, bool collect,
                          const RunningStatistics& running, HiddenState& state, const Tile& out,
                          void* out_data, Stream stream) {
  const LayerShape& layer = weights.layer();
  prepare(layer, state, stream);
  const Activation a = activation_of(layer, x.tile, state);
  const cudaStream_t on = native(stream);
  state.collected = collect && a.max_code > 0;
  state.keeps_y = state.collected || !can_recompute(weights);
  state.on_chip = !state.keeps_y && forms_dy_on_chip(x, weights);
  const auto set_constants = [&](const auto& sums) {
    launch(Where("batch_constants", on),
           Shape{dim3(blocks_for(state.channels, kBlockThreads)), dim3(kBlockThreads)},
           batch_constants<std::decay_t<decltype(sums)>>, a.channels, sums, elements_of_channel(a),
           x.scale, weights.scale(), parameters.gamma, parameters.beta, running,
           state.collected || a.max_code == 0 ? nullptr : parameters.threshold, a.max_code,
           constants_of(state), state.scalars.data());
  };
  if (state.keeps_y) {
    weights.forward(x, memory_for_y(layer, x.tile, state), stream);
    const GroupSlices slices(a, a.length);
    double* partial =
        state.partial.reserve(static_cast<size_t>(slices.count()) * state.channels * 3);
    sum_channels(a, state.y.data(), partial, stream);
    PartialSums sums = slices.sums();
    if (!a.groups.are_all_here()) partial = sums_of_all<1>(weights, a, partial, 2, sums, stream);
    set_constants(SlicedSums{partial, a.channels, sums});
  } else if (state.on_chip) {
    double* sums = state.partial.reserve(state.channels * 2);
    int* memory = reinterpret_cast<int*>(state.sums_of_blocks.reserve(memory_for_products(x)));
    sum_products(x, weights, window_products_of(x, state), memory,
                 state.by_weights.reserve(static_cast<size_t>(layer.weights())), sums, stream);
    set_constants(SlicedSums{sums, a.channels, PartialSums::one()});
  } else if (has_few_elements(x, weights)) {
    const WindowSums sums = window_sums_of(weights, state);
    sum_windows(x, weights, sums, stream);
    set_constants(sums);
  } else {
    const IntegerSums totals{state.totals.reserve(IntegerSums::elements(state.channels)),
                             a.channels};
    sum_channels(x, weights, totals, stream);
    set_constants(ExactSums{totals});
  }
  if (state.collected) {
    find_percentile(a, state, weights.ranks(), stream);
    launch(Where("use_percentile", on), Shape{dim3(1), dim3(kBlockThreads)}, use_percentile,
           a.channels, a.max_code, state.constant(HiddenState::kGain),
           state.constant(HiddenState::kShift), state.scalars.data());
  }
  if (state.keeps_y) {
    activate(a, Mode::kTraining, state, out, out_data, stream);
  } else {
    const bool needed = state.on_chip || sums_gradients_once(x, weights);
    WindowBits* const winners =
        needed ? reinterpret_cast<WindowBits*>(state.winners.reserve(words_of_winners(a, out)))
               : nullptr;
    activate(x, weights, a, Mode::kTraining, state, out, out_data, winners, stream);
  }
  state.out = out;
  state.out_data = out_data;
}

bool sums_gradients_once(const Input& x, const Weights& weights) {
  return has_few_elements(x, weights) && weights.plan().backward_weight == Kernel::kDense;
}

void follow_threshold(const HiddenState& state, bool first, float* threshold, Stream stream) {
  launch(Where("follow", native(stream)), Shape{dim3(1), dim3(1)}, follow,
         static_cast<const Scalars*>(state.scalars.data()), first, threshold);
}

void hidden_forward_eval(const Input& x, const Weights& weights, const HiddenParameters& parameters,
                         const RunningStatistics& running, HiddenState& state, const Tile& out,
                         void* out_data, Stream stream) {
  const LayerShape& layer = weights.layer();
  prepare(layer, state, stream);
  const Activation a = activation_of(layer, x.tile, state);
  launch(Where("evaluation_constants", native(stream)),
         Shape{dim3(blocks_for(state.channels, kBlockThreads)), dim3(kBlockThreads)},
         evaluation_constants, a.channels, x.scale, weights.scale(), parameters.gamma,
         parameters.beta, running, parameters.threshold, a.max_code,
         state.constant(HiddenState::kGain), state.constant(HiddenState::kShift),
         state.scalars.data());
  state.collected = false;
  state.keeps_y = !can_recompute(weights);
  if (state.keeps_y) {
    weights.forward(x, memory_for_y(layer, x.tile, state), stream);
    activate(a, Mode::kEvaluation, state, out, out_data, stream);
  } else {
    activate(x, weights, a, Mode::kEvaluation, state, out, out_data, nullptr, stream);
  }
}

void hidden_backward(const Input& x, Weights& weights, const HiddenParameters& parameters,
                     HiddenState& state, const float* dp, const double* act_scale_gradient,
                     const HiddenGradients& gradients, float* dx, Stream stream) {
  const Activation a = activation_of(weights.layer(), x.tile, state);
  const ConvShape& shape = weights.conv();
  // Whether one pass over dp gives all, as nobody wants dx.
  const bool once =
      !state.keeps_y && !state.on_chip && dx == nullptr && sums_gradients_once(x, weights);
  const WindowSums windows = once ? window_sums_of(weights, state) : WindowSums{};
  const bool kept_winners = state.on_chip || once;
  const ForwardPass forward =
      kept_winners ? ForwardPass{{static_cast<const uint32_t*>(state.out_data), state.out.quads(),
                                  state.out.lanes(), state.out.pad, a.min_code < 0},
                                 reinterpret_cast<const WindowBits*>(state.winners.data()),
                                 state.on_chip ? window_products_of(x, state) : WindowProducts{},
                                 state.by_weights.data()}
                   : ForwardPass{};
  // Of sums of gradients; where winners were kept, of all, before those of blocks.
  PartialSums slices = kept_winners    ? PartialSums::one()
                       : state.keeps_y ? GroupSlices(a, a.pooled_length()).sums()
                                       : sums_of_gradients(a);
  const int blocks = state.on_chip ? blocks_of(sums_of_products(a))
                     : once        ? blocks_of(sums_of_gradients(a))
                                   : 0;
  double* partial = state.partial.reserve(static_cast<size_t>(blocks_of(slices) * 3 + blocks * 2) *
                                          state.channels);
  double* of_blocks = partial + 3 * state.channels;
  float* sums = nullptr;
  if (state.on_chip) {
    sums = state.products.reserve(static_cast<size_t>(weights.layer().weights()));
    sum_gradient_products(x, weights, a, state, forward, dp,
                          state.sums_of_blocks.reserve(memory_for_gradients(weights, a)), of_blocks,
                          sums, partial, stream);
  } else if (once) {
    sums = state.products.reserve(state.channels * static_cast<size_t>(stride_of_windows(windows)));
    sum_window_gradients(x, weights, a, state, forward, dp, windows,
                         state.sums_of_blocks.reserve(memory_for_window_gradients(a, windows)),
                         of_blocks, sums, partial, stream);
  } else if (state.keeps_y) {
    sum_gradients(a, state, dp, partial, stream);
  } else {
    sum_gradients(x, weights, a, state, dp, partial, stream);
  }
  if (!kept_winners && !a.groups.are_all_here())
    partial = sums_of_all<kLanesOfGroup>(weights, a, partial, 3, slices, stream);

  const BackwardConstants k{parameters.gamma,
                            state.constant(HiddenState::kInvStd),
                            state.constant(HiddenState::kXhatGain),
                            state.constant(HiddenState::kXhatShift),
                            state.constant(HiddenState::kOfG),
                            state.constant(HiddenState::kOfY),
                            state.constant(HiddenState::kOfOne),
                            gradients.gamma,
                            gradients.beta};
  launch(Where("backward_constants", native(stream)), Shape{dim3(1), dim3(kBlockThreads)},
         backward_constants, a, slices, elements_of_channel(a), partial, parameters.threshold,
         state.collected, act_scale_gradient, k, gradients.threshold, state.scalars.data());

  const GradientAffine gradient{k.of_g, k.of_y, k.of_one};
  if (once) {
    gradient_of_windows(a, windows, sums, gradient, x.scale, gradients.weight, stream);
    return;
  }
  if (state.on_chip) {
    gradient_of_products(weights, forward, sums, gradient, x.scale, gradients.weight, stream);
    if (dx != nullptr) input_gradient(x, weights, a, forward, dp, gradient, dx, stream);
    return;
  }
  const Tile dy{x.tile.frames,       a.length,
                a.channels,          shape.same_padding ? (shape.taps - 1) / 2 : 0,
                x.tile.batch_frames, x.tile.first_frame};
  float* dy_data = state.dy.reserve(dy.floats());
  if (state.keeps_y) {
    apply_gradients(a, state, dp, gradient, dy.pad, dy_data, stream);
  } else {
    apply_gradients(x, weights, a, dp, gradient, dy.pad, dy_data, stream);
  }
  weights.backward_weight(x, dy, dy_data, gradients.weight, stream);
  if (dx != nullptr) weights.backward_data(dy, dy_data, dx, stream);
}

}  // namespace fmp::cuda
