// SPDX-License-Identifier: MIT
// Unpacking codes to operands, sums of floats, and the activation in evaluation mode.
#include <cmath>
#include <type_traits>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

using IntTag = hn::CappedTag<int32_t, kLanes>;
constexpr IntTag kInts;
using ByteTag = hn::Rebind<uint8_t, FloatTag>;
constexpr ByteTag kBytes;
using SignedByteTag = hn::Rebind<int8_t, FloatTag>;
constexpr SignedByteTag kSignedBytes;
constexpr hn::RebindToUnsigned<IntTag> kUnsigned;

void unpack_u8(const uint8_t* codes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kWidth) {
    hn::Store(hn::ConvertTo(kFloats, hn::PromoteTo(kInts, hn::LoadU(kBytes, codes + i))), kFloats,
              out + i);
  }
}

void unpack_s8(const int8_t* codes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kWidth) {
    hn::Store(hn::ConvertTo(kFloats, hn::PromoteTo(kInts, hn::LoadU(kSignedBytes, codes + i))),
              kFloats, out + i);
  }
}

template <typename T, class D>
HWY_INLINE void unpack_rows(D bytes, const T* codes, ptrdiff_t stride, int rows, float* out) {
  for (int r = 0; r < rows; ++r, codes += stride, out += kLanes) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      const auto code = hn::PromoteTo(kInts, hn::LoadU(bytes, codes + v * kWidth));
      hn::Store(hn::ConvertTo(kFloats, code), kFloats, out + v * kWidth);
    }
  }
}
void unpack_rows_u8(const uint8_t* codes, ptrdiff_t stride, int rows, float* out) {
  unpack_rows(kBytes, codes, stride, rows, out);
}
void unpack_rows_s8(const int8_t* codes, ptrdiff_t stride, int rows, float* out) {
  unpack_rows(kSignedBytes, codes, stride, rows, out);
}

// Rows of 16 bytes: interleaving two of them gives the pairs as bytes, widening makes them 16 bits.
template <typename T>
HWY_INLINE void unpack_pairs(const T* codes, int channels, int16_t* out) {
  const hn::FixedTag<T, 16> bytes;
  const hn::FixedTag<T, 8> half;
  const hn::FixedTag<int16_t, 8> shorts;
  for (int c = 0; c < channels; c += 2, out += 2 * kLanes) {
    const auto first = hn::Load(bytes, codes + c * kLanes);
    const auto second =
        c + 1 < channels ? hn::Load(bytes, codes + (c + 1) * kLanes) : hn::Zero(bytes);
    const auto low = hn::InterleaveLower(bytes, first, second);
    const auto high = hn::InterleaveUpper(bytes, first, second);
    hn::Store(hn::PromoteTo(shorts, hn::LowerHalf(half, low)), shorts, out);
    hn::Store(hn::PromoteTo(shorts, hn::UpperHalf(half, low)), shorts, out + 8);
    hn::Store(hn::PromoteTo(shorts, hn::LowerHalf(half, high)), shorts, out + 16);
    hn::Store(hn::PromoteTo(shorts, hn::UpperHalf(half, high)), shorts, out + 24);
  }
}

void unpack_pairs_u8(const uint8_t* codes, int channels, int16_t* out) {
  unpack_pairs(codes, channels, out);
}
void unpack_pairs_s8(const int8_t* codes, int channels, int16_t* out) {
  unpack_pairs(codes, channels, out);
}

