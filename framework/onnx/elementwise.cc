// SPDX-License-Identifier: MIT
// Operations on one value at a time, with inputs broadcast as numpy does, and reductions.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "framework/onnx/ops.h"

namespace fmp::onnx {
namespace {

// Where an operand's value for each output element is.
class Operand {
 public:
  // Broadcasts `shape` to `target`, which it must be compatible with.
  Operand(const Shape& shape, const Shape& target) {
    if (shape == target) return;
    if (elements(shape) == 1) {
      step_ = 0;
      return;
    }
    const size_t skipped = target.size() - shape.size();
    Shape strides(target.size(), 0);
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[skipped + i] = shape[i] == 1 ? 0 : stride;
      stride *= shape[i];
    }
    const int64_t count = elements(target);
    map_.reserve(static_cast<size_t>(count));
    Shape position(target.size(), 0);
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      map_.push_back(static_cast<int32_t>(at));
      for (size_t axis = target.size(); axis-- > 0;) {
        at += strides[axis];
        if (++position[axis] < target[axis]) break;
        at -= position[axis] * strides[axis];
        position[axis] = 0;
      }
    }
  }

  bool is_scalar() const { return step_ == 0; }
  size_t operator()(size_t i) const {
    return map_.empty() ? i * step_ : static_cast<size_t>(map_[i]);
  }

 private:
  size_t step_ = 1;
  std::vector<int32_t> map_;
};

const Shape& operand_shape(const Graph& graph, const GraphNode& node, size_t i) {
  if (!node.has_input(i)) fail_at(graph, node, fmt::format("input {} is missing", i));
  return graph.input_of(node, i).shape;
}

Shape broadcast_shape(const Graph& graph, const GraphNode& node, const Shape& a, const Shape& b) {
  Shape result = a.size() >= b.size() ? a : b;
  const Shape& shorter = a.size() >= b.size() ? b : a;
  const size_t skipped = result.size() - shorter.size();
  for (size_t i = 0; i < shorter.size(); ++i) {
    int64_t& size = result[skipped + i];
    if (size != shorter[i] && size != 1 && shorter[i] != 1) {
      fail_at(graph, node, fmt::format("shapes {} and {} do not fit", to_string(a), to_string(b)));
    }
    if (size == 1) size = shorter[i];
  }
  checked_elements(described(graph, node), result);
  return result;
}

template <typename Function>
PreparedNode unary(const Graph& graph, const GraphNode& node, Function function) {
  return {operand_shape(graph, node, 0), [function](NodeInputs inputs, std::span<float> output) {
            std::ranges::transform(inputs[0], output.begin(), function);
          }};
}

template <typename Function>
PreparedNode binary(const Graph& graph, const GraphNode& node, Function function) {
  const Shape &a_shape = operand_shape(graph, node, 0), &b_shape = operand_shape(graph, node, 1);
  if (node.inputs.size() != 2) {
    fail_at(graph, node, fmt::format("{} inputs, expected 2", node.inputs.size()));
  }
  Shape shape = broadcast_shape(graph, node, a_shape, b_shape);
  return {shape, [function, a = Operand(a_shape, shape), b = Operand(b_shape, shape)](
                     NodeInputs inputs, std::span<float> output) {
            for (size_t i = 0; i < output.size(); ++i) {
              output[i] = function(inputs[0][a(i)], inputs[1][b(i)]);
            }
          }};
}

// Halves to the even number. Adding 1.5 * 2^23 leaves no bits for a fraction, which is several
// times faster than a call and exact for |x| <= 2^22.
float round_small(float x) {
  constexpr float kShift = 12582912.0F;
  return (x + kShift) - kShift;
}

