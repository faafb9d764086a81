// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "framework/onnx/graph.h"

namespace fmp::onnx {

// What is honoured of every operation's specification. All else is refused: a file may hold what
// changes the meaning of an operation only where this table has it (README.md explains each entry).
//
// The versions of ONNX's operator set whose specifications were compared with the table.
inline constexpr int64_t kOldestOpset = 7, kNewestOpset = 28;

// Whether a node is an operation that is evaluated at all, whatever its attributes.
bool is_known_operation(const GraphNode& node);

// The operations of a graph that are not known, each once, with the name of a node: "LSTM (node
// /lstm/LSTM)".
std::vector<std::string> unknown_operations(const Graph& graph);

// Throws Error that names the node when it has an attribute, a number of inputs or an output that
// is not honoured, or is no operation that is known.
void check_node(const Graph& graph, const GraphNode& node);

}  // namespace fmp::onnx
