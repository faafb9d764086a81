// SPDX-License-Identifier: MIT
// Phase shift keying: points on the unit circle; and offset QPSK, whose quadrature rail lags by
// half a symbol. Its points lie on the axes, so that each symbol is one on one rail and zero on the
// other: unusual, but what the real set holds. (Networks trained on it never call the textbook's
// points, on the diagonals, OQPSK.)
#include "framework/synth/families.h"
#include "framework/synth/linear.h"

namespace fmp::synth {

Modulations phase_shift_keying() {
  Modulations family;
  family.push_back(std::make_unique<LinearModulation>("BPSK", ring(2, 1, 0)));
  family.push_back(std::make_unique<LinearModulation>("QPSK", ring(4, 1, 1.0 / 8)));
  family.push_back(std::make_unique<LinearModulation>("8PSK", ring(8, 1, 0)));
  family.push_back(std::make_unique<LinearModulation>("16PSK", ring(16, 1, 0)));
  family.push_back(std::make_unique<LinearModulation>("32PSK", ring(32, 1, 0)));
  family.push_back(std::make_unique<LinearModulation>("OQPSK", ring(4, 1, 0), 0.5));
  return family;
}

}  // namespace fmp::synth