PreparedNode quantize(const Graph& graph, const GraphNode& node) {
  const Quantizer quantizer = quantizer_of(graph, node);
  const Shape& shape = operand_shape(graph, node, 0);
  for (const GraphTensor* parameter : {&quantizer.scale, &quantizer.zero_point}) {
    if (broadcast_shape(graph, node, shape, parameter->shape) != shape &&
        elements(parameter->shape) != 1) {
      fail_at(graph, node,
              fmt::format("scale or zero point of shape {} does not fit values of {}",
                          to_string(parameter->shape), to_string(shape)));
    }
  }
  const float low = quantizer.low(), high = quantizer.high();
  // Clamping to whole numbers and rounding can change places.
  constexpr int kMaxSmallBits = 20;
  const bool is_small = quantizer.bits <= kMaxSmallBits;
  return {shape, [=, scale = Operand(quantizer.scale.shape, shape),
                  zero = Operand(quantizer.zero_point.shape, shape)](NodeInputs inputs,
                                                                     std::span<float> output) {
            const auto apply = [&](size_t i, float s, float z) {
              const float t = std::clamp(inputs[0][i] / s + z, low, high);
              output[i] = ((is_small ? round_small(t) : std::nearbyint(t)) - z) * s;
            };
            if (scale.is_scalar() && zero.is_scalar()) {
              const float s = inputs[1][0], z = inputs[2][0];
              for (size_t i = 0; i < output.size(); ++i) apply(i, s, z);
            } else {
              for (size_t i = 0; i < output.size(); ++i) {
                apply(i, inputs[1][scale(i)], inputs[2][zero(i)]);
              }
            }
          }};
}

PreparedNode quantize_bipolar(const Graph& graph, const GraphNode& node) {
  return binary(graph, node, [](float x, float scale) { return x >= 0 ? scale : -scale; });
}

// A bound of Clip: an input since opset 11, before that an attribute.
float clip_bound(const Graph& graph, const GraphNode& node, size_t input, std::string_view name,
                 float otherwise) {
  if (!node.has_input(input)) return float_attribute(graph, node, name, otherwise);
  const auto& constant = graph.input_of(node, input).constant;
  if (!constant || !constant->is_float() || constant->floats().size() != 1) {
    fail_at(graph, node, fmt::format("its {} is no constant number", name));
  }
  return constant->floats()[0];
}

PreparedNode clip(const Graph& graph, const GraphNode& node) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float low = clip_bound(graph, node, 1, "min", -kInfinity);
  const float high = clip_bound(graph, node, 2, "max", kInfinity);
  return unary(graph, node, [=](float x) { return std::min(std::max(x, low), high); });
}

PreparedNode leaky_relu(const Graph& graph, const GraphNode& node) {
  const float slope = float_attribute(graph, node, "alpha", 0.01F);
  return unary(graph, node, [=](float x) { return x >= 0 ? x : slope * x; });
}

PreparedNode elu(const Graph& graph, const GraphNode& node) {
  const float alpha = float_attribute(graph, node, "alpha", 1);
  return unary(graph, node, [=](float x) { return x >= 0 ? x : alpha * (std::exp(x) - 1); });
}

// Softmax and LogSoftmax along the last axis.
PreparedNode softmax(const Graph& graph, const GraphNode& node) {
  const Shape& shape = operand_shape(graph, node, 0);
  const auto rank = static_cast<int64_t>(shape.size());
  const int64_t axis = integer_attribute(graph, node, "axis", graph.opset >= 13 ? -1 : 1);
  if (rank < 1 || shape.back() < 1 || (axis != -1 && axis != rank - 1)) {
    fail_at(graph, node, fmt::format("axis {} is not supported, expected the last one", axis));
  }
  const bool is_log = node.op == "LogSoftmax";
  return {shape, [is_log, size = static_cast<size_t>(shape.back())](NodeInputs inputs,
                                                                    std::span<float> output) {
            for (size_t row = 0; row < output.size(); row += size) {
              const auto x = inputs[0].subspan(row, size);
              const float largest = *std::ranges::max_element(x);
              double sum = 0;
              for (const float value : x) sum += std::exp(static_cast<double>(value - largest));
              for (size_t i = 0; i < size; ++i) {
                const double log = static_cast<double>(x[i] - largest) - std::log(sum);
                output[row + i] = static_cast<float>(is_log ? log : std::exp(log));
              }
            }
          }};
}

