// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "framework/data/dataset.h"
#include "framework/network/network.h"

namespace fmp {

// Writes `network` as the ONNX file `file`, which gets its name only after it was read back and
// classified these frames as the network does. `data` holds frames of the network's input bits.
// Throws Error when the file cannot be written or the two disagree.
void write_verified_model(const Network& network, const std::filesystem::path& file,
                          const Dataset& data, std::span<const int64_t> frames, int threads);

}  // namespace fmp
