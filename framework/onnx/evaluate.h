// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/onnx/graph.h"
#include "framework/onnx/ops.h"

namespace fmp::onnx {

// Runs a graph of any form on the CPU, one frame a thread at a time. Computes in float, as ONNX
// defines it; a graph that framework/onnx/import.h can read is evaluated many times faster as a
// Network.
class GraphEvaluator {
 public:
  explicit GraphEvaluator(Graph graph);

  const Graph& graph() const { return graph_; }
  int64_t input_size() const;  // values of one frame
  int64_t output_size() const;

  // frames: any number of frames, each with the input's shape, one after the other. Returns the
  // output for each. threads: >= 1.
  std::vector<float> run(std::span<const float> frames, int threads) const;

  // The same for frames with float values, [count][length][2], in the order that the input's shape
  // asks for: [1, 2, length] or [1, length, 2], with further axes of 1 anywhere. Throws Error when
  // it has another shape.
  std::vector<float> run(const FrameBatch& batch, int length, int threads) const;

 private:
  struct Step {
    NodeFunction run;
    std::vector<int> inputs;  // indices into values
    int output = 0, buffer = 0;
    size_t size = 0;  // of the output
  };
  std::optional<bool> samples_first(int length) const;
  void run_frame(std::span<const float> frame, std::vector<std::vector<float>>& buffers,
                 std::span<float> result) const;

  Graph graph_;
  std::vector<Step> steps_;           // what the output depends on
  std::vector<size_t> buffer_sizes_;  // memory that values share once nobody reads them any more
};

}  // namespace fmp::onnx
