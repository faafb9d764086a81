// SPDX-License-Identifier: MIT
#include "framework/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace fmp {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that the generator's authors publish with their implementation.
TEST(RandomTest, PhiloxKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}, {UINT32_MAX, UINT32_MAX}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomTest, SequenceDependsOnSeedStreamAndIndex) {
  const auto first = [](Random random) { return random.next_u64(); };
  const uint64_t reference = first(Random(1, "a", 2));
  EXPECT_EQ(reference, first(Random(1, "a", 2)));
  EXPECT_NE(reference, first(Random(2, "a", 2)));
  EXPECT_NE(reference, first(Random(1ULL << 32 | 1, "a", 2)));
  EXPECT_NE(reference, first(Random(1, "b", 2)));
  EXPECT_NE(reference, first(Random(1, "a", 3)));
}

TEST(RandomTest, FloatsAreInTheirInterval) {
  Random random(7, "floats");
  double sum = 0, sum_squares = 0;
  constexpr int kDraws = 200000;
  for (int i = 0; i < kDraws; ++i) {
    const float value = random.uniform_float();
    ASSERT_GE(value, 0.0F);
    ASSERT_LT(value, 1.0F);
    const double wide = random.uniform(-3.0, 5.0);
    ASSERT_GE(wide, -3.0);
    ASSERT_LT(wide, 5.0);
    sum += wide;
    sum_squares += wide * wide;
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, 1.0, 0.03);                                        // 5 standard errors
  EXPECT_NEAR(sum_squares / kDraws - mean * mean, 64.0 / 12.0, 0.06);  // of U(-3, 5)
}

TEST(RandomTest, BoundedIntegersAreUniform) {
  for (const uint64_t bound : {1, 2, 3, 7, 10, 64, 100}) {
    Random random(11, "bounded", bound);
    std::vector<double> counts(bound, 0.0);
    const double expected = 2000;
    for (uint64_t i = 0; i < bound * 2000; ++i) {
      const uint64_t value = random.below(bound);
      ASSERT_LT(value, bound);
      ++counts[value];
    }
    for (const double count : counts) EXPECT_NEAR(count, expected, 5.5 * 45) << "bound " << bound;
  }
}

TEST(RandomTest, LargeBoundsUseAllBits) {
  Random random(13, "large");
  const uint64_t bound = (1ULL << 40) + 1;
  uint64_t seen = 0;
  for (int i = 0; i < 200; ++i) {
    const uint64_t value = random.below(bound);
    ASSERT_LT(value, bound);
    seen |= value;
  }
  EXPECT_EQ(seen & ((1ULL << 40) - 1), (1ULL << 40) - 1);
}

}  // namespace
}  // namespace fmp
