// SPDX-License-Identifier: MIT
#include "framework/network/compaction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "framework/network/cost.h"
#include "framework/network/pruning.h"
#include "framework/network/weight_codes.h"
#include "framework/random.h"
#include "framework/training/trainer.h"
#include "kernels/cpu/simd.h"
#include "tests/chain_of.h"
#include "tests/random_batch.h"
#include "tests/trained_network.h"

namespace fmp {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr uint64_t kSeed = 20'240'607;

ChainConfig small_config() {
  ChainConfig config;
  config.length = 32;
  config.classes = 4;
  config.filters = {6, 5, 7};
  config.dense = {9, 8};
  config.weight_bits = {4};
  config.act_bits = {4};
  return config;
}

// Indices in layer `next` of what it reads from `channel` of the layer before: all positions of the
// flattened activations, or the channel itself.
std::vector<int> inputs_from(const Layer& layer, const Layer& next, int channel) {
  std::vector<int> inputs;
  for (int i = channel; i < next.in_channels; i += layer.out_channels) inputs.push_back(i);
  return inputs;
}

size_t weight_index(const Layer& layer, int output, int tap, int input) {
  return static_cast<size_t>((output * layer.taps + tap) * layer.in_channels + input);
}

void mask_row(Network& network, size_t layer_index, int channel) {
  Layer& layer = network.layers()[layer_index];
  for (int tap = 0; tap < layer.taps; ++tap) {
    for (int input = 0; input < layer.in_channels; ++input) {
      layer.weight.mask[weight_index(layer, channel, tap, input)] = 0;
    }
  }
  network.apply_masks();
}

void mask_column(Network& network, size_t layer_index, int channel) {
  Layer& layer = network.layers()[layer_index];
  Layer& next = network.layers()[layer_index + 1];
  for (const int input : inputs_from(layer, next, channel)) {
    for (int output = 0; output < next.out_channels; ++output) {
      for (int tap = 0; tap < next.taps; ++tap) {
        next.weight.mask[weight_index(next, output, tap, input)] = 0;
      }
    }
  }
  network.apply_masks();
}

// Makes one weight the largest of its layer, and so the one that sets the scale.
void make_largest(Layer& layer, int output, int input) {
  layer.weight.value.floats()[weight_index(layer, output, 0, input)] = 0.9F;
}

// A channel that emits 0 for ever.
void silence(Network& network, size_t layer_index, int channel) {
  mask_row(network, layer_index, channel);
  mask_column(network, layer_index, channel);
  Layer& layer = network.layers()[layer_index];
  const auto c = static_cast<size_t>(channel);
  for (Parameter* parameter : {&layer.gamma, &layer.beta}) {
    parameter->value.floats()[c] = 0;
    parameter->moment1.floats()[c] = 0;
    parameter->moment2.floats()[c] = 0;
  }
  layer.running_mean.floats()[c] = 0;
  layer.running_var.floats()[c] = 1;
}

using Channels = std::vector<std::vector<int>>;  // per hidden layer

// Checks that `small` is what is left of `large` when only these channels stay, bit for bit.
void expect_same_survivors(const Network& small, const Network& large, const Channels& kept) {
  const auto expect_vector = [](const Tensor& a, const Tensor& b, const std::vector<int>& channels,
                                const std::string& name) {
    ASSERT_EQ(a.size(), static_cast<int64_t>(channels.size())) << name;
    for (size_t i = 0; i < channels.size(); ++i) {
      EXPECT_EQ(a.floats()[i], b.floats()[static_cast<size_t>(channels[i])]) << name << " " << i;
    }
  };
  std::vector<int> inputs(static_cast<size_t>(large.config().input_channels));
  std::iota(inputs.begin(), inputs.end(), 0);
  for (size_t l = 0; l < large.layers().size(); ++l) {
    const Layer& a = small.layers()[l];
    const Layer& b = large.layers()[l];
    std::vector<int> outputs(static_cast<size_t>(b.out_channels));
    std::iota(outputs.begin(), outputs.end(), 0);
    if (l < kept.size()) outputs = kept[l];
    ASSERT_EQ(a.out_channels, static_cast<int>(outputs.size())) << b.name;
    ASSERT_EQ(a.in_channels, static_cast<int>(inputs.size())) << b.name;
    for (int o = 0; o < a.out_channels; ++o) {
      for (int t = 0; t < a.taps; ++t) {
        for (int i = 0; i < a.in_channels; ++i) {
          const size_t at = weight_index(a, o, t, i);
          const size_t from =
              weight_index(b, outputs[static_cast<size_t>(o)], t, inputs[static_cast<size_t>(i)]);
          ASSERT_EQ(a.weight.mask[at], b.weight.mask[from]) << b.name;
          for (const auto tensor :
               {&Parameter::value, &Parameter::grad, &Parameter::moment1, &Parameter::moment2}) {
            ASSERT_EQ((a.weight.*tensor).floats()[at], (b.weight.*tensor).floats()[from])
                << b.name << " output " << o << " tap " << t << " input " << i;
          }
        }
      }
    }
    if (l == kept.size()) {
      expect_vector(a.bias.value, b.bias.value, outputs, "bias");
      return;
    }
    for (const auto parameter : {&Layer::gamma, &Layer::beta}) {
      for (const auto tensor :
           {&Parameter::value, &Parameter::grad, &Parameter::moment1, &Parameter::moment2}) {
        expect_vector((a.*parameter).*tensor, (b.*parameter).*tensor, outputs, b.name);
      }
    }
    expect_vector(a.running_mean, b.running_mean, outputs, b.name + " mean");
    expect_vector(a.running_var, b.running_var, outputs, b.name + " variance");
    if (b.threshold.value.defined()) {
      EXPECT_EQ(a.threshold.value.floats()[0], b.threshold.value.floats()[0]) << b.name;
    }
    inputs.clear();
    const Layer& next = large.layers()[l + 1];
    for (int base = 0; base < next.in_channels; base += b.out_channels) {
      for (const int channel : outputs) inputs.push_back(base + channel);
    }
  }
}

// --- what is dropped ---------------------------------------------------------------------------

TEST(Compaction, LeavesAFullNetworkAlone) {
  const Network original = trained_network(small_config(), kSeed);
  Network network = original;
  const CompactionReport report = compact(network);
  EXPECT_EQ(report.weights_removed, 0);
  EXPECT_EQ(report.channels_before, report.channels_after);
  EXPECT_THAT(report.channels_after, ElementsAre(6, 5, 7, 9, 8));
  expect_same_survivors(network, original,
                        {{0, 1, 2, 3, 4, 5},
                         {0, 1, 2, 3, 4},
                         {0, 1, 2, 3, 4, 5, 6},
                         {0, 1, 2, 3, 4, 5, 6, 7, 8},
                         {0, 1, 2, 3, 4, 5, 6, 7}});
}

TEST(Compaction, DropsAChannelThatNobodyReads) {
  Network network = trained_network(small_config(), kSeed);
  make_largest(network.layers()[1], 0, 0);
  mask_column(network, 1, 3);
  const Network original = network;
  const CompactionReport report = compact(network);
  EXPECT_EQ(report.weights_removed, 6 * 3) << "the weights that wrote the channel";
  EXPECT_THAT(report.channels_after, ElementsAre(6, 4, 7, 9, 8));
  EXPECT_EQ(chain_of(network.config()).filters, (std::vector<int>{6, 4, 7}));
  expect_same_survivors(network, original,
                        {{0, 1, 2, 3, 4, 5},
                         {0, 1, 2, 4},
                         {0, 1, 2, 3, 4, 5, 6},
                         {0, 1, 2, 3, 4, 5, 6, 7, 8},
                         {0, 1, 2, 3, 4, 5, 6, 7}});
}

TEST(Compaction, KnowsHowActivationsAreFlattened) {
  Network network = trained_network(small_config(), kSeed);
  make_largest(network.layers()[2], 0, 0);
  ASSERT_EQ(network.layers()[3].in_channels, 4 * 7) << "four positions are left";
  mask_column(network, 2, 5);
  const Network original = network;
  compact(network);
  EXPECT_EQ(network.layers()[3].in_channels, 4 * 6);
  expect_same_survivors(network, original,
                        {{0, 1, 2, 3, 4, 5},
                         {0, 1, 2, 3, 4},
                         {0, 1, 2, 3, 4, 6},
                         {0, 1, 2, 3, 4, 5, 6, 7, 8},
                         {0, 1, 2, 3, 4, 5, 6, 7}});
}

TEST(Compaction, KeepsAChannelThatOneFlattenedPositionReads) {
  Network network = trained_network(small_config(), kSeed);
  mask_column(network, 2, 5);
  Layer& dense = network.layers()[3];
  dense.weight.mask[weight_index(dense, 8, 0, 3 * 7 + 5)] = 1;
  EXPECT_THAT(compact(network).channels_after, ElementsAre(6, 5, 7, 9, 8));
}

// conv2's channel 1 is read by channel 4 of conv3 alone, which is read by nobody: both go.
TEST(Compaction, GoesOnUntilNothingChanges) {
  Network network = trained_network(small_config(), kSeed);
  make_largest(network.layers()[1], 0, 0);
  make_largest(network.layers()[2], 0, 0);
  mask_column(network, 1, 1);
  Layer& conv3 = network.layers()[2];
  conv3.weight.mask[weight_index(conv3, 4, 1, 1)] = 1;
  mask_column(network, 2, 4);
  EXPECT_THAT(compact(network).channels_after, ElementsAre(6, 4, 6, 9, 8));
}

// conv1's channels 0 and 1 are dead, conv2's channel 2 reads only them: it is dead as well.
TEST(Compaction, DeadInputsMakeADeadOutput) {
  Network network = trained_network(small_config(), kSeed);
  make_largest(network.layers()[1], 0, 2);
  Layer& conv2 = network.layers()[1];
  for (int input = 2; input < 6; ++input) {
    for (int tap = 0; tap < 3; ++tap) conv2.weight.mask[weight_index(conv2, 2, tap, input)] = 0;
  }
  make_largest(network.layers()[2], 0, 0);
  mask_row(network, 0, 0);
  mask_row(network, 0, 1);
  EXPECT_THAT(compact(network).channels_after, ElementsAre(4, 4, 7, 9, 8));
}

TEST(Compaction, KeepsOneChannelWhenAllAreDead) {
  Network network = trained_network(small_config(), kSeed);
  for (int channel = 0; channel < 5; ++channel) mask_row(network, 1, channel);
  const CompactionReport report = compact(network);
  EXPECT_EQ(report.channels_after[1], 1);
  EXPECT_EQ(network.layers()[1].gamma.value.floats()[0], 0);
  const FrameBatch batch = random_batch(network.config(), 5, kSeed);
  Trainer trainer(TrainerOptions{});
  const std::vector<float> logits = trainer.logits(network, batch);
  for (size_t i = 4; i < logits.size(); ++i) {
    EXPECT_EQ(logits[i], logits[i - 4]) << "no frame can be told from another";
  }
}

TEST(Compaction, IsDoneAfterOneCall) {
  Network network = trained_network(small_config(), kSeed);
  for (int round = 0; round < 4; ++round) {
    prune(network, *make_pruning_method("unstructured-l1"), 0.5, kSeed, 0);
    prune(network, *make_pruning_method("structured-l1"), 0.3, kSeed, 0);
  }
  compact(network);
  const Network compacted = network;
  const CompactionReport again = compact(network);
  EXPECT_EQ(again.weights_removed, 0);
  EXPECT_EQ(again.channels_before, again.channels_after);
  EXPECT_EQ(network.config(), compacted.config());
}

// The largest weight of a quantized layer sets its scale. While it reads a silent channel, that
// channel stays; without quantization there is no reason to.
TEST(Compaction, KeepsTheWeightThatSetsTheScale) {
  for (const int bits : {4, kFloatBits}) {
    ChainConfig config = small_config();
    config.weight_bits = {bits};
    Network network = trained_network(config, kSeed);
    make_largest(network.layers()[2], 3, 1);
    mask_row(network, 1, 1);
    const float scale = quantize_weights(network.layers()[2]).scale;
    EXPECT_EQ(compact(network).channels_after[1], bits == kFloatBits ? 4 : 5);
    if (bits == kFloatBits) continue;
    EXPECT_EQ(quantize_weights(network.layers()[2]).scale, scale);
    const Layer& conv3 = network.layers()[2];
    int64_t readers = 0;
    for (int output = 0; output < conv3.out_channels; ++output) {
      for (int tap = 0; tap < 3; ++tap) {
        readers += conv3.weight.mask[weight_index(conv3, output, tap, 1)];
      }
    }
    EXPECT_EQ(readers, 1) << "all other weights that read it go";
    // A later round: another weight has become the largest.
    network.layers()[2].weight.value.floats()[0] = 1.5F;
    EXPECT_EQ(compact(network).channels_after[1], 4);
  }
}

// --- constants of dead channels ----------------------------------------------------------------

TEST(Compaction, FoldsTheConstantIntoTheNextRunningMean) {
  Network network = trained_network(small_config(), kSeed);
  Layer& conv1 = network.layers()[0];
  mask_row(network, 0, 2);
  conv1.gamma.value.floats()[2] = 0.8F;
  conv1.beta.value.floats()[2] = 0.5F;
  conv1.running_mean.floats()[2] = -0.6F;
  conv1.running_var.floats()[2] = 0.25F;
  make_largest(network.layers()[1], 1, 0);
  const Network before = network;
  compact(network);
  // relu(0.5 + 0.8 * 0.6 / 0.5) = 1.46 on a grid of 2.5 / 15.
  const double scale = 2.5 / 15;
  const double constant = std::round((0.5 + 0.8 * 0.6 / std::sqrt(0.25 + 1e-5)) / scale) * scale;
  const Layer& old = before.layers()[1];
  const double weight_scale = 0.9 / 7;
  for (int o = 0; o < old.out_channels; ++o) {
    double sum = 0;
    for (int tap = 0; tap < 3; ++tap) {
      const float w = old.weight.value.floats()[weight_index(old, o, tap, 2)];
      sum += std::round(w / weight_scale) * weight_scale;
    }
    const auto channel = static_cast<size_t>(o);
    EXPECT_NEAR(network.layers()[1].running_mean.floats()[channel],
                old.running_mean.floats()[channel] - constant * sum, 1e-6);
  }
}

// Runs before and after compaction must agree: exactly up to the rounding of the folded constants.
void expect_same_logits(const Network& before, const Network& after, float tolerance) {
  Trainer trainer(TrainerOptions{});
  const FrameBatch batch = random_batch(before.config(), 37, kSeed);
  const std::vector<float> a = trainer.logits(before, batch);
  const std::vector<float> b = trainer.logits(after, batch);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], tolerance) << i;
}

