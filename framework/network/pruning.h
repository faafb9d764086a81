// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// What a pruning method sees of a trained parameter. Of the gradients there is what the optimizer
// keeps of them: the last gradient itself is in no checkpoint.
struct TrainedValues {
  std::span<const float> values;
  // Adam's second moment, and what it is multiplied with for the average of the squared gradients
  // of the last batches (Adam's bias correction); 0: no step was taken since the optimizer began.
  std::span<const float> moment2;
  double moment2_correction = 0;

  size_t size() const { return values.size(); }
  // The average over the last batches (some 1 / (1 - beta2) = 1000 of this round) of the squared
  // gradient of values[index]. The gradient is that of a batch's mean loss. Throws Error when no
  // step was taken.
  double squared_gradient(size_t index) const;
  // The average of (value x gradient)^2: the squared change of the loss, to first order, when the
  // value becomes 0 (Molchanov et al., 2019).
  double squared_taylor(size_t index) const;
};

// What a pruning method sees of a layer, and the mask or the bits that it changes. Values and
// gradients are of the same epoch, the one whose network is pruned.
struct PrunableLayer {
  size_t index = 0;       // in PruneRequest::layers
  std::string_view name;  // "conv1", "dense2", "output", ...
  Layer::Kind kind = Layer::Kind::kConv;
  int out_channels = 0, kernel = 0, in_channels = 0;
  int64_t positions = 0;  // multiply-accumulates that one weight causes per frame
  int weight_bits = 0;    // 2..8 or 32
  int input_bits = 0;     // of the activations that the weights multiply, 2..8 or 32

  // Both [out_channels][kernel][in_channels]. A pruned weight is 0 and so is its mask.
  std::span<const float> weights;
  std::span<uint8_t> mask;

  // The weights with their gradients, as `weights`. They are what the optimizer trains, before
  // quantization.
  TrainedValues trained_weights;
  // Batch-norm's scale and shift, [out_channels]; empty for the output layer, which has none.
  TrainedValues gamma, beta;

  // Which channels of hidden layers go together (tied_channels() in compaction.h), by output
  // channel; empty for the output layer.
  std::vector<size_t> ties;
  // Who reads its channels: weights of layers[layer] whose index modulo `width` is `first` plus the
  // channel.
  struct Reader {
    size_t layer;
    int first, width;
  };
  std::vector<Reader> readers;

  int64_t weights_per_channel() const { return static_cast<int64_t>(kernel) * in_channels; }
  // The part of weights or mask that belongs to one output channel.
  std::span<const float> channel_weights(int channel) const;
  std::span<uint8_t> channel_mask(int channel) const;
  bool channel_alive(int channel) const;  // any weight of it is alive

  // finn-base's bit operations that one weight adds to the inference of a frame.
  int64_t bit_ops_per_weight() const { return positions * weight_bits * input_bits; }
  // What one weight adds to the inference cost: normalized_cost() of its operations and its bits.
  double cost_per_weight() const;
};

// What a pruning method sees of the activations that a hidden layer writes, one without weights
// too.
struct PrunableValue {
  std::string_view name;  // of the layer
  Layer::Kind kind = Layer::Kind::kConv;
  int bits = 0;            // 2..8, or 32: float
  float range = 0;         // the largest value, which is the largest code's; 0 where they are float
  bool is_signed = false;  // whether there are codes below 0
  // Of a layer with weights: where it is in PruneRequest::layers. Of others: the values that it
  // reads, in PruneRequest::values, or kReadsFrames.
  size_t layer = 0;
  std::vector<int> reads;
  // The layers in PruneRequest::layers whose weights are multiplied with it: what its bits cost.
  std::vector<size_t> readers;
};

// The scores of layer-adaptive magnitude pruning (LAMP; Lee et al., 2021), as `layer.weights`: w^2
// divided by the sum of the squares of the weights of the layer that are not smaller (of equal
// ones: of those with the same or a higher index). Pruned weights score 0.
std::vector<double> lamp_scores(const PrunableLayer& layer);

// The estimate of "structured-taylor": the squared change of the loss, to first order, when an
// output channel of a hidden layer emits 0 behind its batch-norm.
double squared_taylor_of_channel(const PrunableLayer& layer, int channel);

// What the removal of an output channel of layers[layer] takes off the inference cost: the cost of
// its own weights and of those that read it, as far as they are alive. Of several channels that go
// together, each has its share of the latter. `layers`: all of a network with weights, from the
// input to the output; `layer` is not the last.
double cost_of_channel(std::span<const PrunableLayer> layers, size_t layer, int channel);

// `score` for each unit of `cost`. What costs nothing goes last: its removal gains nothing, so its
// score is infinite.
double score_per_cost(double score, double cost);

