// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "framework/synth/modulation.h"
#include "framework/synth/rng.h"

namespace fmp::synth {

enum class Fading { kNone, kRayleigh, kRician };

// What happens to a signal between transmitter and receiver. The offsets are RadioML's; what is off
// by default is not in the real set and serves robustness studies.
struct ChannelConfig {
  double cfo = 1e-4;  // standard deviation of the carrier offset, cycles per sample
  double sro = 1e-4;  // standard deviation of the sample clock's relative error
  Fading fading = Fading::kNone;
  double rician_k_db = 6;       // power of the direct path over the scattered ones
  double delay_spread = 1;      // of the exponential delay profile, samples
  double doppler = 1e-4;        // largest Doppler shift, cycles per sample
  double iq_gain_db = 0;        // in-phase over quadrature gain of the receiver
  double iq_phase_degrees = 0;  // departure of its two branches from a right angle
  double phase_noise = 0;       // deviation of the oscillators' phase walk, radians per sample
};

// Samples that a frame's signal is made longer by at each end: what delays, the interpolator and a
// drifting clock reach for.
inline constexpr int kMargin = 48;
inline constexpr double kMaxSampleRateOffset = 0.02;

// Passes the noise-free `in` (out.length() + 2 * kMargin samples) through fading, clock offset,
// carrier offset with a random phase, and phase noise. Keeps the mean power.
void propagate(const ChannelConfig& config, Rng& rng, Signal& in, Signal& out);

// Adds white circular Gaussian noise of this power E |n|^2 (both rails together).
void add_noise(double power, Rng& rng, Signal& signal);

// The receiver's mismatch between its two branches.
void imbalance(const ChannelConfig& config, Signal& signal);

}  // namespace fmp::synth
