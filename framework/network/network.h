// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/input_quantizer.h"
#include "framework/network/tensor.h"
#include "kernels/layer.h"

namespace fmp {

// What a convolution is, beside its channels.
struct Convolution {
  static constexpr int kAsNeeded = -1;

  int kernel = 3;
  int stride = 1;
  int padding = 1;  // zeros before the first sample, 0..kernel - 1
  int groups = 1;   // in as many parts of the channels, each of which reads its own alone
  int pool = 2;     // MaxPool1d window and stride behind it, 1 = none; drops a part of a window
  // Zeros behind the last sample, 0..kernel - 1, or kAsNeeded: as many as samples / stride
  // positions take.
  int padding_after = kAsNeeded;

  // That it writes, before pooling; below 1: a kernel does not fit in.
  int positions(int samples) const {
    if (padding_after == kAsNeeded) return samples / stride;
    const int room = samples + padding + padding_after - kernel;
    return room < 0 ? 0 : room / stride + 1;
  }
  bool operator==(const Convolution&) const = default;
};

enum class LayerKind : uint8_t { kConv, kDense, kOutput, kAdd, kConcat, kAveragePool };

// Whether it multiplies weights and has a batch-norm, or, the output layer, a bias. The others
// compute a real value of what they read, and have nothing but a quantizer.
constexpr bool has_weights(LayerKind kind) { return kind <= LayerKind::kOutput; }

inline constexpr size_t kMaxLayers = 1024;  // of a network, hidden ones
inline constexpr int kReadsFrames = -1;     // among what a layer reads: the input of the network

// A hidden layer, as a description has it:
//   conv          Conv1d(no bias) -> BatchNorm1d -> QuantReLU -> MaxPool1d
//   dense         flatten -> Linear(no bias) -> BatchNorm1d -> QuantReLU; behind all others
//   add           of two of the same shape -> QuantReLU -> MaxPool1d
//   concat        of two or more of the same length, channels side by side -> QuantReLU ->
//                 MaxPool1d
//   average_pool  mean of a window -> QuantReLU; drops a part of a window
// A quantizer may be a signed one instead of a QuantReLU.
struct LayerConfig {
  LayerKind kind = LayerKind::kConv;
  std::string name;        // empty: kind and number, "conv1", "add2"
  std::vector<int> reads;  // hidden layers before it, or kReadsFrames; empty: the one before
  int outputs = 0;         // channels of a layer with weights; others have those of what they read
  // All of it: a convolution. add, concat: pool alone. average_pool: kernel = its window, 0: all.
  Convolution form{1, 1, 0, 1, 1};
  int weight_bits = 8, act_bits = 8;  // 2..8 or 32 = float; without weights: weight_bits is unused
  int smallest_code = 0;              // LayerShape::smallest_code
  // Whether its threshold is taken from the batches of the first steps, see Layer::threshold. Else
  // it is learned from the first step on, as that of a layer that came with one.
  bool collects = true;

  bool operator==(const LayerConfig&) const = default;
};

struct ChainConfig;

// Layers that read frames or what layers before them write, described by data. The output layer,
// Linear(classes, quantized bias), reads the last of them.
struct NetworkConfig {
  int input_channels = 2;
  int length = 1024;  // samples per frame
  int classes = 24;
  int input_bits = 8;  // 2..8, or 32 for float
  // Value of an input code of 1; 0 stands for fmp::input_scale(input_bits). 0 for float inputs.
  float input_scale = 0;
  std::vector<LayerConfig> layers;  // hidden ones
  int output_bits = 8;              // of the output layer's weights
  // Whether each class has a scale of its own (Layer::gain) and a bias that is not quantized, as
  // networks from elsewhere may. Where the output layer multiplies codes.
  bool class_scales = false;

  NetworkConfig() = default;
  NetworkConfig(const ChainConfig& chain);

  // Throws UsageError that names the layer and the field when a value is out of range.
  void validate() const;

  std::vector<int> reads_of(size_t layer) const;  // never empty; layer <= layers.size()
  std::string name_of(size_t layer) const;
  // Whether every layer has weights and reads the one before.
  bool is_chain() const;
  InputQuantizer input_quantizer() const { return InputQuantizer::of(input_bits, input_scale); }
  // Elements of all layers' weights together, those included that a Layer's form has no place for.
  // Of a valid configuration.
  int64_t weights() const;

  bool operator==(const NetworkConfig&) const = default;
};

// A chain of convolutions and then dense layers, in few words: flags and tests give networks so.
// The defaults are the published VGG10. Lists beside filters and dense: one value for all layers,
// or one per layer.
struct ChainConfig {
  int input_channels = 2, length = 1024, classes = 24;
  std::vector<int> filters = {64, 64, 64, 64, 64, 64, 64};  // output channels of each convolution
  std::vector<int> dense = {128, 128};                      // outputs of each hidden dense layer
  std::vector<int> kernel = {3}, stride = {1}, groups = {1}, pool = {2};
  std::vector<int> padding;  // empty: (kernel - 1) / 2, as many on both sides where kernel is odd
  int input_bits = 8;
  std::vector<int> weight_bits = {8};  // one for all layers, or one per layer
  std::vector<int> act_bits = {8};     // one for all hidden layers, or one per layer
  float input_scale = 0;
  std::vector<int> smallest_codes;  // of each hidden layer; empty: all are 0
  bool class_scales = false;

  int layers() const { return static_cast<int>(filters.size() + dense.size()) + 1; }
};

// A trained value with its gradient, its Adam moments and, when it can be pruned, its mask.
struct Parameter {
  std::string name;           // e.g. "conv1.weight"
  Tensor value, grad;         // float, row-major
  Tensor moment1, moment2;    // Adam's running means of the gradient and its square
  std::vector<uint8_t> mask;  // 1 = alive, 0 = pruned (value, gradient and moments are 0); empty =
                              // cannot be pruned

