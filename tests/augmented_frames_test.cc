// SPDX-License-Identifier: MIT
#include "framework/data/augmented_frames.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "framework/error.h"

namespace fmp {
namespace {

using Complex = std::complex<double>;
constexpr int kFloats = 32;
constexpr Augmentation kAll{true, true, true};
const Augmentation kRotate{.rotate = true};
const Augmentation kShift{.shift = true};
const Augmentation kSwap{.swap = true};

// Frames in memory, codes of `bits` bits or floats, in a batch that was used before.
class MemoryFrames final : public Dataset {
 public:
  MemoryFrames(int length, int bits, std::vector<std::vector<float>> frames)
      : length_(length), bits_(bits), frames_(std::move(frames)) {}
  // Random ones.
  MemoryFrames(int64_t size, int length, int bits, unsigned seed) : length_(length), bits_(bits) {
    std::mt19937 engine(seed);
    const int half = 1 << (std::min(bits, 8) - 1);
    std::uniform_int_distribution<int> code(-half, half - 1);
    std::normal_distribution<float> value;
    for (int64_t i = 0; i < size; ++i) {
      std::vector<float>& frame = frames_.emplace_back();
      for (int k = 0; k < 2 * length; ++k)
        frame.push_back(bits == kFloats ? value(engine) : static_cast<float>(code(engine)));
    }
  }

  int64_t size() const override { return std::ssize(frames_); }
  int length() const override { return length_; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return static_cast<uint8_t>(frame % 3); }
  int16_t snr_db(int64_t frame) const override { return static_cast<int16_t>(-frame); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    batch.count = std::ssize(frames);
    batch.codes.clear();
    batch.values.clear();
    batch.labels.clear();
    batch.snr_db.clear();
    for (const int64_t frame : frames) {
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
      for (const float value : frames_[static_cast<size_t>(frame)]) {
        if (bits_ == kFloats) {
          batch.values.push_back(value);
        } else {
          batch.codes.push_back(static_cast<int8_t>(value));
        }
      }
    }
  }

