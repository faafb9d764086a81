// SPDX-License-Identifier: MIT
// Dispatch to the families of operations, and what is computed from constants alone.
#include "framework/onnx/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "framework/error.h"
#include "framework/onnx/operations.h"

namespace fmp::onnx {
namespace {

constexpr size_t kMaxRank = 8;

bool is_constant(const Graph& graph, const GraphNode& node) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (node.has_input(i) && !graph.input_of(node, i).constant) return false;
  }
  return !node.inputs.empty();
}

// Element `source` of whichever input it names.
template <typename T, typename Inputs>
T moved(const Rearrangement::Source& source, const Inputs& inputs, float fill) {
  if (source.index < 0) return static_cast<T>(fill);
  return inputs[static_cast<size_t>(source.input)][static_cast<size_t>(source.index)];
}

template <typename T, typename Inputs>
void rearrange(const Rearrangement& plan, const Inputs& inputs, std::span<T> output) {
  if (plan.sources.empty()) {
    std::copy_n(inputs[0].begin(), output.size(), output.begin());
    return;
  }
  std::ranges::transform(plan.sources, output.begin(), [&](const Rearrangement::Source& source) {
    return moved<T>(source, inputs, plan.fill);
  });
}

template <typename T>
std::vector<std::span<const T>> constant_inputs(const Graph& graph, const GraphNode& node) {
  std::vector<std::span<const T>> inputs(node.inputs.size());
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (!node.has_input(i)) continue;
    const GraphTensor& constant = *graph.input_of(node, i).constant;
    if (const auto* values = std::get_if<std::vector<T>>(&constant.data)) inputs[i] = *values;
  }
  return inputs;
}

template <typename T>
GraphTensor rearranged(const Graph& graph, const GraphNode& node, const Rearrangement& plan) {
  const auto inputs = constant_inputs<T>(graph, node);
  for (size_t i = 0; node.op == "Concat" && i < inputs.size(); ++i) {
    if (inputs[i].size() != static_cast<size_t>(elements(graph.input_of(node, i).shape))) {
      fail_at(graph, node, "its inputs are of different types");
    }
  }
  std::vector<T> output(static_cast<size_t>(elements(plan.shape)));
  rearrange<T>(plan, inputs, output);
  return {plan.shape, std::move(output)};
}

GraphTensor constant_of(const Graph& graph, const GraphNode& node) {
  if (node.attributes.size() != 1) {
    fail_at(graph, node, fmt::format("{} values, expected one", node.attributes.size()));
  }
  const auto& [name, attribute] = *node.attributes.begin();
  const auto* tensor = std::get_if<GraphTensor>(&attribute);
  if (name == "value" && tensor != nullptr) return *tensor;
  if (name == "value_float") return {{}, std::vector{float_attribute(graph, node, name, 0)}};
  if (name == "value_int") return {{}, std::vector{integer_attribute(graph, node, name, 0)}};
  if (name == "value_ints") {
    std::vector<int64_t> values = integers_attribute(graph, node, name, {});
    return {{static_cast<int64_t>(values.size())}, std::move(values)};
  }
  const auto* floats = std::get_if<std::vector<float>>(&attribute);
  if (name == "value_floats" && floats != nullptr) {
    return {{static_cast<int64_t>(floats->size())}, *floats};
  }
  fail_at(graph, node, fmt::format("its {} is of a type that is not supported", name));
}

// Shapes and the like; none of them is long.
void check_integers(const Graph& graph, const GraphNode& node, size_t count) {
  constexpr size_t kMaxIntegers = 1 << 20;
  if (count > kMaxIntegers) {
    fail_at(graph, node,
            fmt::format("{} computed integers, at most {} are supported", count, kMaxIntegers));
  }
}

GraphTensor constant_of_shape(const Graph& graph, const GraphNode& node) {
  const auto shape = integers_of(graph, node, "shape", 0);
  if (!shape) fail_at(graph, node, "has no shape");
  const auto count = static_cast<size_t>(checked_elements(described(graph, node), *shape));
  const auto value = node.attributes.find("value");
  if (value == node.attributes.end()) return {*shape, std::vector<float>(count, 0.0F)};
  const auto* tensor = std::get_if<GraphTensor>(&value->second);
  if (tensor == nullptr || elements(tensor->shape) != 1) {
    fail_at(graph, node, "its value is no tensor of one element");
  }
  if (!tensor->is_float()) check_integers(graph, node, count);
  return std::visit(
      [&](const auto& data) -> GraphTensor {
        return {*shape, std::remove_cvref_t<decltype(data)>(count, data[0])};
      },
      tensor->data);
}

