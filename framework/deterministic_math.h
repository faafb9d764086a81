// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// Elementary functions built from +, -, * and / alone, which IEEE 754 rounds the same everywhere.
// The C library's sin, cos, exp and log differ in their last bits between versions and processors;
// what is made from them would not be bit-identical on every machine. (std::sqrt and std::floor are
// exact by the standard and are used as they are.)
namespace fmp {

inline constexpr double kPi = 3.14159265358979323846;

struct CosSin {
  double cos, sin;
};

// cos and sin of 2*pi*turns; |error| < 1e-15 for |turns| < 2^20.
inline CosSin cos_sin_turns(double turns) {
  const double quarter = std::floor(turns * 4.0 + 0.5);
  const double x = (turns - quarter * 0.25) * (2.0 * kPi);  // in [-pi/4, pi/4]
  const double y = x * x;
  // Taylor series; the first term left out is below 1e-16 on this interval.
  const double s =
      x * (1.0 + y * (-1.0 / 6 +
                      y * (1.0 / 120 + y * (-1.0 / 5040 +
                                            y * (1.0 / 362880 + y * (-1.0 / 39916800 +
                                                                     y * (1.0 / 6227020800.0)))))));
  const double c =
      1.0 +
      y * (-1.0 / 2 +
           y * (1.0 / 24 +
                y * (-1.0 / 720 +
                     y * (1.0 / 40320 + y * (-1.0 / 3628800 + y * (1.0 / 479001600.0 +
                                                                   y * (-1.0 / 87178291200.0)))))));
  switch (static_cast<int64_t>(quarter) & 3) {
    case 0:
      return {c, s};
    case 1:
      return {-s, c};
    case 2:
      return {-c, -s};
    default:
      return {s, -c};
  }
}

// e^x, relative error < 1e-15, for -700 < x < 700.
inline double exp_det(double x) {
  constexpr double kLog2E = 1.44269504088896340736;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // low bits zero: n * kLn2High is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  const double n = std::floor(x * kLog2E + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;  // in [-ln2/2, ln2/2]
  double term = 1.0, sum = 1.0;
  for (int k = 1; k <= 14; ++k) {
    term *= r / k;
    sum += term;
  }
  const auto bits = static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52;
  return sum * std::bit_cast<double>(bits);
}

// 10^(db/10): a ratio in decibels as a ratio of powers.
inline double power_ratio(double db) { return exp_det(db * 0.23025850929940456840); }

// ln(x) for normal positive floats, |relative error| < 2e-7 (absolute near x = 1). Branch-free, so
// that the compiler can run it on a vector.
inline float log_det(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // mantissa then lies in [sqrt(1/2), sqrt(2))
  const float m = std::bit_cast<float>(bits - (exponent << 23));
  const float z = (m - 1.0f) / (m + 1.0f);  // ln(m) = 2 artanh(z), |z| < 0.172
  const float y = z * z;
  const float p = 2.0f * z * (1.0f + y * (1.0f / 3 + y * (1.0f / 5 + y * (1.0f / 7 + y / 9))));
  return static_cast<float>(exponent) * 0.69314718f + p;
}

}  // namespace fmp
