// SPDX-License-Identifier: MIT
// Operations on one value at a time, with inputs broadcast as numpy does, and reductions.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
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

float rounded(Rounding rounding, float x) {
  switch (rounding) {
    case Rounding::kHalfEven:
      return std::nearbyint(x);
    case Rounding::kUp:
      return std::copysign(std::ceil(std::abs(x)), x);
    case Rounding::kDown:
      return std::trunc(x);
    case Rounding::kCeil:
      return std::ceil(x);
    case Rounding::kFloor:
      return std::floor(x);
    case Rounding::kHalfUp:
      return std::copysign(std::floor(std::abs(x) + 0.5F), x);
    case Rounding::kHalfDown:
      return std::copysign(std::ceil(std::abs(x) - 0.5F), x);
  }
  return x;
}

// Applies apply(x, scale, zero point) to every value.
template <typename Apply>
PreparedNode scaled(const Shape& shape, const Shape& scale_shape, const Shape& zero_shape,
                    Apply apply) {
  return {shape, [apply, scale = Operand(scale_shape, shape), zero = Operand(zero_shape, shape)](
                     NodeInputs inputs, std::span<float> output) {
            for (size_t i = 0; i < output.size(); ++i) {
              output[i] = apply(inputs[0][i], inputs[1][scale(i)], inputs[2][zero(i)]);
            }
          }};
}

PreparedNode quantize(const Graph& graph, const GraphNode& node) {
  const Quantizer quantizer = quantizer_of(graph, node);
  const Shape& shape = operand_shape(graph, node, 0);
  for (const GraphTensor* parameter : {&quantizer.scale, &quantizer.zero_point}) {
    if (elements(parameter->shape) != 1 &&
        broadcast_shape(graph, node, shape, parameter->shape) != shape) {
      fail_at(graph, node,
              fmt::format("scale or zero point of shape {} does not fit values of {}",
                          to_string(parameter->shape), to_string(shape)));
    }
  }
  const Shape &scale = quantizer.scale.shape, &zero = quantizer.zero_point.shape;
  if (quantizer.bipolar()) {
    return scaled(shape, scale, zero, [](float x, float s, float z) {
      return ((x / s + z >= 0 ? 1.0F : -1.0F) - z) * s;
    });
  }
  const float low = quantizer.low(), high = quantizer.high();
  // Clamping to whole numbers and rounding can change places.
  constexpr int kMaxSmallBits = 20;
  if (quantizer.bits <= kMaxSmallBits && quantizer.rounding == Rounding::kHalfEven) {
    if (elements(scale) == 1 && elements(zero) == 1) {
      const float s = quantizer.scale.floats()[0], z = quantizer.zero_point.floats()[0];
      return unary(graph, node, [=](float x) {
        return (round_small(std::clamp(x / s + z, low, high)) - z) * s;
      });
    }
    return scaled(shape, scale, zero, [=](float x, float s, float z) {
      return (round_small(std::clamp(x / s + z, low, high)) - z) * s;
    });
  }
  return scaled(shape, scale, zero, [=, rounding = quantizer.rounding](float x, float s, float z) {
    return (rounded(rounding, std::clamp(x / s + z, low, high)) - z) * s;
  });
}

// The shape of the scales of a QuantizeLinear or DequantizeLinear when they are broadcast: one
// number, or one for each index of an axis.
Shape linear_parameter_shape(const Graph& graph, const GraphNode& node, const Shape& shape) {
  const Shape& given = operand_shape(graph, node, 1);
  if (elements(given) == 1 && given.size() < 2) return {};
  const auto rank = static_cast<int64_t>(shape.size());
  const int64_t axis = integer_attribute(graph, node, "axis", 1);
  if (axis < -rank || axis >= rank) {
    fail_at(graph, node, fmt::format("axis {} of {} dimensions", axis, rank));
  }
  const auto i = static_cast<size_t>(axis < 0 ? axis + rank : axis);
  if (given != Shape{shape[i]}) {
    fail_at(graph, node,
            fmt::format("scales of shape {}, expected one or {}", to_string(given), shape[i]));
  }
  Shape result(shape.size(), 1);
  result[i] = shape[i];
  return result;
}