  int64_t size() const { return value.size(); }
  Parameter clone() const;
};

// One layer: a hidden one (see LayerConfig), or the output layer (dense with bias), whose act_bits
// is kFloatBits. A layer without weights has in_channels = out_channels, and length as it writes.
//
// Every convolution is one with stride 1, an odd number of taps and as many zeros on both sides:
// its LayerShape. A stride s reads s positions of the layer before as one of s times as many
// channels (in memory they are the same), and places between a kernel's taps, outside of it or of a
// group have no weight: the mask is 0 there from the beginning. What it reads may have fewer
// positions than it writes, or more: see positions_read().
struct Layer : LayerShape {
  using Kind = LayerKind;

  std::string name;  // "conv1" .. "conv7", "dense1", "dense2", "output"
  Kind kind = Kind::kConv;
  std::vector<int> reads;  // never empty; see LayerConfig
  // Of a convolution; of an average pool, kernel = stride = its window.
  Convolution form{1, 1, 0, 1, 1};

  // weight: [out_channels][taps][in_channels]. Where several positions of the layer before are
  // read as one, by a stride or flattened: in_channels index = position * channels + channel.
  Parameter weight;
  Parameter gamma, beta;  // batch-norm's, [out_channels]; hidden layers
  // The quantizer's largest value v, [1]; hidden layers with act_bits < 32. Where the layer
  // collects, it is in the first training steps the running mean of the batches' percentiles;
  // afterwards learned.
  Parameter threshold;
  bool collects = true;
  Parameter bias;  // [out_channels]; output layer
  // Of each class's scale to the layer's, fixed, [out_channels]: logit = sum * scale * gain + bias;
  // output layer with class_scales.
  Tensor gain;
  Tensor running_mean, running_var;  // [out_channels]; hidden layers

  std::vector<Parameter*> parameters();  // those that this kind of layer has, in a fixed order
  std::vector<const Parameter*> parameters() const;
  bool has_weights() const { return fmp::has_weights(kind); }
  int64_t weights_alive() const;  // mask entries that are 1
  int64_t weights_total() const;  // that the layer has if none is pruned
  // Where the weight of channel `channel` of its group and tap `tap` of the kernel is, of an
  // output.
  size_t place(int output, int channel, int tap) const;
  int group_channels() const { return in_channels / form.stride / form.groups; }
  // Rows of zeros around the positions of the layer before.
  int input_padding() const { return padding() * form.stride; }
  int out_length() const { return length / pool; }
  // Of the layer's input, joined, in the tile that it reads: those of the layer before, with zeros
  // behind them where it writes more, without those that it does not reach where it writes fewer.
  int positions_read(int joined) const;
  // Positions at which a weight is multiplied per frame.
  int64_t positions() const { return length; }
  // Whether it is a convolution of several positions: ranks that train together compute those of
  // their frames, and what comes behind them of all frames.
  bool has_positions() const {
    return !has_weights() || (kind == Kind::kConv && (taps != 1 || length != 1));
  }
};

// What a layer without weights computes.
inline Join join_of(const Layer& layer) {
  switch (layer.kind) {
    case LayerKind::kAdd:
      return Join::kAdd;
    case LayerKind::kConcat:
      return Join::kConcat;
    default:
      return {Join::kAveragePool, layer.form.kernel};
  }
}

// Whether a layer multiplies codes: its weights and its inputs are quantized.
inline bool multiplies_codes(const Layer& layer) {
  return layer.has_weights() && layer.weight_bits != kFloatBits && layer.input_bits != kFloatBits;
}

// A layer's gains; empty where it has none.
inline std::span<const float> gain_of(const Layer& layer) {
  return layer.gain.defined() ? layer.gain.floats() : std::span<const float>();
}

// Of every layer: which layers read what it writes, the first one first.
std::vector<std::vector<int>> readers_of(const std::vector<Layer>& layers);

// The network: layers with all that training changes. A value: copying shares nothing, so a copy is
// a snapshot (weights, masks, batch-norm statistics, quantizers, optimizer moments, step count).
class Network {
 public:
  // Weights and biases drawn as PyTorch's default initialisation does (uniform in
  // +-1/sqrt(fan_in)), from a generator that depends on the seed alone.
  Network(const NetworkConfig& config, uint64_t seed);
  Network(const Network& other);
  Network& operator=(const Network& other);
  Network(Network&&) = default;
  Network& operator=(Network&&) = default;

  const NetworkConfig& config() const { return config_; }
  std::vector<Layer>& layers() { return layers_; }
  const std::vector<Layer>& layers() const { return layers_; }

  // What its classes are called, in the order of the logits; empty: not known.
  std::vector<std::string> class_names;
  int64_t steps = 0;            // optimizer steps taken since the parameters were drawn
  int64_t optimizer_steps = 0;  // Adam's t: steps since its moments were last reset

  // Whether the next step still takes thresholds from its batch, of the layers that do (see
  // Layer::collects), as the first `statistic_steps` steps do.
  bool collects_thresholds(int64_t statistic_steps = kThresholdStatisticSteps) const {
    return steps < statistic_steps;
  }

  int64_t weights_total() const;  // prunable weights, pruned ones included
  int64_t weights_alive() const;

  // After masks were changed from outside: zeroes value, gradient and moments where masked.
  void apply_masks();
  // Forgets the optimizer's moments (a fresh Adam).
  void reset_optimizer();
  // Replaces the architecture, e.g. after channels were removed. Layer shapes must fit `config`.
  void replace(NetworkConfig config, std::vector<Layer> layers);

 private:
  NetworkConfig config_;
  std::vector<Layer> layers_;
};

}  // namespace fmp
