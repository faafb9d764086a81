// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>

#include "framework/training/engine.h"

namespace fmp {

struct CudaEngineOptions {
  // Released device memory is kept for the next allocation.
  bool cache_memory = true;
  // A training step is captured into a graph, which then takes one launch. Without, a timeline
  // shows every kernel in the range of its layer and pass.
  bool graphs = true;
};

// Whether this build has CUDA and there is a device; if not, `why` says what is missing.
bool cuda_available(std::string& why);

// Computes on the first device. The integer part of the forward pass is exact as on the CPU; sums
// of floats run in another order, which depends on the plan, and are the same from run to run.
// Throws Error where cuda_available() is false.
std::unique_ptr<Engine> make_cuda_engine(const CudaEngineOptions& options = {});

}  // namespace fmp
