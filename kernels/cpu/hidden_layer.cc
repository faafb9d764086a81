// SPDX-License-Identifier: MIT
// A hidden layer in two passes over its activations each way:
//
//   forward:  y = W * x and the sums of y and y^2 per channel | t = gain * y + shift, code, pool
//   backward: sums of g and g * xhat per channel, scale gradient | dy, then dW += dy x^T and
//             dx = W^T dy while dy is in the cache
//
// with BN(y) = gamma * (s * y - mean) / sqrt(var + eps) + beta, s = x_scale * w_scale, and
// dy = gamma / sqrt(var + eps) * (g - mean(g) - xhat * mean(g * xhat)). y is the one activation
// kept in float; a layer with few inputs computes it again instead, which is cheaper than memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/conv_backward.h"
#include "kernels/cpu/hidden_pass.h"
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

}  // namespace

void set_threshold(const LayerShape& shape, float threshold, HiddenState& state) {
  state.threshold = threshold;
  state.act_scale = threshold / largest_act_code(shape);
  for (float& gain : state.gain) gain /= state.act_scale;
  for (float& shift : state.shift) shift /= state.act_scale;
}

void hidden_forward_train(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, bool collect,
                          const RunningStatistics& running, HiddenState& state, TileView out,
                          const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const HiddenPass pass(x.tile, weights, context);
  const size_t channels = static_cast<size_t>(shape.out_channels);
  resize(state, channels);
  if (keeps_sums(shape)) state.y.reserve(pass.kept_elements());

  PartialSums partial(pass.items().count(), 2 * channels);
  const ptrdiff_t stride = static_cast<ptrdiff_t>(channels) * kLanes;
  pass.for_each_chunk(
      [&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer, Profile& mine) {
        ChunkSums sums{};
        if (keeps_sums(shape)) {
          float* y = pass.kept(state.y.data(), item, r0);
          pass.conv().forward(item, r0, rows, y, stride, scratch, timer, mine);
          sums = {y, stride};
        } else {
          sums = pass.compute(item, r0, rows, scratch, timer, mine);
        }
        double* sum = partial.of(item);
        simd().channel_sums(sums.y, sums.stride, rows, shape.out_channels, sum, sum + channels);
        timer.lap(mine.activation_forward);
      });

  const std::vector<double> total = partial.total();
  const double n = pass.count();
  const double sum_scale = static_cast<double>(x.scale) * static_cast<double>(weights.scale());
  for (size_t c = 0; c < channels; ++c) {
    const double mean_code = total[c] / n;
    const double variance_code = std::max(0.0, total[channels + c] / n - mean_code * mean_code);
    const double mean = sum_scale * mean_code, variance = sum_scale * sum_scale * variance_code;
    const double unbiased = n > 1 ? variance * n / (n - 1) : variance;
    const auto update = [](float& value, double batch) {
      value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value) +
                                 kBatchNormMomentum * batch);
    };
    update(running.mean[c], mean);
    update(running.var[c], unbiased);
    set_batch_norm(parameters, sum_scale, c, mean, variance, state);
  }

  state.collected = collect && shape.act_bits != kFloatBits;
  if (state.collected) {
    collect_threshold(pass, state);
  } else if (shape.act_bits != kFloatBits) {
    set_threshold(shape, std::max(std::fabs(parameters.threshold), kMinQuantizerRange), state);
  }

  const ChannelAffine affine{state.gain.data(), state.shift.data()};
  pass.for_each_chunk(
      [&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer, Profile& mine) {
        const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, mine);
        pass.activate(sums, affine, item, r0, rows, out);
        timer.lap(mine.activation_forward);
      });
}

float activation_scale(float threshold, int act_bits) {
  return std::max(std::fabs(threshold), kMinQuantizerRange) /
         static_cast<float>((1 << act_bits) - 1);
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
    state.act_scale = activation_scale(parameters.threshold, shape.act_bits);
  }
  return state;
}

float hidden_forward_eval(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, std::span<const float> running_mean,
                          std::span<const float> running_var, TileView out,
                          const RunContext& context) {
  const HiddenPass pass(x.tile, weights, context);
  const EvaluationState state = evaluation_state(weights.shape(), x.scale, weights.scale(),
                                                 parameters, running_mean, running_var);
  const EvaluationSteps steps{state.sum_scale, state.gain.data(), state.shift.data(),
                              state.act_scale};
  pass.for_each_chunk(
      [&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer, Profile& mine) {
        const ChunkSums sums = pass.compute(item, r0, rows, scratch, timer, mine);
        pass.activate(sums, steps, item, r0, rows, out);
        timer.lap(mine.activation_forward);
      });
  return state.act_scale;
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

}  // namespace

