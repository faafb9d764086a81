// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// The weights of a layer as the quantized network multiplies them: value = code * scale, with
// code = round-half-to-even(w * mask / scale) and scale = max(max|w * mask|, 1e-10) /
// (2^(bits-1) - 1).
// Layers with float weights have no codes; `codes` is then empty and scale 1.
struct WeightCodes {
  float scale = 1;
  std::vector<int8_t> codes;  // as Layer::weight
};
WeightCodes quantize_weights(const Layer& layer);

}  // namespace fmp
