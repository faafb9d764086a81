// SPDX-License-Identifier: MIT
#include "framework/onnx/graph.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <utility>

#include "framework/error.h"

namespace fmp::onnx {
namespace {

template <typename T>
const T* find_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                        std::string_view type) {
  const auto found = node.attributes.find(std::string(name));
  if (found == node.attributes.end()) return nullptr;
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) fail_at(graph, node, fmt::format("attribute {} is no {}", name, type));
  return value;
}

const GraphTensor& constant_input(const Graph& graph, const GraphNode& node, size_t i,
                                  std::string_view name) {
  if (!node.has_input(i)) fail_at(graph, node, fmt::format("has no {}", name));
  const GraphValue& value = graph.input_of(node, i);
  if (!value.constant) {
    fail_at(graph, node, fmt::format("{} {} depends on the network's input", name, value.name));
  }
  if (!value.constant->is_float()) {
    fail_at(graph, node, fmt::format("{} {} is not floating point", name, value.name));
  }
  return *value.constant;
}

// The names of FINN, QONNX and Brevitas.
Rounding rounding_of(const Graph& graph, const GraphNode& node) {
  static const std::map<std::string, Rounding> modes = {
      {"ROUND", Rounding::kHalfEven},
      {"HALF_EVEN", Rounding::kHalfEven},
      {"CEIL", Rounding::kCeil},
      {"FLOOR", Rounding::kFloor},
      {"UP", Rounding::kUp},
      {"DOWN", Rounding::kDown},
      {"ROUND_TO_ZERO", Rounding::kDown},
      {"HALF_UP", Rounding::kHalfUp},
      {"HALF_DOWN", Rounding::kHalfDown},
  };
  std::string mode = string_attribute(graph, node, "rounding_mode", "ROUND");
  std::string upper = mode;
  std::ranges::transform(upper, upper.begin(),
                         [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const auto found = modes.find(upper);
  if (found == modes.end()) {
    fail_at(graph, node, fmt::format("rounding_mode {} is not supported", mode));
  }
  return found->second;
}

constexpr int kMaxCodeBits = 16;  // of a QuantizeLinear: exact in float

struct IntegerType {
  int number = 2;  // ONNX's
  int bits = 8;
  bool is_signed = false;
};

// ONNX's numbers of the types that codes may have.
const std::map<int64_t, IntegerType>& integer_types() {
  static const std::map<int64_t, IntegerType> types = {
      {2, {2, 8, false}},   // UINT8
      {3, {3, 8, true}},    // INT8
      {4, {4, 16, false}},  // UINT16
      {5, {5, 16, true}},   // INT16
      {6, {6, 32, true}},   // INT32
  };
  return types;
}
constexpr int64_t kUint8 = 2, kFloat = 1;

// The type of the codes that a QuantizeLinear writes or a DequantizeLinear reads.
IntegerType code_type(const Graph& graph, const GraphNode& node) {
  const bool is_quantization = node.op == "QuantizeLinear";
  const int64_t given = integer_attribute(graph, node, "output_dtype", 0);
  if (!is_quantization && given != 0 && given != kFloat) {
    fail_at(graph, node, fmt::format("output_dtype {} is not supported, only float", given));
  }
  int64_t type = is_quantization && given != 0 ? given : kUint8;
  const size_t source = is_quantization || node.has_input(2) ? 2 : 0;
  if (node.has_input(source)) {
    const auto& constant = graph.input_of(node, source).constant;
    const int64_t found = constant ? constant->type : 0;
    if (found != 0 && is_quantization && given != 0 && given != found) {
      fail_at(graph, node, fmt::format("output_dtype {} and zero points of type {}", given, found));
    }
    if (found != 0) type = found;
  }
  const auto known = integer_types().find(type);
  if (known == integer_types().end()) {
    fail_at(graph, node, fmt::format("codes of element type {} are not supported", type));
  }
  return known->second;
}

}  // namespace

int64_t elements(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

const GraphValue& Graph::input_of(const GraphNode& node, size_t i) const {
  return value(node.inputs[i]);
}

float Quantizer::low() const {
  if (!is_signed) return 0;
  return static_cast<float>(-std::ldexp(1.0, bits - 1) + (narrow ? 1 : 0));
}

float Quantizer::high() const {
  return static_cast<float>(is_signed ? std::ldexp(1.0, bits - 1) - 1
                                      : std::ldexp(1.0, bits) - (narrow ? 2 : 1));
}

std::optional<float> Quantizer::scalar_scale() const {
  if (elements(scale.shape) != 1) return std::nullopt;
  return scale.floats()[0];
}

bool Quantizer::zero_centred() const {
  return std::ranges::all_of(zero_point.floats(), [](float value) { return value == 0; });
}

bool is_power_of_two(float value) {
  int exponent = 0;
  return std::frexp(value, &exponent) == 0.5F;
}

bool is_quantizer(const GraphNode& node) { return node.op == "Quant" || node.op == "IntQuant"; }

Quantizer quantizer_of(const Graph& graph, const GraphNode& node) {
  Quantizer quantizer;
  quantizer.scale = constant_input(graph, node, 1, "scale");
  for (const float scale : quantizer.scale.floats()) {
    if (!std::isfinite(scale) || scale <= 0) {
      fail_at(graph, node, fmt::format("scale {}, expected a positive number", scale));
    }
  }
  quantizer.zero_point = constant_input(graph, node, 2, "zero point");
  for (const float zero : quantizer.zero_point.floats()) {
    if (!std::isfinite(zero)) fail_at(graph, node, fmt::format("zero point {}", zero));
  }
  const GraphTensor& bits = constant_input(graph, node, 3, "bit width");
  // Wider than any accumulator; such quantizers are written for biases only.
  constexpr float kMaxBits = 64;
  if (elements(bits.shape) != 1 || !(bits.floats()[0] >= 1 && bits.floats()[0] <= kMaxBits) ||
      bits.floats()[0] != std::floor(bits.floats()[0])) {
    fail_at(graph, node,
            fmt::format("bit width {}, expected one whole number from 1 to {}",
                        fmt::join(bits.floats(), ", "), kMaxBits));
  }
  quantizer.bits = static_cast<int>(bits.floats()[0]);
  quantizer.is_signed = integer_attribute(graph, node, "signed", 1) != 0;
  quantizer.narrow = integer_attribute(graph, node, "narrow", 0) != 0;
  quantizer.rounding = rounding_of(graph, node);
  return quantizer;
}

bool is_linear_quantizer(const GraphNode& node) {
  return node.op == "QuantizeLinear" || node.op == "DequantizeLinear";
}

LinearQuantizer linear_quantizer_of(const Graph& graph, const GraphNode& node) {
  LinearQuantizer result;
  result.scale = constant_input(graph, node, 1, "scale").floats();
  for (const float scale : result.scale) {
    if (!std::isfinite(scale) || scale <= 0) {
      fail_at(graph, node, fmt::format("scale {}, expected a positive number", scale));
    }
  }
  const bool is_quantization = node.op == "QuantizeLinear";
  const IntegerType type = code_type(graph, node);
  result.type = type.number;
  result.bits = type.bits;
  result.is_signed = type.is_signed;
  result.low = type.is_signed ? -std::ldexp(1.0, type.bits - 1) : 0;
  result.high = std::ldexp(1.0, type.is_signed ? type.bits - 1 : type.bits) - 1;
  if (is_quantization && type.bits > kMaxCodeBits) {
    fail_at(graph, node, fmt::format("codes of {} bits are not supported", type.bits));
  }
  result.zero_point.assign(result.scale.size(), 0.0F);
  if (!node.has_input(2)) return result;
  const GraphValue& zero = graph.input_of(node, 2);
  if (!zero.constant || zero.constant->is_float()) {
    fail_at(graph, node, fmt::format("zero point {} is no constant of integers", zero.name));
  }
  if (zero.constant->shape != graph.input_of(node, 1).shape &&
      !(elements(zero.constant->shape) == 1 && result.scale.size() == 1)) {
    fail_at(graph, node,
            fmt::format("zero points of shape {}, scales of {}", to_string(zero.constant->shape),
                        to_string(graph.input_of(node, 1).shape)));
  }
  for (size_t i = 0; i < result.scale.size(); ++i) {
    const int64_t point = zero.constant->integers()[i];
    if (type.bits > kMaxCodeBits && point != 0) {
      fail_at(graph, node, fmt::format("zero point {} of {} bits, expected 0", point, type.bits));
    }
    result.zero_point[i] = static_cast<float>(point);
  }
  return result;
}

std::optional<std::vector<int64_t>> integers_of(const Graph& graph, const GraphNode& node,
                                                const std::string& name, size_t input) {
  if (node.has_input(input)) {
    if (node.attributes.contains(name)) {
      fail_at(graph, node, fmt::format("{} is given as an attribute and as an input", name));
    }
    const GraphValue& value = graph.input_of(node, input);
    if (!value.constant || value.constant->is_float()) {
      fail_at(graph, node, fmt::format("its {} ({}) are no constant integers", name, value.name));
    }
    return value.constant->integers();
  }
  if (!node.attributes.contains(name)) return std::nullopt;
  return integers_attribute(graph, node, name, {});
}

int64_t integer_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                          int64_t otherwise) {
  const auto* value = find_attribute<int64_t>(graph, node, name, "integer");
  return value != nullptr ? *value : otherwise;
}

float float_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                      float otherwise) {
  const auto* value = find_attribute<float>(graph, node, name, "number");
  return value != nullptr ? *value : otherwise;
}

std::string string_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                             std::string_view otherwise) {
  const auto* value = find_attribute<std::string>(graph, node, name, "text");
  return value != nullptr ? *value : std::string(otherwise);
}

std::vector<int64_t> integers_attribute(const Graph& graph, const GraphNode& node,
                                        std::string_view name, std::vector<int64_t> otherwise) {
  const auto* value = find_attribute<std::vector<int64_t>>(graph, node, name, "list of integers");
  if (value != nullptr) return *value;
  return otherwise;
}

void fail_at(const Graph& graph, const GraphNode& node, const std::string& message) {
  fail("{}: node {} ({}): {}", graph.file, node.name, node.op, message);
}

}  // namespace fmp::onnx
