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
  // Multiplications, or values that are looked at; 0: about as many as the output has values.
  double work = 0;
};

// Elements of one value at most: 256 frames of the published VGG10's widest layer. (Its largest
// matrix has 131,072.)
inline constexpr int64_t kMaxElements = int64_t{1} << 24;

// Checks a node against the shapes of its inputs, which must be known. Throws Error that names the
// node when the operation, an attribute or a shape is not supported.
PreparedNode prepare_node(const Graph& graph, const GraphNode& node);

// Whether a node that depends on the network's input writes values of an integer type (codes).
bool writes_integers(const Graph& graph, const GraphNode& node);

// Multiplications for one frame at most: 86 times those of the published VGG10, about a second on
// one core. add_work adds a node's to those before it and throws Error that names the node when
// they are more.
inline constexpr double kMaxWork = 1 << 30;
void add_work(const Graph& graph, const GraphNode& node, double work, double& total);

// The output of a node that does not depend on the network's input, else nothing. work: see
// add_work.
std::optional<GraphTensor> fold_node(const Graph& graph, const GraphNode& node, double& work);

// The number of elements of a shape that nothing vouches for yet. Throws Error that begins with
// `what` when a dimension is negative or the whole is larger than any network needs.
int64_t checked_elements(const std::string& what, const Shape& shape);
std::string printable(const std::string& name);  // of a name from a file, for messages
const Shape& first_shape(const Graph& graph, const GraphNode& node);  // of input 0
std::string described(const Graph& graph, const GraphNode& node);     // "FILE: node NAME (OP)"

// Used by prepare_node, a family of operations each; nothing when the node is not one of them.
std::optional<PreparedNode> prepare_layer(const Graph& graph, const GraphNode& node);
std::optional<PreparedNode> prepare_elementwise(const Graph& graph, const GraphNode& node);

// Operations that only move values about: each output element is one input element, or `fill`.
struct Rearrangement {
  struct Source {
    int32_t input = 0, index = 0;  // index -1: fill
  };
  Shape shape;
  std::vector<Source> sources;  // of every output element; empty: those of input 0, in order
  float fill = 0;
};
std::optional<Rearrangement> prepare_rearrangement(const Graph& graph, const GraphNode& node);

}  // namespace fmp::onnx
