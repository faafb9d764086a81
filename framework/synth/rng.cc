// SPDX-License-Identifier: MIT
// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011)
// and normal numbers from it by the method of Box and Muller, with elementary functions of our own
// (see framework/deterministic_math.h).
#include "framework/synth/rng.h"

#include <algorithm>
#include <cmath>

#include "framework/deterministic_math.h"

namespace fmp::synth {
namespace {

constexpr int kBatch = 256;  // normal numbers made at a time: their scratch space stays in L1

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

// A uniform point of the unit circle from 32 bits: 30 give an angle in [-pi/4, pi/4), two choose
// which of the four quarters it is turned into.
inline void unit_circle(uint32_t word, float& x, float& y) {
  const float angle =
      static_cast<float>(static_cast<int32_t>(word << 2)) * (0x1p-31f * 0.78539816f);
  const float a = angle * angle;
  const float s = angle * (1.0f + a * (-1.0f / 6 + a * (1.0f / 120 - a / 5040)));
  const float c = 1.0f + a * (-0.5f + a * (1.0f / 24 + a * (-1.0f / 720 + a / 40320)));
  const float sign = (word >> 30 & 1u) ? -1.0f : 1.0f;
  const bool swap = (word >> 31) != 0;
  x = swap ? s : sign * c;
  y = swap ? sign * c : s;
}

// Turns pairs of words into pairs of normal numbers, in loops that vectorize.
void box_muller(const uint32_t* words, int pairs, float* out) {
  float radius[kBatch / 2];
  for (int k = 0; k < pairs; ++k) {
    // In (0, 1]: 31 bits, the lowest set, so that the logarithm is finite.
    const float u = static_cast<float>(static_cast<int32_t>(words[k] >> 1 | 1u)) * 0x1p-31f;
    radius[k] = std::max(-2.0f * log_det(u), 0.0f);
  }
  for (int k = 0; k < pairs; ++k) radius[k] = std::sqrt(radius[k]);
  for (int k = 0; k < pairs; ++k) {
    float x, y;
    unit_circle(words[pairs + k], x, y);
    out[2 * k] = radius[k] * x;
    out[2 * k + 1] = radius[k] * y;
  }
}

}  // namespace

Rng::Rng(const StreamId& id)
    : counter_{0,
               static_cast<uint32_t>(id.purpose) << 24 |
                   static_cast<uint32_t>(id.class_index) << 16 | static_cast<uint16_t>(id.snr_db),
               static_cast<uint32_t>(id.index), static_cast<uint32_t>(id.index >> 32)},
      key_{static_cast<uint32_t>(id.seed), static_cast<uint32_t>(id.seed >> 32)} {}

void Rng::refill() {
  block_ = philox(counter_, key_);
  ++counter_[0];
  used_ = 0;
}

uint32_t Rng::bits() {
  if (used_ == 4) refill();
  return block_[used_++];
}

double Rng::normal() {
  const uint32_t words[2] = {bits(), bits()};
  float pair[2];
  box_muller(words, 1, pair);
  return pair[0];
}

void Rng::fill_normal(std::span<float> out) {
  uint32_t words[kBatch];
  for (size_t done = 0; done < out.size();) {
    const int count = static_cast<int>(std::min<size_t>(kBatch, out.size() - done));
    for (int k = 0; k < count; k += 4) {
      refill();
      std::copy_n(block_.begin(), std::min(4, count - k), words + k);
    }
    used_ = 4;  // the rest of the last block is dropped: what follows starts on a whole block
    box_muller(words, count / 2, out.data() + done);
    done += static_cast<size_t>(count);
  }
}

}  // namespace fmp::synth
