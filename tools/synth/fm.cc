// SPDX-License-Identifier: MIT
// Frequency modulation: constant envelope, instantaneous frequency proportional to the message.
#include "tools/synth/audio.h"
#include "tools/synth/deterministic_math.h"
#include "tools/synth/families.h"

namespace fmp::synth {
namespace {

class FrequencyModulation : public Modulation {
 public:
  FrequencyModulation() : Modulation("FM") {}

  Moments moments(const Shape&) const override { return {1, 0}; }

  void modulate(const Shape& shape, Rng& rng, Signal& out) const override {
    const AudioBand band{0.02 / shape.sps, 0.25 / shape.sps};
    const Message message = make_message(band, out.length(), rng);
    const double deviation = 0.4 / shape.sps;  // root mean square, cycles per sample
    double phase = 0;                          // turns
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
