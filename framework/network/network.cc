// SPDX-License-Identifier: MIT
#include "framework/network/network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <utility>

#include "framework/error.h"
#include "framework/random.h"

namespace fmp {
namespace {

// Far above any network of this kind, and low enough that no size computed from a configuration
// (which may come from a damaged file) overflows or exhausts the memory by surprise.
constexpr int kMaxBlocks = 64;
constexpr int kMaxChannels = 1 << 16;
constexpr int kMaxLength = 1 << 24;
constexpr int kMaxKernel = 255;
constexpr int kMaxStride = 64;
constexpr int kMaxPool = 1024;
constexpr int64_t kMaxWeights = int64_t{1} << 28;

constexpr float kInitialThreshold = 1.0F;  // stands until the first batch's statistics replace it

void check_range(std::string_view field, int value, int low, int high) {
  if (value < low || value > high) {
    throw UsageError(fmt::format("{}: {} is not in {}..{}", field, value, low, high));
  }
}

void check_widths(std::string_view field, const std::vector<int>& widths) {
  if (widths.size() > kMaxBlocks) {
    throw UsageError(
        fmt::format("{}: {} layers, at most {} are supported", field, widths.size(), kMaxBlocks));
  }
  for (const int width : widths) check_range(field, width, 1, kMaxChannels);
}

// One value for all layers, or one for each.
void check_count(std::string_view field, const std::vector<int>& values, size_t layers,
                 std::string_view what = "layer") {
  if (values.size() == 1 || values.size() == layers) return;
  throw UsageError(fmt::format("{}: {} values, expected 1 or {} (one per {})", field, values.size(),
                               layers, what));
}

void check_bits(std::string_view field, int bits) {
  if ((bits < 2 || bits > 8) && bits != kFloatBits) {
    throw UsageError(fmt::format("{}: {} is neither 2..8 nor {} (float)", field, bits, kFloatBits));
  }
}

void check_bits(std::string_view field, const std::vector<int>& bits, int layers) {
  check_count(field, bits, static_cast<size_t>(layers));
  for (const int b : bits) check_bits(field, b);
}

int per_layer(const std::vector<int>& values, int layer) {
  return values.size() == 1 ? values[0] : values[static_cast<size_t>(layer)];
}

// Rows of zeros on each side of a convolution in the form that a Layer has. Sample j of a kernel is
// j - padding samples behind a position's first.
int reach(const Convolution& form) {
  return std::max((form.padding + form.stride - 1) / form.stride,
                  (form.kernel - 1 - form.padding) / form.stride);
}

// Positions and channels change from layer to layer: check them, and tell the user where.
void check_convolutions(const NetworkConfig& config) {
  const size_t layers = config.filters.size();
  check_count("kernel", config.kernel, layers, "convolution");
  check_count("stride", config.stride, layers, "convolution");
  check_count("groups", config.groups, layers, "convolution");
  check_count("pool", config.pool, layers, "convolution");
  if (!config.padding.empty()) check_count("padding", config.padding, layers, "convolution");
  int length = config.length, channels = config.input_channels;
  for (size_t i = 0; i < layers; ++i) {
    const Convolution conv = config.convolution(static_cast<int>(i));
    const std::string name = fmt::format("conv{}", i + 1);
    const auto divides = [&](std::string_view field, int value, std::string_view what, int whole) {
      if (whole % value == 0) return;
      throw UsageError(
          fmt::format("{}: {} of {} does not divide its {} {}", field, value, name, whole, what));
    };
    check_range("kernel of " + name, conv.kernel, 1, kMaxKernel);
    check_range("stride of " + name, conv.stride, 1, kMaxStride);
    check_range("padding of " + name, conv.padding, 0, conv.kernel - 1);
    check_range("groups of " + name, conv.groups, 1, kMaxChannels);
    check_range("pool of " + name, conv.pool, 1, kMaxPool);
    divides("groups", conv.groups, "input channels", channels);
    divides("groups", conv.groups, "filters", config.filters[i]);
    divides("stride", conv.stride, "samples", length);
    length /= conv.stride;
    divides("pool", conv.pool, "positions", length);
    length /= conv.pool;
    channels = config.filters[i];
  }
}

// The layers of a configuration with their names and shapes, but without memory.
std::vector<Layer> describe_layers(const NetworkConfig& config) {
  std::vector<Layer> layers;
  int channels = config.input_channels;
  int length = config.length;
  const auto add = [&](Layer::Kind kind, std::string name, int outputs) {
    const int index = static_cast<int>(layers.size());
    Layer& layer = layers.emplace_back();
    layer.kind = kind;
    layer.name = std::move(name);
    layer.in_channels = channels;
    layer.out_channels = outputs;
    layer.weight_bits = config.weight_bits_of(index);
    layer.input_bits = config.input_bits_of(index);
    const bool hidden = kind != Layer::Kind::kOutput;
    layer.act_bits = hidden ? config.act_bits_of(index) : kFloatBits;
    layer.smallest_code = hidden ? config.smallest_code_of(index) : 0;
    channels = outputs;
  };
  for (size_t i = 0; i < config.filters.size(); ++i) {
    add(Layer::Kind::kConv, fmt::format("conv{}", i + 1), config.filters[i]);
    Layer& layer = layers.back();
    layer.form = config.convolution(static_cast<int>(i));
    layer.in_channels *= layer.form.stride;
    layer.taps = 2 * reach(layer.form) + 1;
    layer.pool = layer.form.pool;
    layer.length = length / layer.form.stride;
    length = layer.length / layer.pool;
  }
  channels *= length;  // flatten
  for (size_t i = 0; i < config.dense.size(); ++i) {
    add(Layer::Kind::kDense, fmt::format("dense{}", i + 1), config.dense[i]);
  }
  add(Layer::Kind::kOutput, "output", config.classes);
  return layers;
}

Parameter make_parameter(std::string name, const std::vector<int64_t>& shape) {
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.value = Tensor::zeros(shape);
  parameter.grad = Tensor::zeros(shape);
  parameter.moment1 = Tensor::zeros(shape);
  parameter.moment2 = Tensor::zeros(shape);
  return parameter;
}

void fill(Parameter& parameter, float value) { std::ranges::fill(parameter.value.floats(), value); }

// Masks the places where the form of a layer has no weight.
void set_form(Layer& layer) {
  std::vector<uint8_t>& mask = layer.weight.mask;
  mask.assign(static_cast<size_t>(layer.weight.size()), 0);
  for (int o = 0; o < layer.out_channels; ++o) {
    for (int c = 0; c < layer.group_channels(); ++c) {
      for (int tap = 0; tap < layer.form.kernel; ++tap) mask[layer.place(o, c, tap)] = 1;
    }
  }
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == 0) layer.weight.value.floats()[i] = 0;
  }
}

