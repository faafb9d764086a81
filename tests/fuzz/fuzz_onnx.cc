// SPDX-License-Identifier: MIT
// An ONNX file through everything that reads one: the graph is evaluated on two frames, and
// imported as a network, which is compiled to integers.
#include <vector>

#include "framework/inference/integer_network.h"
#include "framework/onnx/evaluate.h"
#include "framework/onnx/graph.h"
#include "framework/onnx/import.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of one function

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::filesystem::path path = fuzz::file("model.onnx", fuzz::text(data, size));
  fuzz::refuse_or_run([&] {
    const onnx::GraphEvaluator evaluator(onnx::load(path));
    const std::vector<float> frames(static_cast<size_t>(2 * evaluator.input_size()), 0.25F);
    evaluator.run(frames, 1);
  });
  fuzz::refuse_or_run([&] { const IntegerNetwork network{onnx::import_network(path)}; });
  return 0;
}
