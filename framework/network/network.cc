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
constexpr int kMaxChannels = 1 << 16;
constexpr int kMaxLength = 1 << 24;
constexpr int kMaxKernel = 255;
constexpr int kMaxStride = 64;
constexpr int kMaxPool = 1024;
constexpr int64_t kMaxWeights = int64_t{1} << 28;

constexpr float kInitialThreshold = 1.0F;  // stands until the first batch's statistics replace it

// What the layers of a kind are called, before their number.
std::string_view short_name(LayerKind kind) {
  switch (kind) {
    case LayerKind::kConv:
      return "conv";
    case LayerKind::kDense:
      return "dense";
    case LayerKind::kAdd:
      return "add";
    case LayerKind::kConcat:
      return "concat";
    case LayerKind::kAveragePool:
      return "pool";
    default:
      return "output";
  }
}

void check_range(std::string_view field, int value, int low, int high) {
  if (value < low || value > high) {
    throw UsageError(fmt::format("{}: {} is not in {}..{}", field, value, low, high));
  }
}

// One value for all layers, or one for each.
int per_layer(std::string_view field, const std::vector<int>& values, size_t layer, size_t layers,
              std::string_view what = "layer") {
  if (values.size() == 1) return values[0];
  if (values.size() == layers) return values[layer];
  throw UsageError(fmt::format("{}: {} values, expected 1 or {} (one per {})", field, values.size(),
                               layers, what));
}

void check_bits(std::string_view field, int bits) {
  if ((bits < 2 || bits > 8) && bits != kFloatBits) {
    throw UsageError(fmt::format("{}: {} is neither 2..8 nor {} (float)", field, bits, kFloatBits));
  }
}

// Rows of zeros on each side of a convolution in the form that a Layer has. Sample j of a kernel is
// j - padding samples behind a position's first.
int reach(const Convolution& form) {
  return std::max((form.padding + form.stride - 1) / form.stride,
                  (form.kernel - 1 - form.padding) / form.stride);
}

// What a layer writes, or the frames.
struct Value {
  std::string name;
  int channels, length, bits;
};

// Checks one layer after the other, as each depends on what the layers before it write.
class LayerChecker {
 public:
  explicit LayerChecker(const NetworkConfig& config) : config_(config) {
    values_.push_back({"input", config.input_channels, config.length, config.input_bits});
    is_read_.push_back(0);
  }

  void check(size_t index) {
    const LayerConfig& layer = config_.layers[index];
    name_ = config_.name_of(index);
    check_name();
    const std::vector<const Value*> reads = take_reads(index);
    if (index == 0 && layer.kind != LayerKind::kConv)
      refuse("kind", "the first layer must be a convolution");
    if (has_dense_ && layer.kind != LayerKind::kDense)
      refuse("kind", "only dense layers may follow a dense layer");
    Value written{name_, reads[0]->channels, reads[0]->length, layer.act_bits};
    switch (layer.kind) {
      case LayerKind::kConv:
        check_range("outputs of " + name_, layer.outputs, 1, kMaxChannels);
        check_convolution(layer, written);
        break;
      case LayerKind::kDense:
        check_range("outputs of " + name_, layer.outputs, 1, kMaxChannels);
        written.channels = layer.outputs;
        written.length = 1;
        has_dense_ = true;
        break;
      case LayerKind::kAdd:
      case LayerKind::kConcat:
        check_join(layer, reads, written);
        break;
      case LayerKind::kAveragePool:
        check_range("window of " + name_, layer.form.kernel, 0, kMaxLength);
        if (layer.form.kernel > written.length) {
          throw UsageError(fmt::format("window: {} of {} does not fit into its {} positions",
                                       layer.form.kernel, name_, written.length));
        }
        written.length = layer.form.kernel == 0 ? 1 : written.length / layer.form.kernel;
        break;
      default:
        refuse("kind", "no kind of a hidden layer");
    }
    check_quantizers(layer, reads);
    if (layer.kind == LayerKind::kConv)
      count_weights(*reads[0], layer.form.stride * (2 * reach(layer.form) + 1), layer.outputs);
    if (layer.kind == LayerKind::kDense) count_weights(*reads[0], reads[0]->length, layer.outputs);
    values_.push_back(written);
    is_read_.push_back(0);
  }

  void check_output() {
    name_ = "output";
    check_bits("weight bits of output", config_.output_bits);
    count_weights(values_.back(), values_.back().length, config_.classes);
  }

  // All but the last, which the output layer reads, need a reader.
  void check_all_read() const {
    for (size_t i = 1; i + 1 < values_.size(); ++i) {
      if (is_read_[i] == 0)
        throw UsageError(fmt::format("reads: no layer reads {}", values_[i].name));
    }
  }

