// SPDX-License-Identifier: MIT
// The vector code of integer inference, chosen at run time like the rest (simd.h).
#pragma once

#include <cstdint>

#include "kernels/integer_ops.h"

namespace fmp::cpu {

struct IntegerLayerView {
  int out_quads = 0, taps = 0, in_quads = 0, pool = 1;
  ops::DotProduct dot = ops::DotProduct::kWide;
  bool sparse = false;
  const int32_t* row_begin = nullptr;  // compressed rows: outputs, ...
  const int32_t* offset = nullptr;     // ... bytes from the first row of the window
  // Weights, a quad at a time: [0] four bytes in an element; [1] two elements of 16-bit pairs,
  // weights 0 and 2, then 1 and 3.
  const int32_t* dense[2] = {};                    // [out_quads][taps][in_quads][4 outputs]
  const int32_t* values[2] = {};                   // [entries]
  const ops::Requantizer* requantizers = nullptr;  // [out_quads * 4]
  const int32_t* thresholds = nullptr;             // [out_quads * 4][levels]
  int levels = 0;                                  // a power of two less 1
};

struct IntegerSimd {
  bool has_narrow, has_vnni;
  // See IntegerLayer.
  void (*hidden)(const IntegerLayerView& layer, const uint8_t* x, int rows, uint8_t* out);
  void (*output)(const IntegerLayerView& layer, const uint8_t* x, int32_t* sums);
};

}  // namespace fmp::cpu
