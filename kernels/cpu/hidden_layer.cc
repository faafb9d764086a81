// SPDX-License-Identifier: MIT
// A hidden layer: convolution, batch-norm, QuantReLU and pooling, with
//
//   BN(y) = gamma * (s * y - mean) / sqrt(var + eps) + beta, s = x_scale * w_scale
//   dy = gamma / sqrt(var + eps) * (g - mean(g) - xhat * mean(g * xhat))
//
// Memory holds the codes of its output, the gradient of that output, and a bit for each y that says
// whether the gradient passes to it. y itself is a sum of products of codes: it is made again
// wherever it is needed, a few channels of a few positions at a time, which costs less than reading
// it. Batch-norm's sums over the batch are barriers between sweeps over the tiles of a layer l:
//
//   forward   y_l -> codes of l; while they are in the cache, y_(l+1) -> its sums of y and y^2
//   backward  y_l -> dy_l; dW += dy x^T; dx = W^T dy; while dx is in the cache, y_(l-1) -> its sums
//             of g and g * y
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/cpu/hidden_pass.h"
#include "kernels/cpu/hidden_sums.h"
#include "kernels/cpu/ops.h"

namespace fmp::cpu {
namespace {

// The affine step of batch-norm in units of the activation, and of xhat.
void set_batch_norm(const HiddenParameters& parameters, double sum_scale, size_t channel,
                    double mean, double variance, HiddenState& state) {
  const double inv_std = 1.0 / std::sqrt(variance + kBatchNormEpsilon);
  const double gamma = static_cast<double>(parameters.gamma[channel]);
  state.inv_std[channel] = static_cast<float>(inv_std);
  state.xhat_gain[channel] = static_cast<float>(inv_std * sum_scale);
  state.xhat_shift[channel] = static_cast<float>(-inv_std * mean);
  state.gain[channel] = static_cast<float>(gamma * inv_std * sum_scale);
  state.shift[channel] =
      static_cast<float>(static_cast<double>(parameters.beta[channel]) - gamma * inv_std * mean);
}

void resize(HiddenState& state, size_t channels) {
  for (auto* v : {&state.gain, &state.shift, &state.xhat_gain, &state.xhat_shift, &state.inv_std}) {
    v->resize(channels);
  }
}

// Rows of a chunk, from channel c on, in a tile of codes or values that the layer writes.
template <typename T>
T* rows_of_output(const HiddenPass& pass, const TileView& out, int64_t item, int r0, int c) {
  const LayerShape& s = pass.shape();
  const int64_t row = pass.items().row(item, r0 / s.pool, s.length / s.pool, out.shape.pad);
  return static_cast<T*>(out.data) + row * out.shape.row_elements() +
         static_cast<ptrdiff_t>(c) * kLanes;
}

// Codes (or values) of an item, kernel(first channel, sums, where to, stride between rows).
template <typename T, typename Kernel>
void write_item(const HiddenPass& pass, const HiddenState* state, const TileView& out, int64_t item,
                Scratch& scratch, LapTimer& timer, Profile& profile, const Kernel& kernel) {
  const LayerShape& s = pass.shape();
  const ptrdiff_t stride = out.shape.row_elements();
  pass.for_each_chunk(item, [&](int r0, int rows) {
    pass.for_each_sums(state, item, r0, rows, scratch, timer, profile,
                       [&](int c, const Sums& sums) {
                         kernel(r0, c, sums, rows_of_output<T>(pass, out, item, r0, c), stride);
                         timer.lap(profile.activation_forward);
                       });
    zero_unused_lanes(pass.items(), item, r0 / s.pool, rows / s.pool, s.out_channels,
                      rows_of_output<T>(pass, out, item, r0, 0), stride);
  });
}

// Batch statistics from the sums, the running ones updated, and batch-norm's affine step.
void normalise(const LayerShape& shape, double count, double sum_scale,
               const HiddenParameters& parameters, const RunningStatistics& running,
               HiddenState& state) {
  const size_t channels = static_cast<size_t>(shape.out_channels);
  resize(state, channels);
  for (size_t c = 0; c < channels; ++c) {
    const double mean_code = state.sum_y[c] / count;
    const double variance_code =
        std::max(0.0, state.sum_squares[c] / count - mean_code * mean_code);
    const double mean = sum_scale * mean_code, variance = sum_scale * sum_scale * variance_code;
    const double unbiased = count > 1 ? variance * count / (count - 1) : variance;
    const auto update = [](float& value, double batch) {
      value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value) +
                                 kBatchNormMomentum * batch);
    };
    update(running.mean[c], mean);
    update(running.var[c], unbiased);
    set_batch_norm(parameters, sum_scale, c, mean, variance, state);
  }
}

}  // namespace

