// SPDX-License-Identifier: MIT
#include "tools/synth/pulse.h"

#include <algorithm>
#include <cmath>

#include "tools/synth/deterministic_math.h"

namespace fmp::synth {

double raised_cosine(double t, double rolloff) {
  constexpr double kTiny = 1e-9;
  const double sinc = std::abs(t) < kTiny ? 1.0 : cos_sin_turns(t / 2).sin / (kPi * t);
  const double x = 2 * rolloff * t;
  const double denominator = 1 - x * x;
  if (std::abs(denominator) < kTiny) return sinc * kPi / 4;  // the limit at t = 1 / (2 rolloff)
  return sinc * cos_sin_turns(rolloff * t / 2).cos / denominator;
}

Pulse::Pulse(int sps, double rolloff, double fraction) : sps_(sps), taps_(2 * kSpan * sps + 1) {
  for (size_t j = 0; j < taps_.size(); ++j) {
    const double samples = static_cast<double>(j) - reach() - fraction;
    taps_[j] = static_cast<float>(raised_cosine(samples / sps, rolloff));
  }
}

int symbols_needed(int sps, int length) { return (length + sps - 1) / sps + 2 * Pulse::kSpan; }

void shape_symbols(std::span<const float> symbols, const Pulse& pulse, int start,
                   std::span<float> out) {
  const auto taps = pulse.taps();
  const int length = static_cast<int>(out.size());
  std::fill(out.begin(), out.end(), 0.0f);
  for (size_t k = 0; k < symbols.size(); ++k) {
    // One symbol adds its scaled pulse: the loop runs over independent outputs, so the compiler
    // vectorizes it and every output still sums its symbols in the same order.
    const int offset = (static_cast<int>(k) - Pulse::kSpan) * pulse.sps() + start - pulse.reach();
    const int begin = std::max(0, offset);
    const int end = std::min(length, offset + static_cast<int>(taps.size()));
    const float amplitude = symbols[k];
    if (amplitude == 0.0f) continue;
    const float* tap = taps.data() + (begin - offset);
    float* y = out.data() + begin;
    for (int n = 0; n < end - begin; ++n) y[n] += amplitude * tap[n];
  }
}

}  // namespace fmp::synth
