// SPDX-License-Identifier: MIT
#include "framework/network/description.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "framework/error.h"
#include "tests/chain_of.h"

namespace fmp {
namespace {

std::string error_of(const std::string& text) {
  try {
    parse_network(text, "net.json", 8);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(NetworkDescription, FieldsGoWhereTheyBelong) {
  const NetworkConfig network = parse_network(R"({"input_bits": 6, "layers": [
      {"type": "conv", "outputs": 12, "kernel": 7, "stride": 4, "padding": 2, "pool": 2},
      {"type": "conv", "outputs": 12, "kernel": 4, "groups": 12, "weight_bits": 3, "act_bits": 5},
      {"type": "dense", "outputs": 9}], "output": {"weight_bits": 2}})",
                                              "net.json", 4);
  const ChainConfig config = chain_of(network);
  EXPECT_EQ(config.filters, (std::vector<int>{12, 12}));
  EXPECT_EQ(config.dense, (std::vector<int>{9}));
  EXPECT_EQ(network.layers[0].form, (Convolution{7, 4, 2, 1, 2}));
  EXPECT_EQ(network.layers[1].form, (Convolution{4, 1, 1, 12, 1}));
  EXPECT_EQ(config.input_bits, 6);
  EXPECT_EQ(config.weight_bits, (std::vector<int>{4, 3, 4, 2}));
  EXPECT_EQ(config.act_bits, (std::vector<int>{4, 5, 4}));
}

constexpr const char* kBranches = R"({"layers": [
    {"type": "conv", "name": "stem", "outputs": 8, "kernel": 3, "pool": 2},
    {"type": "conv", "name": "left", "outputs": 8, "kernel": 3, "signed": true},
    {"type": "add", "reads": ["left", "stem"], "pool": 2},
    {"type": "conv", "outputs": 4, "kernel": 1, "stride": 2, "reads": ["stem"]},
    {"type": "concat", "reads": ["conv3", "add1"], "act_bits": 5},
    {"type": "average_pool", "window": 2, "signed": true, "narrow": true},
    {"type": "average_pool"},
    {"type": "dense", "outputs": 9}]})";

TEST(NetworkDescription, LayersMayReadAnyBeforeThem) {
  NetworkConfig config = parse_network(kBranches, "net.json", 4);
  config.length = 64;
  config.validate();
  EXPECT_FALSE(config.is_chain());
  const Network network(config, 1);
  const std::vector<Layer>& layers = network.layers();
  using testing::ElementsAre;
  const auto shape = [&](size_t i) {
    return std::vector<int>{layers[i].in_channels, layers[i].out_channels, layers[i].length,
                            layers[i].pool, layers[i].smallest_code};
  };
  ASSERT_EQ(layers.size(), 9U);
  EXPECT_EQ(layers[2].name, "add1");
  EXPECT_THAT(layers[2].reads, ElementsAre(1, 0));
  EXPECT_THAT(shape(2), ElementsAre(8, 8, 32, 2, 0));
  EXPECT_THAT(shape(3), ElementsAre(16, 4, 16, 1, 0));
  EXPECT_EQ(layers[4].name, "concat1");
  EXPECT_THAT(layers[4].reads, ElementsAre(3, 2));
  EXPECT_THAT(shape(4), ElementsAre(12, 12, 16, 1, 0));
  EXPECT_EQ(layers[4].act_bits, 5);
  EXPECT_EQ(layers[5].name, "pool1");
  EXPECT_THAT(shape(5), ElementsAre(12, 12, 8, 1, -7));
  EXPECT_THAT(shape(6), ElementsAre(12, 12, 1, 1, 0));
  EXPECT_EQ(layers[6].form.kernel, 8);
  EXPECT_THAT(shape(7), ElementsAre(12, 9, 1, 1, 0));
  EXPECT_EQ(layers[5].parameters().size(), 1U) << "a threshold";
  EXPECT_THAT(readers_of(layers), ElementsAre(ElementsAre(1, 2, 3), ElementsAre(2), ElementsAre(4),
                                              ElementsAre(4), ElementsAre(5), ElementsAre(6),
                                              ElementsAre(7), ElementsAre(8), ElementsAre()));
}