// 16 x 16 bytes at a time: four rounds of interleaving row i with row i + 8.
void transpose_codes(const uint8_t* codes, int channels, uint8_t* out) {
  static_assert(kLanes == 16);
  const hn::FixedTag<uint8_t, kLanes> bytes;
  using Bytes = hn::Vec<decltype(bytes)>;
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>((channels + kLanes - 1) / kLanes) * kLanes;
  for (int c = 0; c < channels; c += kLanes) {
    Bytes rows[kLanes], next[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = c + i < channels ? hn::Load(bytes, codes + (c + i) * kLanes) : hn::Zero(bytes);
    }
    for (int round = 0; round < 4; ++round) {
      HWY_UNROLL(8)
      for (int i = 0; i < kLanes / 2; ++i) {
        next[2 * i] = hn::InterleaveLower(bytes, rows[i], rows[i + kLanes / 2]);
        next[2 * i + 1] = hn::InterleaveUpper(bytes, rows[i], rows[i + kLanes / 2]);
      }
      HWY_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
    for (int i = 0; i < kLanes; ++i) hn::Store(rows[i], bytes, out + i * out_stride + c);
  }
}

void channel_sums(const float* y, ptrdiff_t y_stride, int rows, int channels, double* sum,
                  double* sum_squares) {
  for (int c = 0; c < channels; ++c) {
    V s[kVectors], q[kVectors];
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) s[v] = q[v] = hn::Zero(kFloats);
    const float* at = y + c * kLanes;
    for (int l = 0; l < rows; ++l, at += y_stride) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        const V value = hn::Load(kFloats, at + v * kWidth);
        s[v] = hn::Add(s[v], value);
        q[v] = hn::MulAdd(value, value, q[v]);
      }
    }
    sum[c] += static_cast<double>(sum_of_lanes(s));
    sum_squares[c] += static_cast<double>(sum_of_lanes(q));
  }
}

// t at vector v of one element.
struct Affine {
  V gain, shift;
  HWY_INLINE Affine(const ChannelAffine& affine, int c)
      : gain(hn::Set(kFloats, affine.gain[c])), shift(hn::Set(kFloats, affine.shift[c])) {}
  HWY_INLINE V operator()(V y) const { return hn::MulAdd(y, gain, shift); }
};

// Every product and sum rounded by itself.
struct EvaluationAffine {
  V sum_scale, gain, shift;
  HWY_INLINE EvaluationAffine(const EvaluationSteps& steps, int c)
      : sum_scale(hn::Set(kFloats, steps.sum_scale)),
        gain(hn::Set(kFloats, steps.gain[c])),
        shift(hn::Set(kFloats, steps.shift[c])) {}
  HWY_INLINE V operator()(V y) const {
    return hn::Add(hn::Mul(hn::Mul(y, sum_scale), gain), shift);
  }
};

// out[window][channel] = store(largest value of the window).
template <typename T, typename Store>
HWY_INLINE void evaluate_windows(const Sums& sums, const EvaluationSteps& steps, int any_pool,
                                 T* HWY_RESTRICT out, ptrdiff_t out_stride, const Store& store) {
  const auto with_pool = [&](auto constant) HWY_ATTR {
    const int pool = decltype(constant)::value > 0 ? decltype(constant)::value : any_pool;
    for (int c = 0; c < sums.channels; ++c) {
      const EvaluationAffine affine(steps, c);
      for (int w = 0; w < sums.rows / pool; ++w) {
        HWY_UNROLL(16)
        for (int v = 0; v < kVectors; ++v) {
          const int at = c * kLanes + v * kWidth;
          const float* HWY_RESTRICT y = sums.y + w * pool * sums.stride + at;
          V largest = affine(hn::Load(kFloats, y));
          for (int j = 1; j < pool; ++j) {
            largest = hn::Max(largest, affine(hn::Load(kFloats, y + j * sums.stride)));
          }
          store(largest, out + w * out_stride + at);
        }
      }
    }
  };
  if (any_pool == 1) return with_pool(std::integral_constant<int, 1>());
  if (any_pool == 2) return with_pool(std::integral_constant<int, 2>());
  with_pool(std::integral_constant<int, 0>());
}

void evaluate_codes(const Sums& sums, const EvaluationSteps& steps, const ActivationSpec& spec,
                    uint8_t* out, ptrdiff_t out_stride) {
  const V max_code = hn::Set(kFloats, spec.max_code), min_code = hn::Set(kFloats, spec.min_code);
  const V scale = hn::Set(kFloats, steps.act_scale);
  evaluate_windows(sums, steps, spec.pool, out, out_stride, [&](V value, uint8_t* to) HWY_ATTR {
    const V t = hn::Div(value, scale);
    const auto code = hn::NearestInt(hn::Min(hn::Max(t, min_code), max_code));
    hn::StoreU(hn::TruncateTo(kBytes, hn::BitCast(kUnsigned, code)), kBytes, to);
  });
}

void evaluate_values(const Sums& sums, const EvaluationSteps& steps, const ActivationSpec& spec,
                     float* out, ptrdiff_t out_stride) {
  evaluate_windows(sums, steps, spec.pool, out, out_stride, [](V value, float* to) HWY_ATTR {
    hn::Store(hn::Max(value, hn::Zero(kFloats)), kFloats, to);
  });
}