// Uniform in +-1/sqrt(fan_in): what kaiming_uniform with a = sqrt(5), PyTorch's default for
// weights, comes to, and its default for biases.
void draw(Parameter& parameter, int64_t fan_in, uint64_t seed) {
  const float bound = static_cast<float>(1.0 / std::sqrt(static_cast<double>(fan_in)));
  Random random(seed, parameter.name);
  for (float& value : parameter.value.floats()) value = random.uniform(-bound, bound);
}

void initialize(Layer& layer, bool class_scales, uint64_t seed) {
  const int64_t outputs = layer.out_channels;
  const int64_t fan_in = layer.weights_total() / outputs;
  layer.weight = make_parameter(layer.name + ".weight", {outputs, layer.taps, layer.in_channels});
  draw(layer.weight, fan_in, seed);
  set_form(layer);
  if (layer.kind == Layer::Kind::kOutput) {
    layer.bias = make_parameter(layer.name + ".bias", {outputs});
    draw(layer.bias, fan_in, seed);
    if (class_scales) {
      layer.gain = Tensor::zeros({outputs});
      std::ranges::fill(layer.gain.floats(), 1.0F);
    }
    return;
  }
  layer.gamma = make_parameter(layer.name + ".gamma", {outputs});
  layer.beta = make_parameter(layer.name + ".beta", {outputs});
  fill(layer.gamma, 1.0F);
  layer.running_mean = Tensor::zeros({outputs});
  layer.running_var = Tensor::zeros({outputs});
  std::ranges::fill(layer.running_var.floats(), 1.0F);
  if (layer.act_bits != kFloatBits) {
    layer.threshold = make_parameter(layer.name + ".threshold", {1});
    fill(layer.threshold, kInitialThreshold);
  }
}

Tensor clone_if_defined(const Tensor& tensor) {
  return tensor.defined() ? tensor.clone() : Tensor();
}

Layer clone(const Layer& layer) {
  Layer copy = layer;
  copy.weight = layer.weight.clone();
  copy.gamma = layer.gamma.clone();
  copy.beta = layer.beta.clone();
  copy.threshold = layer.threshold.clone();
  copy.bias = layer.bias.clone();
  copy.gain = clone_if_defined(layer.gain);
  copy.running_mean = clone_if_defined(layer.running_mean);
  copy.running_var = clone_if_defined(layer.running_var);
  return copy;
}

