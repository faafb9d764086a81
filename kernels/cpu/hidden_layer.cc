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

#include "kernels/cpu/chunks.h"
#include "kernels/cpu/conv_backward.h"
#include "kernels/cpu/ops.h"

namespace fmp::ops {
namespace {

using cpu::ChunkConv;
using cpu::LapTimer;
using cpu::Scratch;

// Multiply-adds per output below which y is computed again instead of kept: reading 4 bytes from
// memory takes about as long as 16 multiply-adds.
constexpr int64_t kRecomputeBelow = 16;

bool keeps_sums(const LayerShape& shape) { return shape.fan_in() >= kRecomputeBelow; }

float largest_act_code(const LayerShape& shape) {
  return static_cast<float>((1 << shape.act_bits) - 1);
}

cpu::ActivationSpec activation_spec(const LayerShape& shape) {
  const bool quantized = shape.act_bits != kFloatBits;
  return {shape.pool, quantized, quantized ? largest_act_code(shape) : 0.0F};
}

// What makes codes or values of sums: in training, and in evaluation.
auto code_kernel(const cpu::ChannelAffine& /*step*/) { return cpu::simd().quantize_pool; }
auto code_kernel(const cpu::EvaluationSteps& /*steps*/) { return cpu::simd().evaluate_codes; }
auto value_kernel(const cpu::ChannelAffine& /*step*/) { return cpu::simd().relu_pool; }
auto value_kernel(const cpu::EvaluationSteps& /*steps*/) { return cpu::simd().evaluate_values; }

// Sums of a chunk: where they are kept, or computed into scratch.
struct ChunkSums {
  const float* y;
  ptrdiff_t stride;
};

class HiddenPass {
 public:
  HiddenPass(const LayerShape& shape, ConstTileView x, const CompiledWeights& weights, int threads,
             Profile* profile)
      : shape_(shape),
        conv_(shape, x, weights),
        frames_(x.shape.frames),
        threads_(threads),
        profile_(profile),
        stride_(static_cast<ptrdiff_t>(shape.out_channels) * kLanes) {}

  const ChunkConv& conv() const { return conv_; }
  const cpu::Items& items() const { return conv_.items(); }
  int channels() const { return shape_.out_channels; }
  double count() const { return static_cast<double>(frames_) * shape_.length; }

  size_t kept_elements() const {
    return static_cast<size_t>(
        TileShape{frames_, shape_.length, shape_.out_channels, 0}.elements());
  }
  float* kept(float* y, int64_t item, int r) const {
    return y + items().row(item, r, shape_.length, 0) * stride_;
  }

  ChunkSums compute(int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer,
                    Profile& profile) const {
    float* y = scratch.y.reserve(static_cast<size_t>(rows * stride_));
    conv_.forward(item, r0, rows, y, stride_, scratch, timer, profile);
    return {y, stride_};
  }
  // The sums that the forward pass kept or, if it did not, computed again.
  ChunkSums sums(const HiddenState& state, int64_t item, int r0, int rows, Scratch& scratch,
                 LapTimer& timer, Profile& profile) const {
    if (!keeps_sums(shape_)) return compute(item, r0, rows, scratch, timer, profile);
    return {state.y.data() + items().row(item, r0, shape_.length, 0) * stride_, stride_};
  }

  // body(item, r0, rows, scratch, timer, profile) for every chunk of every item, an item's chunks
  // in order on one thread.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    const auto chunks_of = [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& profile) {
      const int rows = items().rows(item);
      for (int r0 = 0; r0 < rows; r0 += conv_.chunk_rows()) {
        body(item, r0, std::min(conv_.chunk_rows(), rows - r0), scratch, timer, profile);
      }
    };
    cpu::for_each_item(items().count(), threads_, profile_, chunks_of);
  }

