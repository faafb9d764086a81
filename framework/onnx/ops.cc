// SPDX-License-Identifier: MIT
// Dispatch to the families of operations, constants, and the operations that only move values.
#include "framework/onnx/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "framework/error.h"

namespace fmp::onnx {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 26;  // of one value
constexpr size_t kMaxRank = 8;

bool is_known_domain(const GraphNode& node) {
  if (node.domain.empty() || node.domain == "ai.onnx") return true;
  if (node.op != "Quant" && node.op != "BipolarQuant") return false;
  constexpr std::array<std::string_view, 3> kQuantizerDomains = {
      "onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general"};
  return std::ranges::find(kQuantizerDomains, node.domain) != kQuantizerDomains.end();
}

bool is_constant(const Graph& graph, const GraphNode& node) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (node.has_input(i) && !graph.input_of(node, i).constant) return false;
  }
  return !node.inputs.empty();
}

// A list of integers that older versions of an operation have as an attribute and newer ones as an
// input; nothing when neither is given.
std::optional<std::vector<int64_t>> integers_of(const Graph& graph, const GraphNode& node,
                                                std::string_view name, size_t input) {
  if (node.has_input(input)) {
    const GraphValue& value = graph.input_of(node, input);
    if (!value.constant || value.constant->is_float()) {
      fail_at(graph, node, fmt::format("its {} ({}) are no constant integers", name, value.name));
    }
    return value.constant->integers();
  }
  if (!node.attributes.contains(std::string(name))) return std::nullopt;
  return integers_attribute(graph, node, name, {});
}

// An axis of a shape of `rank` dimensions, counted from the end when negative.
size_t resolve_axis(const Graph& graph, const GraphNode& node, int64_t axis, size_t rank) {
  const auto size = static_cast<int64_t>(rank);
  if (axis < -size || axis >= size) {
    fail_at(graph, node, fmt::format("axis {} of {} dimensions", axis, rank));
  }
  return static_cast<size_t>(axis < 0 ? axis + size : axis);
}

const Shape& first_shape(const Graph& graph, const GraphNode& node) {
  if (!node.has_input(0)) fail_at(graph, node, "has no input");
  return graph.input_of(node, 0).shape;
}

Shape strides_of(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

// Fills a rearrangement's sources: source(position) for every position of its shape.
template <typename Source>
void fill_sources(const Graph& graph, const GraphNode& node, Rearrangement& result, Source source) {
  const int64_t count = checked_elements(described(graph, node), result.shape);
  result.sources.reserve(static_cast<size_t>(count));
  Shape position(result.shape.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    result.sources.push_back(source(std::as_const(position)));
    for (size_t axis = position.size(); axis-- > 0;) {
      if (++position[axis] < result.shape[axis]) break;
      position[axis] = 0;
    }
  }
}

int64_t dot(const Shape& a, const Shape& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), int64_t{0});
}

Rearrangement reshaped(const Graph& graph, const GraphNode& node, Shape shape) {
  const int64_t count = elements(first_shape(graph, node));
  if (checked_elements(described(graph, node), shape) != count) {
    fail_at(graph, node,
            fmt::format("shape {} does not fit {}", to_string(shape),
                        to_string(first_shape(graph, node))));
  }
  return {std::move(shape), {}, 0};
}

Rearrangement reshape(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  std::optional<Shape> shape = integers_of(graph, node, "shape", 1);
  if (!shape) fail_at(graph, node, "has no shape");
  const bool copies_zero = integer_attribute(graph, node, "allowzero", 0) == 0;
  int64_t known = 1;
  int64_t* open = nullptr;
  for (size_t i = 0; i < shape->size(); ++i) {
    int64_t& size = (*shape)[i];
    if (size == 0 && copies_zero && i < in.size()) size = in[i];
    if (size == -1 && open == nullptr) {
      open = &size;
    } else if (size < 0 || (size > 0 && known > kMaxElements / size)) {
      fail_at(graph, node, fmt::format("shape {} makes no sense", to_string(*shape)));
    } else {
      known *= size;
    }
  }
  if (open != nullptr) *open = known > 0 ? elements(in) / known : 0;
  return reshaped(graph, node, *std::move(shape));
}

