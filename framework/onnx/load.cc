// SPDX-License-Identifier: MIT
// From an ONNX file to a checked Graph: protobuf -> values, nodes and attributes -> order of
// evaluation -> shapes and constants.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <queue>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "framework/error.h"
#include "framework/onnx/external_data.h"
#include "framework/onnx/graph.h"
#include "framework/onnx/operations.h"
#include "framework/onnx/ops.h"
#include "framework/onnx/shapes.h"

namespace fmp::onnx {
namespace {

// Far above any network of this kind, and low enough that no file exhausts the memory. The
// published VGG10 has 70 nodes that write 0.9 million values for a frame, and 0.16 million weights.
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
constexpr int kMaxNodes = 1 << 16;
constexpr int64_t kMaxComputedElements = int64_t{1} << 24;  // for a frame, of all nodes together
constexpr int64_t kMaxOutputElements = int64_t{1} << 15;    // for a frame, as a batch keeps them
constexpr int64_t kMaxFoldedElements = int64_t{1} << 25;    // computed beforehand, together

// The elements of a tensor, which ONNX keeps in a field of their type or as raw bytes (little
// endian), here or in another file.
template <typename Stored, typename To, typename Field>
std::vector<To> tensor_elements(const std::string& what, const std::string* raw, const Field& field,
                                int64_t count) {
  std::vector<To> result;
  if (raw != nullptr) {
    if (raw->size() != static_cast<size_t>(count) * sizeof(Stored)) {
      fail("{}: {} bytes of data, expected {}", what, raw->size(),
           static_cast<size_t>(count) * sizeof(Stored));
    }
    result.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < result.size(); ++i) {
      Stored value;
      std::memcpy(&value, raw->data() + i * sizeof(Stored), sizeof(Stored));
      result[i] = static_cast<To>(value);  // NOLINT(bugprone-signed-char-misuse): INT8 is a number
    }
    return result;
  }
  if (field.size() != count) fail("{}: {} values, expected {}", what, field.size(), count);
  result.reserve(static_cast<size_t>(count));
  for (const auto value : field) {
    const auto stored = static_cast<Stored>(value);
    if constexpr (!std::is_floating_point_v<Stored>) {
      if (stored != value) fail("{}: value {} does not fit its type", what, value);
    }
    result.push_back(static_cast<To>(stored));
  }
  return result;
}

std::string type_name(int type) {
  if (!::onnx::TensorProto::DataType_IsValid(type)) return std::to_string(type);
  return ::onnx::TensorProto::DataType_Name(static_cast<::onnx::TensorProto::DataType>(type));
}

GraphTensor read_tensor(const std::string& what, const ::onnx::TensorProto& tensor,
                        const ExternalData& files) {
  GraphTensor result;
  result.type = tensor.data_type();
  result.shape.assign(tensor.dims().begin(), tensor.dims().end());
  const int64_t count = checked_elements(what, result.shape);
  if (tensor.has_segment()) fail("{}: is stored in segments, which are not supported", what);
  std::string external;
  const std::string* raw = tensor.has_raw_data() ? &tensor.raw_data() : nullptr;
  if (ExternalData::is_external(tensor)) {
    external = files.read(what, tensor);
    raw = &external;
  }
  const auto floats = [&]<typename Stored>(const auto& field) {
    result.data = tensor_elements<Stored, float>(what, raw, field, count);
  };
  const auto integers = [&]<typename Stored>(const auto& field) {
    result.data = tensor_elements<Stored, int64_t>(what, raw, field, count);
  };
  switch (tensor.data_type()) {
    case ::onnx::TensorProto::FLOAT:
      floats.operator()<float>(tensor.float_data());
      break;
    case ::onnx::TensorProto::DOUBLE:
      floats.operator()<double>(tensor.double_data());
      break;
    case ::onnx::TensorProto::INT64:
      integers.operator()<int64_t>(tensor.int64_data());
      break;
    case ::onnx::TensorProto::INT32:
      integers.operator()<int32_t>(tensor.int32_data());
      break;
    case ::onnx::TensorProto::INT16:
      integers.operator()<int16_t>(tensor.int32_data());
      break;
    case ::onnx::TensorProto::INT8:
      integers.operator()<int8_t>(tensor.int32_data());
      break;
    case ::onnx::TensorProto::UINT16:
      integers.operator()<uint16_t>(tensor.int32_data());
      break;
    case ::onnx::TensorProto::UINT8:
    case ::onnx::TensorProto::BOOL:
      integers.operator()<uint8_t>(tensor.int32_data());
      break;
    default:
      fail("{}: element type {} is not supported", what, type_name(tensor.data_type()));
  }
  return result;
}

// Values, nodes and attributes as the file has them.
class Reader {
 public:
  Reader(const ::onnx::ModelProto& model, const std::filesystem::path& file)
      : source_(model.graph()), files_(file) {
    graph_.file = file.string();
    for (const ::onnx::StringStringEntryProto& property : model.metadata_props()) {
      if (property.key() != kClassNamesKey) continue;
      if (!class_names_.empty()) fail("{}: {} is given twice", graph_.file, kClassNamesKey);
      class_names_ = property.value();
    }
    for (const ::onnx::OperatorSetIdProto& set : model.opset_import()) {
      if (!set.domain().empty() && set.domain() != "ai.onnx") continue;
      if (graph_.opset != 0 && graph_.opset != set.version()) {
        fail("{}: operator sets {} and {} of ONNX, expected one", graph_.file, graph_.opset,
             set.version());
      }
      graph_.opset = set.version();
    }
  }

