// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

namespace fmp::synth {

// Raised cosine with roll-off `rolloff`, at `t` symbols from its centre: 1 at 0, 0 at every other
// whole number. What two root-raised-cosine filters, the transmitter's and the receiver's, make.
double raised_cosine(double t, double rolloff);

// A pulse sampled `sps` times a symbol and cut off `kSpan` symbols either side.
class Pulse {
 public:
  // `fraction` in [0, 1): how far the pulse's centre lies beyond a sample instant, in samples.
  Pulse(int sps, double rolloff, double fraction);

  int sps() const { return sps_; }
  // taps()[j] is the pulse at sample j - reach() relative to the sample at or before the centre.
  std::span<const float> taps() const { return taps_; }
  int reach() const { return kSpan * sps_; }

  static constexpr int kSpan = 12;  // at roll-off 0.1 what is cut off lies 50 dB below the peak

 private:
  int sps_;
  std::vector<float> taps_;
};

// Symbols that reach into `length` samples when the first one's pulse ends at the first sample.
int symbols_needed(int sps, int length);

// out[n] = sum over k of symbols[k] * pulse(n - (k - kSpan) * sps - start): symbol kSpan is centred
// `start` samples (and the pulse's fraction) into `out`.
void shape_symbols(std::span<const float> symbols, const Pulse& pulse, int start,
                   std::span<float> out);

}  // namespace fmp::synth
