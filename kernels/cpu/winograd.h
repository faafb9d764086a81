// SPDX-License-Identifier: MIT
// Fast convolution of three taps: four outputs from six products instead of twelve (S. Winograd,
// "Arithmetic complexity of computations", 1980; A. Lavin, S. Gray, "Fast algorithms for
// convolutional neural networks", 2016), here along time with the batch as a mere bystander.
//
// Rows 4g .. 4g + 5 of the data are evaluated, as polynomials are, at kPoints points (0, 1, -1, 2,
// -2, infinity), and so are the weights; at each point the convolution is then a product of a
// [O][C] matrix with the channels of a group. Three uses:
//   forward          on 16-bit integers, with weights scaled by 24 so that all of it is exact: sums
//                    may wrap around in 32 bits, the result 24 y does not, and its division by 24
//                    is a shift and a multiplication with the inverse of 3;
//   backward data    in float, on dy;
//   backward weight  in float: three outputs (the taps) from four dy's and six x's.
#pragma once

#include <array>
#include <cstdint>

namespace fmp::cpu::winograd {

inline constexpr int kOutputs = 4;  // positions of a group
inline constexpr int kTaps = 3;
inline constexpr int kPoints = kOutputs + kTaps - 1;

// Whether there are enough channels on each side that this, or a matrix product, pays.
inline bool many_channels(int64_t out_channels, int64_t in_channels) {
  constexpr int64_t kMany = 8;
  return out_channels >= kMany && in_channels >= kMany;
}

inline int groups(int rows) { return (rows + kOutputs - 1) / kOutputs; }
// Rows of data that `groups` groups read.
inline int data_rows(int groups) { return groups * kOutputs + kTaps - 1; }

// 24 times the weights at the points.
inline constexpr int kWeightDenominator = 24;
template <typename T>
std::array<T, kPoints> weights_at_points(T w0, T w1, T w2) {
  return {
      6 * w0, -4 * (w0 + w1 + w2), -4 * (w0 - w1 + w2), w0 + 2 * w1 + 4 * w2, w0 - 2 * w1 + 4 * w2,
      24 * w2};
}

// The gradients of three taps from the sums of products at the points, those of dy being evaluated
// without its denominators.
inline std::array<float, kTaps> tap_gradients(const std::array<float, kPoints>& s) {
  const float p0 = s[0] / 4, p1 = s[1] / -6, p2 = s[2] / -6, p3 = s[3] / 24, p4 = s[4] / 24;
  return {p0 + (p1 + p2) + (p3 + p4), (p1 - p2) + 2 * (p3 - p4), (p1 + p2) + 4 * (p3 + p4) + s[5]};
}

}  // namespace fmp::cpu::winograd
