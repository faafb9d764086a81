// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace fmp::synth {

// What a stream of random numbers is drawn for. Each purpose of a frame has its own stream, so that
// switching one effect on leaves everything else as it was.
enum class Purpose : uint8_t { kShape, kSource, kChannel, kNoise };

// Names one stream: frame `index` of the block (class, SNR) of the set that `seed` selects.
struct StreamId {
  uint64_t seed = 0;
  uint64_t index = 0;
  int16_t snr_db = 0;
  uint8_t class_index = 0;
  Purpose purpose = Purpose::kShape;
};

// A counter-based generator: the n-th output is Philox-4x32-10 of (stream, n), so every frame has
// its own independent stream with no state shared between frames or threads.
class Rng {
 public:
  explicit Rng(const StreamId& id);

  uint32_t bits();
  double uniform() { return (bits() + 0.5) * 0x1p-32; }  // in (0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  uint32_t below(uint32_t n) {  // in [0, n); the bias of at most n / 2^32 is of no consequence here
    return static_cast<uint32_t>((static_cast<uint64_t>(bits()) * n) >> 32);
  }
  double normal();  // mean 0, deviation 1

  // Fills `out` (of even size) with normal numbers of mean 0 and deviation 1.
  void fill_normal(std::span<float> out);

 private:
  void refill();

  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> block_{};
  unsigned used_ = 4;  // words of block_ that were handed out
};

}  // namespace fmp::synth