// ONNX's numbers of the element types that Cast may name.
constexpr int64_t kCastToFloat = 1, kCastToInt32 = 6, kCastToInt64 = 7, kCastToBool = 9;

bool fits_int32(int64_t value) {
  return value >= std::numeric_limits<int32_t>::min() &&
         value <= std::numeric_limits<int32_t>::max();
}

int64_t cast_to_integer(const Graph& graph, const GraphNode& node, float value) {
  constexpr float kLargest = 9.2e18F;
  if (!(std::abs(value) < kLargest)) fail_at(graph, node, fmt::format("{} is too large", value));
  return static_cast<int64_t>(value);
}

GraphTensor cast(const Graph& graph, const GraphNode& node) {
  const GraphTensor& in = *graph.input_of(node, 0).constant;
  const int64_t type = integer_attribute(graph, node, "to", 0);
  if (type == kCastToFloat) {
    if (in.is_float()) return in;
    return {in.shape, std::vector<float>(in.integers().begin(), in.integers().end())};
  }
  if (type != kCastToInt32 && type != kCastToInt64 && type != kCastToBool) {
    fail_at(graph, node, fmt::format("casting to type {} is not supported", type));
  }
  std::vector<int64_t> integers;
  if (in.is_float()) {
    check_integers(graph, node, in.floats().size());
    for (const float value : in.floats()) {
      integers.push_back(type == kCastToBool ? static_cast<int64_t>(value != 0)
                                             : cast_to_integer(graph, node, value));
    }
  } else {
    integers = in.integers();
    if (type == kCastToBool) {
      for (int64_t& value : integers) value = value != 0 ? 1 : 0;
    }
  }
  if (type == kCastToInt32 && !std::ranges::all_of(integers, fits_int32)) {
    fail_at(graph, node, "a value does not fit 32 bits");
  }
  return {in.shape, std::move(integers), static_cast<int>(type)};
}

// What exporters do with shapes: arithmetic of integers, of equal size or with a single number.
GraphTensor integer_arithmetic(const Graph& graph, const GraphNode& node) {
  const auto inputs = constant_inputs<int64_t>(graph, node);
  const bool is_choice = node.op == "Where";
  if (inputs.size() != (is_choice ? 3U : 2U)) fail_at(graph, node, "has missing inputs");
  size_t larger = 0;
  for (size_t i = 1; i < inputs.size(); ++i) {
    if (inputs[i].size() > inputs[larger].size()) larger = i;
  }
  const size_t count = inputs[larger].size();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Shape& shape = graph.input_of(node, i).shape;
    if (inputs[i].empty() ||
        (inputs[i].size() != 1 && shape != graph.input_of(node, larger).shape)) {
      fail_at(graph, node, "is not supported for these integers");
    }
    const int type = graph.input_of(node, i).constant->type;
    if (type != 0 && type != kCastToInt32 && type != kCastToInt64 && type != kCastToBool) {
      fail_at(graph, node, fmt::format("integers of type {} are not supported", type));
    }
  }
  std::vector<int64_t> output(count);
  const auto input = [&](size_t k, size_t i) { return inputs[k][inputs[k].size() == 1 ? 0 : i]; };
  for (size_t i = 0; i < count; ++i) {
    const int64_t a = input(0, i), b = input(1, i);
    bool overflow = false;
    if (is_choice) {
      output[i] = a != 0 ? b : input(2, i);
    } else if (node.op == "Equal") {
      output[i] = a == b ? 1 : 0;
    } else if (node.op == "Add") {
      overflow = __builtin_add_overflow(a, b, &output[i]);
    } else if (node.op == "Sub") {
      overflow = __builtin_sub_overflow(a, b, &output[i]);
    } else if (node.op == "Mul") {
      overflow = __builtin_mul_overflow(a, b, &output[i]);
    } else if (node.op == "Div") {
      overflow = b == 0 || (b == -1 && a == std::numeric_limits<int64_t>::min());
      if (!overflow) output[i] = a / b;
    } else if (node.op == "Max" || node.op == "Min") {
      output[i] = node.op == "Max" ? std::max(a, b) : std::min(a, b);
    } else {
      fail_at(graph, node, "is not supported for integers");
    }
    if (overflow) fail_at(graph, node, fmt::format("of {} and {} overflows", a, b));
  }
  return {graph.input_of(node, larger).shape, std::move(output)};
}

