// SPDX-License-Identifier: MIT
// Everything that touches each element once: unpacking codes to operands, batch-norm's sums, and
// batch-norm + QuantReLU + MaxPool1d in one pass, forward and backward.
//
// Batch-norm and the division by the quantizer's scale are one affine step t = gain * y + shift, y
// being the convolution's sum of codes. Forward writes clamp(round(t)), the maximum of each pooling
// window. Backward keeps nothing but y: it computes the codes again, finds the winner of each
// window (the first largest code, as PyTorch's MaxPool1d does on dequantized values) and applies
// the straight-through rule of Brevitas' QuantReLU: the gradient passes where 0 < t and round(t) <=
// max_code; the scale's gradient is code - t where it passes, max_code where clipped.
#include <limits>

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

template <class A>
HWY_INLINE V pooled_maximum(const float* y, ptrdiff_t y_stride, int pool, const A& affine) {
  V largest = affine(hn::Load(kFloats, y));
  for (int j = 1; j < pool; ++j) {
    largest = hn::Max(largest, affine(hn::Load(kFloats, y + j * y_stride)));
  }
  return largest;
}

// Calls f with the pooling window as a compile-time constant where it is a usual one (0 = any).
template <typename F>
HWY_INLINE void with_pool(int pool, const F& f) {
  switch (pool) {
    case 1:
      f(std::integral_constant<int, 1>());
      break;
    case 2:
      f(std::integral_constant<int, 2>());
      break;
    default:
      f(std::integral_constant<int, 0>());
      break;
  }
}

// Windows of a channel that one step covers: constants and sums of the channel are loaded, and sums
// stored, once for all of them.
constexpr int kWindows = 4;

// Calls f(first window, windows of this step as a constant) for all windows.
template <typename F>
HWY_INLINE void for_each_step(int windows, const F& f) {
  int w = 0;
  for (; w + kWindows <= windows; w += kWindows) f(w, std::integral_constant<int, kWindows>());
  for (; w < windows; ++w) f(w, std::integral_constant<int, 1>());
}

// out[window][channel] = store(largest t of the window); T: of out; A: makes t, from `constants`
// and a channel.
template <class A, class Constants, typename T, typename Store>
HWY_INLINE void pool_windows(const float* HWY_RESTRICT y, ptrdiff_t y_stride, int rows,
                             int channels, const Constants& constants, int any_pool,
                             T* HWY_RESTRICT out, const Store& store) {
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(channels) * kLanes;
  with_pool(any_pool, [&](auto constant) {
    const int pool = decltype(constant)::value > 0 ? decltype(constant)::value : any_pool;
    for_each_step(rows / pool, [&](int first, auto windows) {
      for (int c = 0; c < channels; ++c) {
        const A affine(constants, c);
        HWY_UNROLL(16)
        for (int w = first; w < first + decltype(windows)::value; ++w) {
          HWY_UNROLL(16)
          for (int v = 0; v < kVectors; ++v) {
            const int at = c * kLanes + v * kWidth;
            store(pooled_maximum(y + w * pool * y_stride + at, y_stride, pool, affine),
                  out + w * out_stride + at);
          }
        }
      }
    });
  });
}

HWY_INLINE void store_code(V t, V max_code, uint8_t* to) {
  const V code = hn::Min(hn::Max(t, hn::Zero(kFloats)), max_code);
  hn::StoreU(hn::DemoteTo(kBytes, hn::NearestInt(code)), kBytes, to);
}
HWY_INLINE void store_positive(V t, float* to) {
  hn::Store(hn::Max(t, hn::Zero(kFloats)), kFloats, to);
}

void quantize_pool(const float* y, ptrdiff_t y_stride, int rows, int channels,
                   const ChannelAffine& affine, const ActivationSpec& spec, uint8_t* out) {
  const V max_code = hn::Set(kFloats, spec.max_code);
  pool_windows<Affine>(y, y_stride, rows, channels, affine, spec.pool, out,
                       [&](V t, uint8_t* to) { store_code(t, max_code, to); });
}

void relu_pool(const float* y, ptrdiff_t y_stride, int rows, int channels,
               const ChannelAffine& affine, const ActivationSpec& spec, float* out) {
  pool_windows<Affine>(y, y_stride, rows, channels, affine, spec.pool, out, store_positive);
}

void evaluate_codes(const float* y, ptrdiff_t y_stride, int rows, int channels,
                    const EvaluationSteps& steps, const ActivationSpec& spec, uint8_t* out) {
  const V max_code = hn::Set(kFloats, spec.max_code), scale = hn::Set(kFloats, steps.act_scale);
  pool_windows<EvaluationAffine>(
      y, y_stride, rows, channels, steps, spec.pool, out,
      [&](V value, uint8_t* to) { store_code(hn::Div(value, scale), max_code, to); });
}

void evaluate_values(const float* y, ptrdiff_t y_stride, int rows, int channels,
                     const EvaluationSteps& steps, const ActivationSpec& spec, float* out) {
  pool_windows<EvaluationAffine>(y, y_stride, rows, channels, steps, spec.pool, out,
                                 store_positive);
}