// Removes the fraction of the weights of all layers with the smallest magnitudes, where the network
// is trained: see prune_smallest().
using PruneSmallest = std::function<void(std::span<PrunableLayer> layers, double fraction)>;

// One call of a pruning method.
struct PruneRequest {
  std::vector<PrunableLayer> layers;  // with weights, from the input to the output
  std::vector<PrunableValue> values;  // of all hidden layers, in their order
  double fraction = 0;                // of what is left, 0 < fraction < 1
  uint64_t seed = 0;                  // of the run
  uint64_t round = 0;                 // distinct for every call in a run: with seed, the key for
                                      // whatever is drawn at random
  PruneSmallest on_device;            // for prune_smallest(); empty: there is no device
};

enum class Granularity : uint8_t {
  kWeights,   // removes single weights
  kChannels,  // removes whole output channels; the controller compacts the network afterwards
  kBits,      // lowers bits of weights and activations, and removes no weights
};

// The fewest bits that quantized weights and activations can have.
inline constexpr int kFewestBits = 2;

// A way to choose what to remove. Stateless: the same request gives the same masks.
class PruningMethod {
 public:
  virtual ~PruningMethod() = default;
  virtual Granularity granularity() const { return Granularity::kWeights; }
  // Changes `request.layers`, and nothing else. kWeights and kChannels: sets mask entries from 1 to
  // 0. kBits: lowers weight_bits of layers, or bits of values and with them input_bits of their
  // readers, of what is quantized, to no less than kFewestBits.
  virtual void prune(PruneRequest& request) const = 0;
};

// Python's round(fraction * remaining), halves to the even number, which is how
// torch.nn.utils.prune counts what to remove.
int64_t prune_count(double fraction, int64_t remaining);

// Removes prune_count(fraction, weights alive) weights of all `layers` together: those with the
// lowest score. Of equal scores the one in the earlier layer, and in a layer the one with the lower
// index, goes first. `score` is called once for every weight that is alive, in that order. Throws
// Error when a score is not a number.
using WeightScore = std::function<double(const PrunableLayer& layer, int64_t index)>;
void prune_lowest(std::span<PrunableLayer> layers, double fraction, const WeightScore& score);

// prune_lowest() with magnitudes for scores, on the device if the network is trained on one: the
// same masks.
void prune_smallest(PruneRequest& request);

// Removes prune_count(fraction, channels alive) output channels of all hidden layers together:
// those with the lowest score, but never a layer's last one. Of equal scores the one in the earlier
// layer, and in a layer the one with the lower index, goes first. `score` is called once for every
// channel that is alive, in that order. Throws Error when a score is not a number.
// Channels that go together have the sum of their scores, and go as one.
using ChannelScore = std::function<double(size_t layer, int channel)>;
void prune_lowest_channels(std::span<PrunableLayer> layers, double fraction,
                           const ChannelScore& score);

// The output channels of hidden layers that are alive, those together that go together: {layer,
// channel}, the first of each group in order. Without those that can never go.
using ChannelGroup = std::vector<std::pair<size_t, int>>;
std::vector<ChannelGroup> alive_channel_groups(std::span<const PrunableLayer> layers);

struct PruneResult {
  int64_t weights_before = 0, weights_after = 0;  // alive
  int bits_removed = 0;                           // of weights and activations, over all layers
};

// Runs `method` on all layers of `network`, zeroes what it pruned (values, gradients, moments) and
// gives the layers their new bits; thresholds stay, and scales follow from bits and weights. Throws
// Error when a weight is not finite, when 0 < fraction < 1 does not hold, or when the method
// changed what it must not change.
PruneResult prune(Network& network, const PruningMethod& method, double fraction, uint64_t seed,
                  uint64_t round, const PruneSmallest& on_device = {});

// The methods that exist, by name. Each registers itself from its own file under
// experiments/p_methods/ with
//   FMP_REGISTER_PRUNING_METHOD(ClassName, "method-name", "What it removes, in a line.");
struct PruningMethodInfo {
  std::string name, description;
  std::function<std::unique_ptr<PruningMethod>()> create;
};
std::vector<PruningMethodInfo> pruning_methods();  // sorted by name

// Throws UsageError that lists the existing names when there is none called `name`.
std::unique_ptr<PruningMethod> make_pruning_method(std::string_view name);

// Throws std::logic_error when the name is taken. Returns true, so that a static can hold it.
bool register_pruning_method(PruningMethodInfo info);

#define FMP_REGISTER_PRUNING_METHOD(Class, name, description)                                \
  [[maybe_unused]] static const bool Class##_is_registered = ::fmp::register_pruning_method( \
      {name, description, [] { return std::make_unique<Class>(); }})

}  // namespace fmp