  Graph read() {
    read_class_names();
    if (source_.node_size() == 0) fail("{}: the graph has no nodes", graph_.file);
    if (source_.node_size() > kMaxNodes) {
      fail("{}: {} nodes, at most {} are supported", graph_.file, source_.node_size(), kMaxNodes);
    }
    if (source_.sparse_initializer_size() != 0) {
      fail("{}: sparse initializers are not supported", graph_.file);
    }
    if (graph_.opset < kOldestOpset || graph_.opset > kNewestOpset) {
      fail("{}: operator set {} of ONNX, {} to {} are supported", graph_.file, graph_.opset,
           kOldestOpset, kNewestOpset);
    }
    collect_read_names();
    for (const ::onnx::TensorProto& tensor : source_.initializer()) read_initializer(tensor);
    read_input();
    for (int i = 0; i < source_.node_size(); ++i) read_node(source_.node(i), i);
    read_output();
    for (const ::onnx::TensorAnnotation& annotation : source_.quantization_annotation()) {
      read_annotation(annotation);
    }
    return std::move(graph_);
  }

 private:
  void read_class_names() {
    if (class_names_.empty()) return;
    const nlohmann::json names = nlohmann::json::parse(class_names_, nullptr, false);
    const bool is_list = names.is_array() && std::ranges::all_of(names, [](const auto& name) {
                           return name.is_string();
                         });
    if (!is_list) fail("{}: its {} are no list of texts", graph_.file, kClassNamesKey);
    for (const nlohmann::json& name : names) {
      graph_.class_names.push_back(printable(name.get<std::string>()));
    }
  }

  // The value of this name, made when it is not known yet.
  int value_of(const std::string& name) {
    const auto [found, is_new] = values_.try_emplace(name, static_cast<int>(graph_.values.size()));
    if (is_new) graph_.values.emplace_back().name = printable(name);
    return found->second;
  }

  GraphValue& value(int index) { return graph_.values[static_cast<size_t>(index)]; }

  void read_initializer(const ::onnx::TensorProto& tensor) {
    const std::string what = fmt::format("{}: tensor {}", graph_.file, printable(tensor.name()));
    if (tensor.name().empty()) fail("{}: an initializer has no name", graph_.file);
    if (values_.contains(tensor.name())) fail("{}: defined twice", what);
    GraphTensor constant = read_tensor(what, tensor, files_);
    GraphValue& added = value(value_of(tensor.name()));
    added.is_integer = !constant.is_float();
    added.shape = constant.shape;
    added.constant = std::move(constant);
  }

