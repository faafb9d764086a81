// SPDX-License-Identifier: MIT
#include "framework/onnx/export.h"

#include <fmt/format.h>
#include <onnx/onnx_pb.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "framework/atomic_file.h"
#include "framework/data/dataset.h"
#include "framework/network/weight_codes.h"
#include "framework/onnx/graph.h"
#include "kernels/cpu/ops.h"

namespace fmp::onnx {
namespace {

constexpr int kIrVersion = 8;  // of ONNX 1.12 and everything newer
constexpr int kOpset = 13;
constexpr const char* kQuantizerDomain = "qonnx.custom_op.general";
constexpr int kBiasBits = 32;  // Brevitas' Int32Bias

// Appends nodes to a model; values are named after the node that writes them.
class Writer {
 public:
  explicit Writer(const Network& network) : network_(network) {
    model_.set_ir_version(kIrVersion);
    model_.set_producer_name("fmp");
    model_.mutable_graph()->set_name("fmp");
    add_opset("", kOpset);
    add_opset(kQuantizerDomain, 1);
    if (network.class_names.empty()) return;
    ::onnx::StringStringEntryProto& names = *model_.add_metadata_props();
    names.set_key(kClassNamesKey);
    names.set_value(nlohmann::json(network.class_names).dump());
  }

  std::string write() {
    const std::vector<Layer>& layers = network_.layers();
    const std::vector<std::vector<int>> readers = readers_of(layers);
    frames_ = add_input();
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      const bool as_codes =
          layer.kind != Layer::Kind::kOutput && std::ranges::any_of(readers[i], [&](int reader) {
            return wants_codes(layers[static_cast<size_t>(reader)]);
          });
      if (!layer.has_weights()) {
        add_join(layer);
        written_.push_back(add_activation(layer, as_codes));
        continue;
      }
      const float weight_scale = quantize_weights(layer).scale;
      const Value& x = read(layer.reads[0]);
      go_to(x);
      if (x.is_codes && !multiplies_codes(layer)) {
        advance("Mul", layer.name + ".input", {add_scalar(layer.name + ".input.factor", x.scale)});
      }
      if (layer.kind == Layer::Kind::kConv) {
        add_convolution(layer, weight_scale);
      } else {
        add_dense(layer, weight_scale);
      }
      if (multiplies_codes(layer)) {
        const float factor = x.is_codes ? x.scale * weight_scale : weight_scale;
        advance("Mul", layer.name, {add_sum_scale(layer, factor)});
      }
      if (layer.kind == Layer::Kind::kOutput) {
        add_bias(layer, multiplies_codes(layer) && !layer.gain.defined(), x.scale * weight_scale);
      } else {
        add_batch_norm(layer);
        written_.push_back(add_activation(layer, as_codes));
      }
    }
    describe(*graph().add_output());
    return model_.SerializeAsString();
  }

 private:
  struct QuantizerSettings {
    float scale = 1;
    int bits = 8;
    bool is_signed = true, narrow = false;
  };

  // What the frames or a layer become, for those that read it.
  struct Value {
    std::string name;
    Shape shape;
    float scale = 1;        // of its codes; 1: it has none
    bool is_codes = false;  // the codes themselves, not codes * scale
  };

  // Sums of codes are exact, and of what follows each operation is rounded once, as in a Network.
  static bool wants_codes(const Layer& layer) {
    return !layer.has_weights() || multiplies_codes(layer);
  }

  const Value& read(int layer) const {
    return layer == kReadsFrames ? frames_ : written_[static_cast<size_t>(layer)];
  }
  void go_to(const Value& value) {
    value_ = value.name;
    shape_ = value.shape;
  }

