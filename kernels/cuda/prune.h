// SPDX-License-Identifier: MIT
// Global magnitude pruning on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/device_memory.h"

namespace fmp::cuda {

// A layer's weights and their mask (0 = pruned) in device memory.
struct PrunableWeights {
  const float* weight;
  uint8_t* mask;
  size_t count;
};

struct PruneCounts {
  int64_t before = 0, after = 0;  // weights alive
};

// Removes round(fraction * alive) weights of all layers together, halves to even: those with the
// smallest magnitudes. Of equal ones the one in the earlier layer, and in a layer the one with the
// lower index, goes first: the weights that the method "unstructured-l1" removes. Changes masks
// alone. Waits for the stream. Throws std::invalid_argument unless 0 < fraction < 1, and
// std::domain_error, before a mask is changed, when a surviving weight is not finite.
PruneCounts prune_smallest(std::span<const PrunableWeights> layers, double fraction, Stream stream);

}  // namespace fmp::cuda
