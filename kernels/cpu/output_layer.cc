// SPDX-License-Identifier: MIT
// The output layer: logits = x_scale * w_scale * (W_codes * x_codes) + bias, and softmax
// cross-entropy on them.
//
// The bias is rounded to multiples of s = x_scale * w_scale (Brevitas' Int32Bias). Its gradient
// passes straight through; s receives the sum of dbias * (code - bias / s), and hands it on to both
// scales.
//
// With gains, each output has a scale of its own, x_scale * w_scale * gain, and the bias is not
// rounded: dlogits * gain is the gradient of what is multiplied.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/chunk_conv.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/conv_backward.h"
#include "kernels/cpu/ops.h"

namespace fmp::cpu {
namespace {

bool bias_is_quantized(const LayerShape& shape, const OutputParameters& parameters) {
  return shape.input_bits != kFloatBits && shape.weight_bits != kFloatBits &&
         parameters.gain.empty();
}

float bias_scale(float x_scale, const Weights& weights) { return x_scale * weights.scale(); }

// float holds every code that training reaches; the bounds are Int32Bias'.
float bias_code(float bias, float scale) {
  return std::clamp(std::nearbyint(bias / scale), -2147483648.0F, 2147483648.0F);
}

}  // namespace

std::vector<float> output_bias_codes(std::span<const float> bias, float scale) {
  std::vector<float> codes(bias.begin(), bias.end());
  for (float& b : codes) b = bias_code(b, scale);
  return codes;
}

OutputAffine output_affine(const LayerShape& shape, float scale,
                           const OutputParameters& parameters) {
  OutputAffine affine;
  affine.offset.assign(parameters.bias.begin(), parameters.bias.end());
  if (bias_is_quantized(shape, parameters)) {
    affine.offset = output_bias_codes(parameters.bias, scale);
    for (float& b : affine.offset) b *= scale;
  }
  affine.scale.assign(affine.offset.size(), scale);
  for (size_t o = 0; o < parameters.gain.size(); ++o) affine.scale[o] = scale * parameters.gain[o];
  return affine;
}

void output_forward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                    TileView logits, const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const ChunkConv conv(x.tile, weights);
  const Items& items = conv.items();
  const ptrdiff_t stride = static_cast<ptrdiff_t>(shape.out_channels) * kLanes;
  const OutputAffine affine = output_affine(shape, bias_scale(x.scale, weights), parameters);
  for_each_item(items.count(), context,
                [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  const int rows = items.rows(item);
                  float* y = static_cast<float*>(logits.data) + items.row(item, 0, 1, 0) * stride;
                  conv.forward(item, 0, rows, y, stride, scratch, timer, mine);
                  for (int64_t i = 0; i < rows * stride; ++i) {
                    const auto o = static_cast<size_t>(i % stride / kLanes);
                    y[i] = y[i] * affine.scale[o] + affine.offset[o];
                  }
                  zero_unused_lanes(items, item, 0, rows, shape.out_channels, y, stride);
                });
}

