// SPDX-License-Identifier: MIT
// A step on the part of a network that has an effect, against the same step on all of it.
#include "framework/network/working_part.h"

#include <gtest/gtest.h>

#include <vector>

#include "framework/random.h"
#include "framework/training/functions.h"
#include "framework/training/trainer.h"
#include "tests/random_batch.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 20'261'126;

ChainConfig small_config(int bits) {
  ChainConfig config;
  config.length = 32;
  config.classes = 4;
  config.filters = {6, 7};
  config.dense = {7, 6};
  config.weight_bits = config.act_bits = {bits};
  if (bits == kFloatBits) config.input_bits = kFloatBits;
  return config;
}

// What a channel of each hidden layer is, by its number.
enum Kind : int { kSilent = 1, kWakesUp = 2, kConstant = 3, kUnread = 4 };

void mask_if(Layer& layer, const auto& masked) {
  size_t i = 0;
  for (int o = 0; o < layer.out_channels; ++o) {
    for (int t = 0; t < layer.taps; ++t) {
      for (int c = 0; c < layer.in_channels; ++c, ++i) {
        if (masked(o, c)) layer.weight.mask[i] = 0;
      }
    }
  }
}

Network network_with_idle_channels(const NetworkConfig& config) {
  Network network(config, kSeed);
  Random random(kSeed, "idle");
  network.steps = 1000;
  network.optimizer_steps = 10;
  std::vector<Layer>& layers = network.layers();
  for (size_t l = 0; l + 1 < layers.size(); ++l) {
    Layer& layer = layers[l];
    for (float& beta : layer.beta.value.floats()) beta = random.uniform(-0.2F, 0.6F);
    for (float& mean : layer.running_mean.floats()) mean = random.uniform(-0.1F, 0.1F);
    if (layer.threshold.value.defined()) layer.threshold.value.floats()[0] = 2.5F;
    mask_if(layer, [](int o, int) { return o == kSilent || o == kWakesUp || o == kConstant; });
    mask_if(layers[l + 1],
            [&](int, int c) { return c % layer.out_channels == static_cast<int>(kUnread); });
    const auto beta = layer.beta.value.floats();
    beta[kSilent] = l == 0 ? 0.0F : -0.3F;
    beta[kConstant] = 0.4F;
    // What is left of a gradient moves it above 0 in a few steps.
    beta[kWakesUp] = -0.0002F;
    layer.beta.moment1.floats()[kWakesUp] = -0.01F;
    layer.beta.moment2.floats()[kWakesUp] = 1e-4F;
    // Running means of channels without weights: nothing, or enough to be heard in evaluation.
    layer.running_mean.floats()[kSilent] = 0;
    layer.running_mean.floats()[kWakesUp] = -0.5F;
  }
  network.apply_masks();
  for (Layer& layer : layers) layer.weight.value.floats()[0] = 0.9F;
  // A channel without effect that sets a scale: it stays.
  layers[2].weight.value.floats()[0 + kSilent] = 0.9F;
  layers[2].weight.mask[0 + kSilent] = 1;
  return network;
}

// A step of the whole network, without an engine.
double train_whole(Network& network, std::vector<LayerWorkspace>& workspaces,
                   const FrameBatch& batch, const AdamOptions& options) {
  Tape tape;
  const Variable logits =
      forward(tape, network, workspaces, batch, kThresholdStatisticSteps, {.threads = 1});
  const cpu::LossResult loss = cross_entropy(tape, logits, {batch.labels, {}, {}});
  tape.backward();
  ++network.steps;
  ++network.optimizer_steps;
  for (Layer& layer : network.layers()) {
    for (Parameter* p : layer.parameters()) {
      cpu::adam_step(options, network.optimizer_steps, p->grad.floats(), p->mask, p->value.floats(),
                     p->moment1.floats(), p->moment2.floats());
    }
  }
  return loss.loss_sum;
}