  // The one input that is no initializer (files of IR version 3 list those among the inputs too).
  void read_input() {
    const ::onnx::ValueInfoProto* input = nullptr;
    for (const ::onnx::ValueInfoProto& candidate : source_.input()) {
      if (values_.contains(candidate.name())) continue;
      if (input != nullptr) {
        fail("{}: inputs {} and {}, expected one", graph_.file, printable(input->name()),
             printable(candidate.name()));
      }
      input = &candidate;
    }
    if (input == nullptr) fail("{}: the graph has no input", graph_.file);
    const std::string what = fmt::format("{}: input {}", graph_.file, printable(input->name()));
    if (!input->type().has_tensor_type() || !input->type().tensor_type().has_shape()) {
      fail("{}: has no shape", what);
    }
    if (input->type().tensor_type().elem_type() != ::onnx::TensorProto::FLOAT) {
      fail("{}: is not of float values", what);
    }
    graph_.input = value_of(input->name());
    Shape& shape = value(graph_.input).shape;
    for (const auto& dimension : input->type().tensor_type().shape().dim()) {
      const bool is_batch = shape.empty();
      if (!is_batch && (!dimension.has_dim_value() || dimension.dim_value() < 1)) {
        fail("{}: dimension {} is not a positive number", what, shape.size());
      }
      if (is_batch && dimension.has_dim_value()) graph_.fixed_batch = dimension.dim_value();
      shape.push_back(is_batch ? 1 : dimension.dim_value());
    }
    if (shape.size() < 2) fail("{}: {} dimensions, expected at least 2", what, shape.size());
    checked_elements(what, shape);
  }

  void read_output() {
    if (source_.output_size() != 1) {
      fail("{}: {} outputs, expected one", graph_.file, source_.output_size());
    }
    graph_.output = value_of(source_.output(0).name());
  }

  // What nodes and the network's output read: outputs that nobody reads need no node.
  void collect_read_names() {
    for (const ::onnx::NodeProto& node : source_.node()) {
      read_names_.insert(node.input().begin(), node.input().end());
    }
    for (const ::onnx::ValueInfoProto& output : source_.output()) read_names_.insert(output.name());
  }

  void read_node(const ::onnx::NodeProto& source, int index) {
    GraphNode node;
    node.index = index;
    node.name = source.name().empty() ? fmt::format("#{}", index) : printable(source.name());
    node.op = printable(source.op_type());
    node.domain = printable(source.domain());
    for (const std::string& name : source.input()) {
      node.inputs.push_back(name.empty() ? GraphNode::kAbsent : value_of(name));
    }
    while (!node.inputs.empty() && node.inputs.back() == GraphNode::kAbsent) node.inputs.pop_back();
    for (const ::onnx::AttributeProto& attribute : source.attribute()) {
      if (!node.attributes.emplace(attribute.name(), read_attribute(node, attribute)).second) {
        fail_at(graph_, node,
                fmt::format("attribute {} is given twice", printable(attribute.name())));
      }
    }
    node.outputs = static_cast<int>(std::ranges::count_if(
        source.output(), [](const std::string& name) { return !name.empty(); }));
    if (node.outputs == 0) fail_at(graph_, node, "has no output");
    for (int i = 0; i < source.output_size(); ++i) {
      if (source.output(i).empty() || (i > 0 && !read_names_.contains(source.output(i)))) continue;
      node.output_index = i;
      add_node(node, source.output(i));
    }
  }

  void add_node(GraphNode node, const std::string& output_name) {
    node.output = value_of(output_name);
    GraphValue& output = value(node.output);
    if (output.producer != -1 || output.constant || node.output == graph_.input) {
      fail_at(graph_, node, fmt::format("its output {} is already written", output.name));
    }
    output.producer = static_cast<int>(graph_.nodes.size());
    graph_.nodes.push_back(std::move(node));
  }

  GraphAttribute read_attribute(const GraphNode& node, const ::onnx::AttributeProto& source) {
    const std::string what = fmt::format("{}: node {} ({}): attribute {}", graph_.file, node.name,
                                         node.op, printable(source.name()));
    switch (source.type()) {
      case ::onnx::AttributeProto::INT:
        return source.i();
      case ::onnx::AttributeProto::FLOAT:
        return source.f();
      case ::onnx::AttributeProto::STRING:
        return printable(source.s());
      case ::onnx::AttributeProto::INTS:
        return std::vector<int64_t>(source.ints().begin(), source.ints().end());
      case ::onnx::AttributeProto::FLOATS:
        return std::vector<float>(source.floats().begin(), source.floats().end());
      case ::onnx::AttributeProto::TENSOR:
        return read_tensor(what, source.t(), files_);
      default:
        return {};
    }
  }

