// SPDX-License-Identifier: MIT
// Quadrature amplitude modulation on the odd integers: squares for an even number of bits, crosses
// (a square without its corners) for an odd one.
#include <cstdlib>

#include "framework/synth/families.h"
#include "framework/synth/linear.h"

namespace fmp::synth {
namespace {

// A square of side x side points less `corner` x `corner` points at each corner.
Constellation grid(int side, int corner) {
  Constellation points;
  const int inner = side - 1 - 2 * corner;  // coordinates beyond it belong to the corner's rows
  for (int i = 1 - side; i < side; i += 2) {
    for (int q = 1 - side; q < side; q += 2) {
      if (std::abs(i) <= inner || std::abs(q) <= inner) points.emplace_back(i, q);
    }
  }
  return points;
}

}  // namespace

Modulations quadrature_amplitude() {
  Modulations family;
  family.push_back(std::make_unique<LinearModulation>("16QAM", grid(4, 0)));
  family.push_back(std::make_unique<LinearModulation>("32QAM", grid(6, 1)));
  family.push_back(std::make_unique<LinearModulation>("64QAM", grid(8, 0)));
  family.push_back(std::make_unique<LinearModulation>("128QAM", grid(12, 2)));
  family.push_back(std::make_unique<LinearModulation>("256QAM", grid(16, 0)));
  return family;
}

}  // namespace fmp::synth
