// SPDX-License-Identifier: MIT
#include "framework/onnx/graph.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
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

bool is_quantizer(const GraphNode& node) { return node.op == "Quant"; }

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
  const std::string mode = string_attribute(graph, node, "rounding_mode", "ROUND");
  if (mode != "ROUND") {
    fail_at(graph, node, fmt::format("rounding_mode {}, expected ROUND", mode));
  }
  return quantizer;
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
