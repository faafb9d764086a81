// SPDX-License-Identifier: MIT
#include "framework/synth/audio.h"

#include "framework/deterministic_math.h"

namespace fmp::synth {

// The Hilbert transform of a cosine is the sine: exact, with no filter's edge or delay.
Message make_message(const ToneBand& band, int length, Rng& rng) {
  Message message{std::vector<float>(length), std::vector<float>(length)};
  const double amplitude = 1.41421356237309504880;
  const double frequency = rng.uniform(band.low, band.high), phase = rng.uniform();
  for (int n = 0; n < length; ++n) {
    const CosSin z = cos_sin_turns(phase + frequency * n);
    message.value[n] = static_cast<float>(amplitude * z.cos);
    message.hilbert[n] = static_cast<float>(amplitude * z.sin);
  }
  return message;
}

}  // namespace fmp::synth
