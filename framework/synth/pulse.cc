// SPDX-License-Identifier: MIT
#include "framework/synth/pulse.h"

#include <algorithm>
#include <cmath>

#include "framework/deterministic_math.h"

namespace fmp::synth {

namespace {

constexpr int kGrid = 128;  // table entries per symbol: linear interpolation is good to 1e-4

// Hamming's window, from 0.08 at `position` 0 over 1 at 1/2 to 0.08 at 1.
double hamming(double position) { return 0.54 - 0.46 * cos_sin_turns(position).cos; }

}  // namespace

double root_raised_cosine(double t, double rolloff) {
  constexpr double kTiny = 1e-9;
  const double x = 4 * rolloff * t;
  if (std::abs(t) < kTiny) return 1 + rolloff * (4 / kPi - 1);
  const double denominator = kPi * t * (1 - x * x);
  if (std::abs(1 - x * x) < kTiny) {  // the limit at t = 1 / (4 rolloff)
    const CosSin z = cos_sin_turns(1 / (8 * rolloff));
    return rolloff / std::sqrt(2.0) * ((1 + 2 / kPi) * z.sin + (1 - 2 / kPi) * z.cos);
  }
  return (cos_sin_turns(t * (1 - rolloff) / 2).sin + x * cos_sin_turns(t * (1 + rolloff) / 2).cos) /
         denominator;
}

FilterPair::FilterPair(double rolloff, int span) : rolloff_(rolloff), span_(span) {
  const int points = span * kGrid;  // of one filter, but for its last one
  std::vector<double> filter(static_cast<size_t>(points) + 1);
  for (int n = 0; n <= points; ++n)
    filter[static_cast<size_t>(n)] = root_raised_cosine((n - points / 2.0) / kGrid, rolloff) *
                                     hamming(static_cast<double>(n) / points);
  table_.resize(2 * static_cast<size_t>(points) + 1);
  for (int n = 0; n <= 2 * points; ++n) {
    double sum = 0;
    for (int k = std::max(0, n - points); k <= std::min(n, points); ++k)
      sum += filter[static_cast<size_t>(k)] * filter[static_cast<size_t>(n - k)];
    table_[static_cast<size_t>(n)] = sum;
  }
  const double peak = table_[static_cast<size_t>(points)];
  for (double& value : table_) {
    value /= peak;
    area_ += value / kGrid;
    energy_ += value * value / kGrid;
  }
}

double FilterPair::at(double t) const {
  const double position = (t + span_) * kGrid;
  if (!(position >= 0) || position >= static_cast<double>(table_.size() - 1)) return 0;
  const auto below = static_cast<size_t>(position);
  const double share = position - static_cast<double>(below);
  return table_[below] + share * (table_[below + 1] - table_[below]);
}

const FilterPair& FilterPair::get(double rolloff, int span) {
  thread_local FilterPair last(rolloff, span);
  if (last.rolloff_ != rolloff || last.span_ != span) last = FilterPair(rolloff, span);
  return last;
}

Pulse::Pulse(const FilterPair& filters, int sps, double fraction)
    : sps_(sps), span_(filters.span()), taps_(2 * filters.span() * sps + 1) {
  for (size_t j = 0; j < taps_.size(); ++j)
    taps_[j] = static_cast<float>(filters.at((static_cast<double>(j) - reach() - fraction) / sps));
}

int symbols_needed(int sps, int span, int length) { return (length + sps - 1) / sps + 2 * span; }

void shape_symbols(std::span<const float> symbols, const Pulse& pulse, int start,
                   std::span<float> out) {
  const auto taps = pulse.taps();
  const int length = static_cast<int>(out.size());
  std::fill(out.begin(), out.end(), 0.0f);
  for (size_t k = 0; k < symbols.size(); ++k) {
    // One symbol adds its scaled pulse: the loop runs over independent outputs, so the compiler
    // vectorizes it and every output still sums its symbols in the same order.
    const int offset = (static_cast<int>(k) - pulse.span()) * pulse.sps() + start - pulse.reach();
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
