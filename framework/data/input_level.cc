// SPDX-License-Identifier: MIT
#include "framework/data/input_level.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/tile.h"

namespace fmp {
namespace {

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

}  // namespace

void InputLevel::add(std::span<const float> frame, const InputQuantizer& input) {
  bits_ = input.bits;
  double i = 0, q = 0, power = 0;
  for (size_t n = 0; n + 1 < frame.size(); n += 2) {
    const double x = static_cast<double>(frame[n]), y = static_cast<double>(frame[n + 1]);
    i += x;
    q += y;
    power += x * x + y * y;
  }
  i_ += i;
  q_ += q;
  power_ += power;
  values_ += static_cast<int64_t>(frame.size());
  if (input.bits == kFloatBits) return;
  // Half a code away from the neighbours, where quantize_input() rounds to even: to 0 and the
  // lowest code, but not to the highest.
  const float code = input.scale, range = code * static_cast<float>(1 << (input.bits - 1));
  const float zero = code / 2, lowest = -range + code / 2, highest = range - 1.5F * code;
  int64_t zeros = 0, limits = 0;
  for (const float v : frame) {
    zeros += std::abs(v) <= zero ? 1 : 0;
    limits += v <= lowest || v > highest ? 1 : 0;
  }
  zeros_ += zeros;
  limits_ += limits;
}

void InputLevel::add(const InputLevel& other) {
  values_ += other.values_;
  zeros_ += other.zeros_;
  limits_ += other.limits_;
  silent_frames_ += other.silent_frames_;
  clipped_values_ += other.clipped_values_;
  if (other.bits_ != 0) bits_ = other.bits_;
  i_ += other.i_;
  q_ += other.q_;
  power_ += other.power_;
}

double InputLevel::deviation() const {
  if (values_ == 0) return 0;
  const double samples = static_cast<double>(values_) / 2;
  const double i = i_ / samples, q = q_ / samples;
  return std::sqrt(std::max(0.0, power_ / samples - i * i - q * q));
}

double InputLevel::share_of_zeros() const { return share(zeros_, values_); }
double InputLevel::share_at_limits() const { return share(limits_, values_); }

std::vector<std::string> InputLevel::warnings(const std::string& name, int64_t frames) const {
  // Means count as well: with its carriers and one-sided amplitudes a whole RadioML set has about
  // 2, and 5 % of its 4-bit codes are at the limits.
  constexpr double kFactor = 3, kMostAtLimits = 0.1, kMostClipped = 0.01;
  constexpr int kFewBits = 3;  // at which the limits are ordinary codes
  std::vector<std::string> lines;
  if (values_ == 0) return lines;
  const bool quantized = bits_ != kFloatBits;
  const bool off_level = deviation() < 1 / kFactor || deviation() > kFactor;
  if (off_level || (quantized && bits_ > kFewBits && share_at_limits() > kMostAtLimits)) {
    std::string line = fmt::format(
        "{}: the samples have a deviation of {:.3g}, networks are made for 1", name, deviation());
    if (quantized) {
      line += fmt::format("; of the {}-bit input codes {:.1f} % are 0 and {:.1f} % at the limits",
                          bits_, 100 * share_of_zeros(), 100 * share_at_limits());
    }
    lines.push_back(line);
  }
  if (share(clipped_values_, values_) > kMostClipped) {
    lines.push_back(fmt::format(
        "{}: {:.1f} % of the stored integers are at the limits of their type: they were clipped",
        name, 100 * share(clipped_values_, values_)));
  }
  if (silent_frames_ > 0) {
    lines.push_back(
        fmt::format("{}: {} of {} frames hold nothing but zeros", name, silent_frames_, frames));
  }
  return lines;
}

}  // namespace fmp