Rearrangement flatten(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  int64_t axis = integer_attribute(graph, node, "axis", 1);
  if (axis != static_cast<int64_t>(in.size())) {
    axis = static_cast<int64_t>(resolve_axis(graph, node, axis, in.size()));
  }
  const int64_t rows = elements(Shape(in.begin(), in.begin() + axis));
  return reshaped(graph, node, {rows, elements(Shape(in.begin() + axis, in.end()))});
}

Rearrangement squeeze(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const auto axes = integers_of(graph, node, "axes", 1);
  std::vector<bool> dropped(in.size(), false);
  for (size_t i = 0; i < in.size(); ++i) dropped[i] = !axes && in[i] == 1;
  for (const int64_t axis : axes.value_or(Shape{})) {
    dropped[resolve_axis(graph, node, axis, in.size())] = true;
  }
  Shape shape;
  for (size_t i = 0; i < in.size(); ++i) {
    if (!dropped[i]) shape.push_back(in[i]);
  }
  return reshaped(graph, node, std::move(shape));
}

Rearrangement unsqueeze(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const auto axes = integers_of(graph, node, "axes", 1);
  if (!axes) fail_at(graph, node, "has no axes");
  const size_t rank = in.size() + axes->size();
  std::vector<bool> added(rank, false);
  for (const int64_t axis : *axes) {
    const size_t i = resolve_axis(graph, node, axis, rank);
    if (added[i]) fail_at(graph, node, fmt::format("axis {} is given twice", axis));
    added[i] = true;
  }
  Shape shape;
  size_t next = 0;
  for (const bool is_new : added) shape.push_back(is_new ? 1 : in[next++]);
  return reshaped(graph, node, std::move(shape));
}

Rearrangement transpose(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  std::vector<int64_t> reversed(in.size());
  std::iota(reversed.rbegin(), reversed.rend(), 0);
  const std::vector<int64_t> perm = integers_attribute(graph, node, "perm", reversed);
  std::vector<int64_t> sorted = perm;
  std::ranges::sort(sorted);
  std::ranges::reverse(reversed);
  if (sorted != reversed) {
    fail_at(graph, node,
            fmt::format("perm {} is no permutation of {} dimensions", to_string(perm), in.size()));
  }
  const Shape in_strides = strides_of(in);
  Rearrangement result;
  Shape strides;
  for (const int64_t axis : perm) {
    result.shape.push_back(in[static_cast<size_t>(axis)]);
    strides.push_back(in_strides[static_cast<size_t>(axis)]);
  }
  fill_sources(graph, node, result, [&](const Shape& position) {
    return Rearrangement::Source{0, dot(position, strides)};
  });
  return result;
}

Rearrangement concat(const Graph& graph, const GraphNode& node) {
  Rearrangement result;
  result.shape = first_shape(graph, node);
  const size_t axis =
      resolve_axis(graph, node, integer_attribute(graph, node, "axis", 1), result.shape.size());
  std::vector<std::pair<int, int64_t>> parts;  // for every index along the axis: input and index
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    if (!node.has_input(i)) fail_at(graph, node, fmt::format("input {} is missing", i));
    Shape shape = graph.input_of(node, i).shape;
    if (shape.size() != result.shape.size()) {
      fail_at(graph, node, "its inputs have different numbers of dimensions");
    }
    for (int64_t k = 0; k < shape[axis]; ++k) parts.emplace_back(static_cast<int>(i), k);
    shape[axis] = result.shape[axis];
    if (shape != result.shape) {
      fail_at(graph, node,
              fmt::format("shape {} does not fit {}", to_string(graph.input_of(node, i).shape),
                          to_string(result.shape)));
    }
    if (parts.size() > static_cast<size_t>(kMaxElements)) fail_at(graph, node, "is too large");
  }
  std::vector<Shape> strides;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    strides.push_back(strides_of(graph.input_of(node, i).shape));
  }
  result.shape[axis] = static_cast<int64_t>(parts.size());
  fill_sources(graph, node, result, [&](const Shape& position) {
    const auto [input, index] = parts[static_cast<size_t>(position[axis])];
    const Shape& stride = strides[static_cast<size_t>(input)];
    return Rearrangement::Source{input,
                                 dot(position, stride) + (index - position[axis]) * stride[axis]};
  });
  return result;
}