void set_threshold(const LayerShape& shape, float threshold, HiddenState& state) {
  state.threshold = threshold;
  state.act_scale = threshold / static_cast<float>(shape.largest_code());
  for (float& gain : state.gain) gain /= state.act_scale;
  for (float& shift : state.shift) shift /= state.act_scale;
}

void hidden_forward_train(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, bool collect,
                          const RunningStatistics& running, HiddenState& state, TileView out,
                          const HiddenOperands* reader, const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const HiddenPass pass(x.tile, weights);
  if (!state.summed) {
    SumsOfOutput sums({x, &weights, &state});
    for_each_item(pass.items().count(), context,
                  [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
                    sums.add(item, scratch, timer, mine);
                  });
    sums.finish(ranks_of(context));
  }
  state.summed = state.gradient_summed = false;
  normalise(shape, pass.count(context),
            static_cast<double>(x.scale) * static_cast<double>(weights.scale()), parameters,
            running, state);

  state.collected = collect && shape.act_bits != kFloatBits;
  if (state.collected) {
    collect_threshold(pass, state, context);
  } else if (shape.act_bits != kFloatBits) {
    set_threshold(shape, std::max(std::fabs(parameters.threshold), kMinQuantizerRange), state);
  }

  const ActivationSpec spec = activation_spec(shape);
  const auto write = [&](auto kernel, auto element, int64_t item, Scratch& scratch, LapTimer& timer,
                         Profile& mine) {
    write_item<decltype(element)>(
        pass, &state, out, item, scratch, timer, mine,
        [&](int r0, int c, const Sums& sums, auto* to, ptrdiff_t stride) {
          const ChannelAffine affine{state.gain.data() + c, state.shift.data() + c};
          kernel(sums, affine, spec, to, stride,
                 state.passes.data() + pass.first_channel(item, r0) + c, shape.out_channels);
        });
  };
  const auto write_sparse = [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
    const ptrdiff_t stride = out.shape.row_elements();
    pass.for_each_chunk(item, [&](int r0, int rows) {
      uint8_t* to = rows_of_output<uint8_t>(pass, out, item, r0, 0);
      pass.conv().with_code_chunk(
          item, r0, rows, scratch, timer, mine, [&](const CodeChunk& chunk) {
            simd().sparse_codes(
                chunk, shape.out_channels, {state.gain.data(), state.shift.data()}, spec, to,
                stride, state.passes.data() + pass.first_channel(item, r0), shape.out_channels);
          });
      zero_unused_lanes(pass.items(), item, r0 / shape.pool, rows / shape.pool, shape.out_channels,
                        to, stride);
      timer.lap(mine.activation_forward);
    });
  };
  std::optional<SumsOfOutput> sums_of_reader;
  if (reader != nullptr && same_items(shape, reader->weights->shape()))
    sums_of_reader.emplace(*reader);
  for_each_item(pass.items().count(), context,
                [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  if (pass.conv().uses_sums_in_registers()) {
                    write_sparse(item, scratch, timer, mine);
                  } else if (spec.quantized) {
                    write(simd().quantize_pool, uint8_t{}, item, scratch, timer, mine);
                  } else {
                    write(simd().relu_pool, float{}, item, scratch, timer, mine);
                  }
                  if (sums_of_reader) sums_of_reader->add(item, scratch, timer, mine);
                });
  if (sums_of_reader) sums_of_reader->finish(ranks_of(context));
}

