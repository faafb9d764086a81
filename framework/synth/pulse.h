// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

namespace fmp::synth {

// Root-raised-cosine pulse of energy 1 with roll-off `rolloff` > 0, `t` symbols from its centre.
double root_raised_cosine(double t, double rolloff);

// What two root-raised-cosine filters make, the transmitter's and the receiver's, each `span`
// symbols long under a Hamming window; scaled to 1 at the centre. With long filters it is the
// raised cosine, 0 at every other symbol; short ones pass less of the roll-off, so that the pulse
// is a little wider and leaves a few percent at its neighbours.
class FilterPair {
 public:
  FilterPair(double rolloff, int span);

  int span() const { return span_; }
  double at(double t) const;                 // t symbols from the centre
  double area() const { return area_; }      // integral over t
  double energy() const { return energy_; }  // integral of the square

  // The pair of these parameters; each thread keeps the one that it asked for last.
  static const FilterPair& get(double rolloff, int span);

 private:
  double rolloff_;
  int span_;
  double area_ = 0, energy_ = 0;
  std::vector<double> table_;  // from -span to span symbols
};

// The pulse of a filter pair, sampled `sps` times a symbol.
class Pulse {
 public:
  // `fraction` in [0, 1): how far the pulse's centre lies beyond a sample instant, in samples.
  Pulse(const FilterPair& filters, int sps, double fraction);

  int sps() const { return sps_; }
  // taps()[j] is the pulse at sample j - reach() relative to the sample at or before the centre.
  std::span<const float> taps() const { return taps_; }
  int span() const { return span_; }  // symbols that it reaches to on either side
  int reach() const { return span_ * sps_; }

 private:
  int sps_, span_;
  std::vector<float> taps_;
};

// Symbols that reach into `length` samples when the first one's pulse ends at the first sample.
int symbols_needed(int sps, int span, int length);

// out[n] = sum over k of symbols[k] * pulse(n - (k - span) * sps - start): symbol number span is
// centred `start` samples (and the pulse's fraction) into `out`.
void shape_symbols(std::span<const float> symbols, const Pulse& pulse, int start,
                   std::span<float> out);

}  // namespace fmp::synth