TEST(NetworkDescription, ItsTextGivesTheSameNetwork) {
  for (const char* text : {"depthwise", "resnet", "vgg10", kBranches}) {
    const NetworkConfig config = read_network(text, 6);
    EXPECT_EQ(read_network(describe_network(config).dump(), 3), config) << text;
  }
}

TEST(NetworkDescription, KeepsPaddingAndWhoseThresholdIsLearned) {
  const NetworkConfig config = read_network(
      R"({"layers": [{"type": "conv", "outputs": 4, "kernel": 32, "stride": 4, "padding": [16, 16]},
                     {"type": "conv", "outputs": 4, "kernel": 3, "pool": 2, "collects": false}]})",
      4);
  EXPECT_EQ(config.layers[0].form, (Convolution{32, 4, 16, 1, 1, 16}));
  EXPECT_TRUE(config.layers[0].collects);
  EXPECT_FALSE(config.layers[1].collects);
  EXPECT_EQ(read_network(describe_network(config).dump(), 3), config);
  const Network network(config, 1);  // of 1024 samples
  EXPECT_EQ(network.layers()[0].out_length(), 257);
  EXPECT_EQ(network.layers()[1].out_length(), 128);
  EXPECT_FALSE(network.layers()[1].collects);
}

TEST(NetworkDescription, NamesTheLayerThatDoesNotFit) {
  const auto invalid = [](const std::string& layers) {
    const std::string first = R"({"layers": [{"type": "conv", "outputs": 4, "kernel": 3},)";
    try {
      parse_network(first + layers + "]}", "net.json", 8).validate();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  using testing::HasSubstr;
  const std::string half = R"({"type": "conv", "outputs": 4, "kernel": 1, "pool": 2},)";
  EXPECT_EQ(invalid(half + R"({"type": "add", "reads": ["conv1", "conv2"]})"),
            "reads of add1: conv1 has 4 channels of 1024 positions, but conv2 has 4 of 512");
  EXPECT_THAT(invalid(half + R"({"type": "concat", "reads": ["conv1", "conv2"]})"),
              HasSubstr("reads of concat1"));
  EXPECT_EQ(invalid(R"({"type": "add"})"), "reads of add1: expected two layers");
  EXPECT_EQ(invalid(R"({"type": "add", "reads": ["conv1", "conv1"]})"),
            "reads of add1: one layer twice");
  EXPECT_EQ(invalid(R"({"type": "concat"})"), "reads of concat1: expected two layers or more");
  EXPECT_EQ(invalid(half + R"({"type": "dense", "outputs": 2, "reads": ["conv1"]})"),
            "reads: no layer reads conv2");
  EXPECT_EQ(invalid(R"({"type": "conv", "outputs": 4, "kernel": 3, "padding": [1, 3]})"),
            "padding of conv2: 3 is not in 0..2");
  EXPECT_EQ(invalid(R"({"type": "conv", "outputs": 4, "kernel": 3, "padding": [1]})"),
            "net.json: layer 2: 'padding': expected a whole number, or two of them: [before, "
            "behind]");
  EXPECT_EQ(invalid(half + R"({"type": "conv", "outputs": 4, "kernel": 3, "pool": 513})"),
            "pool: 513 of conv3 does not fit into its 512 positions");
  EXPECT_EQ(invalid(R"({"type": "conv", "outputs": 4, "kernel": 1, "pool": 1024},
                       {"type": "conv", "outputs": 4, "kernel": 3, "padding": [0, 0]})"),
            "kernel of conv3: 3 does not fit into 1 samples with padding");
  EXPECT_EQ(invalid(R"({"type": "average_pool", "window": 1025})"),
            "window: 1025 of pool1 does not fit into its 1024 positions");
  EXPECT_EQ(invalid(R"({"type": "average_pool", "window": 3})"), "");  // one is left over
  EXPECT_EQ(invalid(R"({"type": "average_pool", "act_bits": 32})"),
            "activation bits of pool1: expected 2..8");
  EXPECT_EQ(invalid(R"({"type": "conv", "outputs": 4, "kernel": 1, "act_bits": 32},
                       {"type": "add", "reads": ["conv1", "conv2"]})"),
            "reads of add1: conv2 writes floats, expected codes of 2..8 bits");
  EXPECT_EQ(invalid(R"({"type": "dense", "outputs": 4, "name": "conv1"})"),
            "name of conv1: something else is called so");
  EXPECT_THAT(invalid(R"({"type": "dense", "outputs": 4, "name": "a b"})"), HasSubstr("letters"));
  EXPECT_EQ(invalid(R"({"type": "add", "reads": ["conv1", "conv9"]})"),
            "net.json: layer 2: 'reads': no layer before it is called 'conv9', expected names or "
            "\"input\"");
  EXPECT_EQ(invalid(R"({"type": "add", "reads": "conv1"})"),
            "net.json: layer 2: 'reads': expected a list of names");
  EXPECT_EQ(invalid(R"({"type": "dense", "outputs": 4, "name": "input"})"),
            "net.json: layer 2: 'name': \"input\" are the frames");
  EXPECT_EQ(invalid(R"({"type": "dense", "outputs": 4, "signed": 1})"),
            "net.json: layer 2: 'signed': expected true or false");
  EXPECT_EQ(invalid(R"({"type": "dense", "outputs": 4, "narrow": true})"),
            "net.json: layer 2: 'narrow': only with \"signed\"");
}

TEST(NetworkDescription, PresetsAreNetworks) {
  const std::vector<std::string> names = network_presets();
  EXPECT_EQ(names, (std::vector<std::string>{"depthwise", "resnet", "vgg10"}));
  for (const std::string& name : names) EXPECT_NO_THROW(read_network(name, 8).validate()) << name;
  const Network vgg10(read_network("vgg10", 8), 1);
  EXPECT_EQ(vgg10.weights_total(), Network(ChainConfig(), 1).weights_total());
}

TEST(NetworkDescription, NamesTheLayerAndTheFieldThatAreWrong) {
  using testing::HasSubstr;
  EXPECT_THAT(error_of("{"), HasSubstr("net.json"));
  EXPECT_EQ(error_of("[]"), "net.json: expected an object");
  EXPECT_EQ(error_of("{}"), "net.json: 'layers': expected a list");
  EXPECT_EQ(error_of(R"({"layers": [3]})"), "net.json: layer 1: expected an object");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "lstm"}]})"),
            "net.json: layer 1: 'type': expected one of \"conv\", \"dense\", \"add\", \"concat\", "
            "\"average_pool\"");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "conv", "outputs": 3}]})"),
            "net.json: layer 1: 'kernel' is missing");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": "3"}]})"),
            "net.json: layer 1: 'outputs': expected a whole number");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": -3}]})"),
            "net.json: layer 1: 'outputs': expected a whole number");
  EXPECT_THAT(
      error_of(R"({"layers": [{"type": "dense", "outputs": 3, "kernel": 3}]})"),
      HasSubstr("net.json: layer 1: unknown field 'kernel', expected type, name, reads, outputs"));
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": 3},
                                    {"type": "conv", "outputs": 3, "kernel": 3}]})"),
            "net.json: layer 2: only a dense layer may follow a dense layer");
  EXPECT_THAT(error_of(R"({"layers": [], "output": {"bits": 3}})"),
              HasSubstr("net.json: output: unknown field 'bits'"));
  EXPECT_THROW(read_network("/nowhere/net.json", 8), Error);
}

}  // namespace
}  // namespace fmp