  Value add_input() {
    const NetworkConfig& config = network_.config();
    shape_ = {1, config.input_channels, config.length};
    value_ = "global_in";
    describe(*graph().add_input());
    if (config.input_bits == kFloatBits) return {value_, shape_};
    const float scale = config.input_quantizer().scale;
    // Codes times a power of two are exact; times anything else, codes they must be.
    const bool is_wanted = std::ranges::any_of(network_.layers(), [](const Layer& layer) {
      return wants_codes(layer) && std::ranges::count(layer.reads, kReadsFrames) > 0;
    });
    const bool as_codes = is_wanted && !is_power_of_two(scale);
    if (as_codes) advance("Div", "input", {add_scalar("input.divisor", scale)});
    value_ = add_quantizer("input", value_, {as_codes ? 1 : scale, config.input_bits, true, false});
    return {value_, shape_, scale, as_codes};
  }

  ::onnx::GraphProto& graph() { return *model_.mutable_graph(); }

  void add_opset(const std::string& domain, int version) {
    ::onnx::OperatorSetIdProto& opset = *model_.add_opset_import();
    opset.set_domain(domain);
    opset.set_version(version);
  }

  // The current value with its shape.
  void describe(::onnx::ValueInfoProto& info) const {
    info.set_name(value_);
    ::onnx::TypeProto::Tensor& type = *info.mutable_type()->mutable_tensor_type();
    type.set_elem_type(::onnx::TensorProto::FLOAT);
    for (const int64_t size : shape_) type.mutable_shape()->add_dim()->set_dim_value(size);
  }

  std::string add_constant(const std::string& name, const Shape& shape,
                           std::span<const float> values) {
    ::onnx::TensorProto& tensor = *graph().add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(::onnx::TensorProto::FLOAT);
    for (const int64_t size : shape) tensor.add_dims(size);
    tensor.set_raw_data(values.data(), values.size_bytes());
    return name;
  }

  std::string add_scalar(const std::string& name, float value) {
    return add_constant(name, {}, {&value, 1});
  }

  // Adds a node that writes `output`, without making that the current value.
  ::onnx::NodeProto& add_node(const std::string& op, const std::string& name,
                              const std::vector<std::string>& inputs, const std::string& output) {
    ::onnx::NodeProto& node = *graph().add_node();
    node.set_op_type(op);
    node.set_name(name);
    for (const std::string& input : inputs) node.add_input(input);
    node.add_output(output);
    return node;
  }

  // Adds a node that turns the current value into the next, of shape shape_.
  ::onnx::NodeProto& advance(const std::string& op, const std::string& layer,
                             const std::vector<std::string>& more_inputs = {},
                             bool is_last = false) {
    std::vector<std::string> inputs = {value_};
    inputs.insert(inputs.end(), more_inputs.begin(), more_inputs.end());
    const std::string name = fmt::format("{}.{}", layer, op);
    value_ = is_last ? "global_out" : name + ".out";
    ::onnx::NodeProto& node = add_node(op, name, inputs, value_);
    if (!is_last) describe(*graph().add_value_info());
    return node;
  }

  static void set(::onnx::NodeProto& node, const std::string& name, int64_t value) {
    ::onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(::onnx::AttributeProto::INT);
    attribute.set_i(value);
  }
  static void set(::onnx::NodeProto& node, const std::string& name,
                  const std::vector<int64_t>& values) {
    ::onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(::onnx::AttributeProto::INTS);
    for (const int64_t value : values) attribute.add_ints(value);
  }

  // `name`: what is quantized, e.g. "conv1.weight". Returns the quantized value's name.
  std::string add_quantizer(const std::string& name, const std::string& value,
                            const QuantizerSettings& settings) {
    const std::string scale = add_scalar(name + ".scale", settings.scale);
    const std::string zero_point = add_scalar(name + ".zero_point", 0);
    const std::string bits = add_scalar(name + ".bits", static_cast<float>(settings.bits));
    std::string output = name + ".quantized";
    ::onnx::NodeProto& node =
        add_node("Quant", name + ".Quant", {value, scale, zero_point, bits}, output);
    node.set_domain(kQuantizerDomain);
    set(node, "signed", settings.is_signed ? 1 : 0);
    set(node, "narrow", settings.narrow ? 1 : 0);
    ::onnx::AttributeProto& mode = *node.add_attribute();
    mode.set_name("rounding_mode");
    mode.set_type(::onnx::AttributeProto::STRING);
    mode.set_s("ROUND");
    return output;
  }

