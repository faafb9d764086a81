// SPDX-License-Identifier: MIT
// The backward pass of a layer's convolution, chunk by chunk: dy comes from a function, goes into
// the weight gradient and into dx while it is in the cache, and is never stored whole.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/cpu/chunk_conv.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/ops.h"

namespace fmp::cpu {

// Partial weight gradients, one per group of consecutive items, added up in order. With a share
// the groups are this rank's, and its items are tiles.
class WeightGradient {
 public:
  WeightGradient(const ChunkConv& conv, int64_t items, const BatchShare* share)
      : conv_(conv),
        share_(share),
        items_(items),
        groups_(share != nullptr ? share->groups : std::min(items, kMaxGradientGroups)),
        size_(conv.gradient_size()),
        partial_(static_cast<size_t>(groups_) * size_, 0.0F) {}

  int64_t groups() const { return groups_; }
  int64_t first_item(int64_t group) const {
    if (share_ == nullptr) return group * items_ / groups_;
    return share_->first_tile_of(share_->first_group + group) - share_->first_tile;
  }
  float* of(int64_t group) { return partial_.data() + static_cast<size_t>(group) * size_; }

  void total(float scale, std::span<float> gradient) const {
    std::vector<float> sum(size_);
    sum_rows<float>(share_ != nullptr ? share_->ranks : nullptr, partial_, sum);
    std::fill(gradient.begin(), gradient.end(), 0.0F);
    for (size_t i = 0; i < size_; ++i) gradient[conv_.gradient_place(i)] = sum[i] * scale;
  }

 private:
  const ChunkConv& conv_;
  const BatchShare* share_;
  int64_t items_, groups_;
  size_t size_;
  std::vector<float> partial_;
};

// The rows of dy that a chunk needs: its own behind the 2 * half before them, so that every dx row
// whose window ends in the chunk can be computed.
class GradientWindow {
 public:
  GradientWindow(const ChunkConv& conv, Scratch& scratch)
      : conv_(conv),
        half_(conv.half()),
        out_channels_(conv.shape().out_channels),
        layout_(conv.gradient_layout()) {
    const ptrdiff_t rows = gradient_rows(conv.shape());
    rows_ = scratch.dy.reserve(
        static_cast<size_t>(std::max(rows * layout_.row, out_channels_ * layout_.channel)));
    zero(0, 2 * half_);
  }
  float* chunk() { return row(2 * half_); }
  const ChunkLayout& layout() const { return layout_; }

  // The dx rows that the chunk at r0 completes: all that are left after the last one.
  int first_complete(int r0) const { return std::max(0, r0 - half_); }
  int end_of_complete(int r0, int rows, bool last) const {
    return last ? r0 + rows : r0 + rows - half_;
  }
  // Computes them. dx: row first_complete(r0).
  void backward_data(int r0, int rows, bool last, float* dx, Scratch& scratch) {
    zero(2 * half_ + rows, (last ? half_ : 0) + conv_.backward_data_slack());
    const int begin = first_complete(r0);
    // Window row i is dy row r0 - 2 half + i; dx row `begin` starts at dy row begin - half.
    conv_.backward_data(row(begin + half_ - r0), end_of_complete(r0, rows, last) - begin, dx,
                        scratch);
  }
  // A chunk behind the last one, where dx has more rows than dy.
  void clear_chunk(int rows) { zero(2 * half_, rows); }
  void advance(int rows) {
    for_each_part(2 * half_, [&](float* part, ptrdiff_t elements) {
      const float* from = part + rows * layout_.row;
      // A length that is known, so that no function is called for a row of one channel.
      for (ptrdiff_t e = 0; e < elements; e += kLanes) std::copy_n(from + e, kLanes, part + e);
    });
  }

 private:
  float* row(int r) { return rows_ + r * layout_.row; }
  // f(first element, count) for the parts in which `rows` rows lie behind one another: one for all
  // channels, or one for each.
  template <typename F>
  void for_each_part(int rows, const F& f) {
    const bool each = layout_.row == kLanes;
    for (int c = 0; c < (each ? out_channels_ : 1); ++c) {
      f(rows_ + c * layout_.channel, rows * layout_.row);
    }
  }
  void zero(int first, int rows) {
    if (rows == 0) return;
    for_each_part(rows, [&](float* part, ptrdiff_t elements) {
      std::fill_n(part + first * layout_.row, elements, 0.0F);
    });
  }

