// SPDX-License-Identifier: MIT
#include "framework/network/description.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "framework/error.h"

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
  const NetworkConfig config = parse_network(R"({"input_bits": 6, "layers": [
      {"type": "conv", "outputs": 12, "kernel": 7, "stride": 4, "padding": 2, "pool": 2},
      {"type": "conv", "outputs": 12, "kernel": 4, "groups": 12, "weight_bits": 3, "act_bits": 5},
      {"type": "dense", "outputs": 9}], "output": {"weight_bits": 2}})",
                                             "net.json", 4);
  EXPECT_EQ(config.filters, (std::vector<int>{12, 12}));
  EXPECT_EQ(config.dense, (std::vector<int>{9}));
  EXPECT_EQ(config.convolution(0), (Convolution{7, 4, 2, 1, 2}));
  EXPECT_EQ(config.convolution(1), (Convolution{4, 1, 1, 12, 1}));
  EXPECT_EQ(config.input_bits, 6);
  EXPECT_EQ(config.weight_bits, (std::vector<int>{4, 3, 4, 2}));
  EXPECT_EQ(config.act_bits, (std::vector<int>{4, 5, 4}));
}

TEST(NetworkDescription, PresetsAreNetworks) {
  const std::vector<std::string> names = network_presets();
  EXPECT_EQ(names, (std::vector<std::string>{"depthwise", "vgg10"}));
  for (const std::string& name : names) EXPECT_NO_THROW(read_network(name, 8).validate()) << name;
  const Network vgg10(read_network("vgg10", 8), 1);
  EXPECT_EQ(vgg10.weights_total(), Network(NetworkConfig(), 1).weights_total());
}

TEST(NetworkDescription, NamesTheLayerAndTheFieldThatAreWrong) {
  using testing::HasSubstr;
  EXPECT_THAT(error_of("{"), HasSubstr("net.json"));
  EXPECT_EQ(error_of("[]"), "net.json: expected an object");
  EXPECT_EQ(error_of("{}"), "net.json: 'layers': expected a list");
  EXPECT_EQ(error_of(R"({"layers": [3]})"), "net.json: layer 1: expected an object");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "lstm"}]})"),
            "net.json: layer 1: 'type': expected \"conv\" or \"dense\"");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "conv", "outputs": 3}]})"),
            "net.json: layer 1: 'kernel' is missing");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": "3"}]})"),
            "net.json: layer 1: 'outputs': expected a whole number");
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": -3}]})"),
            "net.json: layer 1: 'outputs': expected a whole number");
  EXPECT_THAT(error_of(R"({"layers": [{"type": "dense", "outputs": 3, "kernel": 3}]})"),
              HasSubstr("net.json: layer 1: unknown field 'kernel', expected type, outputs"));
  EXPECT_EQ(error_of(R"({"layers": [{"type": "dense", "outputs": 3},
                                    {"type": "conv", "outputs": 3, "kernel": 3}]})"),
            "net.json: layer 2: a convolution behind a dense layer");
  EXPECT_THAT(error_of(R"({"layers": [], "output": {"bits": 3}})"),
              HasSubstr("net.json: output: unknown field 'bits'"));
  EXPECT_THROW(read_network("/nowhere/net.json", 8), Error);
}

}  // namespace
}  // namespace fmp
