// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace fmp::onnx {

// A network as an ONNX file describes it, checked and in order of evaluation: what
// framework/onnx/evaluate.h runs, framework/onnx/graph_cost.h counts and framework/onnx/import.h
// turns into a Network.
//
// The batch dimension of the input is taken to be 1, whatever the file says, so that every shape is
// known; many frames are many evaluations.

using Shape = std::vector<int64_t>;

// The metadata property that holds the names of the classes, as a JSON list of texts.
inline constexpr const char* kClassNamesKey = "fmp_class_names";

// Elements of a tensor of this shape; 1 for a scalar (an empty shape).
int64_t elements(const Shape& shape);
std::string to_string(const Shape& shape);  // e.g. "[1, 64, 1024]"

// A tensor whose values are known. Every floating-point type of the file becomes float, every
// integer type and bool int64.
struct GraphTensor {
  Shape shape;
  std::variant<std::vector<float>, std::vector<int64_t>> data;
  int type = 0;  // ONNX's number of its element type in the file; 0: was computed

  bool is_float() const { return data.index() == 0; }
  const std::vector<float>& floats() const { return std::get<0>(data); }
  const std::vector<int64_t>& integers() const { return std::get<1>(data); }
};

// std::monostate: of a type that no attribute of an operation that we evaluate has.
using GraphAttribute = std::variant<std::monostate, int64_t, float, std::string,
                                    std::vector<int64_t>, std::vector<float>, GraphTensor>;

struct GraphNode {
  static constexpr int kAbsent = -1;  // an optional input that is not given

  int index = 0;     // in the file
  std::string name;  // the file's, or "#" and the position in the file where it has none
  std::string op;
  std::string domain;
  std::vector<int> inputs;  // indices into Graph::values, or kAbsent; trailing absent ones left out
  int output = kAbsent;
  // An operation with several outputs that somebody reads is that many nodes: the index of this
  // one's, and how many outputs the operation has.
  int output_index = 0, outputs = 1;
  std::map<std::string, GraphAttribute> attributes;

  bool has_input(size_t i) const { return i < inputs.size() && inputs[i] != kAbsent; }
};

// What flows between nodes.
struct GraphValue {
  std::string name;
  Shape shape;
  std::optional<GraphTensor> constant;  // when it does not depend on the input
  int producer = -1;                    // index into Graph::nodes; -1: input or initializer
  bool is_integer = false;  // of an integer type; without `constant` it is still kept as float
  std::string type;         // FINN's annotation of the values' type, e.g. "SCALEDINT8"; "" = none
};

struct Graph {
  std::string file;  // for messages
  int64_t opset = 0;
  int64_t fixed_batch = 1;  // the file's; 1 when it is open
  // What the classes are called, where the file says so as fmp_radioml does; empty: not known.
  std::vector<std::string> class_names;
  std::vector<GraphValue> values;
  std::vector<GraphNode> nodes;  // each after those whose outputs it reads
  int input = 0;                 // index into values; shape [1, ...]
  int output = 0;

  const GraphValue& value(int index) const { return values[static_cast<size_t>(index)]; }
  const GraphValue& input_of(const GraphNode& node, size_t i) const;
};

enum class Reading : uint8_t {
  kValues,  // to be evaluated: every operation must be known
  kShapes,  // to be looked at: of what is not known, shapes are enough
};

// Reads and checks a file, with tensors that are in other files of its folder. Throws Error, in one
// line that names the file and, where there is one, the node: damaged files, tensors whose data
// does not fit their shape, values that nobody writes, cycles, operations, attributes and inputs
// that are not supported (framework/onnx/operations.h), shapes that do not fit. No memory is taken
// and no time spent that the file's size or a fixed limit does not cover (ops.h, load.cc).
Graph load(const std::filesystem::path& file, Reading reading = Reading::kValues);

enum class Rounding : uint8_t { kHalfEven, kUp, kDown, kCeil, kFloor, kHalfUp, kHalfDown };

// A Quant or IntQuant node: y = (round(clamp(x / scale + zero_point, low, high)) - zero_point) *
// scale, as written by Brevitas (no domain, "onnx.brevitas"), FINN ("finn.custom_op.general") and
// QONNX ("qonnx.custom_op.general"). Signed ones of 1 bit have the codes -1 and 1.
struct Quantizer {
  GraphTensor scale, zero_point;  // scalars, or broadcast against the values
  int bits = 8;
  bool is_signed = true, narrow = false;
  Rounding rounding = Rounding::kHalfEven;

  bool bipolar() const { return bits == 1 && is_signed; }
  float low() const;
  float high() const;
  std::optional<float> scalar_scale() const;  // when it has one element
  bool zero_centred() const;                  // every zero point is 0
};
bool is_quantizer(const GraphNode& node);
bool is_power_of_two(float value);
// Throws Error when scale, zero point or bit width are no constants or make no sense.
Quantizer quantizer_of(const Graph& graph, const GraphNode& node);

// The parameters of a QuantizeLinear (code = clamp(round_half_even(x / scale) + zero_point, low,
// high)) or DequantizeLinear (x = (code - zero_point) * scale).
struct LinearQuantizer {
  std::vector<float> scale, zero_point;  // of the same size: 1, or that of an axis
  int type = 2;                          // of the codes: ONNX's number, ...
  int bits = 8;                          // ... and what it means
  bool is_signed = false;
  double low = 0, high = 255;
};
bool is_linear_quantizer(const GraphNode& node);  // either of the two
// Throws Error when scale or zero point are no constants, make no sense or are of a type that is
// not supported.
LinearQuantizer linear_quantizer_of(const Graph& graph, const GraphNode& node);

// An attribute, or its default where the node has none. Throw Error when it is of another type.
int64_t integer_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                          int64_t otherwise);
float float_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                      float otherwise);
std::string string_attribute(const Graph& graph, const GraphNode& node, std::string_view name,
                             std::string_view otherwise);
std::vector<int64_t> integers_attribute(const Graph& graph, const GraphNode& node,
                                        std::string_view name, std::vector<int64_t> otherwise);

// A list of integers that older versions of an operation have as an attribute and newer ones as an
// input; nothing when neither is given. Throws Error when both are, or when the input is no
// constant.
std::optional<std::vector<int64_t>> integers_of(const Graph& graph, const GraphNode& node,
                                                const std::string& name, size_t input);

// Throws Error "FILE: node NAME (OP): MESSAGE".
[[noreturn]] void fail_at(const Graph& graph, const GraphNode& node, const std::string& message);

}  // namespace fmp::onnx