float activation_scale(float threshold, int largest_code) {
  return std::max(std::fabs(threshold), kMinQuantizerRange) / static_cast<float>(largest_code);
}

EvaluationAffine evaluation_affine(float gamma, float beta, float mean, float var) {
  const float gain = gamma * (1.0F / std::sqrt(var + static_cast<float>(kBatchNormEpsilon)));
  return {gain, beta - mean * gain};
}

EvaluationState evaluation_state(const LayerShape& shape, float x_scale, float weight_scale,
                                 const HiddenParameters& parameters,
                                 std::span<const float> running_mean,
                                 std::span<const float> running_var) {
  EvaluationState state;
  state.sum_scale = x_scale * weight_scale;
  for (size_t c = 0; c < running_mean.size(); ++c) {
    const EvaluationAffine affine =
        evaluation_affine(parameters.gamma[c], parameters.beta[c], running_mean[c], running_var[c]);
    state.gain.push_back(affine.gain);
    state.shift.push_back(affine.shift);
  }
  if (shape.act_bits != kFloatBits) {
    state.act_scale = activation_scale(parameters.threshold, shape.largest_code());
  }
  return state;
}

float hidden_forward_eval(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, std::span<const float> running_mean,
                          std::span<const float> running_var, TileView out,
                          const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const HiddenPass pass(x.tile, weights);
  const EvaluationState evaluation =
      evaluation_state(shape, x.scale, weights.scale(), parameters, running_mean, running_var);
  const ActivationSpec spec = activation_spec(shape);
  const auto write = [&](auto kernel, auto element, int64_t item, Scratch& scratch, LapTimer& timer,
                         Profile& mine) {
    write_item<decltype(element)>(
        pass, nullptr, out, item, scratch, timer, mine,
        [&](int /*r0*/, int c, const Sums& sums, auto* to, ptrdiff_t stride) {
          const EvaluationSteps steps{evaluation.sum_scale, evaluation.gain.data() + c,
                                      evaluation.shift.data() + c, evaluation.act_scale};
          kernel(sums, steps, spec, to, stride);
        });
  };
  for_each_item(pass.items().count(), context,
                [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  if (spec.quantized) {
                    write(simd().evaluate_codes, uint8_t{}, item, scratch, timer, mine);
                  } else {
                    write(simd().evaluate_values, float{}, item, scratch, timer, mine);
                  }
                });
  return evaluation.act_scale;
}