 private:
  int length_, bits_;
  std::vector<std::vector<float>> frames_;
  std::vector<std::string> names_{"a", "b", "c"};
};

std::vector<int64_t> all_of(const Dataset& data) {
  std::vector<int64_t> frames(static_cast<size_t>(data.size()));
  std::iota(frames.begin(), frames.end(), 0);
  return frames;
}

std::vector<double> numbers(const FrameBatch& batch) {
  if (!batch.values.empty()) return {batch.values.begin(), batch.values.end()};
  return {batch.codes.begin(), batch.codes.end()};
}

// Frame k of a batch.
std::vector<Complex> frame_of(const FrameBatch& batch, size_t k, int length) {
  const std::vector<double> all = numbers(batch);
  std::vector<Complex> frame;
  for (size_t n = 0; n < static_cast<size_t>(length); ++n) {
    const size_t at = 2 * (k * static_cast<size_t>(length) + n);
    frame.emplace_back(all[at], all[at + 1]);
  }
  return frame;
}

AugmentedFrames augmented(const Dataset& data, int bits, const Augmentation& augmentation,
                          uint64_t seed, uint64_t epoch, int threads = 1) {
  AugmentedFrames frames(data, InputQuantizer::of(bits), augmentation, seed, threads);
  frames.set_epoch(epoch);
  return frames;
}

FrameBatch read(const Dataset& data, const std::vector<int64_t>& frames) {
  FrameBatch batch;
  data.read(frames, batch);
  return batch;
}

// The place where `frame` shifted would give `result`, or -1.
int shift_between(const std::vector<Complex>& frame, const std::vector<Complex>& result) {
  for (size_t later = 0; later < frame.size(); ++later) {
    std::vector<Complex> shifted;
    for (size_t n = 0; n < frame.size(); ++n)
      shifted.push_back(frame[(n + frame.size() - later) % frame.size()]);
    if (shifted == result) return static_cast<int>(later);
  }
  return -1;
}

TEST(AugmentedFramesTest, MakesWhatThePythonScriptMakes) {
  std::ifstream file(std::string(FMP_FIXTURES_DIR) + "/augmentation.json");
  const nlohmann::json fixture = nlohmann::json::parse(file);
  const int length = fixture.at("length");
  const auto chosen = fixture.at("frames").get<std::vector<int64_t>>();
  EXPECT_EQ(fixture.at("cases").size(), 20U);
  for (const nlohmann::json& c : fixture.at("cases")) {
    SCOPED_TRACE(c.at("bits").dump() + c.at("kinds").dump());
    const int bits = c.at("bits");
    const MemoryFrames data(
        length, bits,
        fixture.at("sets").at(std::to_string(bits)).get<std::vector<std::vector<float>>>());
    const Augmentation augmentation =
        augmentation_of(c.at("kinds").get<std::vector<std::string>>());
    std::vector<std::vector<double>> results = c.at("results");
    auto expected = results.begin();
    for (const uint64_t epoch : fixture.at("epochs").get<std::vector<uint64_t>>()) {
      const FrameBatch batch =
          read(augmented(data, bits, augmentation, c.at("seed"), epoch), chosen);
      EXPECT_EQ(batch.codes.empty(), bits == kFloats);
      const std::vector<double> found = numbers(batch);
      for (size_t k = 0; k < chosen.size(); ++k, ++expected) {
        ASSERT_EQ(std::ssize(*expected), 2 * length);
        for (size_t v = 0; v < expected->size(); ++v)
          ASSERT_NEAR(found[k * expected->size() + v], (*expected)[v], bits == kFloats ? 1e-6 : 0);
      }
    }
    EXPECT_EQ(expected, results.end());
  }
}

// The angle is told by the floats: the codes of frames with the same number turn by the same.
TEST(AugmentedFramesTest, ARotationTurnsRoundsAndClamps) {
  constexpr int kLength = 37;
  constexpr int64_t kSize = 40;
  const MemoryFrames floats(kSize, kLength, kFloats, 1);
  const std::vector<int64_t> frames = all_of(floats);
  const FrameBatch plain = read(floats, frames),
                   turned = read(augmented(floats, kFloats, kRotate, 7, 3), frames);
  std::vector<Complex> factors;
  for (size_t k = 0; k < static_cast<size_t>(kSize); ++k) {
    const std::vector<Complex> before = frame_of(plain, k, kLength),
                               after = frame_of(turned, k, kLength);
    Complex product = 0;
    for (size_t n = 0; n < before.size(); ++n) product += after[n] * std::conj(before[n]);
    factors.push_back(product / std::abs(product));
    for (size_t n = 0; n < before.size(); ++n) {
      EXPECT_NEAR(std::abs(after[n] - before[n] * factors[k]), 0, 1e-6);
      EXPECT_NEAR(std::abs(after[n]), std::abs(before[n]), 1e-6);
    }
  }
  for (const int bits : {2, 3, 4, 8}) {
    const MemoryFrames codes(kSize, kLength, bits, 2);
    const FrameBatch before = read(codes, frames),
                     after = read(augmented(codes, bits, kRotate, 7, 3), frames);
    const double half = 1 << (bits - 1);
    int64_t moved = 0, at_the_top = 0, at_the_bottom = 0;
    for (size_t k = 0; k < factors.size(); ++k) {
      const std::vector<Complex> from = frame_of(before, k, kLength),
                                 to = frame_of(after, k, kLength);
      for (size_t n = 0; n < from.size(); ++n) {
        const Complex exact = from[n] * factors[k];
        for (const auto& [wanted, found] :
             {std::pair(exact.real(), to[n].real()), std::pair(exact.imag(), to[n].imag())}) {
          EXPECT_LE(std::abs(found - std::clamp(wanted, -half, half - 1)), 0.5 + 1e-4);
          at_the_top += wanted > half && found == half - 1;
          at_the_bottom += wanted < -half - 1 && found == -half;
        }
        moved += from[n] != to[n];
      }
    }
    EXPECT_GT(moved, kSize * kLength / 2) << bits;
    if (bits > 2) {
      EXPECT_GT(at_the_top, 0) << bits;
      EXPECT_GT(at_the_bottom, 0) << bits;
    }
  }
}

TEST(AugmentedFramesTest, AShiftMovesAllSamplesAlike) {
  constexpr int kLength = 29;
  for (const int bits : {4, kFloats}) {
    const MemoryFrames data(300, kLength, bits, 3);
    const FrameBatch plain = read(data, all_of(data)),
                     shifted = read(augmented(data, bits, kShift, 5, 1), all_of(data));
    std::vector<int> seen(kLength, 0);
    for (size_t k = 0; k < 300; ++k) {
      const int later = shift_between(frame_of(plain, k, kLength), frame_of(shifted, k, kLength));
      ASSERT_GE(later, 0) << "no shift of frame " << k;
      ++seen[static_cast<size_t>(later)];
    }
    EXPECT_GE(std::ranges::count_if(seen, [](int count) { return count > 0; }), kLength - 1);
  }
}

TEST(AugmentedFramesTest, HalfOfTheFramesAreSwappedAndTwiceIsNothing) {
  constexpr int kLength = 11;
  constexpr size_t kSize = 1000;
  for (const int bits : {8, kFloats}) {
    const MemoryFrames data(kSize, kLength, bits, 4);
    const AugmentedFrames once = augmented(data, bits, kSwap, 9, 2),
                          twice = augmented(once, bits, kSwap, 9, 2);
    const FrameBatch plain = read(data, all_of(data)), swapped = read(once, all_of(data)),
                     back = read(twice, all_of(data));
    int count = 0;
    for (size_t k = 0; k < kSize; ++k) {
      const std::vector<Complex> before = frame_of(plain, k, kLength),
                                 after = frame_of(swapped, k, kLength);
      if (after == before) continue;
      ++count;
      for (size_t n = 0; n < before.size(); ++n)
        ASSERT_EQ(after[n], Complex(before[n].imag(), before[n].real()));
    }
    EXPECT_NEAR(count, 500, 80);  // 5 standard deviations
    EXPECT_EQ(numbers(back), numbers(plain));
  }
}

// Whatever the batches, their order and the threads; labels and SNRs are the set's.
TEST(AugmentedFramesTest, AFrameIsTheSameInAnyBatch) {
  constexpr int kLength = 16;
  for (const int bits : {4, kFloats}) {
    const MemoryFrames data(200, kLength, bits, 5);
    const AugmentedFrames one = augmented(data, bits, kAll, 2, 8),
                          three = augmented(data, bits, kAll, 2, 8, 3);
    EXPECT_EQ(one.size(), 200);
    EXPECT_EQ(one.length(), kLength);
    EXPECT_EQ(one.class_names(), data.class_names());
    const FrameBatch all = read(one, all_of(data));
    EXPECT_NE(numbers(all), numbers(read(data, all_of(data))));
    EXPECT_EQ(all.labels, read(data, all_of(data)).labels);
    EXPECT_EQ(all.snr_db, read(data, all_of(data)).snr_db);
    const std::vector<int64_t> order = shuffled(all_of(data), 6, 0);
    FrameBatch batch;  // whose buffers are reused
    for (const size_t size : {size_t{1}, size_t{7}, size_t{150}}) {
      for (size_t first = 0; first < order.size(); first += size) {
        const std::vector<int64_t> frames(
            order.begin() + static_cast<ptrdiff_t>(first),
            order.begin() + static_cast<ptrdiff_t>(std::min(order.size(), first + size)));
        three.read(frames, batch);
        ASSERT_EQ(batch.count, std::ssize(frames));
        for (size_t k = 0; k < frames.size(); ++k) {
          const auto frame = static_cast<size_t>(frames[k]);
          ASSERT_EQ(frame_of(batch, k, kLength), frame_of(all, frame, kLength));
          ASSERT_EQ(batch.labels[k], all.labels[frame]);
          ASSERT_EQ(batch.snr_db[k], all.snr_db[frame]);
        }
      }
    }
  }
}

TEST(AugmentedFramesTest, OtherEpochsSeedsAndFramesAreOtherChanges) {
  constexpr int kLength = 64;
  // All frames are the same.
  std::vector<float> frame;
  for (int k = 0; k < 2 * kLength; ++k) frame.push_back(static_cast<float>(k * 37 % 251) - 125);
  const MemoryFrames data(kLength, 8, std::vector<std::vector<float>>(50, frame));
  for (const Augmentation& kind : {kRotate, kShift, kAll}) {
    std::vector<std::vector<double>> seen;
    for (const auto& [seed, epoch] : {std::pair(1, 0), std::pair(1, 1), std::pair(2, 0)}) {
      const AugmentedFrames frames =
          augmented(data, 8, kind, static_cast<uint64_t>(seed), static_cast<uint64_t>(epoch));
      for (int64_t k = 0; k < data.size(); ++k) seen.push_back(numbers(read(frames, {k})));
    }
    std::ranges::sort(seen);
    const auto distinct = std::distance(seen.begin(), std::unique(seen.begin(), seen.end()));
    EXPECT_GE(distinct, kind == kShift ? 50 : 140);  // 64 shifts, 150 frames
  }
  AugmentedFrames frames = augmented(data, 8, kAll, 1, 4);
  const std::vector<double> fourth = numbers(read(frames, all_of(data)));
  frames.set_epoch(5);
  EXPECT_NE(numbers(read(frames, all_of(data))), fourth);
  frames.set_epoch(4);
  EXPECT_EQ(numbers(read(frames, all_of(data))), fourth);
}

// A second kind leaves what the first one draws as it is.
TEST(AugmentedFramesTest, KindsDrawFromStreamsOfTheirOwn) {
  constexpr int kLength = 20;
  const MemoryFrames data(60, kLength, 8, 6);
  const AugmentedFrames shifted = augmented(data, 8, kShift, 3, 1),
                        then_swapped = augmented(shifted, 8, kSwap, 3, 1),
                        then_rotated = augmented(then_swapped, 8, kRotate, 3, 1);
  EXPECT_EQ(read(augmented(data, 8, kAll, 3, 1), all_of(data)).codes,
            read(then_rotated, all_of(data)).codes);
  EXPECT_EQ(read(augmented(data, 8, {.shift = true, .swap = true}, 3, 1), all_of(data)).codes,
            read(then_swapped, all_of(data)).codes);
}

// Twelve parts of the circle, over frames and over epochs; the seed is another one in every run.
TEST(AugmentedFramesTest, AnglesAreUniform) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << '\n';
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr int kDraws = 6000, kParts = 12;
  const MemoryFrames data(1, kFloats, std::vector<std::vector<float>>(kDraws, {1, 0}));
  const std::vector<int64_t> frames = all_of(data);
  AugmentedFrames turned(data, InputQuantizer::of(kFloats), kRotate, seed, 2);
  const auto expect_uniform = [&](const auto& angle_of, const char* over) {
    std::array<int, kParts> counts{};
    for (int draw = 0; draw < kDraws; ++draw) {
      const double turns = std::arg(angle_of(draw)) / (2 * std::numbers::pi) + 0.5;
      ++counts[static_cast<size_t>(std::min(turns * kParts, kParts - 1.0))];
    }
    // 6.5 standard deviations of each: wrong in one of 10^9 runs.
    for (const int count : counts) EXPECT_NEAR(count, kDraws / kParts, 6.5 * 21.5) << over;
  };
  const FrameBatch batch = read(turned, frames);
  expect_uniform([&](int draw) { return frame_of(batch, static_cast<size_t>(draw), 1)[0]; },
                 "frames");
  expect_uniform(
      [&](int draw) {
        turned.set_epoch(static_cast<uint64_t>(draw));
        return frame_of(read(turned, {17}), 0, 1)[0];
      },
      "epochs");
}

TEST(AugmentedFramesTest, NamesAreReadInAnyOrder) {
  using Names = std::vector<std::string>;
  EXPECT_FALSE(augmentation_of(Names{}).any());
  EXPECT_EQ(augmentation_of(Names{"shift"}), kShift);
  EXPECT_EQ(augmentation_of(Names{"swap", "rotate", "shift"}), kAll);
  EXPECT_THROW(augmentation_of(Names{"rotate", "rotate"}), UsageError);
  EXPECT_THROW(augmentation_of(Names{"flip"}), UsageError);
}

TEST(AugmentedFramesTest, FramesOfAnotherFormAreRefused) {
  const MemoryFrames codes(3, 4, 8, 1);
  const AugmentedFrames frames = augmented(codes, kFloats, kAll, 1, 0);
  EXPECT_THROW(read(frames, {0, 1}), Error);
}

}  // namespace
}  // namespace fmp
