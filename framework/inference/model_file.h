// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

#include "framework/network/network.h"

namespace fmp {

// A network from either kind of file that fmp_radioml leaves: an ONNX file (NAME.onnx, see
// onnx::import_network) or one of ours (see load_checkpoint) that holds a single network. Throws
// Error that names the file.
Network load_model(const std::filesystem::path& file);

}  // namespace fmp
