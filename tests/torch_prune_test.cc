// SPDX-License-Identifier: MIT
// The pruning methods choose exactly the weights that torch.nn.utils.prune chooses, round after
// round; see tests/fixtures/README.md.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "framework/network/pruning.h"
#include "tests/fixture_file.h"

namespace fmp {
namespace {

struct Round {
  const char* method;
  double fraction;
};

struct LayerCase {
  const char* name;
  int out_channels, kernel, in_channels;
};

constexpr std::array<LayerCase, 3> kLayers = {
    {{"conv1", 6, 3, 2}, {"conv2", 7, 3, 6}, {"dense1", 10, 1, 21}}};

void expect_same_masks(const std::string& scenario, const std::vector<Round>& rounds) {
  const FixtureFile file("prune");
  ASSERT_EQ(file.scalar<int>(scenario + "/rounds"), static_cast<int>(rounds.size()));
  std::array<std::vector<uint8_t>, kLayers.size()> masks;
  for (size_t i = 0; i < kLayers.size(); ++i) {
    const auto& layer = kLayers[i];
    masks[i].assign(static_cast<size_t>(layer.out_channels * layer.kernel * layer.in_channels), 1);
  }
  for (size_t r = 0; r < rounds.size(); ++r) {
    const std::string group = scenario + "/round" + std::to_string(r) + "/";
    std::array<std::vector<float>, kLayers.size()> weights;
    PruneRequest request;
    request.fraction = rounds[r].fraction;
    size_t channels = 0;
    for (size_t i = 0; i < kLayers.size(); ++i) {
      const auto& layer = kLayers[i];
      weights[i] = file.read<float>(group + layer.name + "/weight");
      PrunableLayer& view = request.layers.emplace_back();
      view.index = i;
      view.name = layer.name;
      view.out_channels = layer.out_channels;
      view.kernel = layer.kernel;
      view.in_channels = layer.in_channels;
      view.positions = 1;
      view.weight_bits = view.input_bits = 8;
      view.weights = weights[i];
      view.mask = masks[i];
      for (int c = 0; c < layer.out_channels; ++c) view.ties.push_back(++channels);  // none is tied
    }
    make_pruning_method(rounds[r].method)->prune(request);
    for (size_t i = 0; i < kLayers.size(); ++i) {
      ASSERT_EQ(masks[i], file.read<uint8_t>(group + kLayers[i].name + "/mask"))
          << kLayers[i].name << " after round " << r << " of " << scenario;
    }
  }
}

TEST(TorchPrune, GlobalMasksAreTheSame) {
  expect_same_masks("global_l1", {{"unstructured-l1", 0.2},
                                  {"unstructured-l1", 0.2},
                                  {"unstructured-l1", 0.2},
                                  {"unstructured-l1", 0.1},
                                  {"unstructured-l1", 0.05},
                                  {"unstructured-l1", 0.5}});
}

TEST(TorchPrune, LayerwiseMasksAreTheSame) {
  expect_same_masks("layerwise_l1", {{"unstructured-l1-layerwise", 0.2},
                                     {"unstructured-l1-layerwise", 0.2},
                                     {"unstructured-l1-layerwise", 0.1},
                                     {"unstructured-l1-layerwise", 0.25},
                                     {"unstructured-l1-layerwise", 0.5}});
}

TEST(TorchPrune, StructuredMasksAreTheSame) {
  expect_same_masks("structured_l1", {{"structured-l1", 0.1},
                                      {"structured-l1", 0.2},
                                      {"structured-l1", 0.25},
                                      {"structured-l1", 0.05}});
}

TEST(TorchPrune, StructuredAfterGlobalMasksAreTheSame) {
  expect_same_masks("structured_after_global",
                    {{"unstructured-l1", 0.6}, {"structured-l1", 0.3}, {"unstructured-l1", 0.2}});
}

TEST(TorchPrune, CountsAreTheSame) {
  const FixtureFile file("prune");
  const auto amounts = file.read<double>("counts/amount");
  const auto sizes = file.read<int64_t>("counts/size");
  const auto removed = file.read<int64_t>("counts/removed");
  for (size_t i = 0; i < amounts.size(); ++i) {
    EXPECT_EQ(prune_count(amounts[i], sizes[i]), removed[i]) << amounts[i] << " of " << sizes[i];
  }
}

}  // namespace
}  // namespace fmp
