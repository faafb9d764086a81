// SPDX-License-Identifier: MIT
// Networks as after some training, for tests that change them.
#pragma once

#include "framework/network/network.h"
#include "framework/random.h"

namespace fmp {

inline void fill_random(Tensor& tensor, Random& random, float low, float high) {
  for (float& value : tensor.floats()) value = random.uniform(low, high);
}

// Batch-norm and Adam in full swing, thresholds learned.
inline Network trained_network(const NetworkConfig& config, uint64_t seed) {
  Network network(config, seed);
  Random random(seed, "trained"), of_moments(seed, "moments");
  network.steps = 1000;
  network.optimizer_steps = 10;
  for (Layer& layer : network.layers()) {
    for (Parameter* parameter : layer.parameters()) {
      fill_random(parameter->moment1, of_moments, -0.01F, 0.01F);
      fill_random(parameter->moment2, of_moments, 0.01F, 0.02F);
    }
    if (layer.threshold.value.defined()) layer.threshold.value.floats()[0] = 2.5F;
    if (!layer.gamma.value.defined()) continue;
    fill_random(layer.gamma.value, random, 0.5F, 1.5F);
    fill_random(layer.beta.value, random, -0.2F, 0.8F);
    fill_random(layer.running_mean, random, -0.1F, 0.1F);
    fill_random(layer.running_var, random, 0.2F, 0.4F);
  }
  return network;
}

}  // namespace fmp
