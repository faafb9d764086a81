// SPDX-License-Identifier: MIT
// Pruning on the device chooses the weights that the method "unstructured-l1" chooses on the host,
// round after round, ties included.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "framework/network/pruning.h"
#include "framework/random.h"
#include "kernels/cuda/prune.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 20252;
constexpr cuda::Stream kStream = nullptr;
using Masks = std::vector<std::vector<uint8_t>>;
using Weights = std::vector<std::vector<float>>;

class CudaPruneTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* why = "";
    if (!cuda::device_available(&why)) GTEST_SKIP() << "no CUDA device: " << why;
  }
};

// The same weights and masks on the device.
struct DeviceLayers {
  explicit DeviceLayers(const Weights& values, const Masks& alive) {
    for (size_t i = 0; i < values.size(); ++i) {
      weights.emplace_back(std::span<const float>(values[i]), kStream);
      masks.emplace_back(std::span<const uint8_t>(alive[i]), kStream);
      layers.push_back({weights.back().data(), masks.back().data(), values[i].size()});
    }
  }
  Masks to_host() const {
    Masks result;
    for (const auto& mask : masks) result.push_back(mask.to_host(kStream));
    return result;
  }
  std::vector<cuda::DeviceBuffer<float>> weights;
  std::vector<cuda::DeviceBuffer<uint8_t>> masks;
  std::vector<cuda::PrunableWeights> layers;
};

void prune_on_host(const Weights& weights, Masks& masks, double fraction) {
  PruneRequest request;
  request.fraction = fraction;
  for (size_t i = 0; i < weights.size(); ++i) {
    PrunableLayer layer;
    layer.weights = weights[i];
    layer.mask = masks[i];
    request.layers.push_back(layer);
  }
  prune_lowest(request.layers, fraction, [](const PrunableLayer& layer, int64_t index) {
    return std::abs(layer.weights[static_cast<size_t>(index)]);
  });
}

int64_t count_alive(const Masks& masks) {
  int64_t alive = 0;
  for (const auto& mask : masks) alive += std::ranges::count(mask, uint8_t{1});
  return alive;
}

// values: how many different magnitudes there are; few of them make many ties.
void expect_same_rounds(uint64_t values) {
  Random random(kSeed, "prune");
  Weights weights;
  Masks masks;
  for (const size_t count : {37, 1000, 1, 2061}) {
    std::vector<float>& layer = weights.emplace_back();
    for (size_t i = 0; i < count; ++i) {
      const float magnitude = static_cast<float>(random.below(values)) / 7.0F;
      layer.push_back(random.below(2) == 0 ? magnitude : -magnitude);
    }
    masks.emplace_back(count, uint8_t{1});
  }
  const DeviceLayers device(weights, masks);
  for (const double fraction : {0.2, 0.5, 0.1, 0.0001, 0.9, 0.5}) {
    const int64_t before = count_alive(masks);
    prune_on_host(weights, masks, fraction);
    const cuda::PruneCounts counts = cuda::prune_smallest(device.layers, fraction, kStream);
    EXPECT_EQ(counts.before, before);
    EXPECT_EQ(counts.after, count_alive(masks));
    ASSERT_EQ(device.to_host(), masks) << "fraction " << fraction;
  }
}

TEST_F(CudaPruneTest, ChoosesTheSameWeightsAsTheHost) { expect_same_rounds(uint64_t{1} << 24); }
TEST_F(CudaPruneTest, ResolvesTiesAsTheHost) { expect_same_rounds(5); }
TEST_F(CudaPruneTest, PrunesEqualWeightsInTheirOrder) { expect_same_rounds(1); }

TEST_F(CudaPruneTest, RoundsHalvesToEven) {
  for (const size_t count : {5, 7, 9, 11}) {
    const Weights weights{std::vector<float>(count, 1.0F)};
    const Masks masks{std::vector<uint8_t>(count, 1)};
    const DeviceLayers device(weights, masks);
    const cuda::PruneCounts counts = cuda::prune_smallest(device.layers, 0.5, kStream);
    EXPECT_EQ(counts.before - counts.after, prune_count(0.5, static_cast<int64_t>(count)));
  }
}

TEST_F(CudaPruneTest, RefusesWhatItCannotRank) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Weights weights{{1, 2, kNan, 4}};
  Masks masks{{1, 1, 1, 1}};
  DeviceLayers device(weights, masks);
  EXPECT_THROW(cuda::prune_smallest(device.layers, 0.5, kStream), std::domain_error);
  EXPECT_EQ(device.to_host(), masks);
  for (const double fraction : {0.0, 1.0, -1.0, static_cast<double>(kNan)}) {
    EXPECT_THROW(cuda::prune_smallest(device.layers, fraction, kStream), std::invalid_argument);
  }
  masks[0][2] = 0;  // a pruned weight is not looked at
  DeviceLayers again(weights, masks);
  const cuda::PruneCounts counts = cuda::prune_smallest(again.layers, 0.4, kStream);
  EXPECT_EQ(counts.after, 2);
  EXPECT_EQ(again.to_host(), (Masks{{0, 1, 0, 1}}));
}

TEST_F(CudaPruneTest, LeavesWhatHasNoSurvivors) {
  const Weights weights{{1, 2}, {}};
  const Masks masks{{0, 0}, {}};
  const DeviceLayers device(weights, masks);
  const cuda::PruneCounts counts = cuda::prune_smallest(device.layers, 0.5, kStream);
  EXPECT_EQ(counts.before, 0);
  EXPECT_EQ(counts.after, 0);
  EXPECT_EQ(device.to_host(), masks);
}

}  // namespace
}  // namespace fmp
