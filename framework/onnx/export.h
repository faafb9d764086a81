// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

#include "framework/network/network.h"

namespace fmp::onnx {

// Writes a network as ONNX file in QONNX's form, for Netron, qonnx, FINN and hls4ml: standard
// operations (Conv, BatchNormalization, Relu, MaxPool, Flatten, MatMul, Add, Concat, AveragePool)
// with Quant nodes of the domain "qonnx.custom_op.general" for the input, the weights, the
// activations and the output bias. Input "global_in" [1, channels, samples], output "global_out"
// [1, classes]. Weights are float values before their quantizer, pruned ones 0. The first dense
// layer's inputs are in the order in which ONNX flattens, channel-major. framework/onnx/import.h
// reads the same network back.
//
// Layers whose weights and inputs are quantized multiply codes: the quantizers of both have the
// scale 1, with a Div before them, and a Mul brings the sums of a Conv or MatMul to their scale.
// Such sums are exact in float, whatever their order, and what follows (BatchNormalization, Div,
// Quant) rounds as cpu::EvaluationState says, so that a runtime that executes the graph node by
// node finds the codes and predictions of this project. Only the quantizers of the network's input,
// where its scale is a power of two, and of the output's bias keep their scales. Signed quantizers
// have no Relu before them.
//
// Layers without weights read codes, too: Add and Concat a Mul by the scale of each input, and
// AveragePool, whose sums are exact then, with that Mul behind it.
//
// Replaces `file` atomically. Throws Error that names the file and the system's reason.
void export_network(const Network& network, const std::filesystem::path& file);

}  // namespace fmp::onnx