Rearrangement gather(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const size_t axis =
      resolve_axis(graph, node, integer_attribute(graph, node, "axis", 0), in.size());
  const auto indices = integers_of(graph, node, "indices", 1);
  if (!indices) fail_at(graph, node, "has no indices");
  const Shape& inner = graph.input_of(node, 1).shape;
  for (const int64_t index : *indices) {
    if (index < -in[axis] || index >= in[axis]) {
      fail_at(graph, node, fmt::format("index {} of {} values", index, in[axis]));
    }
  }
  const Shape in_strides = strides_of(in);
  const Shape inner_strides = strides_of(inner);
  Rearrangement result;
  result.shape.assign(in.begin(), in.begin() + static_cast<ptrdiff_t>(axis));
  result.shape.insert(result.shape.end(), inner.begin(), inner.end());
  result.shape.insert(result.shape.end(), in.begin() + static_cast<ptrdiff_t>(axis) + 1, in.end());
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t at = 0, source = 0;
    for (size_t i = 0; i < position.size(); ++i) {
      if (i < axis) {
        source += position[i] * in_strides[i];
      } else if (i < axis + inner.size()) {
        at += position[i] * inner_strides[i - axis];
      } else {
        source += position[i] * in_strides[i + 1 - inner.size()];
      }
    }
    const int64_t index = (*indices)[static_cast<size_t>(at)];
    return Rearrangement::Source{
        0, source + (index < 0 ? index + in[axis] : index) * in_strides[axis]};
  });
  return result;
}

Rearrangement slice(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const auto starts = integers_of(graph, node, "starts", 1);
  const auto ends = integers_of(graph, node, "ends", 2);
  if (!starts || !ends || starts->size() != ends->size()) {
    fail_at(graph, node, "its starts and ends do not fit");
  }
  std::vector<int64_t> all(starts->size());
  std::iota(all.begin(), all.end(), 0);
  const auto given_axes = integers_of(graph, node, "axes", 3);
  const auto given_steps = integers_of(graph, node, "steps", 4);
  const std::vector<int64_t> ones(starts->size(), 1);
  const std::vector<int64_t>& axes = given_axes ? *given_axes : all;
  const std::vector<int64_t>& steps = given_steps ? *given_steps : ones;
  if (axes.size() != starts->size() || steps.size() != starts->size()) {
    fail_at(graph, node, "its axes or steps do not fit its starts");
  }
  Rearrangement result;
  result.shape = in;
  Shape first(in.size(), 0), step(in.size(), 1);
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t axis = resolve_axis(graph, node, axes[i], in.size());
    const int64_t size = in[axis];
    if (steps[i] < 1) fail_at(graph, node, fmt::format("step {} is not positive", steps[i]));
    const auto clamped = [&](int64_t at) {
      return std::clamp(at < 0 ? at + size : at, int64_t{0}, size);
    };
    first[axis] = clamped((*starts)[i]);
    step[axis] = std::min(steps[i], size + 1);
    const int64_t length = std::max(int64_t{0}, clamped((*ends)[i]) - first[axis]);
    result.shape[axis] = (length + step[axis] - 1) / step[axis];
  }
  const Shape strides = strides_of(in);
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t source = 0;
    for (size_t i = 0; i < position.size(); ++i) {
      source += (first[i] + position[i] * step[i]) * strides[i];
    }
    return Rearrangement::Source{0, source};
  });
  return result;
}

