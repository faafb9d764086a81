// SPDX-License-Identifier: MIT
#include "experiments/format.h"

#include <fmt/format.h>

#include <cmath>

namespace fmp {

std::string format_count(int64_t value) {
  std::string digits = std::to_string(value);
  const size_t sign = value < 0 ? 1 : 0;
  for (size_t end = digits.size(); end > sign + 3; end -= 3) digits.insert(end - 3, 1, ',');
  return digits;
}

std::string format_percent(double fraction) { return fmt::format("{:.2f}%", 100 * fraction); }

std::string format_duration(double seconds) {
  const auto whole_seconds = static_cast<int64_t>(std::llround(seconds));
  const int64_t hours = whole_seconds / 3600, minutes = whole_seconds / 60 % 60;
  if (hours > 0) return fmt::format("{} h {} min", hours, minutes);
  if (minutes > 0) return fmt::format("{} min {} s", minutes, whole_seconds % 60);
  return fmt::format("{:.1f} s", seconds);
}

}  // namespace fmp