 private:
  [[noreturn]] void refuse(std::string_view field, std::string_view why) const {
    throw UsageError(fmt::format("{} of {}: {}", field, name_, why));
  }
  void divides(std::string_view field, int value, std::string_view what, int whole) const {
    if (whole % value == 0) return;
    throw UsageError(
        fmt::format("{}: {} of {} does not divide its {} {}", field, value, name_, whole, what));
  }

  void count_weights(const Value& read, int places, int outputs) {
    weights_ += int64_t{read.channels} * places * outputs;
    if (weights_ <= kMaxWeights) return;
    throw UsageError(fmt::format("network: {} weights up to {}, at most {} are supported", weights_,
                                 name_, kMaxWeights));
  }

  void check_name() const {
    constexpr size_t kLongest = 64;
    const bool is_plain = std::ranges::all_of(name_, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '-';
    });
    if (name_.size() > kLongest || !is_plain)
      refuse("name", "expected at most 64 letters, digits, _ and -");
    if (name_ == "output" || std::ranges::find(values_, name_, &Value::name) != values_.end())
      refuse("name", "something else is called so");
  }

  std::vector<const Value*> take_reads(size_t index) {
    const std::vector<int> reads = config_.reads_of(index);
    std::vector<const Value*> values;
    for (const int read : reads) {
      if (read < kReadsFrames || read >= static_cast<int>(index))
        refuse("reads", "expected layers before it");
      if (std::ranges::count(reads, read) > 1) refuse("reads", "one layer twice");
      const auto value = static_cast<size_t>(read + 1);
      is_read_[value] = 1;
      values.push_back(&values_[value]);
    }
    const LayerKind kind = config_.layers[index].kind;
    if (kind == LayerKind::kAdd && reads.size() != 2) refuse("reads", "expected two layers");
    if (kind == LayerKind::kConcat && reads.size() < 2)
      refuse("reads", "expected two layers or more");
    if (kind != LayerKind::kAdd && kind != LayerKind::kConcat && reads.size() != 1)
      refuse("reads", "expected one layer");
    return values;
  }

  void check_convolution(const LayerConfig& layer, Value& value) const {
    const Convolution& conv = layer.form;
    check_range("kernel of " + name_, conv.kernel, 1, kMaxKernel);
    check_range("stride of " + name_, conv.stride, 1, kMaxStride);
    check_range("padding of " + name_, conv.padding, 0, conv.kernel - 1);
    if (conv.padding_after != Convolution::kAsNeeded)
      check_range("padding of " + name_, conv.padding_after, 0, conv.kernel - 1);
    check_range("groups of " + name_, conv.groups, 1, kMaxChannels);
    divides("groups", conv.groups, "input channels", value.channels);
    divides("groups", conv.groups, "outputs", layer.outputs);
    if (conv.padding_after == Convolution::kAsNeeded)
      divides("stride", conv.stride, "samples", value.length);
    const int samples = std::exchange(value.length, conv.positions(value.length));
    if (value.length < 1) {
      throw UsageError(fmt::format("kernel of {}: {} does not fit into {} samples with padding",
                                   name_, conv.kernel, samples));
    }
    value.channels = layer.outputs;
    take_pool(conv, value);
  }

  void take_pool(const Convolution& conv, Value& value) const {
    check_range("pool of " + name_, conv.pool, 1, kMaxPool);
    if (conv.pool > value.length) {
      throw UsageError(fmt::format("pool: {} of {} does not fit into its {} positions", conv.pool,
                                   name_, value.length));
    }
    value.length /= conv.pool;
  }

  void check_join(const LayerConfig& layer, const std::vector<const Value*>& reads,
                  Value& value) const {
    const bool adds = layer.kind == LayerKind::kAdd;
    for (const Value* other : reads) {
      if (other->length == value.length && (!adds || other->channels == value.channels)) continue;
      throw UsageError(
          fmt::format("reads of {}: {} has {} channels of {} positions, but {} has {} of {}", name_,
                      reads[0]->name, reads[0]->channels, reads[0]->length, other->name,
                      other->channels, other->length));
    }
    if (!adds) {
      value.channels = 0;
      for (const Value* other : reads) value.channels += other->channels;
      check_range("channels of " + name_, value.channels, 1, kMaxChannels);
    }
    take_pool(layer.form, value);
  }

  void check_quantizers(const LayerConfig& layer, const std::vector<const Value*>& reads) const {
    if (has_weights(layer.kind)) check_bits("weight bits of " + name_, layer.weight_bits);
    check_bits("activation bits of " + name_, layer.act_bits);
    const int code = layer.smallest_code, lowest = -(1 << (layer.act_bits % kFloatBits) >> 1);
    if (code != 0 && (layer.act_bits == kFloatBits || (code != lowest && code != lowest + 1))) {
      throw UsageError(
          fmt::format("smallest code of {}: {} with {} bits", name_, code, layer.act_bits));
    }
    if (has_weights(layer.kind)) return;
    if (layer.act_bits == kFloatBits) refuse("activation bits", "expected 2..8");
    for (const Value* read : reads) {
      if (read->bits == kFloatBits)
        refuse("reads", fmt::format("{} writes floats, expected codes of 2..8 bits", read->name));
    }
  }

  const NetworkConfig& config_;
  std::string name_;
  std::vector<Value> values_;  // of the frames, then of every layer
  std::vector<uint8_t> is_read_;
  bool has_dense_ = false;
  int64_t weights_ = 0;
};