  // scale: of the weights' codes.
  std::string add_weight(const Layer& layer, float scale, const Shape& shape,
                         const std::vector<float>& values) {
    std::string name = add_constant(layer.name + ".weight", shape, values);
    if (layer.weight_bits == kFloatBits) return name;
    std::string operand = name;
    if (multiplies_codes(layer)) {
      operand = name + ".in_codes";
      add_node("Div", name + ".Div", {name, add_scalar(name + ".divisor", scale)}, operand);
      scale = 1;
    }
    return add_quantizer(name, operand, {scale, layer.weight_bits, true, true});
  }

  void add_convolution(const Layer& layer, float weight_scale) {
    const Convolution& form = layer.form;
    const std::span<const float> from = layer.weight.value.floats();
    std::vector<float> weight;  // [O][channels of a group][kernel]
    for (int o = 0; o < layer.out_channels; ++o) {
      for (int c = 0; c < layer.group_channels(); ++c) {
        for (int k = 0; k < form.kernel; ++k) weight.push_back(from[layer.place(o, c, k)]);
      }
    }
    const std::string operand = add_weight(
        layer, weight_scale, {layer.out_channels, layer.group_channels(), form.kernel}, weight);
    // Behind the last sample as many zeros as before the first, if that gives as many positions.
    const int most = form.kernel - 1 - form.padding;
    const int behind = form.padding_after != Convolution::kAsNeeded
                           ? form.padding_after
                           : std::clamp(form.padding, std::max(0, most + 1 - form.stride), most);
    shape_ = {1, layer.out_channels, layer.length};
    ::onnx::NodeProto& node = advance("Conv", layer.name, {operand});
    set(node, "kernel_shape", std::vector<int64_t>{form.kernel});
    set(node, "pads", std::vector<int64_t>{form.padding, behind});
    set(node, "strides", std::vector<int64_t>{form.stride});
    set(node, "dilations", std::vector<int64_t>{1});
    set(node, "group", form.groups);
  }

  void add_dense(const Layer& layer, float weight_scale) {
    // A Network's flattened index is position * channels + channel, ONNX's the other way round.
    size_t channels = static_cast<size_t>(layer.in_channels), positions = 1;
    if (shape_.size() == 3) {
      channels = static_cast<size_t>(shape_[1]);
      positions = static_cast<size_t>(shape_[2]);
      shape_ = {1, layer.in_channels};
      set(advance("Flatten", layer.name), "axis", 1);
    }
    const std::span<const float> from = layer.weight.value.floats();  // [O][positions][channels]
    std::vector<float> weight(from.size());                           // [channels][positions][O]
    const auto outputs = static_cast<size_t>(layer.out_channels);
    for (size_t o = 0, i = 0; o < outputs; ++o) {
      for (size_t p = 0; p < positions; ++p) {
        for (size_t c = 0; c < channels; ++c, ++i) {
          weight[(c * positions + p) * outputs + o] = from[i];
        }
      }
    }
    const std::string operand =
        add_weight(layer, weight_scale, {layer.in_channels, layer.out_channels}, weight);
    shape_ = {1, layer.out_channels};
    advance("MatMul", layer.name, {operand});
  }

  // What sums of codes are multiplied by: one number, or one for each class.
  std::string add_sum_scale(const Layer& layer, float scale) {
    const std::string name = layer.name + ".sum_scale";
    if (!layer.gain.defined()) return add_scalar(name, scale);
    std::vector<float> scales;
    for (const float gain : layer.gain.floats()) scales.push_back(scale * gain);
    return add_constant(name, {layer.out_channels}, scales);
  }

  // is_quantized: to multiples of `scale`.
  void add_bias(const Layer& layer, bool is_quantized, float scale) {
    std::string bias =
        add_constant(layer.name + ".bias", {layer.out_channels}, layer.bias.value.floats());
    if (is_quantized) bias = add_quantizer(bias, bias, {scale, kBiasBits, true, false});
    advance("Add", layer.name, {bias}, true);
  }

