// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

#include "framework/data/dataset.h"
#include "framework/network/network.h"

namespace fmp {

// Writes `network` as the ONNX file `file`, which gets its name only after it was read back and
// classified these frames, of the network's input bits, as the network does. Throws Error when the
// file cannot be written or the two disagree.
void write_verified_model(const Network& network, const std::filesystem::path& file,
                          const FrameBatch& frames, int threads);

}  // namespace fmp
