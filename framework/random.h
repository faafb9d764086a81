// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace fmp {

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011):
// a keyed bijection of 128-bit counters whose outputs pass for random.
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  constexpr int kRounds = 10;
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// A sequence of random numbers that depends on (seed, stream, index) alone, bit-identical on every
// machine, compiler and standard library. What needs randomness opens a stream of its own, so that
// drawing more in one place changes nothing elsewhere:
//   Random shuffle(seed, "epoch-order", epoch);
//   Random init(seed, "conv1.weight");
// A value: copying it copies its position. Meets UniformRandomBitGenerator.
class Random {
 public:
  using result_type = uint32_t;

  Random(uint64_t seed, std::string_view stream, uint64_t index = 0)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        stream_(mix(mix(hash(stream)) + index)) {}

  static constexpr uint32_t min() { return 0; }
  static constexpr uint32_t max() { return UINT32_MAX; }
  uint32_t operator()() { return next_u32(); }

  uint32_t next_u32() {
    if (used_ == 4) refill();
    return block_[used_++];
  }
  uint64_t next_u64() {
    const uint64_t low = next_u32();
    return low | static_cast<uint64_t>(next_u32()) << 32;
  }

  // Uniform in [0, 1), a multiple of 2^-24 and of 2^-53.
  float uniform_float() { return static_cast<float>(next_u32() >> 8) * 0x1p-24F; }
  double uniform_double() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }

  // Uniform in [low, high]; `high` itself only by rounding.
  float uniform(float low, float high) { return low + (high - low) * uniform_float(); }
  double uniform(double low, double high) { return low + (high - low) * uniform_double(); }

  // Uniform in 0 .. bound - 1, unbiased: the fewest bits that hold bound - 1, drawn until they do
  // not exceed it. bound > 0.
  uint64_t below(uint64_t bound) {
    const uint64_t last = bound - 1;
    const uint64_t mask = last == 0 ? 0 : UINT64_MAX >> std::countl_zero(last);
    uint64_t value;
    do {
      value = (mask <= UINT32_MAX ? next_u32() : next_u64()) & mask;
    } while (value > last);
    return value;
  }

 private:
  // FNV-1a.
  static constexpr uint64_t hash(std::string_view text) {
    uint64_t value = 0xCBF29CE484222325;
    for (const char c : text) value = (value ^ static_cast<uint8_t>(c)) * 0x100000001B3;
    return value;
  }
  // SplitMix64's finalizer, a bijection.
  static constexpr uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

  void refill() {
    block_ = philox4x32({static_cast<uint32_t>(blocks_), static_cast<uint32_t>(blocks_ >> 32),
                         static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                        key_);
    ++blocks_;
    used_ = 0;
  }

  std::array<uint32_t, 2> key_;
  uint64_t stream_;
  uint64_t blocks_ = 0;  // counter blocks consumed
  std::array<uint32_t, 4> block_{};
  unsigned used_ = 4;
};

}  // namespace fmp
