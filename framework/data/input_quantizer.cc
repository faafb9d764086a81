// SPDX-License-Identifier: MIT
#include "framework/data/input_quantizer.h"

#include <bit>

#include "framework/error.h"

namespace fmp {
namespace {

template <typename ToCodes>
void quantize(std::span<const float> values, int bits, int8_t* codes, const ToCodes& in_codes) {
  const float levels = static_cast<float>(1 << (bits - 1));
  const float lowest = -levels, highest = levels - 1;
  // Adding 1.5 * 2^23 leaves no fraction bits: the sum is rounded half to even, and its low byte is
  // the integer in two's complement. Unlike nearbyint() this is plain vector code on any CPU.
  constexpr float kRound = 0x1.8p23F;
  for (size_t i = 0; i < values.size(); ++i) {
    float x = in_codes(values[i]);
    x = x < lowest ? lowest : x;  // the bounds are integers: clamping first rounds to the same
    x = x > highest ? highest : x;
    codes[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(x + kRound));
  }
}

}  // namespace

void quantize_input(std::span<const float> values, const InputQuantizer& quantizer, int8_t* codes) {
  const int bits = quantizer.bits;
  const float scale = quantizer.scale;
  if (bits < 2 || bits > 8) fail("input bits are {}, expected 2 to 8", bits);
  if (scale == input_scale(bits)) {  // a power of two: the product is exact, and faster
    quantize(values, bits, codes, [inverse = 1 / scale](float value) { return value * inverse; });
  } else {
    quantize(values, bits, codes, [scale](float value) { return value / scale; });
  }
}

void quantize_input(std::span<const float> values, int input_bits, int8_t* codes) {
  if (input_bits < 2 || input_bits > 8) fail("input bits are {}, expected 2 to 8", input_bits);
  quantize_input(values, InputQuantizer::of(input_bits), codes);
}

}  // namespace fmp