constexpr float kRounding = 2e-5F;

// With one tap no window reaches into the padding, so folding is exact everywhere.
TEST(Compaction, PreservesTheFunctionOfDeadChannels) {
  for (const int bits : {2, 4, 8, kFloatBits}) {
    for (const std::vector<int>& dense : {std::vector<int>{9, 8}, std::vector<int>{}}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << dense.size() << " dense layers");
      ChainConfig config = small_config();
      config.kernel = {1};
      config.dense = dense;
      config.weight_bits = config.act_bits = {bits};
      Network network = trained_network(config, kSeed);
      prune(network, *make_pruning_method("structured-l1"), 0.4, kSeed, 0);
      const Network before = network;
      const CompactionReport report = compact(network);
      EXPECT_LE(report.channels_after[0], 5);
      expect_same_logits(before, network, kRounding);
    }
  }
}

// With three taps it is exact where no window reaches into the padding: here the dense layer sees
// only such positions.
TEST(Compaction, PreservesTheFunctionAwayFromThePadding) {
  ChainConfig config = small_config();
  config.filters = {6, 5};
  config.pool = {1};
  Network network = trained_network(config, kSeed);
  Layer& dense = network.layers()[2];
  for (int output = 0; output < dense.out_channels; ++output) {
    for (int channel = 0; channel < 5; ++channel) {
      dense.weight.mask[weight_index(dense, output, 0, channel)] = 0;
      dense.weight.mask[weight_index(dense, output, 0, 31 * 5 + channel)] = 0;
    }
  }
  network.apply_masks();
  prune(network, *make_pruning_method("structured-l1"), 0.4, kSeed, 0);
  const Network before = network;
  compact(network);
  expect_same_logits(before, network, kRounding);
}

