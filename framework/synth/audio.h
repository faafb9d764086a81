// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "framework/synth/rng.h"

namespace fmp::synth {

// The message of the analog classes: a tone of random phase, mean 0 and power 1, whose frequency is
// drawn for each frame from a narrow band.
struct ToneBand {
  double low = 0;   // cycles per sample
  double high = 0;  // cycles per sample
};

// `length` samples of a message, and of its Hilbert transform.
struct Message {
  std::vector<float> value, hilbert;
};
Message make_message(const ToneBand& band, int length, Rng& rng);

}  // namespace fmp::synth
