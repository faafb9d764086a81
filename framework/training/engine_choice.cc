// SPDX-License-Identifier: MIT
#include "framework/training/engine_choice.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "framework/error.h"
#include "framework/training/cuda/cuda_engine.h"

namespace fmp {
namespace {

// A timeline shows more without graphs: tools/profile sets this to "off".
constexpr const char* kGraphVariable = "FMP_CUDA_GRAPH";

CudaEngineOptions engine_options() {
  CudaEngineOptions options;
  const char* graph = std::getenv(kGraphVariable);  // NOLINT(concurrency-mt-unsafe): one thread yet
  options.graphs = graph == nullptr || std::string_view(graph) != "off";
  return options;
}

}  // namespace

std::unique_ptr<Engine> choose_engine(DeviceChoice& device, int threads, Communicator* ranks) {
  if (ranks != nullptr) {
    if (device != DeviceChoice::kCpu) {
      std::string why;
      const bool here = cuda_available_to_ranks(*ranks, why);
      if (device == DeviceChoice::kCuda && !here) throw UsageError(why);
      if (!any_rank(ranks, !here)) {
        device = DeviceChoice::kCuda;
        CudaEngineOptions options = engine_options();
        options.ranks = ranks;
        return make_cuda_engine(options);
      }
    }
    device = DeviceChoice::kCpu;
    return make_cpu_engine(threads, ranks);
  }
  if (device != DeviceChoice::kCpu) {
    std::string why;
    if (cuda_available(why)) {
      device = DeviceChoice::kCuda;
      return make_cuda_engine(engine_options());
    }
    if (device == DeviceChoice::kCuda) throw UsageError(why);
  }
  device = DeviceChoice::kCpu;
  return make_cpu_engine(threads);
}

}  // namespace fmp