TEST(Compaction, SilencedChannelsStaySilentInTraining) {
  Network network = trained_network(small_config(), kSeed);
  make_largest(network.layers()[2], 3, 1);  // so that the dead channel stays
  mask_row(network, 1, 1);
  compact(network);
  const Layer& conv2 = network.layers()[1];
  ASSERT_EQ(conv2.out_channels, 5);
  Trainer trainer(TrainerOptions{});
  for (uint64_t step = 0; step < 5; ++step) {
    trainer.train_step(network, random_batch(network.config(), 33, step), 1e-2);
    for (const Parameter* parameter : {&conv2.gamma, &conv2.beta}) {
      EXPECT_EQ(parameter->value.floats()[1], 0);
      EXPECT_EQ(parameter->grad.floats()[1], 0);
      EXPECT_EQ(parameter->moment1.floats()[1], 0);
      EXPECT_EQ(parameter->moment2.floats()[1], 0);
    }
    EXPECT_EQ(conv2.running_mean.floats()[1], 0);
  }
}

// --- dropping changes no bit -------------------------------------------------------------------

struct Case {
  const char* name;
  ChainConfig config;
};

// A channel of a depthwise convolution goes with the one that it reads.
TEST(Compact, ADepthwiseConvolutionStaysOne) {
  for (const int bits : {4, 8}) {
    ChainConfig config = small_config();
    config.filters = {9, 9, 7};
    config.kernel = {4, 1, 1};  // constants of dead channels are folded exactly
    config.stride = {2, 1, 1};
    config.groups = {1, 9, 1};
    config.pool = {1, 2, 2};
    config.weight_bits = config.act_bits = {bits};
    Network network = trained_network(config, kSeed);
    for (Layer& layer : network.layers()) {
      layer.weight.value.floats()[layer.place(0, 0, 0)] = 1.5F;  // the largest stays
      layer.weight.mask[layer.place(0, 0, 0)] = 1;
    }
    mask_row(network, 0, 3);  // nothing writes it
    mask_row(network, 1, 6);  // nothing reads it
    const Network before = network;
    const CompactionReport report = compact(network);
    EXPECT_EQ(report.channels_after[0], 7);
    EXPECT_EQ(report.channels_after[1], 7);
    expect_same_logits(before, network, kRounding);
    const Layer& depthwise = network.layers()[1];
    EXPECT_EQ(depthwise.form.groups, 7);
    EXPECT_EQ(depthwise.weights_total(), 7);
    EXPECT_EQ(chain_of(network.config()).groups, (std::vector<int>{1, 7, 1}));
  }
}

