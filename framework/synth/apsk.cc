// SPDX-License-Identifier: MIT
// Amplitude and phase shift keying: rings of equally spaced points. 16APSK and 32APSK are DVB-S2's
// at code rate 3/4, 128APSK is DVB-S2X's. 64APSK is no standard's: 4+12+16+32 points on
// radii found by search; the 4+12+20+28 of CCSDS and DVB-S2X fit less well.
#include "framework/synth/families.h"
#include "framework/synth/linear.h"

namespace fmp::synth {

namespace {

// 128APSK of DVB-S2X at code rate 135/180 (EN 302 307-2, table 13f): five rings of 16 points and an
// outer one of 48. The angles there are multiples of half a turn.
Constellation dvb_s2x_128() {
  const std::pair<double, std::vector<double>> layout[] = {
      {1, {83.0 / 1260, 103.0 / 560}},
      {1.715, {121.0 / 2520, 113.0 / 560}},
      {2.118, {23.0 / 280, 169.0 / 1008}},
      {2.681, {61.0 / 720, 139.0 / 840}},
      {2.75, {19.0 / 720, 563.0 / 2520}},
      {3.819, {37.0 / 1680, 11.0 / 168, 11.0 / 105, 61.0 / 420, 929.0 / 5040, 383.0 / 1680}}};
  Constellation points;
  for (const auto& [radius, half_turns] : layout) {
    std::vector<double> angles;
    for (double angle : half_turns) angles.push_back(angle / 2);
    const Constellation circle = mirrored_ring(radius, angles);
    points.insert(points.end(), circle.begin(), circle.end());
  }
  return points;
}

}  // namespace

Modulations amplitude_phase_keying() {
  Modulations family;
  family.push_back(
      std::make_unique<LinearModulation>("16APSK", rings({{4, 1, 1.0 / 8}, {12, 2.85, 1.0 / 24}})));
  family.push_back(std::make_unique<LinearModulation>(
      "32APSK", rings({{4, 1, 1.0 / 8}, {12, 2.84, 1.0 / 24}, {16, 5.27, 0}})));
  family.push_back(std::make_unique<LinearModulation>(
      "64APSK",
      rings({{4, 1, 1.0 / 8}, {12, 2.6, 1.0 / 24}, {16, 4.3, 1.0 / 32}, {32, 6.31, 1.0 / 64}})));
  family.push_back(std::make_unique<LinearModulation>("128APSK", dvb_s2x_128()));
  return family;
}

}  // namespace fmp::synth
