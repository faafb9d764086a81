// SPDX-License-Identifier: MIT
// What inference_cost does with an ONNX file, both readings of Brevitas' quantizers.
#include "framework/onnx/graph.h"
#include "framework/onnx/graph_cost.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of one function

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::filesystem::path path = fuzz::file("model.onnx", fuzz::text(data, size));
  fuzz::refuse_or_run([&] {
    const onnx::Graph graph = onnx::load(path);
    for (const auto reading : {onnx::QuantizerReading::kAsFinnBase, onnx::QuantizerReading::kAll})
      (void)onnx::inference_cost(graph, reading).normalized();
  });
  return 0;
}