Rearrangement pad(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const std::string mode = string_attribute(graph, node, "mode", "constant");
  if (mode != "constant") fail_at(graph, node, fmt::format("mode {} is not supported", mode));
  const auto pads = integers_of(graph, node, "pads", 1);
  if (!pads || pads->size() != 2 * in.size()) {
    fail_at(graph, node, fmt::format("expected {} pads", 2 * in.size()));
  }
  Rearrangement result;
  result.fill = float_attribute(graph, node, "value", 0);
  if (node.has_input(2)) {
    const auto& value = graph.input_of(node, 2).constant;
    if (!value || !value->is_float() || value->floats().size() != 1) {
      fail_at(graph, node, "its padding value is no constant number");
    }
    result.fill = value->floats()[0];
  }
  for (size_t i = 0; i < in.size(); ++i) {
    const int64_t before = (*pads)[i], after = (*pads)[i + in.size()];
    if (before < 0 || after < 0 || before > kMaxElements || after > kMaxElements) {
      fail_at(graph, node, fmt::format("pads {} are not supported", to_string(*pads)));
    }
    result.shape.push_back(in[i] + before + after);
  }
  const Shape strides = strides_of(in);
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t source = 0;
    for (size_t i = 0; i < position.size(); ++i) {
      const int64_t at = position[i] - (*pads)[i];
      if (at < 0 || at >= in[i]) return Rearrangement::Source{0, -1};
      source += at * strides[i];
    }
    return Rearrangement::Source{0, source};
  });
  return result;
}

Rearrangement unchanged(const Graph& graph, const GraphNode& node) {
  return {first_shape(graph, node), {}, 0};
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
  for (const auto& [name, attribute] : node.attributes) {
    if (const auto* tensor = std::get_if<GraphTensor>(&attribute)) return *tensor;
    if (const auto* value = std::get_if<float>(&attribute)) return {{}, std::vector{*value}};
    if (const auto* value = std::get_if<int64_t>(&attribute)) return {{}, std::vector{*value}};
    if (const auto* values = std::get_if<std::vector<float>>(&attribute)) {
      return {{static_cast<int64_t>(values->size())}, *values};
    }
    if (const auto* values = std::get_if<std::vector<int64_t>>(&attribute)) {
      return {{static_cast<int64_t>(values->size())}, *values};
    }
  }
  fail_at(graph, node, "has no value that is supported");
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
  return std::visit(
      [&](const auto& data) -> GraphTensor {
        return {*shape, std::remove_cvref_t<decltype(data)>(count, data[0])};
      },
      tensor->data);
}

// ONNX's numbers of the element types that Cast may name.
constexpr int64_t kCastToFloat = 1;
constexpr std::array<int64_t, 3> kCastToInteger = {6, 7, 9};  // int32, int64, bool

GraphTensor cast(const Graph& graph, const GraphNode& node) {
  const GraphTensor& in = *graph.input_of(node, 0).constant;
  const int64_t type = integer_attribute(graph, node, "to", 0);
  if (type == kCastToFloat) {
    if (in.is_float()) return in;
    return {in.shape, std::vector<float>(in.integers().begin(), in.integers().end())};
  }
  if (std::ranges::find(kCastToInteger, type) == kCastToInteger.end()) {
    fail_at(graph, node, fmt::format("casting to type {} is not supported", type));
  }
  if (!in.is_float()) return in;
  std::vector<int64_t> integers;
  for (const float value : in.floats()) {
    constexpr float kLargest = 9.2e18F;
    if (!(std::abs(value) < kLargest)) fail_at(graph, node, fmt::format("{} is too large", value));
    integers.push_back(static_cast<int64_t>(value));
  }
  return {in.shape, std::move(integers)};
}

