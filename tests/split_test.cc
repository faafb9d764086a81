// SPDX-License-Identifier: MIT
#include "framework/data/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "framework/error.h"

namespace fmp {
namespace {

// tests/fixtures/split.json, which numpy wrote.
nlohmann::json numpy_cases() {
  std::ifstream file(std::string(FMP_FIXTURES_DIR) + "/split.json");
  return nlohmann::json::parse(file).at("cases");
}

std::vector<Block> published_blocks(int64_t blocks, int64_t size) {
  std::mt19937 engine(kSplitSeed);
  std::vector<Block> result;
  for (int64_t i = 0; i < blocks; ++i) {
    Block block(static_cast<size_t>(size));
    std::iota(block.begin(), block.end(), i * size);
    numpy_shuffle(block, engine);
    result.push_back(block);
  }
  return result;
}

uint64_t checksum(const std::vector<int64_t>& values) {
  uint64_t sum = 0, k = 0;
  for (const int64_t value : values) sum += ++k * static_cast<uint64_t>(value);
  return sum;
}

std::vector<int64_t> concatenated(const std::vector<Block>& blocks) {
  std::vector<int64_t> all;
  for (const Block& block : blocks) all.insert(all.end(), block.begin(), block.end());
  return all;
}

std::vector<int64_t> beginning(const Block& block, size_t count) {
  return {block.begin(), block.begin() + static_cast<std::ptrdiff_t>(count)};
}

TEST(SplitTest, ShufflesAndSplitsAsNumpyDoes) {
  const nlohmann::json cases = numpy_cases();
  ASSERT_GE(cases.size(), 5U);
  for (const auto& expected : cases) {
    const int64_t size = expected.at("frames_per_block");
    SCOPED_TRACE("frames per block " + std::to_string(size));
    const auto blocks = published_blocks(expected.at("blocks"), size);
    const std::vector<int64_t> first = expected.at("first_block"), last = expected.at("last_block");
    EXPECT_EQ(beginning(blocks.front(), first.size()), first);
    EXPECT_EQ(beginning(blocks.back(), last.size()), last);
    EXPECT_EQ(checksum(concatenated(blocks)), expected.at("checksum").get<uint64_t>());

    EXPECT_EQ(test_count(size), expected.at("test_per_block").get<int64_t>());
    const Split split = make_split(blocks, 0);
    EXPECT_EQ(checksum(split.test), expected.at("test_checksum").get<uint64_t>());
    EXPECT_EQ(checksum(split.train), expected.at("train_checksum").get<uint64_t>());
    EXPECT_TRUE(split.validation.empty());
  }
}

TEST(SplitTest, ValidationIsTheEndOfEachBlocksTrainingFrames) {
  const auto blocks = published_blocks(3, 41);  // 5 test, 36 others, of which ceil(3.6) validation
  const Split whole = make_split(blocks, 0), split = make_split(blocks, 0.1);
  EXPECT_EQ(split.test, whole.test);
  EXPECT_EQ(split.validation.size(), 3U * 4U);
  for (const Block& block : blocks) {
    for (size_t i = 37; i < 41; ++i) {
      EXPECT_TRUE(std::binary_search(split.validation.begin(), split.validation.end(), block[i]));
    }
  }
  std::vector<int64_t> rest;
  std::merge(split.train.begin(), split.train.end(), split.validation.begin(),
             split.validation.end(), std::back_inserter(rest));
  EXPECT_EQ(rest, whole.train);
}

TEST(SplitTest, SomethingIsAlwaysLeftToTrainOn) {
  const Split two = make_split(published_blocks(4, 2), 0.5);  // one test frame, one other
  EXPECT_EQ(two.train.size(), 4U);
  EXPECT_TRUE(two.validation.empty());
  const Split three = make_split(published_blocks(4, 3), 0.99);
  EXPECT_EQ(three.train.size(), 4U);
  EXPECT_EQ(three.validation.size(), 4U);
  EXPECT_EQ(make_split(published_blocks(4, 1), 0.1).test.size(), 4U);
  EXPECT_TRUE(make_split({}, 0.1).test.empty());
}

TEST(SplitTest, ShortenedBlocksKeepTestAndTrainApart) {
  const Block block = published_blocks(1, 100).front();
  const std::set<int64_t> test(block.begin(), block.begin() + 10);
  for (int64_t count = 1; count <= 100; ++count) {
    const Block part = shortened(block, count);
    ASSERT_EQ(part.size(), static_cast<size_t>(count));
    EXPECT_EQ(std::set<int64_t>(part.begin(), part.end()).size(), part.size());
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(test.contains(part[static_cast<size_t>(i)]), i < test_count(count));
    }
  }
  EXPECT_EQ(shortened(block, 100), block);
  EXPECT_THROW(shortened(block, 0), Error);
  EXPECT_THROW(shortened(block, 101), Error);
}

TEST(SplitTest, RejectsFractionsThatLeaveNothing) {
  const auto blocks = published_blocks(1, 10);
  EXPECT_THROW(make_split(blocks, 1.0), UsageError);
  EXPECT_THROW(make_split(blocks, -0.1), UsageError);
  EXPECT_THROW(make_split(blocks, std::nan("")), UsageError);
}

}  // namespace
}  // namespace fmp
