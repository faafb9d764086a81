// SPDX-License-Identifier: MIT
// Convolution, products, batch-norm and pooling for one frame. Written for graphs of any form:
// plain loops over contiguous rows, in which weights that are zero cost nothing. Sums are kept in
// double, so that what is next to a rounding boundary of a quantizer falls where exact arithmetic
// has it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "framework/onnx/ops.h"

namespace fmp::onnx {
namespace {

const Shape& shape_of_input(const Graph& graph, const GraphNode& node, size_t i,
                            std::string_view what) {
  if (!node.has_input(i)) fail_at(graph, node, fmt::format("has no {}", what));
  return graph.input_of(node, i).shape;
}

[[noreturn]] void fail_shape(const Graph& graph, const GraphNode& node, std::string_view what,
                             const Shape& found, std::string_view expected) {
  fail_at(graph, node,
          fmt::format("{} has shape {}, expected {}", what, to_string(found), expected));
}

// One spatial axis that a window moves along.
struct Axis {
  int64_t in = 1, out = 1;
  int64_t kernel = 1, stride = 1, dilation = 1, pad = 0;  // pad: before the first value

  // The outputs whose tap `k` reads inside the input: [first, last).
  std::pair<int64_t, int64_t> covered(int64_t k) const {
    const int64_t offset = k * dilation - pad;
    const int64_t first = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
    const int64_t last = offset >= in ? 0 : (in - 1 - offset) / stride + 1;
    return {std::min(first, out), std::min(last, out)};
  }
};

// Rows and columns; what is one-dimensional has one row.
struct Window {
  Axis rows, columns;
  Shape spatial;  // of the output

