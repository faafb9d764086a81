// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "experiments/data_source.h"

namespace fmp {

// "synth:SEED": frames that are synthesized as they are read. Training frames are new ones in every
// epoch, validation and test frames stay the same. With --synth-frames fixed the training frames
// stay the same, too: those of epoch 0. The frames of which one epoch reads what the one before has
// read are made once, here, and held in memory; where they are more than --memory-limit, fixed ones
// are held in a temporary file, and those of the other parts are synthesized whenever they are
// read.
LoadedData open_synth(const std::string& seed, const Options& options, Communicator* ranks,
                      const LoadProgress& progress);

}  // namespace fmp