  // Activation of a chunk to its rows of `out`. affine: see code_kernel().
  template <typename AffineStep>
  void activate(const ChunkSums& sums, const AffineStep& affine, int64_t item, int r0, int rows,
                const TileView& out) const {
    const int out_length = shape_.length / shape_.pool, out_rows = rows / shape_.pool;
    const int64_t row = items().row(item, r0 / shape_.pool, out_length, out.shape.pad);
    const int64_t at = row * out.shape.row_elements();
    const cpu::ActivationSpec spec = activation_spec(shape_);
    const auto write = [&](auto* first, auto kernel) {
      kernel(sums.y, sums.stride, rows, channels(), affine, spec, first + at);
      cpu::zero_unused_lanes(items(), item, r0 / shape_.pool, out_rows, channels(), first + at,
                             stride_);
    };
    if (spec.quantized) {
      write(static_cast<uint8_t*>(out.data), code_kernel(affine));
    } else {
      write(static_cast<float*>(out.data), value_kernel(affine));
    }
  }

 private:
  LayerShape shape_;
  ChunkConv conv_;
  int64_t frames_;
  int threads_;
  Profile* profile_;
  ptrdiff_t stride_;
};

// Per-item partial sums of `width` doubles, added up in the order of the items.
class PartialSums {
 public:
  PartialSums(int64_t items, size_t width)
      : width_(width), sums_(static_cast<size_t>(items) * width, 0.0) {}
  double* of(int64_t item) { return sums_.data() + static_cast<size_t>(item) * width_; }
  std::vector<double> total() const {
    std::vector<double> total(width_, 0.0);
    for (size_t i = 0; i < sums_.size(); ++i) total[i % width_] += sums_[i];
    return total;
  }

 private:
  size_t width_;
  std::vector<double> sums_;
};

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

// From values to codes: divides the affine step by the scale.
void set_threshold(const LayerShape& shape, float threshold, HiddenState& state) {
  state.threshold = threshold;
  state.act_scale = threshold / largest_act_code(shape);
  for (float& gain : state.gain) gain /= state.act_scale;
  for (float& shift : state.shift) shift /= state.act_scale;
}

// The largest elements of one item with their places, at least the `wanted` largest.
struct LargestElements {
  struct Element {
    float value;
    int64_t row;
    int32_t channel_lane;
  };
  std::vector<Element> elements;
  float at_least = std::numeric_limits<float>::min();  // only positive values matter after a ReLU

  void trim(size_t wanted) {
    if (elements.size() < 2 * wanted) return;
    const auto last = elements.begin() + static_cast<ptrdiff_t>(wanted - 1);
    std::nth_element(elements.begin(), last, elements.end(),
                     [](const Element& a, const Element& b) { return a.value > b.value; });
    at_least = last->value;
    elements.resize(wanted);
  }
};

// Sets the threshold to the percentile of the activations before pooling, and where it was found.
// The k-th smallest, k = floor(0.01 q n + 0.5), is one of the few largest: those are collected.
void collect_threshold(const HiddenPass& pass, const LayerShape& shape, HiddenState& state) {
  const double n = pass.count() * shape.out_channels;
  const double k = std::floor(0.01 * kThresholdPercentile * n + 0.5);
  const size_t wanted = static_cast<size_t>(n - k) + 1;
  std::vector<LargestElements> largest(static_cast<size_t>(pass.items().count()));
  const cpu::ChannelAffine affine{state.gain.data(), state.shift.data()};
  const int row_elements = shape.out_channels * kLanes;

  pass.for_each_chunk(
      [&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer, Profile& profile) {
        const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, profile);
        LargestElements& mine = largest[static_cast<size_t>(item)];
        std::vector<float> values(static_cast<size_t>(row_elements));
        std::vector<int32_t> places(static_cast<size_t>(row_elements));
        for (int r = 0; r < rows; ++r) {
          const int found = cpu::simd().collect_at_least(
              sums.y + r * sums.stride, sums.stride, 1, shape.out_channels, affine, mine.at_least,
              pass.items().lanes_used(item, r0 + r), values.data(), places.data());
          for (int i = 0; i < found; ++i) {
            const size_t at = static_cast<size_t>(i);
            mine.elements.push_back(
                {values[at], pass.items().row(item, r0 + r, shape.length, 0), places[at]});
          }
          mine.trim(wanted);
        }
        timer.lap(profile.activation_forward);
      });

  std::vector<LargestElements::Element> all;
  for (const LargestElements& item : largest) {
    all.insert(all.end(), item.elements.begin(), item.elements.end());
  }
  state.statistic_row = -1;
  float threshold = kMinQuantizerRange;
  if (all.size() >= wanted) {
    const auto kth = all.begin() + static_cast<ptrdiff_t>(wanted - 1);
    // Descending value, then place: among equals the first one is taken, whatever was collected
    // when.
    std::nth_element(all.begin(), kth, all.end(), [](const auto& a, const auto& b) {
      if (a.value != b.value) return a.value > b.value;
      if (a.row != b.row) return a.row < b.row;
      return a.channel_lane < b.channel_lane;
    });
    threshold = std::max(kth->value, kMinQuantizerRange);
    state.statistic_row = kth->row;
    state.statistic_channel = kth->channel_lane / kLanes;
    state.statistic_lane = kth->channel_lane % kLanes;
    const size_t c = static_cast<size_t>(state.statistic_channel);
    const float y = state.gain[c] != 0 ? (kth->value - state.shift[c]) / state.gain[c] : 0.0F;
    state.statistic_xhat = state.xhat_gain[c] * y + state.xhat_shift[c];
  }
  set_threshold(shape, threshold, state);
}

}  // namespace

