// SPDX-License-Identifier: MIT
// Operations that only move values about.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "framework/onnx/ops.h"

namespace fmp::onnx {
namespace {

// An axis of a shape of `rank` dimensions, counted from the end when negative.
size_t resolve_axis(const Graph& graph, const GraphNode& node, int64_t axis, size_t rank) {
  const auto size = static_cast<int64_t>(rank);
  if (axis < -size || axis >= size) {
    fail_at(graph, node, fmt::format("axis {} of {} dimensions", axis, rank));
  }
  return static_cast<size_t>(axis < 0 ? axis + size : axis);
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

// Indices fit: checked_elements() bounds the size of every value.
Rearrangement::Source source_at(int input, int64_t index) {
  return {input, static_cast<int32_t>(index)};
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
  fill_sources(graph, node, result,
               [&](const Shape& position) { return source_at(0, dot(position, strides)); });
  return result;
}

Rearrangement concat(const Graph& graph, const GraphNode& node) {
  Rearrangement result;
  result.shape = first_shape(graph, node);
  if (!node.attributes.contains("axis")) fail_at(graph, node, "has no axis");
  const size_t axis =
      resolve_axis(graph, node, integer_attribute(graph, node, "axis", 0), result.shape.size());
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
    return source_at(input, dot(position, stride) + (index - position[axis]) * stride[axis]);
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
    return source_at(0, source + (index < 0 ? index + in[axis] : index) * in_strides[axis]);
  });
  return result;
}

// Index, step and number of what a slice takes of an axis of `size` values.
struct Range {
  int64_t first = 0, step = 1, count = 0;
};

Range make_range(const Graph& graph, const GraphNode& node, int64_t start, int64_t end,
                 int64_t step, int64_t size) {
  if (step == 0) fail_at(graph, node, "step 0");
  if (size == 0) return {0, 1, 0};
  // Steps beyond the axis and ends beyond 64 bits are as good as these.
  step = std::clamp(step, -size - 1, size + 1);
  const auto from_end = [size](int64_t at) { return at < 0 ? at + size : at; };
  if (step > 0) {
    const int64_t first = std::clamp(from_end(start), int64_t{0}, size);
    const int64_t last = std::clamp(from_end(end), int64_t{0}, size);
    return {first, step, std::max(int64_t{0}, (last - first + step - 1) / step)};
  }
  const int64_t first = std::clamp(from_end(start), int64_t{0}, size - 1);
  const int64_t last = std::clamp(from_end(end), int64_t{-1}, size - 1);
  return {first, step, std::max(int64_t{0}, (first - last - step - 1) / -step)};
}

Rearrangement take_ranges(const Graph& graph, const GraphNode& node,
                          const std::vector<Range>& ranges) {
  Rearrangement result;
  for (const Range& range : ranges) result.shape.push_back(range.count);
  const Shape strides = strides_of(first_shape(graph, node));
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t source = 0;
    for (size_t i = 0; i < position.size(); ++i) {
      source += (ranges[i].first + position[i] * ranges[i].step) * strides[i];
    }
    return source_at(0, source);
  });
  return result;
}

std::vector<Range> all_of(const Shape& shape) {
  std::vector<Range> ranges;
  for (const int64_t size : shape) ranges.push_back({0, 1, size});
  return ranges;
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
  const std::vector<int64_t> axes = integers_of(graph, node, "axes", 3).value_or(all);
  const std::vector<int64_t> steps =
      integers_of(graph, node, "steps", 4).value_or(std::vector<int64_t>(starts->size(), 1));
  if (axes.size() != starts->size() || steps.size() != starts->size()) {
    fail_at(graph, node, "its axes or steps do not fit its starts");
  }
  std::vector<Range> ranges = all_of(in);
  std::vector<bool> is_given(in.size(), false);
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t axis = resolve_axis(graph, node, axes[i], in.size());
    if (is_given[axis]) fail_at(graph, node, fmt::format("axis {} is given twice", axes[i]));
    is_given[axis] = true;
    ranges[axis] = make_range(graph, node, (*starts)[i], (*ends)[i], steps[i], in[axis]);
  }
  return take_ranges(graph, node, ranges);
}

