// SPDX-License-Identifier: MIT
// code_sums() and code_totals() (simd.h) by AMX, for weights that have tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/quad_weights.h"

namespace fmp::cpu {

// Whether the processor has AMX on bytes and the system lets this process use it.
bool tiles_available();

void tile_sums(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
               const int32_t* offsets, float* y, ptrdiff_t y_stride);
void tile_totals(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                 const int32_t* offsets, int64_t* totals);

}  // namespace fmp::cpu