PreparedNode quantize_linear(const Graph& graph, const GraphNode& node) {
  const LinearQuantizer quantizer = linear_quantizer_of(graph, node);
  const Shape& shape = operand_shape(graph, node, 0);
  const Shape parameters = linear_parameter_shape(graph, node, shape);
  const auto low = static_cast<float>(quantizer.low), high = static_cast<float>(quantizer.high);
  // The zero point is added after rounding, unlike Quant's.
  return {shape, [=, at = Operand(parameters, shape)](NodeInputs inputs, std::span<float> output) {
            for (size_t i = 0; i < output.size(); ++i) {
              output[i] = std::clamp(std::nearbyint(inputs[0][i] / quantizer.scale[at(i)]) +
                                         quantizer.zero_point[at(i)],
                                     low, high);
            }
          }};
}

PreparedNode dequantize_linear(const Graph& graph, const GraphNode& node) {
  const LinearQuantizer quantizer = linear_quantizer_of(graph, node);
  const Shape& shape = operand_shape(graph, node, 0);
  const Shape parameters = linear_parameter_shape(graph, node, shape);
  return {shape, [=, at = Operand(parameters, shape)](NodeInputs inputs, std::span<float> output) {
            for (size_t i = 0; i < output.size(); ++i) {
              output[i] = (inputs[0][i] - quantizer.zero_point[at(i)]) * quantizer.scale[at(i)];
            }
          }};
}

PreparedNode quantize_bipolar(const Graph& graph, const GraphNode& node) {
  return binary(graph, node, [](float x, float scale) { return x >= 0 ? scale : -scale; });
}

// A bound of Clip: an input since opset 11, before that an attribute.
float clip_bound(const Graph& graph, const GraphNode& node, size_t input, const std::string& name,
                 float otherwise) {
  if (!node.has_input(input)) return float_attribute(graph, node, name, otherwise);
  if (node.attributes.contains(name)) fail_at(graph, node, fmt::format("{} is given twice", name));
  const auto& constant = graph.input_of(node, input).constant;
  if (!constant || elements(constant->shape) != 1) {
    fail_at(graph, node, fmt::format("its {} is no constant number", name));
  }
  return constant->is_float() ? constant->floats()[0] : static_cast<float>(constant->integers()[0]);
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

PreparedNode selu(const Graph& graph, const GraphNode& node) {
  const float alpha = float_attribute(graph, node, "alpha", 1.67326319217681884765625F);
  const float gamma = float_attribute(graph, node, "gamma", 1.05070102214813232421875F);
  return unary(graph, node,
               [=](float x) { return gamma * (x > 0 ? x : alpha * (std::exp(x) - 1)); });
}

PreparedNode hard_sigmoid(const Graph& graph, const GraphNode& node) {
  const float alpha = float_attribute(graph, node, "alpha", 0.2F);
  const float beta = float_attribute(graph, node, "beta", 0.5F);
  return unary(graph, node, [=](float x) { return std::clamp(alpha * x + beta, 0.0F, 1.0F); });
}

PreparedNode gelu(const Graph& graph, const GraphNode& node) {
  const std::string approximate = string_attribute(graph, node, "approximate", "none");
  if (approximate == "none") {
    return unary(graph, node, [](float x) {
      return 0.5F * x * (1 + std::erf(x * (std::numbers::sqrt2_v<float> / 2)));
    });
  }
  if (approximate != "tanh") {
    fail_at(graph, node, fmt::format("approximate {} is not supported", approximate));
  }
  return unary(graph, node, [](float x) {
    constexpr float kFactor = 0.7978845608F, kCubic = 0.044715F;  // sqrt(2 / pi)
    return 0.5F * x * (1 + std::tanh(kFactor * (x + kCubic * x * x * x)));
  });
}

// The slope is broadcast to the values, never the other way round.
PreparedNode prelu(const Graph& graph, const GraphNode& node) {
  PreparedNode result =
      binary(graph, node, [](float x, float slope) { return x >= 0 ? x : slope * x; });
  if (result.shape != operand_shape(graph, node, 0)) {
    fail_at(graph, node,
            fmt::format("slopes of shape {} do not fit values of {}",
                        to_string(operand_shape(graph, node, 1)),
                        to_string(operand_shape(graph, node, 0))));
  }
  return result;
}

// Max and Min of any number of inputs.
PreparedNode extreme(const Graph& graph, const GraphNode& node) {
  Shape shape = operand_shape(graph, node, 0);
  for (size_t i = 1; i < node.inputs.size(); ++i) {
    shape = broadcast_shape(graph, node, shape, operand_shape(graph, node, i));
  }
  std::vector<Operand> operands;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    operands.emplace_back(operand_shape(graph, node, i), shape);
  }
  return {shape, [operands, is_max = node.op == "Max"](NodeInputs inputs, std::span<float> output) {
            for (size_t i = 0; i < output.size(); ++i) {
              float result = inputs[0][operands[0](i)];
              for (size_t k = 1; k < operands.size(); ++k) {
                const float value = inputs[k][operands[k](i)];
                result = is_max ? std::max(result, value) : std::min(result, value);
              }
              output[i] = result;
            }
          }};
}

