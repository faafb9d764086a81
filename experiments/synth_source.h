// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "experiments/data_source.h"

namespace fmp {

// "synth:SEED": frames that are synthesized as they are read. Training frames are new ones in every
// epoch, validation and test frames stay the same.
LoadedData open_synth(const std::string& seed, const Options& options);

}  // namespace fmp