// The small networks have fewer than eight channels everywhere, the wide one more, before and
// after: so the backward kernels sum in the same order (see cpu::prefers_dense_backward).
ChainConfig narrow_config() {
  ChainConfig config = small_config();
  config.dense = {7, 6};
  return config;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int bits : {2, 4, 8, kFloatBits}) {
    ChainConfig config = narrow_config();
    config.weight_bits = config.act_bits = {bits};
    if (bits == kFloatBits) config.input_bits = kFloatBits;
    all.push_back({bits == kFloatBits ? "float" : "quantized", config});
  }
  ChainConfig wide = narrow_config();
  wide.filters = {21, 18, 19};
  wide.dense = {35};
  all.push_back({"more channels than a block of the kernels", wide});
  ChainConfig odd = narrow_config();
  odd.kernel = {5};
  odd.pool = {1};
  odd.dense = {};
  all.push_back({"five taps, no pooling, no hidden dense layer", odd});
  ChainConfig mixed = narrow_config();
  mixed.weight_bits = {8, 2, 32, 4, 3, 5};
  mixed.act_bits = {3, 32, 4, 8, 2};
  all.push_back({"mixed bits", mixed});
  return all;
}

// Channels of two kinds to drop: silent ones, and ones that nobody reads. The largest weights stay
// elsewhere. Returns what is kept.
Channels make_droppable(Network& network, bool unread) {
  Channels kept;
  std::vector<Layer>& layers = network.layers();
  for (size_t l = 0; l + 1 < layers.size(); ++l) {
    for (int channel = 0; channel < layers[l].out_channels; ++channel) {
      if (channel % 3 != 1) continue;
      unread ? mask_column(network, l, channel) : silence(network, l, channel);
    }
  }
  for (size_t l = 0; l + 1 < layers.size(); ++l) {
    std::vector<int>& channels = kept.emplace_back();
    for (int channel = 0; channel < layers[l].out_channels; ++channel) {
      if (channel % 3 != 1) channels.push_back(channel);
    }
    make_largest(layers[l], 0, 0);
  }
  make_largest(layers.back(), 0, 0);
  return kept;
}

