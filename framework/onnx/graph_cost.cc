// SPDX-License-Identifier: MIT
#include "framework/onnx/graph_cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

namespace fmp::onnx {
namespace {

constexpr std::string_view kBrevitasDomain = "onnx.brevitas";
constexpr std::string_view kFloat = "FLOAT32";

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

constexpr std::array<std::string_view, 22> kFreeOperations = {
    "Add",      "AveragePool", "BatchNormalization",
    "Clip",     "Concat",      "DequantizeLinear",
    "Div",      "Elu",         "Flatten",
    "Identity", "MaxPool",     "Mul",
    "Pad",      "Quant",       "QuantizeLinear",
    "Relu",     "Reshape",     "Selu",
    "Sigmoid",  "Sub",         "Transpose",
    "Trunc"};

// Their output is of their input's type.
constexpr std::array<std::string_view, 20> kTypePreserving = {
    "Clip",      "Concat",   "Expand",          "Flatten", "Gather", "GatherElements",
    "GatherND",  "Identity", "GlobalMaxPool",   "MaxPool", "Pad",    "Reshape",
    "Scatter",   "Slice",    "ScatterElements", "Squeeze", "Tile",   "ScatterND",
    "Transpose", "Unsqueeze"};

class Counter {
 public:
  Counter(const Graph& graph, QuantizerReading reading)
      : graph_(graph),
        reading_(reading),
        types_(graph.values.size(), std::string(kFloat)),
        is_constant_(graph.values.size(), false) {}

  NetworkCost count() {
    for (size_t i = 0; i < graph_.values.size(); ++i) {
      const GraphValue& value = graph_.values[i];
      if (!value.type.empty()) types_[i] = value.type;
      is_constant_[i] = value.constant && value.producer < 0;
    }
    NetworkCost cost;
    std::set<std::string> unsupported;
    for (const GraphNode& node : graph_.nodes) {
      const auto output = static_cast<size_t>(node.output);
      is_constant_[output] = folds(node);
      types_[output] = output_type(node);
      if (is_constant_[output]) continue;
      const bool is_standard = node.domain.empty() || node.domain == "ai.onnx";
      if (node.op == "Conv" && is_standard) {
        cost.layers.push_back(layer_of(node, positions_of_convolution(node)));
      } else if ((node.op == "MatMul" || node.op == "Gemm") && is_standard) {
        cost.layers.push_back(layer_of(node, rows_of_product(node)));
      } else if (!contains(kFreeOperations, node.op)) {
        unsupported.insert(node.op);
      }
    }
    cost.unsupported.assign(unsupported.begin(), unsupported.end());
    return cost;
  }

 private:
  bool is_opaque(const GraphNode& node) const {
    return reading_ == QuantizerReading::kAsFinnBase && is_quantizer(node) &&
           node.domain == kBrevitasDomain;
  }

  // Whether a node's output is known before the network runs.
  bool folds(const GraphNode& node) const {
    if (node.op == "Constant" || node.op == "Shape") return true;
    if (is_opaque(node)) return false;
    return std::ranges::all_of(node.inputs, [&](int input) {
      return input == GraphNode::kAbsent || is_constant_[static_cast<size_t>(input)];
    });
  }

  std::string output_type(const GraphNode& node) const {
    if (is_opaque(node)) return std::string(kFloat);
    if (is_quantizer(node)) return quantized_type(node);
    if (node.op == "BipolarQuant") return has_unit_scale(node) ? "BIPOLAR" : std::string(kFloat);
    if (node.op == "Sign") return "BIPOLAR";
    if (is_linear_quantizer(node)) return linear_type(node);
    if (contains(kTypePreserving, node.op) && node.has_input(0)) return type(node.inputs[0]);
    if (node.op == "Conv" || node.op == "MatMul") return product_type(node);
    return types_[static_cast<size_t>(node.output)];
  }

  std::string quantized_type(const GraphNode& node) const {
    const Quantizer quantizer = quantizer_of(graph_, node);
    if (!quantizer.zero_centred()) return std::string(kFloat);
    const bool has_scale =
        std::ranges::any_of(quantizer.scale.floats(), [](float scale) { return scale != 1; });
    if (quantizer.bits == 1 && !has_scale) return quantizer.is_signed ? "BIPOLAR" : "BINARY";
    return fmt::format("{}{}{}", has_scale ? "SCALED" : "", quantizer.is_signed ? "INT" : "UINT",
                       quantizer.bits);
  }

