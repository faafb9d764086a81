// SPDX-License-Identifier: MIT
// The vector code of integer inference, chosen at run time like the rest (simd.h).
#pragma once

#include <cstdint>

#include "kernels/cpu/integer_ops.h"

namespace fmp::cpu {

struct IntegerLayerView {
  int out_quads = 0, taps = 0, in_quads = 0, pool = 1;
  DotProduct dot = DotProduct::kWide;
  bool sparse = false;
  bool two_channels = false;           // no more than that at the input
  const int32_t* row_begin = nullptr;  // compressed rows: outputs, ...
  const int32_t* offset = nullptr;     // ... bytes from the first row of the window
  // Weights, a quad at a time: [0] four bytes in an element, in the order of the tiles; [1] two
  // elements of 16-bit pairs, of channels 0 and 1, then 2 and 3.
  const int32_t* dense[2] = {};               // [out_quads][taps][in_quads][4 outputs]
  const int32_t* values[2] = {};              // [entries]
  const Requantizer* requantizers = nullptr;  // [out_quads * 4]
  const int32_t* thresholds = nullptr;        // [out_quads * 4][levels + 1]
  int levels = 0;                             // a power of two less 1
};

// A layer for products of tiles.
struct TileLayerView {
  int out_quads = 0, window_quads = 0, pool = 1;
  ptrdiff_t row_bytes = 0;  // from a window to the next
  // [out_quads / 4][window_quads / kTileQuads][16 outputs][kTileQuads][4], each division rounded
  // up; if the window has as many rows, its last tile is the last kTileQuads, with zeros for those
  // that the tile before has as well.
  const int8_t* weights = nullptr;
  const QuadLines* quads = nullptr;     // [out_quads]
  const int32_t* thresholds = nullptr;  // [out_quads * 4][levels + 1]
  int levels = 0;                       // a power of two less 1
};

struct IntegerSimd {
  bool has_narrow, has_vnni;
  // See IntegerLayer.
  void (*hidden)(const IntegerLayerView& layer, const uint8_t* x, int rows, uint8_t* out);
  void (*output)(const IntegerLayerView& layer, const uint8_t* x, int32_t* sums);

  // A layer of three taps at Winograd's points (winograd.h), `groups` times four rows. Data, as
  // pairs of 16 bits: [quads][2][kLanes][2] at points + point * point_stride + group *
  // group_stride; x has data_rows(groups) rows.
  void (*data_at_points)(const uint8_t* x, int in_quads, int groups, int16_t* points,
                         ptrdiff_t group_stride, ptrdiff_t point_stride);
  // Codes from the products [out_quads * 4][kLanes] at the points; the pool is 1, 2 or 4.
  void (*codes_of_points)(const IntegerLayerView& layer, const int32_t* sums,
                          ptrdiff_t group_stride, ptrdiff_t point_stride, int groups, uint8_t* out);
};

// IntegerLayer::hidden where Simd::has_tiles.
void hidden_on_tiles(const TileLayerView& layer, const uint8_t* x, int rows, uint8_t* out);

}  // namespace fmp::cpu
