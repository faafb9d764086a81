// SPDX-License-Identifier: MIT
#include "framework/inference/teacher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "framework/data/augmented_frames.h"
#include "framework/error.h"
#include "framework/training/trainer.h"
#include "tests/integer_fixture.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 11;
constexpr int kClasses = 4, kLength = 24;
constexpr int kFloats = 32;

ChainConfig config_with(int bits) {
  ChainConfig config;
  config.length = kLength;
  config.classes = kClasses;
  config.filters = {6, 5};
  config.dense = {7};
  config.input_bits = bits;
  config.weight_bits = config.act_bits = {bits};
  return config;
}

// Frames in memory, quantized to `bits` or as floats.
class MemoryDataset final : public Dataset {
 public:
  MemoryDataset(int64_t size, int bits) : bits_(bits) {
    ChainConfig config = config_with(bits);
    config.input_bits = 8;
    batch_ = random_frames(config, size, kSeed);
  }
  int64_t size() const override { return batch_.count; }
  int length() const override { return kLength; }
  const std::vector<std::string>& class_names() const override { return names; }
  uint8_t label(int64_t frame) const override { return batch_.labels[static_cast<size_t>(frame)]; }
  int16_t snr_db(int64_t) const override { return 0; }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    batch = {};
    batch.count = static_cast<int64_t>(frames.size());
    for (const int64_t frame : frames) {
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(0);
      for (int64_t i = 0; i < 2L * kLength; ++i) {
        const int8_t code = batch_.codes[static_cast<size_t>(frame * 2 * kLength + i)];
        if (bits_ == kFloats) {
          batch.values.push_back(static_cast<float>(code) / 64);
        } else {  // the floor: any code will do
          batch.codes.push_back(static_cast<int8_t>(code >> (8 - bits_)));
        }
      }
    }
  }

  std::vector<std::string> names{"A", "B", "C", "D"};

 private:
  int bits_;
  FrameBatch batch_;
};

std::vector<int64_t> all_of(const Dataset& data) {
  std::vector<int64_t> frames(static_cast<size_t>(data.size()));
  std::iota(frames.begin(), frames.end(), 0);
  return frames;
}

// softmax(logits / temperature) of the float network on these frames.
std::vector<double> expected_shares(const Network& teacher, const FrameBatch& batch,
                                    double temperature) {
  Trainer trainer{TrainerOptions()};
  const std::vector<float> logits = trainer.logits(teacher, batch);
  std::vector<double> shares;
  for (size_t first = 0; first < logits.size(); first += kClasses) {
    double sum = 0;
    for (size_t c = 0; c < kClasses; ++c)
      sum += std::exp(static_cast<double>(logits[first + c]) / temperature);
    for (size_t c = 0; c < kClasses; ++c)
      shares.push_back(std::exp(static_cast<double>(logits[first + c]) / temperature) / sum);
  }
  return shares;
}

