// SPDX-License-Identifier: MIT
// Gaussian minimum shift keying: bits of +-1, a rectangular frequency pulse of one symbol smoothed
// by a Gaussian of bandwidth-time product BT, a quarter turn of phase per bit.
#include <vector>

#include "framework/deterministic_math.h"
#include "framework/synth/families.h"

namespace fmp::synth {
namespace {

// At 0.3 and 0.35 networks trained on the real set see FM, from 0.7 on
// GMSK, every time.
constexpr double kBandwidthTime = 0.7;
constexpr int kPulseSymbols = 6;  // length of the smoothed pulse: at this BT it holds all but 1e-12

// The phase in turns that one bit adds from sample to sample; the sum is 1/4.
std::vector<double> phase_steps(int sps) {
  constexpr int kFine = 16;  // integration points per sample
  constexpr double kLn2 = 0.69314718055994530942;
  const double c = 2 * kPi * kPi * kBandwidthTime * kBandwidthTime / kLn2;
  std::vector<double> steps(kPulseSymbols * sps);
  double total = 0;
  for (size_t n = 0; n < steps.size(); ++n) {
    for (int k = 0; k < sps * kFine; ++k) {  // the rectangle, by its midpoints
      const double t = (static_cast<double>(n) + 0.5) / sps - kPulseSymbols / 2.0 - 0.5 +
                       (k + 0.5) / (sps * kFine);
      steps[n] += exp_det(-c * t * t);
    }
    total += steps[n];
  }
  for (double& step : steps) step *= 0.25 / total;
  return steps;
}

// phase_steps(sps); each thread keeps those that it asked for last, which take longer to find
// than a frame to make.
const std::vector<double>& cached_phase_steps(int sps) {
  thread_local std::vector<double> steps;
  if (steps.size() != static_cast<size_t>(kPulseSymbols * sps)) steps = phase_steps(sps);
  return steps;
}

class Gmsk : public Modulation {
 public:
  Gmsk() : Modulation("GMSK") {}

  Moments moments(const Shape&) const override { return {1, 1}; }

  void modulate(const Shape& shape, Rng& rng, Signal& out) const override {
    const auto start = static_cast<int>(shape.timing);
    const std::vector<double>& steps = cached_phase_steps(shape.sps);
    const int length = out.length();
    std::vector<double> frequency(length);
    for (int first = start - kPulseSymbols * shape.sps; first < length; first += shape.sps) {
      const double sign = (rng.bits() >> 31) ? 1.0 : -1.0;
      for (int j = 0; j < kPulseSymbols * shape.sps; ++j) {
        const int n = first + j;
        if (n >= 0 && n < length) frequency[n] += sign * steps[j];
      }
    }
    double phase = 0;
    for (int n = 0; n < length; ++n) {
      const CosSin z = cos_sin_turns(phase);
      out.i[n] = static_cast<float>(z.cos);
      out.q[n] = static_cast<float>(z.sin);
      phase += frequency[n];
    }
  }
};

}  // namespace

Modulations minimum_shift_keying() {
  Modulations family;
  family.push_back(std::make_unique<Gmsk>());
  return family;
}

}  // namespace fmp::synth
