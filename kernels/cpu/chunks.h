// SPDX-License-Identifier: MIT
// How a layer's activations are cut into work: items that threads share out, and chunks of rows
// within an item that stay in the second-level cache. Neither depends on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weights.h"

namespace fmp::cpu {

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

// Adds the time since the last lap to a figure; does nothing without a profile. Wall-clock time:
// asking for a thread's processor time takes longer than the shorter laps do.
class LapTimer {
 public:
  explicit LapTimer(bool on) : on_(on) {
    if (on_) last_ = Clock::now();
  }
  void lap(double& seconds) {
    if (!on_) return;
    const Clock::time_point time = Clock::now();
    seconds += std::chrono::duration<double>(time - last_).count();
    last_ = time;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_;
  Clock::time_point last_;
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
  AlignedBuffer<float> x, y, dy, sums, dw;
  AlignedBuffer<int16_t> pairs;
  AlignedBuffer<uint8_t> codes;
  // Values at Winograd's points.
  AlignedBuffer<float> data_points, gradient_points, output_points;
  AlignedBuffer<int16_t> pair_points;
  AlignedBuffer<int32_t> sum_points;
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
  int chunk_rows() const { return cpu::chunk_rows(shape_.pool); }

  // Sums of rows r0 .. r0 + rows - 1 to y.
  void forward(int64_t item, int r0, int rows, float* y, ptrdiff_t y_stride, Scratch& scratch,
               LapTimer& timer, ops::Profile& profile) const {
    if (w_.integer_forward) {
      const int16_t* operand = unpack_pairs(item, r0, rows, scratch);
      timer.lap(profile.unpack);
      if (w_.forward_algorithm == ops::DenseAlgorithm::kWinograd) {
        forward_at_points(operand, rows, y, y_stride, scratch);
      } else {
        simd().conv1d_dense_pairs(operand, pair_stride(shape_.in_channels), rows,
                                  w_.forward_pairs_view(), y, y_stride);
      }
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

  // Rows of dy that backward_data may read beyond those it needs; they must be zero.
  int backward_data_slack() const {
    return w_.backward_data_algorithm == ops::DenseAlgorithm::kWinograd ? winograd::kOutputs - 1
                                                                        : 0;
  }
  // dx rows from dy rows; dy points to the row `half` before the first dx row.
  void backward_data(const float* dy, int rows, float* dx, Scratch& scratch) const {
    const ptrdiff_t stride = operand_stride(shape_.out_channels);
    const ptrdiff_t dx_stride = static_cast<ptrdiff_t>(shape_.in_channels) * kLanes;
    if (w_.plan.sparse_backward_data) {
      simd().conv1d_sparse(dy, stride, rows, w_.backward_sparse.view(), dx, dx_stride);
    } else if (w_.backward_data_algorithm == ops::DenseAlgorithm::kWinograd) {
      backward_data_at_points(dy, rows, dx, dx_stride, scratch);
    } else {
      simd().conv1d_dense(dy, stride, rows, w_.backward_dense_view(), dx, dx_stride);
    }
  }

  // The operand of backward_weight: the window rows of rows r0 .. r0 + rows - 1.
  const float* unpack_for_weight_gradient(int64_t item, int r0, int rows, Scratch& scratch) const {
    return sums_directly() ? unpack_floats(item, r0, rows, scratch)
                           : unpack_transposed(item, r0, rows, scratch);
  }
  // Adds the chunk's part of the weight gradient to dw, which has room for gradient_sums().
  void backward_weight(const float* x, const float* dy, int rows, float* dw,
                       Scratch& scratch) const {
    const ptrdiff_t x_stride = operand_stride(shape_.in_channels);
    const ptrdiff_t dy_stride = operand_stride(shape_.out_channels);
    if (w_.plan.sparse_backward_weight) {
      simd().conv1d_backward_weight_sparse(x, x_stride, dy, dy_stride, rows,
                                           w_.gradient_sparse.view(), dw);
    } else if (sums_directly()) {
      simd().conv1d_backward_weight_dense(x, x_stride, dy, dy_stride, rows, shape_.out_channels,
                                          shape_.taps, shape_.in_channels, dw);
    } else if (w_.backward_weight_algorithm == ops::DenseAlgorithm::kWinograd) {
      backward_weight_at_points(x, dy, rows, dw, scratch);
    } else {
      for (int t = 0; t < shape_.taps; ++t) {
        simd().backward_weight_product(x + t * transposed_stride(), transposed_stride(), dy,
                                       dy_stride, rows, shape_.out_channels, padded_channels(),
                                       dw + static_cast<ptrdiff_t>(t) * product_size());
      }
    }
  }
  // Sums that backward_weight keeps: one for each weight that has a gradient, in the order of
  // gradient_place, or [taps or points][O][channels padded].
  size_t gradient_sums() const {
    if (sums_directly()) return gradient_size();
    const int matrices = w_.backward_weight_algorithm == ops::DenseAlgorithm::kWinograd
                             ? winograd::kPoints
                             : shape_.taps;
    return static_cast<size_t>(matrices * product_size());
  }
  // Adds what the sums amount to, to gradient (see gradient_size()).
  void add_gradient(const float* sums, float* gradient) const {
    if (sums_directly()) {
      for (size_t i = 0; i < gradient_size(); ++i) gradient[i] += sums[i];
      return;
    }
    const bool points = w_.backward_weight_algorithm == ops::DenseAlgorithm::kWinograd;
    for (int o = 0; o < shape_.out_channels; ++o) {
      float* of_output = gradient + o * shape_.fan_in();
      for (int c = 0; c < shape_.in_channels; ++c) {
        const float* sum = sums + static_cast<ptrdiff_t>(o) * padded_channels() + c;
        if (points) {
          std::array<float, winograd::kPoints> at_points{};
          for (size_t p = 0; p < at_points.size(); ++p, sum += product_size()) at_points[p] = *sum;
          const auto taps = winograd::tap_gradients(at_points);
          for (int t = 0; t < shape_.taps; ++t) {
            of_output[t * shape_.in_channels + c] += taps[static_cast<size_t>(t)];
          }
        } else {
          for (int t = 0; t < shape_.taps; ++t, sum += product_size()) {
            of_output[t * shape_.in_channels + c] += *sum;
          }
        }
      }
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

  // The window, and rows of zeros up to what Winograd's algorithm reads.
  const int16_t* unpack_pairs(int64_t item, int r0, int rows, Scratch& scratch) const {
    const int window = rows + shape_.taps - 1;
    const int all = w_.forward_algorithm == ops::DenseAlgorithm::kWinograd
                        ? winograd::data_rows(winograd::groups(rows))
                        : window;
    const ptrdiff_t stride = pair_stride(shape_.in_channels);
    int16_t* out = scratch.pairs.reserve(static_cast<size_t>(all * stride));
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
    std::fill_n(out + window * stride, (all - window) * stride, int16_t{0});
    return out;
  }

  void forward_at_points(const int16_t* x, int rows, float* y, ptrdiff_t y_stride,
                         Scratch& scratch) const {
    const int groups = winograd::groups(rows);
    const ptrdiff_t x_stride = pair_stride(shape_.in_channels), x_points = groups * x_stride;
    const ptrdiff_t sum_stride = operand_stride(shape_.out_channels);
    const ptrdiff_t sum_points = groups * sum_stride;
    int16_t* points =
        scratch.pair_points.reserve(static_cast<size_t>(winograd::kPoints * x_points));
    int32_t* sums = scratch.sum_points.reserve(static_cast<size_t>(winograd::kPoints * sum_points));
    const int count = (shape_.in_channels + 1) / 2 * 2 * kLanes;
    simd().winograd_data_pairs(x, x_stride, groups, count, points, x_stride, x_points);
    for (int p = 0; p < winograd::kPoints; ++p) {
      simd().conv1d_dense_pairs_wrapping(points + p * x_points, x_stride, groups,
                                         w_.forward_pairs_at(p), sums + p * sum_points, sum_stride);
    }
    simd().winograd_outputs_exact(sums, sum_stride, sum_points, rows, shape_.out_channels * kLanes,
                                  y, y_stride);
  }

  void backward_data_at_points(const float* dy, int rows, float* dx, ptrdiff_t dx_stride,
                               Scratch& scratch) const {
    const int groups = winograd::groups(rows);
    const ptrdiff_t dy_stride = operand_stride(shape_.out_channels), dy_points = groups * dy_stride;
    const ptrdiff_t sum_stride = operand_stride(shape_.in_channels);
    const ptrdiff_t sum_points = groups * sum_stride;
    float* points = scratch.data_points.reserve(static_cast<size_t>(winograd::kPoints * dy_points));
    float* sums =
        scratch.output_points.reserve(static_cast<size_t>(winograd::kPoints * sum_points));
    simd().winograd_data(dy, dy_stride, groups, shape_.out_channels * kLanes, points, dy_stride,
                         dy_points);
    for (int p = 0; p < winograd::kPoints; ++p) {
      simd().conv1d_dense(points + p * dy_points, dy_stride, groups, w_.backward_dense_at(p),
                          sums + p * sum_points, sum_stride);
    }
    simd().winograd_outputs(sums, sum_stride, sum_points, rows, shape_.in_channels * kLanes, dx,
                            dx_stride);
  }

  void backward_weight_at_points(const float* x, const float* dy, int rows, float* dw,
                                 Scratch& scratch) const {
    const int groups = rows / winograd::kOutputs;
    const ptrdiff_t x_points = groups * transposed_stride();
    const ptrdiff_t dy_stride = operand_stride(shape_.out_channels), dy_points = groups * dy_stride;
    float* data = scratch.data_points.reserve(static_cast<size_t>(winograd::kPoints * x_points));
    float* gradient =
        scratch.gradient_points.reserve(static_cast<size_t>(winograd::kPoints * dy_points));
    simd().winograd_data(x, transposed_stride(), groups, padded_channels() * kLanes, data,
                         transposed_stride(), x_points);
    simd().winograd_gradient(dy, dy_stride, groups, shape_.out_channels * kLanes, gradient,
                             dy_stride, dy_points);
    for (int p = 0; p < winograd::kPoints; ++p) {
      simd().backward_weight_product(
          data + p * x_points, transposed_stride(), gradient + p * dy_points, dy_stride, groups,
          shape_.out_channels, padded_channels(), dw + static_cast<ptrdiff_t>(p) * product_size());
    }
  }

  // Window rows as [kLanes][channels padded].
  const float* unpack_transposed(int64_t item, int r0, int rows, Scratch& scratch) const {
    const int window = rows + shape_.taps - 1, padded = padded_channels();
    float* out = scratch.x.reserve(static_cast<size_t>(window * transposed_stride()));
    uint8_t* codes = scratch.codes.reserve(static_cast<size_t>(padded * kLanes));
    for (int r = 0; r < window; ++r, out += transposed_stride()) {
      const void* row = input_row(item, r0 + r);
      if (x_.type == ElementType::kF32) {
        const float* values = static_cast<const float*>(row);
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int c = 0; c < padded; ++c) {
            out[lane * padded + c] = c < shape_.in_channels ? values[c * kLanes + lane] : 0.0F;
          }
        }
        continue;
      }
      simd().transpose_codes(static_cast<const uint8_t*>(row), shape_.in_channels, codes);
      if (x_.type == ElementType::kU8) {
        simd().unpack_u8(codes, padded * kLanes, out);
      } else {
        simd().unpack_s8(reinterpret_cast<const int8_t*>(codes), padded * kLanes, out);
      }
    }
    return scratch.x.data();
  }

  bool sums_directly() const {
    return w_.plan.sparse_backward_weight ||
           w_.backward_weight_algorithm == ops::DenseAlgorithm::kDirect;
  }
  int padded_channels() const { return (shape_.in_channels + kLanes - 1) / kLanes * kLanes; }
  ptrdiff_t transposed_stride() const { return operand_stride(padded_channels()); }
  ptrdiff_t product_size() const {
    return static_cast<ptrdiff_t>(shape_.out_channels) * padded_channels();
  }

  ops::LayerShape shape_;
  ConstTileView x_;
  const ops::CompiledWeights::Compiled& w_;
  Items items_;
};

}  // namespace fmp::cpu
