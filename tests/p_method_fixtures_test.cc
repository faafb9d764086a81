// SPDX-License-Identifier: MIT
// The pruning methods choose exactly the weights and channels that their papers' formulas choose,
// round after round, in a network with other bits and positions in every layer; see
// tests/fixtures/README.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "framework/network/network.h"
#include "framework/network/pruning.h"
#include "tests/chain_of.h"
#include "tests/fixture_file.h"

namespace fmp {
namespace {

ChainConfig config() {
  ChainConfig config;
  config.length = 12;
  config.classes = 5;
  config.filters = {6, 7};
  config.dense = {10};
  config.input_bits = 4;
  config.weight_bits = {4, 3, 2, 8};
  config.act_bits = {4, 6, 3};
  return config;
}

void read_into(const FixtureFile& file, const std::string& name, Parameter& parameter) {
  const auto copy = [&](const std::string& from, Tensor& to) {
    const std::vector<float> values = file.read<float>(from);
    ASSERT_EQ(values.size(), to.floats().size()) << from;
    std::ranges::copy(values, to.floats().begin());
  };
  copy(name, parameter.value);
  copy(name + "_moment2", parameter.moment2);
}

Network trained_network(const FixtureFile& file) {
  Network network(config(), 1);
  network.optimizer_steps = file.scalar<int>("steps");
  for (Layer& layer : network.layers()) {
    read_into(file, layer.name + "/weight", layer.weight);
    if (layer.kind == Layer::Kind::kOutput) continue;
    read_into(file, layer.name + "/gamma", layer.gamma);
    read_into(file, layer.name + "/beta", layer.beta);
    layer.threshold.value.floats()[0] = file.scalar<float>(layer.name + "/threshold");
  }
  return network;
}

class PMethodFixtures : public ::testing::TestWithParam<const char*> {};

TEST_P(PMethodFixtures, ChoosesAsThePapersFormula) {
  const FixtureFile file("p_methods");
  Network network = trained_network(file);
  const auto fractions = file.read<double>("fractions");
  ASSERT_EQ(fractions.size(), 4U);
  for (size_t round = 0; round < fractions.size(); ++round) {
    prune(network, *make_pruning_method(GetParam()), fractions[round], 1, round);
    std::vector<uint8_t> masks;
    for (const Layer& layer : network.layers()) {
      masks.insert(masks.end(), layer.weight.mask.begin(), layer.weight.mask.end());
    }
    ASSERT_EQ(masks, file.read<uint8_t>(std::string(GetParam()) + "/round" + std::to_string(round)))
        << "round " << round;
  }
}

TEST(BitFixtures, FewerBitsTakesThoseThatTheFormulaTakes) {
  const FixtureFile file("p_methods");
  Network network = trained_network(file);
  const Network before = network;
  const auto fractions = file.read<double>("bit_fractions");
  ASSERT_EQ(fractions.size(), 5U);
  for (size_t round = 0; round < fractions.size(); ++round) {
    const ChainConfig old = chain_of(network.config());
    const PruneResult result =
        prune(network, *make_pruning_method("fewer-bits"), fractions[round], 1, round);
    EXPECT_EQ(result.weights_after, result.weights_before);
    std::vector<int> bits;
    int removed = 0;
    const ChainConfig now = chain_of(network.config());
    for (size_t i = 0; i < 4; ++i) {
      bits.push_back(now.weight_bits[i]);
      removed += old.weight_bits[i] - bits.back();
    }
    for (size_t i = 0; i < 3; ++i) {
      bits.push_back(now.act_bits[i]);
      removed += old.act_bits[i] - bits.back();
    }
    ASSERT_EQ(bits, file.read<int>("fewer-bits/round" + std::to_string(round)))
        << "round " << round;
    EXPECT_EQ(result.bits_removed, removed);
    for (size_t i = 0; i < 4; ++i) {
      const Layer& layer = network.layers()[i];
      EXPECT_EQ(layer.weight_bits, bits[i]);
      EXPECT_EQ(layer.act_bits, i < 3 ? bits[4 + i] : kFloatBits);
      EXPECT_EQ(layer.input_bits, i == 0 ? 4 : bits[3 + i]);
      EXPECT_TRUE(std::ranges::equal(layer.weight.value.floats(),
                                     before.layers()[i].weight.value.floats()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, PMethodFixtures,
                         ::testing::Values("cost-l1", "cost-taylor", "lamp", "taylor",
                                           "batch-norm-scale", "structured-taylor",
                                           "cost-structured-taylor"),
                         [](const auto& method) {
                           std::string name = method.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace fmp