// Codes of weights on their way to a DequantizeLinear.
GraphTensor clipped_integers(const Graph& graph, const GraphNode& node) {
  const GraphTensor& in = *graph.input_of(node, 0).constant;
  const auto bound = [&](size_t input, int64_t otherwise) {
    if (!node.has_input(input)) return otherwise;
    const GraphTensor& constant = *graph.input_of(node, input).constant;
    if (constant.is_float() || constant.integers().size() != 1) {
      fail_at(graph, node, "its bounds are no single integers");
    }
    return constant.integers()[0];
  };
  const int64_t low = bound(1, std::numeric_limits<int64_t>::min());
  const int64_t high = bound(2, std::numeric_limits<int64_t>::max());
  GraphTensor result = in;
  for (int64_t& value : std::get<std::vector<int64_t>>(result.data)) {
    value = std::min(std::max(value, low), high);
  }
  return result;
}

// Weights that are quantized when the network is read.
GraphTensor quantized(const Graph& graph, const GraphNode& node) {
  const PreparedNode prepared = *prepare_elementwise(graph, node);
  std::vector<float> output(static_cast<size_t>(elements(prepared.shape)));
  prepared.run(constant_inputs<float>(graph, node), output);
  std::vector<int64_t> codes(output.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = cast_to_integer(graph, node, output[i]);
  }
  return {prepared.shape, std::move(codes), linear_quantizer_of(graph, node).type};
}

// Codes that the file holds, of up to 32 bits.
GraphTensor dequantized(const Graph& graph, const GraphNode& node) {
  const GraphTensor& codes = *graph.input_of(node, 0).constant;
  const PreparedNode prepared = *prepare_elementwise(graph, node);
  const std::vector<float> values(codes.integers().begin(), codes.integers().end());
  std::vector<float> output(values.size());
  const std::array<std::span<const float>, 1> inputs = {values};
  prepared.run(inputs, output);
  return {prepared.shape, std::move(output)};
}

bool has_integer_input(const Graph& graph, const GraphNode& node) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (!node.has_input(i)) continue;
    const auto& constant = graph.input_of(node, i).constant;
    if (constant && !constant->is_float()) return true;
  }
  return false;
}

}  // namespace

int64_t checked_elements(const std::string& what, const Shape& shape) {
  if (shape.size() > kMaxRank) {
    fail("{}: {} dimensions, at most {} are supported", what, shape.size(), kMaxRank);
  }
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 0) fail("{}: dimension {} is negative", what, size);
    if (size > 0 && product > kMaxElements / size) {
      fail("{}: shape {} has more than {} elements", what, to_string(shape), kMaxElements);
    }
    product *= size;
  }
  return product;
}

void add_work(const Graph& graph, const GraphNode& node, double work, double& total) {
  total += work;
  if (total <= kMaxWork) return;
  fail_at(graph, node,
          fmt::format("{:.3g} multiplications up to here, at most {:.3g} are supported", total,
                      kMaxWork));
}

std::string printable(const std::string& name) {
  constexpr size_t kMaxLength = 120;
  std::string result = name.substr(0, kMaxLength);
  std::ranges::replace_if(
      result, [](unsigned char c) { return std::isprint(c) == 0; }, '?');
  return result;
}

std::string described(const Graph& graph, const GraphNode& node) {
  return fmt::format("{}: node {} ({})", graph.file, node.name, node.op);
}

const Shape& first_shape(const Graph& graph, const GraphNode& node) {
  if (!node.has_input(0)) fail_at(graph, node, "has no input");
  return graph.input_of(node, 0).shape;
}

namespace {

// Operations for which codes of quantizers are numbers like all others.
bool takes_codes(const GraphNode& node) {
  constexpr std::array<std::string_view, 4> kOperations = {"Cast", "Clip", "DequantizeLinear",
                                                           "MaxPool"};
  return std::ranges::find(kOperations, node.op) != kOperations.end();
}

// Values that depend on the network's input and are of an integer type, if any.
const GraphValue* integer_value(const Graph& graph, const GraphNode& node) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (!node.has_input(i)) continue;
    const GraphValue& value = graph.input_of(node, i);
    if (!value.constant && value.is_integer) return &value;
  }
  return nullptr;
}

