// SPDX-License-Identifier: MIT
// Batch-norm + QuantReLU + MaxPool1d on the convolution's sums of a few channels, forward and
// backward; see kernels/README.md for the sweep that calls it.
//
// Batch-norm and the division by the quantizer's scale are one affine step t = gain * y + shift, y
// being the convolution's sum of codes. Forward writes clamp(round(t)), the maximum of each pooling
// window, and one bit for each y: whether the gradient of the pooled output passes to it. It does
// where y wins its window (the first largest code, as PyTorch's MaxPool1d on dequantized values)
// and is neither below zero nor clipped (the straight-through rule of Brevitas' QuantReLU: 0 < t
// and round(t) <= max_code; a signed quantizer begins half a code below its min_code). With these
// bits the backward pass is a few multiply-adds per element.
#include <type_traits>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

constexpr hn::Repartition<int64_t, hn::RebindToSigned<FloatTag>> kLongs;

// Calls f with the pooling window as a compile-time constant where it is a usual one (0 = any).
template <typename F>
HWY_INLINE void with_pool(int pool, const F& f) {
  switch (pool) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    default:
      return f(std::integral_constant<int, 0>());
  }
}

// One window, one vector of lanes.
template <int kPool, typename Activation, typename T>
HWY_INLINE void activate_window(const float* HWY_RESTRICT y, ptrdiff_t y_stride, int pool,
                                const Affine& affine, const Activation& activation,
                                T* HWY_RESTRICT out, uint16_t* HWY_RESTRICT passes,
                                ptrdiff_t passes_stride, int v) {
  const auto t = [&](int j) HWY_ATTR { return affine(hn::Load(kFloats, y + j * y_stride)); };
  const auto store = [&](int j, Mask mask)
                         HWY_ATTR { store_bits(mask, passes + j * passes_stride, v); };
  if constexpr (kPool == 1) {
    Mask mask;
    store_pooled(activation.window(t(0), mask), out);
    store(0, mask);
  } else if constexpr (kPool == 2) {
    Mask first, second;
    store_pooled(activation.window(t(0), t(1), first, second), out);
    store(0, first);
    store(1, second);
  } else {
    V largest = activation.pooled(t(0));
    V winner = hn::Zero(kFloats);  // its position
    for (int j = 1; j < pool; ++j) {
      const V value = activation.pooled(t(j));
      winner =
          hn::IfThenElse(hn::Gt(value, largest), hn::Set(kFloats, static_cast<float>(j)), winner);
      largest = hn::Max(largest, value);
    }
    store_pooled(largest, out);
    for (int j = 0; j < pool; ++j) {
      const Mask wins = hn::Eq(winner, hn::Set(kFloats, static_cast<float>(j)));
      store(j, hn::And(wins, activation.within(t(j))));
    }
  }
}

template <bool kQuantized, bool kSigned, typename T>
HWY_INLINE void activate(const Sums& sums, const ChannelAffine& channel_affine,
                         const ActivationSpec& spec, T* out, ptrdiff_t out_stride, uint16_t* passes,
                         ptrdiff_t passes_stride) {
  const Activation<kQuantized, kSigned> activation(spec);
  with_pool(spec.pool, [&](auto constant) HWY_ATTR {
    constexpr int kPool = decltype(constant)::value;
    const int pool = kPool > 0 ? kPool : spec.pool;
    for (int c = 0; c < sums.channels; ++c) {
      const Affine affine(channel_affine, c);
      for (int w = 0; w < sums.rows / pool; ++w) {
        HWY_UNROLL(16)
        for (int v = 0; v < kVectors; ++v) {
          const int at = c * kLanes + v * kWidth;
          activate_window<kPool>(sums.y + w * pool * sums.stride + at, sums.stride, pool, affine,
                                 activation, out + w * out_stride + at,
                                 passes + w * pool * passes_stride + c, passes_stride, v);
        }
      }
    }
  });
}

void quantize_pool(const Sums& sums, const ChannelAffine& affine, const ActivationSpec& spec,
                   uint8_t* out, ptrdiff_t out_stride, uint16_t* passes, ptrdiff_t passes_stride) {
  if (spec.min_code < 0) {
    activate<true, true>(sums, affine, spec, out, out_stride, passes, passes_stride);
  } else {
    activate<true, false>(sums, affine, spec, out, out_stride, passes, passes_stride);
  }
}

