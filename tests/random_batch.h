// SPDX-License-Identifier: MIT
// Frames for tests of training steps.
#pragma once

#include <cstdint>

#include "framework/data/dataset.h"
#include "framework/network/network.h"
#include "framework/random.h"

namespace fmp {

// Random frames and labels, as a network with this configuration reads them.
inline FrameBatch random_batch(const NetworkConfig& config, int64_t count, uint64_t seed) {
  Random random(seed, "batch");
  FrameBatch batch;
  batch.count = count;
  const int64_t values = count * config.length * config.input_channels;
  for (int64_t i = 0; i < values; ++i) {
    if (config.input_bits == kFloatBits) {
      batch.values.push_back(random.uniform(-1.0F, 1.0F));
    } else {
      batch.codes.push_back(static_cast<int8_t>(static_cast<int>(random.below(255)) - 127));
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    batch.labels.push_back(
        static_cast<uint8_t>(random.below(static_cast<uint64_t>(config.classes))));
    batch.snr_db.push_back(0);
  }
  return batch;
}

}  // namespace fmp
