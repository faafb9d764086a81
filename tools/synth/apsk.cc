// SPDX-License-Identifier: MIT
// Amplitude and phase shift keying: rings of equally spaced points. 16APSK and 32APSK are DVB-S2's.
#include "tools/synth/families.h"
#include "tools/synth/linear.h"

namespace fmp::synth {

Modulations amplitude_phase_keying() {
  Modulations family;
  family.push_back(
      std::make_unique<LinearModulation>("16APSK", rings({{4, 1, 1.0 / 8}, {12, 2.85, 1.0 / 24}})));
  family.push_back(std::make_unique<LinearModulation>(
      "32APSK", rings({{4, 1, 1.0 / 8}, {12, 2.84, 1.0 / 24}, {16, 5.27, 0}})));
  family.push_back(std::make_unique<LinearModulation>(
      "64APSK",
      rings({{4, 1, 1.0 / 8}, {12, 2.73, 1.0 / 24}, {20, 4.52, 1.0 / 40}, {28, 6.31, 1.0 / 56}})));
  family.push_back(std::make_unique<LinearModulation>(
      "128APSK",
      rings({{8, 1, 1.0 / 16}, {24, 2.5, 1.0 / 48}, {36, 3.8, 1.0 / 72}, {60, 5.5, 1.0 / 120}})));
  return family;
}

}  // namespace fmp::synth
