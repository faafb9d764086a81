// SPDX-License-Identifier: MIT
// code_sums() and code_totals() (simd.h) by AMX, for weights that have tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/quad_weights.h"

namespace fmp::cpu {

// Whether the processor has AMX on bytes and the system lets this process use it.
bool tiles_available();

// While one lives, this thread's tiles have the form that tile_sums() needs. That takes as long as
// some of the products, so it is not made by tile_sums() itself. `wanted`: otherwise, nothing.
// Nothing else may use tiles meanwhile.
class TilesInUse {
 public:
  explicit TilesInUse(bool wanted);
  ~TilesInUse();
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;

 private:
  bool in_use_;
};

void tile_sums(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
               const int32_t* offsets, float* y, ptrdiff_t y_stride);
void tile_totals(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                 const int32_t* offsets, int64_t* totals);

}  // namespace fmp::cpu