void hidden_backward(const Input& x, const Weights& weights, const HiddenParameters& parameters,
                     const HiddenState& state, ConstTileView dp, double act_scale_gradient,
                     HiddenGradients& gradients, TileView dx, const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const HiddenPass pass(x.tile, weights, context);
  const Items& items = pass.items();
  const size_t channels = static_cast<size_t>(shape.out_channels);
  const ActivationSpec spec = activation_spec(shape);
  const ChannelAffine affine{state.gain.data(), state.shift.data()};
  const ChannelAffine xhat{state.xhat_gain.data(), state.xhat_shift.data()};
  const auto pooled_gradient = [&](int64_t item, int r0) {
    const int64_t row = items.row(item, r0 / shape.pool, shape.length / shape.pool, 0);
    return static_cast<const float*>(dp.data) + row * dp.shape.row_elements();
  };

  // Per item: sum of g and of g * xhat of every channel in turn, then the scale's gradient.
  PartialSums partial(items.count(), 2 * channels + 1);
  pass.for_each_chunk(
      [&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer, Profile& mine) {
        const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, mine);
        const size_t lane_sums = 2 * channels * kLanes;
        float* lanes = scratch.sums.reserve(lane_sums);
        std::fill_n(lanes, lane_sums, 0.0F);
        double* sum = partial.of(item);
        sum[2 * channels] +=
            simd().activation_backward_sums(sums.y, sums.stride, rows, shape.out_channels, affine,
                                            xhat, spec, pooled_gradient(item, r0), lanes);
        simd().add_lane_sums(lanes, 2 * shape.out_channels, sum);
        timer.lap(mine.activation_backward);
      });

  std::vector<double> total = partial.total();
  std::vector<double> sum_g(channels), sum_g_xhat(channels);
  for (size_t c = 0; c < channels; ++c) {
    sum_g[c] = total[2 * c];
    sum_g_xhat[c] = total[2 * c + 1];
  }
  float statistic_gradient = 0;
  gradients.threshold = 0;
  if (spec.quantized) {
    const double of_threshold =
        (total[2 * channels] + act_scale_gradient) / static_cast<double>(largest_act_code(shape));
    if (!state.collected) {
      const float v = parameters.threshold;
      gradients.threshold = v > 0 ? of_threshold : v < 0 ? -of_threshold : 0;
    } else if (state.statistic_row >= 0) {
      // The percentile is an element of the batch: the threshold's gradient is that element's.
      const size_t c = static_cast<size_t>(state.statistic_channel);
      statistic_gradient = static_cast<float>(of_threshold);
      sum_g[c] += of_threshold;
      sum_g_xhat[c] += of_threshold * static_cast<double>(state.statistic_xhat);
    }
  }
  for (size_t c = 0; c < channels; ++c) {
    gradients.beta[c] = static_cast<float>(sum_g[c]);
    gradients.gamma[c] = static_cast<float>(sum_g_xhat[c]);
  }
  const BackwardConstants k =
      backward_constants(state, parameters, sum_g, sum_g_xhat, pass.count());

  const auto fill = [&](int64_t item, int r0, int rows, float* dy, ptrdiff_t dy_stride,
                        Scratch& scratch, LapTimer& timer, Profile& mine) {
    const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, mine);
    simd().activation_backward_apply(
        sums.y, sums.stride, rows, shape.out_channels, affine, spec, pooled_gradient(item, r0),
        {k.of_g.data(), k.of_y.data(), k.of_one.data()}, dy, dy_stride);
    const int64_t statistic = state.statistic_row - items.row(item, r0, shape.length, 0);
    if (state.collected && state.statistic_row >= 0 && statistic >= 0 && statistic < rows) {
      dy[statistic * dy_stride + state.statistic_channel * kLanes + state.statistic_lane] +=
          k.of_g[static_cast<size_t>(state.statistic_channel)] * statistic_gradient;
    }
    zero_unused_lanes(items, item, r0, rows, shape.out_channels, dy, dy_stride);
    timer.lap(mine.activation_backward);
  };
  conv_backward(pass.conv(), x.scale, dx, gradients.weight, context, fill);
}

}  // namespace fmp::cpu
