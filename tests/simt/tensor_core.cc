// SPDX-License-Identifier: MIT
// Matrix products of a warp: the last lane to come collects the fragments of all, multiplies the
// matrices, and hands each lane its part of D, as the others wait.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>

#include "tests/simt/internal.h"

namespace simt {
namespace {

constexpr size_t kRows = 16, kColumns = 8, kMembers = 4;

// What a lane brings.
template <typename Sum>
struct Fragments {
  Sum* d;
  const uint32_t *a, *b;
};

struct Bf16 {
  using Sum = float;
  using Exact = double;
  static constexpr size_t kPerRegister = 2;
  static Exact a(uint32_t bits, size_t i) { return b(bits, i); }
  static Exact b(uint32_t bits, size_t i) {
    const uint32_t upper = bits >> 16 * i << 16;
    float value;
    std::memcpy(&value, &upper, sizeof(value));
    return static_cast<double>(value);
  }
  static constexpr size_t kProductsAtOnce = 8;

  // Products are exact. The addends are aligned to the largest exponent among them, what lies below
  // kBelowOne of its first bit is cut off, and so is what a float does not hold of the sum.
  static Sum add(Sum before, const Exact (&products)[kProductsAtOnce]) {
    constexpr int kBelowOne = 23;
    Exact addends[kProductsAtOnce + 1], largest = 0, sum = 0;
    addends[0] = static_cast<Exact>(before);
    std::copy(std::begin(products), std::end(products), addends + 1);
    for (const Exact addend : addends) largest = std::max(largest, std::fabs(addend));
    if (largest == 0 || !std::isfinite(largest)) {
      for (const Exact addend : addends) sum += addend;
      return static_cast<Sum>(sum);
    }
    const Exact unit = std::ldexp(1.0, std::ilogb(largest) - kBelowOne);
    for (const Exact addend : addends) sum += std::trunc(addend / unit) * unit;
    const float nearest = static_cast<float>(sum);
    const bool away = std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
    return away ? std::nextafter(nearest, 0.0F) : nearest;
  }
};

template <typename ByteOfA, typename ByteOfB>
struct Bytes {
  using Sum = int;
  using Exact = int64_t;
  static constexpr size_t kPerRegister = 4;
  static Exact a(uint32_t bits, size_t i) { return static_cast<ByteOfA>(bits >> 8 * i); }
  static Exact b(uint32_t bits, size_t i) { return static_cast<ByteOfB>(bits >> 8 * i); }
  static constexpr size_t kProductsAtOnce = 32;
  static Sum add(Sum before, const Exact (&products)[kProductsAtOnce]) {
    Exact sum = before;
    for (const Exact product : products) sum += product;
    using Limits = std::numeric_limits<int>;
    if (sum < Limits::min() || sum > Limits::max()) {
      fault([] { return std::string("mma: a sum does not fit into 32 bits"); });
    }
    return static_cast<int>(sum);
  }
};

template <typename Type>
void multiply(const std::array<void*, kWarpSize>& of_lane) {
  using Exact = typename Type::Exact;
  constexpr size_t kPer = Type::kPerRegister, kHalf = kMembers * kPer, kDepth = 2 * kHalf;
  Exact a[kRows][kDepth], b[kColumns][kDepth];
  const auto lane = [&](size_t group, size_t member) {
    return static_cast<const Fragments<typename Type::Sum>*>(of_lane[group * kMembers + member]);
  };
  for (size_t member = 0; member < kMembers; ++member) {
    for (size_t half = 0; half < 2; ++half) {
      for (size_t i = 0; i < kPer; ++i) {
        const size_t k = half * kHalf + member * kPer + i;
        for (size_t row = 0; row < kRows; ++row) {
          a[row][k] = Type::a(lane(row % 8, member)->a[2 * half + row / 8], i);
        }
        for (size_t column = 0; column < kColumns; ++column) {
          b[column][k] = Type::b(lane(column, member)->b[half], i);
        }
      }
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      auto& d = lane(row % 8, column / 2)->d[row / 8 * 2 + column % 2];
      for (size_t first = 0; first < kDepth; first += Type::kProductsAtOnce) {
        Exact products[Type::kProductsAtOnce];
        for (size_t k = 0; k < Type::kProductsAtOnce; ++k) {
          products[k] = a[row][first + k] * b[column][first + k];
        }
        d = Type::add(d, products);
      }
    }
  }
}

template <typename Type>
void run(typename Type::Sum* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  Fragments<typename Type::Sum> mine{d, a, b};
  meet_for(multiply<Type>, &mine, site);
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const Site& site) {
  run<Bf16>(d, a, b, site);
}
void mma_m16n8k32_s8_u8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site) {
  run<Bytes<int8_t, uint8_t>>(d, a, b, site);
}
void mma_m16n8k32_u8_u8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site) {
  run<Bytes<uint8_t, uint8_t>>(d, a, b, site);
}
void mma_m16n8k32_s8_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site) {
  run<Bytes<int8_t, int8_t>>(d, a, b, site);
}

uint32_t rounded_pair(float first, float second) {
  const auto rounded = [](float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) return 0x7fffU;
    return (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  };
  return rounded(first) | rounded(second) << 16;
}

}  // namespace simt
