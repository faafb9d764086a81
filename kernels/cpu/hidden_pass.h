// SPDX-License-Identifier: MIT
// One walk over a hidden layer's sums, a few rows and channels at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/chunk_conv.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/ops.h"

namespace fmp::cpu {

inline ActivationSpec activation_spec(const LayerShape& shape) {
  const bool quantized = shape.act_bits != kFloatBits;
  if (!quantized) return {shape.pool, false, 0.0F, 0.0F};
  return {shape.pool, true, static_cast<float>(shape.largest_code()),
          static_cast<float>(shape.smallest_code)};
}

class HiddenPass {
 public:
  HiddenPass(const ConstTileView& x, const Weights& weights)
      : shape_(weights.shape()),
        conv_(x, weights),
        frames_(x.shape.frames),
        stride_(static_cast<ptrdiff_t>(shape_.out_channels) * kLanes) {}

  const LayerShape& shape() const { return shape_; }
  const ChunkConv& conv() const { return conv_; }
  const Items& items() const { return conv_.items(); }
  size_t channels() const { return static_cast<size_t>(shape_.out_channels); }
  // Of the batch's values in a channel.
  double count(const RunContext& context) const {
    const int64_t frames = context.share != nullptr ? context.share->batch_frames : frames_;
    return static_cast<double>(frames) * shape_.length;
  }
  // Rows of the batch that lie before this rank's; 0 if all are here.
  int64_t rows_before(const RunContext& context) const {
    return context.share != nullptr ? context.share->first_tile * shape_.length : 0;
  }

  // Sums that are cheap to make are made again whenever they are wanted. Others are kept.
  bool keeps_sums() const {
    // Reading 4 bytes from memory takes about as long as 16 multiply-adds.
    constexpr int64_t kRecomputeBelow = 16;
    return !conv_.makes_runs() && shape_.fan_in() >= kRecomputeBelow;
  }
  void reserve(HiddenState& state) const {
    const size_t elements =
        static_cast<size_t>(TileShape{frames_, shape_.length, shape_.out_channels, 0}.elements());
    state.passes.reserve(elements / kLanes);
    if (keeps_sums()) state.y.reserve(elements);
  }
  // Index of an element's channel 0 among those of all rows.
  ptrdiff_t first_channel(int64_t item, int r) const {
    return items().row(item, r, shape_.length, 0) * shape_.out_channels;
  }

  // Makes the sums of a chunk, keeps them if they are to be kept: body(first channel, sums).
  template <typename Body>
  void make_sums(HiddenState& state, int64_t item, int r0, int rows, Scratch& scratch,
                 LapTimer& timer, Profile& profile, const Body& body) const {
    if (!keeps_sums()) {
      return conv_.for_each_run(item, r0, rows, scratch, timer, profile, body);
    }
    float* y = state.y.data() + first_channel(item, r0) * kLanes;
    conv_.forward(item, r0, rows, y, stride_, scratch, timer, profile);
    body(0, Sums{y, stride_, rows, shape_.out_channels});
  }
  // The same once they have been made; state: null in evaluation, which keeps none.
  template <typename Body>
  void for_each_sums(const HiddenState* state, int64_t item, int r0, int rows, Scratch& scratch,
                     LapTimer& timer, Profile& profile, const Body& body) const {
    if (state == nullptr || !keeps_sums()) {
      return conv_.for_each_run(item, r0, rows, scratch, timer, profile, body);
    }
    const float* y = state->y.data() + first_channel(item, r0) * kLanes;
    body(0, Sums{y, stride_, rows, shape_.out_channels});
  }

  // body(r0, rows) for the chunks of an item.
  template <typename Body>
  void for_each_chunk(int64_t item, const Body& body) const {
    const int rows = items().rows(item);
    for (int r0 = 0; r0 < rows; r0 += conv_.chunk_rows()) {
      body(r0, std::min(conv_.chunk_rows(), rows - r0));
    }
  }

 private:
  LayerShape shape_;
  ChunkConv conv_;
  int64_t frames_;
  ptrdiff_t stride_;
};

inline Communicator* ranks_of(const RunContext& context) {
  return context.share != nullptr ? context.share->ranks : nullptr;
}

// Whether the items of one layer are those of the other that reads its output, row for row.
inline bool same_items(const LayerShape& producer, const LayerShape& reader) {
  const auto dense = [](const LayerShape& s) { return s.taps == 1 && s.length == 1; };
  return dense(producer) == dense(reader) && producer.length / producer.pool == reader.length &&
         producer.out_channels == reader.in_channels;
}

// Rows of a gradient from `row` of its tensor on, as floats: where they are, or widened.
inline const float* gradient_rows(const ConstTileView& gradient, int64_t row, int rows,
                                  Scratch& scratch) {
  const int64_t first = row * gradient.shape.row_elements();
  if (gradient.type == ElementType::kF32) return static_cast<const float*>(gradient.data) + first;
  const int64_t count = rows * gradient.shape.row_elements();
  float* out = scratch.dp.reserve(static_cast<size_t>(count));
  simd().widen_bf16(static_cast<const uint16_t*>(gradient.data) + first, count, out);
  return out;
}

// What the backward pass reads of a layer's rows from first_row on; dp: the gradient of their
// pooled rows.
inline PooledGradient pooled_gradient(const HiddenPass& pass, const HiddenOperands& layer,
                                      int64_t item, int first_row, const float* dp) {
  const LayerShape& s = pass.shape();
  PooledGradient g;
  g.dp = dp;
  g.dp_stride = g.code_stride = static_cast<ptrdiff_t>(s.out_channels) * kLanes;
  if (s.act_bits != kFloatBits) {
    const int64_t row =
        pass.items().row(item, first_row / s.pool, s.length / s.pool, layer.out.shape.pad);
    g.codes = static_cast<const uint8_t*>(layer.out.data) + row * g.code_stride;
    g.signed_codes = s.smallest_code < 0;
  }
  g.passes = layer.state->passes.data() + pass.first_channel(item, first_row);
  g.passes_stride = s.out_channels;
  return g;
}
// The same from channel c on.
inline PooledGradient from_channel(PooledGradient g, int c) {
  g.dp += c * kLanes;
  if (g.codes != nullptr) g.codes += c * kLanes;
  g.passes += c;
  return g;
}

// Per-item partial sums of `width` doubles, added up in the order of the items.
class PartialSums {
 public:
  PartialSums(int64_t items, size_t width)
      : width_(width), sums_(static_cast<size_t>(items) * width, 0.0) {}
  double* of(int64_t item) { return sums_.data() + static_cast<size_t>(item) * width_; }
  // ranks: null = the items of this process are all.
  std::vector<double> total(Communicator* ranks) const {
    std::vector<double> total(width_);
    sum_rows<double>(ranks, sums_, total);
    return total;
  }

 private:
  size_t width_;
  std::vector<double> sums_;
};

// From values to codes: divides the affine step by the scale.
void set_threshold(const LayerShape& shape, float threshold, HiddenState& state);

// Sets the threshold to the percentile of the activations before pooling, and where it was found.
void collect_threshold(const HiddenPass& pass, HiddenState& state, const RunContext& context);

}  // namespace fmp::cpu