void expect_shares(const FrameBatch& batch, const std::vector<double>& expected) {
  ASSERT_EQ(batch.soft_targets.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(static_cast<double>(batch.soft_targets[i]), expected[i], 2e-6) << i;
}

TEST(TeacherTest, SaysWhatTheFloatNetworkSays) {
  const MemoryDataset data(70, 4);
  const Network teacher = random_network(config_with(4), 0.6, kSeed);
  FrameBatch plain, taught;
  data.read(all_of(data), plain);
  for (const double temperature : {1.0, 3.0}) {
    std::vector<float> of_one_thread;
    for (const int threads : {1, 3}) {
      const TaughtFrames frames(data, InputQuantizer::of(4), teacher, temperature, threads, false);
      frames.read(all_of(data), taught);
      EXPECT_EQ(taught.codes, plain.codes);
      EXPECT_EQ(taught.labels, plain.labels);
      expect_shares(taught, expected_shares(teacher, plain, temperature));
      if (threads == 1) of_one_thread = taught.soft_targets;
      EXPECT_EQ(taught.soft_targets, of_one_thread);
    }
  }
}

// The teacher's quantizer of the input may be another one.
TEST(TeacherTest, ReadsTheFramesOfAnotherQuantization) {
  const Network teacher = random_network(config_with(6), 0.8, kSeed);
  FrameBatch taught, seen;
  const MemoryDataset coarse(40, 4);
  coarse.read(all_of(coarse), seen);
  for (int8_t& code : seen.codes) code = static_cast<int8_t>(code * 4);  // the same value in 6 bits
  TaughtFrames(coarse, InputQuantizer::of(4), teacher, 2, 2, false).read(all_of(coarse), taught);
  expect_shares(taught, expected_shares(teacher, seen, 2));

  const MemoryDataset floats(40, kFloats);
  floats.read(all_of(floats), seen);
  seen.codes.resize(seen.values.size());
  quantize_input(seen.values, 6, seen.codes.data());
  seen.values.clear();
  TaughtFrames(floats, InputQuantizer::of(kFloats), teacher, 2, 2, false)
      .read(all_of(floats), taught);
  expect_shares(taught, expected_shares(teacher, seen, 2));
}

// Of frames that stay, in any order and number, with some of them seen before.
TEST(TeacherTest, RepeatsWhatItSaid) {
  const MemoryDataset data(40, 4);
  const Network teacher = random_network(config_with(4), 0.6, kSeed);
  const TaughtFrames asked(data, InputQuantizer::of(4), teacher, 2, 1, false),
      kept(data, InputQuantizer::of(4), teacher, 2, 1, true);
  FrameBatch expected, actual;
  for (const std::vector<int64_t>& frames :
       {std::vector<int64_t>{7, 3, 39}, {3, 39}, {3, 20, 7}, {20, 7}}) {
    asked.read(frames, expected);
    kept.read(frames, actual);
    EXPECT_EQ(actual.soft_targets, expected.soft_targets);
    EXPECT_EQ(actual.codes, expected.codes);
  }
}

TEST(TeacherTest, SeesAugmentedFrames) {
  const MemoryDataset data(40, 4);
  const Network teacher = random_network(config_with(4), 0.6, kSeed);
  AugmentedFrames augmented(data, InputQuantizer::of(4), {true, true, true}, kSeed, 1);
  const TaughtFrames frames(augmented, InputQuantizer::of(4), teacher, 2, 1, false);
  FrameBatch changed, taught;
  std::vector<float> before;
  for (const uint64_t epoch : {1, 2}) {
    augmented.set_epoch(epoch);
    augmented.read(all_of(data), changed);
    frames.read(all_of(data), taught);
    EXPECT_EQ(taught.codes, changed.codes);
    expect_shares(taught, expected_shares(teacher, changed, 2));
    EXPECT_NE(taught.soft_targets, before);
    before = taught.soft_targets;
  }
}

TEST(TeacherTest, RefusesNetworksForOtherFrames) {
  MemoryDataset data(3, 4);
  const auto error = [&](const Network& teacher) {
    try {
      const TaughtFrames frames(data, InputQuantizer::of(4), teacher, 2, 1, true);
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  EXPECT_EQ(error(Network(config_with(4), kSeed)), "");
  ChainConfig longer = config_with(4);
  longer.length = 2 * kLength;
  EXPECT_NE(error(Network(longer, kSeed)).find("2 x 48 samples"), std::string::npos);
  ChainConfig fewer = config_with(4);
  fewer.classes = 3;
  EXPECT_NE(error(Network(fewer, kSeed)).find("3 classes"), std::string::npos);
  Network others(config_with(4), kSeed);
  others.class_names = {"A", "B", "C", "E"};
  EXPECT_NE(error(others).find("other classes"), std::string::npos);
  EXPECT_NE(error(Network(config_with(kFloats), kSeed)), "");
}

}  // namespace
}  // namespace fmp