// Softmax and LogSoftmax along one axis, or before opset 13 along all dimensions from `axis` on.
PreparedNode softmax(const Graph& graph, const GraphNode& node) {
  constexpr int64_t kOneAxisOpset = 13;
  const Shape& shape = operand_shape(graph, node, 0);
  const auto rank = static_cast<int64_t>(shape.size());
  const bool is_one_axis = graph.opset >= kOneAxisOpset;
  int64_t axis = integer_attribute(graph, node, "axis", is_one_axis ? -1 : 1);
  if (axis < -rank || axis >= rank || elements(shape) < 1) {
    fail_at(graph, node, fmt::format("axis {} of shape {}", axis, to_string(shape)));
  }
  if (axis < 0) axis += rank;
  const int64_t inner =
      is_one_axis ? elements(Shape(shape.begin() + axis + 1, shape.end())) : int64_t{1};
  const int64_t size = elements(Shape(shape.begin() + axis, shape.end())) / inner;
  const bool is_log = node.op == "LogSoftmax";
  return {shape, [is_log, size = static_cast<size_t>(size), inner = static_cast<size_t>(inner)](
                     NodeInputs inputs, std::span<float> output) {
            for (size_t row = 0; row < output.size() / size; ++row) {
              const size_t first = row / inner * inner * size + row % inner;
              const float* x = inputs[0].data() + first;
              float* y = output.data() + first;
              float largest = x[0];
              for (size_t i = 1; i < size; ++i) largest = std::max(largest, x[i * inner]);
              double sum = 0;
              for (size_t i = 0; i < size; ++i) {
                sum += std::exp(static_cast<double>(x[i * inner] - largest));
              }
              for (size_t i = 0; i < size; ++i) {
                const double log = static_cast<double>(x[i * inner] - largest) - std::log(sum);
                y[i * inner] = static_cast<float>(is_log ? log : std::exp(log));
              }
            }
          }};
}

// How a reduction takes up a value and what it gives at the end.
struct Reduction {
  double first;
  double (*add)(double sum, double x);
  double (*finish)(double sum, double count);
};

const std::map<std::string_view, Reduction>& reductions() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr auto sum = [](double s, double x) { return s + x; };
  constexpr auto squares = [](double s, double x) { return s + x * x; };
  constexpr auto plain = [](double s, double) { return s; };
  static const std::map<std::string_view, Reduction> table = {
      {"ReduceL1", {0, [](double s, double x) { return s + std::abs(x); }, plain}},
      {"ReduceL2", {0, squares, [](double s, double) { return std::sqrt(s); }}},
      {"ReduceMax", {-kInfinity, [](double s, double x) { return std::max(s, x); }, plain}},
      {"ReduceMean", {0, sum, [](double s, double count) { return s / count; }}},
      {"ReduceMin", {kInfinity, [](double s, double x) { return std::min(s, x); }, plain}},
      {"ReduceSum", {0, sum, plain}},
      {"ReduceSumSquare", {0, squares, plain}},
  };
  return table;
}