PreparedNode prepare_moving(const Graph& graph, const GraphNode& node, Rearrangement plan) {
  if (node.op == "Concat") {
    const bool is_integer = integer_value(graph, node) != nullptr;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const GraphValue& value = graph.input_of(node, i);
      if (value.is_integer != is_integer || (value.constant && is_integer)) {
        fail_at(graph, node, "its inputs are of different types");
      }
    }
  }
  Shape shape = plan.shape;
  return {std::move(shape), [plan = std::move(plan)](NodeInputs inputs, std::span<float> output) {
            rearrange<float>(plan, inputs, output);
          }};
}

// Checks constants of integers against what the operation reads as such.
bool may_read_integers(const GraphNode& node) {
  return takes_codes(node) || node.op == "QuantizeLinear" || node.op.starts_with("Reduce");
}

GraphTensor shape_of(const Graph& graph, const GraphNode& node) {
  const Shape& shape = first_shape(graph, node);
  const auto rank = static_cast<int64_t>(shape.size());
  const auto clamped = [&](int64_t at) {
    return std::clamp(at < 0 ? at + rank : at, int64_t{0}, rank);
  };
  const int64_t start = clamped(integer_attribute(graph, node, "start", 0));
  const int64_t end = std::max(start, clamped(integer_attribute(graph, node, "end", rank)));
  Shape taken(shape.begin() + start, shape.begin() + end);
  return {{end - start}, std::move(taken), static_cast<int>(kCastToInt64)};
}

}  // namespace

PreparedNode prepare_node(const Graph& graph, const GraphNode& node) {
  check_node(graph, node);
  if (auto plan = prepare_rearrangement(graph, node)) {
    return prepare_moving(graph, node, *std::move(plan));
  }
  const GraphValue* integers = integer_value(graph, node);
  if (integers != nullptr && !takes_codes(node)) {
    fail_at(graph, node, fmt::format("is not supported for the integers {}", integers->name));
  }
  if (node.op == "DequantizeLinear" && integers == nullptr) {
    fail_at(graph, node, "its input is no output of a QuantizeLinear");
  }
  if (node.op == "Cast") {
    if (integer_attribute(graph, node, "to", 0) != kCastToFloat) {
      fail_at(graph, node, "what depends on the input can be cast to float only");
    }
    return {first_shape(graph, node), [](NodeInputs inputs, std::span<float> output) {
              std::ranges::copy(inputs[0], output.begin());
            }};
  }
  if (!may_read_integers(node) && has_integer_input(graph, node)) {
    fail_at(graph, node, "is not supported for integers");
  }
  auto prepared = prepare_layer(graph, node);
  if (!prepared) prepared = prepare_elementwise(graph, node);
  if (!prepared) fail_at(graph, node, "is supported for constant integers only");
  checked_elements(described(graph, node), prepared->shape);
  return *std::move(prepared);
}

bool writes_integers(const Graph& graph, const GraphNode& node) {
  if (node.op == "QuantizeLinear") return true;
  if (node.op == "DequantizeLinear" || node.op == "Cast") return false;
  return integer_value(graph, node) != nullptr;
}

std::optional<GraphTensor> fold_node(const Graph& graph, const GraphNode& node, double& work) {
  check_node(graph, node);
  if (node.op == "Constant") return constant_of(graph, node);
  if (node.op == "Shape") return shape_of(graph, node);
  if (!is_constant(graph, node)) return std::nullopt;
  if (node.op == "ConstantOfShape") return constant_of_shape(graph, node);
  if (node.op == "Cast") return cast(graph, node);
  const bool is_float = graph.input_of(node, 0).constant->is_float();
  if (const auto plan = prepare_rearrangement(graph, node)) {
    if (is_float) return rearranged<float>(graph, node, *plan);
    GraphTensor result = rearranged<int64_t>(graph, node, *plan);
    result.type = graph.input_of(node, 0).constant->type;
    return result;
  }
  if (!is_float && node.op == "DequantizeLinear") return dequantized(graph, node);
  if (!is_float && node.op == "Clip") return clipped_integers(graph, node);
  if (has_integer_input(graph, node) && !may_read_integers(node)) {
    return integer_arithmetic(graph, node);
  }
  if (!is_float) fail_at(graph, node, "is not supported for integers");
  if (node.op == "QuantizeLinear") return quantized(graph, node);
  const PreparedNode prepared = prepare_node(graph, node);
  add_work(graph, node, prepared.work, work);
  std::vector<float> output(static_cast<size_t>(elements(prepared.shape)));
  prepared.run(constant_inputs<float>(graph, node), output);
  return GraphTensor{prepared.shape, std::move(output)};
}

}  // namespace fmp::onnx
