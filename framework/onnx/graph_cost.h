// SPDX-License-Identifier: MIT
#pragma once

#include "framework/network/cost.h"
#include "framework/onnx/graph.h"

namespace fmp::onnx {

// Which Quant nodes are understood when costs are counted.
enum class QuantizerReading : uint8_t {
  // Those that the published figures understand: of no domain, FINN's and QONNX's. The domain that
  // newer Brevitas versions write, "onnx.brevitas", was unknown to finn-base's tool, which then
  // takes everything for FLOAT32, and weights behind such a quantizer for activations: nothing of
  // them is discounted, and those of dense layers are not counted as memory.
  kAsFinnBase,
  kAll,
};

// The inference cost of any graph by finn-base's definition (as in the RadioML challenge of 2021,
// zeros discounted): Conv, MatMul and Gemm cost; what depends on constants alone is computed
// beforehand and costs nothing; pooling, element-wise operations and rearrangements are free;
// everything else is listed as unsupported.
// Throws Error that names the node when a type that the file gives to a value is unknown.
NetworkCost inference_cost(const Graph& graph,
                           QuantizerReading reading = QuantizerReading::kAsFinnBase);

// True when the two readings differ.
bool has_brevitas_quantizers(const Graph& graph);

}  // namespace fmp::onnx