void relu_pool(const Sums& sums, const ChannelAffine& affine, const ActivationSpec& spec,
               float* out, ptrdiff_t out_stride, uint16_t* passes, ptrdiff_t passes_stride) {
  activate<false, false>(sums, affine, spec, out, out_stride, passes, passes_stride);
}

// Exact: squares of 32-bit integers in 64 bits.
void integer_sums(const Sums& sums, IntegerTotals* totals) {
  for (int c = 0; c < sums.channels; ++c) {
    auto sum = hn::Zero(kLaneInts);
    auto squares = hn::Zero(kLongs);
    const float* y = sums.y + c * kLanes;
    for (int l = 0; l < sums.rows; ++l, y += sums.stride) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        const auto value = hn::NearestInt(hn::Load(kFloats, y + v * kWidth));
        const auto odd = hn::BitCast(kLaneInts, hn::ShiftRight<32>(hn::BitCast(kLongs, value)));
        sum = hn::Add(sum, value);
        squares = hn::Add(squares, hn::Add(hn::MulEven(value, value), hn::MulEven(odd, odd)));
      }
    }
    HWY_ALIGN int32_t sum_lanes[kLanes];
    HWY_ALIGN int64_t square_lanes[kLanes];
    hn::Store(sum, kLaneInts, sum_lanes);
    hn::Store(squares, kLongs, square_lanes);
    for (int i = 0; i < kWidth; ++i) totals[c].sum += sum_lanes[i];
    for (int i = 0; i < kWidth / 2; ++i) totals[c].add_square(square_lanes[i]);
  }
}

// What a step of the backward pass does with each vector of a channel.
template <bool kQuantized, bool kSigned, int kPool>
HWY_INLINE void backward_sums_of(const Sums& sums, int any_pool, const PooledGradient& gradient,
                                 float* HWY_RESTRICT totals) {
  const int pool = kPool > 0 ? kPool : any_pool;
  for (int c = 0; c < sums.channels; ++c, totals += kGradientSums * kLanes) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      const int at = c * kLanes + v * kWidth;
      const float* HWY_RESTRICT y = sums.y + at;
      const float* HWY_RESTRICT dp = gradient.dp + at;
      const uint8_t* HWY_RESTRICT code = kQuantized ? gradient.codes + at : nullptr;
      const uint16_t* HWY_RESTRICT passes = gradient.passes + c;
      float* total = totals + v * kWidth;
      V g_sum = hn::Load(kFloats, total), g_y_sum = hn::Load(kFloats, total + kLanes);
      V code_sum = hn::Load(kFloats, total + 2 * kLanes);
      for (int w = 0; w < sums.rows / pool; ++w) {
        const V dp_w = hn::Load(kFloats, dp);
        HWY_UNROLL(16)
        for (int j = 0; j < pool; ++j) {
          const V g = hn::IfThenElseZero(load_bits(passes, v), dp_w);
          g_sum = hn::Add(g_sum, g);
          g_y_sum = hn::MulAdd(g, hn::Load(kFloats, y), g_y_sum);
          passes += gradient.passes_stride;
          y += sums.stride;
        }
        if constexpr (kQuantized) {
          code_sum = hn::MulAdd(dp_w, load_codes<kSigned>(code), code_sum);
          code += gradient.code_stride;
        }
        dp += gradient.dp_stride;
      }
      hn::Store(g_sum, kFloats, total);
      hn::Store(g_y_sum, kFloats, total + kLanes);
      hn::Store(code_sum, kFloats, total + 2 * kLanes);
    }
  }
}

void backward_sums(const Sums& sums, int pool, const PooledGradient& gradient, float* totals) {
  with_pool(pool, [&](auto constant) HWY_ATTR {
    constexpr int kPool = decltype(constant)::value;
    if (gradient.codes == nullptr) {
      backward_sums_of<false, false, kPool>(sums, pool, gradient, totals);
    } else if (gradient.signed_codes) {
      backward_sums_of<true, true, kPool>(sums, pool, gradient, totals);
    } else {
      backward_sums_of<true, false, kPool>(sums, pool, gradient, totals);
    }
  });
}