  int64_t in_size() const { return rows.in * columns.in; }
  int64_t out_size() const { return rows.out * columns.out; }
};

constexpr int64_t kMaxWindow = 1 << 20;  // largest kernel, stride, dilation or padding

Axis make_axis(const Graph& graph, const GraphNode& node, int64_t in, int64_t kernel,
               int64_t stride, int64_t dilation, int64_t before, int64_t after) {
  const auto in_range = [](int64_t value, int64_t low) {
    return value >= low && value <= kMaxWindow;
  };
  if (!in_range(kernel, 1) || !in_range(stride, 1) || !in_range(dilation, 1) ||
      !in_range(before, 0) || !in_range(after, 0)) {
    fail_at(graph, node,
            fmt::format("kernel {}, stride {}, dilation {} or pads {}, {} are not supported",
                        kernel, stride, dilation, before, after));
  }
  const int64_t reach = dilation * (kernel - 1) + 1;
  const std::string auto_pad = string_attribute(graph, node, "auto_pad", "NOTSET");
  if (auto_pad != "NOTSET" && (before != 0 || after != 0)) {
    fail_at(graph, node, fmt::format("has auto_pad {} and pads as well", auto_pad));
  }
  if (auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER") {
    const int64_t needed =
        std::max(int64_t{0}, ((in + stride - 1) / stride - 1) * stride + reach - in);
    before = auto_pad == "SAME_UPPER" ? needed / 2 : needed - needed / 2;
    after = needed - before;
  } else if (auto_pad == "VALID") {
    before = after = 0;
  } else if (auto_pad != "NOTSET") {
    fail_at(graph, node, fmt::format("auto_pad {} is not supported", auto_pad));
  }
  int64_t room = in + before + after - reach;
  if (room < 0) {
    fail_at(graph, node,
            fmt::format("its window of {} is larger than the {} values with padding", reach,
                        in + before + after));
  }
  const bool ceil_mode = integer_attribute(graph, node, "ceil_mode", 0) != 0;
  if (ceil_mode) room += stride - 1;
  Axis axis{in, room / stride + 1, kernel, stride, dilation, before};
  // The last window must begin inside the input or the padding before it.
  if (ceil_mode && (axis.out - 1) * stride >= in + before) --axis.out;
  return axis;
}

Window make_window(const Graph& graph, const GraphNode& node, const Shape& in,
                   const std::vector<int64_t>& kernel) {
  const size_t rank = in.size() - 2;
  if (rank < 1 || rank > 2 || kernel.size() != rank) {
    fail_shape(graph, node, "its input", in,
               fmt::format("one of {} spatial dimensions (1 or 2)", kernel.size()));
  }
  const std::vector<int64_t> ones(rank, 1);
  const auto strides = integers_attribute(graph, node, "strides", ones);
  const auto dilations = integers_attribute(graph, node, "dilations", ones);
  const auto pads = integers_attribute(graph, node, "pads", std::vector<int64_t>(2 * rank, 0));
  if (strides.size() != rank || dilations.size() != rank || pads.size() != 2 * rank) {
    fail_at(graph, node,
            fmt::format("its strides, dilations or pads are not for {} dimensions", rank));
  }
  std::vector<Axis> axes;
  for (size_t i = 0; i < rank; ++i) {
    axes.push_back(make_axis(graph, node, in[i + 2], kernel[i], strides[i], dilations[i], pads[i],
                             pads[i + rank]));
  }
  Window window;
  for (const Axis& axis : axes) window.spatial.push_back(axis.out);
  window.columns = axes.back();
  if (rank == 2) window.rows = axes.front();
  // [L][1] as [1][L]: long rows are what the loops are fast on.
  if (window.columns.in == 1 && window.columns.kernel == 1 && window.columns.out == 1) {
    std::swap(window.rows, window.columns);
  }
  return window;
}

// y += weight * (the input as tap (row, column) of the window sees it)
void accumulate_tap(const Window& window, int64_t row, int64_t column, double weight,
                    const float* x, double* y) {
  const auto [first_row, last_row] = window.rows.covered(row);
  const auto [first, last] = window.columns.covered(column);
  for (int64_t r = first_row; r < last_row; ++r) {
    const int64_t from = r * window.rows.stride + row * window.rows.dilation - window.rows.pad;
    const float* source =
        x + from * window.columns.in + column * window.columns.dilation - window.columns.pad;
    double* target = y + r * window.columns.out;
    if (window.columns.stride == 1) {
      for (int64_t i = first; i < last; ++i) target[i] += weight * source[i];
    } else {
      for (int64_t i = first; i < last; ++i)
        target[i] += weight * source[i * window.columns.stride];
    }
  }
}

PreparedNode prepare_convolution(const Graph& graph, const GraphNode& node) {
  const Shape& in = shape_of_input(graph, node, 0, "input");
  const Shape& weight = shape_of_input(graph, node, 1, "weight");
  const int64_t group = integer_attribute(graph, node, "group", 1);
  if (in.size() < 3 || weight.size() != in.size() || in[0] != 1) {
    fail_shape(graph, node, "its input", in, "[1, channels, positions] or two spatial dimensions");
  }
  if (group < 1 || weight[0] % group != 0 || weight[0] < 1 || in[1] % group != 0 ||
      weight[1] != in[1] / group) {
    fail_shape(graph, node, "its weight", weight,
               fmt::format("one for {} channels in {} groups", in[1], group));
  }
  const std::vector<int64_t> kernel(weight.begin() + 2, weight.end());
  if (integers_attribute(graph, node, "kernel_shape", kernel) != kernel) {
    fail_shape(graph, node, "its weight", weight, "that of kernel_shape");
  }
  if (node.has_input(2) && graph.input_of(node, 2).shape != Shape{weight[0]}) {
    fail_shape(graph, node, "its bias", graph.input_of(node, 2).shape, to_string(Shape{weight[0]}));
  }
  const Window window = make_window(graph, node, in, kernel);
  Shape shape = {1, weight[0]};
  shape.insert(shape.end(), window.spatial.begin(), window.spatial.end());
  const int64_t outputs = weight[0], inputs = weight[1], outputs_per_group = weight[0] / group;
  const double work =
      static_cast<double>(elements(weight)) * static_cast<double>(window.out_size());
  const auto run = [=](NodeInputs values, std::span<float> output) {
    std::vector<double> sums(static_cast<size_t>(window.out_size()));
    const float* w = values[1].data();
    float* y = output.data();
    for (int64_t o = 0; o < outputs; ++o) {
      const bool has_bias = values.size() > 2 && !values[2].empty();
      std::ranges::fill(sums, has_bias ? values[2][static_cast<size_t>(o)] : 0.0);
      const int64_t first = o / outputs_per_group * inputs;
      for (int64_t c = 0; c < inputs; ++c) {
        const float* x = values[0].data() + (first + c) * window.in_size();
        for (int64_t r = 0; r < window.rows.kernel; ++r) {
          for (int64_t k = 0; k < window.columns.kernel; ++k, ++w) {
            if (*w != 0) accumulate_tap(window, r, k, *w, x, sums.data());
          }
        }
      }
      for (const double sum : sums) *y++ = static_cast<float>(sum);
    }
  };
  return {std::move(shape), run, work};
}

// A matrix that is read by row and column, transposed or not.
struct MatrixLayout {
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
};

MatrixLayout matrix_layout(int64_t rows, int64_t columns, bool transposed) {
  if (transposed) return {columns, rows, 1, columns};
  return {rows, columns, columns, 1};
}

// y = scale * a * b
void multiply(const MatrixLayout& a_layout, const float* a, const MatrixLayout& b_layout,
              const float* b, float scale, float* y) {
  std::vector<double> sums(static_cast<size_t>(b_layout.columns));
  for (int64_t i = 0; i < a_layout.rows; ++i) {
    std::ranges::fill(sums, 0.0);
    for (int64_t k = 0; k < a_layout.columns; ++k) {
      const double factor = a[i * a_layout.row_stride + k * a_layout.column_stride];
      if (factor == 0) continue;
      const float* source = b + k * b_layout.row_stride;
      for (double& sum : sums) {
        sum += factor * *source;
        source += b_layout.column_stride;
      }
    }
    for (const double sum : sums) *y++ = static_cast<float>(scale * sum);
  }
}

PreparedNode prepare_matmul(const Graph& graph, const GraphNode& node) {
  const Shape& a = shape_of_input(graph, node, 0, "first factor");
  const Shape& b = shape_of_input(graph, node, 1, "second factor");
  const std::string expected = fmt::format("one that can be multiplied by {}", to_string(b));
  if (a.size() < 2 || b.size() < 2 || a.back() != b[b.size() - 2]) {
    fail_shape(graph, node, "its first factor", a, expected);
  }
  const Shape a_batch(a.begin(), a.end() - 2), b_batch(b.begin(), b.end() - 2);
  if (!b_batch.empty() && a_batch != b_batch) {
    fail_shape(graph, node, "its first factor", a, expected);
  }
  Shape shape = a;
  shape.back() = b.back();
  const int64_t batch = elements(a_batch);
  const int64_t b_step = b_batch.empty() ? 0 : b[b.size() - 2] * b.back();
  const MatrixLayout a_layout = matrix_layout(a[a.size() - 2], a.back(), false);
  const MatrixLayout b_layout = matrix_layout(b[b.size() - 2], b.back(), false);
  const double work = static_cast<double>(elements(a)) * static_cast<double>(b.back());
  const auto run = [=](NodeInputs values, std::span<float> output) {
    for (int64_t i = 0; i < batch; ++i) {
      multiply(a_layout, values[0].data() + i * a_layout.rows * a_layout.columns, b_layout,
               values[1].data() + i * b_step, 1.0F,
               output.data() + i * a_layout.rows * b_layout.columns);
    }
  };
  return {std::move(shape), run, work};
}

PreparedNode prepare_gemm(const Graph& graph, const GraphNode& node) {
  const Shape& a = shape_of_input(graph, node, 0, "first factor");
  const Shape& b = shape_of_input(graph, node, 1, "second factor");
  if (a.size() != 2) fail_shape(graph, node, "its first factor", a, "two dimensions");
  if (b.size() != 2) fail_shape(graph, node, "its second factor", b, "two dimensions");
  const auto transposed = [&](std::string_view name) {
    return integer_attribute(graph, node, name, 0) != 0;
  };
  const MatrixLayout a_layout = matrix_layout(a[0], a[1], transposed("transA"));
  const MatrixLayout b_layout = matrix_layout(b[0], b[1], transposed("transB"));
  if (a_layout.columns != b_layout.rows) {
    fail_shape(graph, node, "its first factor", a,
               fmt::format("one that can be multiplied by {}", to_string(b)));
  }
  const float alpha = float_attribute(graph, node, "alpha", 1);
  const float beta = float_attribute(graph, node, "beta", 1);
  const int64_t columns = b_layout.columns;
  int64_t row_step = 0, column_step = 0;  // of the bias
  if (node.has_input(2)) {
    Shape bias = graph.input_of(node, 2).shape;
    while (bias.size() < 2) bias.insert(bias.begin(), 1);
    if (bias.size() != 2 || (bias[0] != 1 && bias[0] != a_layout.rows) ||
        (bias[1] != 1 && bias[1] != columns)) {
      fail_shape(graph, node, "its bias", bias, to_string(Shape{a_layout.rows, columns}));
    }
    row_step = bias[0] == 1 ? 0 : bias[1];
    column_step = bias[1] == 1 ? 0 : 1;
  }
  const double work = static_cast<double>(elements(a)) * static_cast<double>(columns);
  const auto run = [=](NodeInputs values, std::span<float> output) {
    multiply(a_layout, values[0].data(), b_layout, values[1].data(), alpha, output.data());
    if (values.size() < 3 || values[2].empty()) return;
    for (int64_t i = 0; i < a_layout.rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        output[static_cast<size_t>(i * columns + j)] +=
            beta * values[2][static_cast<size_t>(i * row_step + j * column_step)];
      }
    }
  };
  return {{a_layout.rows, columns}, run, work};
}

PreparedNode prepare_batch_norm(const Graph& graph, const GraphNode& node) {
  const Shape& in = shape_of_input(graph, node, 0, "input");
  if (in.size() < 2) fail_shape(graph, node, "its input", in, "[1, channels, ...]");
  const int64_t channels = in[1];
  for (size_t i = 1; i < 5; ++i) {
    const Shape& shape = shape_of_input(graph, node, i, "scale, bias, mean or variance");
    if (shape != Shape{channels}) {
      fail_shape(graph, node, fmt::format("its input {}", i), shape, to_string(Shape{channels}));
    }
  }
  // Before training_mode came, further outputs meant training.
  if (node.outputs > 1) {
    fail_at(graph, node, fmt::format("is in training mode: it has {} outputs", node.outputs));
  }
  const float epsilon = float_attribute(graph, node, "epsilon", 1e-5F);
  const int64_t groups = in[0] * channels, size = elements(in) / std::max(int64_t{1}, groups);
  return {in, [=](NodeInputs values, std::span<float> output) {
            for (int64_t i = 0; i < groups; ++i) {
              const auto c = static_cast<size_t>(i % channels);
              // In the order in which PyTorch and ONNX Runtime round.
              const float gain = 1 / std::sqrt(values[4][c] + epsilon) * values[1][c];
              const float shift = values[2][c] - values[3][c] * gain;
              const float* x = values[0].data() + i * size;
              float* y = output.data() + i * size;
              for (int64_t k = 0; k < size; ++k) y[k] = x[k] * gain + shift;
            }
          }};
}

// The taps of a window at output `at` that read inside the input: [first, last).
std::pair<int64_t, int64_t> inside(const Axis& axis, int64_t at) {
  const int64_t begin = at * axis.stride - axis.pad;
  const int64_t first = begin >= 0 ? 0 : (-begin + axis.dilation - 1) / axis.dilation;
  const int64_t last = begin >= axis.in ? 0 : (axis.in - 1 - begin) / axis.dilation + 1;
  return {first, std::min(last, axis.kernel)};
}

// Calls visit(the values of a channel that a window covers) for every channel and window.
template <typename Visit>
void for_each_window(const Window& window, int64_t channels, const float* x, Visit visit) {
  const Axis &rows = window.rows, &columns = window.columns;
  for (int64_t c = 0; c < channels; ++c, x += window.in_size()) {
    for (int64_t r = 0; r < rows.out; ++r) {
      const auto [first_row, last_row] = inside(rows, r);
      for (int64_t i = 0; i < columns.out; ++i) {
        const auto [first, last] = inside(columns, i);
        visit([&, first_row = first_row, last_row = last_row, i, r, first = first,
               last = last](auto&& each) {
          for (int64_t kr = first_row; kr < last_row; ++kr) {
            const int64_t row = r * rows.stride + kr * rows.dilation - rows.pad;
            for (int64_t k = first; k < last; ++k) {
              each(x[row * columns.in + i * columns.stride + k * columns.dilation - columns.pad]);
            }
          }
        });
      }
    }
  }
}

// A window that lies in the padding alone has no value.
void check_pool_pads(const Graph& graph, const GraphNode& node,
                     const std::vector<int64_t>& kernel) {
  const auto pads =
      integers_attribute(graph, node, "pads", std::vector<int64_t>(2 * kernel.size(), 0));
  for (size_t i = 0; i < pads.size(); ++i) {
    if (pads[i] >= kernel[i % kernel.size()]) {
      fail_at(graph, node,
              fmt::format("pads {} reach over the whole window {}", to_string(pads),
                          to_string(kernel)));
    }
  }
}

PreparedNode prepare_pool(const Graph& graph, const GraphNode& node) {
  const Shape& in = shape_of_input(graph, node, 0, "input");
  if (in.size() < 3 || in[0] != 1) {
    fail_shape(graph, node, "its input", in, "[1, channels, positions] or two spatial dimensions");
  }
  const bool is_max = node.op == "MaxPool" || node.op == "GlobalMaxPool";
  Window window;
  if (node.op.starts_with("Global")) {
    const int64_t size = elements(Shape(in.begin() + 2, in.end()));
    if (size < 1) fail_shape(graph, node, "its input", in, "one with values");
    window.columns = {size, 1, size, 1, 1, 0};
    window.spatial.assign(in.size() - 2, 1);
  } else {
    const auto kernel = integers_attribute(graph, node, "kernel_shape", {});
    if (kernel.empty()) fail_at(graph, node, "has no kernel_shape");
    window = make_window(graph, node, in, kernel);
    check_pool_pads(graph, node, kernel);
  }
  const bool counts_padding = integer_attribute(graph, node, "count_include_pad", 0) != 0;
  if (!is_max && counts_padding && integer_attribute(graph, node, "ceil_mode", 0) != 0) {
    fail_at(graph, node, "count_include_pad together with ceil_mode is not supported");
  }
  const int64_t kernel_size = window.rows.kernel * window.columns.kernel;
  Shape shape = {1, in[1]};
  shape.insert(shape.end(), window.spatial.begin(), window.spatial.end());
  const auto covered_of = [](const Axis& axis) { return std::min(axis.kernel, axis.in); };
  const double work = static_cast<double>(in[1] * window.out_size()) *
                      static_cast<double>(covered_of(window.rows) * covered_of(window.columns));
  const auto run = [=, channels = in[1]](NodeInputs values, std::span<float> output) {
    float* y = output.data();
    for_each_window(window, channels, values[0].data(), [&](auto covered) {
      if (is_max) {
        float largest = -std::numeric_limits<float>::infinity();
        covered([&](float value) { largest = std::max(largest, value); });
        *y++ = largest;
      } else {
        double sum = 0;
        int64_t count = 0;
        covered([&](float value) {
          sum += value;
          ++count;
        });
        *y++ = static_cast<float>(
            sum / static_cast<double>(counts_padding ? kernel_size : std::max(int64_t{1}, count)));
      }
    });
  };
  return {std::move(shape), run, work};
}

// Every channel by its own mean and variance; groups of channels come reshaped to channels.
PreparedNode prepare_instance_norm(const Graph& graph, const GraphNode& node) {
  const Shape& in = shape_of_input(graph, node, 0, "input");
  if (in.size() < 3 || elements(in) < 1)
    fail_shape(graph, node, "its input", in, "[1, channels, ...]");
  const int64_t channels = in[1];
  for (size_t i = 1; i < 3; ++i) {
    const Shape& shape = shape_of_input(graph, node, i, "scale or bias");
    if (shape != Shape{channels}) {
      fail_shape(graph, node, fmt::format("its input {}", i), shape, to_string(Shape{channels}));
    }
  }
  const double epsilon = double{float_attribute(graph, node, "epsilon", 1e-5F)};
  const auto size = static_cast<size_t>(elements(in) / (in[0] * channels));
  return {in, [=](NodeInputs values, std::span<float> output) {
            for (size_t first = 0; first < output.size(); first += size) {
              const size_t c = first / size % static_cast<size_t>(channels);
              const auto x = values[0].subspan(first, size);
              double sum = 0, squares = 0;
              for (const float value : x) sum += double{value};
              const double mean = sum / static_cast<double>(size);
              for (const float value : x)
                squares += (double{value} - mean) * (double{value} - mean);
              const double gain =
                  double{values[1][c]} / std::sqrt(squares / static_cast<double>(size) + epsilon);
              for (size_t i = 0; i < size; ++i) {
                output[first + i] =
                    static_cast<float>((double{x[i]} - mean) * gain + double{values[2][c]});
              }
            }
          }};
}

// Over the last dimensions from `axis` on.
PreparedNode prepare_layer_norm(const Graph& graph, const GraphNode& node) {
  const Shape& in = shape_of_input(graph, node, 0, "input");
  const auto rank = static_cast<int64_t>(in.size());
  int64_t axis = integer_attribute(graph, node, "axis", -1);
  if (axis < -rank || axis >= rank) {
    fail_at(graph, node, fmt::format("axis {} of {} dimensions", axis, rank));
  }
  if (axis < 0) axis += rank;
  const Shape normalized(in.begin() + axis, in.end());
  const int64_t size = elements(normalized);
  for (size_t i = 1; i < node.inputs.size(); ++i) {
    const Shape& shape = shape_of_input(graph, node, i, "scale");
    if (shape != normalized) {
      fail_shape(graph, node, fmt::format("its input {}", i), shape, to_string(normalized));
    }
  }
  if (size < 1) fail_shape(graph, node, "its input", in, "one with values");
  const float epsilon = float_attribute(graph, node, "epsilon", 1e-5F);
  return {
      in, [=](NodeInputs values, std::span<float> output) {
        const auto count = static_cast<size_t>(size);
        for (size_t row = 0; row < output.size(); row += count) {
          const auto x = values[0].subspan(row, count);
          double sum = 0, squares = 0;
          for (const float value : x) sum += static_cast<double>(value);
          const double mean = sum / static_cast<double>(count);
          for (const float value : x) {
            squares += (static_cast<double>(value) - mean) * (static_cast<double>(value) - mean);
          }
          const double inverse =
              1 / std::sqrt(squares / static_cast<double>(count) + static_cast<double>(epsilon));
          for (size_t i = 0; i < count; ++i) {
            const double normal = (static_cast<double>(x[i]) - mean) * inverse;
            const float shift = values.size() > 2 ? values[2][i] : 0.0F;
            output[row + i] = static_cast<float>(normal) * values[1][i] + shift;
          }
        }
      }};
}

}  // namespace

std::optional<PreparedNode> prepare_layer(const Graph& graph, const GraphNode& node) {
  using Function = PreparedNode (*)(const Graph&, const GraphNode&);
  static const std::map<std::string_view, Function> functions = {
      {"AveragePool", prepare_pool},
      {"BatchNormalization", prepare_batch_norm},
      {"Conv", prepare_convolution},
      {"Gemm", prepare_gemm},
      {"GlobalAveragePool", prepare_pool},
      {"GlobalMaxPool", prepare_pool},
      {"InstanceNormalization", prepare_instance_norm},
      {"LayerNormalization", prepare_layer_norm},
      {"MatMul", prepare_matmul},
      {"MaxPool", prepare_pool},
  };
  const auto found = functions.find(node.op);
  if (found == functions.end()) return std::nullopt;
  return found->second(graph, node);
}

}  // namespace fmp::onnx