namespace {

// dy = of_g * g + of_y * y + of_one per channel.
struct BackwardConstants {
  std::vector<float> of_g, of_y, of_one;
};

BackwardConstants backward_constants(const HiddenState& state, const HiddenParameters& parameters,
                                     std::span<const double> sum_g,
                                     std::span<const double> sum_g_xhat, double n) {
  const size_t channels = state.gain.size();
  BackwardConstants k{std::vector<float>(channels), std::vector<float>(channels),
                      std::vector<float>(channels)};
  for (size_t c = 0; c < channels; ++c) {
    const double a =
        static_cast<double>(parameters.gamma[c]) * static_cast<double>(state.inv_std[c]);
    const double mean_g = sum_g[c] / n, mean_g_xhat = sum_g_xhat[c] / n;
    k.of_g[c] = static_cast<float>(a);
    k.of_y[c] = static_cast<float>(-a * mean_g_xhat * static_cast<double>(state.xhat_gain[c]));
    k.of_one[c] =
        static_cast<float>(-a * (mean_g + static_cast<double>(state.xhat_shift[c]) * mean_g_xhat));
  }
  return k;
}

// Sums of the gradient that nobody took on the way.
void take_sums(const HiddenOperands& layer, ConstTileView dp, const RunContext& context) {
  SumsOfGradient sums(layer, context.share);
  const Items& items = sums.pass().items();
  const LayerShape& shape = layer.weights->shape();
  const int length = shape.length / shape.pool;
  for_each_item(
      sums.groups(), context, [&](int64_t group, Scratch& scratch, LapTimer& timer, Profile& mine) {
        sums.begin(scratch);
        for (int64_t item = sums.first_item(group); item < sums.first_item(group + 1); ++item) {
          const int rows = items.rows(item) / shape.pool;
          const float* first = gradient_rows(dp, items.row(item, 0, length, 0), rows, scratch);
          sums.add(group, item, 0, rows, first, scratch, timer, mine);
        }
        sums.end(group, scratch);
      });
  sums.finish(ranks_of(context));
}

// The input codes of the percentile's window, times `gradient`, to its channel's weights.
void add_statistic_window(const HiddenOperands& layer, float gradient, const RunContext& context,
                          std::span<float> dweight) {
  const HiddenState& state = *layer.state;
  const LayerShape& s = layer.weights->shape();
  const ConstTileView& x = layer.x.tile;
  const int64_t tile =
      state.statistic_row / s.length - (context.share != nullptr ? context.share->first_tile : 0);
  std::vector<int64_t> window(static_cast<size_t>(s.fan_in()), 0);
  if (tile >= 0 && tile < x.shape.tiles()) {
    const int first = static_cast<int>(state.statistic_row % s.length) - s.padding();
    const int8_t* codes = static_cast<const int8_t*>(x.data) + tile * x.shape.tile_elements();
    for (size_t k = 0; k < window.size(); ++k) {
      const int t = static_cast<int>(k) / s.in_channels, c = static_cast<int>(k) % s.in_channels;
      const int64_t row = x.shape.pad + first + t;
      window[k] += codes[row * x.shape.row_elements() + c * kLanes + state.statistic_lane];
    }
  }
  // The other ranks have zeros.
  if (Communicator* ranks = ranks_of(context)) ranks->sum(window);
  const size_t channel = static_cast<size_t>(state.statistic_channel) * window.size();
  for (size_t k = 0; k < window.size(); ++k)
    dweight[channel + k] += gradient * static_cast<float>(window[k]);
}

}  // namespace

bool gradient_stays_in_cache(const LayerShape& layer, const HiddenOperands& producer) {
  return same_items(producer.weights->shape(), layer) && sums_of_inputs_suffice(producer);
}

