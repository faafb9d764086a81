// SPDX-License-Identifier: MIT
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "framework/error.h"
#include "framework/network/cost.h"
#include "framework/network/pruning.h"
#include "framework/random.h"
#include "framework/training/trainer.h"
// Included rather than linked, so that a test stays one file: registers "cost-weighted-l1".
#include "tests/chain_of.h"
#include "tests/example_p_method.cc"

namespace fmp {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ChainConfig small_config() {
  ChainConfig config;
  config.length = 16;
  config.classes = 5;
  config.filters = {20, 10};
  config.dense = {30};
  return config;
}

PruneResult prune_by_name(Network& network, std::string_view method, double fraction,
                          uint64_t seed = 1, uint64_t round = 0) {
  return prune(network, *make_pruning_method(method), fraction, seed, round);
}

// The absolute values of the weights that are alive (or not, in `original`).
std::vector<float> magnitudes(const Network& original, const Network& masks, size_t layer,
                              bool alive) {
  const auto values = original.layers()[layer].weight.value.floats();
  const auto& mask = masks.layers()[layer].weight.mask;
  std::vector<float> selected;
  for (size_t i = 0; i < mask.size(); ++i) {
    if ((mask[i] != 0) == alive) selected.push_back(std::abs(values[i]));
  }
  return selected;
}

int channels_alive(const Layer& layer) {
  const size_t count = layer.weight.mask.size() / static_cast<size_t>(layer.out_channels);
  int alive = 0;
  for (auto row = layer.weight.mask.begin(); row != layer.weight.mask.end();
       row += static_cast<ptrdiff_t>(count)) {
    alive += std::any_of(row, row + static_cast<ptrdiff_t>(count), [](int m) { return m != 0; });
  }
  return alive;
}

// A network whose only hidden layer has this many output channels of one weight each.
Network one_weight_channels(int channels) {
  ChainConfig config;
  config.input_channels = 1;
  config.length = 1;
  config.classes = 2;
  config.filters = {channels};
  config.dense = {};
  config.kernel = {1};
  config.pool = {1};
  return Network(config, 5);
}

TEST(PruneCount, RoundsHalvesToEvenAsPython) {
  EXPECT_EQ(prune_count(0.5, 1), 0);
  EXPECT_EQ(prune_count(0.5, 3), 2);
  EXPECT_EQ(prune_count(0.5, 5), 2);
  EXPECT_EQ(prune_count(0.25, 10), 2);
  EXPECT_EQ(prune_count(0.1, 45), 4);
  EXPECT_EQ(prune_count(0.3, 45), 14);  // 13.5
  EXPECT_EQ(prune_count(0.2, 159'104), 31'821);
}

// Measured with torch.nn.utils.prune.global_unstructured and ln_structured.
TEST(PruneCount, FollowsTorchOverManyRounds) {
  const auto left_after = [](double fraction, int64_t count, int rounds) {
    std::vector<int64_t> left;
    for (int i = 0; i < rounds; ++i) left.push_back(count -= prune_count(fraction, count));
    return left;
  };
  EXPECT_THAT(left_after(0.2, 10'000, 5), ElementsAre(8000, 6400, 5120, 4096, 3277));
  EXPECT_THAT(left_after(0.1, 100, 4), ElementsAre(90, 81, 73, 66));
}

TEST(Registry, ListsTheMethodsThatShip) {
  std::vector<std::string> names;
  for (const PruningMethodInfo& info : pruning_methods()) {
    names.push_back(info.name);
    EXPECT_FALSE(info.description.empty()) << info.name;
    EXPECT_NE(info.create(), nullptr) << info.name;
  }
  EXPECT_THAT(names, ElementsAre("batch-norm-scale", "cost-l1", "cost-structured-taylor",
                                 "cost-taylor", "cost-weighted-l1", "fewer-bits", "lamp", "random",
                                 "structured-l1", "structured-taylor", "taylor", "unstructured-l1",
                                 "unstructured-l1-layerwise"));
}

TEST(Registry, AnswersAWrongNameWithTheRightOnes) {
  try {
    make_pruning_method("unstructured-l2");
    FAIL() << "expected a UsageError";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'unstructured-l2'"));
    EXPECT_THAT(error.what(), HasSubstr("taylor, unstructured-l1, unstructured-l1-layerwise"));
    EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
  }
}

TEST(Registry, RefusesANameTwice) {
  EXPECT_THROW(register_pruning_method({"random", "", nullptr}), std::logic_error);
}

TEST(Prune, RefusesWhatItCannotDo) {
  Network network(small_config(), 1);
  for (const double fraction : {0.0, 1.0, -0.2, 1.5, std::nan("")}) {
    EXPECT_THROW(prune_by_name(network, "unstructured-l1", fraction), Error) << fraction;
  }
  network.layers()[1].weight.value.floats()[3] = std::nanf("");
  EXPECT_THROW(prune_by_name(network, "unstructured-l1", 0.2), Error);
}

TEST(Prune, RefusesAMethodThatBringsWeightsBack) {
  struct Reviver final : PruningMethod {
    void prune(PruneRequest& request) const override { request.layers[0].mask[0] = 1; }
  };
  Network network(small_config(), 1);
  network.layers()[0].weight.mask[0] = 0;
  network.apply_masks();
  EXPECT_THROW(prune(network, Reviver(), 0.2, 1, 0), Error);
}

TEST(Prune, ShowsAMethodEveryLayerWithItsCost) {
  struct Spy final : PruningMethod {
    void prune(PruneRequest& request) const override {
      ASSERT_EQ(request.layers.size(), 10U);
      EXPECT_EQ(request.fraction, 0.3);
      EXPECT_EQ(request.seed, 17U);
      EXPECT_EQ(request.round, 4U);
      const PrunableLayer& conv2 = request.layers[1];
      EXPECT_EQ(conv2.name, "conv2");
      EXPECT_EQ(conv2.positions, 512);
      EXPECT_EQ(conv2.weights.size(), 64U * 3 * 64);
      EXPECT_EQ(conv2.mask.size(), conv2.weights.size());
      EXPECT_EQ(conv2.weight_bits, 4);
      EXPECT_EQ(conv2.input_bits, 6);
      EXPECT_EQ(request.values[1].bits, 6);
      EXPECT_EQ(request.values[1].readers, std::vector<size_t>{2});
      EXPECT_EQ(conv2.bit_ops_per_weight(), 512 * 4 * 6);
      EXPECT_EQ(request.layers[0].input_bits, 8);
      EXPECT_EQ(request.layers[9].positions, 1);
      EXPECT_EQ(request.layers[9].kind, Layer::Kind::kOutput);
    }
  };
  ChainConfig config;
  config.weight_bits = {4};
  config.act_bits = {6};
  Network network(config, 1);
  const PruneResult result = prune(network, Spy(), 0.3, 17, 4);
  EXPECT_EQ(result.weights_before, 159'104);
  EXPECT_EQ(result.weights_after, 159'104);
}

TEST(UnstructuredL1, RemovesTheSmallestOfTheWholeNetwork) {
  const Network original(small_config(), 1);
  Network network = original;
  int64_t left = network.weights_total();
  for (int round = 0; round < 6; ++round) {
    const PruneResult result = prune_by_name(network, "unstructured-l1", 0.2);
    EXPECT_EQ(result.weights_before, left);
    left -= prune_count(0.2, left);
    EXPECT_EQ(result.weights_after, left);
    EXPECT_EQ(network.weights_alive(), left);
    float largest_pruned = 0, smallest_alive = INFINITY;
    for (size_t i = 0; i < network.layers().size(); ++i) {
      for (const float w : magnitudes(original, network, i, false)) {
        largest_pruned = std::max(largest_pruned, w);
      }
      for (const float w : magnitudes(original, network, i, true)) {
        smallest_alive = std::min(smallest_alive, w);
      }
    }
    EXPECT_LE(largest_pruned, smallest_alive);
  }
}

TEST(UnstructuredL1, ClearsTheOptimizerOfWhatItPruned) {
  Network network(small_config(), 1);
  for (Layer& layer : network.layers()) {
    std::ranges::fill(layer.weight.moment1.floats(), 1.0F);
    std::ranges::fill(layer.weight.moment2.floats(), 1.0F);
  }
  prune_by_name(network, "unstructured-l1", 0.5);
  for (const Layer& layer : network.layers()) {
    for (size_t i = 0; i < layer.weight.mask.size(); ++i) {
      const float expected = layer.weight.mask[i];
      EXPECT_EQ(layer.weight.moment1.floats()[i], expected);
      EXPECT_EQ(layer.weight.moment2.floats()[i], expected);
      EXPECT_EQ(layer.weight.value.floats()[i] != 0, expected != 0);
    }
  }
}

TEST(UnstructuredL1, BreaksTiesByLayerAndIndex) {
  Network network(small_config(), 1);
  for (Layer& layer : network.layers()) std::ranges::fill(layer.weight.value.floats(), -0.5F);
  prune_by_name(network, "unstructured-l1", 0.5);
  int64_t pruned = prune_count(0.5, network.weights_total());
  for (const Layer& layer : network.layers()) {
    for (const uint8_t alive : layer.weight.mask) EXPECT_EQ(alive, pruned-- > 0 ? 0 : 1);
  }
}

TEST(UnstructuredL1Layerwise, RemovesTheSmallestOfEachLayer) {
  const Network original(small_config(), 1);
  Network network = original;
  for (int round = 0; round < 4; ++round) {
    const Network before = network;
    prune_by_name(network, "unstructured-l1-layerwise", 0.3);
    for (size_t i = 0; i < network.layers().size(); ++i) {
      const int64_t left = before.layers()[i].weights_alive();
      EXPECT_EQ(network.layers()[i].weights_alive(), left - prune_count(0.3, left));
      EXPECT_LE(std::ranges::max(magnitudes(original, network, i, false)),
                std::ranges::min(magnitudes(original, network, i, true)));
    }
  }
}

TEST(StructuredL1, RemovesTheSmallestChannelsOfHiddenLayers) {
  Network network(small_config(), 1);
  Layer& layer = network.layers()[0];
  const size_t count = layer.weight.mask.size() / 20;
  for (size_t i = 0; i < layer.weight.mask.size(); ++i) {
    const size_t index = i / count;
    const auto channel = static_cast<float>(index);
    layer.weight.value.floats()[i] = (i % 2 == 0 ? 1.0F : -1.0F) * std::abs(channel - 7.2F);
  }
  prune_by_name(network, "structured-l1", 0.1);
  EXPECT_EQ(channels_alive(network.layers()[0]), 18);
  EXPECT_EQ(channels_alive(network.layers()[1]), 9);
  EXPECT_EQ(channels_alive(network.layers()[2]), 27);
  EXPECT_EQ(channels_alive(network.layers()[3]), 5) << "classes stay";
  for (size_t i = 0; i < layer.weight.mask.size(); ++i) {
    EXPECT_EQ(layer.weight.mask[i], i / count == 7 || i / count == 8 ? 0 : 1);
  }
}

TEST(StructuredL1, CountsChannelsThatAreAliveAsTorchDoes) {
  Network network = one_weight_channels(100);
  for (const int left : {90, 81, 73, 66}) {
    prune_by_name(network, "structured-l1", 0.1);
    EXPECT_EQ(channels_alive(network.layers()[0]), left);
  }
}

TEST(StructuredL1, KeepsTheLastChannel) {
  Network network = one_weight_channels(3);
  for (int round = 0; round < 3; ++round) prune_by_name(network, "structured-l1", 0.9);
  EXPECT_EQ(channels_alive(network.layers()[0]), 1);
}

TEST(StructuredL1, BreaksTiesByIndex) {
  Network network = one_weight_channels(10);
  std::ranges::fill(network.layers()[0].weight.value.floats(), 0.25F);
  prune_by_name(network, "structured-l1", 0.3);
  EXPECT_THAT(network.layers()[0].weight.mask, ElementsAre(0, 0, 0, 1, 1, 1, 1, 1, 1, 1));
}

TEST(RandomPruning, CountsAlikeAndIgnoresTheValues) {
  Network network(small_config(), 1);
  Network scaled = network;
  for (float& weight : scaled.layers()[2].weight.value.floats()) weight *= 1000;
  const PruneResult result = prune_by_name(network, "random", 0.2, 9, 3);
  prune_by_name(scaled, "random", 0.2, 9, 3);
  EXPECT_EQ(result.weights_after, result.weights_before - prune_count(0.2, result.weights_before));
  for (size_t i = 0; i < network.layers().size(); ++i) {
    EXPECT_EQ(network.layers()[i].weight.mask, scaled.layers()[i].weight.mask);
  }
}

TEST(RandomPruning, DependsOnSeedAndRound) {
  const Network original(small_config(), 1);
  const auto mask_of = [&](uint64_t seed, uint64_t round) {
    Network network = original;
    prune_by_name(network, "random", 0.5, seed, round);
    return network.layers()[2].weight.mask;
  };
  EXPECT_EQ(mask_of(1, 2), mask_of(1, 2));
  EXPECT_NE(mask_of(1, 2), mask_of(1, 3));
  EXPECT_NE(mask_of(1, 2), mask_of(2, 2));
}

// Every layer loses about its share: within five standard deviations of the hypergeometric count.
TEST(RandomPruning, IsUniformOverTheNetwork) {
  Network network(ChainConfig{}, 1);
  prune_by_name(network, "random", 0.4);
  for (const Layer& layer : network.layers()) {
    const auto count = static_cast<double>(layer.weight.size());
    EXPECT_NEAR(static_cast<double>(layer.weights_alive()), 0.6 * count,
                5 * std::sqrt(0.24 * count))
        << layer.name;
  }
}

TEST(Prune, RefusesAMethodThatChangesBitsAsItMustNot) {
  struct Changer final : PruningMethod {
    Granularity what;
    std::function<void(PruneRequest&)> change;
    Changer(Granularity granularity, std::function<void(PruneRequest&)> act)
        : what(granularity), change(std::move(act)) {}
    Granularity granularity() const override { return what; }
    void prune(PruneRequest& request) const override { change(request); }
  };
  const auto refuses = [](Granularity granularity, std::function<void(PruneRequest&)> change) {
    ChainConfig config = small_config();
    config.act_bits = {4, 32, 4};
    Network network(config, 1);
    EXPECT_THROW(prune(network, Changer(granularity, std::move(change)), 0.2, 1, 0), Error);
  };
  constexpr Granularity kBits = Granularity::kBits;
  refuses(Granularity::kWeights, [](PruneRequest& r) { r.layers[1].weight_bits = 4; });
  refuses(kBits, [](PruneRequest& r) { r.layers[1].weight_bits = 9; });
  refuses(kBits, [](PruneRequest& r) { r.layers[1].weight_bits = 1; });
  refuses(kBits, [](PruneRequest& r) { r.values[0].bits = 1; });
  refuses(kBits, [](PruneRequest& r) { r.values[1].bits = 8; });  // it is float
  refuses(kBits, [](PruneRequest& r) { r.layers[0].mask[0] = 0; });
}

TEST(FewerBits, LeavesFloatsAndTwoBits) {
  ChainConfig config = small_config();
  config.input_bits = 4;
  config.weight_bits = {32, 2, 3, 2};
  config.act_bits = {2, 32, 3};
  Network network(config, 1);
  network.optimizer_steps = 1;
  for (Layer& layer : network.layers()) {
    std::ranges::fill(layer.weight.moment2.floats(), 1.0F);
    if (layer.kind != Layer::Kind::kOutput) std::ranges::fill(layer.beta.moment2.floats(), 1.0F);
  }
  EXPECT_EQ(prune_by_name(network, "fewer-bits", 0.9).bits_removed, 2);
  EXPECT_EQ(chain_of(network.config()).weight_bits, (std::vector<int>{32, 2, 2, 2}));
  EXPECT_EQ(chain_of(network.config()).act_bits, (std::vector<int>{2, 32, 2}));
  EXPECT_EQ(network.config().input_bits, 4);
  EXPECT_EQ(prune_by_name(network, "fewer-bits", 0.9).bits_removed, 0);
}

// 4-bit weights times 6-bit activations at 512 positions, by the rules of the challenge.
TEST(Cost, OfAWeightAndOfAChannel) {
  struct Spy final : PruningMethod {
    void prune(PruneRequest& request) const override {
      const double of_conv2 = 0.5 * 512 * 4 * 6 / 807'699'904 + 0.5 * 4 / 1'244'936;
      const double of_conv3 = 0.5 * 256 * 4 * 6 / 807'699'904 + 0.5 * 4 / 1'244'936;
      EXPECT_DOUBLE_EQ(request.layers[1].cost_per_weight(), of_conv2);
      std::ranges::fill(request.layers[1].channel_mask(5).first(10), uint8_t{0});
      request.layers[2].mask[5] = 0;  // its first output, tap and copy of channel 5
      request.layers[2].mask[6] = 0;
      EXPECT_DOUBLE_EQ(cost_of_channel(request.layers, 1, 5),
                       (3 * 64 - 10) * of_conv2 + (3 * 64 - 1) * of_conv3);
      // The first dense layer reads each channel of conv7 once per position: 8 times.
      const double of_conv7 = 0.5 * 16 * 4 * 6 / 807'699'904 + 0.5 * 4 / 1'244'936;
      const double of_dense1 = 0.5 * 4 * 6 / 807'699'904 + 0.5 * 4 / 1'244'936;
      EXPECT_DOUBLE_EQ(cost_of_channel(request.layers, 6, 0),
                       3 * 64 * of_conv7 + 8 * 128 * of_dense1);
    }
  };
  ChainConfig config;
  config.weight_bits = {4};
  config.act_bits = {6};
  Network network(config, 1);
  prune(network, Spy(), 0.3, 1, 0);
}

TEST(Cost, WhatSavesNothingGoesLast) {
  EXPECT_EQ(score_per_cost(3, 2), 1.5);
  EXPECT_EQ(score_per_cost(0, 0), INFINITY);
  EXPECT_EQ(score_per_cost(3, 0), INFINITY);
}

// The networks' costs fall by what the methods think that they save.
TEST(Cost, OfRemovedWeightsIsWhatTheNetworkSaves) {
  Network network(small_config(), 1);
  double removed = 0;
  struct Remover final : PruningMethod {
    double& cost;
    explicit Remover(double& removed) : cost(removed) {}
    void prune(PruneRequest& request) const override {
      for (PrunableLayer& layer : request.layers) {
        // The largest weights: their codes are not 0.
        const auto largest = std::ranges::max_element(
            layer.weights, {}, [](float weight) { return std::abs(weight); });
        layer.mask[static_cast<size_t>(largest - layer.weights.begin())] = 0;
        cost += layer.cost_per_weight();
      }
    }
  };
  for (Layer& layer : network.layers()) {  // codes that do not depend on which weights are left
    for (float& weight : layer.weight.value.floats()) weight = weight < 0 ? -1.0F : 1.0F;
  }
  const double before = inference_cost(network).normalized();
  prune(network, Remover(removed), 0.3, 1, 0);
  EXPECT_NEAR(before - inference_cost(network).normalized(), removed, 1e-15);
}

TEST(Taylor, NeedsATrainedNetwork) {
  for (const char* method : {"taylor", "cost-taylor", "structured-taylor", "fewer-bits"}) {
    Network network(small_config(), 1);
    EXPECT_THROW(prune_by_name(network, method, 0.2), Error) << method;
    network.optimizer_steps = 1;
    EXPECT_NO_THROW(prune_by_name(network, method, 0.2)) << method;
  }
}

// Adam's second moment, corrected, is the weighted mean of the squared gradients of the steps.
TEST(Taylor, SeesTheGradientsThatTrainingHad) {
  ChainConfig config = small_config();
  config.weight_bits = config.act_bits = {4};
  config.input_bits = 4;
  Network network(config, 1);
  Trainer trainer({});
  FrameBatch batch;
  batch.count = 8;
  Random random(3, "frames");
  for (int64_t i = 0; i < batch.count * config.length * config.input_channels; ++i) {
    batch.codes.push_back(static_cast<int8_t>(std::lround(random.uniform(-8.0, 7.0))));
  }
  for (int frame = 0; frame < 8; ++frame) batch.labels.push_back(static_cast<uint8_t>(frame % 5));
  batch.snr_db.resize(8);
  constexpr int kSteps = 5;
  std::vector<double> of_weight(network.layers()[1].weight.grad.floats().size());
  double of_gamma = 0, weights = 0;
  for (int step = 1; step <= kSteps; ++step) {
    trainer.train_step(network, batch, 1e-2);
    const double weight = std::pow(0.999, kSteps - step);
    weights += weight;
    for (size_t i = 0; i < of_weight.size(); ++i) {
      of_weight[i] += weight * std::pow(network.layers()[1].weight.grad.floats()[i], 2);
    }
    of_gamma += weight * std::pow(network.layers()[0].gamma.grad.floats()[3], 2);
  }
  struct Spy final : PruningMethod {
    std::function<void(PruneRequest&)> look;
    void prune(PruneRequest& request) const override { look(request); }
  } spy;
  spy.look = [&](PruneRequest& request) {
    const TrainedValues& seen = request.layers[1].trained_weights;
    double largest = 0;
    for (size_t i = 0; i < of_weight.size(); ++i) {
      EXPECT_NEAR(seen.squared_gradient(i), of_weight[i] / weights, 1e-5 * of_weight[i]);
      EXPECT_EQ(seen.values[i], network.layers()[1].weight.value.floats()[i]);
      largest = std::max(largest, of_weight[i]);
    }
    EXPECT_GT(largest, 0);
    EXPECT_GT(of_gamma, 0);
    EXPECT_NEAR(request.layers[0].gamma.squared_gradient(3), of_gamma / weights, 1e-5 * of_gamma);
    EXPECT_EQ(request.layers.back().gamma.size(), 0U);
  };
  prune(network, spy, 0.3, 1, 0);
}

TEST(PruneLowestChannels, KeepsTheLastOneOfEveryLayer) {
  Network network(small_config(), 1);
  std::ranges::fill(network.layers()[0].gamma.value.floats(), 1e-3F);
  for (int round = 0; round < 3; ++round) prune_by_name(network, "batch-norm-scale", 0.5);
  EXPECT_EQ(channels_alive(network.layers()[0]), 1);
  EXPECT_EQ(channels_alive(network.layers()[3]), 5) << "classes stay";
}

TEST(ExampleMethod, SavesMoreBitOperationsThanPlainMagnitude) {
  Network plain(ChainConfig{}, 1);
  Network weighted = plain;
  prune_by_name(plain, "unstructured-l1", 0.5);
  prune_by_name(weighted, "cost-weighted-l1", 0.5);
  EXPECT_EQ(plain.weights_alive(), weighted.weights_alive());
  EXPECT_LT(inference_cost(weighted).bit_ops(), inference_cost(plain).bit_ops() / 2);
  EXPECT_LT(weighted.layers()[0].weights_alive(), plain.layers()[0].weights_alive());
  EXPECT_GT(weighted.layers()[7].weights_alive(), plain.layers()[7].weights_alive());
}

}  // namespace
}  // namespace fmp
