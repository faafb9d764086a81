// SPDX-License-Identifier: MIT
#include "framework/network/cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "framework/network/weight_codes.h"

namespace fmp {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// A VGG10 whose weight codes are all nonzero.
Network dense_network(int weight_bits, int act_bits) {
  ChainConfig config;
  config.weight_bits = {weight_bits};
  config.act_bits = {act_bits};
  Network network(config, 1);
  for (Layer& layer : network.layers()) std::ranges::fill(layer.weight.value.floats(), 0.5F);
  return network;
}

Layer layer_with_weights(std::vector<float> weights, int bits) {
  ChainConfig config;
  config.input_channels = 1;
  config.length = 1;
  config.filters = {static_cast<int>(weights.size())};
  config.dense = {};
  config.kernel = {1};
  config.pool = {1};
  config.weight_bits = {bits};
  const Network network(config, 1);
  Layer layer = network.layers()[0];
  layer.weight = layer.weight.clone();
  std::ranges::copy(weights, layer.weight.value.floats().begin());
  return layer;
}

TEST(QuantizeWeights, RoundsHalvesToEven) {
  // Scale 1 at 8 bits: the largest weight is 127.
  const Layer layer = layer_with_weights({127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -126.6F, 0}, 8);
  const WeightCodes quantized = quantize_weights(layer);
  EXPECT_EQ(quantized.scale, 1);
  EXPECT_THAT(quantized.codes, ElementsAre(127, 0, 2, 2, 0, -2, -127, 0));
}

TEST(QuantizeWeights, UsesTheNarrowRange) {
  EXPECT_THAT(quantize_weights(layer_with_weights({-0.8F, 0.3F, 0.5F, 0.8F}, 2)).codes,
              ElementsAre(-1, 0, 1, 1));
  EXPECT_THAT(quantize_weights(layer_with_weights({-0.7F, 0.31F, 0.14F, 0.7F}, 4)).codes,
              ElementsAre(-7, 3, 1, 7));
}

TEST(QuantizeWeights, SurvivesALayerOfZerosAndTinyWeights) {
  EXPECT_THAT(quantize_weights(layer_with_weights({0, 0, 0}, 8)).codes, Each(0));
  EXPECT_THAT(quantize_weights(layer_with_weights({1e-45F, -1e-45F}, 8)).codes, Each(0));
  EXPECT_TRUE(quantize_weights(layer_with_weights({1, 2}, kFloatBits)).codes.empty());
}

// By hand: sum over the convolutions of length x 64 x 3 x inputs, and the dense layers.
TEST(Cost, CountsTheDensePublishedNetwork) {
  constexpr int64_t kMacs = 64 * 3 * (2 * 1024 + 64 * (512 + 256 + 128 + 64 + 32 + 16)) +
                            512 * 128 + 128 * 128 + 128 * 24;
  static_assert(kMacs == 12'864'512);
  const NetworkCost cost = inference_cost(dense_network(8, 8));
  EXPECT_EQ(cost.weights(), 159'104);
  EXPECT_EQ(cost.weights_nonzero(), 159'104);
  EXPECT_EQ(cost.macs(), kMacs);
  EXPECT_EQ(cost.bit_ops(), kMacs * 64);
  EXPECT_EQ(cost.bit_mem(), 159'104 * 8);
}

// The published figures of the trained network are those of the dense one less its zero codes:
// 3,487 of 159,104 weights. They must lie below ours, but not far.
TEST(Cost, IsThePublishedBaselineUpToItsZeroWeights) {
  const NetworkCost cost = inference_cost(dense_network(8, 8));
  EXPECT_EQ((cost.bit_mem() - kBaselineBitMem) % 8, 0);
  EXPECT_EQ((cost.bit_mem() - kBaselineBitMem) / 8, 3'487);
  EXPECT_EQ((cost.bit_ops() - kBaselineBitOps) % 64, 0);
  EXPECT_NEAR(cost.normalized(), 1.0, 0.03);
  EXPECT_GT(cost.normalized(), 1.0);
}

TEST(Cost, InputsOfTheFirstLayerHaveTheirOwnWidth) {
  const NetworkCost cost = inference_cost(dense_network(4, 4));
  constexpr int64_t kFirst = 1024 * 64 * 3 * 2;
  EXPECT_EQ(cost.bit_ops(), kFirst * 4 * 8 + (12'864'512 - kFirst) * 4 * 4);
  EXPECT_EQ(cost.bit_mem(), 159'104 * 4);
  EXPECT_EQ(cost.layers[0].input_bits, 8);
  EXPECT_EQ(cost.layers[1].input_bits, 4);
}

TEST(Cost, ZeroCodesCostNothingWhetherPrunedOrRounded) {
  Network network = dense_network(8, 8);
  const int64_t dense = inference_cost(network).bit_ops();
  Layer& conv2 = network.layers()[1];
  conv2.weight.mask[10] = 0;
  network.apply_masks();
  conv2.weight.value.floats()[20] = 0.4F * 0.5F / 127;  // rounds to 0
  conv2.weight.value.floats()[30] = 0.6F * 0.5F / 127;  // rounds to 1
  const NetworkCost cost = inference_cost(network);
  EXPECT_EQ(cost.layers[1].weights_alive, 64 * 64 * 3 - 1);
  EXPECT_EQ(cost.layers[1].weights_nonzero, 64 * 64 * 3 - 2);
  EXPECT_EQ(cost.bit_ops(), dense - 2 * 512 * 64);
  EXPECT_EQ(cost.bit_mem(), (159'104 - 2) * 8);
}

TEST(Cost, NormalizesByThePublishedBaseline) {
  NetworkCost cost;
  cost.layers.push_back({});
  cost.layers[0].weights_nonzero = kBaselineBitMem / 8;
  cost.layers[0].weight_bits = 8;
  EXPECT_DOUBLE_EQ(cost.normalized(), 0.5);
  // The published 4 bit FMP network.
  cost.layers[0].weight_bits = 1;
  cost.layers[0].weights_nonzero = 66'616;
  cost.layers[0].input_bits = 1;
  const double of_memory = cost.normalized();
  EXPECT_NEAR(of_memory + 0.5 * 24'601'600 / static_cast<double>(kBaselineBitOps), 0.0419, 1e-4);
}

TEST(Cost, HasTheKeysOfFinnBase) {
  const nlohmann::json json = to_finn_json(inference_cost(dense_network(4, 6)));
  constexpr int64_t kFirst = 1024 * 64 * 3 * 2, kFirstOutputs = 1024 * 64;
  // The input keeps its scale, the other layers multiply codes.
  EXPECT_EQ(json.at("op_mac_SCALEDINT8_INT4"), kFirst);
  EXPECT_EQ(json.at("op_mac_UINT6_INT4"), 12'864'512 - kFirst);
  EXPECT_EQ(json.at("mem_w_INT4"), 159'104);
  const int64_t outputs = 64 * (1024 + 512 + 256 + 128 + 64 + 32 + 16) + 128 + 128 + 24;
  EXPECT_EQ(json.at("mem_o_FLOAT32"), kFirstOutputs);
  EXPECT_EQ(json.at("mem_o_INT32"), outputs - kFirstOutputs);
  EXPECT_EQ(json.at("total_bops"), kFirst * 8 * 4 + (12'864'512 - kFirst) * 6 * 4);
  EXPECT_EQ(json.at("total_mem_w_bits"), 159'104 * 4);
  EXPECT_EQ(json.at("total_mem_o_bits"), outputs * 32);
  EXPECT_EQ(json.at("discount_sparsity"), true);
}

TEST(Cost, FloatLayersCountNonzeroValues) {
  ChainConfig config;
  config.weight_bits = config.act_bits = {kFloatBits};
  config.input_bits = kFloatBits;
  Network network(config, 1);
  network.layers()[9].weight.mask[0] = 0;
  network.apply_masks();
  const NetworkCost cost = inference_cost(network);
  EXPECT_EQ(cost.weights_nonzero(), 159'103);
  EXPECT_EQ(cost.bit_mem(), 159'103 * 32);
  EXPECT_TRUE(to_finn_json(cost).contains("op_mac_FLOAT32_FLOAT32"));
}

}  // namespace
}  // namespace fmp
