// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "tools/synth/rng.h"

namespace fmp::synth {

// The message of the analog classes: band-limited Gaussian noise, mean 0 and power 1 in the long
// run, with a flat spectrum between `low` and `high`.
struct AudioBand {
  double low = 0;   // cycles per sample
  double high = 0;  // cycles per sample
};

// `length` samples of a message, and of its Hilbert transform.
struct Message {
  std::vector<float> value, hilbert;
};
Message make_message(const AudioBand& band, int length, Rng& rng);

}  // namespace fmp::synth
