// SPDX-License-Identifier: MIT
// Takes the place of cuda_engine.cc in builds without CUDA.
#include "framework/error.h"
#include "framework/training/cuda/cuda_engine.h"

namespace fmp {

bool cuda_available(std::string& why) {
  why = "this program was built without CUDA";
  return false;
}

bool cuda_available_to_ranks(const Communicator& /*ranks*/, std::string& why) {
  return cuda_available(why);
}

std::unique_ptr<Engine> make_cuda_engine(const CudaEngineOptions& /*options*/) {
  fail("this program was built without CUDA");
}

}  // namespace fmp
