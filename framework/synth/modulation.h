// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/synth/rng.h"

namespace fmp::synth {

// Complex baseband samples, in-phase and quadrature apart.
struct Signal {
  explicit Signal(int length) : i(length), q(length) {}
  int length() const { return static_cast<int>(i.size()); }
  std::vector<float> i, q;
};

// What the transmitter of one frame draws at random or takes from the configuration.
struct Shape {
  int sps = 8;         // samples per symbol; analog classes scale their bandwidth by it
  double rolloff = 0;  // of the two root-raised-cosine filters
  int span = 8;        // length of each of them, in symbols
  double timing = 0;   // where the first symbol's centre lies, in samples, [0, sps)
};

// Long-run averages of the noise-free signal.
struct Moments {
  double power = 0;  // E |x|^2 over all samples: what the SNR refers to
  // The variance that the receiver scales to 1, without the mean (the share of a carrier). For
  // pulse-shaped symbols it is that of the symbols; between their instants the signal's is less.
  double variance = 0;
};

// A transmitter of one class.
class Modulation {
 public:
  explicit Modulation(std::string name) : name_(std::move(name)) {}
  virtual ~Modulation() = default;

  const std::string& name() const { return name_; }
  virtual Moments moments(const Shape& shape) const = 0;
  // Writes all of `out`, without noise or any effect of the channel.
  virtual void modulate(const Shape& shape, Rng& rng, Signal& out) const = 0;

 private:
  std::string name_;
};

using Modulations = std::vector<std::unique_ptr<Modulation>>;

// The modulations of every family, in the order of the one-hot labels: RadioML's 24 classes first.
// A new class: one file with a function like those in families.h, and its line in modulation.cc.
const Modulations& modulations();

// Index of the class of this name. Throws UsageError that lists the names when there is none.
int class_index(const std::string& name);

}  // namespace fmp::synth
