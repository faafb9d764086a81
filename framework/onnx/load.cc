// SPDX-License-Identifier: MIT
// From an ONNX file to a checked Graph: protobuf -> values, nodes and attributes -> order of
// evaluation -> shapes and constants.
#include <fmt/format.h>
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <queue>
#include <unordered_map>
#include <utility>

#include "framework/error.h"
#include "framework/onnx/graph.h"
#include "framework/onnx/ops.h"

namespace fmp::onnx {
namespace {

// Far above any network of this kind, and low enough that no file exhausts the memory.
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
constexpr int kMaxNodes = 1 << 16;
constexpr int64_t kMaxComputedElements = int64_t{1} << 27;  // of all nodes together

// A name from a file, fit for a message of one line.
std::string printable(const std::string& name) {
  constexpr size_t kMaxLength = 120;
  std::string result = name.substr(0, kMaxLength);
  std::ranges::replace_if(
      result, [](unsigned char c) { return std::isprint(c) == 0; }, '?');
  return result;
}

// The elements of a tensor, which ONNX keeps either in a field of their type or as raw bytes
// (little endian), as `To`.
template <typename Stored, typename To, typename Field>
std::vector<To> tensor_elements(const std::string& what, const ::onnx::TensorProto& tensor,
                                const Field& field, int64_t count) {
  std::vector<To> result;
  if (tensor.has_raw_data()) {
    const std::string& raw = tensor.raw_data();
    if (raw.size() != static_cast<size_t>(count) * sizeof(Stored)) {
      fail("{}: {} bytes of data, expected {}", what, raw.size(),
           static_cast<size_t>(count) * sizeof(Stored));
    }
    result.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < result.size(); ++i) {
      Stored value;
      std::memcpy(&value, raw.data() + i * sizeof(Stored), sizeof(Stored));
      result[i] = static_cast<To>(value);  // NOLINT(bugprone-signed-char-misuse): INT8 is a number
    }
    return result;
  }
  if (field.size() != count) fail("{}: {} values, expected {}", what, field.size(), count);
  result.reserve(static_cast<size_t>(count));
  for (const auto value : field) result.push_back(static_cast<To>(static_cast<Stored>(value)));
  return result;
}

GraphTensor read_tensor(const std::string& what, const ::onnx::TensorProto& tensor) {
  if (tensor.data_location() == ::onnx::TensorProto::EXTERNAL || tensor.external_data_size() != 0) {
    fail("{}: its data is in another file, which is not supported", what);
  }
  GraphTensor result;
  result.shape.assign(tensor.dims().begin(), tensor.dims().end());
  const int64_t count = checked_elements(what, result.shape);
  const auto floats = [&]<typename Stored>(const auto& field) {
    result.data = tensor_elements<Stored, float>(what, tensor, field, count);
  };
  const auto integers = [&]<typename Stored>(const auto& field) {
    result.data = tensor_elements<Stored, int64_t>(what, tensor, field, count);
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
      fail("{}: element type {} is not supported", what,
           ::onnx::TensorProto::DataType_IsValid(tensor.data_type())
               ? ::onnx::TensorProto::DataType_Name(
                     static_cast<::onnx::TensorProto::DataType>(tensor.data_type()))
               : std::to_string(tensor.data_type()));
  }
  return result;
}

// Values, nodes and attributes as the file has them.
class Reader {
 public:
  Reader(const ::onnx::ModelProto& model, std::string file) : source_(model.graph()) {
    graph_.file = std::move(file);
    for (const ::onnx::OperatorSetIdProto& set : model.opset_import()) {
      if (set.domain().empty() || set.domain() == "ai.onnx") graph_.opset = set.version();
    }
  }

  Graph read() {
    if (source_.node_size() == 0) fail("{}: the graph has no nodes", graph_.file);
    if (source_.node_size() > kMaxNodes) {
      fail("{}: {} nodes, at most {} are supported", graph_.file, source_.node_size(), kMaxNodes);
    }
    if (source_.sparse_initializer_size() != 0) {
      fail("{}: sparse initializers are not supported", graph_.file);
    }
    for (const ::onnx::TensorProto& tensor : source_.initializer()) read_initializer(tensor);
    read_input();
    for (const ::onnx::NodeProto& node : source_.node()) read_node(node);
    read_output();
    for (const ::onnx::TensorAnnotation& annotation : source_.quantization_annotation()) {
      read_annotation(annotation);
    }
    return std::move(graph_);
  }

 private:
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
    GraphTensor constant = read_tensor(what, tensor);
    GraphValue& added = value(value_of(tensor.name()));
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

  void read_node(const ::onnx::NodeProto& source) {
    GraphNode& node = graph_.nodes.emplace_back();
    const int index = static_cast<int>(graph_.nodes.size()) - 1;
    node.name = source.name().empty() ? fmt::format("#{}", index) : printable(source.name());
    node.op = printable(source.op_type());
    node.domain = printable(source.domain());
    for (const std::string& name : source.input()) {
      node.inputs.push_back(name.empty() ? GraphNode::kAbsent : value_of(name));
    }
    while (!node.inputs.empty() && node.inputs.back() == GraphNode::kAbsent) node.inputs.pop_back();
    if (source.output_size() == 0 || source.output(0).empty()) {
      fail_at(graph_, node, "has no output");
    }
    node.output = value_of(source.output(0));
    GraphValue& output = value(node.output);
    if (output.producer != -1 || output.constant || node.output == graph_.input) {
      fail_at(graph_, node, fmt::format("its output {} is already written", output.name));
    }
    output.producer = index;
    for (const ::onnx::AttributeProto& attribute : source.attribute()) {
      node.attributes.insert_or_assign(attribute.name(), read_attribute(node, attribute));
    }
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
        return read_tensor(what, source.t());
      default:
        fail("{}: its type is not supported", what);
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
  Graph graph_;
  std::unordered_map<std::string, int> values_;
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

// The shape of every value, and the constants that follow from constants.
void infer(Graph& graph) {
  int64_t total = 0;
  for (const GraphNode& node : graph.nodes) {
    GraphValue& output = graph.values[static_cast<size_t>(node.output)];
    output.constant = fold_node(graph, node);
    output.shape = output.constant ? output.constant->shape : prepare_node(graph, node).shape;
    total += elements(output.shape);
    if (total > kMaxComputedElements) {
      fail("{}: its nodes write more than {} values", graph.file, kMaxComputedElements);
    }
  }
  const GraphValue& output = graph.value(graph.output);
  if (output.producer < 0) fail("{}: nothing writes the output {}", graph.file, output.name);
  if (output.constant) {
    fail("{}: the output {} does not depend on the input", graph.file, output.name);
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

Graph load(const std::filesystem::path& file) {
  const ::onnx::ModelProto model = parse(file);
  Graph graph = Reader(model, file.string()).read();
  sort_nodes(graph);
  infer(graph);
  return graph;
}

}  // namespace fmp::onnx
