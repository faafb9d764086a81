// SPDX-License-Identifier: MIT
// How a layer's activations are cut into work: items that threads share out, and chunks of rows
// within an item that stay in the second-level cache. Neither depends on the number of threads.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weights.h"
#include "kernels/ops.h"

namespace fmp::cpu {

// Rows of a chunk: its operands (rows x 64 channels x 16 lanes of float, twice) fill half of a 512
// KiB second-level cache.
inline constexpr int kChunkRows = 16;
// Tiles of a dense layer that make one item; its positions are tiles.
inline constexpr int kDenseItemTiles = 16;
// Partial sums of a weight gradient: as many as can be of use, few enough to add up quickly.
inline constexpr int64_t kMaxGradientGroups = 64;

// An item is a tile of a convolution, or kDenseItemTiles tiles of a dense layer, whose single
// positions are consecutive rows in memory.
class Items {
 public:
  Items(const ops::LayerShape& shape, int64_t frames)
      : tiles_{frames, shape.length, shape.out_channels, 0},
        dense_(shape.taps == 1 && shape.length == 1) {}

  int64_t count() const {
    return dense_ ? (tiles_.tiles() + kDenseItemTiles - 1) / kDenseItemTiles : tiles_.tiles();
  }
  int64_t first_tile(int64_t item) const { return dense_ ? item * kDenseItemTiles : item; }
  int rows(int64_t item) const {
    if (!dense_) return tiles_.length;
    return static_cast<int>(std::min<int64_t>(kDenseItemTiles, tiles_.tiles() - first_tile(item)));
  }
  // Index of row r of an item among all rows of a tensor whose tiles have `length` + 2 `pad` rows.
  int64_t row(int64_t item, int r, int length, int pad) const {
    if (dense_) return first_tile(item) + r;
    return item * (length + 2 * static_cast<int64_t>(pad)) + pad + r;
  }
  int lanes_used(int64_t item, int r) const {
    return tiles_.lanes_used(dense_ ? first_tile(item) + r : item);
  }

 private:
  TileShape tiles_;
  bool dense_;
};

// Zeroes the lanes of rows r0 .. r0 + rows - 1 that hold no frame; at points to row r0.
template <typename T>
void zero_unused_lanes(const Items& items, int64_t item, int r0, int rows, int channels, T* at,
                       ptrdiff_t stride) {
  for (int r = 0; r < rows; ++r) {
    const int used = items.lanes_used(item, r0 + r);
    if (used == kLanes) continue;
    for (int c = 0; c < channels; ++c) {
      std::fill_n(at + r * stride + c * kLanes + used, kLanes - used, T{0});
    }
  }
}

// Adds the processor time of this thread since the last lap to a figure; does nothing without a
// profile. Processor time, so that other programs on the machine do not count.
class LapTimer {
 public:
  explicit LapTimer(bool on) : on_(on) {
    if (on_) last_ = now();
  }
  void lap(double& seconds) {
    if (!on_) return;
    const double time = now();
    seconds += time - last_;
    last_ = time;
  }

 private:
  static double now() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  bool on_;
  double last_ = 0;
};

inline void add(const ops::Profile& from, ops::Profile& to) {
  to.unpack += from.unpack;
  to.conv_forward += from.conv_forward;
  to.activation_forward += from.activation_forward;
  to.activation_backward += from.activation_backward;
  to.conv_backward_data += from.conv_backward_data;
  to.conv_backward_weight += from.conv_backward_weight;
  to.other += from.other;
}

// Memory of one thread.
struct Scratch {
  AlignedBuffer<float> x, y, dy, sums;
  AlignedBuffer<int16_t> pairs;
};

// Calls body(item, scratch, timer, profile) for items 0 .. count - 1, shared out to the threads.
template <typename Body>
void for_each_item(int64_t count, int threads, ops::Profile* profile, const Body& body) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    ops::Profile mine;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < count; ++item) {
      LapTimer timer(profile != nullptr);
      body(item, scratch, timer, mine);
      timer.lap(mine.other);
    }
    if (profile != nullptr) {
#pragma omp critical
      add(mine, *profile);
    }
  }
}

// One layer's convolution on chunks: operands unpacked from the input tile, any of the three
// passes.
class ChunkConv {
 public:
  ChunkConv(const ops::LayerShape& shape, ConstTileView x, const ops::CompiledWeights& weights)
      : shape_(shape), x_(x), w_(weights.compiled()), items_(shape, x.shape.frames) {}

  const Items& items() const { return items_; }
  int half() const { return (shape_.taps - 1) / 2; }
  // Rows of a chunk, a multiple of the pooling window.
  int chunk_rows() const { return std::max(1, kChunkRows / shape_.pool) * shape_.pool; }

