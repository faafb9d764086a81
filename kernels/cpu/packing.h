// SPDX-License-Identifier: MIT
// Weights of a convolution from any storage, value(o, t, c), to the forms that kernels read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/winograd.h"

namespace fmp::cpu {

// Appends the weights in the order of DensePairWeights.
template <typename Value>
void pack_pairs(int out, int taps, int channels, const Value& value, std::vector<int16_t>& packed) {
  for (int block = 0; block < out; block += kOutBlock) {
    const int end = std::min(out, block + kOutBlock);
    for (int t = 0; t < taps; ++t) {
      for (int c = 0; c < channels; c += 2) {
        for (int o = block; o < end; ++o) {
          packed.push_back(static_cast<int16_t>(value(o, t, c)));
          packed.push_back(c + 1 < channels ? static_cast<int16_t>(value(o, t, c + 1))
                                            : int16_t{0});
        }
      }
    }
  }
}

// `value` (o, t, c) at each of Winograd's points in turn: pack(point, value_at_point).
template <typename Value, typename Pack>
void pack_points(const Value& value, const Pack& pack) {
  for (size_t point = 0; point < winograd::kPoints; ++point) {
    pack([&](int o, int /*tap*/, int c) {
      return winograd::weights_at_points(value(o, 0, c), value(o, 1, c), value(o, 2, c))[point];
    });
  }
}

}  // namespace fmp::cpu
