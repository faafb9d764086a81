// SPDX-License-Identifier: MIT
// What a hidden layer's activation does with the values of a pooling window, in registers, for the
// target that is being compiled; see activation.cc.

#if defined(FMP_KERNELS_CPU_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FMP_KERNELS_CPU_ACTIVATION_INL_H_
#undef FMP_KERNELS_CPU_ACTIVATION_INL_H_
#else
#define FMP_KERNELS_CPU_ACTIVATION_INL_H_
#endif

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {

constexpr hn::RebindToSigned<FloatTag> kLaneInts;
constexpr hn::RebindToUnsigned<FloatTag> kLaneUnsigned;
constexpr hn::Rebind<uint8_t, FloatTag> kLaneBytes;
constexpr hn::Rebind<int8_t, FloatTag> kLaneSignedBytes;
using Mask = hn::Mask<FloatTag>;

// Bits of one element's lanes, vector v of them.
HWY_INLINE Mask load_bits(const uint16_t* bits, int v) {
  if constexpr (kWidth >= 8) {
    return hn::LoadMaskBits(kFloats, reinterpret_cast<const uint8_t*>(bits) + v * (kWidth / 8));
  } else {
    alignas(8) const std::array<uint8_t, 8> byte = {static_cast<uint8_t>(*bits >> (v * kWidth))};
    return hn::LoadMaskBits(kFloats, byte.data());
  }
}

HWY_INLINE void store_bits(Mask mask, uint16_t* at, int v) {
  if constexpr (kWidth >= 8) {
    hn::StoreMaskBits(kFloats, mask, reinterpret_cast<uint8_t*>(at) + v * (kWidth / 8));
  } else {
    std::array<uint8_t, 8> bits{};
    hn::StoreMaskBits(kFloats, mask, bits.data());
    const uint32_t before = v == 0 ? 0 : *at;
    *at = static_cast<uint16_t>(before | static_cast<uint32_t>(bits[0]) << (v * kWidth));
  }
}

struct Affine {
  V gain, shift;
  HWY_INLINE Affine(const ChannelAffine& affine, int c)
      : gain(hn::Set(kFloats, affine.gain[c])), shift(hn::Set(kFloats, affine.shift[c])) {}
  HWY_INLINE V operator()(V y) const { return hn::MulAdd(y, gain, shift); }
};

// Added to a float below 2^22, it rounds it to the nearest integer, ties to even, and leaves that
// in the lowest bits.
constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23

// kSigned: codes begin below zero.
template <bool kQuantized, bool kSigned = false>
class Activation {
 public:
  HWY_INLINE explicit Activation(const ActivationSpec& spec)
      : min_code_(hn::Set(kFloats, spec.min_code)),
        max_code_(hn::Set(kFloats, spec.max_code)),
        // max_code is odd, so that max_code + 0.5 rounds up to even.
        limit_(hn::Set(kLaneInts, in_order(kQuantized ? spec.max_code + 0.5F
                                                      : std::numeric_limits<float>::infinity()))) {}

  // What pooling compares: the code, with kRounder added, or max(t, 0) without quantization.
  HWY_INLINE V pooled(V t) const {
    const V positive = hn::Max(t, kSigned ? min_code_ : hn::Zero(kFloats));
    if constexpr (!kQuantized) return positive;
    return hn::Add(hn::Min(positive, max_code_), hn::Set(kFloats, kRounder));
  }
  // Whether t is above zero and not clipped; signed codes begin half a code below the smallest.
  HWY_INLINE Mask within(V t) const {
    if constexpr (kSigned) {
      const V half = hn::Set(kFloats, 0.5F);
      return hn::And(hn::Gt(t, hn::Sub(min_code_, half)), hn::Lt(t, hn::Add(max_code_, half)));
    }
    const auto order = hn::Add(hn::BitCast(kLaneInts, t), hn::Set(kLaneInts, kToOrder));
    return hn::RebindMask(kFloats, hn::Lt(order, limit_));
  }
  // Windows of one and two: their value, and where the gradient passes.
  HWY_INLINE V window(V t, Mask& passes) const {
    passes = within(t);
    return pooled(t);
  }
  HWY_INLINE V window(V t0, V t1, Mask& passes0, Mask& passes1) const {
    const V value0 = pooled(t0), value1 = pooled(t1);
    const Mask second = hn::Gt(value1, value0);
    const Mask passes = within(hn::IfThenElse(second, t1, t0));
    passes0 = hn::AndNot(second, passes);
    passes1 = hn::And(second, passes);
    return hn::Max(value0, value1);
  }

 private:
  // The bits of positive floats rise with them; with this added, modulo 2^32, they are the lowest
  // of all integers, so that one comparison has an end at zero, too.
  static constexpr int32_t kToOrder = std::numeric_limits<int32_t>::max();
  static int32_t in_order(float value) {
    return static_cast<int32_t>(std::bit_cast<uint32_t>(value) + static_cast<uint32_t>(kToOrder));
  }

  V min_code_, max_code_;
  hn::Vec<hn::RebindToSigned<FloatTag>> limit_;
};

HWY_INLINE void store_pooled(V rounded, uint8_t* out) {
  hn::StoreU(hn::TruncateTo(kLaneBytes, hn::BitCast(kLaneUnsigned, rounded)), kLaneBytes, out);
}
HWY_INLINE void store_pooled(V value, float* out) { hn::Store(value, kFloats, out); }

template <bool kSigned = false>
HWY_INLINE V load_codes(const uint8_t* codes) {
  if constexpr (kSigned) {
    const auto bytes = hn::LoadU(kLaneSignedBytes, reinterpret_cast<const int8_t*>(codes));
    return hn::ConvertTo(kFloats, hn::PromoteTo(kLaneInts, bytes));
  }
  return hn::ConvertTo(kFloats, hn::PromoteTo(kLaneInts, hn::LoadU(kLaneBytes, codes)));
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
