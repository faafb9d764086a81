// SPDX-License-Identifier: MIT
// What a training step does with the sums of a sparse layer on codes, while they are in registers:
// the same as activation.cc does with sums in memory, to the bit. With few weights a sum is made in
// less time than it takes to store it and to load it again.
#include <type_traits>

#include "kernels/cpu/chunks.h"
#include "kernels/cpu/quad_weights.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sparse_sums.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/code_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

HWY_INLINE V to_float(VI sum) { return hn::ConvertTo(kFloats, sum); }

// Pointers that go from position to position, four at a time, as far as an address can reach. GCC
// would make all addresses of a block in advance and keep them where it has no room for them,
// unless it does not see that they are a sequence.
template <typename T>
class Walk {
 public:
  HWY_INLINE Walk(T* first, ptrdiff_t stride)
      : at_(first), stride_(stride), three_strides_(3 * stride) {}
  // Every position from 0 on in its turn.
  HWY_INLINE T* at(int position) {
    switch (position % 4) {
      case 0:
        if (position > 0) at_ = opaque(at_ + 4 * stride_);
        return at_;
      case 1:
        return at_ + stride_;
      case 2:
        return at_ + 2 * stride_;
      default:
        return at_ + three_strides_;
    }
  }

 private:
  T* at_;
  ptrdiff_t stride_, three_strides_;
};

// Each functor takes PB positions of an output from `row` on, vector v of their lanes; PB is a
// multiple of kPool, which is 1 or 2.
template <int kPool, bool kSigned>
struct ToCodes {
  ChannelAffine channel_affine;
  Activation<true, kSigned> activation;
  uint8_t* out;
  ptrdiff_t out_stride;
  uint16_t* passes;
  ptrdiff_t passes_stride;

  template <int PB>
  HWY_INLINE void operator()(int output, int row, int v, const VI (&sums)[PB]) const {
    const Affine affine(channel_affine, output);
    Walk to(out + row / kPool * out_stride + output * kLanes + v * kWidth, out_stride);
    Walk bits(passes + row * passes_stride + output, passes_stride);
    HWY_UNROLL(16)
    for (int p = 0; p < PB; p += kPool) {
      const V t = affine(to_float(sums[p]));
      Mask first, second;
      if constexpr (kPool == 1) {
        store_pooled(activation.window(t, first), to.at(p));
      } else {
        store_pooled(activation.window(t, affine(to_float(sums[p + 1])), first, second),
                     to.at(p / kPool));
      }
      store_bits(first, bits.at(p), v);
      if constexpr (kPool == 2) store_bits(second, bits.at(p + 1), v);
    }
  }
};

template <int kPool, bool kSigned>
struct ToGradientSums {
  PooledGradient gradient;
  float* totals;

  template <int PB>
  HWY_INLINE void operator()(int output, int row, int v, const VI (&sums)[PB]) const {
    const int window = row / kPool, at = output * kLanes + v * kWidth;
    Walk dp(gradient.dp + window * gradient.dp_stride + at, gradient.dp_stride);
    Walk codes(gradient.codes + window * gradient.code_stride + at, gradient.code_stride);
    Walk passes(gradient.passes + row * gradient.passes_stride + output, gradient.passes_stride);
    float* total = totals + output * kGradientSums * kLanes + v * kWidth;
    V g_sum = hn::Load(kFloats, total), g_y_sum = hn::Load(kFloats, total + kLanes);
    V code_sum = hn::Load(kFloats, total + 2 * kLanes);
    HWY_UNROLL(16)
    for (int p = 0; p < PB; p += kPool) {
      const V dp_w = hn::Load(kFloats, dp.at(p / kPool));
      Mask passed = load_bits(passes.at(p), v);
      VI y = sums[p];
      if constexpr (kPool == 2) {  // only one of the two has a gradient
        const Mask second = load_bits(passes.at(p + 1), v);
        y = hn::IfThenElse(hn::RebindMask(kInts, second), sums[p + 1], y);
        passed = hn::Or(passed, second);
      }
      const V g = hn::IfThenElseZero(passed, dp_w);
      g_sum = hn::Add(g_sum, g);
      g_y_sum = hn::MulAdd(g, to_float(y), g_y_sum);
      code_sum = hn::MulAdd(dp_w, load_codes<kSigned>(codes.at(p / kPool)), code_sum);
    }
    hn::Store(g_sum, kFloats, total);
    hn::Store(g_y_sum, kFloats, total + kLanes);
    hn::Store(code_sum, kFloats, total + 2 * kLanes);
  }
};