void output_backward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                     ConstTileView dlogits, OutputGradients& gradients, TileView dx,
                     const RunContext& context) {
  const LayerShape& shape = weights.shape();
  const std::span<const float> bias = parameters.bias;
  const bool quantized = bias_is_quantized(shape, parameters);
  const ChunkConv conv(x.tile, weights);
  const ptrdiff_t stride = static_cast<ptrdiff_t>(shape.out_channels) * kLanes;
  const float* gradient = static_cast<const float*>(dlogits.data);
  const float scale = bias_scale(x.scale, weights);

  gradients.weight_scale = gradients.x_scale = 0;
  double of_scale = 0;
  for (size_t o = 0; o < bias.size(); ++o) {
    double sum = 0;
    for (int64_t t = 0; t < dlogits.shape.tiles(); ++t) {
      const float* lanes = gradient + t * stride + static_cast<ptrdiff_t>(o) * kLanes;
      for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(lanes[j]);
    }
    gradients.bias[o] = static_cast<float>(sum);
    if (quantized) {
      of_scale += sum * (static_cast<double>(bias_code(bias[o], scale)) -
                         static_cast<double>(bias[o]) / static_cast<double>(scale));
    }
  }
  if (quantized) {
    gradients.weight_scale = of_scale * static_cast<double>(x.scale);
    gradients.x_scale = of_scale * static_cast<double>(weights.scale());
  }

  const auto fill = [&](int64_t item, int r0, int rows, float* dy, const ChunkLayout& layout,
                        Scratch&, LapTimer&, Profile&) {
    for (int r = 0; r < rows; ++r) {
      const float* from = gradient + conv.items().row(item, r0 + r, 1, 0) * stride;
      for (int o = 0; o < shape.out_channels; ++o) {
        float* to = dy + r * layout.row + o * layout.channel;
        std::copy_n(from + o * kLanes, kLanes, to);
        if (parameters.gain.empty()) continue;
        for (int j = 0; j < kLanes; ++j) to[j] *= parameters.gain[static_cast<size_t>(o)];
      }
    }
  };
  conv_backward(conv, x.scale, dx, nullptr, gradients.weight, context, fill);
}

LossResult softmax_cross_entropy(ConstTileView logits, const Targets& targets, TileView dlogits,
                                 std::span<uint8_t> predicted) {
  const int classes = logits.shape.channels;
  const std::span<const uint8_t> labels = targets.labels;
  const LossOptions& loss = targets.loss;
  const double soft_weight = targets.soft.empty() ? 0.0 : loss.soft_weight;
  const double mean = 1.0 / static_cast<double>(labels.size());
  const double smooth = loss.label_smoothing / classes;
  std::vector<double> exponential(static_cast<size_t>(classes));
  std::vector<double> gradient(static_cast<size_t>(classes));  // of the frame's loss
  LossResult result;
  for (size_t n = 0; n < labels.size(); ++n) {
    const ptrdiff_t at =
        static_cast<ptrdiff_t>(n / kLanes) * classes * kLanes + static_cast<ptrdiff_t>(n % kLanes);
    const float* frame = static_cast<const float*>(logits.data) + at;
    int best = 0;
    for (int c = 1; c < classes; ++c) {
      if (frame[c * kLanes] > frame[best * kLanes]) best = c;
    }
    const double largest = static_cast<double>(frame[best * kLanes]);
    // Adds weight * temperature^2 * H(target, softmax(z / temperature)); target sums up to 1.
    const auto add = [&](double weight, double temperature, const auto& target) {
      const double coldness = 1 / temperature;
      double sum = 0, expected = 0;
      for (int c = 0; c < classes; ++c) {
        const double z = (static_cast<double>(frame[c * kLanes]) - largest) * coldness;
        const double e = std::exp(z);
        exponential[static_cast<size_t>(c)] = e;
        sum += e;
        if (const double q = target(c); q != 0) expected += q * z;
      }
      result.loss_sum += weight * temperature * temperature * (std::log(sum) - expected);
      for (int c = 0; c < classes; ++c) {
        gradient[static_cast<size_t>(c)] +=
            weight * temperature * (exponential[static_cast<size_t>(c)] / sum - target(c));
      }
    };
    const int label = labels[n];
    std::ranges::fill(gradient, 0.0);
    add(1 - soft_weight, 1.0,
        [&](int c) { return (c == label ? 1.0 - loss.label_smoothing : 0.0) + smooth; });
    if (soft_weight != 0) {
      const float* q = targets.soft.data() + n * static_cast<size_t>(classes);
      add(soft_weight, loss.temperature, [&](int c) { return static_cast<double>(q[c]); });
    }
    result.correct += best == label;
    if (!predicted.empty()) predicted[n] = static_cast<uint8_t>(best);
    if (dlogits.data == nullptr) continue;
    float* out = static_cast<float*>(dlogits.data) + at;
    for (int c = 0; c < classes; ++c)
      out[c * kLanes] = static_cast<float>(gradient[static_cast<size_t>(c)] * mean);
  }
  return result;
}

}  // namespace fmp::cpu
