// SPDX-License-Identifier: MIT
#include "framework/synth/channel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "framework/deterministic_math.h"

namespace fmp::synth {
namespace {

constexpr int kMaxDelay = 24;   // samples; later echoes are left out
constexpr int kScatterers = 8;  // waves that make up one path: enough for a Gaussian amplitude

// A complex oscillation a * e^(2 pi j (f n + phase)), advanced sample by sample.
struct Oscillator {
  Oscillator(double amplitude, double frequency, double phase) {
    const CosSin start = cos_sin_turns(phase);
    const CosSin step = cos_sin_turns(frequency);
    re = amplitude * start.cos;
    im = amplitude * start.sin;
    step_re = step.cos;
    step_im = step.sin;
  }
  void advance() {
    const double r = re * step_re - im * step_im;
    im = re * step_im + im * step_re;
    re = r;
  }
  double re, im, step_re, step_im;
};

// One path of Clarke's model: waves from every direction, each with its own Doppler shift.
std::vector<Oscillator> scattered_path(double power, double doppler, Rng& rng) {
  std::vector<Oscillator> waves;
  for (int k = 0; k < kScatterers; ++k) {
    const double shift = doppler * cos_sin_turns(rng.uniform()).cos;
    waves.emplace_back(std::sqrt(power / kScatterers), shift, rng.uniform());
  }
  return waves;
}

// Convolves with a random impulse response of exponential power profile that changes with time. The
// mean power over all responses is 1; in a Rician channel the first path has a fixed part.
void fade(const ChannelConfig& config, Rng& rng, Signal& signal) {
  const int paths =
      std::clamp(static_cast<int>(std::ceil(4 * config.delay_spread)) + 1, 1, kMaxDelay + 1);
  std::vector<double> profile(paths);
  double total = 0;
  for (int d = 0; d < paths; ++d) {
    profile[d] = config.delay_spread > 0 ? exp_det(-d / config.delay_spread) : 1.0;
    total += profile[d];
  }
  const double k = config.fading == Fading::kRician ? power_ratio(config.rician_k_db) : 0.0;

  Signal faded(signal.length());
  for (int d = 0; d < paths; ++d) {
    auto waves = scattered_path(profile[d] / total / (1 + k), config.doppler, rng);
    if (d == 0 && k > 0) {
      const double shift = config.doppler * cos_sin_turns(rng.uniform()).cos;
      waves.emplace_back(std::sqrt(k / (1 + k)), shift, rng.uniform());
    }
    for (int n = d; n < signal.length(); ++n) {
      double re = 0, im = 0;
      for (Oscillator& wave : waves) {
        re += wave.re;
        im += wave.im;
        wave.advance();
      }
      const auto gain_re = static_cast<float>(re), gain_im = static_cast<float>(im);
      const float x = signal.i[n - d], y = signal.q[n - d];
      faded.i[n] += gain_re * x - gain_im * y;
      faded.q[n] += gain_re * y + gain_im * x;
    }
  }
  signal = std::move(faded);
}

// Weights of the six samples around a point `t` in [0, 1) between the third and fourth (Lagrange's
// polynomial of degree five: at 8 samples a symbol its error lies 90 dB below the signal).
std::array<float, 6> lagrange(double t) {
  std::array<float, 6> weights;
  for (int k = 0; k < 6; ++k) {
    double w = 1;
    for (int m = 0; m < 6; ++m) {
      if (m != k) w *= (t + 2 - m) / (k - m);
    }
    weights[k] = static_cast<float>(w);
  }
  return weights;
}

// Reads `in` with a clock that is off by `offset`, in step with it at the middle of the frame. The
// drift within a block of samples is far below what the interpolation resolves.
void resample(const Signal& in, double offset, Signal& out) {
  constexpr int kBlock = 8;
  const double middle = out.length() / 2.0;
  for (int first = 0; first < out.length(); first += kBlock) {
    const int count = std::min(kBlock, out.length() - first);
    const double drift = (first + kBlock / 2.0 - middle) * offset;
    const double whole = std::floor(drift);
    const auto w = lagrange(drift - whole);
    const int base = kMargin + first + static_cast<int>(whole) - 2;
    for (int n = 0; n < count; ++n) {
      const float* i = in.i.data() + base + n;
      const float* q = in.q.data() + base + n;
      out.i[first + n] =
          w[0] * i[0] + w[1] * i[1] + w[2] * i[2] + w[3] * i[3] + w[4] * i[4] + w[5] * i[5];
      out.q[first + n] =
          w[0] * q[0] + w[1] * q[1] + w[2] * q[2] + w[3] * q[3] + w[4] * q[4] + w[5] * q[5];
    }
  }
}

// Turns the signal by its carrier offset, starting at a random phase.
void rotate(double frequency, double phase, Signal& signal) {
  Oscillator carrier(1, frequency, phase);
  for (int n = 0; n < signal.length(); ++n) {
    const auto c = static_cast<float>(carrier.re), s = static_cast<float>(carrier.im);
    const float x = signal.i[n], y = signal.q[n];
    signal.i[n] = x * c - y * s;
    signal.q[n] = x * s + y * c;
    carrier.advance();
  }
}

// A phase that walks at random, as a free-running oscillator's does.
void walk_phase(double deviation, Rng& rng, Signal& signal) {
  double turns = 0;
  for (int n = 0; n < signal.length(); ++n) {
    turns += deviation / (2 * kPi) * rng.normal();
    const CosSin z = cos_sin_turns(turns);
    const auto c = static_cast<float>(z.cos), s = static_cast<float>(z.sin);
    const float x = signal.i[n], y = signal.q[n];
    signal.i[n] = x * c - y * s;
    signal.q[n] = x * s + y * c;
  }
}

}  // namespace

void propagate(const ChannelConfig& config, Rng& rng, Signal& in, Signal& out) {
  const double clock =
      std::clamp(config.sro * rng.normal(), -kMaxSampleRateOffset, kMaxSampleRateOffset);
  const double carrier = config.cfo * rng.normal();
  const double phase = rng.uniform();
  if (config.fading != Fading::kNone) fade(config, rng, in);
  resample(in, clock, out);
  rotate(carrier, phase, out);
  if (config.phase_noise > 0) walk_phase(config.phase_noise, rng, out);
}

void add_noise(double power, Rng& rng, Signal& signal) {
  const auto deviation = static_cast<float>(std::sqrt(power / 2));
  std::vector<float> noise(2 * static_cast<size_t>(signal.length()));
  rng.fill_normal(noise);
  const float* i = noise.data();
  const float* q = noise.data() + signal.length();
  for (int n = 0; n < signal.length(); ++n) {
    signal.i[n] += deviation * i[n];
    signal.q[n] += deviation * q[n];
  }
}

void imbalance(const ChannelConfig& config, Signal& signal) {
  if (config.iq_gain_db == 0 && config.iq_phase_degrees == 0) return;
  const auto gain = static_cast<float>(std::sqrt(power_ratio(config.iq_gain_db / 2)));
  const CosSin angle = cos_sin_turns(config.iq_phase_degrees / 720);  // half of it on each branch
  const auto c = static_cast<float>(angle.cos), s = static_cast<float>(angle.sin);
  for (int n = 0; n < signal.length(); ++n) {
    const float x = signal.i[n] * gain, y = signal.q[n] / gain;
    signal.i[n] = c * x + s * y;
    signal.q[n] = s * x + c * y;
  }
}

}  // namespace fmp::synth
