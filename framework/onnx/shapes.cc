// SPDX-License-Identifier: MIT
#include "framework/onnx/shapes.h"

#include <onnx/onnx_pb.h>
#include <onnx/shape_inference/implementation.h>

#include <algorithm>
#include <exception>

namespace fmp::onnx {
namespace {

// The newest operator set of the libonnx that Debian 12 has. An operation that came later is not
// known to it; shapes of older ones did not change.
constexpr int64_t kNewestOpset = 17;
constexpr int64_t kMaxValues = 1024;  // of a constant on which a shape may depend

// A value as a graph of one node reads it: a constant when it is a short one.
void add_input(const GraphValue& value, const std::string& name, ::onnx::GraphProto& graph) {
  const bool is_integer = value.constant ? !value.constant->is_float() : value.is_integer;
  const auto type = is_integer ? ::onnx::TensorProto::INT64 : ::onnx::TensorProto::FLOAT;
  ::onnx::ValueInfoProto& input = *graph.add_input();
  input.set_name(name);
  ::onnx::TypeProto_Tensor& tensor_type = *input.mutable_type()->mutable_tensor_type();
  tensor_type.set_elem_type(type);
  tensor_type.mutable_shape();
  for (const int64_t size : value.shape)
    tensor_type.mutable_shape()->add_dim()->set_dim_value(size);
  if (!value.constant || elements(value.shape) > kMaxValues) return;
  ::onnx::TensorProto& constant = *graph.add_initializer();
  constant.set_name(name);
  constant.set_data_type(type);
  for (const int64_t size : value.shape) constant.add_dims(size);
  if (is_integer) {
    for (const int64_t x : value.constant->integers()) constant.add_int64_data(x);
  } else {
    for (const float x : value.constant->floats()) constant.add_float_data(x);
  }
}

// Nothing when a dimension is not known. An open first one is the batch.
std::optional<Shape> known_shape(const ::onnx::ValueInfoProto& info, bool has_batch) {
  if (!info.type().has_tensor_type() || !info.type().tensor_type().has_shape()) return std::nullopt;
  Shape shape;
  for (const auto& dimension : info.type().tensor_type().shape().dim()) {
    if (dimension.has_dim_value() && dimension.dim_value() >= 0) {
      shape.push_back(dimension.dim_value());
    } else if (has_batch && shape.empty()) {
      shape.push_back(1);
    } else {
      return std::nullopt;
    }
  }
  return shape;
}

std::optional<Shape> find_shape(const ::onnx::GraphProto& graph, const std::string& name,
                                bool has_batch) {
  for (const auto* infos : {&graph.value_info(), &graph.output()}) {
    for (const ::onnx::ValueInfoProto& info : *infos) {
      if (info.name() == name) return known_shape(info, has_batch);
    }
  }
  return std::nullopt;
}

std::optional<Shape> inferred_shape(const ::onnx::NodeProto& source, const Graph& graph,
                                    const GraphNode& node) {
  ::onnx::ModelProto model;
  model.set_ir_version(::onnx::IR_VERSION);
  ::onnx::OperatorSetIdProto& opset = *model.add_opset_import();
  opset.set_domain("");
  opset.set_version(std::min(graph.opset, kNewestOpset));
  ::onnx::GraphProto& single = *model.mutable_graph();
  *single.add_node() = source;
  std::vector<std::string> added;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const std::string& name = source.input(static_cast<int>(i));
    if (!node.has_input(i) || std::ranges::find(added, name) != added.end()) continue;
    add_input(graph.input_of(node, i), name, single);
    added.push_back(name);
  }
  try {
    ::onnx::shape_inference::InferShapes(model);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  return find_shape(single, source.output(node.output_index), false);
}

}  // namespace

std::optional<Shape> stated_shape(const ::onnx::ModelProto& model, const Graph& graph,
                                  const GraphNode& node) {
  const ::onnx::NodeProto& source = model.graph().node(node.index);
  if (node.domain.empty() || node.domain == "ai.onnx") {
    if (auto shape = inferred_shape(source, graph, node)) return shape;
  }
  auto shape = find_shape(model.graph(), source.output(node.output_index), true);
  if (shape && graph.fixed_batch > 1 && !shape->empty() && shape->front() == graph.fixed_batch) {
    shape->front() = 1;
  }
  return shape;
}

}  // namespace fmp::onnx