// What pooling compares: the clamped code, or max(t, 0) without quantization.
template <bool kQuantized>
HWY_INLINE V pooled_value(V t, V max_code) {
  const V positive = hn::Max(t, hn::Zero(kFloats));
  return kQuantized ? hn::Min(hn::Round(positive), max_code) : positive;
}

// The winner of a window: the first position with the largest value.
struct Winner {
  V value, t, y;
  V position;  // 0 .. pool - 1
};

template <bool kQuantized>
HWY_INLINE Winner find_winner(const float* y, ptrdiff_t y_stride, int pool, const Affine& affine,
                              V max_code) {
  Winner w;
  w.y = hn::Load(kFloats, y);
  w.t = affine(w.y);
  w.value = pooled_value<kQuantized>(w.t, max_code);
  w.position = hn::Zero(kFloats);
  for (int j = 1; j < pool; ++j) {
    const V y_j = hn::Load(kFloats, y + j * y_stride);
    const V t_j = affine(y_j);
    const V value_j = pooled_value<kQuantized>(t_j, max_code);
    const auto better = hn::Gt(value_j, w.value);
    w.value = hn::IfThenElse(better, value_j, w.value);
    w.t = hn::IfThenElse(better, t_j, w.t);
    w.y = hn::IfThenElse(better, y_j, w.y);
    w.position = hn::IfThenElse(better, hn::Set(kFloats, static_cast<float>(j)), w.position);
  }
  return w;
}

// The t from which codes are clipped: max_code is odd, so that max_code + 0.5 rounds up to even.
HWY_INLINE V clipped_from(const ActivationSpec& spec) {
  return hn::Set(kFloats,
                 spec.quantized ? spec.max_code + 0.5F : std::numeric_limits<float>::infinity());
}

// The part of dp that reaches the winner's t.
HWY_INLINE V passed_gradient(const Winner& w, V clipped, V dp) {
  return hn::IfThenElseZero(hn::And(hn::Gt(w.t, hn::Zero(kFloats)), hn::Lt(w.t, clipped)), dp);
}

// Positions outside, channels inside, so that y and dp are read in the order of memory; the sums of
// every channel wait in `sums`, [channels][2][kLanes].
template <bool kQuantized, int kPool>
double backward_sums(const float* HWY_RESTRICT y, ptrdiff_t y_stride, int rows, int channels,
                     const ChannelAffine& channel_affine, const ChannelAffine& xhat_affine,
                     const ActivationSpec& spec, const float* HWY_RESTRICT dp,
                     float* HWY_RESTRICT sums) {
  const int pool = kPool > 0 ? kPool : spec.pool;
  const ptrdiff_t dp_stride = static_cast<ptrdiff_t>(channels) * kLanes;
  const V max_code = hn::Set(kFloats, spec.max_code), clipped = clipped_from(spec);
  V scale_gradient[kVectors];
  HWY_UNROLL(16)
  for (int v = 0; v < kVectors; ++v) scale_gradient[v] = hn::Zero(kFloats);
  for_each_step(rows / pool, [&](int first, auto windows) {
    for (int c = 0; c < channels; ++c) {
      const Affine affine(channel_affine, c), to_xhat(xhat_affine, c);
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        float* at_sums = sums + 2 * c * kLanes + v * kWidth;
        V sum_g = hn::Load(kFloats, at_sums), sum_g_xhat = hn::Load(kFloats, at_sums + kLanes);
        const int at = c * kLanes + v * kWidth;
        HWY_UNROLL(16)
        for (int i = first; i < first + decltype(windows)::value; ++i) {
          const V gradient = hn::Load(kFloats, dp + i * dp_stride + at);
          const Winner w = find_winner<kQuantized>(y + i * pool * y_stride + at, y_stride, pool,
                                                   affine, max_code);
          const V g = passed_gradient(w, clipped, gradient);
          sum_g = hn::Add(sum_g, g);
          sum_g_xhat = hn::MulAdd(g, to_xhat(w.y), sum_g_xhat);
          if (kQuantized) {
            // dp * code - g * t: code - t where it passes, max_code where clipped, 0 below zero.
            const V codes = hn::MulAdd(gradient, w.value, scale_gradient[v]);
            scale_gradient[v] = hn::NegMulAdd(g, w.t, codes);
          }
        }
        hn::Store(sum_g, kFloats, at_sums);
        hn::Store(sum_g_xhat, kFloats, at_sums + kLanes);
      }
    }
  });
  return static_cast<double>(sum_of_lanes(scale_gradient));
}

double activation_backward_sums(const float* y, ptrdiff_t y_stride, int rows, int channels,
                                const ChannelAffine& affine, const ChannelAffine& xhat_affine,
                                const ActivationSpec& spec, const float* dp, float* sums) {
  double scale_gradient = 0;
  with_pool(spec.pool, [&](auto pool) {
    constexpr int kPool = decltype(pool)::value;
    const auto run = spec.quantized ? backward_sums<true, kPool> : backward_sums<false, kPool>;
    scale_gradient = run(y, y_stride, rows, channels, affine, xhat_affine, spec, dp, sums);
  });
  return scale_gradient;
}

