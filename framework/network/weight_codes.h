// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
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
// The same for these weights, pruned ones being 0, and 2..8 bits.
WeightCodes quantize_weights(std::span<const float> weights, int bits);

}  // namespace fmp
