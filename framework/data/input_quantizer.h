// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tile.h"

namespace fmp {

// The input quantizer covers [-kInputRange, kInputRange), but in networks from elsewhere.
inline constexpr float kInputRange = 2.0F;

// Value of an input code of 1: a power of two. input_bits: 2..8.
constexpr float input_scale(int input_bits) {
  return kInputRange / static_cast<float>(1 << (input_bits - 1));
}

// How the samples of a frame become codes.
struct InputQuantizer {
  int bits = 8;                  // 2..8; kFloatBits: they stay values
  float scale = input_scale(8);  // value of a code of 1, above 0; 1 for values

  // given: a scale, or 0 for the usual one.
  static constexpr InputQuantizer of(int bits, float given = 0) {
    if (bits == kFloatBits) return {bits, 1};
    return {bits, given != 0 ? given : input_scale(bits)};
  }
  bool operator==(const InputQuantizer&) const = default;
};

// codes[i] = clamp(round_half_even(values[i] / scale), -2^(b-1), 2^(b-1) - 1) with b = bits (2..8).
// Values must be finite; `codes` holds values.size() elements.
void quantize_input(std::span<const float> values, const InputQuantizer& quantizer, int8_t* codes);
// The same with the usual scale, input_scale(input_bits).
void quantize_input(std::span<const float> values, int input_bits, int8_t* codes);

}  // namespace fmp
