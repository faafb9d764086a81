// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/winograd.h"

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

// How the dense kernels compute a pass.
enum class DenseAlgorithm : uint8_t {
  kDirect,    // tap by tap, in the order of the sparse kernels
  kProduct,   // weight gradient: a matrix product with positions and lanes inside
  kWinograd,  // see winograd.h
};

struct Weights::Compiled {
  LayerShape shape;
  // As compiled: kDense or kSparse. A sparse forward pass that would not be exact is dense.
  PassPlan plan;
  float scale = 1;
  float largest = 0;           // max|w|
  std::vector<float> codes;    // [O][T][C]
  std::vector<uint8_t> alive;  // the mask; empty = all
  int64_t nonzeros = 0;

  // Of the passes that are not sparse. Forward: only where it is exact, on integers.
  DenseAlgorithm forward_algorithm = DenseAlgorithm::kDirect;
  DenseAlgorithm backward_data_algorithm = DenseAlgorithm::kDirect;
  DenseAlgorithm backward_weight_algorithm = DenseAlgorithm::kDirect;

  bool integer_forward = false;        // forward on 16-bit pairs
  std::vector<int16_t> forward_pairs;  // of each point in turn with Winograd's algorithm
  std::vector<float> forward_dense;
  OwnedSparse forward_sparse;
  std::vector<float> backward_dense;  // transposed, taps flipped, times scale; likewise
  OwnedSparse backward_sparse;
  OwnedSparse gradient_sparse;          // the surviving weights; values empty
  std::vector<int64_t> gradient_index;  // where each of its entries stands in [O][T][C]
  std::vector<uint8_t> gradient_mask;   // the mask for which the two were made

  DenseWeights forward_dense_view() const {
    return {shape.out_channels, shape.taps, shape.in_channels, forward_dense.data()};
  }
  DensePairWeights forward_pairs_view() const {
    return {shape.out_channels, shape.taps, shape.in_channels, forward_pairs.data()};
  }
  DenseWeights backward_dense_view() const {
    return {shape.in_channels, shape.taps, shape.out_channels, backward_dense.data()};
  }
  // The matrix of a point with Winograd's algorithm.
  DensePairWeights forward_pairs_at(int point) const {
    const size_t size = forward_pairs.size() / winograd::kPoints;
    return {shape.out_channels, 1, shape.in_channels,
            forward_pairs.data() + static_cast<size_t>(point) * size};
  }
  DenseWeights backward_dense_at(int point) const {
    const size_t size = backward_dense.size() / winograd::kPoints;
    return {shape.in_channels, 1, shape.out_channels,
            backward_dense.data() + static_cast<size_t>(point) * size};
  }
};

}  // namespace fmp::cpu
