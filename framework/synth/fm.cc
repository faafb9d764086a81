// SPDX-License-Identifier: MIT
// Frequency modulation: constant envelope, instantaneous frequency proportional to the message.
#include "framework/deterministic_math.h"
#include "framework/synth/audio.h"
#include "framework/synth/families.h"

namespace fmp::synth {
namespace {

// The message's frequency and the peak deviation, in symbol rates of the digital classes. At twice
// the deviation networks trained on the real set see GMSK; without one, a double sideband.
constexpr double kToneLow = 0.072, kToneHigh = 0.088;
constexpr double kPeakDeviation = 0.25;

class FrequencyModulation : public Modulation {
 public:
  FrequencyModulation() : Modulation("FM") {}

  Moments moments(const Shape&) const override { return {1, 1}; }

  void modulate(const Shape& shape, Rng& rng, Signal& out) const override {
    const ToneBand band{kToneLow / shape.sps, kToneHigh / shape.sps};
    const Message message = make_message(band, out.length(), rng);
    const double deviation = kPeakDeviation / 1.41421356237309504880 / shape.sps;
    double phase = 0;  // turns
    for (int n = 0; n < out.length(); ++n) {
      phase += deviation * message.value[n];
      const CosSin z = cos_sin_turns(phase);
      out.i[n] = static_cast<float>(z.cos);
      out.q[n] = static_cast<float>(z.sin);
    }
  }
};

}  // namespace

Modulations frequency_modulation() {
  Modulations family;
  family.push_back(std::make_unique<FrequencyModulation>());
  return family;
}

}  // namespace fmp::synth
