// SPDX-License-Identifier: MIT
// Training by several ranks gives the bits of one process.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "framework/network/network.h"
#include "framework/training/trainer.h"
#include "tests/ranks_training.h"
#include "tests/thread_ranks.h"

namespace fmp {
namespace {

class Ranks : public ::testing::TestWithParam<RanksCase> {};

TEST_P(Ranks, GiveTheBitsOfOneProcess) {
  const std::vector<uint32_t> alone = trained(GetParam(), 1, nullptr, make_cpu_engine);
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int threads = 1; threads <= 2; ++threads) {
      ThreadRanks::run(ranks, [&](Communicator& communicator) {
        EXPECT_TRUE(trained(GetParam(), threads, &communicator, make_cpu_engine) == alone)
            << "rank " << communicator.rank() << " of " << ranks << ", " << threads << " threads";
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Ranks,
    ::testing::Values(
        RanksCase{.name = "Quantized"},
        RanksCase{.name = "Float", .bits = kFloatBits, .input_bits = kFloatBits},
        // Groups of several tiles, and ranks without any in the last batch.
        RanksCase{.name = "ManyTiles", .filters = {3, 4}, .frames = 1'110, .batch = 1'100},
        RanksCase{.name = "Sparse", .bits = 4, .sparse_threshold = 1, .pruned = true},
        RanksCase{
            .name = "Taught", .bits = 3, .input_bits = 4, .statistic_steps = 300, .soft = true},
        // Thirty-two channels in a row: other kernels than those of few.
        RanksCase{.name = "Wide", .filters = {32, 32, 32}, .dense = {}, .frames = 90, .batch = 64}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Ranks, ThatDisagreeAreAnError) {
  RanksCase test{.name = ""};
  test.frames = 40;
  const auto differing = [&](Communicator& communicator) {
    ChainConfig config;
    config.length = 16;
    config.classes = kClasses;
    config.filters = {4};
    config.dense = {};
    Network network(config, static_cast<uint64_t>(communicator.rank()));  // should be the same
    const PartOfFrames data(40, 16, 8, false, &communicator);
    std::vector<int64_t> all(40);
    std::iota(all.begin(), all.end(), int64_t{0});
    TrainerOptions options;
    options.ranks = &communicator;
    options.threads = 1;
    Trainer trainer(options);
    trainer.train_epoch(network, data, all, 1, 1, 1e-3);
  };
  try {
    ThreadRanks::run(2, differing);
    FAIL() << "expected an error";
  } catch (const std::exception& error) {
    EXPECT_STREQ(error.what(), "after step 1 rank 1 has another network than rank 0");
  }
}

TEST(Ranks, ShareABatchInGroupsOfTiles) {
  for (const int ranks : {1, 2, 3, 7, 64, 70}) {
    ThreadRanks::run(ranks, [&](Communicator& communicator) {
      if (communicator.rank() != 0) return;
      for (const int64_t frames : {1, 16, 17, 250, 1'024, 1'025, 5'000}) {
        int64_t next_frame = 0, next_group = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const BatchShare share = BatchShare::of(frames, rank, communicator);
          EXPECT_EQ(share.first_group, next_group);
          next_group += share.groups;
          if (share.frames == 0) continue;
          EXPECT_EQ(share.first_frame(), next_frame);
          next_frame += share.frames;
        }
        EXPECT_EQ(next_frame, frames);
        EXPECT_EQ(next_group, std::min<int64_t>(64, (frames + 15) / 16));
      }
    });
  }
}

}  // namespace
}  // namespace fmp
