// SPDX-License-Identifier: MIT
#include "framework/synth/linear.h"

#include <cmath>

#include "framework/deterministic_math.h"
#include "framework/synth/pulse.h"

namespace fmp::synth {
namespace {

// Deviation of the symbols after the receiver's scaling: found by asking networks trained on the
// real set, which accept 0.98 to 1.02.
constexpr double kSymbolLevel = 1.0;

// Shapes one rail whose first symbol is centred at `timing` samples.
void shape_rail(std::span<const float> symbols, const Shape& shape, double timing,
                std::span<float> out) {
  const double start = std::floor(timing);
  const Pulse pulse(FilterPair::get(shape.rolloff, shape.span), shape.sps, timing - start);
  shape_symbols(symbols, pulse, static_cast<int>(start), out);
}

}  // namespace

Constellation ring(int count, double radius, double phase) {
  Constellation points;
  for (int k = 0; k < count; ++k) {
    const CosSin z = cos_sin_turns(phase + static_cast<double>(k) / count);
    points.emplace_back(radius * z.cos, radius * z.sin);
  }
  return points;
}

Constellation rings(const std::vector<Ring>& layout) {
  Constellation points;
  for (const Ring& r : layout) {
    const Constellation circle = ring(r.count, r.radius, r.phase);
    points.insert(points.end(), circle.begin(), circle.end());
  }
  return points;
}

Constellation mirrored_ring(double radius, const std::vector<double>& angles) {
  Constellation points;
  for (double angle : angles) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (double a : {angle, 0.25 - angle}) {
        const CosSin z = cos_sin_turns(0.25 * quarter + a);
        points.emplace_back(radius * z.cos, radius * z.sin);
      }
    }
  }
  return points;
}

LinearModulation::LinearModulation(std::string name, Constellation points, double q_delay)
    : Modulation(std::move(name)), points_(std::move(points)), q_delay_(q_delay) {}

Moments LinearModulation::moments(const Shape& shape) const {
  std::complex<double> mean = 0;
  double power = 0;
  for (const auto& point : points_) {
    mean += point;
    power += std::norm(point);
  }
  const double count = static_cast<double>(points_.size());
  const double mean_power = std::norm(mean / count);
  const double variance = power / count - mean_power;
  const FilterPair& pulse = FilterPair::get(shape.rolloff, shape.span);
  return {variance * pulse.energy() + mean_power * pulse.area() * pulse.area(),
          variance / (kSymbolLevel * kSymbolLevel)};
}

void LinearModulation::modulate(const Shape& shape, Rng& rng, Signal& out) const {
  // One more than fills the frame: a delayed rail starts up to a symbol late.
  const int count = symbols_needed(shape.sps, shape.span, out.length()) + 1;
  std::vector<float> i(count), q(count);
  for (int k = 0; k < count; ++k) {
    const auto& point = points_[rng.below(static_cast<uint32_t>(points_.size()))];
    i[k] = static_cast<float>(point.real());
    q[k] = static_cast<float>(point.imag());
  }
  shape_rail(i, shape, shape.timing, out.i);
  shape_rail(q, shape, shape.timing + q_delay_ * shape.sps, out.q);
}

}  // namespace fmp::synth
