// SPDX-License-Identifier: MIT
#include "framework/onnx/operations.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

namespace fmp::onnx {
namespace {

constexpr size_t kAnyNumber = 1 << 16;

struct Operation {
  size_t max_inputs = 1;
  // Names, separated by blanks. "name" is honoured; "name=3" is honoured with this value only;
  // "name?" cannot change the outputs that are supported.
  std::string_view attributes = {};
  int outputs = 1;  // of which any may be read
  size_t min_inputs = 1;
};

constexpr int kAnyOutput = 1 << 16;

// Attributes and inputs of all versions of the operator set together: what older versions have as
// an attribute, newer ones have as an input. Giving both is refused where they are read.
const std::map<std::string_view, Operation>& operations() {
  static const std::map<std::string_view, Operation> table = {
      {"Abs", {}},
      {"Add", {2}},
      {"AveragePool",
       {1, "auto_pad kernel_shape pads strides dilations ceil_mode count_include_pad"}},
      {"BatchNormalization", {5, "epsilon momentum? spatial=1 training_mode=0"}},
      {"Cast", {1, "to saturate?"}},
      {"Ceil", {}},
      {"Clip", {3, "min max"}},
      {"Concat", {kAnyNumber, "axis"}},
      {"Constant", {0, "value value_float value_floats value_int value_ints", 1, 0}},
      {"ConstantOfShape", {1, "value"}},
      {"Conv", {3, "auto_pad kernel_shape pads strides dilations group"}},
      {"DequantizeLinear", {3, "axis block_size=0 output_dtype"}},
      {"Div", {2}},
      {"Dropout", {3, "ratio? seed?"}},
      {"Elu", {1, "alpha"}},
      {"Equal", {2}},
      {"Erf", {}},
      {"Exp", {}},
      {"Expand", {2}},
      {"Flatten", {1, "axis"}},
      {"Floor", {}},
      {"Gather", {2, "axis"}},
      {"Gelu", {1, "approximate"}},
      {"Gemm", {3, "alpha beta transA transB"}},
      {"GlobalAveragePool", {}},
      {"GlobalMaxPool", {}},
      {"HardSigmoid", {1, "alpha beta"}},
      {"HardSwish", {}},
      {"Identity", {}},
      {"InstanceNormalization", {3, "epsilon"}},
      {"LayerNormalization", {3, "axis epsilon stash_type=1"}},
      {"LeakyRelu", {1, "alpha"}},
      {"Log", {}},
      {"LogSoftmax", {1, "axis"}},
      {"MatMul", {2}},
      {"Max", {kAnyNumber}},
      {"MaxPool", {1, "auto_pad kernel_shape pads strides dilations ceil_mode storage_order?"}},
      {"Min", {kAnyNumber}},
      {"Mul", {2}},
      {"Neg", {}},
      {"PRelu", {2}},
      {"Pad", {4, "mode pads value"}},
      {"Pow", {2}},
      {"QuantizeLinear", {3, "axis block_size=0 output_dtype precision=0 saturate?"}},
      {"Reciprocal", {}},
      {"ReduceL1", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceL2", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceMax", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceMean", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceMin", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceSum", {2, "axes keepdims noop_with_empty_axes"}},
      {"ReduceSumSquare", {2, "axes keepdims noop_with_empty_axes"}},
      {"Relu", {}},
      {"Reshape", {2, "allowzero"}},
      {"Round", {}},
      {"Selu", {1, "alpha gamma"}},
      {"Shape", {1, "start end"}},
      {"Sigmoid", {}},
      {"Sign", {}},
      {"Slice", {5, "starts ends axes"}},
      {"Softmax", {1, "axis"}},
      {"Softplus", {}},
      {"Softsign", {}},
      {"Split", {2, "axis split num_outputs", kAnyOutput}},
      {"Sqrt", {}},
      {"Squeeze", {2, "axes"}},
      {"Sub", {2}},
      {"Tanh", {}},
      {"Tile", {2}},
      {"Transpose", {1, "perm"}},
      {"Unsqueeze", {2, "axes"}},
      {"Where", {3}},
      // QONNX
      {"BipolarQuant", {2, "", 1, 2}},
      {"IntQuant", {4, "signed narrow rounding_mode", 1, 4}},
      {"Quant", {4, "signed narrow rounding_mode", 1, 4}},
  };
  return table;
}

constexpr std::array<std::string_view, 3> kQuantizers = {"BipolarQuant", "IntQuant", "Quant"};
constexpr std::array<std::string_view, 3> kQuantizerDomains = {
    "onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general"};
// Those that ONNX Runtime writes for types that older operator sets lack.
constexpr std::array<std::string_view, 2> kLinear = {"DequantizeLinear", "QuantizeLinear"};
constexpr std::string_view kRuntimeDomain = "com.microsoft";

template <typename Names>
bool contains(const Names& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

bool is_known_domain(const GraphNode& node) {
  if (node.domain.empty() || node.domain == "ai.onnx") return true;
  if (node.domain == kRuntimeDomain) return contains(kLinear, node.op);
  return contains(kQuantizers, node.op) && contains(kQuantizerDomains, node.domain);
}

// Of "a b=1 c?": what stands behind the name, or nothing when it is not among them.
std::optional<std::string_view> find_rule(std::string_view rules, std::string_view name) {
  while (!rules.empty()) {
    const size_t end = std::min(rules.find(' '), rules.size());
    const std::string_view rule = rules.substr(0, end);
    if (rule.starts_with(name)) {
      const std::string_view rest = rule.substr(name.size());
      if (rest.empty() || rest[0] == '=' || rest[0] == '?') return rest;
    }
    rules.remove_prefix(std::min(end + 1, rules.size()));
  }
  return std::nullopt;
}

void check_attribute(const Graph& graph, const GraphNode& node, std::string_view rules,
                     const std::string& name) {
  const auto rule = find_rule(rules, name);
  if (!rule) fail_at(graph, node, fmt::format("attribute {} is not supported", name));
  if (!rule->starts_with('=')) return;
  const int64_t expected = rule->at(1) - '0';
  const int64_t found = integer_attribute(graph, node, name, expected);
  if (found != expected) {
    fail_at(graph, node, fmt::format("{} {} is not supported, only {}", name, found, expected));
  }
}

}  // namespace

bool is_known_operation(const GraphNode& node) {
  return is_known_domain(node) && operations().contains(node.op);
}

std::vector<std::string> unknown_operations(const Graph& graph) {
  std::vector<std::string> names;
  std::vector<std::string_view> seen;
  for (const GraphNode& node : graph.nodes) {
    if (is_known_operation(node) || contains(seen, node.op)) continue;
    seen.push_back(node.op);
    names.push_back(node.domain.empty() ? fmt::format("{} (node {})", node.op, node.name)
                                        : fmt::format("{} of domain {} (node {})", node.op,
                                                      node.domain, node.name));
  }
  return names;
}

void check_node(const Graph& graph, const GraphNode& node) {
  if (!is_known_domain(node)) {
    fail_at(graph, node, fmt::format("domain {} is not supported", node.domain));
  }
  const auto found = operations().find(node.op);
  if (found == operations().end()) fail_at(graph, node, "this operation is not supported");
  const Operation& operation = found->second;
  if (node.inputs.size() > operation.max_inputs) {
    fail_at(graph, node,
            fmt::format("{} inputs, at most {} are supported", node.inputs.size(),
                        operation.max_inputs));
  }
  for (size_t i = 0; i < operation.min_inputs; ++i) {
    if (!node.has_input(i)) fail_at(graph, node, fmt::format("input {} is missing", i));
  }
  if (node.output_index >= operation.outputs) {
    fail_at(graph, node,
            fmt::format("its output number {} ({}) is not supported", node.output_index + 1,
                        graph.value(node.output).name));
  }
  for (const auto& [name, value] : node.attributes) {
    check_attribute(graph, node, operation.attributes, name);
  }
}

}  // namespace fmp::onnx