// The layers of a configuration with their names and shapes, but without memory.
std::vector<Layer> describe_layers(const NetworkConfig& config) {
  std::vector<Layer> layers;
  const auto channels_of = [&](int read) {
    return read == kReadsFrames ? config.input_channels
                                : layers[static_cast<size_t>(read)].out_channels;
  };
  const auto length_of = [&](int read) {
    return read == kReadsFrames ? config.length : layers[static_cast<size_t>(read)].out_length();
  };
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& from = config.layers[i];
    Layer layer;
    layer.kind = from.kind;
    layer.name = config.name_of(i);
    layer.reads = config.reads_of(i);
    const int read = layer.reads[0], length = length_of(read);
    layer.in_channels = channels_of(read);
    layer.out_channels = from.outputs;
    layer.weight_bits = has_weights(from.kind) ? from.weight_bits : kFloatBits;
    layer.input_bits =
        read == kReadsFrames ? config.input_bits : layers[static_cast<size_t>(read)].act_bits;
    layer.act_bits = from.act_bits;
    layer.smallest_code = from.smallest_code;
    layer.collects = from.collects;
    switch (from.kind) {
      case LayerKind::kConv:
        layer.form = from.form;
        layer.in_channels *= from.form.stride;
        layer.taps = 2 * reach(from.form) + 1;
        layer.pool = from.form.pool;
        layer.length = from.form.positions(length);
        break;
      case LayerKind::kDense:
        layer.in_channels *= length;  // flatten
        break;
      case LayerKind::kAveragePool:
        layer.form.kernel = layer.form.stride = from.form.kernel == 0 ? length : from.form.kernel;
        layer.length = length / layer.form.stride;
        layer.out_channels = layer.in_channels;
        break;
      default:
        layer.form.pool = layer.pool = from.form.pool;
        layer.length = length;
        if (from.kind == LayerKind::kConcat) {
          layer.in_channels = 0;
          for (const int each : layer.reads) layer.in_channels += channels_of(each);
        }
        layer.out_channels = layer.in_channels;
        break;
    }
    layers.push_back(std::move(layer));
  }
  Layer output;
  output.kind = LayerKind::kOutput;
  output.name = "output";
  output.reads = config.reads_of(config.layers.size());
  output.in_channels = channels_of(output.reads[0]) * length_of(output.reads[0]);
  output.out_channels = config.classes;
  output.weight_bits = config.output_bits;
  output.input_bits = layers.empty() ? config.input_bits : layers.back().act_bits;
  output.act_bits = kFloatBits;
  layers.push_back(std::move(output));
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

void add_threshold(Layer& layer) {
  if (layer.act_bits == kFloatBits) return;
  layer.threshold = make_parameter(layer.name + ".threshold", {1});
  fill(layer.threshold, kInitialThreshold);
}

void initialize(Layer& layer, bool class_scales, uint64_t seed) {
  if (!layer.has_weights()) return add_threshold(layer);
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
  add_threshold(layer);
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
  if (layer.reads != expected.reads) fail("{}: reads other layers", name);
  check_size(name + " inputs", layer.in_channels, expected.in_channels);
  check_size(name + " outputs", layer.out_channels, expected.out_channels);
  check_size(name + " taps", layer.taps, expected.taps);
  check_size(name + " positions", layer.length, expected.length);
  check_size(name + " pool", layer.pool, expected.pool);
  if (layer.form != expected.form) fail("{}: another form of convolution", name);
  check_size(name + " smallest code", layer.smallest_code, expected.smallest_code);
  const int64_t outputs = expected.out_channels;
  const int64_t weights = expected.has_weights() ? expected.weights() : 0;
  check_parameter(name + ".weight", layer.weight, weights);
  check_size(name + ".weight mask", static_cast<int64_t>(layer.weight.mask.size()), weights);
  const bool is_output = expected.kind == Layer::Kind::kOutput;
  const int64_t normalised = expected.has_weights() && !is_output ? outputs : 0;
  check_parameter(name + ".gamma", layer.gamma, normalised);
  check_parameter(name + ".beta", layer.beta, normalised);
  check_parameter(name + ".threshold", layer.threshold, expected.act_bits != kFloatBits ? 1 : 0);
  check_parameter(name + ".bias", layer.bias, is_output ? outputs : 0);
  check_size(name + " gain", layer.gain.size(), class_scales && is_output ? outputs : 0);
  check_size(name + " running mean", layer.running_mean.size(), normalised);
  check_size(name + " running variance", layer.running_var.size(), normalised);
}

}  // namespace

