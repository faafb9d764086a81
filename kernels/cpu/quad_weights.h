// SPDX-License-Identifier: MIT
// Weights of a layer in quads of input channels, as code_sums() reads them, from any storage.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/integer_ops.h"

namespace fmp::cpu {

// A tile of weights for AMX: outputs, each with as many quads of a tap.
inline constexpr int kTileOutputs = 16, kTileQuads = 16;
inline constexpr int kTileBytes = kTileOutputs * kTileQuads * kQuad;

// The squares of as many of these sums as registers hold, 16, fit into 31 bits.
inline constexpr int kLargestSmallSum = 1 << 13;

// Weights, a quad at a time: [0] four bytes in an element, in the order of byte_of_channel(); [1]
// two elements of 16-bit pairs, of channels 0 and 1, then 2 and 3.
struct CodeWeights {
  int taps = 1, in_quads = 0;
  int window_rows = 0;  // between the quads of an operand
  DotProduct dot = DotProduct::kWide;
  bool sparse = false;
  bool two_channels = false;           // no more than that at the input
  bool small_sums = false;             // all are within +-kLargestSmallSum, offsets included
  const int32_t* row_begin = nullptr;  // compressed rows: outputs, ...
  const int32_t* offset = nullptr;     // ... bytes from the first row of the first quad
  const int32_t* dense[2] = {};        // [out_quads][in_quads][taps][4 outputs]
  const int32_t* values[2] = {};       // [entries]
  // Null, or [tiles of outputs][tiles of quads][taps][kTileOutputs][kTileQuads][4].
  const int8_t* tiles = nullptr;
};

// A chunk of rows to sum over: the window's rows as quads, and what is added to each output's sums.
struct CodeChunk {
  CodeWeights weights;
  const uint8_t* x = nullptr;
  int rows = 0;
  const int32_t* offsets = nullptr;
};

class QuadWeights {
 public:
  // value(o, t, c): a weight's code, any s8. Only nonzero quads are listed if `sparse`, all if not.
  // window_rows: of the operand that they will meet. tiles: also make tiles; not if sparse.
  template <typename Value>
  void pack(int out, int taps, int channels, int window_rows, bool sparse, bool tiles,
            const Value& value) {
    out_ = out;
    taps_ = taps;
    in_quads_ = quads(channels);
    two_channels_ = channels <= 2;
    window_rows_ = window_rows;
    sparse_ = sparse;
    has_tiles_ = tiles;
    const size_t tile_bytes = tiles ? static_cast<size_t>((out + kTileOutputs - 1) / kTileOutputs) *
                                          static_cast<size_t>(quad_tiles() * taps * kTileBytes)
                                    : 0;
    std::fill_n(tiles_.reserve(tile_bytes), tile_bytes, int8_t{0});
    int64_t largest = 0;  // positive or negative sum of an output
    row_begin_.assign(1, 0);
    offset_.clear();
    for (size_t i = 0; i < 2; ++i) {
      values_[i].clear();
      dense_[i].assign(
          sparse ? 0 : (i + 1) * static_cast<size_t>(out_quads() * kQuad * taps * in_quads_), 0);
    }
    for (int o = 0; o < out_quads() * kQuad; ++o) {
      int64_t positive = 0, negative = 0;
      for (int i = 0; o < out && i < taps * in_quads_; ++i) {
        const int first = i / taps * kQuad, t = i % taps;
        const int some = std::min(kQuad, channels - first);
        int any = 0;  // most are all zero where weights are few
        for (int c = first; c < first + some; ++c) any |= static_cast<int>(value(o, t, c));
        if (any == 0) continue;
        std::array<int8_t, kQuad> w{};
        for (int c = first; c < first + some; ++c) {
          w[static_cast<size_t>(byte_of_channel(c))] = static_cast<int8_t>(value(o, t, c));
        }
        int32_t bytes = 0;
        std::memcpy(&bytes, w.data(), sizeof bytes);
        for (const int8_t code : w) (code > 0 ? positive : negative) += code;
        add(o, i, bytes, {pair(w[0], w[2]), pair(w[1], w[3])});
      }
      largest = std::max({largest, positive, -negative});
      row_begin_.push_back(static_cast<int32_t>(offset_.size()));
    }
    largest_ = largest;
  }

  int out_quads() const { return quads(out_); }
  int in_quads() const { return in_quads_; }
  // Quads of an operand, those included that fill a last tile.
  int operand_quads() const { return has_tiles_ ? quad_tiles() * kTileQuads : in_quads_; }
  ptrdiff_t quad_stride() const { return static_cast<ptrdiff_t>(window_rows_) * kQuadRow; }
  // The largest sum of weights of one sign of an output.
  int64_t largest() const { return largest_; }

  CodeWeights view(DotProduct dot) const {
    CodeWeights v;
    v.taps = taps_;
    v.in_quads = in_quads_;
    v.window_rows = window_rows_;
    v.dot = dot;
    v.sparse = sparse_;
    v.two_channels = two_channels_;
    v.row_begin = row_begin_.data();
    v.offset = offset_.data();
    for (size_t i = 0; i < 2; ++i) {
      v.dense[i] = dense_[i].data();
      v.values[i] = values_[i].data();
    }
    v.tiles = has_tiles_ ? tiles_.data() : nullptr;
    return v;
  }

 private:
  int quad_tiles() const { return (in_quads_ + kTileQuads - 1) / kTileQuads; }

  // Quad i of an output: quads of channels, the taps of each in turn.
  void add(int o, int i, int32_t bytes, const std::array<int32_t, 2>& pairs) {
    if (sparse_) {
      offset_.push_back((i / taps_ * window_rows_ + i % taps_) * kQuadRow);
      values_[0].push_back(bytes);
      values_[1].insert(values_[1].end(), pairs.begin(), pairs.end());
      return;
    }
    const size_t at = static_cast<size_t>((o / kQuad * taps_ * in_quads_ + i) * kQuad + o % kQuad);
    if (has_tiles_) {
      const int q = i / taps_, tap = i % taps_;
      const int tile = (o / kTileOutputs * quad_tiles() + q / kTileQuads) * taps_ + tap;
      std::memcpy(tiles_.data() + static_cast<ptrdiff_t>(tile) * kTileBytes +
                      (o % kTileOutputs * kTileQuads + q % kTileQuads) * kQuad,
                  &bytes, sizeof bytes);
    }
    dense_[0][at] = bytes;
    dense_[1][2 * at] = pairs[0];
    dense_[1][2 * at + 1] = pairs[1];
  }

  static int32_t pair(int8_t low, int8_t high) {
    return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) |
                                static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
  }

  int out_ = 0, taps_ = 1, in_quads_ = 0, window_rows_ = 0;
  bool two_channels_ = false, sparse_ = false, has_tiles_ = false;
  int64_t largest_ = 0;
  AlignedBuffer<int8_t> tiles_;
  std::vector<int32_t> row_begin_, offset_, dense_[2], values_[2];  // see CodeWeights
};

}  // namespace fmp::cpu