class Dropping : public ::testing::TestWithParam<bool> {};

// Products of tiles sum channels in groups.
void use_target_without_gradient_tiles() {
  for (const std::string& target : cpu::target_names()) {
    cpu::use_target(target);
    if (!cpu::simd().has_gradient_tiles) return;
  }
}

TEST_P(Dropping, ChangesNoBitInEvaluationAndTraining) {
  const std::string best = cpu::target_name();
  use_target_without_gradient_tiles();
  for (const Case& c : cases()) {
    SCOPED_TRACE(testing::Message() << c.name << ", seed " << kSeed);
    Network large = trained_network(c.config, kSeed);
    const Channels kept = make_droppable(large, GetParam());
    Network small = large;
    const CompactionReport report = compact(small);
    for (size_t l = 0; l < kept.size(); ++l) {
      ASSERT_EQ(report.channels_after[l], static_cast<int>(kept[l].size())) << l;
    }
    TrainerOptions options;
    options.threads = 2;
    Trainer trainer(options);
    for (uint64_t step = 0; step < 4; ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      const FrameBatch batch = random_batch(c.config, 150, step);
      ASSERT_EQ(trainer.logits(large, batch), trainer.logits(small, batch));
      const Trainer::StepResult a = trainer.train_step(large, batch, 1e-3);
      const Trainer::StepResult b = trainer.train_step(small, batch, 1e-3);
      ASSERT_EQ(a.loss, b.loss);
      ASSERT_EQ(a.correct, b.correct);
      expect_same_survivors(small, large, kept);
      if (HasFatalFailure()) return;
    }
  }
  cpu::use_target(best);
}

INSTANTIATE_TEST_SUITE_P(Compaction, Dropping, ::testing::Bool(), [](const auto& param) {
  return param.param ? "UnreadChannels" : "SilentChannels";
});

}  // namespace
}  // namespace fmp
