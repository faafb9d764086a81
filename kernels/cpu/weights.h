// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

namespace fmp::cpu {

// Elements between the rows of an operand in a chunk. One extra cache line a row keeps the same
// channel of successive positions out of the same cache set.
inline ptrdiff_t operand_stride(int channels) {
  return static_cast<ptrdiff_t>(channels) * kLanes + kLanes;
}
inline ptrdiff_t pair_stride(int channels) {
  return static_cast<ptrdiff_t>((channels + 1) / 2) * 2 * kLanes + 2 * kLanes;
}

// A SparseWeights with its memory.
struct OwnedSparse {
  std::vector<int32_t> row_begin, offset;
  std::vector<float> values;
  SparseWeights view() const {
    return {static_cast<int>(row_begin.size()) - 1, row_begin.data(), offset.data(), values.data()};
  }
};

}  // namespace fmp::cpu

namespace fmp::ops {

struct CompiledWeights::Compiled {
  LayerShape shape;
  PassPlan plan;  // as compiled: a sparse forward pass that would not be exact is dense
  float scale = 1;
  float largest = 0;           // max|w|
  std::vector<float> codes;    // [O][T][C]
  std::vector<uint8_t> alive;  // the mask; empty = all
  int64_t nonzeros = 0;

  bool integer_forward = false;  // forward on 16-bit pairs
  std::vector<int16_t> forward_pairs;
  std::vector<float> forward_dense;
  cpu::OwnedSparse forward_sparse;
  std::vector<float> backward_dense;  // transposed, taps flipped, times scale
  cpu::OwnedSparse backward_sparse;
  cpu::OwnedSparse gradient_sparse;     // the surviving weights; values empty
  std::vector<int64_t> gradient_index;  // where each of its entries stands in [O][T][C]
  std::vector<uint8_t> gradient_mask;   // the mask for which the two were made

  cpu::DenseWeights forward_dense_view() const {
    return {shape.out_channels, shape.taps, shape.in_channels, forward_dense.data()};
  }
  cpu::DensePairWeights forward_pairs_view() const {
    return {shape.out_channels, shape.taps, shape.in_channels, forward_pairs.data()};
  }
  cpu::DenseWeights backward_dense_view() const {
    return {shape.in_channels, shape.taps, shape.out_channels, backward_dense.data()};
  }
};

}  // namespace fmp::ops
