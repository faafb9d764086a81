// SPDX-License-Identifier: MIT
// Amplitude shift keying: unipolar levels 0, 1, ..., m-1. (Bipolar levels are not what the real set
// holds: networks trained on it never take them for ASK.)
#include "framework/synth/families.h"
#include "framework/synth/linear.h"

namespace fmp::synth {
namespace {

Constellation levels(int count) {
  Constellation points;
  for (int k = 0; k < count; ++k) points.emplace_back(k, 0);
  return points;
}

}  // namespace

Modulations amplitude_shift_keying() {
  Modulations family;
  family.push_back(std::make_unique<LinearModulation>("OOK", levels(2)));
  family.push_back(std::make_unique<LinearModulation>("4ASK", levels(4)));
  family.push_back(std::make_unique<LinearModulation>("8ASK", levels(8)));
  return family;
}

}  // namespace fmp::synth
