// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "framework/onnx/graph.h"

namespace fmp::onnx {

// One node, ready to run. All shapes and attributes are checked beforehand, so that run() cannot
// fail. `inputs` are in the node's order, empty where absent, row-major as their shapes say.
using NodeInputs = std::span<const std::span<const float>>;
using NodeFunction = std::function<void(NodeInputs inputs, std::span<float> output)>;

struct PreparedNode {
  Shape shape;  // of the output
  NodeFunction run;
};

// Checks a node against the shapes of its inputs, which must be known. Throws Error that names the
// node when the operation, an attribute or a shape is not supported.
PreparedNode prepare_node(const Graph& graph, const GraphNode& node);

// The output of a node that does not depend on the network's input, else nothing.
std::optional<GraphTensor> fold_node(const Graph& graph, const GraphNode& node);

// The number of elements of a shape that nothing vouches for yet. Throws Error that begins with
// `what` when a dimension is negative or the whole is larger than any network needs.
int64_t checked_elements(const std::string& what, const Shape& shape);
std::string described(const Graph& graph, const GraphNode& node);  // "FILE: node NAME (OP)"

// Used by prepare_node, a family of operations each; nothing when the node is not one of them.
std::optional<PreparedNode> prepare_layer(const Graph& graph, const GraphNode& node);
std::optional<PreparedNode> prepare_elementwise(const Graph& graph, const GraphNode& node);

// Operations that only move values about: each output element is one input element, or `fill`.
struct Rearrangement {
  struct Source {
    int input = 0;
    int64_t index = 0;  // -1: fill
  };
  Shape shape;
  std::vector<Source> sources;  // of every output element; empty: those of input 0, in order
  float fill = 0;
};
std::optional<Rearrangement> prepare_rearrangement(const Graph& graph, const GraphNode& node);

}  // namespace fmp::onnx
