// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/gradient_tiles.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quad_weights.h"
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

// Rows that a chunk of a layer reads at most.
inline int window_rows(const LayerShape& shape) { return chunk_rows(shape.pool) + shape.taps - 1; }

// Rows of dy around a chunk: its own, twice what a tap reaches to each side before them, and what
// kernels may read behind them.
inline int gradient_rows(const LayerShape& shape) {
  return chunk_rows(shape.pool) + 3 * shape.padding() + winograd::kOutputs - 1;
}

// Where the elements of a chunk's operand are: between rows, and between channels of a row. Kernels
// that multiply by all weights read a row at a time; those that walk over single weights read a
// channel at a time, whose rows then lie behind one another.
struct ChunkLayout {
  ptrdiff_t row = 0, channel = 0;
};
inline ChunkLayout by_row(int channels) { return {operand_stride(channels), kLanes}; }
inline ChunkLayout by_channel(int rows) { return {kLanes, static_cast<ptrdiff_t>(rows) * kLanes}; }

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
  kTiles,     // backward passes: see gradient_tiles.h
};

// What makes a layer's signed input codes unsigned.
inline int signed_offset(const LayerShape& shape) { return 1 << (shape.input_bits - 1); }

struct Weights::Compiled {
  LayerShape shape;
  PassPlan plan;  // kDense or kSparse
  float scale = 1;
  float largest = 0;           // max|w|
  std::vector<float> codes;    // [O][T][C]
  std::vector<uint8_t> alive;  // the mask; empty = all
  int64_t nonzeros = 0;

  // Of the passes that are not sparse. Forward: only where it is exact, on integers.
  DenseAlgorithm forward_algorithm = DenseAlgorithm::kDirect;
  DenseAlgorithm backward_data_algorithm = DenseAlgorithm::kDirect;
  DenseAlgorithm backward_weight_algorithm = DenseAlgorithm::kDirect;

  bool integers = false;          // y is an integer
  bool forward_on_quads = false;  // sparse, or where bytes can be multiplied directly
  bool forward_on_pairs = false;  // of 16 bits
  QuadWeights forward_quads;
  DotProduct dot = DotProduct::kWide;  // on quads
  // What is added to the sums on quads, [O rounded up to whole quads]: nothing, or what makes up
  // for signed_offset() having been added to signed input codes.
  std::vector<int32_t> no_offsets, signed_offsets;
  std::vector<int16_t> forward_pairs;  // of each point in turn with Winograd's algorithm
  std::vector<float> forward_dense;
  OwnedSparse forward_sparse;
  std::vector<float> backward_dense;       // transposed, taps flipped, times scale; likewise
  AlignedBuffer<uint16_t> backward_tiles;  // or as gradient_tiles.h wants them
  OwnedSparse backward_sparse;
  // The surviving weights by input channel and tap, [C][T] + 1, where the output of each is in a
  // row of dy, and where it stands itself in [O][T][C]; the mask and layout for which this is.
  std::vector<int32_t> gradient_begin, gradient_offset;
  std::vector<int64_t> gradient_index;
  std::vector<uint8_t> gradient_mask;
  ptrdiff_t gradient_stride = 0;  // between channels

  // Of dy, for both passes that read it.
  ChunkLayout gradient_layout() const {
    return plan.backward_data == Kernel::kSparse && plan.backward_weight == Kernel::kSparse
               ? by_channel(gradient_rows(shape))
               : by_row(shape.out_channels);
  }
  gradient_tiles::Chunk tile_chunk(int rows) const {
    return {shape.out_channels, shape.in_channels, shape.taps, rows};
  }

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
