// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/error.h"

namespace fmp {
namespace {

// Frame i holds the codes i, i+1 (modulo 100), has label i % 3 and SNR i % 50. Reading frame
// `bad_frame` fails.
class CountingDataset final : public Dataset {
 public:
  explicit CountingDataset(int64_t size, int64_t bad_frame = -1)
      : size_(size), bad_frame_(bad_frame) {}
  int64_t size() const override { return size_; }
  int length() const override { return 1; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return static_cast<uint8_t>(frame % 3); }
  int16_t snr_db(int64_t frame) const override { return static_cast<int16_t>(frame % 50); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    ++reads;
    batch = {};
    batch.count = static_cast<int64_t>(frames.size());
    for (const int64_t frame : frames) {
      if (frame == bad_frame_) fail("frame {} is bad", frame);
      batch.codes.push_back(static_cast<int8_t>(frame % 100));
      batch.codes.push_back(static_cast<int8_t>((frame + 1) % 100));
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
    }
  }
  mutable std::atomic<int> reads{0};

 private:
  int64_t size_, bad_frame_;
  std::vector<std::string> names_{"a", "b", "c"};
};

std::vector<int64_t> ascending(int64_t count) {
  std::vector<int64_t> frames(static_cast<size_t>(count));
  std::iota(frames.begin(), frames.end(), 0);
  return frames;
}

TEST(BatchReaderTest, DeliversEveryFrameInOrder) {
  const CountingDataset data(1000);
  for (const int64_t count : {1, 7, 64, 65, 1000}) {
    for (const int batch_size : {1, 7, 64, 2000}) {
      const std::vector<int64_t> frames = shuffled(ascending(count), 5, 1);
      BatchReader reader(data, frames, batch_size);
      size_t position = 0;
      while (const FrameBatch* batch = reader.next()) {
        const size_t expected = std::min(static_cast<size_t>(batch_size), frames.size() - position);
        ASSERT_EQ(batch->count, static_cast<int64_t>(expected));
        ASSERT_EQ(batch->codes.size(), 2 * expected);
        for (size_t i = 0; i < expected; ++i, ++position) {
          ASSERT_EQ(batch->codes[2 * i], frames[position] % 100);
          ASSERT_EQ(batch->labels[i], frames[position] % 3);
          ASSERT_EQ(batch->snr_db[i], frames[position] % 50);
        }
      }
      EXPECT_EQ(position, frames.size());
      EXPECT_EQ(reader.next(), nullptr);
    }
  }
}

TEST(BatchReaderTest, NothingToRead) {
  const CountingDataset data(10);
  BatchReader reader(data, {}, 4);
  EXPECT_EQ(reader.next(), nullptr);
  EXPECT_EQ(data.reads, 0);
}

TEST(BatchReaderTest, ReadsAheadWhileTheCallerComputes) {
  const CountingDataset data(100);
  BatchReader reader(data, ascending(100), 10);
  ASSERT_NE(reader.next(), nullptr);
  // Without a further call three more batches are read, and no fourth one.
  while (data.reads < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(data.reads, 4);
}

TEST(BatchReaderTest, RethrowsAfterTheBatchesBeforeTheError) {
  const CountingDataset data(100, 25);
  BatchReader reader(data, ascending(100), 10);
  EXPECT_NE(reader.next(), nullptr);
  EXPECT_NE(reader.next(), nullptr);
  EXPECT_THROW(reader.next(), Error);
  EXPECT_THROW(reader.next(), Error);
}

TEST(BatchReaderTest, MayBeAbandonedAtAnyBatch) {
  const CountingDataset data(100, 55);
  for (int batches = 0; batches < 6; ++batches) {
    BatchReader reader(data, ascending(100), 10);
    for (int i = 0; i < batches - 1; ++i) reader.next();
  }
}

TEST(BatchReaderTest, RejectsBatchSizesBelowOne) {
  const CountingDataset data(10);
  EXPECT_THROW(BatchReader(data, ascending(10), 0), Error);
}

TEST(ShuffledTest, IsAPermutationThatDependsOnSeedAndEpoch) {
  const std::vector<int64_t> frames = ascending(1000);
  const std::vector<int64_t> order = shuffled(frames, 1, 0);
  EXPECT_EQ(order, shuffled(frames, 1, 0));
  EXPECT_NE(order, shuffled(frames, 1, 1));
  EXPECT_NE(order, shuffled(frames, 2, 0));
  EXPECT_NE(order, frames);
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, frames);
}

TEST(ShuffledTest, EveryFrameComesToEveryPlaceEquallyOften) {
  const std::vector<int64_t> frames = ascending(5);
  constexpr int kEpochs = 5000;
  std::vector<int> counts(25, 0);
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const std::vector<int64_t> order = shuffled(frames, 3, epoch);
    for (size_t place = 0; place < 5; ++place) {
      ++counts[place * 5 + static_cast<size_t>(order[place])];
    }
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);  // 5 standard deviations
}

TEST(EpochOrderTest, EpochsOfAPassShareItsFramesEvenly) {
  const std::vector<int64_t> frames = ascending(103);
  EXPECT_EQ(epoch_order(frames, 0, 7, 5), shuffled(frames, 7, 5));
  EXPECT_EQ(epoch_order(frames, 103, 7, 5), shuffled(frames, 7, 5));
  for (const uint64_t pass : {0, 1, 6}) {
    std::vector<int64_t> joined;
    for (uint64_t part = 0; part < 4; ++part) {  // of at most 30: 25, 26, 26, 26
      const std::vector<int64_t> order = epoch_order(frames, 30, 7, pass * 4 + part);
      EXPECT_EQ(order.size(), part == 0 ? 25U : 26U);
      joined.insert(joined.end(), order.begin(), order.end());
    }
    EXPECT_EQ(joined, shuffled(frames, 7, pass));
  }
}

}  // namespace
}  // namespace fmp
