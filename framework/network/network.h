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

// What a convolution is, beside its channels. It writes length / stride positions: as many zeros
// follow the last sample as that takes.
struct Convolution {
  int kernel = 3;
  int stride = 1;
  int padding = 1;  // zeros before the first sample, 0..kernel - 1
  int groups = 1;   // in as many parts of the channels, each of which reads its own alone
  int pool = 2;     // MaxPool1d window and stride behind it, 1 = none

  bool operator==(const Convolution&) const = default;
};

// A chain of layers, described by data:
//   input quantizer -> filters.size() x [Conv1d(no bias) -> BatchNorm1d -> QuantReLU -> MaxPool1d]
//   -> flatten -> dense.size() x [Linear(no bias) -> BatchNorm1d -> QuantReLU] ->
//   Linear(classes, quantized bias).
// A hidden layer may have a signed quantizer instead of a QuantReLU.
// The defaults are the published VGG10. Lists beside filters and dense: one value for all layers,
// or one per layer.
struct NetworkConfig {
  int input_channels = 2;
  int length = 1024;  // samples per frame; strides and pools must divide what they read
  int classes = 24;
  std::vector<int> filters = {64, 64, 64, 64, 64, 64, 64};  // output channels of each convolution
  std::vector<int> dense = {128, 128};                      // outputs of each hidden dense layer
  std::vector<int> kernel = {3}, stride = {1}, groups = {1}, pool = {2};
  std::vector<int> padding;  // empty: (kernel - 1) / 2, as many on both sides where kernel is odd
  int input_bits = 8;        // 2..8, or 32 for float
  std::vector<int> weight_bits = {8};  // 2..8 or 32; one for all layers, or one per layer
  std::vector<int> act_bits = {8};     // 2..8 or 32; one for all hidden layers, or one per layer
  // Value of an input code of 1; 0 stands for fmp::input_scale(input_bits). 0 for float inputs.
  float input_scale = 0;
  // LayerShape::smallest_code of each hidden layer; empty: all are 0.
  std::vector<int> smallest_codes;
  // Whether each class has a scale of its own (Layer::gain) and a bias that is not quantized, as
  // networks from elsewhere may. Where the output layer multiplies codes.
  bool class_scales = false;

  // Throws UsageError that names the field when a value is out of range.
  void validate() const;

  int layers() const { return static_cast<int>(filters.size() + dense.size()) + 1; }
  int weight_bits_of(int layer) const;  // 0 <= layer < layers()
  int act_bits_of(int layer) const;     // of what a hidden layer writes, 0 <= layer < layers() - 1
  int input_bits_of(int layer) const;   // of what a layer reads
  InputQuantizer input_quantizer() const { return InputQuantizer::of(input_bits, input_scale); }
  int smallest_code_of(int layer) const;        // 0 <= layer < layers() - 1
  Convolution convolution(int layer) const;     // 0 <= layer < filters.size()
  void set_outputs(size_t layer, int outputs);  // of a hidden layer
  // Elements of all layers' weights together, those included that a Layer's form has no place for.
  int64_t weights() const;

  bool operator==(const NetworkConfig&) const = default;
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

// One layer with weights: a hidden block (convolution or dense, batch-norm, QuantReLU, pooling) or
// the output layer (dense with bias), whose act_bits is kFloatBits.
//
// Every convolution is one with stride 1, an odd number of taps and as many zeros on both sides:
// its LayerShape. A stride s reads s positions of the layer before as one of s times as many
// channels (in memory they are the same), and places between a kernel's taps, outside of it or of a
// group have no weight: the mask is 0 there from the beginning.
struct Layer : LayerShape {
  enum class Kind : uint8_t { kConv, kDense, kOutput };

  std::string name;  // "conv1" .. "conv7", "dense1", "dense2", "output"
  Kind kind = Kind::kConv;
  Convolution form{1, 1, 0, 1, 1};  // of a convolution

  // weight: [out_channels][taps][in_channels]. Where several positions of the layer before are
  // read as one, by a stride or flattened: in_channels index = position * channels + channel.
  Parameter weight;
  Parameter gamma, beta;  // batch-norm's, [out_channels]; hidden layers
  // The quantizer's largest value v, [1]; hidden layers with act_bits < 32. A QuantReLU's is in the
  // first training steps the running mean of the batches' percentiles, afterwards learned.
  Parameter threshold;
  Parameter bias;  // [out_channels]; output layer
  // Of each class's scale to the layer's, fixed, [out_channels]: logit = sum * scale * gain + bias;
  // output layer with class_scales.
  Tensor gain;
  Tensor running_mean, running_var;  // [out_channels]; hidden layers

  std::vector<Parameter*> parameters();  // those that this kind of layer has, in a fixed order
  std::vector<const Parameter*> parameters() const;
  int64_t weights_alive() const;  // mask entries that are 1
  int64_t weights_total() const;  // that the layer has if none is pruned
  // Where the weight of channel `channel` of its group and tap `tap` of the kernel is, of an
  // output.
  size_t place(int output, int channel, int tap) const;
  int group_channels() const { return in_channels / form.stride / form.groups; }
  // Rows of zeros around the positions of the layer before.
  int input_padding() const { return padding() * form.stride; }
  // Positions at which a weight is multiplied per frame.
  int64_t positions() const { return length; }
  // Whether it is a convolution of several positions: ranks that train together compute those of
  // their frames, and what comes behind them of all frames.
  bool has_positions() const { return kind == Kind::kConv && (taps != 1 || length != 1); }
};

// Whether a layer multiplies codes: its weights and its inputs are quantized.
inline bool multiplies_codes(const Layer& layer) {
  return layer.weight_bits != kFloatBits && layer.input_bits != kFloatBits;
}

// A layer's gains; empty where it has none.
inline std::span<const float> gain_of(const Layer& layer) {
  return layer.gain.defined() ? layer.gain.floats() : std::span<const float>();
}

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

  // Whether the next step still takes QuantReLU thresholds from its batch, as the first
  // `statistic_steps` steps do.
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
