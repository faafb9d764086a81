// SPDX-License-Identifier: MIT
#include "kernels/cpu/code_line.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace fmp::cpu {
namespace {

// Products and sums stay in the range of 32-bit integers with room to spare.
constexpr double kLargestValue = 1e9;
// Of the distance between two codes: as far as a line may be off.
constexpr float kLargestGap = 0.5F;

// Offsets between which every line of a slope has the right code at and below each threshold; if
// low > high there is none, and each is right on its side.
struct Offsets {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  double width() const { return high - low; }
};

// steps: the thresholds of the codes first + 1, first + 2, ...
Offsets offsets_of(std::span<const int32_t> steps, int first, double slope) {
  Offsets offsets;
  double code = first;
  for (const int32_t step : steps) {
    code += 1;
    offsets.low = std::max(offsets.low, code - slope * step);
    offsets.high = std::min(offsets.high, code - slope * (static_cast<double>(step) - 1));
  }
  return offsets;
}

// The slope that leaves most room for the offset; the room is a concave function of it.
double best_slope(std::span<const int32_t> steps, int first) {
  const double span = static_cast<double>(steps.back()) - steps.front();
  const double middle = static_cast<double>(std::max<size_t>(steps.size() - 1, 1)) / (span + 1);
  double low = middle / 2, high = middle * 2;
  // Golden sections, so that one of two points is known already, up to the precision of a float.
  constexpr double kSection = 0.6180339887498949, kPrecision = 0x1p-26;
  const auto room = [&](double slope) { return offsets_of(steps, first, slope).width(); };
  double a = high - kSection * (high - low), b = low + kSection * (high - low);
  double at_a = room(a), at_b = room(b);
  while (high - low > kPrecision * high) {
    if (at_a < at_b) {
      low = std::exchange(a, b);
      at_a = at_b;
      b = low + kSection * (high - low);
      at_b = room(b);
    } else {
      high = std::exchange(b, a);
      at_b = at_a;
      a = high - kSection * (high - low);
      at_a = room(a);
    }
  }
  return (low + high) / 2;
}

float value_on_line(float multiplier, float offset, int32_t sum) {
  return std::fma(static_cast<float>(sum), multiplier, offset);
}

// No threshold is reached too early.
bool below(std::span<const int32_t> steps, int first, float multiplier, float offset) {
  for (const int32_t step : steps) {
    if (value_on_line(multiplier, offset, step - 1) >= static_cast<float>(++first)) return false;
  }
  return true;
}

// None is reached too late.
bool above(std::span<const int32_t> steps, int first, float multiplier, float offset) {
  for (const int32_t step : steps) {
    if (value_on_line(multiplier, offset, step) < static_cast<float>(++first)) return false;
  }
  return true;
}

// The first of offset, offset + direction * 2^-17, twice that, ... that is `right`; infinite if it
// is far away.
template <typename Right>
float nearest(double offset, float direction, const Right& right) {
  constexpr float kUnit = 0x1p-17F;
  constexpr int kDoublings = 17;  // less than the distance between two codes
  if (!std::isfinite(offset)) return std::numeric_limits<float>::infinity();
  const float start = static_cast<float>(offset);
  if (right(start)) return start;
  for (int doublings = 0; doublings < kDoublings; ++doublings) {
    const float moved = start + direction * std::ldexp(kUnit, doublings);
    if (right(moved)) return moved;
  }
  return std::numeric_limits<float>::infinity();
}

}  // namespace

int code_on_line(const CodeLine& line, float offset, int32_t sum) {
  const float value = value_on_line(line.multiplier, offset, sum);
  return std::clamp(static_cast<int>(value), line.smallest, line.largest);
}

CodeLine fit_code_line(std::span<const int32_t> thresholds, int32_t base, int32_t top,
                       int64_t largest_sum) {
  const auto begin = std::ranges::upper_bound(thresholds, base);
  const auto end = std::upper_bound(begin, thresholds.end(), top);
  const int first = static_cast<int>(begin - thresholds.begin());
  const std::span<const int32_t> steps(begin, end);
  CodeLine line;
  line.smallest = first;
  line.largest = first + static_cast<int>(steps.size());
  line.low = line.high = static_cast<float>(first);
  if (steps.empty()) return line;

  const CodeLine constant = line;
  line.multiplier = static_cast<float>(best_slope(steps, first));
  const Offsets offsets = offsets_of(steps, first, line.multiplier);
  const auto is_below = [&](float b) { return below(steps, first, line.multiplier, b); };
  const auto is_above = [&](float b) { return above(steps, first, line.multiplier, b); };
  line.low = nearest((offsets.low + offsets.high) / 2, -1, is_below);
  line.high = line.low;
  if (!is_above(line.low)) {
    line.kind = CodeLine::kLook;
    line.low = nearest(std::min(offsets.low, offsets.high), -1, is_below);
    line.high = nearest(std::max(offsets.low, offsets.high), 1, is_above);
  }
  const double largest = line.multiplier * static_cast<double>(largest_sum);
  const bool usable = std::isfinite(line.low) && std::isfinite(line.high) &&
                      line.high - line.low < kLargestGap &&
                      largest + std::fabs(line.low) < kLargestValue;
  if (usable) return line;
  line = constant;
  line.kind = CodeLine::kSearch;
  line.low = static_cast<float>(line.smallest);
  line.high = static_cast<float>(line.largest);
  return line;
}

}  // namespace fmp::cpu
