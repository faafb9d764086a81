// SPDX-License-Identifier: MIT
// The kLanes lanes of a tile as vectors of the target that is being compiled.

#if defined(FMP_KERNELS_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FMP_KERNELS_CPU_LANES_INL_H_
#undef FMP_KERNELS_CPU_LANES_INL_H_
#else
#define FMP_KERNELS_CPU_LANES_INL_H_
#endif

#include <type_traits>

#include "hwy/highway.h"
#include "kernels/tile.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kLanes>;
constexpr FloatTag kFloats;
using V = hn::Vec<FloatTag>;
constexpr int kWidth = static_cast<int>(hn::MaxLanes(kFloats));  // lanes of a vector
constexpr int kVectors = kLanes / kWidth;                        // vectors of a row element

// GCC takes what is constant in a loop out of it, here an address for each position, and has no
// registers for them. Unless it does not see what the address is made of.
template <typename T>
HWY_INLINE T* opaque(T* address) {
  asm("" : "+r"(address));
  return address;
}

using QuadTag = hn::FixedTag<float, 4>;

// Adds halves until four lanes are left.
template <class D>
HWY_INLINE hn::Vec<QuadTag> fold_to_quad(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return fold_to_quad(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    (void)d;
    return v;
  }
}

// lanes i and i + 8, then i + 4, i + 2, i + 1: the same tree on every target.
template <int kCount>
HWY_INLINE float sum_of_lanes(const V (&v)[kCount]) {
  V sum = v[0];
  if constexpr (kCount == 2) sum = hn::Add(v[0], v[1]);
  if constexpr (kCount == 4) sum = hn::Add(hn::Add(v[0], v[2]), hn::Add(v[1], v[3]));
  const auto quad = fold_to_quad(kFloats, sum);
  const auto pair = hn::Add(quad, hn::Shuffle1032(quad));
  return hn::GetLane(hn::Add(pair, hn::Shuffle2301(pair)));
}

// sum + a[2i] * b[2i] + a[2i+1] * b[2i+1] in 32-bit lane i.
template <class VS, class VI32>
HWY_INLINE VI32 multiply_add_pairs(VS a, VS b, VI32 sum) {
  const hn::DFromV<VI32> ints;
#if HWY_TARGET <= HWY_SSE4 && HWY_ARCH_X86
  VI32 unused = sum;
  return hn::ReorderWidenMulAccumulate(ints, a, b, sum, unused);
#else
  const auto a32 = hn::BitCast(ints, a), b32 = hn::BitCast(ints, b);
  const auto low = [&](auto v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const auto high = [&](auto v) { return hn::ShiftRight<16>(v); };
  return hn::Add(sum, hn::Add(hn::Mul(low(a32), low(b32)), hn::Mul(high(a32), high(b32))));
#endif
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