  // QONNX counts the values of a BipolarQuant with another scale as floats.
  bool has_unit_scale(const GraphNode& node) const {
    const auto& scale = graph_.input_of(node, 1).constant;
    return scale && scale->is_float() &&
           std::ranges::all_of(scale->floats(), [](float value) { return value == 1; });
  }

  // By the codes' type, whatever range they are clipped to; scaled once they are numbers again.
  std::string linear_type(const GraphNode& node) const {
    const LinearQuantizer quantizer = linear_quantizer_of(graph_, node);
    return fmt::format("{}{}{}", node.op == "DequantizeLinear" ? "SCALED" : "",
                       quantizer.is_signed ? "INT" : "UINT", quantizer.bits);
  }

  // Sums of integers are integers; with scales, finn-base takes them for floats.
  std::string product_type(const GraphNode& node) const {
    const std::array<std::string, 2> factors = {type(node.inputs[0]), type(node.inputs[1])};
    if (std::ranges::any_of(factors, [](const std::string& factor) {
          return factor == kFloat || factor.starts_with("SCALED");
        })) {
      return std::string(kFloat);
    }
    const bool is_unsigned = std::ranges::all_of(factors, [](const std::string& factor) {
      return factor.starts_with("UINT") || factor == "BINARY";
    });
    return is_unsigned ? "UINT32" : "INT32";
  }

  const std::string& type(int value) const { return types_[static_cast<size_t>(value)]; }

  int bits(const GraphNode& node, const std::string& type) const {
    const auto bits = bits_of_type(type);
    if (!bits) fail_at(graph_, node, fmt::format("values of unknown type {}", type));
    return *bits;
  }

  // How often each weight is multiplied.
  int64_t positions_of_convolution(const GraphNode& node) const {
    const Shape& out = graph_.value(node.output).shape;
    return elements(Shape(out.begin() + 2, out.end()));
  }
  int64_t rows_of_product(const GraphNode& node) const {
    // Columns of the second factor are columns of the output.
    const int64_t columns = graph_.value(node.output).shape.back();
    return elements(graph_.value(node.output).shape) / std::max(int64_t{1}, columns);
  }

  LayerCost layer_of(const GraphNode& node, int64_t positions) const {
    const auto constant = [&](size_t i) {
      return is_constant_[static_cast<size_t>(node.inputs[i])];
    };
    // Weights may come first in a MatMul.
    const size_t weight_input = node.op != "Conv" && constant(0) && !constant(1) ? 0 : 1;
    const GraphValue& weight = graph_.input_of(node, weight_input);
    const size_t rank = graph_.value(node.output).shape.size();
    if (rank < (node.op == "Conv" ? 3U : 1U) || weight.shape.size() < 2) {
      fail_at(graph_, node, "has values of too few dimensions");
    }
    LayerCost cost;
    cost.layer = node.name;
    cost.weights = cost.weights_alive = cost.weights_nonzero = elements(weight.shape);
    // Constants of operations that we do not evaluate count as if none were zero.
    if (constant(weight_input) && weight.constant && weight.constant->is_float()) {
      cost.weights_nonzero =
          std::ranges::count_if(weight.constant->floats(), [](float value) { return value != 0; });
      cost.weights_alive = cost.weights_nonzero;
    }
    cost.weights_are_activations = node.op != "Conv" && !constant(weight_input);
    cost.positions = weight_input == 0 ? graph_.value(node.output).shape.back() : positions;
    if (cost.weights_are_activations) {
      // A stack of matrices is multiplied one by one.
      const Shape& factor = weight.shape;
      const int64_t stack =
          elements(factor) / std::max(int64_t{1}, factor.back() * factor[factor.size() - 2]);
      cost.positions = positions / std::max(int64_t{1}, stack);
    }
    cost.input_type = type(node.inputs[0]);
    cost.weight_type = type(node.inputs[1]);
    cost.output_type = output_type(node);
    cost.input_bits = bits(node, cost.input_type);
    cost.weight_bits = bits(node, cost.weight_type);
    bits(node, cost.output_type);
    cost.outputs = elements(graph_.value(node.output).shape);
    return cost;
  }

  const Graph& graph_;
  QuantizerReading reading_;
  std::vector<std::string> types_;
  std::vector<bool> is_constant_;  // as finn-base sees it
};

}  // namespace

NetworkCost inference_cost(const Graph& graph, QuantizerReading reading) {
  return Counter(graph, reading).count();
}

bool has_brevitas_quantizers(const Graph& graph) {
  return std::ranges::any_of(graph.nodes, [](const GraphNode& node) {
    return is_quantizer(node) && node.domain == kBrevitasDomain;
  });
}

}  // namespace fmp::onnx
