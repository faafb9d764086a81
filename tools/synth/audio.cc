// SPDX-License-Identifier: MIT
#include "tools/synth/audio.h"

#include <cmath>

#include "tools/synth/deterministic_math.h"

namespace fmp::synth {
namespace {

constexpr int kTones = 32;  // by the central limit theorem enough for a Gaussian amplitude

}  // namespace

// A sum of tones of random frequency and phase. The Hilbert transform of a sum of cosines is the
// sum of the sines: exact, with no filter's edge or delay.
Message make_message(const AudioBand& band, int length, Rng& rng) {
  Message message{std::vector<float>(length), std::vector<float>(length)};
  const double amplitude = std::sqrt(2.0 / kTones);
  float re[kTones], im[kTones], step_re[kTones], step_im[kTones];
  for (int k = 0; k < kTones; ++k) {
    const CosSin start = cos_sin_turns(rng.uniform());
    const CosSin step = cos_sin_turns(rng.uniform(band.low, band.high));
    re[k] = static_cast<float>(amplitude * start.cos);
    im[k] = static_cast<float>(amplitude * start.sin);
    step_re[k] = static_cast<float>(step.cos);
    step_im[k] = static_cast<float>(step.sin);
  }
  for (int n = 0; n < length; ++n) {
    float sum_re = 0, sum_im = 0;
    for (int k = 0; k < kTones; ++k) {
      sum_re += re[k];
      sum_im += im[k];
    }
    for (int k = 0; k < kTones; ++k) {
      const float r = re[k] * step_re[k] - im[k] * step_im[k];
      im[k] = re[k] * step_im[k] + im[k] * step_re[k];
      re[k] = r;
    }
    message.value[n] = sum_re;
    message.hilbert[n] = sum_im;
  }
  return message;
}

}  // namespace fmp::synth
