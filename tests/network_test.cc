// SPDX-License-Identifier: MIT
#include "framework/network/network.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "framework/error.h"

namespace fmp {
namespace {

using ::testing::HasSubstr;

ChainConfig small_config() {
  ChainConfig config;
  config.length = 16;
  config.classes = 3;
  config.filters = {5, 4};
  config.dense = {6};
  return config;
}

std::string validation_error(const ChainConfig& config) {
  try {
    NetworkConfig(config).validate();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(ChainConfig, DefaultsAreThePublishedNetwork) {
  const ChainConfig config;
  EXPECT_EQ(validation_error(config), "");
  EXPECT_EQ(config.layers(), 10);
  EXPECT_EQ(NetworkConfig(config).weights(), 159'104);
}

TEST(ChainConfig, NamesTheFieldThatIsWrong) {
  const auto error_of = [](auto change) {
    ChainConfig config = small_config();
    change(config);
    return validation_error(config);
  };
  EXPECT_THAT(error_of([](auto& c) { c.input_channels = 0; }), HasSubstr("input channels: 0"));
  EXPECT_THAT(error_of([](auto& c) { c.length = -1; }), HasSubstr("length: -1"));
  EXPECT_THAT(error_of([](auto& c) { c.length = 3; }),
              HasSubstr("pool: 2 of conv2 does not fit into its 1 positions"));
  EXPECT_THAT(error_of([](auto& c) { c.classes = 257; }), HasSubstr("classes: 257"));
  EXPECT_THAT(error_of([](auto& c) { c.filters.clear(); }), HasSubstr("first layer"));
  EXPECT_THAT(error_of([](auto& c) { c.filters[1] = 0; }), HasSubstr("outputs of conv2: 0"));
  EXPECT_THAT(error_of([](auto& c) { c.dense = {70'000}; }), HasSubstr("outputs of dense1: 70000"));
  EXPECT_THAT(error_of([](auto& c) { c.kernel = {3, 0}; }), HasSubstr("kernel of conv2: 0"));
  EXPECT_THAT(error_of([](auto& c) { c.pool = {0}; }), HasSubstr("pool of conv1: 0"));
  EXPECT_THAT(error_of([](auto& c) { c.pool = {2, 1, 2}; }), HasSubstr("pool: 3 values"));
  EXPECT_THAT(error_of([](auto& c) {
                c.stride = {3, 1};
              }),
              HasSubstr("stride: 3 of conv1 does not divide its 16 samples"));
  EXPECT_THAT(error_of([](auto& c) { c.padding = {3}; }), HasSubstr("padding of conv1: 3"));
  EXPECT_THAT(error_of([](auto& c) {
                c.groups = {1, 4};
              }),
              HasSubstr("groups: 4 of conv2 does not divide its 5 input channels"));
  EXPECT_THAT(error_of([](auto& c) { c.groups = {2, 1}; }), HasSubstr("its 5 outputs"));
  EXPECT_THAT(error_of([](auto& c) { c.input_bits = 1; }), HasSubstr("input bits: 1"));
  EXPECT_THAT(error_of([](auto& c) { c.input_bits = 9; }), HasSubstr("input bits: 9"));
  EXPECT_THAT(error_of([](auto& c) { c.input_scale = -1; }), HasSubstr("input scale: -1"));
  EXPECT_THAT(error_of([](auto& c) { c.smallest_codes = {-8}; }), HasSubstr("codes: 1 values"));
  EXPECT_THAT(
      error_of([](auto& c) { c.smallest_codes.assign(static_cast<size_t>(c.layers()) - 1, -126); }),
      HasSubstr("smallest code of conv1: -126 with 8 bits"));
  EXPECT_THAT(error_of([](auto& c) { c.weight_bits = {8, 8}; }), HasSubstr("weight bits: 2"));
  EXPECT_THAT(error_of([](auto& c) { c.weight_bits = {16}; }),
              HasSubstr("weight bits of conv1: 16"));
  EXPECT_THAT(error_of([](auto& c) { c.act_bits = {8, 8, 8, 8}; }), HasSubstr("activation bits"));
  EXPECT_THAT(error_of([](auto& c) { c.filters = {65'536, 65'536}; }), HasSubstr("weights"));
}

// Which inputs each weight meets, against the definition of a convolution: y[l] is the sum over
// kernel taps k of w[k] * x[l * stride + k - padding].
TEST(Network, WeightsAreWhereAFormOfConvolutionHasThem) {
  ChainConfig config = small_config();
  config.length = 24;
  config.input_channels = 4;
  config.filters = {6};
  config.pool = {1};
  for (const Convolution form : {Convolution{3, 1, 1, 1, 1},
                                 {6, 2, 3, 2, 1},
                                 {5, 3, 0, 1, 1},
                                 {2, 4, 1, 2, 1},
                                 {4, 1, 3, 1, 1},
                                 {9, 4, 8, 2, 1}}) {
    config.kernel = {form.kernel};
    config.stride = {form.stride};
    config.padding = {form.padding};
    config.groups = {form.groups};
    const Network network(config, 1);
    const Layer& layer = network.layers().front();
    EXPECT_EQ(layer.form, form);
    EXPECT_EQ(layer.length, 24 / form.stride);
    EXPECT_EQ(layer.weights_alive(), layer.weights_total());
    EXPECT_EQ(layer.weights_total(), 6 * form.kernel * 4 / form.groups);
    // In the layer's shape: position l reads rows l - padding() .. l + padding(), each of which is
    // `stride` samples of 4 channels.
    const int position = 2;
    for (int o = 0; o < 6; ++o) {
      for (int c = 0; c < layer.group_channels(); ++c) {
        for (int k = 0; k < form.kernel; ++k) {
          const int in_row =
              static_cast<int>(layer.place(o, c, k)) - o * layer.taps * layer.in_channels;
          const int value = (position - layer.padding()) * form.stride * 4 + in_row;
          const int channel = o / (6 / form.groups) * layer.group_channels() + c;
          EXPECT_EQ(value, (position * form.stride + k - form.padding) * 4 + channel);
        }
      }
    }
  }
}

TEST(ChainConfig, BitsAreGivenOnceOrPerLayer) {
  ChainConfig config = small_config();
  config.input_bits = 7;
  config.weight_bits = {2, 3, 4, 32};
  config.act_bits = {5, 6, 32};
  EXPECT_EQ(validation_error(config), "");
  const Network network(config, 1);
  const auto& layers = network.layers();
  for (size_t i = 0; i < layers.size(); ++i) {
    EXPECT_EQ(layers[i].weight_bits, config.weight_bits[i]);
    EXPECT_EQ(layers[i].input_bits, i == 0 ? 7 : config.act_bits[i - 1]);
  }
  EXPECT_EQ(layers[0].act_bits, 5);
  EXPECT_TRUE(layers[1].threshold.value.defined());
  EXPECT_FALSE(layers[2].threshold.value.defined()) << "float activations have no threshold";
}

TEST(Network, HasTheShapesOfThePublishedNetwork) {
  const Network network(ChainConfig{}, 0);
  const auto& layers = network.layers();
  ASSERT_EQ(layers.size(), 10U);
  EXPECT_EQ(network.weights_total(), 159'104);
  EXPECT_EQ(network.weights_alive(), 159'104);
  EXPECT_EQ(layers[0].name, "conv1");
  EXPECT_EQ(layers[0].weight.value.shape(), (std::vector<int64_t>{64, 3, 2}));
  EXPECT_EQ(layers[6].name, "conv7");
  EXPECT_EQ(layers[6].length, 16);
  EXPECT_EQ(layers[6].positions(), 16);
  EXPECT_EQ(layers[7].name, "dense1");
  EXPECT_EQ(layers[7].weight.value.shape(), (std::vector<int64_t>{128, 1, 512}));
  EXPECT_EQ(layers[7].positions(), 1);
  EXPECT_EQ(layers[9].name, "output");
  EXPECT_EQ(layers[9].bias.size(), 24);
  EXPECT_EQ(layers[9].parameters().size(), 2U);
  EXPECT_EQ(layers[0].parameters().size(), 4U);
}

// PyTorch's defaults: weights and biases uniform in +-1/sqrt(fan_in).
TEST(Network, DrawsWeightsAsPyTorchDoes) {
  const Network network(ChainConfig{}, 42);
  for (const Layer& layer : network.layers()) {
    const double bound = 1 / std::sqrt(static_cast<double>(layer.taps) * layer.in_channels);
    double sum = 0, squares = 0, largest = 0;
    for (const float weight : layer.weight.value.floats()) {
      sum += weight;
      squares += static_cast<double>(weight) * weight;
      largest = std::max(largest, std::abs(static_cast<double>(weight)));
    }
    const auto count = static_cast<double>(layer.weight.size());
    EXPECT_LE(largest, bound * (1 + 1e-6)) << layer.name;
    EXPECT_GT(largest, 0.95 * bound) << layer.name;
    // A uniform distribution has the deviation bound/sqrt(3); five standard errors of the mean, and
    // of the mean square (whose own deviation is bound^2 * sqrt(4/45)).
    EXPECT_NEAR(sum / count, 0, 5 * bound / std::sqrt(3 * count)) << layer.name;
    EXPECT_NEAR(squares / count, bound * bound / 3, 5 * bound * bound * std::sqrt(4 / 45.0 / count))
        << layer.name;
  }
  const Layer& output = network.layers().back();
  for (const float bias : output.bias.value.floats()) EXPECT_LE(std::abs(bias), 1 / std::sqrt(128));
  EXPECT_NE(output.bias.value.floats()[0], output.bias.value.floats()[1]);
  const Layer& hidden = network.layers().front();
  EXPECT_THAT(hidden.gamma.value.floats(), ::testing::Each(1.0F));
  EXPECT_THAT(hidden.beta.value.floats(), ::testing::Each(0.0F));
  EXPECT_THAT(hidden.running_mean.floats(), ::testing::Each(0.0F));
  EXPECT_THAT(hidden.running_var.floats(), ::testing::Each(1.0F));
}

TEST(Network, DependsOnTheSeedAlone) {
  const Network a(small_config(), 7), b(small_config(), 7), c(small_config(), 8);
  const auto weights = [](const Network& network, size_t layer) {
    const auto values = network.layers()[layer].weight.value.floats();
    return std::vector<float>(values.begin(), values.end());
  };
  EXPECT_EQ(weights(a, 1), weights(b, 1));
  EXPECT_NE(weights(a, 1), weights(c, 1));
  EXPECT_NE(weights(a, 0)[0], weights(a, 1)[0]) << "layers draw from streams of their own";
}

TEST(Network, CopiesShareNothing) {
  Network original(small_config(), 3);
  original.steps = 11;
  original.optimizer_steps = 5;
  original.layers()[0].threshold.value.floats()[0] = 0.25F;
  Network copy = original;
  EXPECT_EQ(copy.steps, 11);
  EXPECT_EQ(copy.optimizer_steps, 5);
  EXPECT_EQ(copy.layers()[0].threshold.value.floats()[0], 0.25F);
  EXPECT_EQ(copy.config(), original.config());
  for (size_t i = 0; i < copy.layers().size(); ++i) {
    Layer& changed = copy.layers()[i];
    const Layer& kept = original.layers()[i];
    const auto changed_parameters = changed.parameters();
    const auto kept_parameters = kept.parameters();
    ASSERT_EQ(changed_parameters.size(), kept_parameters.size());
    for (size_t p = 0; p < kept_parameters.size(); ++p) {
      EXPECT_EQ(changed_parameters[p]->name, kept_parameters[p]->name);
      EXPECT_TRUE(std::ranges::equal(changed_parameters[p]->value.floats(),
                                     kept_parameters[p]->value.floats()));
      for (const auto tensor :
           {&Parameter::value, &Parameter::grad, &Parameter::moment1, &Parameter::moment2}) {
        (changed_parameters[p]->*tensor).floats()[0] = 99;
        EXPECT_NE((kept_parameters[p]->*tensor).floats()[0], 99) << kept_parameters[p]->name;
      }
    }
    changed.weight.mask[0] = 0;
    EXPECT_EQ(kept.weight.mask[0], 1);
    if (kept.kind == Layer::Kind::kOutput) continue;
    changed.running_mean.floats()[0] = 99;
    changed.running_var.floats()[0] = 99;
    EXPECT_NE(kept.running_mean.floats()[0], 99);
    EXPECT_NE(kept.running_var.floats()[0], 99);
  }
  copy = original;
  EXPECT_EQ(copy.layers()[0].weight.mask[0], 1);
  copy.layers()[0].weight.value.floats()[0] = 77;
  EXPECT_NE(original.layers()[0].weight.value.floats()[0], 77);
}

TEST(Network, MasksZeroEverythingOfAWeight) {
  Network network(small_config(), 3);
  Parameter& weight = network.layers()[1].weight;
  for (Tensor* tensor : {&weight.value, &weight.grad, &weight.moment1, &weight.moment2}) {
    std::ranges::fill(tensor->floats(), 2.0F);
  }
  weight.mask[4] = 0;
  network.apply_masks();
  EXPECT_EQ(network.weights_alive(), network.weights_total() - 1);
  for (Tensor* tensor : {&weight.value, &weight.grad, &weight.moment1, &weight.moment2}) {
    EXPECT_EQ(tensor->floats()[3], 2);
    EXPECT_EQ(tensor->floats()[4], 0);
    EXPECT_EQ(tensor->floats()[5], 2);
  }
}

TEST(Network, ResettingTheOptimizerKeepsTheParameters) {
  Network network(small_config(), 3);
  network.steps = 20;
  network.optimizer_steps = 20;
  Parameter& beta = network.layers()[0].beta;
  beta.value.floats()[1] = 5;
  beta.moment1.floats()[1] = 6;
  beta.moment2.floats()[1] = 7;
  network.reset_optimizer();
  EXPECT_EQ(network.steps, 20);
  EXPECT_EQ(network.optimizer_steps, 0);
  EXPECT_EQ(beta.value.floats()[1], 5);
  EXPECT_EQ(beta.moment1.floats()[1], 0);
  EXPECT_EQ(beta.moment2.floats()[1], 0);
}

TEST(Network, ReplacementMustFitItsConfiguration) {
  Network network(small_config(), 3);
  ChainConfig narrower = small_config();
  narrower.filters[0] = 4;
  const Network other(narrower, 3);
  EXPECT_THROW(network.replace(narrower, network.layers()), Error);
  EXPECT_EQ(network.config(), small_config()) << "a refused replacement changes nothing";
  network.replace(narrower, other.layers());
  EXPECT_EQ(network.config(), narrower);
  EXPECT_EQ(network.layers()[1].in_channels, 4);
  std::vector<Layer> missing_mask = Network(narrower, 3).layers();
  missing_mask[1].weight.mask.pop_back();
  EXPECT_THROW(network.replace(narrower, missing_mask), Error);
}

}  // namespace
}  // namespace fmp