NetworkConfig::NetworkConfig(const ChainConfig& chain)
    : input_channels(chain.input_channels),
      length(chain.length),
      classes(chain.classes),
      input_bits(chain.input_bits),
      input_scale(chain.input_scale),
      class_scales(chain.class_scales) {
  const size_t convolutions = chain.filters.size(), hidden = convolutions + chain.dense.size();
  if (!chain.smallest_codes.empty() && chain.smallest_codes.size() != hidden) {
    throw UsageError(
        fmt::format("smallest codes: {} values, expected {}", chain.smallest_codes.size(), hidden));
  }
  for (size_t i = 0; i < hidden; ++i) {
    LayerConfig& layer = layers.emplace_back();
    layer.weight_bits = per_layer("weight bits", chain.weight_bits, i, hidden + 1);
    layer.act_bits = per_layer("activation bits", chain.act_bits, i, hidden);
    if (!chain.smallest_codes.empty()) layer.smallest_code = chain.smallest_codes[i];
    if (i >= convolutions) {
      layer.kind = LayerKind::kDense;
      layer.outputs = chain.dense[i - convolutions];
      continue;
    }
    layer.outputs = chain.filters[i];
    const auto of = [&](std::string_view field, const std::vector<int>& values) {
      return per_layer(field, values, i, convolutions, "convolution");
    };
    layer.form.kernel = of("kernel", chain.kernel);
    layer.form.stride = of("stride", chain.stride);
    layer.form.padding =
        chain.padding.empty() ? (layer.form.kernel - 1) / 2 : of("padding", chain.padding);
    layer.form.groups = of("groups", chain.groups);
    layer.form.pool = of("pool", chain.pool);
  }
  output_bits = per_layer("weight bits", chain.weight_bits, hidden, hidden + 1);
}

void NetworkConfig::validate() const {
  check_range("input channels", input_channels, 1, kMaxChannels);
  check_range("length", length, 1, kMaxLength);
  check_range("classes", classes, 2, 256);
  check_bits("input bits", input_bits);
  if (layers.empty()) throw UsageError("layers: at least one convolution is needed");
  if (layers.size() > kMaxLayers) {
    throw UsageError(
        fmt::format("layers: {}, at most {} are supported", layers.size(), kMaxLayers));
  }
  LayerChecker checker(*this);
  for (size_t i = 0; i < layers.size(); ++i) checker.check(i);
  checker.check_output();
  checker.check_all_read();
  if (input_scale != 0 &&
      (input_bits == kFloatBits || !(input_scale > 0) || !std::isnormal(input_scale))) {
    throw UsageError(fmt::format("input scale: {} with {} bits", input_scale, input_bits));
  }
  if (class_scales && (output_bits == kFloatBits || layers.back().act_bits == kFloatBits)) {
    throw UsageError("class scales: the output layer does not multiply codes");
  }
}

std::vector<int> NetworkConfig::reads_of(size_t layer) const {
  if (layer < layers.size() && !layers[layer].reads.empty()) return layers[layer].reads;
  return {static_cast<int>(layer) - 1};
}

std::string NetworkConfig::name_of(size_t layer) const {
  const LayerConfig& of = layers[layer];
  if (!of.name.empty()) return of.name;
  const auto end = layers.begin() + static_cast<ptrdiff_t>(layer) + 1;
  return fmt::format("{}{}", short_name(of.kind),
                     std::count_if(layers.begin(), end,
                                   [&](const LayerConfig& each) { return each.kind == of.kind; }));
}

bool NetworkConfig::is_chain() const {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!has_weights(layers[i].kind) || reads_of(i) != std::vector{static_cast<int>(i) - 1})
      return false;
  }
  return true;
}

int64_t NetworkConfig::weights() const {
  int64_t total = 0;
  for (const Layer& layer : describe_layers(*this))
    total += layer.has_weights() ? layer.LayerShape::weights() : 0;
  return total;
}

std::vector<std::vector<int>> readers_of(const std::vector<Layer>& layers) {
  std::vector<std::vector<int>> readers(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const int read : layers[i].reads) {
      if (read != kReadsFrames) readers[static_cast<size_t>(read)].push_back(static_cast<int>(i));
    }
  }
  return readers;
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
  if (!has_weights()) return 0;
  return static_cast<int64_t>(out_channels) * group_channels() * form.kernel;
}

int Layer::positions_read(int joined) const {
  return std::clamp(joined, length, length + padding());
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
