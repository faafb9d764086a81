// SPDX-License-Identifier: MIT
#include "framework/data/held_frames.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "framework/data/frame_store.h"
#include "framework/error.h"

namespace fmp {
namespace {

constexpr int kLength = 3;
constexpr int kFloats = 32;

// Value v of frame i is 10 * i + v (modulo 100); counts the frames that are asked for.
class CountedDataset final : public Dataset {
 public:
  CountedDataset(int64_t size, int input_bits, std::atomic<int64_t>& asked)
      : size_(size), as_codes_(input_bits != kFloats), asked_(asked) {}
  int64_t size() const override { return size_; }
  int length() const override { return kLength; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return static_cast<uint8_t>(frame % 2); }
  int16_t snr_db(int64_t frame) const override { return static_cast<int16_t>(-frame); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    asked_ += static_cast<int64_t>(frames.size());
    batch = {};
    batch.count = static_cast<int64_t>(frames.size());
    for (const int64_t frame : frames) {
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
      for (int v = 0; v < 2 * kLength; ++v) {
        const int value = static_cast<int>((10 * frame + v) % 100);
        if (as_codes_) {
          batch.codes.push_back(static_cast<int8_t>(value));
        } else {
          batch.values.push_back(static_cast<float>(value));
        }
      }
    }
  }

 private:
  int64_t size_;
  bool as_codes_;
  std::atomic<int64_t>& asked_;
  std::vector<std::string> names_{"a", "b"};
};

std::unique_ptr<FrameStore> store_for(size_t frames, int input_bits, bool file) {
  const int64_t bytes = stored_frame_bytes(2 * kLength, input_bits);
  return file ? make_file_store(testing::TempDir(), static_cast<int64_t>(frames), bytes)
              : make_memory_store(static_cast<int64_t>(frames), bytes);
}

void expect_equal(const FrameBatch& a, const FrameBatch& b) {
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.values, b.values);
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_EQ(a.snr_db, b.snr_db);
}

TEST(HeldFramesTest, GivesTheFramesOfTheSetAndAsksForHeldOnesOnce) {
  constexpr int64_t kSize = 1500;
  const std::vector<int64_t> order = [] {
    std::vector<int64_t> all(kSize);
    std::iota(all.begin(), all.end(), 0);
    return shuffled(all, 4, 0);
  }();
  const std::vector<int64_t> held(order.begin(), order.begin() + 1000);
  const std::vector<int64_t> others(order.begin() + 1000, order.end());
  for (const int input_bits : {4, kFloats}) {
    for (const int threads : {1, 3}) {
      for (const bool file : {false, true}) {
        std::atomic<int64_t> asked = 0, asked_before = 0;
        const CountedDataset set(kSize, input_bits, asked_before);
        const HeldFrames some(std::make_unique<CountedDataset>(kSize, input_bits, asked), held,
                              input_bits, store_for(held.size(), input_bits, file), threads);
        EXPECT_EQ(asked, 1000);
        EXPECT_EQ(some.size(), kSize);
        EXPECT_EQ(some.length(), kLength);
        EXPECT_EQ(some.class_names(), set.class_names());
        FrameBatch expected, found;
        const auto compare = [&](const std::vector<int64_t>& frames) {
          set.read(frames, expected);
          some.read(frames, found);
          expect_equal(found, expected);
        };
        compare(shuffled(held, 1, 1));
        compare({held[3], held[3]});
        compare({});
        EXPECT_EQ(asked, 1000);
        compare(others);
        EXPECT_EQ(asked, 1500);
        compare(shuffled(order, 2, 2));  // both kinds
        EXPECT_EQ(asked, 2000);
      }
    }
  }
}

TEST(HeldFramesTest, TellsOfItsProgress) {
  std::atomic<int64_t> asked = 0;
  std::vector<int64_t> held(700);
  std::iota(held.begin(), held.end(), 0);
  std::vector<int64_t> done;
  const HeldFrames all(std::make_unique<CountedDataset>(700, 8, asked), held, 8,
                       store_for(700, 8, false), 2, [&](int64_t frames, int64_t total) {
                         EXPECT_EQ(total, 700);
                         done.push_back(frames);
                       });
  EXPECT_TRUE(std::ranges::is_sorted(done));
  EXPECT_EQ(done.back(), 700);
}

TEST(HeldFramesTest, RejectsFramesThatAreNotThere) {
  std::atomic<int64_t> asked = 0;
  const std::vector<int64_t> held{1, 2};
  const HeldFrames two(std::make_unique<CountedDataset>(5, 8, asked), held, 8,
                       store_for(2, 8, false), 1);
  FrameBatch batch;
  EXPECT_THROW(two.read(std::vector<int64_t>{1, 5}, batch), Error);
  EXPECT_THROW(two.read(std::vector<int64_t>{-1}, batch), Error);
  // The set's frames are codes, the store's are to be floats.
  EXPECT_THROW(HeldFrames(std::make_unique<CountedDataset>(5, 8, asked), held, kFloats,
                          store_for(2, kFloats, false), 1),
               Error);
}

}  // namespace
}  // namespace fmp