void add_lane_sums(const float* sums, int count, double* totals) {
  for (int i = 0; i < count; ++i, sums += kLanes) {
    V lanes[kVectors];
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) lanes[v] = hn::Load(kFloats, sums + v * kWidth);
    totals[i] += static_cast<double>(sum_of_lanes(lanes));
  }
}

int collect_at_least(const Sums& sums, const ChannelAffine& channel_affine, bool magnitudes,
                     float threshold, int lanes, float* values, int32_t* places) {
  const V limit = hn::Set(kFloats, threshold);
  HWY_ALIGN float t_lane[kLanes];
  int count = 0;
  const float* y = sums.y;
  for (int l = 0; l < sums.rows; ++l, y += sums.stride) {
    for (int c = 0; c < sums.channels; ++c) {
      const Affine affine(channel_affine, c);
      for (int v = 0; v < kVectors; ++v) {
        const V t = affine(hn::Load(kFloats, y + c * kLanes + v * kWidth));
        if (hn::AllFalse(kFloats, hn::Ge(magnitudes ? hn::Abs(t) : t, limit))) continue;
        hn::Store(t, kFloats, t_lane);
        for (int i = 0; i < kWidth && v * kWidth + i < lanes; ++i) {
          if ((magnitudes ? std::fabs(t_lane[i]) : t_lane[i]) < threshold) continue;
          values[count] = t_lane[i];
          places[count++] = (l * sums.channels + c) * kLanes + v * kWidth + i;
        }
      }
    }
  }
  return count;
}

constexpr hn::Rebind<uint16_t, FloatTag> kHalves;
constexpr int kUpperHalf = 16;

void round_to_bf16(float* values, int64_t count, uint16_t* out) {
  const auto bias = hn::Set(kUnsigned, 0x7fffU), one = hn::Set(kUnsigned, 1U);
  const auto quiet = hn::Set(kUnsigned, 0x400000U);
  for (int64_t i = 0; i < count; i += kWidth) {
    const V value = hn::Load(kFloats, values + i);
    const auto bits = hn::BitCast(kUnsigned, value);
    const auto odd = hn::And(hn::ShiftRight<kUpperHalf>(bits), one);
    const auto rounded = hn::Add(bits, hn::Add(bias, odd));
    const auto no_number = hn::RebindMask(kUnsigned, hn::IsNaN(value));
    const auto half =
        hn::ShiftRight<kUpperHalf>(hn::IfThenElse(no_number, hn::Or(bits, quiet), rounded));
    hn::Store(hn::BitCast(kFloats, hn::ShiftLeft<kUpperHalf>(half)), kFloats, values + i);
    hn::StoreU(hn::TruncateTo(kHalves, half), kHalves, out + i);
  }
}

void widen_bf16(const uint16_t* from, int64_t count, float* out) {
  constexpr int kSecondLevel = 2, kPerLine = 32;
  for (int64_t i = 0; i < count; i += kWidth) {
    if (i % kPerLine == 0) __builtin_prefetch(from + count + i, 0, kSecondLevel);
    const auto half = hn::PromoteTo(kUnsigned, hn::LoadU(kHalves, from + i));
    hn::Store(hn::BitCast(kFloats, hn::ShiftLeft<kUpperHalf>(half)), kFloats, out + i);
  }
}

}  // namespace

void fill_elementwise(Simd& table) {
  table.target = hwy::TargetName(HWY_TARGET);
  table.unpack_rows_u8 = unpack_rows_u8;
  table.unpack_rows_s8 = unpack_rows_s8;
  table.unpack_u8 = unpack_u8;
  table.unpack_s8 = unpack_s8;
  table.unpack_pairs_u8 = unpack_pairs_u8;
  table.unpack_pairs_s8 = unpack_pairs_s8;
  table.transpose_codes = transpose_codes;
  table.channel_sums = channel_sums;
  table.evaluate_codes = evaluate_codes;
  table.evaluate_values = evaluate_values;
  table.round_to_bf16 = round_to_bf16;
  table.widen_bf16 = widen_bf16;
  table.add_lane_sums = add_lane_sums;
  table.collect_at_least = collect_at_least;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_elementwise);
void fill_elementwise_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_elementwise)(table); }

}  // namespace fmp::cpu
#endif
