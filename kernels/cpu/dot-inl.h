// SPDX-License-Identifier: MIT
// The ways to multiply codes by weights, four channels at a time, for the target that is being
// compiled.

#if defined(FMP_KERNELS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FMP_KERNELS_CPU_DOT_INL_H_
#undef FMP_KERNELS_CPU_DOT_INL_H_
#else
#define FMP_KERNELS_CPU_DOT_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/integer_ops.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {

using IntTag = hn::CappedTag<int32_t, kLanes>;
constexpr IntTag kInts;
using VI = hn::Vec<IntTag>;
constexpr hn::Repartition<int16_t, IntTag> kShorts;
constexpr hn::Repartition<uint16_t, IntTag> kUnsignedShorts;
constexpr hn::Repartition<uint8_t, IntTag> kBytes;
constexpr int kVectorBytes = kWidth * kQuad;

// The ways to multiply: an operand from memory, a quad of weights, their product added to a sum,
// and the sum in 32 bits.
struct Wide {
  static constexpr int kWords = 2;  // elements of a quad of weights
  using VS = hn::Vec<decltype(kShorts)>;
  struct Pairs {  // bytes 0 and 2, bytes 1 and 3, as 16 bits
    VS even, odd;
  };
  using Operand = Pairs;
  using Weights = Pairs;
  using Sum = VI;
  static HWY_INLINE Sum zero() { return hn::Zero(kInts); }
  static HWY_INLINE VS even(const uint8_t* x) {
    const auto v = hn::BitCast(kUnsignedShorts, hn::Load(kBytes, x));
    return hn::BitCast(kShorts, hn::And(v, hn::Set(kUnsignedShorts, uint16_t{0xff})));
  }
  static HWY_INLINE VS odd(const uint8_t* x) {
    const auto v = hn::BitCast(kUnsignedShorts, hn::Load(kBytes, x));
    return hn::BitCast(kShorts, hn::ShiftRight<8>(v));
  }
  static HWY_INLINE Operand load(const uint8_t* x) { return {even(x), odd(x)}; }
  static HWY_INLINE Weights set(const int32_t* quad) {
    return {hn::BitCast(kShorts, hn::Set(kInts, quad[0])),
            hn::BitCast(kShorts, hn::Set(kInts, quad[1]))};
  }
  static HWY_INLINE void add(const Operand& x, const Weights& w, Sum& sum) {
    sum = multiply_add_pairs(x.odd, w.odd, multiply_add_pairs(x.even, w.even, sum));
  }
  static HWY_INLINE VI finish(Sum sum) { return sum; }
};

// The same for inputs of no more than two channels: the odd bytes have no weights.
struct WideOfTwo {
  static constexpr int kWords = Wide::kWords;
  using Operand = Wide::VS;
  using Weights = Wide::VS;
  using Sum = VI;
  static HWY_INLINE Sum zero() { return Wide::zero(); }
  static HWY_INLINE Operand load(const uint8_t* x) { return Wide::even(x); }
  static HWY_INLINE Weights set(const int32_t* quad) {
    return hn::BitCast(kShorts, hn::Set(kInts, quad[0]));
  }
  static HWY_INLINE void add(Operand x, Weights w, Sum& sum) {
    sum = multiply_add_pairs(x, w, sum);
  }
  static HWY_INLINE VI finish(Sum sum) { return sum; }
};

#undef FMP_DOT_HAS_NARROW
#if HWY_TARGET <= HWY_SSE4 && HWY_ARCH_X86
#define FMP_DOT_HAS_NARROW 1
struct Narrow {
  static constexpr int kWords = 1;
  using Operand = hn::Vec<decltype(kBytes)>;
  using Weights = VI;
  using Sum = hn::Vec<decltype(kShorts)>;
  static HWY_INLINE Sum zero() { return hn::Zero(kShorts); }
  static HWY_INLINE Operand load(const uint8_t* x) { return hn::Load(kBytes, x); }
  static HWY_INLINE Weights set(const int32_t* quad) { return hn::Set(kInts, *quad); }
  static HWY_INLINE void add(const Operand& x, const Weights& w, Sum& sum) {
#if HWY_TARGET <= HWY_AVX3
    sum = hn::Add(sum, Sum{_mm512_maddubs_epi16(x.raw, w.raw)});
#elif HWY_TARGET <= HWY_AVX2
    sum = hn::Add(sum, Sum{_mm256_maddubs_epi16(x.raw, w.raw)});
#else
    sum = hn::Add(sum, Sum{_mm_maddubs_epi16(x.raw, w.raw)});
#endif
  }
  static HWY_INLINE VI finish(Sum sum) {
    return multiply_add_pairs(sum, hn::Set(kShorts, int16_t{1}), hn::Zero(kInts));
  }
};
#else
#define FMP_DOT_HAS_NARROW 0
#endif

#undef FMP_DOT_HAS_VNNI
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
#define FMP_DOT_HAS_VNNI 1
// In assembly because Highway's AVX-512 target does not include the instruction; it is used only
// after a look at the processor.
struct Vnni {
  static constexpr int kWords = 1;
  using Operand = hn::Vec<decltype(kBytes)>;
  using Weights = VI;
  using Sum = VI;
  static HWY_INLINE Sum zero() { return hn::Zero(kInts); }
  static HWY_INLINE Operand load(const uint8_t* x) { return hn::Load(kBytes, x); }
  static HWY_INLINE Weights set(const int32_t* quad) { return hn::Set(kInts, *quad); }
  static HWY_INLINE void add(const Operand& x, const Weights& w, Sum& sum) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(x.raw), "v"(w.raw));
  }
  static HWY_INLINE VI finish(Sum sum) { return sum; }
};
#else
#define FMP_DOT_HAS_VNNI 0
#endif

// A sum that leaves its loop. GCC keeps one that is used as another vector type afterwards in two
// registers, and copies one to the other in every step, unless the use comes through here.
template <class T>
HWY_INLINE T out_of_loop(T sum) {
#if HWY_ARCH_X86
  asm("" : "+v"(sum.raw));
#endif
  return sum;
}

inline bool has_vnni() {
#if FMP_DOT_HAS_VNNI
  return __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

// Calls f with the way to multiply as a type: kWide where the target lacks what is asked for.
template <typename F>
HWY_INLINE void with_dot(DotProduct dot, bool two_channels, const F& f) {
  switch (dot) {
#if FMP_DOT_HAS_VNNI
    case DotProduct::kTiles:  // what is left to vectors
    case DotProduct::kVnni:
      return f(Vnni());
#endif
#if FMP_DOT_HAS_NARROW
    case DotProduct::kNarrow:
      return f(Narrow());
#endif
    default:
      if (two_channels) return f(WideOfTwo());
      return f(Wide());
  }
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
