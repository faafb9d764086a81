// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "experiments/options.h"
#include "framework/engine.h"

namespace fmp {

// The engine that options.device asks for; auto: CUDA where this build has it and there is a
// device. Sets options.device to what it is. Throws UsageError that says why there is no CUDA.
std::unique_ptr<Engine> choose_engine(Options& options);

}  // namespace fmp