  // Sums of rows r0 .. r0 + rows - 1 to y.
  void forward(int64_t item, int r0, int rows, float* y, ptrdiff_t y_stride, Scratch& scratch,
               LapTimer& timer, ops::Profile& profile) const {
    if (w_.integer_forward) {
      const int16_t* operand = unpack_pairs(item, r0, rows, scratch);
      timer.lap(profile.unpack);
      simd().conv1d_dense_pairs(operand, pair_stride(shape_.in_channels), rows,
                                w_.forward_pairs_view(), y, y_stride);
    } else {
      const float* operand = unpack_floats(item, r0, rows, scratch);
      timer.lap(profile.unpack);
      const ptrdiff_t stride = operand_stride(shape_.in_channels);
      if (w_.plan.sparse_forward) {
        simd().conv1d_sparse(operand, stride, rows, w_.forward_sparse.view(), y, y_stride);
      } else {
        simd().conv1d_dense(operand, stride, rows, w_.forward_dense_view(), y, y_stride);
      }
    }
    timer.lap(profile.conv_forward);
  }

  // dx rows from dy rows; dy points to the row `half` before the first dx row.
  void backward_data(const float* dy, int rows, float* dx) const {
    const ptrdiff_t stride = operand_stride(shape_.out_channels);
    const ptrdiff_t dx_stride = static_cast<ptrdiff_t>(shape_.in_channels) * kLanes;
    if (w_.plan.sparse_backward_data) {
      simd().conv1d_sparse(dy, stride, rows, w_.backward_sparse.view(), dx, dx_stride);
    } else {
      simd().conv1d_dense(dy, stride, rows, w_.backward_dense_view(), dx, dx_stride);
    }
  }

  // Adds the chunk's part of the weight gradient to dw (see gradient_size()).
  void backward_weight(const float* x, const float* dy, int rows, float* dw) const {
    const ptrdiff_t x_stride = operand_stride(shape_.in_channels);
    const ptrdiff_t dy_stride = operand_stride(shape_.out_channels);
    if (w_.plan.sparse_backward_weight) {
      simd().conv1d_backward_weight_sparse(x, x_stride, dy, dy_stride, rows,
                                           w_.gradient_sparse.view(), dw);
    } else {
      simd().conv1d_backward_weight_dense(x, x_stride, dy, dy_stride, rows, shape_.out_channels,
                                          shape_.taps, shape_.in_channels, dw);
    }
  }
  // Weights that have a gradient: all, or the surviving ones in the order of the sparse list.
  size_t gradient_size() const {
    return w_.plan.sparse_backward_weight ? w_.gradient_index.size()
                                          : static_cast<size_t>(shape_.weights());
  }
  size_t gradient_place(size_t i) const {
    return w_.plan.sparse_backward_weight ? static_cast<size_t>(w_.gradient_index[i]) : i;
  }

  // The window rows of rows r0 .. r0 + rows - 1 as floats.
  const float* unpack_floats(int64_t item, int r0, int rows, Scratch& scratch) const {
    const int window = rows + shape_.taps - 1;
    const ptrdiff_t stride = operand_stride(shape_.in_channels);
    float* out = scratch.x.reserve(static_cast<size_t>(window * stride));
    const int64_t count = x_.shape.row_elements();
    for (int r = 0; r < window; ++r) {
      const void* row = input_row(item, r0 + r);
      switch (x_.type) {
        case ElementType::kU8:
          simd().unpack_u8(static_cast<const uint8_t*>(row), count, out + r * stride);
          break;
        case ElementType::kS8:
          simd().unpack_s8(static_cast<const int8_t*>(row), count, out + r * stride);
          break;
        case ElementType::kF32:
          std::memcpy(out + r * stride, row, static_cast<size_t>(count) * sizeof(float));
          break;
      }
    }
    return out;
  }

 private:
  // Row r of the window that starts `half` rows before position 0.
  const void* input_row(int64_t item, int r) const {
    const int64_t row = items_.row(item, r - half(), x_.shape.length, x_.shape.pad);
    return static_cast<const char*>(x_.data) +
           static_cast<size_t>(row * x_.shape.row_elements()) * element_bytes(x_.type);
  }

  const int16_t* unpack_pairs(int64_t item, int r0, int rows, Scratch& scratch) const {
    const int window = rows + shape_.taps - 1;
    const ptrdiff_t stride = pair_stride(shape_.in_channels);
    int16_t* out = scratch.pairs.reserve(static_cast<size_t>(window * stride));
    for (int r = 0; r < window; ++r) {
      const void* row = input_row(item, r0 + r);
      if (x_.type == ElementType::kU8) {
        simd().unpack_pairs_u8(static_cast<const uint8_t*>(row), shape_.in_channels,
                               out + r * stride);
      } else {
        simd().unpack_pairs_s8(static_cast<const int8_t*>(row), shape_.in_channels,
                               out + r * stride);
      }
    }
    return out;
  }

  ops::LayerShape shape_;
  ConstTileView x_;
  const ops::CompiledWeights::Compiled& w_;
  Items items_;
};

}  // namespace fmp::cpu