void hidden_forward_train(const LayerShape& shape, ConstTileView x, float x_scale,
                          const CompiledWeights& weights, const HiddenParameters& parameters,
                          bool collect, const RunningStatistics& running, HiddenState& state,
                          TileView out, int threads, Profile* profile) {
  const HiddenPass pass(shape, x, weights, threads, profile);
  const size_t channels = static_cast<size_t>(shape.out_channels);
  resize(state, channels);
  if (keeps_sums(shape)) state.y.reserve(pass.kept_elements());

  PartialSums partial(pass.items().count(), 2 * channels);
  const ptrdiff_t stride = static_cast<ptrdiff_t>(channels) * kLanes;
  pass.for_each_chunk([&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer,
                          Profile& mine) {
    ChunkSums sums{};
    if (keeps_sums(shape)) {
      float* y = pass.kept(state.y.data(), item, r0);
      pass.conv().forward(item, r0, rows, y, stride, scratch, timer, mine);
      sums = {y, stride};
    } else {
      sums = pass.compute(item, r0, rows, scratch, timer, mine);
    }
    double* sum = partial.of(item);
    cpu::simd().channel_sums(sums.y, sums.stride, rows, shape.out_channels, sum, sum + channels);
    timer.lap(mine.activation_forward);
  });

  const std::vector<double> total = partial.total();
  const double n = pass.count();
  const double sum_scale = static_cast<double>(x_scale) * static_cast<double>(weights.scale());
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
    collect_threshold(pass, shape, state);
  } else if (shape.act_bits != kFloatBits) {
    set_threshold(shape, std::max(std::fabs(parameters.threshold), kMinQuantizerRange), state);
  }

  const cpu::ChannelAffine affine{state.gain.data(), state.shift.data()};
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

