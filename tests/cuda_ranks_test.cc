// SPDX-License-Identifier: MIT
// Training by ranks with a device each gives the bits of one device. The ranks are processes, their
// devices those of the host runtime, and NCCL is its stand-in (tests/simt/nccl.cc).
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "framework/training/cuda/cuda_engine.h"
#include "framework/training/engine_choice.h"
#include "tests/process_ranks.h"
#include "tests/ranks_training.h"

namespace fmp {
namespace {

using Bits = ProcessRanks::Bits;

std::unique_ptr<Engine> engine(int /*threads*/, Communicator* ranks) {
  return make_cuda_engine({.ranks = ranks});
}

class CudaRanks : public ::testing::TestWithParam<RanksCase> {
 protected:
  // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
  static void SetUpTestSuite() { ::setenv("SIMT_DEVICES", "4", 1); }
};

TEST_P(CudaRanks, GiveTheBitsOfOneDevice) {
  // In a process of its own, too: what has had threads must not be forked.
  const Bits alone = ProcessRanks::run(
      1, [](Communicator&) { return trained(GetParam(), 1, nullptr, engine); })[0];
  ASSERT_FALSE(alone.empty());
  const int ranks = GetParam().batch > 256 ? 3 : 2;
  const std::vector<Bits> together = ProcessRanks::run(
      ranks, [](Communicator& all) { return trained(GetParam(), 1, &all, engine); });
  for (size_t rank = 0; rank < together.size(); ++rank)
    EXPECT_TRUE(together[rank] == alone) << "rank " << rank << " of " << ranks;
}

// Few frames, as the host runtime takes milliseconds for each.
INSTANTIATE_TEST_SUITE_P(
    All, CudaRanks,
    ::testing::Values(
        // Steps that search for percentiles, that do not, of a graph, and of a batch with fewer
        // groups than there are ranks.
        RanksCase{.name = "Quantized",
                  .filters = {4, 8},
                  .dense = {5},
                  .frames = 212,
                  .batch = 64,
                  .statistic_steps = 1,
                  .length = 8,
                  .epochs = 1},
        RanksCase{.name = "Float",
                  .bits = kFloatBits,
                  .input_bits = kFloatBits,
                  .filters = {4},
                  .dense = {5},
                  .frames = 64,
                  .batch = 64,
                  .length = 8,
                  .epochs = 1},
        // More warps than groups, groups and shares that differ in size; a teacher.
        RanksCase{.name = "Uneven",
                  .bits = 3,
                  .filters = {3},
                  .dense = {},
                  .frames = 310,
                  .batch = 310,
                  .statistic_steps = 300,
                  .soft = true,
                  .length = 4,
                  .epochs = 1},
        RanksCase{.name = "Sparse",
                  .bits = 4,
                  .filters = {4, 5},
                  .dense = {},
                  .frames = 64,
                  .batch = 64,
                  .statistic_steps = 0,
                  .sparse_threshold = 1,
                  .pruned = true,
                  .length = 8,
                  .epochs = 1},
        RanksCase{.name = "Branches",
                  .bits = 4,
                  .input_bits = 4,
                  .frames = 128,
                  .batch = 64,
                  .statistic_steps = 1,
                  .length = 16,
                  .epochs = 1,
                  .branches = true},
        RanksCase{.name = "AnyLengths",
                  .bits = 4,
                  .input_bits = 4,
                  .frames = 128,
                  .batch = 64,
                  .statistic_steps = 1,
                  .length = kAnyLength,
                  .epochs = 1,
                  .any_lengths = true},
        RanksCase{.name = "Wide",
                  .filters = {32, 32},
                  .dense = {},
                  .frames = 64,
                  .batch = 64,
                  .statistic_steps = 0,
                  .length = 8,
                  .epochs = 1}),
    [](const auto& test) { return std::string(test.param.name); });

// What choose_engine() says for the flags of a user.
std::string refusal(int ranks, const char* devices) {
  ::setenv("SIMT_DEVICES", devices, 1);  // NOLINT(concurrency-mt-unsafe)
  try {
    ProcessRanks::run(ranks, [](Communicator& all) {
      DeviceChoice device = DeviceChoice::kCuda;
      choose_engine(device, 1, &all);
      return Bits{1};
    });
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

TEST(CudaRanksRefuse, MoreRanksThanDevices) {
  EXPECT_EQ(refusal(3, "2"), "3 ranks here, but 2 CUDA devices; each rank needs one of its own");
  EXPECT_EQ(refusal(2, "2"), "");
}

TEST(CudaRanksRefuse, APlanOfLibraries) {
  ::setenv("SIMT_DEVICES", "2", 1);  // NOLINT(concurrency-mt-unsafe)
  const auto body = [](Communicator& all) {
    ChainConfig config;
    config.length = 16;
    config.classes = kClasses;
    config.filters = {4};
    config.dense = {};
    Network network(config, 1);
    const PartOfFrames data(40, 16, 8, false, &all);
    std::vector<int64_t> frames(40);
    std::iota(frames.begin(), frames.end(), int64_t{0});
    TrainerOptions options;
    options.ranks = &all;
    Trainer trainer(options, engine(1, &all));
    LayerPlan plan;
    plan.layer = "conv1";
    plan.backward_weight = Kernel::kCublas;
    trainer.set_plan({plan});
    trainer.train_epoch(network, data, frames, 1, 1, 1e-3);
    return Bits{1};
  };
  try {
    ProcessRanks::run(2, body);
    FAIL() << "expected an error";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("the plan of conv1 was timed on one device"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace fmp
