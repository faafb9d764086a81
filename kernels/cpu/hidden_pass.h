// SPDX-License-Identifier: MIT
// What the passes of a hidden layer share: its chunks with their convolution sums, what becomes of
// them, and sums over the items.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/chunk_conv.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace fmp::cpu {

// Multiply-adds per output below which y is computed again instead of kept: reading 4 bytes from
// memory takes about as long as 16 multiply-adds.
inline constexpr int64_t kRecomputeBelow = 16;

inline bool keeps_sums(const LayerShape& shape) { return shape.fan_in() >= kRecomputeBelow; }

inline float largest_act_code(const LayerShape& shape) {
  return static_cast<float>((1 << shape.act_bits) - 1);
}

inline ActivationSpec activation_spec(const LayerShape& shape) {
  const bool quantized = shape.act_bits != kFloatBits;
  return {shape.pool, quantized, quantized ? largest_act_code(shape) : 0.0F};
}

// What makes codes or values of sums: in training, and in evaluation.
inline auto code_kernel(const ChannelAffine& /*step*/) { return simd().quantize_pool; }
inline auto code_kernel(const EvaluationSteps& /*steps*/) { return simd().evaluate_codes; }
inline auto value_kernel(const ChannelAffine& /*step*/) { return simd().relu_pool; }
inline auto value_kernel(const EvaluationSteps& /*steps*/) { return simd().evaluate_values; }

// Sums of a chunk: where they are kept, or computed into scratch.
struct ChunkSums {
  const float* y;
  ptrdiff_t stride;
};

// A hidden layer's passes over its chunks.
class HiddenPass {
 public:
  HiddenPass(const ConstTileView& x, const Weights& weights, const RunContext& context)
      : shape_(weights.shape()),
        conv_(x, weights),
        frames_(x.shape.frames),
        context_(context),
        stride_(static_cast<ptrdiff_t>(shape_.out_channels) * kLanes) {}

  const LayerShape& shape() const { return shape_; }
  const ChunkConv& conv() const { return conv_; }
  const Items& items() const { return conv_.items(); }
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
    for_each_item(items().count(), context_, chunks_of);
  }

  // Activation of a chunk to its rows of `out`. affine: see code_kernel().
  template <typename AffineStep>
  void activate(const ChunkSums& sums, const AffineStep& affine, int64_t item, int r0, int rows,
                const TileView& out) const {
    const int out_length = shape_.length / shape_.pool, out_rows = rows / shape_.pool;
    const int64_t row = items().row(item, r0 / shape_.pool, out_length, out.shape.pad);
    const int64_t at = row * out.shape.row_elements();
    const ActivationSpec spec = activation_spec(shape_);
    const auto write = [&](auto* first, auto kernel) {
      kernel(sums.y, sums.stride, rows, channels(), affine, spec, first + at);
      zero_unused_lanes(items(), item, r0 / shape_.pool, out_rows, channels(), first + at, stride_);
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
  RunContext context_;
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

// From values to codes: divides the affine step by the scale.
void set_threshold(const LayerShape& shape, float threshold, HiddenState& state);

// Sets the threshold to the percentile of the activations before pooling, and where it was found.
void collect_threshold(const HiddenPass& pass, HiddenState& state);

}  // namespace fmp::cpu