  const ChunkConv& conv_;
  int half_, out_channels_;
  ChunkLayout layout_;
  float* rows_;
};

// Somebody who takes from dx what it needs while it is in the cache.
class GradientTaker {
 public:
  virtual ~GradientTaker() = default;
  // Before and after the items of a group; all on one thread.
  virtual void begin(Scratch& scratch) = 0;
  virtual void end(int64_t group, Scratch& scratch) = 0;
  // dx: rows begin .. end - 1 of the item.
  virtual void add(int64_t group, int64_t item, int begin, int end, const float* dx,
                   Scratch& scratch, LapTimer& timer, Profile& profile) = 0;
};

// fill(item, r0, rows, dy, layout, scratch, timer, profile) writes dy of a chunk (gradient of the
// real-valued convolution output, zero in unused lanes). dweight: gradient of the real-valued
// weights, [O][T][C]. dx: of x's positions without padding, [L] or up to [L + half of the taps][C],
// kF32 or kBF16, data null = not kept. taker: of dx, or null.
template <typename Fill>
void conv_backward(const ChunkConv& conv, float x_scale, TileView dx, GradientTaker* taker,
                   std::span<float> dweight, const RunContext& context, const Fill& fill) {
  const LayerShape& shape = conv.shape();
  const Items& items = conv.items();
  WeightGradient gradient(conv, items.count(), context.share);
  const ptrdiff_t dx_stride = static_cast<ptrdiff_t>(shape.in_channels) * kLanes;
  const int dx_length = dx.data != nullptr ? dx.shape.length : shape.length;

  // The dx rows that a chunk completes.
  const auto backward_rows = [&](int64_t group, int64_t item, int r0, int rows, bool last,
                                 GradientWindow& window, Scratch& scratch, LapTimer& timer,
                                 Profile& mine) {
    const int begin = window.first_complete(r0), end = window.end_of_complete(r0, rows, last);
    if (begin >= end) return;
    const ptrdiff_t count = (end - begin) * dx_stride;
    const ptrdiff_t first = items.row(item, begin, dx_length, 0) * dx_stride;
    const bool kept_as_it_is = dx.data != nullptr && dx.type == ElementType::kF32;
    float* to = kept_as_it_is ? static_cast<float*>(dx.data) + first
                              : scratch.dx.reserve(static_cast<size_t>(count));
    window.backward_data(r0, rows, last, to, scratch);
    // Who takes sums of it sees what the layer before will read.
    if (dx.data != nullptr && !kept_as_it_is)
      simd().round_to_bf16(to, count, static_cast<uint16_t*>(dx.data) + first);
    timer.lap(mine.conv_backward_data);
    if (taker != nullptr) taker->add(group, item, begin, end, to, scratch, timer, mine);
  };
  const auto backward_item = [&](int64_t group, int64_t item, float* dw, Scratch& scratch,
                                 LapTimer& timer, Profile& mine) {
    GradientWindow window(conv, scratch);
    const int all_rows = items.rows(item), dx_rows = all_rows + dx_length - shape.length;
    for (int r0 = 0; r0 < all_rows; r0 += conv.chunk_rows()) {
      const int rows = std::min(conv.chunk_rows(), all_rows - r0);
      fill(item, r0, rows, window.chunk(), window.layout(), scratch, timer, mine);
      conv.backward_weight(item, r0, rows, window.chunk(), dw, scratch, timer, mine);
      if (dx.data != nullptr || taker != nullptr) {
        backward_rows(group, item, r0, rows, r0 + rows == dx_rows, window, scratch, timer, mine);
      }
      window.advance(rows);
    }
    for (int r0 = all_rows; r0 < dx_rows; r0 += conv.chunk_rows()) {
      const int rows = std::min(conv.chunk_rows(), dx_rows - r0);
      window.clear_chunk(rows);
      backward_rows(group, item, r0, rows, r0 + rows == dx_rows, window, scratch, timer, mine);
      window.advance(rows);
    }
  };

  for_each_item(gradient.groups(), context,
                [&](int64_t group, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  float* dw = scratch.dw.reserve(conv.gradient_sums());
                  std::fill_n(dw, conv.gradient_sums(), 0.0F);
                  if (taker != nullptr) taker->begin(scratch);
                  for (int64_t item = gradient.first_item(group);
                       item < gradient.first_item(group + 1); ++item) {
                    backward_item(group, item, dw, scratch, timer, mine);
                  }
                  conv.add_gradient(dw, gradient.of(group));
                  if (taker != nullptr) taker->end(group, scratch);
                  timer.lap(mine.conv_backward_weight);
                });
  gradient.total(x_scale, dweight);
}

}  // namespace fmp::cpu