  void read_annotation(const ::onnx::TensorAnnotation& annotation) {
    const auto found = values_.find(annotation.tensor_name());
    if (found == values_.end()) return;
    for (const ::onnx::StringStringEntryProto& entry : annotation.quant_parameter_tensor_names()) {
      if (entry.key() == "finn_datatype") value(found->second).type = printable(entry.value());
    }
  }

  const ::onnx::GraphProto& source_;
  ExternalData files_;
  std::string class_names_;
  Graph graph_;
  std::unordered_map<std::string, int> values_;
  std::unordered_set<std::string> read_names_;
};

// Puts nodes after those whose outputs they read; of the nodes that could be next, the file's
// first.
void sort_nodes(Graph& graph) {
  const size_t count = graph.nodes.size();
  std::vector<int> waits_for(count, 0);
  std::vector<std::vector<size_t>> readers(count);
  for (size_t i = 0; i < count; ++i) {
    const GraphNode& node = graph.nodes[i];
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.has_input(k)) continue;
      const GraphValue& value = graph.input_of(node, k);
      if (value.producer >= 0) {
        ++waits_for[i];
        readers[static_cast<size_t>(value.producer)].push_back(i);
      } else if (!value.constant && node.inputs[k] != graph.input) {
        fail_at(graph, node, fmt::format("nothing writes its input {}", value.name));
      }
    }
  }
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> ready;
  std::vector<GraphNode> sorted;
  const auto finish = [&](size_t i) {
    graph.values[static_cast<size_t>(graph.nodes[i].output)].producer =
        static_cast<int>(sorted.size());
    sorted.push_back(graph.nodes[i]);
    for (const size_t reader : readers[i]) {
      if (--waits_for[reader] == 0) ready.push(reader);
    }
  };
  for (size_t i = 0; i < count; ++i) {
    if (waits_for[i] == 0) ready.push(i);
  }
  while (!ready.empty()) {
    const size_t i = ready.top();
    ready.pop();
    finish(i);
  }
  if (sorted.size() != count) {
    const auto stuck = std::ranges::find_if(waits_for, [](int waits) { return waits > 0; });
    fail_at(graph, graph.nodes[static_cast<size_t>(stuck - waits_for.begin())],
            "is part of a cycle, or reads from one");
  }
  graph.nodes = std::move(sorted);
}

// Whether a node's new shape holds the batch of the file, where the graph is run with a batch of 1.
bool has_fixed_batch(const Graph& graph, const GraphNode& node) {
  if (graph.fixed_batch <= 1 || (node.op != "Reshape" && node.op != "Expand")) return false;
  if (!node.has_input(1)) return false;
  const auto& shape = graph.input_of(node, 1).constant;
  return shape && !shape->is_float() && !shape->integers().empty() &&
         shape->integers().front() == graph.fixed_batch;
}

void check_batch(const Graph& graph, const GraphNode& node) {
  if (!has_fixed_batch(graph, node)) return;
  fail_at(graph, node,
          fmt::format("the batch is fixed at {} in the file: its shape is {}; export the network "
                      "with a batch of 1 or an open one",
                      graph.fixed_batch, to_string(graph.input_of(node, 1).constant->integers())));
}

class Inference {
 public:
  Inference(Graph& graph, const ::onnx::ModelProto& model, Reading reading)
      : graph_(graph), model_(model), reading_(reading) {}

  // The shape of every value, and the constants that follow from constants.
  void run() {
    for (const GraphNode& node : graph_.nodes) {
      GraphValue& output = graph_.values[static_cast<size_t>(node.output)];
      try {
        infer(node, output);
      } catch (const Error&) {
        if (reading_ == Reading::kValues) throw;
        auto shape = shape_for_batch_of_one(node);
        if (!shape) shape = stated_shape(model_, graph_, node);
        if (!shape) throw;
        output.constant.reset();
        output.shape = *shape;
        checked_elements(described(graph_, node), output.shape);
      }
    }
  }

