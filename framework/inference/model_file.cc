// SPDX-License-Identifier: MIT
#include "framework/inference/model_file.h"

#include "framework/error.h"
#include "framework/network/checkpoint.h"
#include "framework/onnx/import.h"

namespace fmp {

Network load_model(const std::filesystem::path& file) {
  if (file.extension() == ".onnx") return onnx::import_network(file);
  const Checkpoint checkpoint = load_checkpoint(file);
  if (checkpoint.networks.size() != 1) {
    fail("{}: holds {} networks, expected one (such as result.fmp or baseline.fmp of a run)",
         file.string(), checkpoint.networks.size());
  }
  return checkpoint.networks.begin()->second;
}

}  // namespace fmp
