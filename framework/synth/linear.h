// SPDX-License-Identifier: MIT
#pragma once

#include <complex>
#include <string>
#include <vector>

#include "framework/synth/modulation.h"

namespace fmp::synth {

using Constellation = std::vector<std::complex<double>>;

// `count` points on a circle, the first at the angle `phase` (in turns).
Constellation ring(int count, double radius, double phase);

// Several rings together.
struct Ring {
  int count;
  double radius;
  double phase;  // of its first point, in turns
};
Constellation rings(const std::vector<Ring>& layout);

// A ring whose points mirror at both axes and both diagonals: `angles`, in turns, of those between
// 0 and 1/8 of a turn.
Constellation mirrored_ring(double radius, const std::vector<double>& angles);

// Independent, equally likely symbols of a constellation, shaped by a raised cosine. The points are
// used as they are given: the receiver's normalisation takes their power out.
class LinearModulation : public Modulation {
 public:
  // `q_delay`: by how much the quadrature rail lags, in symbols (1/2 for offset QPSK).
  LinearModulation(std::string name, Constellation points, double q_delay = 0);

  const Constellation& points() const { return points_; }
  Moments moments(const Shape& shape) const override;
  void modulate(const Shape& shape, Rng& rng, Signal& out) const override;

 private:
  Constellation points_;
  double q_delay_;
};

}  // namespace fmp::synth
