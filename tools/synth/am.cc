// SPDX-License-Identifier: MIT
// Amplitude modulation: double sideband c + m(t), and upper single sideband c + m(t) + j H{m}(t),
// each with a carrier (WC) and with it suppressed (SC).
#include <algorithm>

#include "tools/synth/audio.h"
#include "tools/synth/families.h"

namespace fmp::synth {
namespace {

enum class Sidebands { kBoth, kUpper };

class AmplitudeModulation : public Modulation {
 public:
  AmplitudeModulation(std::string name, Sidebands sidebands, double carrier)
      : Modulation(std::move(name)), sidebands_(sidebands), carrier_(carrier) {}

  Moments moments(const Shape&) const override {
    const double message = sidebands_ == Sidebands::kUpper ? 2.0 : 1.0;
    return {message + carrier_ * carrier_, carrier_ * carrier_};
  }

  void modulate(const Shape& shape, Rng& rng, Signal& out) const override {
    const AudioBand band{0.02 / shape.sps, 0.25 / shape.sps};
    Message message = make_message(band, out.length(), rng);
    for (float& value : message.value) value += static_cast<float>(carrier_);
    out.i = std::move(message.value);
    if (sidebands_ == Sidebands::kUpper) {
      out.q = std::move(message.hilbert);
    } else {
      std::fill(out.q.begin(), out.q.end(), 0.0f);
    }
  }

 private:
  Sidebands sidebands_;
  double carrier_;
};

}  // namespace

Modulations amplitude_modulation() {
  Modulations family;
  const auto add = [&](const char* name, Sidebands sidebands, double carrier) {
    family.push_back(std::make_unique<AmplitudeModulation>(name, sidebands, carrier));
  };
  add("AM-SSB-WC", Sidebands::kUpper, 1.0);
  add("AM-SSB-SC", Sidebands::kUpper, 0.0);
  add("AM-DSB-WC", Sidebands::kBoth, 1.0);
  add("AM-DSB-SC", Sidebands::kBoth, 0.0);
  return family;
}

}  // namespace fmp::synth