// Over any axes: an attribute, in newer versions an input.
PreparedNode reduce(const Graph& graph, const GraphNode& node) {
  const Shape& in = operand_shape(graph, node, 0);
  const std::vector<int64_t> axes = integers_of(graph, node, "axes", 1).value_or(Shape{});
  const bool keeps_all =
      axes.empty() && integer_attribute(graph, node, "noop_with_empty_axes", 0) != 0;
  const auto rank = static_cast<int64_t>(in.size());
  std::vector<bool> is_reduced(in.size(), axes.empty() && !keeps_all);
  for (const int64_t axis : axes) {
    if (axis < -rank || axis >= rank) {
      fail_at(graph, node, fmt::format("axis {} of {} dimensions", axis, rank));
    }
    is_reduced[static_cast<size_t>(axis < 0 ? axis + rank : axis)] = true;
  }
  Shape kept = in, shape;
  const bool keeps = integer_attribute(graph, node, "keepdims", 1) != 0;
  for (size_t i = 0; i < in.size(); ++i) {
    if (is_reduced[i]) kept[i] = 1;
    if (!is_reduced[i] || keeps) shape.push_back(kept[i]);
  }
  if (elements(in) < 1) fail_at(graph, node, "its input has no values");
  const double count = static_cast<double>(elements(in)) / static_cast<double>(elements(kept));
  return {shape, [=, reduction = reductions().at(node.op), target = Operand(kept, in)](
                     NodeInputs inputs, std::span<float> output) {
            std::vector<double> sums(output.size(), reduction.first);
            for (size_t i = 0; i < inputs[0].size(); ++i) {
              double& sum = sums[target(i)];
              sum = reduction.add(sum, static_cast<double>(inputs[0][i]));
            }
            std::ranges::transform(sums, output.begin(), [&](double sum) {
              return static_cast<float>(reduction.finish(sum, count));
            });
          }};
}

using Unary = float (*)(float);
constexpr std::array<std::pair<std::string_view, Unary>, 17> kUnary = {{
    {"Relu", [](float x) { return x > 0 ? x : 0.0F; }},
    {"Abs", [](float x) { return std::abs(x); }},
    {"Ceil", [](float x) { return std::ceil(x); }},
    {"Erf", [](float x) { return std::erf(x); }},
    {"Exp", [](float x) { return std::exp(x); }},
    {"Floor", [](float x) { return std::floor(x); }},
    {"HardSwish", [](float x) { return x * std::clamp(x / 6 + 0.5F, 0.0F, 1.0F); }},
    {"Log", [](float x) { return std::log(x); }},
    {"Neg", [](float x) { return -x; }},
    {"Reciprocal", [](float x) { return 1 / x; }},
    {"Round", [](float x) { return std::nearbyint(x); }},
    {"Sigmoid", [](float x) { return 1 / (1 + std::exp(-x)); }},
    {"Sign", [](float x) { return static_cast<float>((x > 0) - (x < 0)); }},
    {"Softplus", [](float x) { return std::max(x, 0.0F) + std::log1p(std::exp(-std::abs(x))); }},
    {"Softsign", [](float x) { return x / (1 + std::abs(x)); }},
    {"Sqrt", [](float x) { return std::sqrt(x); }},
    {"Tanh", [](float x) { return std::tanh(x); }},
}};

using Binary = float (*)(float, float);
constexpr std::array<std::pair<std::string_view, Binary>, 5> kBinary = {{
    {"Add", [](float a, float b) { return a + b; }},
    {"Div", [](float a, float b) { return a / b; }},
    {"Mul", [](float a, float b) { return a * b; }},
    {"Pow", [](float a, float b) { return std::pow(a, b); }},
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
      {"DequantizeLinear", dequantize_linear},
      {"Elu", elu},
      {"Gelu", gelu},
      {"HardSigmoid", hard_sigmoid},
      {"IntQuant", quantize},
      {"LeakyRelu", leaky_relu},
      {"LogSoftmax", softmax},
      {"Max", extreme},
      {"Min", extreme},
      {"PRelu", prelu},
      {"Quant", quantize},
      {"QuantizeLinear", quantize_linear},
      {"Selu", selu},
      {"Softmax", softmax},
  };
  if (reductions().contains(node.op)) return reduce(graph, node);
  const auto found = functions.find(node.op);
  if (found == functions.end()) return std::nullopt;
  return found->second(graph, node);
}

}  // namespace fmp::onnx