void add_lane_sums(const float* sums, int count, double* totals) {
  for (int i = 0; i < count; ++i, sums += kLanes) {
    V lanes[kVectors];
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) lanes[v] = hn::Load(kFloats, sums + v * kWidth);
    totals[i] += static_cast<double>(sum_of_lanes(lanes));
  }
}

template <bool kQuantized, int kPool>
void backward_apply(const float* HWY_RESTRICT y, ptrdiff_t y_stride, int rows, int channels,
                    const ChannelAffine& channel_affine, const ActivationSpec& spec,
                    const float* HWY_RESTRICT dp, const GradientAffine& gradient,
                    float* HWY_RESTRICT dy, ptrdiff_t dy_stride) {
  const int pool = kPool > 0 ? kPool : spec.pool;
  const ptrdiff_t dp_stride = static_cast<ptrdiff_t>(channels) * kLanes;
  const V max_code = hn::Set(kFloats, spec.max_code), clipped = clipped_from(spec);
  for_each_step(rows / pool, [&](int first, auto windows) {
    for (int c = 0; c < channels; ++c) {
      const Affine affine(channel_affine, c);
      const V of_g = hn::Set(kFloats, gradient.of_g[c]);
      const V of_y = hn::Set(kFloats, gradient.of_y[c]);
      const V of_one = hn::Set(kFloats, gradient.of_one[c]);
      HWY_UNROLL(16)
      for (int i = first; i < first + decltype(windows)::value; ++i) {
        HWY_UNROLL(16)
        for (int v = 0; v < kVectors; ++v) {
          const int at = c * kLanes + v * kWidth;
          const float* y_v = y + i * pool * y_stride + at;
          float* dy_v = dy + i * pool * dy_stride + at;
          const Winner w = find_winner<kQuantized>(y_v, y_stride, pool, affine, max_code);
          const V g = passed_gradient(w, clipped, hn::Load(kFloats, dp + i * dp_stride + at));
          for (int j = 0; j < pool; ++j) {
            const V rest = hn::MulAdd(of_y, hn::Load(kFloats, y_v + j * y_stride), of_one);
            const auto wins = hn::Eq(w.position, hn::Set(kFloats, static_cast<float>(j)));
            hn::Store(hn::MulAdd(of_g, hn::IfThenElseZero(wins, g), rest), kFloats,
                      dy_v + j * dy_stride);
          }
        }
      }
    }
  });
}

void activation_backward_apply(const float* y, ptrdiff_t y_stride, int rows, int channels,
                               const ChannelAffine& affine, const ActivationSpec& spec,
                               const float* dp, const GradientAffine& gradient, float* dy,
                               ptrdiff_t dy_stride) {
  with_pool(spec.pool, [&](auto pool) {
    constexpr int kPool = decltype(pool)::value;
    const auto run = spec.quantized ? backward_apply<true, kPool> : backward_apply<false, kPool>;
    run(y, y_stride, rows, channels, affine, spec, dp, gradient, dy, dy_stride);
  });
}

int collect_at_least(const float* y, ptrdiff_t y_stride, int rows, int channels,
                     const ChannelAffine& channel_affine, float threshold, int lanes, float* values,
                     int32_t* places) {
  const V limit = hn::Set(kFloats, threshold);
  HWY_ALIGN float t_lane[kLanes];
  int count = 0;
  for (int l = 0; l < rows; ++l, y += y_stride) {
    for (int c = 0; c < channels; ++c) {
      const Affine affine(channel_affine, c);
      for (int v = 0; v < kVectors; ++v) {
        const V t = affine(hn::Load(kFloats, y + c * kLanes + v * kWidth));
        if (hn::AllFalse(kFloats, hn::Ge(t, limit))) continue;
        hn::Store(t, kFloats, t_lane);
        for (int i = 0; i < kWidth && v * kWidth + i < lanes; ++i) {
          if (t_lane[i] < threshold) continue;
          values[count] = t_lane[i];
          places[count++] = (l * channels + c) * kLanes + v * kWidth + i;
        }
      }
    }
  }
  return count;
}

}  // namespace

void fill_elementwise(Simd& table) {
  table.target = hwy::TargetName(HWY_TARGET);
  table.unpack_u8 = unpack_u8;
  table.unpack_s8 = unpack_s8;
  table.unpack_pairs_u8 = unpack_pairs_u8;
  table.unpack_pairs_s8 = unpack_pairs_s8;
  table.transpose_codes = transpose_codes;
  table.channel_sums = channel_sums;
  table.quantize_pool = quantize_pool;
  table.relu_pool = relu_pool;
  table.evaluate_codes = evaluate_codes;
  table.evaluate_values = evaluate_values;
  table.activation_backward_sums = activation_backward_sums;
  table.add_lane_sums = add_lane_sums;
  table.activation_backward_apply = activation_backward_apply;
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
