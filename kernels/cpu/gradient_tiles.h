// SPDX-License-Identifier: MIT
// The backward pass of dense layers on codes by AMX, on bf16. Codes up to 8 bits are bf16 numbers
// as they are; a gradient is the sum of two of them but for 2^-17 of it. Products are exact, their
// sums are rounded to float. So the gradients are as near to the exact ones as those of the other
// kernels are, but they are not the same to the bit. They depend on nothing but shapes and
// operands.
//
// Matrices are cut into tiles of 16 rows; what does not fill a tile is filled with zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/aligned_buffer.h"
#include "kernels/tile.h"

namespace fmp::cpu::gradient_tiles {

inline constexpr int kSide = 16;   // rows of a tile, and columns of a product
inline constexpr int kDepth = 32;  // bf16 numbers in a row of a tile
// bf16 numbers that stand for an element of dy: all of it where dx is made, which other gradients
// follow from; but for 2^-17 of it where its sums are a weight's gradient and final.
inline constexpr int kDataParts = 3, kWeightParts = 2;
inline int tiles(int count, int of) { return (count + of - 1) / of; }

// Whether the processor has AMX on bf16. The rest as tiles_available() (code_tiles.h).
bool available();

// The chunk of a layer: out and in channels, taps, and the positions for which dy is there.
struct Chunk {
  int out_channels = 0, in_channels = 0, taps = 1, rows = 0;
};

// dx[l][c] = scale * sum over t, o of w[o][taps - 1 - t][c] * dy[l + t][o], of chunk.rows rows l.
// Transposed weights, value(c, t, o) an integer up to 2^8, to [tiles of in channels][tiles of
// kDepth out channels][taps][kSide][kDepth] bf16.
template <typename Value>
void pack_weights(const Chunk& chunk, const Value& value, AlignedBuffer<uint16_t>& packed);
// dy: [rows + taps - 1][out channels][kLanes], dy_stride between rows. dx: likewise, rows.
// operand: room for data_operand_size().
size_t data_operand_size(const Chunk& chunk);
void backward_data(const Chunk& chunk, const uint16_t* weights, float scale, const float* dy,
                   ptrdiff_t dy_stride, uint16_t* operand, float* dx, ptrdiff_t dx_stride);

// dw[o][t][c] += sum over rows l, lanes of dy[l][o] * x[l + t][c].
// x of one row, codes [kLanes][channels rounded up to kSide], signed or not, to row `row` of
// operand, which has room for x_operand_size().
size_t x_operand_size(const Chunk& chunk);
void pack_x(const Chunk& chunk, const uint8_t* codes, bool are_signed, int row, uint16_t* operand);
// gradient: room for gradient_operand_size(). dw: dw_size() sums, see dw_place().
size_t gradient_operand_size(const Chunk& chunk);
void backward_weight(const Chunk& chunk, const uint16_t* x, const float* dy, ptrdiff_t dy_stride,
                     uint16_t* gradient, float* dw);
inline size_t dw_size(const Chunk& chunk) {
  return static_cast<size_t>(tiles(chunk.out_channels, kSide) * tiles(chunk.in_channels, kSide) *
                             chunk.taps * kSide * kSide);
}
inline size_t dw_place(const Chunk& chunk, int o, int t, int c) {
  const int tile = (o / kSide * tiles(chunk.in_channels, kSide) + c / kSide) * chunk.taps + t;
  return static_cast<size_t>((tile * kSide + o % kSide) * kSide + c % kSide);
}

// The bf16 number that an integer up to 2^8 is.
uint16_t bf16_of(float integer);

template <typename Value>
void pack_weights(const Chunk& chunk, const Value& value, AlignedBuffer<uint16_t>& packed) {
  uint16_t* to =
      packed.reserve(static_cast<size_t>(tiles(chunk.in_channels, kSide) *
                                         tiles(chunk.out_channels, kDepth) * chunk.taps) *
                     kSide * kDepth);
  for (int first_c = 0; first_c < chunk.in_channels; first_c += kSide) {
    for (int first_o = 0; first_o < chunk.out_channels; first_o += kDepth) {
      for (int t = 0; t < chunk.taps; ++t) {
        for (int c = first_c; c < first_c + kSide; ++c) {
          for (int o = first_o; o < first_o + kDepth; ++o) {
            const bool exists = c < chunk.in_channels && o < chunk.out_channels;
            *to++ = exists ? bf16_of(value(c, t, o)) : uint16_t{0};
          }
        }
      }
    }
  }
}

}  // namespace fmp::cpu::gradient_tiles
