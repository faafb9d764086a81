// SPDX-License-Identifier: MIT
// The percentile of a batch's activations, which a quantizer's threshold follows in the first
// training steps: of values after a ReLU, or of magnitudes where codes are signed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/communicator.h"
#include "kernels/cpu/simd.h"
#include "kernels/layer.h"

namespace fmp::cpu {

// How many elements are not below the percentile of n: it is the k-th smallest, k = floor(0.01 q n
// + 0.5), one of the few largest. Those are collected.
inline size_t elements_from_percentile(double n) {
  return static_cast<size_t>(n - std::floor(0.01 * kThresholdPercentile * n + 0.5)) + 1;
}

// The largest elements of one item with their places, at least the `wanted` largest.
struct LargestElements {
  struct Element {
    float value;  // with its sign
    int64_t row;
    int32_t channel_lane;

    float magnitude() const { return std::fabs(value); }
  };
  // Descending magnitude, then place: among equals the first one is taken, whatever was collected
  // when.
  static bool before(const Element& a, const Element& b) {
    if (a.magnitude() != b.magnitude()) return a.magnitude() > b.magnitude();
    if (a.row != b.row) return a.row < b.row;
    return a.channel_lane < b.channel_lane;
  }
  std::vector<Element> elements;
  float at_least = std::numeric_limits<float>::min();  // zeros do not matter

  // Takes the elements of one row of values gain * y + shift of some channels, the first `lanes`
  // lanes of each. magnitudes: negative ones count, too. row: of the batch's.
  void add_row(const Sums& sums, const ChannelAffine& affine, bool magnitudes, int lanes,
               int64_t row, int first_channel, size_t wanted);
};

// The element that is the percentile.
struct Percentile {
  float threshold = kMinQuantizerRange;  // its magnitude, or this where it is smaller
  float value = 0;
  int64_t row = -1;  // -1: none, the percentile is 0
  int channel = 0, lane = 0;
};
Percentile percentile_of(const std::vector<LargestElements>& items, size_t wanted,
                         Communicator* ranks);

}  // namespace fmp::cpu