// One of the outputs of a Split: the sizes are given, or all but the last are equal.
Rearrangement split(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const size_t axis =
      resolve_axis(graph, node, integer_attribute(graph, node, "axis", 0), in.size());
  const int64_t parts = integer_attribute(graph, node, "num_outputs", node.outputs);
  std::optional<std::vector<int64_t>> sizes = integers_of(graph, node, "split", 1);
  if (parts != node.outputs || (sizes && static_cast<int64_t>(sizes->size()) != parts)) {
    fail_at(graph, node,
            fmt::format("{} outputs, but {} parts", node.outputs,
                        sizes ? static_cast<int64_t>(sizes->size()) : parts));
  }
  if (!sizes) {
    const int64_t size = (in[axis] + parts - 1) / parts;
    const int64_t last = in[axis] - size * (parts - 1);
    if (last < 0 || (last != size && !node.attributes.contains("num_outputs"))) {
      fail_at(graph, node, fmt::format("{} values cannot be split into {}", in[axis], parts));
    }
    sizes.emplace(static_cast<size_t>(parts), size);
    sizes->back() = last;
  }
  int64_t total = 0;
  for (const int64_t size : *sizes) {
    if (size < 0 || size > in[axis]) {
      fail_at(graph, node, fmt::format("a part of {} of {} values", size, in[axis]));
    }
    total += size;
  }
  if (total != in[axis]) {
    fail_at(graph, node, fmt::format("parts {} of {} values", to_string(*sizes), in[axis]));
  }
  const auto part = sizes->begin() + node.output_index;
  std::vector<Range> ranges = all_of(in);
  ranges[axis] = {std::accumulate(sizes->begin(), part, int64_t{0}), 1, *part};
  return take_ranges(graph, node, ranges);
}

// The position that Pad's modes reflect, edge and wrap read for one outside 0 .. size - 1.
int64_t padded_position(std::string_view mode, int64_t at, int64_t size) {
  if (mode == "edge") return std::clamp(at, int64_t{0}, size - 1);
  if (mode == "wrap") return ((at % size) + size) % size;
  const int64_t period = std::max(int64_t{1}, 2 * (size - 1));
  at = ((at % period) + period) % period;
  return std::min(at, period - at);
}

// The pads of every axis: before all, then after all.
std::vector<int64_t> pads_of(const Graph& graph, const GraphNode& node, size_t rank) {
  const auto pads = integers_of(graph, node, "pads", 1);
  std::vector<int64_t> axes(rank);
  std::iota(axes.begin(), axes.end(), 0);
  if (node.has_input(3)) axes = *integers_of(graph, node, "axes", 3);
  if (!pads || pads->size() != 2 * axes.size()) {
    fail_at(graph, node, fmt::format("expected {} pads", 2 * axes.size()));
  }
  std::vector<int64_t> result(2 * rank, 0);
  std::vector<bool> is_given(rank, false);
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t axis = resolve_axis(graph, node, axes[i], rank);
    if (is_given[axis]) fail_at(graph, node, fmt::format("axis {} is given twice", axes[i]));
    is_given[axis] = true;
    result[axis] = (*pads)[i];
    result[axis + rank] = (*pads)[i + axes.size()];
  }
  return result;
}

float padding_value(const Graph& graph, const GraphNode& node) {
  if (!node.has_input(2)) return float_attribute(graph, node, "value", 0);
  if (node.attributes.contains("value")) fail_at(graph, node, "its value is given twice");
  const auto& value = graph.input_of(node, 2).constant;
  if (!value || elements(value->shape) != 1) {
    fail_at(graph, node, "its padding value is no constant number");
  }
  return value->is_float() ? value->floats()[0] : static_cast<float>(value->integers()[0]);
}

