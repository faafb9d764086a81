// SPDX-License-Identifier: MIT
#include "kernels/cpu/chunk_conv.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/gradient_tiles.h"
#include "kernels/cpu/simd.h"

namespace fmp::cpu {

void ChunkConv::forward(int64_t item, int r0, int rows, float* y, ptrdiff_t y_stride,
                        Scratch& scratch, LapTimer& timer, Profile& profile) const {
  if (w_.forward_on_quads) {
    const uint8_t* operand = pack_quads(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    const CodeWeights weights = w_.forward_quads.view(w_.dot);
    const TilesInUse in_use(weights.tiles != nullptr);
    code_sums(weights, 0, shape_.out_channels, operand, rows, y, y_stride);
  } else if (w_.forward_on_pairs) {
    const int16_t* operand = unpack_pairs(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    if (w_.forward_algorithm == DenseAlgorithm::kWinograd) {
      forward_at_points(operand, rows, y, y_stride, scratch);
    } else {
      simd().conv1d_dense_pairs(operand, pair_stride(shape_.in_channels), rows,
                                w_.forward_pairs_view(), y, y_stride);
    }
  } else {
    const float* operand = unpack_floats(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    const ptrdiff_t stride = operand_stride(shape_.in_channels);
    if (w_.plan.forward == Kernel::kSparse) {
      simd().conv1d_sparse(operand, stride, rows, w_.forward_sparse.view(), y, y_stride);
    } else {
      simd().conv1d_dense(operand, stride, rows, w_.forward_dense_view(), y, y_stride);
    }
  }
  timer.lap(profile.conv_forward);
}

void ChunkConv::code_sums(const CodeWeights& weights, int first, int outputs,
                          const uint8_t* operand, int rows, float* y, ptrdiff_t y_stride) const {
  const auto make = weights.tiles != nullptr ? tile_sums : simd().code_sums;
  make(weights, first, outputs, operand, rows, sum_offsets(), y, y_stride);
}

void ChunkConv::add_totals(int64_t item, int r0, int rows, int64_t* totals, Scratch& scratch,
                           LapTimer& timer, Profile& profile) const {
  const uint8_t* operand = pack_quads(item, r0, rows, scratch);
  timer.lap(profile.unpack);
  CodeWeights weights = w_.forward_quads.view(w_.dot);
  weights.small_sums = (w_.forward_quads.largest() << shape_.input_bits) <= kLargestSmallSum;
  const auto add = weights.tiles != nullptr ? tile_totals : simd().code_totals;
  add(weights, shape_.out_channels, operand, rows, sum_offsets(), totals);
  timer.lap(profile.conv_forward);
}

void ChunkConv::backward_data(const float* dy, int rows, float* dx, Scratch& scratch) const {
  const ptrdiff_t stride = gradient_layout().row;
  const ptrdiff_t dx_stride = static_cast<ptrdiff_t>(shape_.in_channels) * kLanes;
  if (w_.plan.backward_data == Kernel::kSparse) {
    simd().conv1d_sparse(dy, stride, rows, w_.backward_sparse.view(), dx, dx_stride);
  } else if (w_.backward_data_algorithm == DenseAlgorithm::kTiles) {
    const gradient_tiles::Chunk chunk = w_.tile_chunk(rows);
    uint16_t* operand = scratch.tile_data.reserve(gradient_tiles::data_operand_size(chunk));
    gradient_tiles::backward_data(chunk, w_.backward_tiles.data(), w_.scale, dy, stride, operand,
                                  dx, dx_stride);
  } else if (w_.backward_data_algorithm == DenseAlgorithm::kWinograd) {
    backward_data_at_points(dy, rows, dx, dx_stride, scratch);
  } else {
    simd().conv1d_dense(dy, stride, rows, w_.backward_dense_view(), dx, dx_stride);
  }
}

void ChunkConv::backward_weight(int64_t item, int r0, int rows, const float* dy, float* dw,
                                Scratch& scratch, LapTimer& timer, Profile& profile) const {
  const ChunkLayout of_dy = gradient_layout();
  if (w_.plan.backward_weight == Kernel::kSparse) {
    backward_weight_by_channel(item, r0, rows, dy, dw, scratch);
  } else if (w_.backward_weight_algorithm == DenseAlgorithm::kTiles) {
    pack_tiles(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    const gradient_tiles::Chunk chunk = w_.tile_chunk(rows);
    uint16_t* gradient =
        scratch.tile_gradient.reserve(gradient_tiles::gradient_operand_size(chunk));
    gradient_tiles::backward_weight(chunk, scratch.tile_x.data(), dy, of_dy.row, gradient, dw);
  } else if (sums_directly()) {
    const float* x = unpack_floats(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    simd().conv1d_backward_weight_dense(x, operand_stride(shape_.in_channels), dy, of_dy.row, rows,
                                        shape_.out_channels, shape_.taps, shape_.in_channels, dw);
  } else {
    const float* x = unpack_transposed(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    if (w_.backward_weight_algorithm == DenseAlgorithm::kWinograd) {
      backward_weight_at_points(x, dy, rows, dw, scratch);
    } else {
      for (int t = 0; t < shape_.taps; ++t) {
        simd().backward_weight_product(x + t * transposed_stride(), transposed_stride(), dy,
                                       of_dy.row, rows, shape_.out_channels, padded_channels(),
                                       dw + static_cast<ptrdiff_t>(t) * product_size());
      }
    }
  }
  timer.lap(profile.conv_backward_weight);
}

void ChunkConv::backward_weight_by_channel(int64_t item, int r0, int rows, const float* dy,
                                           float* dw, Scratch& scratch) const {
  const int window = rows + shape_.taps - 1;
  const ptrdiff_t stride = x_.shape.row_elements();
  const void* first = input_row(item, r0);
  float* x = scratch.x.reserve(static_cast<size_t>(window * kLanes));
  const int32_t* begin = w_.gradient_begin.data();
  for (int c = 0; c < shape_.in_channels; ++c, begin += shape_.taps) {
    if (begin[0] == begin[shape_.taps]) continue;
    const ptrdiff_t channel = static_cast<ptrdiff_t>(c) * kLanes;
    switch (x_.type) {
      case ElementType::kU8:
        simd().unpack_rows_u8(static_cast<const uint8_t*>(first) + channel, stride, window, x);
        break;
      case ElementType::kS8:
        simd().unpack_rows_s8(static_cast<const int8_t*>(first) + channel, stride, window, x);
        break;
      case ElementType::kF32:
        for (int r = 0; r < window; ++r) {
          std::copy_n(static_cast<const float*>(first) + r * stride + channel, kLanes,
                      x + r * kLanes);
        }
        break;
      case ElementType::kBF16:  // no input is
        break;
    }
    simd().conv1d_backward_weight_sparse(x, dy, gradient_layout().row, rows, shape_.taps, begin,
                                         w_.gradient_offset.data(), dw);
  }
}

size_t ChunkConv::gradient_sums() const {
  if (sums_directly()) return gradient_size() * kLanes;
  if (w_.backward_weight_algorithm == DenseAlgorithm::kTiles) {
    return gradient_tiles::dw_size(w_.tile_chunk(0));
  }
  const int matrices =
      w_.backward_weight_algorithm == DenseAlgorithm::kWinograd ? winograd::kPoints : shape_.taps;
  return static_cast<size_t>(matrices * product_size());
}

void ChunkConv::add_gradient(const float* sums, float* gradient) const {
  if (sums_directly()) {
    std::vector<double> totals(gradient_size(), 0.0);
    simd().add_lane_sums(sums, static_cast<int>(totals.size()), totals.data());
    for (size_t i = 0; i < totals.size(); ++i) gradient[i] += static_cast<float>(totals[i]);
    return;
  }
  if (w_.backward_weight_algorithm == DenseAlgorithm::kTiles) {
    const gradient_tiles::Chunk chunk = w_.tile_chunk(0);
    for (int o = 0; o < shape_.out_channels; ++o) {
      for (int t = 0; t < shape_.taps; ++t) {
        for (int c = 0; c < shape_.in_channels; ++c) {
          *gradient++ += sums[gradient_tiles::dw_place(chunk, o, t, c)];
        }
      }
    }
    return;
  }
  const bool points = w_.backward_weight_algorithm == DenseAlgorithm::kWinograd;
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

size_t ChunkConv::gradient_size() const {
  return w_.plan.backward_weight == Kernel::kSparse ? w_.gradient_index.size()
                                                    : static_cast<size_t>(shape_.weights());
}

const float* ChunkConv::unpack_floats(int64_t item, int r0, int rows, Scratch& scratch) const {
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
      case ElementType::kBF16:  // no input is
        break;
    }
  }
  return out;
}

const uint8_t* ChunkConv::pack_quads(int64_t item, int r0, int rows, Scratch& scratch) const {
  const int window = rows + shape_.taps - 1;
  const ptrdiff_t stride = w_.forward_quads.quad_stride();
  uint8_t* out =
      scratch.quads.reserve(static_cast<size_t>(w_.forward_quads.operand_quads() * stride));
  const uint8_t offset =
      static_cast<uint8_t>(x_.type == ElementType::kS8 ? signed_offset(shape_) : 0);
  // The next chunk's codes are on their way while this one's are multiplied.
  const ptrdiff_t next = chunk_rows() * x_.shape.row_elements();
  simd().pack_quads(static_cast<const uint8_t*>(input_row(item, r0)), window, shape_.in_channels,
                    offset, next, out, stride);
  return out;
}

const void* ChunkConv::input_row(int64_t item, int r) const {
  const int64_t row = items_.row(item, r - half(), x_.shape.length, x_.shape.pad);
  return static_cast<const char*>(x_.data) +
         static_cast<size_t>(row * x_.shape.row_elements()) * element_bytes(x_.type);
}

const int16_t* ChunkConv::unpack_pairs(int64_t item, int r0, int rows, Scratch& scratch) const {
  const int window = rows + shape_.taps - 1;
  const int all = w_.forward_algorithm == DenseAlgorithm::kWinograd
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
      simd().unpack_pairs_s8(static_cast<const int8_t*>(row), shape_.in_channels, out + r * stride);
    }
  }
  std::fill_n(out + window * stride, (all - window) * stride, int16_t{0});
  return out;
}

void ChunkConv::forward_at_points(const int16_t* x, int rows, float* y, ptrdiff_t y_stride,
                                  Scratch& scratch) const {
  const int groups = winograd::groups(rows);
  const ptrdiff_t x_stride = pair_stride(shape_.in_channels), x_points = groups * x_stride;
  const ptrdiff_t sum_stride = operand_stride(shape_.out_channels);
  const ptrdiff_t sum_points = groups * sum_stride;
  int16_t* points = scratch.pair_points.reserve(static_cast<size_t>(winograd::kPoints * x_points));
  int32_t* sums = scratch.sum_points.reserve(static_cast<size_t>(winograd::kPoints * sum_points));
  const int count = (shape_.in_channels + 1) / 2 * 2 * kLanes;
  simd().winograd_data_pairs(x, x_stride, groups, count, points, x_stride, x_points);
  for (int p = 0; p < winograd::kPoints; ++p) {
    simd().conv1d_dense_pairs_wrapping(points + p * x_points, x_stride, groups,
                                       w_.forward_pairs_at(p), sums + p * sum_points, sum_stride);
  }
  simd().winograd_outputs_exact(sums, sum_stride, sum_points, rows, shape_.out_channels * kLanes, y,
                                y_stride);
}

void ChunkConv::backward_data_at_points(const float* dy, int rows, float* dx, ptrdiff_t dx_stride,
                                        Scratch& scratch) const {
  const int groups = winograd::groups(rows);
  const ptrdiff_t dy_stride = operand_stride(shape_.out_channels), dy_points = groups * dy_stride;
  const ptrdiff_t sum_stride = operand_stride(shape_.in_channels);
  const ptrdiff_t sum_points = groups * sum_stride;
  float* points = scratch.data_points.reserve(static_cast<size_t>(winograd::kPoints * dy_points));
  float* sums = scratch.output_points.reserve(static_cast<size_t>(winograd::kPoints * sum_points));
  simd().winograd_data(dy, dy_stride, groups, shape_.out_channels * kLanes, points, dy_stride,
                       dy_points);
  for (int p = 0; p < winograd::kPoints; ++p) {
    simd().conv1d_dense(points + p * dy_points, dy_stride, groups, w_.backward_dense_at(p),
                        sums + p * sum_points, sum_stride);
  }
  simd().winograd_outputs(sums, sum_stride, sum_points, rows, shape_.in_channels * kLanes, dx,
                          dx_stride);
}

void ChunkConv::backward_weight_at_points(const float* x, const float* dy, int rows, float* dw,
                                          Scratch& scratch) const {
  const int groups = rows / winograd::kOutputs;
  const ptrdiff_t x_points = groups * transposed_stride();
  const ptrdiff_t dy_stride = operand_stride(shape_.out_channels), dy_points = groups * dy_stride;
  float* data = scratch.data_points.reserve(static_cast<size_t>(winograd::kPoints * x_points));
  float* gradient =
      scratch.gradient_points.reserve(static_cast<size_t>(winograd::kPoints * dy_points));
  simd().winograd_data(x, transposed_stride(), groups, padded_channels() * kLanes, data,
                       transposed_stride(), x_points);
  simd().winograd_gradient(dy, dy_stride, groups, shape_.out_channels * kLanes, gradient, dy_stride,
                           dy_points);
  for (int p = 0; p < winograd::kPoints; ++p) {
    simd().backward_weight_product(
        data + p * x_points, transposed_stride(), gradient + p * dy_points, dy_stride, groups,
        shape_.out_channels, padded_channels(), dw + static_cast<ptrdiff_t>(p) * product_size());
  }
}

void ChunkConv::pack_tiles(int64_t item, int r0, int rows, Scratch& scratch) const {
  const gradient_tiles::Chunk chunk = w_.tile_chunk(rows);
  uint16_t* out = scratch.tile_x.reserve(gradient_tiles::x_operand_size(chunk));
  const size_t row_size = static_cast<size_t>(padded_channels() * kLanes);
  uint8_t* codes = scratch.codes.reserve(row_size);
  const int window = rows + shape_.taps - 1;
  const bool are_signed = x_.type == ElementType::kS8;
  for (int r = 0; r < window; ++r) {
    simd().transpose_codes(static_cast<const uint8_t*>(input_row(item, r0 + r)), shape_.in_channels,
                           codes);
    gradient_tiles::pack_x(chunk, codes, are_signed, r, out);
  }
  if (rows % 2 == 0) return;
  std::fill_n(codes, row_size, uint8_t{0});  // meets rows of dy that are 0
  gradient_tiles::pack_x(chunk, codes, are_signed, window, out);
}

const float* ChunkConv::unpack_transposed(int64_t item, int r0, int rows, Scratch& scratch) const {
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

}  // namespace fmp::cpu