// dy = k_g * g + k_y * y + k_0.
void backward_apply(const Sums& sums, int any_pool, const PooledGradient& gradient,
                    const GradientAffine& step, float* dy, ptrdiff_t row_stride,
                    ptrdiff_t channel_stride) {
  with_pool(any_pool, [&](auto constant) HWY_ATTR {
    constexpr int kPool = decltype(constant)::value;
    const int pool = kPool > 0 ? kPool : any_pool;
    for (int c = 0; c < sums.channels; ++c) {
      const V of_g = hn::Set(kFloats, step.of_g[c]);
      const V of_y = hn::Set(kFloats, step.of_y[c]);
      const V constant_part = hn::Set(kFloats, step.of_one[c]);
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        const int at = c * kLanes + v * kWidth;
        const float* HWY_RESTRICT y = sums.y + at;
        const float* HWY_RESTRICT dp = gradient.dp + at;
        const uint16_t* HWY_RESTRICT passes = gradient.passes + c;
        float* HWY_RESTRICT to = dy + c * channel_stride + v * kWidth;
        for (int w = 0; w < sums.rows / pool; ++w) {
          const V dp_w = hn::Load(kFloats, dp);
          HWY_UNROLL(16)
          for (int j = 0; j < pool; ++j) {
            const V g = hn::IfThenElseZero(load_bits(passes, v), dp_w);
            const V rest = hn::MulAdd(of_y, hn::Load(kFloats, y), constant_part);
            hn::Store(hn::MulAdd(of_g, g, rest), kFloats, to);
            passes += gradient.passes_stride;
            y += sums.stride;
            to += row_stride;
          }
          dp += gradient.dp_stride;
        }
        if constexpr (kPool != 1) {  // positions that no window has
          for (int r = sums.rows / pool * pool; r < sums.rows; ++r) {
            hn::Store(hn::MulAdd(of_y, hn::Load(kFloats, y), constant_part), kFloats, to);
            y += sums.stride;
            to += row_stride;
          }
        }
      }
    }
  });
}

void spread_gradient(int rows, int channels, int any_pool, const PooledGradient& gradient, float* g,
                     ptrdiff_t row_stride, ptrdiff_t channel_stride, float* totals) {
  with_pool(any_pool, [&](auto constant) HWY_ATTR {
    constexpr int kPool = decltype(constant)::value;
    const int pool = kPool > 0 ? kPool : any_pool;
    for (int c = 0; c < channels; ++c, totals += kGradientSums * kLanes) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        const int at = c * kLanes + v * kWidth;
        const float* HWY_RESTRICT dp = gradient.dp + at;
        const uint8_t* HWY_RESTRICT code =
            gradient.codes != nullptr ? gradient.codes + at : nullptr;
        const uint16_t* HWY_RESTRICT passes = gradient.passes + c;
        float* HWY_RESTRICT to = g + c * channel_stride + v * kWidth;
        float* total = totals + v * kWidth;
        V g_sum = hn::Load(kFloats, total), code_sum = hn::Load(kFloats, total + 2 * kLanes);
        for (int w = 0; w < rows / pool; ++w) {
          const V dp_w = hn::Load(kFloats, dp);
          HWY_UNROLL(16)
          for (int j = 0; j < pool; ++j) {
            const V passed = hn::IfThenElseZero(load_bits(passes, v), dp_w);
            g_sum = hn::Add(g_sum, passed);
            hn::Store(passed, kFloats, to);
            passes += gradient.passes_stride;
            to += row_stride;
          }
          if (gradient.codes != nullptr) {
            const V codes =
                gradient.signed_codes ? load_codes<true>(code) : load_codes<false>(code);
            code_sum = hn::MulAdd(dp_w, codes, code_sum);
            code += gradient.code_stride;
          }
          dp += gradient.dp_stride;
        }
        hn::Store(g_sum, kFloats, total);
        hn::Store(code_sum, kFloats, total + 2 * kLanes);
      }
    }
  });
}

}  // namespace

void fill_activation(Simd& table) {
  table.integer_sums = integer_sums;
  table.quantize_pool = quantize_pool;
  table.relu_pool = relu_pool;
  table.backward_sums = backward_sums;
  table.backward_apply = backward_apply;
  table.spread_gradient = spread_gradient;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_activation);
void fill_activation_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_activation)(table); }
}  // namespace fmp::cpu
#endif