// Pads that are negative remove values.
Rearrangement pad(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const std::string mode = string_attribute(graph, node, "mode", "constant");
  if (mode != "constant" && mode != "reflect" && mode != "edge" && mode != "wrap") {
    fail_at(graph, node, fmt::format("mode {} is not supported", mode));
  }
  const std::vector<int64_t> pads = pads_of(graph, node, in.size());
  Rearrangement result;
  result.fill = padding_value(graph, node);
  for (size_t i = 0; i < in.size(); ++i) {
    const int64_t before = pads[i], after = pads[i + in.size()];
    // Reflection goes once to either side: so much is defined alike everywhere.
    const int64_t largest = mode == "reflect" ? in[i] - 1 : kMaxElements;
    if (before < -in[i] || after < -in[i] || before > largest || after > largest ||
        in[i] + before + after < 0 || (mode != "constant" && in[i] < 1)) {
      fail_at(graph, node,
              fmt::format("pads {} of shape {} are not supported", to_string(pads), to_string(in)));
    }
    result.shape.push_back(in[i] + before + after);
  }
  const Shape strides = strides_of(in);
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t source = 0;
    for (size_t i = 0; i < position.size(); ++i) {
      int64_t at = position[i] - pads[i];
      if (at < 0 || at >= in[i]) {
        if (mode == "constant") return Rearrangement::Source{0, -1};
        at = padded_position(mode, at, in[i]);
      }
      source += at * strides[i];
    }
    return source_at(0, source);
  });
  return result;
}

// Broadcasts to a shape, as Add and the like do.
Rearrangement expand(const Graph& graph, const GraphNode& node) {
  Shape in = first_shape(graph, node);
  Shape shape = integers_of(graph, node, "shape", 1).value_or(Shape{});
  const size_t rank = std::max(in.size(), shape.size());
  in.insert(in.begin(), rank - in.size(), 1);
  shape.insert(shape.begin(), rank - shape.size(), 1);
  Shape strides = strides_of(in);
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] != in[i] && shape[i] != 1 && in[i] != 1) {
      fail_at(graph, node,
              fmt::format("shape {} does not fit {}", to_string(shape), to_string(in)));
    }
    if (in[i] == 1) strides[i] = 0;
    if (shape[i] == 1) shape[i] = in[i];
  }
  Rearrangement result;
  result.shape = std::move(shape);
  fill_sources(graph, node, result,
               [&](const Shape& position) { return source_at(0, dot(position, strides)); });
  return result;
}

Rearrangement tile(const Graph& graph, const GraphNode& node) {
  const Shape& in = first_shape(graph, node);
  const auto repeats = integers_of(graph, node, "repeats", 1);
  if (!repeats || repeats->size() != in.size()) {
    fail_at(graph, node, fmt::format("expected {} repeats", in.size()));
  }
  Rearrangement result;
  for (size_t i = 0; i < in.size(); ++i) {
    const int64_t count = (*repeats)[i];
    if (count < 0 || count > kMaxElements) fail_at(graph, node, fmt::format("repeats {}", count));
    result.shape.push_back(in[i] * count);
  }
  const Shape strides = strides_of(in);
  fill_sources(graph, node, result, [&](const Shape& position) {
    int64_t source = 0;
    for (size_t i = 0; i < position.size(); ++i) source += position[i] % in[i] * strides[i];
    return source_at(0, source);
  });
  return result;
}

Rearrangement unchanged(const Graph& graph, const GraphNode& node) {
  return {first_shape(graph, node), {}, 0};
}

// Nothing is dropped outside training.
Rearrangement dropout(const Graph& graph, const GraphNode& node) {
  if (node.has_input(2)) {
    const auto& training = graph.input_of(node, 2).constant;
    if (!training || training->is_float() || elements(training->shape) != 1 ||
        training->integers()[0] != 0) {
      fail_at(graph, node, "is in training mode, or may be");
    }
  }
  return unchanged(graph, node);
}

}  // namespace

std::optional<Rearrangement> prepare_rearrangement(const Graph& graph, const GraphNode& node) {
  using Function = Rearrangement (*)(const Graph&, const GraphNode&);
  static const std::map<std::string_view, Function> functions = {
      {"Concat", concat},
      {"Dropout", dropout},
      {"Expand", expand},
      {"Flatten", flatten},
      {"Gather", gather},
      {"Identity", unchanged},
      {"Pad", pad},
      {"Reshape", reshape},
      {"Slice", slice},
      {"Split", split},
      {"Squeeze", squeeze},
      {"Tile", tile},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
  };
  const auto found = functions.find(node.op);
  if (found == functions.end()) return std::nullopt;
  return found->second(graph, node);
}

}  // namespace fmp::onnx
