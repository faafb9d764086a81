// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <optional>

#include "framework/network/network.h"
#include "framework/onnx/graph.h"

namespace fmp::onnx {

// Reads an ONNX file with Quant nodes (of any of the domains that Brevitas, FINN and QONNX write,
// see framework/onnx/graph.h) as a Network that computes the same function, so that it can be
// trained, pruned and compiled further:
//   [Quant] -> n x [Conv (any stride, groups, padding) -> [BatchNormalization] -> [Relu] and
//   Quant -> [MaxPool]] -> Flatten or Reshape -> m x [Gemm or MatMul -> [BatchNormalization] ->
//   [Relu] and Quant] -> Gemm or MatMul, with a bias quantized at input scale * weight scale.
// Instead of a convolution, Add or Concat (axis 1) of earlier layers -> [Relu] and Quant ->
// [MaxPool], or AveragePool or GlobalAveragePool -> [Relu] and Quant; any layer may read any before
// it. Inputs of an Add or a Concat have one factor in common.
// Weights that are zero become pruned (their mask is 0). Biases before a batch-norm are folded into
// it, and so is an epsilon other than kBatchNormEpsilon. Positive scalars (Mul, Div) may stand
// before the quantizers of weights and activations and after a Conv, Gemm or MatMul; what they
// amount to goes into the weights and scales.
//
// Quantizers are Quant or IntQuant nodes, or QuantizeLinear, [Clip,] DequantizeLinear; the input's
// may have any scale, and those of activations may be signed, where no Relu is before them. Weights
// may have a scale for each output; a batch-norm takes up what a hidden layer's differ by. An
// output layer with a scale for each class, or with a bias that is no multiple of the sums' scale,
// keeps them (NetworkConfig::class_scales).
//
// Throws Error, in one line that names the file and the node, when the file cannot be read or is
// not a graph of this form: such a graph may still be evaluated (framework/onnx/evaluate.h).
//
// bits: of quantizers for the activations of hidden layers that have none: QuantReLU behind a Relu,
// signed ones elsewhere. They collect their thresholds in the first steps of training, those that
// the file has keep theirs (Layer::collects). Throws UsageError where it has all of them.
Network import_network(const std::filesystem::path& file, std::optional<int> bits = {});
// The same for a graph that is already read.
Network import_network(const Graph& graph, std::optional<int> bits = {});

}  // namespace fmp::onnx