// The parameters that a layer has: those that were given memory. One body for both constnesses.
template <typename Pointer, typename AnyLayer>
std::vector<Pointer> parameters_of(AnyLayer& layer) {
  std::vector<Pointer> parameters;
  for (Pointer parameter :
       {&layer.weight, &layer.gamma, &layer.beta, &layer.threshold, &layer.bias}) {
    if (parameter->value.defined()) parameters.push_back(parameter);
  }
  return parameters;
}

void check_size(const std::string& what, int64_t found, int64_t expected) {
  if (found != expected) fail("{}: {}, expected {}", what, found, expected);
}

void check_parameter(const std::string& name, const Parameter& parameter, int64_t size) {
  check_size(name, parameter.value.size(), size);
  check_size(name + " gradient", parameter.grad.size(), size);
  check_size(name + " first moment", parameter.moment1.size(), size);
  check_size(name + " second moment", parameter.moment2.size(), size);
}

// `layer` has the shape that `expected` describes, in every tensor.
void check_layer(const Layer& layer, const Layer& expected, bool class_scales) {
  const std::string& name = expected.name;
  if (layer.kind != expected.kind) fail("{}: wrong kind of layer", name);
  check_size(name + " inputs", layer.in_channels, expected.in_channels);
  check_size(name + " outputs", layer.out_channels, expected.out_channels);
  check_size(name + " taps", layer.taps, expected.taps);
  check_size(name + " positions", layer.length, expected.length);
  check_size(name + " pool", layer.pool, expected.pool);
  if (layer.form != expected.form) fail("{}: another form of convolution", name);
  check_size(name + " smallest code", layer.smallest_code, expected.smallest_code);
  const int64_t outputs = expected.out_channels;
  const int64_t weights = expected.weights();
  check_parameter(name + ".weight", layer.weight, weights);
  check_size(name + ".weight mask", static_cast<int64_t>(layer.weight.mask.size()), weights);
  const bool hidden = expected.kind != Layer::Kind::kOutput;
  check_parameter(name + ".gamma", layer.gamma, hidden ? outputs : 0);
  check_parameter(name + ".beta", layer.beta, hidden ? outputs : 0);
  check_parameter(name + ".threshold", layer.threshold, expected.act_bits != kFloatBits ? 1 : 0);
  check_parameter(name + ".bias", layer.bias, hidden ? 0 : outputs);
  check_size(name + " gain", layer.gain.size(), class_scales && !hidden ? outputs : 0);
  check_size(name + " running mean", layer.running_mean.size(), hidden ? outputs : 0);
  check_size(name + " running variance", layer.running_var.size(), hidden ? outputs : 0);
}

}  // namespace

void NetworkConfig::validate() const {
  check_range("input channels", input_channels, 1, kMaxChannels);
  check_range("length", length, 1, kMaxLength);
  check_range("classes", classes, 2, 256);
  if (filters.empty()) throw UsageError("filters: at least one convolution is needed");
  check_widths("filters", filters);
  check_widths("dense", dense);
  check_convolutions(*this);
  check_bits("input bits", input_bits);
  check_bits("weight bits", weight_bits, layers());
  check_bits("activation bits", act_bits, layers() - 1);
  const int last = layers() - 1;
  if (input_scale != 0 &&
      (input_bits == kFloatBits || !(input_scale > 0) || !std::isnormal(input_scale))) {
    throw UsageError(fmt::format("input scale: {} with {} bits", input_scale, input_bits));
  }
  if (!smallest_codes.empty() && smallest_codes.size() != static_cast<size_t>(last)) {
    throw UsageError(
        fmt::format("smallest codes: {} values, expected {}", smallest_codes.size(), last));
  }
  for (int i = 0; i < last; ++i) {
    const int code = smallest_code_of(i), lowest = -(1 << (act_bits_of(i) % kFloatBits) >> 1);
    if (code != 0 && (act_bits_of(i) == kFloatBits || (code != lowest && code != lowest + 1))) {
      throw UsageError(fmt::format("smallest codes: {} with {} bits", code, act_bits_of(i)));
    }
  }
  if (class_scales && (weight_bits_of(last) == kFloatBits || input_bits_of(last) == kFloatBits)) {
    throw UsageError("class scales: the output layer does not multiply codes");
  }
  if (weights() > kMaxWeights) {
    throw UsageError(
        fmt::format("network: {} weights, at most {} are supported", weights(), kMaxWeights));
  }
}

int NetworkConfig::weight_bits_of(int layer) const { return per_layer(weight_bits, layer); }

int NetworkConfig::act_bits_of(int layer) const { return per_layer(act_bits, layer); }

int NetworkConfig::smallest_code_of(int layer) const {
  return smallest_codes.empty() ? 0 : smallest_codes[static_cast<size_t>(layer)];
}