  // The real value of a layer without weights. A mean is one of codes, whose sum is exact.
  void add_join(const Layer& layer) {
    if (layer.kind == Layer::Kind::kAveragePool) {
      const Value& x = read(layer.reads[0]);
      go_to(x);
      shape_[2] = layer.length;
      add_windows("AveragePool", layer, layer.form.kernel);
      if (x.is_codes) advance("Mul", layer.name, {add_scalar(layer.name + ".factor", x.scale)});
      return;
    }
    std::vector<std::string> operands;
    for (size_t i = 0; i < layer.reads.size(); ++i) {
      const Value& x = read(layer.reads[i]);
      go_to(x);
      const std::string name = fmt::format("{}.input{}", layer.name, i);
      if (x.is_codes) advance("Mul", name, {add_scalar(name + ".factor", x.scale)});
      operands.push_back(value_);
    }
    shape_[1] = layer.out_channels;
    value_ = operands[0];
    operands.erase(operands.begin());
    ::onnx::NodeProto& node =
        advance(layer.kind == Layer::Kind::kAdd ? "Add" : "Concat", layer.name, operands);
    if (layer.kind == Layer::Kind::kConcat) set(node, "axis", 1);
  }

  // Windows that follow each other.
  void add_windows(const std::string& op, const Layer& layer, int window) {
    ::onnx::NodeProto& pool = advance(op, layer.name);
    set(pool, "kernel_shape", std::vector<int64_t>{window});
    set(pool, "strides", std::vector<int64_t>{window});
    set(pool, "pads", std::vector<int64_t>{0, 0});
  }

  void add_batch_norm(const Layer& layer) {
    const auto parameter = [&](const char* name, const Tensor& tensor) {
      return add_constant(fmt::format("{}.{}", layer.name, name), {layer.out_channels},
                          tensor.floats());
    };
    ::onnx::NodeProto& norm =
        advance("BatchNormalization", layer.name,
                {parameter("gamma", layer.gamma.value), parameter("beta", layer.beta.value),
                 parameter("mean", layer.running_mean), parameter("var", layer.running_var)});
    ::onnx::AttributeProto& epsilon = *norm.add_attribute();
    epsilon.set_name("epsilon");
    epsilon.set_type(::onnx::AttributeProto::FLOAT);
    epsilon.set_f(static_cast<float>(kBatchNormEpsilon));
  }

  // QuantReLU and pooling. as_codes: divided by the quantizer's scale.
  Value add_activation(const Layer& layer, bool as_codes) {
    as_codes = as_codes && layer.act_bits != kFloatBits;
    float scale = 1;
    if (layer.act_bits != kFloatBits) {
      scale = cpu::activation_scale(layer.threshold.value.floats()[0], layer.largest_code());
    }
    if (as_codes) advance("Div", layer.name, {add_scalar(layer.name + ".divisor", scale)});
    const bool is_signed = layer.smallest_code < 0;
    if (!is_signed) advance("Relu", layer.name);
    if (layer.act_bits != kFloatBits) {
      const bool is_narrow = is_signed && layer.smallest_code + layer.largest_code() == 0;
      value_ = add_quantizer(layer.name, value_,
                             {as_codes ? 1 : scale, layer.act_bits, is_signed, is_narrow});
      describe(*graph().add_value_info());
    }
    if (layer.pool > 1) {
      shape_[2] /= layer.pool;
      add_windows("MaxPool", layer, layer.pool);
    }
    return {value_, shape_, scale, as_codes};
  }

  const Network& network_;
  ::onnx::ModelProto model_;
  Value frames_;
  std::vector<Value> written_;  // of each layer
  std::string value_;           // what the last node wrote
  Shape shape_;                 // its shape
};

}  // namespace

void export_network(const Network& network, const std::filesystem::path& file) {
  write_file_atomically(file, Writer(network).write());
}

}  // namespace fmp::onnx
