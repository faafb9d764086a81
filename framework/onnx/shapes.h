// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "framework/onnx/graph.h"

namespace onnx {
class ModelProto;
}

namespace fmp::onnx {

// The shape of the output of a node that we do not evaluate: as libonnx infers it from the shapes
// of the inputs, or as the file states it. Nothing when neither knows.
std::optional<Shape> stated_shape(const ::onnx::ModelProto& model, const Graph& graph,
                                  const GraphNode& node);

}  // namespace fmp::onnx
