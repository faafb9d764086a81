// SPDX-License-Identifier: MIT
// A hidden layer: convolution, batch-norm, QuantReLU and max-pool; the math is that of
// kernels/cpu/hidden_layer.cc. Around the convolutions the batch is read twice each way, and
// between the two the constants of the channels are computed (batch_norm.h):
//
//   forward:  sums of y and y^2 per channel | t = gain * y + shift, code, pool
//   backward: sums of g and g * xhat per channel, scale gradient | dy
//
// The passes either keep the convolution's sums y in memory (elementwise.cu) or, where the input
// and the weights are codes, compute them again where they need them (recompute.cu). The search for
// the percentile, in the first steps, needs them in memory. For the layer that reads the frames,
// first_layer.cu does with one pass over dp.
#include <type_traits>

#include "kernels/cuda/batch_norm.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;

template <typename Sums>
__global__ void __launch_bounds__(kBlockThreads) batch_constants(BatchNormOf<Sums> of) {
  of.set();
}
__global__ void __launch_bounds__(kBlockThreads, 1) backward_constants(BackwardNormOf of) {
  of.set<kBlockWarps>();
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

// What BatchNorm does with a threshold, where the percentile of the batch set it.
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

ProductSums product_sums_of(const Input& x, const Weights& weights, HiddenState& state) {
  const ConvShape& s = weights.conv();
  const int stride = WindowProducts::groups(s.in_channels) * WindowProducts::kGroupChannels;
  return {{state.totals.reserve(WindowProducts::size(x.tile.channels)), stride},
          state.by_weights.data(),
          s.in_channels,
          s.taps * s.in_channels};
}

// Kernels leave it at 0.
unsigned long long* memory_for_adding(HiddenState& state, size_t size, Stream stream) {
  if (state.adding.size() < size) {
    state.adding.reserve(size);
    set_bytes(state.adding.data(), 0, size * sizeof(*state.adding.data()), stream);
  }
  return state.adding.data();
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
  // Other devices' sums are added behind the kernel that sums up.
  const bool all_here = a.groups.are_all_here();
  unsigned* const arrived = &state.scalars.data()->arrived;
  const BatchNorm norm{elements_of_channel(a),
                       x.scale,
                       weights.scale(),
                       parameters.gamma,
                       parameters.beta,
                       running,
                       state.collected || a.max_code == 0 ? nullptr : parameters.threshold,
                       a.max_code,
                       state.constant(HiddenState::kGain),
                       state.constant(HiddenState::kShift),
                       state.constant(HiddenState::kXhatGain),
                       state.constant(HiddenState::kXhatShift),
                       state.constant(HiddenState::kInvStd),
                       state.scalars.data()};
  const auto norm_of = [&]<typename Sums>(const Sums& sums) {
    return BatchNormOf<Sums>{a.channels, sums, norm, all_here ? arrived : nullptr};
  };
  const auto set_constants = [&]<typename Sums>(const Sums& sums) {
    launch(Where("batch_constants", on), Shape{dim3(1), dim3(kBlockThreads)}, batch_constants<Sums>,
           norm_of(sums));
  };
  if (state.keeps_y) {
    weights.forward(x, memory_for_y(layer, x.tile, state), stream);
    const GroupSlices slices(a, a.length);
    double* partial =
        state.partial.reserve(static_cast<size_t>(slices.count()) * state.channels * 3);
    PartialSums sums = slices.sums();
    sum_channels(a, state.y.data(), partial, norm_of(SlicedSums{partial, a.channels, sums}),
                 stream);
    if (!all_here) {
      partial = sums_of_all<1>(weights, a, partial, 2, sums, stream);
      set_constants(SlicedSums{partial, a.channels, sums});
    }
  } else if (state.on_chip) {
    int* memory = reinterpret_cast<int*>(state.sums_of_blocks.reserve(memory_for_products(x)));
    state.by_weights.reserve(static_cast<size_t>(layer.weights()));
    sum_products(x, weights, product_sums_of(x, weights, state), memory, norm, stream);
  } else if (has_few_elements(x, weights)) {
    const WindowSums sums = window_sums_of(weights, state);
    sum_windows(x, weights, memory_for_adding(state, WindowSums::size(sums.elements), stream),
                norm_of(sums), arrived, stream);
    if (!all_here) set_constants(sums);
  } else {
    const size_t size = IntegerSums::elements(state.channels);
    const ExactSums sums{{memory_for_adding(state, size, stream), a.channels}};
    sum_channels(x, weights, norm_of(sums), stream);
    if (!all_here) set_constants(sums);
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
  const bool all_here = a.groups.are_all_here();
  const BackwardNorm norm{elements_of_channel(a),
                          parameters.gamma,
                          state.constant(HiddenState::kInvStd),
                          state.constant(HiddenState::kXhatGain),
                          state.constant(HiddenState::kXhatShift),
                          parameters.threshold,
                          act_scale_gradient,
                          state.collected,
                          state.constant(HiddenState::kOfG),
                          state.constant(HiddenState::kOfY),
                          state.constant(HiddenState::kOfOne),
                          gradients.gamma,
                          gradients.beta,
                          gradients.threshold,
                          state.scalars.data(),
                          &state.scalars.data()->arrived};
  const GradientAffine gradient{norm.of_g, norm.of_y, norm.of_one};
  if (state.on_chip || once) {
    const ForwardPass forward{{static_cast<const uint32_t*>(state.out_data), state.out.quads(),
                               state.out.lanes(), state.out.pad, a.min_code < 0},
                              reinterpret_cast<const WindowBits*>(state.winners.data())};
    const PartialSums blocks = state.on_chip ? sums_of_products(a) : sums_of_gradients(a);
    double* of_scale =
        state.partial.reserve(static_cast<size_t>(1 + 2 * blocks_of(blocks)) * state.channels);
    SumsOfBlocks sums{blocks, 0, nullptr, of_scale + state.channels};
    if (once) {
      const WindowSums windows = window_sums_of(weights, state);
      sums.stride = stride_of_windows(windows);
      sums.of_blocks = state.sums_of_blocks.reserve(memory_for_window_gradients(a, windows));
      sum_window_gradients(x, weights, a, forward, dp, windows, sums, stream);
      finish_gradients(x, weights, a, windows, sums, norm, of_scale, gradients.weight, stream);
      return;
    }
    const ProductSums products = product_sums_of(x, weights, state);
    sums.stride = products.elements;
    sums.of_blocks = state.sums_of_blocks.reserve(memory_for_gradients(weights, a));
    sum_gradient_products(x, weights, a, forward, dp, sums, stream);
    finish_gradients(x, weights, a, products, sums, norm, of_scale, gradients.weight, stream);
    if (dx != nullptr) input_gradient(x, weights, a, forward, dp, gradient, dx, stream);
    return;
  }
  const PartialSums slices =
      state.keeps_y ? GroupSlices(a, a.pooled_length()).sums() : sums_of_gradients(a);
  BackwardNormOf sums{
      a, slices, state.partial.reserve(static_cast<size_t>(blocks_of(slices) * 3) * state.channels),
      norm};
  if (!all_here) sums.norm.arrived = nullptr;
  if (state.keeps_y) {
    sum_gradients(a, state, dp, sums, stream);
  } else {
    sum_gradients(x, weights, a, state, dp, sums, stream);
  }
  if (!all_here) {
    sums.partial = sums_of_all<kLanesOfGroup>(weights, a, sums.partial, 3, sums.slices, stream);
    launch(Where("backward_constants", native(stream)), Shape{dim3(1), dim3(kBlockThreads)},
           backward_constants, sums);
  }
  const Tile dy{x.tile.frames,       shape.in_length,
                a.channels,          shape.same_padding ? (shape.taps - 1) / 2 : 0,
                x.tile.batch_frames, x.tile.first_frame};
  float* dy_data = state.dy.reserve(dy.floats());
  if (state.keeps_y) {
    apply_gradients(a, state, dp, gradient, dy, dy_data, stream);
  } else {
    apply_gradients(x, weights, a, dp, gradient, dy, dy_data, stream);
  }
  weights.backward_weight(x, dy, dy_data, gradients.weight, stream);
  if (dx != nullptr) weights.backward_data(dy, dy_data, dx, stream);
}

}  // namespace fmp::cuda