std::vector<float> logits_of_whole(const Network& network, std::vector<LayerWorkspace>& workspaces,
                                   const FrameBatch& batch) {
  const Variable logits = forward(network, workspaces, batch, {.threads = 1});
  std::vector<float> result;
  const int classes = network.config().classes;
  for (int64_t n = 0; n < batch.count; ++n) {
    for (int c = 0; c < classes; ++c) {
      result.push_back(
          logits->value.data<float>()[(n / kLanes * classes + c) * kLanes + n % kLanes]);
    }
  }
  return result;
}

void expect_same(const Tensor& a, const Tensor& b, const std::string& name) {
  ASSERT_EQ(a.size(), b.size()) << name;
  for (int64_t i = 0; i < a.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    ASSERT_EQ(a.floats()[at], b.floats()[at]) << name << " " << i;
  }
}

void expect_same(const Network& a, const Network& b) {
  for (size_t l = 0; l < a.layers().size(); ++l) {
    const auto of_a = a.layers()[l].parameters(), of_b = b.layers()[l].parameters();
    for (size_t p = 0; p < of_a.size(); ++p) {
      for (const auto tensor :
           {&Parameter::value, &Parameter::grad, &Parameter::moment1, &Parameter::moment2}) {
        expect_same(of_a[p]->*tensor, of_b[p]->*tensor, of_a[p]->name);
      }
    }
    if (l + 1 == a.layers().size()) continue;
    expect_same(a.layers()[l].running_mean, b.layers()[l].running_mean, "mean");
    expect_same(a.layers()[l].running_var, b.layers()[l].running_var, "variance");
  }
}

TEST(WorkingPart, LeavesOutWhatHasNoEffect) {
  Network network = network_with_idle_channels(small_config(8));
  WorkingPart part(network);
  const auto channels = [](const Network& n) {
    std::vector<int> result;
    for (size_t l = 0; l + 1 < n.layers().size(); ++l) {
      result.push_back(n.layers()[l].out_channels);
    }
    return result;
  };
  // Two channels less, but for the one that sets the scale.
  EXPECT_EQ(channels(part.before_step(network, false)), (std::vector<int>{4, 6, 5, 4}));
  // Evaluation hears those whose running mean is not 0 yet.
  EXPECT_EQ(channels(part.for_evaluation(network)), (std::vector<int>{5, 7, 6, 5}));
  EXPECT_EQ(&part.before_step(network, true), &network);
}

TEST(WorkingPart, IsTheNetworkItselfWhereAllChannelsWork) {
  Network network(small_config(8), kSeed);
  WorkingPart part(network);
  EXPECT_EQ(&part.before_step(network, false), &network);
  EXPECT_EQ(&part.for_evaluation(network), &network);
}

TEST(WorkingPart, ChangesNoBit) {
  for (const int bits : {3, 8, kFloatBits}) {
    SCOPED_TRACE(bits);
    const ChainConfig config = small_config(bits);
    Network whole = network_with_idle_channels(config), working = whole;
    std::vector<LayerWorkspace> workspaces(whole.layers().size());
    TrainerOptions options;
    options.threads = 2;
    Trainer trainer(options);
    const float before = working.layers()[0].beta.value.floats()[kWakesUp];
    for (uint64_t step = 0; step < 4; ++step) {
      SCOPED_TRACE(step);
      const FrameBatch batch = random_batch(config, 70, step);
      ASSERT_EQ(trainer.logits(working, batch), logits_of_whole(whole, workspaces, batch));
      const double loss = train_whole(whole, workspaces, batch, {.learning_rate = 1e-3});
      ASSERT_EQ(trainer.train_step(working, batch, 1e-3).loss, loss / 70);
      expect_same(whole, working);
      if (HasFatalFailure()) return;
    }
    EXPECT_LT(before, 0);
    EXPECT_GT(working.layers()[0].beta.value.floats()[kWakesUp], 0);
  }
}

}  // namespace
}  // namespace fmp
