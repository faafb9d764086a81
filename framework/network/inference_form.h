// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

namespace fmp {

// What a quantized network from elsewhere may have beyond a Network, for inference alone: training
// has activations from 0 on, and the input's range. Each part is empty (or 0) where the network is
// as a Network is.
struct InferenceForm {
  float input_scale = 0;  // of the input's codes: code = round_half_even(x / input_scale)
  // The smallest code that each hidden layer writes: 0 without a sign, else -2^(b-1), or one more
  // for a narrow range. The scale of codes of b bits is the layer's threshold / (2^b - 1) as
  // always.
  std::vector<int> smallest_codes;
};

}  // namespace fmp
