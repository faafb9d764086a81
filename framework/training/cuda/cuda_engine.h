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
  // Those that train together, each on a device of its own; must outlive the engine. See
  // make_cpu_engine(). Null = this process alone.
  Communicator* ranks = nullptr;
};

// Whether this build has CUDA and there is a device; if not, `why` says what is missing.
bool cuda_available(std::string& why);
// The same for this one of several ranks.
bool cuda_available_to_ranks(const Communicator& ranks, std::string& why);

// Computes on the first device; of ranks on one machine, on the first for the first of them, and so
// on. The integer part of the forward pass is exact as on the CPU; sums
// of floats run in another order, which depends on the plan, and are the same from run to run and
// for any number of ranks. Throws Error where cuda_available() is false.
std::unique_ptr<Engine> make_cuda_engine(const CudaEngineOptions& options = {});

}  // namespace fmp
