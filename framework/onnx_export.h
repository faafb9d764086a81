// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

#include "framework/network.h"

namespace fmp {

// Writes a network as ONNX file in QONNX's form, for Netron, qonnx, FINN and hls4ml: standard
// operations (Conv, BatchNormalization, Relu, MaxPool, Flatten, MatMul, Add) with Quant nodes of
// the domain "qonnx.custom_op.general" for the input, the weights, the activations and the output
// bias. Input "global_in" [1, channels, samples], output "global_out" [1, classes]. Weights are
// float values before their quantizer, pruned ones 0. The first dense layer's inputs are in the
// order in which ONNX flattens, channel-major. The output layer multiplies codes and scales their
// sum (Div before its quantizers, whose scale is 1, and Mul after its MatMul): sums of scaled
// values would depend on the order in which floats are added, and so would the winner where the
// sums of two classes are equal. framework/onnx_import.h reads the same network back.
//
// Replaces `file` atomically. Throws Error that names the file and the system's reason.
void export_onnx(const Network& network, const std::filesystem::path& file);

// Whether the output layer of the exported network multiplies codes: all networks whose last
// weights and activations are quantized.
bool export_counts_codes(const Network& network);

}  // namespace fmp