void hidden_backward(const HiddenOperands& layer, const HiddenParameters& parameters,
                     ConstTileView dp, double act_scale_gradient, HiddenGradients& gradients,
                     TileView dx, const HiddenOperands* producer, const RunContext& context) {
  const LayerShape& shape = layer.weights->shape();
  HiddenState& state = *layer.state;
  const HiddenPass pass(layer.x.tile, *layer.weights);
  const Items& items = pass.items();
  const size_t channels = pass.channels();
  if (!state.gradient_summed) take_sums(layer, dp, context);

  std::vector<double> sum_g = state.sum_g, sum_g_xhat(channels);
  double scale_gradient = state.sum_code + act_scale_gradient;
  for (size_t c = 0; c < channels; ++c) {
    const auto affine = [&](float gain, float shift) {
      return static_cast<double>(gain) * state.sum_g_y[c] + static_cast<double>(shift) * sum_g[c];
    };
    sum_g_xhat[c] = affine(state.xhat_gain[c], state.xhat_shift[c]);
    scale_gradient -= affine(state.gain[c], state.shift[c]);  // sum of g * t
  }
  float statistic_gradient = 0;
  gradients.threshold = 0;
  if (shape.act_bits != kFloatBits) {
    const double of_threshold = scale_gradient / static_cast<double>(shape.largest_code());
    if (!state.collected) {
      const float v = parameters.threshold;
      gradients.threshold = v > 0 ? of_threshold : v < 0 ? -of_threshold : 0;
    } else if (state.statistic_row >= 0) {
      // The percentile is an element of the batch: the threshold's gradient is that element's.
      const size_t c = static_cast<size_t>(state.statistic_channel);
      const double of_element = of_threshold * static_cast<double>(state.statistic_sign);
      statistic_gradient = static_cast<float>(of_element);
      sum_g[c] += of_element;
      sum_g_xhat[c] += of_element * static_cast<double>(state.statistic_xhat);
    }
  }
  for (size_t c = 0; c < channels; ++c) {
    gradients.beta[c] = static_cast<float>(sum_g[c]);
    gradients.gamma[c] = static_cast<float>(sum_g_xhat[c]);
  }
  const BackwardConstants k =
      backward_constants(state, parameters, sum_g, sum_g_xhat, pass.count(context));
  const float statistic_dy =
      statistic_gradient == 0.0F
          ? 0.0F
          : k.of_g[static_cast<size_t>(state.statistic_channel)] * statistic_gradient;

  if (sums_of_inputs_suffice(layer)) {
    weight_gradient_of_sums(layer, {k.of_g.data(), k.of_y.data(), k.of_one.data()},
                            gradients.weight);
    if (statistic_dy != 0.0F)
      add_statistic_window(layer, layer.x.scale * statistic_dy, context, gradients.weight);
    return;
  }

  const auto fill = [&](int64_t item, int r0, int rows, float* dy, const ChunkLayout& layout,
                        Scratch& scratch, LapTimer& timer, Profile& mine) {
    const int64_t row = items.row(item, r0 / shape.pool, shape.length / shape.pool, 0);
    const PooledGradient gradient =
        pooled_gradient(pass, layer, item, r0, gradient_rows(dp, row, rows / shape.pool, scratch));
    if (pass.conv().uses_sums_in_registers()) {
      pass.conv().with_code_chunk(
          item, r0, rows, scratch, timer, mine, [&](const CodeChunk& chunk) {
            simd().sparse_gradient(chunk, shape.out_channels, shape.pool, gradient,
                                   {k.of_g.data(), k.of_y.data(), k.of_one.data()}, dy, layout.row,
                                   layout.channel);
          });
    } else {
      pass.for_each_sums(
          &state, item, r0, rows, scratch, timer, mine, [&](int c, const Sums& sums) {
            simd().backward_apply(sums, shape.pool, from_channel(gradient, c),
                                  {k.of_g.data() + c, k.of_y.data() + c, k.of_one.data() + c},
                                  dy + c * layout.channel, layout.row, layout.channel);
            timer.lap(mine.activation_backward);
          });
    }
    const int64_t statistic =
        state.statistic_row - pass.rows_before(context) - items.row(item, r0, shape.length, 0);
    if (statistic_dy != 0.0F && statistic >= 0 && statistic < rows) {
      dy[statistic * layout.row + state.statistic_channel * layout.channel +
         state.statistic_lane] += statistic_dy;
    }
    zero_unused_lanes(items, item, r0, rows, shape.out_channels, dy, layout.row, layout.channel);
    timer.lap(mine.activation_backward);
  };
  std::optional<SumsOfGradient> sums_of_producer;
  if (producer != nullptr && same_items(producer->weights->shape(), shape)) {
    sums_of_producer.emplace(*producer, context.share);
  }
  conv_backward(pass.conv(), layer.x.scale, dx, sums_of_producer ? &*sums_of_producer : nullptr,
                gradients.weight, context, fill);
  if (sums_of_producer) sums_of_producer->finish(ranks_of(context));
}

}  // namespace fmp::cpu