float hidden_forward_eval(const LayerShape& shape, ConstTileView x, float x_scale,
                          const CompiledWeights& weights, const HiddenParameters& parameters,
                          std::span<const float> running_mean, std::span<const float> running_var,
                          TileView out, int threads, Profile* profile) {
  const HiddenPass pass(shape, x, weights, threads, profile);
  const EvaluationState state =
      evaluation_state(shape, x_scale, weights.scale(), parameters, running_mean, running_var);
  const cpu::EvaluationSteps steps{state.sum_scale, state.gain.data(), state.shift.data(),
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

// dy = k_g * g + k_y * y + k_0 per channel.
struct BackwardCoefficients {
  std::vector<float> g, y, constant;
};

BackwardCoefficients batch_norm_backward(const HiddenState& state,
                                         const HiddenParameters& parameters,
                                         std::span<const double> sum_g,
                                         std::span<const double> sum_g_xhat, double n) {
  const size_t channels = state.gain.size();
  BackwardCoefficients k{std::vector<float>(channels), std::vector<float>(channels),
                         std::vector<float>(channels)};
  for (size_t c = 0; c < channels; ++c) {
    const double a =
        static_cast<double>(parameters.gamma[c]) * static_cast<double>(state.inv_std[c]);
    const double mean_g = sum_g[c] / n, mean_g_xhat = sum_g_xhat[c] / n;
    k.g[c] = static_cast<float>(a);
    k.y[c] = static_cast<float>(-a * mean_g_xhat * static_cast<double>(state.xhat_gain[c]));
    k.constant[c] =
        static_cast<float>(-a * (mean_g + static_cast<double>(state.xhat_shift[c]) * mean_g_xhat));
  }
  return k;
}

}  // namespace

void hidden_backward(const LayerShape& shape, ConstTileView x, float x_scale,
                     const CompiledWeights& weights, const HiddenParameters& parameters,
                     const HiddenState& state, ConstTileView dp, double act_scale_gradient,
                     HiddenGradients& gradients, TileView dx, int threads, Profile* profile) {
  const HiddenPass pass(shape, x, weights, threads, profile);
  const cpu::Items& items = pass.items();
  const size_t channels = static_cast<size_t>(shape.out_channels);
  const cpu::ActivationSpec spec = activation_spec(shape);
  const cpu::ChannelAffine affine{state.gain.data(), state.shift.data()};
  const cpu::ChannelAffine xhat{state.xhat_gain.data(), state.xhat_shift.data()};
  const auto pooled_gradient = [&](int64_t item, int r0) {
    const int64_t row = items.row(item, r0 / shape.pool, shape.length / shape.pool, 0);
    return static_cast<const float*>(dp.data) + row * dp.shape.row_elements();
  };

  // Per item: sum of g and of g * xhat of every channel in turn, then the scale's gradient.
  PartialSums partial(items.count(), 2 * channels + 1);
  pass.for_each_chunk([&](int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer,
                          Profile& mine) {
    const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, mine);
    const size_t lane_sums = 2 * channels * kLanes;
    float* lanes = scratch.sums.reserve(lane_sums);
    std::fill_n(lanes, lane_sums, 0.0F);
    double* sum = partial.of(item);
    sum[2 * channels] +=
        cpu::simd().activation_backward_sums(sums.y, sums.stride, rows, shape.out_channels, affine,
                                             xhat, spec, pooled_gradient(item, r0), lanes);
    cpu::simd().add_lane_sums(lanes, 2 * shape.out_channels, sum);
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
  const BackwardCoefficients k =
      batch_norm_backward(state, parameters, sum_g, sum_g_xhat, pass.count());

  const auto fill = [&](int64_t item, int r0, int rows, float* dy, ptrdiff_t dy_stride,
                        Scratch& scratch, LapTimer& timer, Profile& mine) {
    const ChunkSums sums = pass.sums(state, item, r0, rows, scratch, timer, mine);
    cpu::simd().activation_backward_apply(sums.y, sums.stride, rows, shape.out_channels, affine,
                                          spec, pooled_gradient(item, r0), k.g.data(), k.y.data(),
                                          k.constant.data(), dy, dy_stride);
    const int64_t statistic = state.statistic_row - items.row(item, r0, shape.length, 0);
    if (state.collected && state.statistic_row >= 0 && statistic >= 0 && statistic < rows) {
      dy[statistic * dy_stride + state.statistic_channel * kLanes + state.statistic_lane] +=
          k.g[static_cast<size_t>(state.statistic_channel)] * statistic_gradient;
    }
    cpu::zero_unused_lanes(items, item, r0, rows, shape.out_channels, dy, dy_stride);
    timer.lap(mine.activation_backward);
  };
  cpu::conv_backward(pass.conv(), shape, x_scale, dx, gradients.weight, threads, profile, fill);
}

}  // namespace fmp::ops