int NetworkConfig::input_bits_of(int layer) const {
  return layer == 0 ? input_bits : act_bits_of(layer - 1);
}

Convolution NetworkConfig::convolution(int layer) const {
  Convolution conv{per_layer(kernel, layer), per_layer(stride, layer), 0, per_layer(groups, layer),
                   per_layer(pool, layer)};
  conv.padding = padding.empty() ? (conv.kernel - 1) / 2 : per_layer(padding, layer);
  return conv;
}

void NetworkConfig::set_outputs(size_t layer, int outputs) {
  (layer < filters.size() ? filters[layer] : dense[layer - filters.size()]) = outputs;
}

int64_t NetworkConfig::weights() const {
  int64_t total = 0;
  int64_t channels = input_channels;
  int64_t positions = length;
  for (size_t i = 0; i < filters.size(); ++i) {
    const Convolution conv = convolution(static_cast<int>(i));
    total += channels * conv.stride * (2 * reach(conv) + 1) * filters[i];
    channels = filters[i];
    positions /= conv.stride * conv.pool;
  }
  channels *= positions;
  for (const int outputs : dense) {
    total += channels * outputs;
    channels = outputs;
  }
  return total + channels * classes;
}

Parameter Parameter::clone() const {
  Parameter copy = *this;
  copy.value = clone_if_defined(value);
  copy.grad = clone_if_defined(grad);
  copy.moment1 = clone_if_defined(moment1);
  copy.moment2 = clone_if_defined(moment2);
  return copy;
}

std::vector<Parameter*> Layer::parameters() { return parameters_of<Parameter*>(*this); }

std::vector<const Parameter*> Layer::parameters() const {
  return parameters_of<const Parameter*>(*this);
}

int64_t Layer::weights_alive() const {
  return std::accumulate(weight.mask.begin(), weight.mask.end(), int64_t{0});
}

int64_t Layer::weights_total() const {
  return static_cast<int64_t>(out_channels) * group_channels() * form.kernel;
}

size_t Layer::place(int output, int channel, int tap) const {
  const int channels = in_channels / form.stride;
  const int group = output / (out_channels / form.groups);
  // Positions of the layer before, from the first that the first tap of the layer's shape reads.
  const int position = padding() * form.stride + tap - form.padding;
  return (static_cast<size_t>(output) * static_cast<size_t>(taps) *
              static_cast<size_t>(form.stride) +
          static_cast<size_t>(position)) *
             static_cast<size_t>(channels) +
         static_cast<size_t>(group * group_channels() + channel);
}

Network::Network(const NetworkConfig& config, uint64_t seed) : config_(config) {
  config_.validate();
  layers_ = describe_layers(config_);
  for (Layer& layer : layers_) initialize(layer, config_.class_scales, seed);
}

Network::Network(const Network& other)
    : class_names(other.class_names),
      steps(other.steps),
      optimizer_steps(other.optimizer_steps),
      config_(other.config_) {
  layers_.reserve(other.layers_.size());
  for (const Layer& layer : other.layers_) layers_.push_back(clone(layer));
}

Network& Network::operator=(const Network& other) {
  if (this != &other) *this = Network(other);
  return *this;
}

int64_t Network::weights_total() const {
  int64_t total = 0;
  for (const Layer& layer : layers_) total += layer.weights_total();
  return total;
}

int64_t Network::weights_alive() const {
  int64_t alive = 0;
  for (const Layer& layer : layers_) alive += layer.weights_alive();
  return alive;
}

void Network::apply_masks() {
  for (Layer& layer : layers_) {
    for (Parameter* parameter : layer.parameters()) {
      for (size_t i = 0; i < parameter->mask.size(); ++i) {
        if (parameter->mask[i] != 0) continue;
        parameter->value.floats()[i] = 0;
        parameter->grad.floats()[i] = 0;
        parameter->moment1.floats()[i] = 0;
        parameter->moment2.floats()[i] = 0;
      }
    }
  }
}

void Network::reset_optimizer() {
  optimizer_steps = 0;
  for (Layer& layer : layers_) {
    for (Parameter* parameter : layer.parameters()) {
      parameter->moment1.fill_zero();
      parameter->moment2.fill_zero();
    }
  }
}

void Network::replace(NetworkConfig config, std::vector<Layer> layers) {
  config.validate();
  const std::vector<Layer> expected = describe_layers(config);
  if (layers.size() != expected.size()) {
    fail("network: {} layers, expected {}", layers.size(), expected.size());
  }
  for (size_t i = 0; i < layers.size(); ++i)
    check_layer(layers[i], expected[i], config.class_scales);
  config_ = std::move(config);
  layers_ = std::move(layers);
}

}  // namespace fmp