 private:
  void infer(const GraphNode& node, GraphValue& output) {
    check_batch(graph_, node);
    output.constant = fold_node(graph_, node, folding_work_);
    if (output.constant) {
      output.shape = output.constant->shape;
      output.is_integer = !output.constant->is_float();
      count(folded_, kMaxFoldedElements, output.shape, "computed from constants");
      return;
    }
    const PreparedNode prepared = prepare_node(graph_, node);
    output.shape = prepared.shape;
    output.is_integer = writes_integers(graph_, node);
    count(computed_, kMaxComputedElements, output.shape, "computed for a frame");
    if (reading_ == Reading::kValues) add_work(graph_, node, prepared.work, work_);
  }

  // Of a Reshape to the batch that the file has.
  std::optional<Shape> shape_for_batch_of_one(const GraphNode& node) const {
    if (!has_fixed_batch(graph_, node)) return std::nullopt;
    Shape shape = graph_.input_of(node, 1).constant->integers();
    shape.front() = 1;
    int64_t known = 1;
    for (const int64_t size : shape) known *= size > 0 ? std::min(size, kMaxElements) : 1;
    const auto open = std::ranges::find(shape, int64_t{-1});
    if (open != shape.end())
      *open = elements(first_shape(graph_, node)) / std::max(known, int64_t{1});
    return shape;
  }

  void count(int64_t& total, int64_t most, const Shape& shape, std::string_view what) const {
    total += elements(shape);
    if (total > most) fail("{}: more than {} values are {}", graph_.file, most, what);
  }

  Graph& graph_;
  const ::onnx::ModelProto& model_;
  Reading reading_;
  int64_t computed_ = 0, folded_ = 0;
  double work_ = 0, folding_work_ = 0;
};

void infer(Graph& graph, const ::onnx::ModelProto& model, Reading reading) {
  if (reading == Reading::kValues) {
    const std::vector<std::string> unknown = unknown_operations(graph);
    if (!unknown.empty()) {
      fail("{}: not supported: {}", graph.file, fmt::join(unknown, ", "));
    }
  }
  Inference(graph, model, reading).run();
  const GraphValue& output = graph.value(graph.output);
  if (output.producer < 0) fail("{}: nothing writes the output {}", graph.file, output.name);
  if (output.constant) {
    fail("{}: the output {} does not depend on the input", graph.file, output.name);
  }
  if (reading == Reading::kValues && elements(output.shape) > kMaxOutputElements) {
    fail("{}: its output {} has {} values for a frame, at most {} are supported", graph.file,
         output.name, elements(output.shape), kMaxOutputElements);
  }
  const size_t names = graph.class_names.size();
  if (reading == Reading::kValues && names > 0 &&
      static_cast<int64_t>(names) != elements(output.shape)) {
    fail("{}: its {} name {} classes, but its output {} has {} values", graph.file, kClassNamesKey,
         names, output.name, elements(output.shape));
  }
}

::onnx::ModelProto parse(const std::filesystem::path& file) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(file, error);
  if (error) fail("{}: {}", file.string(), error.message());
  if (bytes > static_cast<uintmax_t>(kMaxFileBytes)) {
    fail("{}: {} bytes, at most {} are supported", file.string(), bytes, kMaxFileBytes);
  }
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("{}: cannot be opened: {}", file.string(), errno_message(errno));
  ::onnx::ModelProto model;
  if (!model.ParseFromIstream(&stream) || !model.has_graph()) {
    fail("{}: is not an ONNX model, or is damaged", file.string());
  }
  return model;
}

}  // namespace

Graph load(const std::filesystem::path& file, Reading reading) {
  const ::onnx::ModelProto model = parse(file);
  Graph graph = Reader(model, file).read();
  sort_nodes(graph);
  try {
    infer(graph, model, reading);
  } catch (const Error& error) {
    const std::string message = error.what();
    if (graph.fixed_batch <= 1 || message.find("the batch is fixed") != std::string::npos) throw;
    fail("{} (the batch is fixed at {} in the file, which is run frame by frame)", message,
         graph.fixed_batch);
  }
  return graph;
}

}  // namespace fmp::onnx