// What exporters do with shapes: arithmetic of integers, of equal size or with a single number.
GraphTensor integer_arithmetic(const Graph& graph, const GraphNode& node) {
  const auto inputs = constant_inputs<int64_t>(graph, node);
  if (inputs.size() != 2 || inputs[0].empty() || inputs[1].empty() ||
      (inputs[0].size() != inputs[1].size() && inputs[0].size() != 1 && inputs[1].size() != 1)) {
    fail_at(graph, node, "is not supported for these integers");
  }
  const size_t larger = inputs[0].size() >= inputs[1].size() ? 0 : 1;
  std::vector<int64_t> output(inputs[larger].size());
  for (size_t i = 0; i < output.size(); ++i) {
    const int64_t a = inputs[0][inputs[0].size() == 1 ? 0 : i];
    const int64_t b = inputs[1][inputs[1].size() == 1 ? 0 : i];
    bool overflow = false;
    if (node.op == "Add") {
      overflow = __builtin_add_overflow(a, b, &output[i]);
    } else if (node.op == "Sub") {
      overflow = __builtin_sub_overflow(a, b, &output[i]);
    } else if (node.op == "Mul") {
      overflow = __builtin_mul_overflow(a, b, &output[i]);
    } else if (node.op == "Div") {
      overflow = b == 0 || (b == -1 && a == std::numeric_limits<int64_t>::min());
      if (!overflow) output[i] = a / b;
    } else {
      fail_at(graph, node, "is not supported for integers");
    }
    if (overflow) fail_at(graph, node, fmt::format("of {} and {} overflows", a, b));
  }
  return {graph.input_of(node, larger).shape, std::move(output)};
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

std::string described(const Graph& graph, const GraphNode& node) {
  return fmt::format("{}: node {} ({})", graph.file, node.name, node.op);
}

std::optional<Rearrangement> prepare_rearrangement(const Graph& graph, const GraphNode& node) {
  using Function = Rearrangement (*)(const Graph&, const GraphNode&);
  static const std::map<std::string_view, Function> functions = {
      {"Concat", concat},       {"Dropout", unchanged},   {"Flatten", flatten},
      {"Gather", gather},       {"Identity", unchanged},  {"Pad", pad},
      {"Reshape", reshape},     {"Slice", slice},         {"Squeeze", squeeze},
      {"Transpose", transpose}, {"Unsqueeze", unsqueeze},
  };
  const auto found = functions.find(node.op);
  if (found == functions.end()) return std::nullopt;
  return found->second(graph, node);
}

PreparedNode prepare_node(const Graph& graph, const GraphNode& node) {
  if (!is_known_domain(node)) {
    fail_at(graph, node, fmt::format("domain {} is not supported", node.domain));
  }
  if (auto plan = prepare_rearrangement(graph, node)) {
    if (node.op == "Concat" && has_integer_input(graph, node)) {
      fail_at(graph, node, "its inputs are of different types");
    }
    Shape shape = plan->shape;
    return {std::move(shape),
            [plan = *std::move(plan)](NodeInputs inputs, std::span<float> output) {
              rearrange<float>(plan, inputs, output);
            }};
  }
  if (node.op == "Cast" && integer_attribute(graph, node, "to", 0) == kCastToFloat) {
    return {first_shape(graph, node), [](NodeInputs inputs, std::span<float> output) {
              std::ranges::copy(inputs[0], output.begin());
            }};
  }
  if (has_integer_input(graph, node)) fail_at(graph, node, "is not supported for integers");
  auto prepared = prepare_layer(graph, node);
  if (!prepared) prepared = prepare_elementwise(graph, node);
  if (!prepared) fail_at(graph, node, "this operation is not supported");
  checked_elements(described(graph, node), prepared->shape);
  return *std::move(prepared);
}

std::optional<GraphTensor> fold_node(const Graph& graph, const GraphNode& node) {
  if (!is_known_domain(node)) return std::nullopt;  // prepare_node complains
  if (node.op == "Constant") return constant_of(graph, node);
  if (node.op == "Shape") {
    const Shape& shape = first_shape(graph, node);
    return GraphTensor{{static_cast<int64_t>(shape.size())}, shape};
  }
  if (!is_constant(graph, node)) return std::nullopt;
  if (node.op == "ConstantOfShape") return constant_of_shape(graph, node);
  if (node.op == "Cast") return cast(graph, node);
  if (const auto plan = prepare_rearrangement(graph, node)) {
    return graph.input_of(node, 0).constant->is_float() ? rearranged<float>(graph, node, *plan)
                                                        : rearranged<int64_t>(graph, node, *plan);
  }
  if (has_integer_input(graph, node)) return integer_arithmetic(graph, node);
  const PreparedNode prepared = prepare_node(graph, node);
  std::vector<float> output(static_cast<size_t>(elements(prepared.shape)));
  prepared.run(constant_inputs<float>(graph, node), output);
  return GraphTensor{prepared.shape, std::move(output)};
}

}  // namespace fmp::onnx
