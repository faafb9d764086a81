// SPDX-License-Identifier: MIT
#include "framework/network/weight_codes.h"

#include <algorithm>
#include <cmath>

#include "kernels/layer.h"

namespace fmp {

WeightCodes quantize_weights(const Layer& layer) {
  // Pruned weights are kept at zero, so the mask needs no look here.
  if (layer.weight_bits == kFloatBits) return {};
  return quantize_weights(layer.weight.value.floats(), layer.weight_bits);
}

WeightCodes quantize_weights(std::span<const float> weights, int bits) {
  WeightCodes quantized;
  quantized.codes.resize(weights.size());
  float largest = kMinQuantizerRange;
  for (const float weight : weights) largest = std::max(largest, std::abs(weight));
  quantized.scale = largest / static_cast<float>((1 << (bits - 1)) - 1);
  std::ranges::transform(weights, quantized.codes.begin(), [&](float weight) {
    return static_cast<int8_t>(std::nearbyint(weight / quantized.scale));
  });
  return quantized;
}

}  // namespace fmp