// ReduceMean, ReduceSum and ReduceMax over any axes.
PreparedNode reduce(const Graph& graph, const GraphNode& node) {
  const Shape& in = operand_shape(graph, node, 0);
  std::vector<int64_t> axes = integers_attribute(graph, node, "axes", {});
  if (node.has_input(1)) {
    fail_at(graph, node, "axes as an input are not supported");
  }
  const auto rank = static_cast<int64_t>(in.size());
  std::vector<bool> is_reduced(in.size(), axes.empty());
  for (const int64_t axis : axes) {
    if (axis < -rank || axis >= rank) fail_at(graph, node, fmt::format("axis {}", axis));
    is_reduced[static_cast<size_t>(axis < 0 ? axis + rank : axis)] = true;
  }
  Shape kept = in, shape;
  const bool keeps = integer_attribute(graph, node, "keepdims", 1) != 0;
  for (size_t i = 0; i < in.size(); ++i) {
    if (is_reduced[i]) kept[i] = 1;
    if (!is_reduced[i] || keeps) shape.push_back(kept[i]);
  }
  if (elements(in) < 1) fail_at(graph, node, "its input has no values");
  const double divisor = node.op == "ReduceMean" ? static_cast<double>(elements(in)) /
                                                       static_cast<double>(elements(kept))
                                                 : 1.0;
  const bool is_max = node.op == "ReduceMax";
  return {shape, [=, target = Operand(kept, in)](NodeInputs inputs, std::span<float> output) {
            std::vector<double> sums(output.size(),
                                     is_max ? -std::numeric_limits<double>::infinity() : 0.0);
            for (size_t i = 0; i < inputs[0].size(); ++i) {
              double& sum = sums[target(i)];
              sum = is_max ? std::max(sum, static_cast<double>(inputs[0][i])) : sum + inputs[0][i];
            }
            std::ranges::transform(sums, output.begin(),
                                   [&](double sum) { return static_cast<float>(sum / divisor); });
          }};
}

using Unary = float (*)(float);
constexpr std::array<std::pair<std::string_view, Unary>, 13> kUnary = {{
    {"Relu", [](float x) { return x > 0 ? x : 0.0F; }},
    {"Abs", [](float x) { return std::abs(x); }},
    {"Ceil", [](float x) { return std::ceil(x); }},
    {"Exp", [](float x) { return std::exp(x); }},
    {"Floor", [](float x) { return std::floor(x); }},
    {"Log", [](float x) { return std::log(x); }},
    {"Neg", [](float x) { return -x; }},
    {"Reciprocal", [](float x) { return 1 / x; }},
    {"Round", [](float x) { return std::nearbyint(x); }},
    {"Sigmoid", [](float x) { return 1 / (1 + std::exp(-x)); }},
    {"Sign", [](float x) { return static_cast<float>((x > 0) - (x < 0)); }},
    {"Sqrt", [](float x) { return std::sqrt(x); }},
    {"Tanh", [](float x) { return std::tanh(x); }},
}};

using Binary = float (*)(float, float);
constexpr std::array<std::pair<std::string_view, Binary>, 8> kBinary = {{
    {"Add", [](float a, float b) { return a + b; }},
    {"Div", [](float a, float b) { return a / b; }},
    {"Max", [](float a, float b) { return std::max(a, b); }},
    {"Min", [](float a, float b) { return std::min(a, b); }},
    {"Mul", [](float a, float b) { return a * b; }},
    {"Pow", [](float a, float b) { return std::pow(a, b); }},
    {"PRelu", [](float x, float slope) { return x >= 0 ? x : slope * x; }},
    {"Sub", [](float a, float b) { return a - b; }},
}};

}  // namespace

std::optional<PreparedNode> prepare_elementwise(const Graph& graph, const GraphNode& node) {
  for (const auto& [name, function] : kUnary) {
    if (node.op == name) return unary(graph, node, function);
  }
  for (const auto& [name, function] : kBinary) {
    if (node.op == name) return binary(graph, node, function);
  }
  using Function = PreparedNode (*)(const Graph&, const GraphNode&);
  static const std::map<std::string_view, Function> functions = {
      {"BipolarQuant", quantize_bipolar},
      {"Clip", clip},
      {"Elu", elu},
      {"LeakyRelu", leaky_relu},
      {"LogSoftmax", softmax},
      {"Quant", quantize},
      {"ReduceMax", reduce},
      {"ReduceMean", reduce},
      {"ReduceSum", reduce},
      {"Softmax", softmax},
  };
  const auto found = functions.find(node.op);
  if (found == functions.end()) return std::nullopt;
  return found->second(graph, node);
}

}  // namespace fmp::onnx
