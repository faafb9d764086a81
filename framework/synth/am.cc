// SPDX-License-Identifier: MIT
// Amplitude modulation: double sideband c + m(t), and upper single sideband c + m(t) + j H{m}(t),
// each with a carrier (WC) and with it suppressed (SC).
//
// What the real set holds under these names was identified by what networks trained on it answer:
// - Double sideband is a tone of about a quarter of the digital classes' symbol rate, without a
//   constant: bands of noise or anything like speech are taken for ASK. WC has the receiver's
//   deviation, 1; SC is weaker, and nothing else tells them apart.
// - Single sideband is little but a constant, several deviations above message and noise; WC and SC
//   cannot be told apart (nor can they on the real set). The message is all but lost.

#include "framework/synth/audio.h"
#include "framework/synth/families.h"

namespace fmp::synth {
namespace {

enum class Sidebands { kBoth, kUpper };

constexpr double kToneLow = 0.240, kToneHigh = 0.265;  // of the message, in symbol rates

class AmplitudeModulation : public Modulation {
 public:
  // `carrier`: amplitude of the constant. `message`: root mean square of the message.
  AmplitudeModulation(std::string name, Sidebands sidebands, double carrier, double message)
      : Modulation(std::move(name)), sidebands_(sidebands), carrier_(carrier), message_(message) {}

  // `variance` is that of a message at full power: what is weaker stays weaker.
  Moments moments(const Shape&) const override {
    const double rails = sidebands_ == Sidebands::kUpper ? 2.0 : 1.0;
    const double power = rails * message_ * message_;
    return {power + carrier_ * carrier_, sidebands_ == Sidebands::kUpper ? power : 1.0};
  }

  void modulate(const Shape& shape, Rng& rng, Signal& out) const override {
    const ToneBand band{kToneLow / shape.sps, kToneHigh / shape.sps};
    const Message message = make_message(band, out.length(), rng);
    const bool upper = sidebands_ == Sidebands::kUpper;
    const auto scale = static_cast<float>(message_), carrier = static_cast<float>(carrier_);
    for (int n = 0; n < out.length(); ++n) {
      out.i[n] = carrier + scale * message.value[n];
      out.q[n] = upper ? scale * message.hilbert[n] : 0.0f;
    }
  }

 private:
  Sidebands sidebands_;
  double carrier_, message_;
};

}  // namespace

Modulations amplitude_modulation() {
  Modulations family;
  const auto add = [&](const char* name, Sidebands sidebands, double carrier, double message) {
    family.push_back(std::make_unique<AmplitudeModulation>(name, sidebands, carrier, message));
  };
  add("AM-SSB-WC", Sidebands::kUpper, 1.0, 0.06);
  add("AM-SSB-SC", Sidebands::kUpper, 1.0, 0.16);
  add("AM-DSB-WC", Sidebands::kBoth, 0.0, 1.0);
  add("AM-DSB-SC", Sidebands::kBoth, 0.0, 0.8);
  return family;
}

}  // namespace fmp::synth
