// SPDX-License-Identifier: MIT
#include "framework/network/weight_codes.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/layer.h"

namespace fmp {

WeightCodes quantize_weights(const Layer& layer) {
  WeightCodes quantized;
  if (layer.weight_bits == kFloatBits) return quantized;
  const std::span<const float> weights = layer.weight.value.floats();
  quantized.codes.resize(weights.size());
  // Pruned weights are kept at zero, so the mask needs no look here.
  float largest = kMinQuantizerRange;
  for (const float weight : weights) largest = std::max(largest, std::abs(weight));
  quantized.scale = largest / static_cast<float>((1 << (layer.weight_bits - 1)) - 1);
  std::ranges::transform(weights, quantized.codes.begin(), [&](float weight) {
    return static_cast<int8_t>(std::nearbyint(weight / quantized.scale));
  });
  return quantized;
}

}  // namespace fmp