template <int kPool>
struct ToGradient {
  PooledGradient gradient;
  GradientAffine step;
  float* dy;
  ptrdiff_t row_stride, channel_stride;

  template <int PB>
  HWY_INLINE void operator()(int output, int row, int v, const VI (&sums)[PB]) const {
    const V of_g = hn::Set(kFloats, step.of_g[output]);
    const V of_y = hn::Set(kFloats, step.of_y[output]);
    const V of_one = hn::Set(kFloats, step.of_one[output]);
    constexpr int kSecondLevel = 2;
    const int window = row / kPool, lanes = output * kLanes + v * kWidth;
    Walk dp(gradient.dp + window * gradient.dp_stride + lanes, gradient.dp_stride);
    Walk passes(gradient.passes + row * gradient.passes_stride + output, gradient.passes_stride);
    Walk to(dy + row * row_stride + output * channel_stride + v * kWidth, row_stride);
    HWY_UNROLL(16)
    for (int p = 0; p < PB; p += kPool) {
      const float* at = dp.at(p / kPool);
      // The gradient of the next chunk is on its way while this one's is used.
      __builtin_prefetch(at + kChunkRows / kPool * gradient.dp_stride, 0, kSecondLevel);
      const V dp_w = hn::Load(kFloats, at);
      HWY_UNROLL(2)
      for (int j = 0; j < kPool; ++j) {
        const V g = hn::IfThenElseZero(load_bits(passes.at(p + j), v), dp_w);
        const V rest = hn::MulAdd(of_y, to_float(sums[p + j]), of_one);
        hn::Store(hn::MulAdd(of_g, g, rest), kFloats, to.at(p + j));
      }
    }
  }
};

// make(pool as a type): what takes the sums.
template <class Make>
void use_sums(const CodeChunk& chunk, int outputs, int pool, const Make& make) {
  with_dot(chunk.weights.dot, chunk.weights.two_channels, [&](auto dot) {
    const auto use = [&](auto constant) {
      constexpr int kPool = decltype(constant)::value;
      sums_of_rows<decltype(dot), true, kPool>(chunk.weights, 0, outputs, chunk.x, chunk.rows,
                                               chunk.offsets, make(constant));
    };
    if (pool == 2) {
      use(std::integral_constant<int, 2>());
    } else {
      use(std::integral_constant<int, 1>());
    }
  });
}

// f(whether codes have a sign, as a type).
template <class F>
HWY_INLINE void with_sign(bool is_signed, const F& f) {
  if (is_signed) return f(std::true_type());
  f(std::false_type());
}

void sparse_codes(const CodeChunk& chunk, int outputs, const ChannelAffine& affine,
                  const ActivationSpec& spec, uint8_t* out, ptrdiff_t out_stride, uint16_t* passes,
                  ptrdiff_t passes_stride) {
  with_sign(spec.min_code < 0, [&](auto is_signed) HWY_ATTR {
    constexpr bool kSigned = decltype(is_signed)::value;
    const Activation<true, kSigned> activation(spec);
    use_sums(chunk, outputs, spec.pool, [&](auto pool) HWY_ATTR {
      return ToCodes<decltype(pool)::value, kSigned>{affine,     activation, out,
                                                     out_stride, passes,     passes_stride};
    });
  });
}

void sparse_gradient_sums(const CodeChunk& chunk, int outputs, int pool,
                          const PooledGradient& gradient, float* totals) {
  with_sign(gradient.signed_codes, [&](auto is_signed) {
    constexpr bool kSigned = decltype(is_signed)::value;
    use_sums(chunk, outputs, pool, [&](auto constant) {
      return ToGradientSums<decltype(constant)::value, kSigned>{gradient, totals};
    });
  });
}

void sparse_gradient(const CodeChunk& chunk, int outputs, int pool, const PooledGradient& gradient,
                     const GradientAffine& step, float* dy, ptrdiff_t row_stride,
                     ptrdiff_t channel_stride) {
  use_sums(chunk, outputs, pool, [&](auto constant) {
    return ToGradient<decltype(constant)::value>{gradient, step, dy, row_stride, channel_stride};
  });
}

}  // namespace

void fill_sparse_sums(Simd& table) {
  table.sparse_codes = sparse_codes;
  table.sparse_gradient_sums = sparse_gradient_sums;
  table.sparse_gradient = sparse_gradient;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_sparse_sums);
void fill_sparse_sums_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_sparse_sums)(table); }
}  // namespace fmp::cpu
#endif
