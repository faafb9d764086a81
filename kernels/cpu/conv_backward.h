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

// Partial weight gradients, one per group of consecutive items, added up in order.
class WeightGradient {
 public:
  WeightGradient(const ChunkConv& conv, int64_t items)
      : conv_(conv),
        items_(items),
        groups_(std::min(items, kMaxGradientGroups)),
        size_(conv.gradient_size()),
        partial_(static_cast<size_t>(groups_) * size_, 0.0F) {}

  int64_t groups() const { return groups_; }
  int64_t first_item(int64_t group) const { return group * items_ / groups_; }
  float* of(int64_t group) { return partial_.data() + static_cast<size_t>(group) * size_; }

  void total(float scale, std::span<float> gradient) const {
    std::vector<float> sum(size_, 0.0F);
    for (int64_t g = 0; g < groups_; ++g) {
      const float* part = partial_.data() + static_cast<size_t>(g) * size_;
      for (size_t i = 0; i < size_; ++i) sum[i] += part[i];
    }
    std::fill(gradient.begin(), gradient.end(), 0.0F);
    for (size_t i = 0; i < size_; ++i) gradient[conv_.gradient_place(i)] = sum[i] * scale;
  }

 private:
  const ChunkConv& conv_;
  int64_t items_, groups_;
  size_t size_;
  std::vector<float> partial_;
};

// The rows of dy that a chunk needs: its own behind the 2 * half before them, so that every dx row
// whose window ends in the chunk can be computed.
class GradientWindow {
 public:
  GradientWindow(const ChunkConv& conv, int out_channels, Scratch& scratch)
      : conv_(conv), half_(conv.half()), stride_(operand_stride(out_channels)) {
    const int rows = conv.chunk_rows() + 3 * half_ + conv.backward_data_slack();
    rows_ = scratch.dy.reserve(static_cast<size_t>(rows * stride_));
    std::fill_n(rows_, 2 * half_ * stride_, 0.0F);
  }
  float* chunk() { return rows_ + 2 * half_ * stride_; }
  ptrdiff_t stride() const { return stride_; }

  // Computes the dx rows that the chunk at r0 completes (all that are left after the last one) and
  // moves on. dx: row 0 of the item.
  void backward_data(int r0, int rows, bool last, ptrdiff_t dx_stride, float* dx,
                     Scratch& scratch) {
    const int zeros = (last ? half_ : 0) + conv_.backward_data_slack();
    std::fill_n(rows_ + (2 * half_ + rows) * stride_, zeros * stride_, 0.0F);
    const int begin = std::max(0, r0 - half_);
    const int end = last ? r0 + rows : r0 + rows - half_;
    if (begin < end) {
      // Window row i is dy row r0 - 2 half + i; dx row `begin` starts at dy row begin - half.
      conv_.backward_data(rows_ + (begin + half_ - r0) * stride_, end - begin,
                          dx + begin * dx_stride, scratch);
    }
  }
  void advance(int rows) { std::copy_n(rows_ + rows * stride_, 2 * half_ * stride_, rows_); }

 private:
  const ChunkConv& conv_;
  int half_;
  ptrdiff_t stride_;
  float* rows_;
};

// fill(item, r0, rows, dy, dy_stride, scratch, timer, profile) writes dy of a chunk (gradient of
// the real-valued convolution output, zero in unused lanes). dweight: gradient of the real-valued
// weights, [O][T][C]. dx: [L][C] without padding, data null = not wanted.
template <typename Fill>
void conv_backward(const ChunkConv& conv, float x_scale, TileView dx, std::span<float> dweight,
                   const RunContext& context, const Fill& fill) {
  const LayerShape& shape = conv.shape();
  const Items& items = conv.items();
  WeightGradient gradient(conv, items.count());
  const ptrdiff_t dx_stride = static_cast<ptrdiff_t>(shape.in_channels) * kLanes;

  const auto backward_item = [&](int64_t item, float* dw, Scratch& scratch, LapTimer& timer,
                                 Profile& mine) {
    GradientWindow window(conv, shape.out_channels, scratch);
    float* dx_item = dx.data == nullptr ? nullptr
                                        : static_cast<float*>(dx.data) +
                                              items.row(item, 0, shape.length, 0) * dx_stride;
    const int all_rows = items.rows(item);
    for (int r0 = 0; r0 < all_rows; r0 += conv.chunk_rows()) {
      const int rows = std::min(conv.chunk_rows(), all_rows - r0);
      fill(item, r0, rows, window.chunk(), window.stride(), scratch, timer, mine);
      const float* x = conv.unpack_for_weight_gradient(item, r0, rows, scratch);
      timer.lap(mine.unpack);
      conv.backward_weight(x, window.chunk(), rows, dw, scratch);
      timer.lap(mine.conv_backward_weight);
      if (dx_item != nullptr) {
        window.backward_data(r0, rows, r0 + rows == all_rows, dx_stride, dx_item, scratch);
        timer.lap(mine.conv_backward_data);
      }
      window.advance(rows);
    }
  };

  for_each_item(gradient.groups(), context,
                [&](int64_t group, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  float* dw = scratch.dw.reserve(conv.gradient_sums());
                  std::fill_n(dw, conv.gradient_sums(), 0.0F);
                  for (int64_t item = gradient.first_item(group);
                       item < gradient.first_item(group + 1); ++item) {
                    backward_item(item, dw, scratch, timer, mine);
                  }
                  conv.add_gradient(dw, gradient.of(group));
                  timer.lap(mine.conv_backward_weight);
                });
  gradient.total(x_scale, dweight);
}

}  // namespace fmp::cpu
