// SPDX-License-Identifier: MIT
// 1-D convolution on rows of frames that sit side by side: y[l] = sum over t of W[t] x[l + t].
//
// The window of a position is read in place, there is no im2col. A dense kernel keeps kOutBlock
// output channels x a few positions in registers and broadcasts one weight to all their lanes; a
// sparse one keeps one output channel x several positions and walks over the nonzero weights. The
// gradient of the data is the same operation with transposed, flipped weights. The gradient of a
// weight is a dot product over positions and lanes, kept as lanes from chunk to chunk.
//
// Dense layers are convolutions with one tap whose positions are tiles.
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conv1d.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

// Positions that one dense step covers: what the register file holds beside kOutBlock channels.
constexpr int kDensePositions = kVectors == 1 ? 4 : 1;
// Positions that one sparse step covers: enough independent sums to hide the multiply-add latency.
constexpr int kSparsePositions = kVectors == 1 ? 8 : 4;

// What a dense kernel does in one step: a product of one weight with kWidth lanes of an operand.
struct FloatProducts {
  using Element = float;
  static constexpr int kElements = 1;  // of each lane's operand, and of a weight
  static HWY_INLINE V zero() { return hn::Zero(kFloats); }
  static HWY_INLINE V load(const float* x) { return hn::Load(kFloats, x); }
  static HWY_INLINE V broadcast(const float* w) { return hn::Set(kFloats, *w); }
  static HWY_INLINE V multiply_add(V w, V x, V sum) { return hn::MulAdd(w, x, sum); }
  static HWY_INLINE void store(V sum, float* y) { hn::Store(sum, kFloats, y); }
};

using IntTag = hn::CappedTag<int32_t, kLanes>;
constexpr IntTag kInts;
using ShortTag = hn::Repartition<int16_t, IntTag>;
constexpr ShortTag kShorts;
using VI = hn::Vec<IntTag>;
using VS = hn::Vec<ShortTag>;

// Pairs of channels in 16 bits, one multiply-add-pairs a step, exact in 32 bits.
struct PairProducts {
  using Element = int16_t;
  static constexpr int kElements = 2;
  static HWY_INLINE VI zero() { return hn::Zero(kInts); }
  static HWY_INLINE VS load(const int16_t* x) { return hn::Load(kShorts, x); }
  static HWY_INLINE VS broadcast(const int16_t* w) {
    int32_t pair;
    hwy::CopyBytes<4>(w, &pair);
    return hn::BitCast(kShorts, hn::Set(kInts, pair));
  }
  static HWY_INLINE VI multiply_add(VS w, VS x, VI sum) { return multiply_add_pairs(w, x, sum); }
  static HWY_INLINE void store(VI sum, float* y) {
    hn::Store(hn::ConvertTo(kFloats, sum), kFloats, y);
  }
  static HWY_INLINE void store(VI sum, int32_t* y) { hn::Store(sum, kInts, y); }
};

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
#define FMP_HAS_VNNI 1
// One instruction instead of two; see integer_layer.cc for why in assembly.
struct VnniPairProducts : PairProducts {
  static HWY_INLINE VI multiply_add(VS w, VS x, VI sum) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(w.raw), "v"(x.raw));
    return sum;
  }
};
#else
#define FMP_HAS_VNNI 0
#endif

// One block of OB output channels at PB positions; `steps` products for each tap.
template <class Products, int OB, int PB, typename Out>
HWY_INLINE void dense_block(const typename Products::Element* HWY_RESTRICT x, ptrdiff_t x_stride,
                            int taps, int steps, const typename Products::Element* HWY_RESTRICT w,
                            Out* HWY_RESTRICT y, ptrdiff_t y_stride) {
  constexpr int kElements = Products::kElements;
  decltype(Products::zero()) sum[OB][PB][kVectors];
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) sum[o][p][v] = Products::zero();
    }
  }
  for (int t = 0; t < taps; ++t) {
    const auto* row = x + t * x_stride;
    for (int c = 0; c < steps; ++c, row += kElements * kLanes, w += kElements * OB) {
      decltype(Products::load(x)) operand[PB][kVectors];
      HWY_UNROLL(16)
      for (int p = 0; p < PB; ++p) {
        HWY_UNROLL(16)
        for (int v = 0; v < kVectors; ++v) {
          operand[p][v] = Products::load(row + p * x_stride + v * kElements * kWidth);
        }
      }
      HWY_UNROLL(16)
      for (int o = 0; o < OB; ++o) {
        const auto weight = Products::broadcast(w + kElements * o);
        HWY_UNROLL(16)
        for (int p = 0; p < PB; ++p) {
          HWY_UNROLL(16)
          for (int v = 0; v < kVectors; ++v) {
            sum[o][p][v] = Products::multiply_add(weight, operand[p][v], sum[o][p][v]);
          }
        }
      }
    }
  }
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        Products::store(sum[o][p][v], y + p * y_stride + o * kLanes + v * kWidth);
      }
    }
  }
}

// Calls f with the block width as a compile-time constant for every block of output channels.
template <typename F>
HWY_INLINE void for_each_block(int out, const F& f) {
  int o = 0;
  for (; o + kOutBlock <= out; o += kOutBlock) f(std::integral_constant<int, kOutBlock>(), o);
  switch (out - o) {
    case 5:
      f(std::integral_constant<int, 5>(), o);
      break;
    case 4:
      f(std::integral_constant<int, 4>(), o);
      break;
    case 3:
      f(std::integral_constant<int, 3>(), o);
      break;
    case 2:
      f(std::integral_constant<int, 2>(), o);
      break;
    case 1:
      f(std::integral_constant<int, 1>(), o);
      break;
    default:
      break;
  }
}

template <class Products, typename Out>
void dense(const typename Products::Element* x, ptrdiff_t x_stride, int rows, int out, int taps,
           int steps, const typename Products::Element* weights, Out* y, ptrdiff_t y_stride) {
  const ptrdiff_t weights_per_output = static_cast<ptrdiff_t>(taps) * steps * Products::kElements;
  for_each_block(out, [&](auto block, int o) {
    const auto* w = weights + o * weights_per_output;
    const auto at = [&](auto positions, int l) {
      dense_block<Products, decltype(block)::value, decltype(positions)::value>(
          x + l * x_stride, x_stride, taps, steps, w, y + l * y_stride + o * kLanes, y_stride);
    };
    int l = 0;
    for (; l + kDensePositions <= rows; l += kDensePositions) {
      at(std::integral_constant<int, kDensePositions>(), l);
    }
    for (; l < rows; ++l) at(std::integral_constant<int, 1>(), l);
  });
}

void conv1d_dense(const float* x, ptrdiff_t x_stride, int rows, const DenseWeights& w, float* y,
                  ptrdiff_t y_stride) {
  dense<FloatProducts>(x, x_stride, rows, w.out, w.taps, w.channels, w.values, y, y_stride);
}
template <class Products, typename Out>
void dense_pairs(const int16_t* x, ptrdiff_t x_stride, int rows, const DensePairWeights& w, Out* y,
                 ptrdiff_t y_stride) {
  const int pairs = (w.channels + 1) / 2;
  dense<Products>(x, x_stride, rows, w.out, w.taps, pairs, w.values, y, y_stride);
}

// One output channel at PB positions, over its nonzero weights. kStride: of x's rows, 0 =
// any_stride.
template <int PB, int kStride>
HWY_INLINE void sparse_block(const float* HWY_RESTRICT x, ptrdiff_t any_stride, int32_t entries,
                             const int32_t* HWY_RESTRICT offset, const float* HWY_RESTRICT w,
                             float* HWY_RESTRICT y, ptrdiff_t y_stride) {
  const ptrdiff_t x_stride = kStride > 0 ? kStride : any_stride;
  V sum[PB][kVectors];
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) sum[p][v] = hn::Zero(kFloats);
  }
  for (int32_t i = 0; i < entries; ++i) {
    const float* operand = opaque(x + offset[i]);
    const V weight = hn::Set(kFloats, w[i]);
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) {
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        sum[p][v] =
            hn::MulAdd(weight, hn::Load(kFloats, operand + p * x_stride + v * kWidth), sum[p][v]);
      }
    }
  }
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(sum[p][v], kFloats, y + p * y_stride + v * kWidth);
    }
  }
}

template <int kStride>
void sparse_rows(const float* x, ptrdiff_t x_stride, int rows, const SparseWeights& w, float* y,
                 ptrdiff_t y_stride) {
  // Positions outside, channels inside: the few rows of a step stay in the first-level cache, which
  // 16 and those around them do not.
  const auto step = [&](auto positions, int l) {
    for (int o = 0; o < w.out; ++o) {
      const int32_t begin = w.row_begin[o];
      sparse_block<decltype(positions)::value, kStride>(
          x + l * x_stride, x_stride, w.row_begin[o + 1] - begin, w.offset + begin,
          w.values + begin, y + l * y_stride + o * kLanes, y_stride);
    }
  };
  int l = 0;
  for (; l + kSparsePositions <= rows; l += kSparsePositions) {
    step(std::integral_constant<int, kSparsePositions>(), l);
  }
  for (; l < rows; ++l) step(std::integral_constant<int, 1>(), l);
}

void conv1d_sparse(const float* x, ptrdiff_t x_stride, int rows, const SparseWeights& w, float* y,
                   ptrdiff_t y_stride) {
  if (x_stride == kLanes) {
    sparse_rows<kLanes>(x, x_stride, rows, w, y, y_stride);
  } else {
    sparse_rows<0>(x, x_stride, rows, w, y, y_stride);
  }
}

// OB output channels x CB vectors of input channels.
template <int OB, int CB>
HWY_INLINE void product_block(const float* HWY_RESTRICT x, ptrdiff_t x_stride, int x_lane_stride,
                              const float* HWY_RESTRICT dy, ptrdiff_t dy_stride, int rows,
                              float* HWY_RESTRICT dw, ptrdiff_t dw_stride) {
  V sum[OB][CB];
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int v = 0; v < CB; ++v) sum[o][v] = hn::Load(kFloats, dw + o * dw_stride + v * kWidth);
  }
  for (int r = 0; r < rows; ++r, x += x_stride, dy += dy_stride) {
    const float* operand = x;
    for (int lane = 0; lane < kLanes; ++lane, operand += x_lane_stride) {
      V channels[CB];
      HWY_UNROLL(16)
      for (int v = 0; v < CB; ++v) channels[v] = hn::Load(kFloats, operand + v * kWidth);
      HWY_UNROLL(16)
      for (int o = 0; o < OB; ++o) {
        const V gradient = hn::Set(kFloats, dy[o * kLanes + lane]);
        HWY_UNROLL(16)
        for (int v = 0; v < CB; ++v) sum[o][v] = hn::MulAdd(gradient, channels[v], sum[o][v]);
      }
    }
  }
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int v = 0; v < CB; ++v) hn::Store(sum[o][v], kFloats, dw + o * dw_stride + v * kWidth);
  }
}

void backward_weight_product(const float* x, ptrdiff_t x_stride, const float* dy,
                             ptrdiff_t dy_stride, int rows, int out, int channels, float* dw) {
  // Channels outside, so that their part of x stays in the first-level cache.
  const auto columns = [&](auto vectors, int c) {
    for_each_block(out, [&](auto block, int o) {
      product_block<decltype(block)::value, decltype(vectors)::value>(
          x + c, x_stride, channels, dy + o * kLanes, dy_stride, rows,
          dw + static_cast<ptrdiff_t>(o) * channels + c, channels);
    });
  };
  constexpr int kVectorsPerStep = 2;  // 6 x 2 sums
  int c = 0;
  for (; c + kVectorsPerStep * kWidth <= channels; c += kVectorsPerStep * kWidth) {
    columns(std::integral_constant<int, kVectorsPerStep>(), c);
  }
  for (; c < channels; c += kWidth) columns(std::integral_constant<int, 1>(), c);
}

// Gradients of OB output channels x TB taps at one input channel: x rows l .. l + TB - 1 serve all
// taps, so that an element of x is loaded from the second-level cache once.
template <int OB, int TB>
HWY_INLINE void weight_gradient_block(const float* HWY_RESTRICT x, ptrdiff_t x_stride,
                                      const float* HWY_RESTRICT dy, ptrdiff_t dy_stride, int rows,
                                      float* HWY_RESTRICT dw, ptrdiff_t dw_out_stride,
                                      ptrdiff_t dw_tap_stride) {
  V sum[OB][TB][kVectors];
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int t = 0; t < TB; ++t) {
      const float* from = dw + (o * dw_out_stride + t * dw_tap_stride) * kLanes;
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) sum[o][t][v] = hn::Load(kFloats, from + v * kWidth);
    }
  }
  for (int l = 0; l < rows; ++l, x += x_stride, dy += dy_stride) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      V gradient[OB];
      HWY_UNROLL(16)
      for (int o = 0; o < OB; ++o) gradient[o] = hn::Load(kFloats, dy + o * kLanes + v * kWidth);
      HWY_UNROLL(16)
      for (int t = 0; t < TB; ++t) {
        const V operand = hn::Load(kFloats, x + t * x_stride + v * kWidth);
        HWY_UNROLL(16)
        for (int o = 0; o < OB; ++o) {
          sum[o][t][v] = hn::MulAdd(gradient[o], operand, sum[o][t][v]);
        }
      }
    }
  }
  HWY_UNROLL(16)
  for (int o = 0; o < OB; ++o) {
    HWY_UNROLL(16)
    for (int t = 0; t < TB; ++t) {
      float* to = dw + (o * dw_out_stride + t * dw_tap_stride) * kLanes;
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) hn::Store(sum[o][t][v], kFloats, to + v * kWidth);
    }
  }
}

// Output channels per step: 2 x 3 taps x 2 vectors = 12 sums on AVX2, 4 x 3 x 1 on AVX-512.
constexpr int kGradientOutBlock = kVectors == 1 ? 4 : 2;
constexpr int kGradientTapBlock = 3;
// Input channels whose rows stay in the first-level cache while all output channels pass by.
constexpr int kGradientInBlock = 8;

template <int OB, int TB>
HWY_INLINE void weight_gradient_channels(const float* x, ptrdiff_t x_stride, const float* dy,
                                         ptrdiff_t dy_stride, int rows, int channels, float* dw,
                                         ptrdiff_t dw_out_stride, ptrdiff_t dw_tap_stride) {
  for (int c = 0; c < channels; ++c) {
    weight_gradient_block<OB, TB>(x + c * kLanes, x_stride, dy, dy_stride, rows,
                                  dw + static_cast<ptrdiff_t>(c) * kLanes, dw_out_stride,
                                  dw_tap_stride);
  }
}

template <int TB>
void weight_gradient_outputs(const float* x, ptrdiff_t x_stride, const float* dy,
                             ptrdiff_t dy_stride, int rows, int out, int channels, float* dw,
                             ptrdiff_t dw_out_stride, ptrdiff_t dw_tap_stride) {
  int o = 0;
  for (; o + kGradientOutBlock <= out; o += kGradientOutBlock) {
    weight_gradient_channels<kGradientOutBlock, TB>(x, x_stride, dy + o * kLanes, dy_stride, rows,
                                                    channels, dw + o * dw_out_stride * kLanes,
                                                    dw_out_stride, dw_tap_stride);
  }
  for (; o < out; ++o) {
    weight_gradient_channels<1, TB>(x, x_stride, dy + o * kLanes, dy_stride, rows, channels,
                                    dw + o * dw_out_stride * kLanes, dw_out_stride, dw_tap_stride);
  }
}

void conv1d_backward_weight_dense(const float* x, ptrdiff_t x_stride, const float* dy,
                                  ptrdiff_t dy_stride, int rows, int out, int taps, int channels,
                                  float* dw) {
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(taps) * channels;
  for (int t = 0; t < taps; t += kGradientTapBlock) {
    for (int c = 0; c < channels; c += kGradientInBlock) {
      const int block = std::min(kGradientInBlock, channels - c);
      const auto outputs = [&](auto tap_block) {
        weight_gradient_outputs<decltype(tap_block)::value>(
            x + t * x_stride + c * kLanes, x_stride, dy, dy_stride, rows, out, block,
            dw + (static_cast<ptrdiff_t>(t) * channels + c) * kLanes, out_stride, channels);
      };
      switch (taps - t) {
        case 1:
          outputs(std::integral_constant<int, 1>());
          break;
        case 2:
          outputs(std::integral_constant<int, 2>());
          break;
        default:
          outputs(std::integral_constant<int, kGradientTapBlock>());
          break;
      }
    }
  }
}

// Gradients of EB weights of one tap of an input channel from PB of its rows, which are in
// registers. kStride: of dy's rows, 0 = any_stride. EB sums hide the latency of one.
template <int EB, int kStride, int PB>
HWY_INLINE void sparse_gradient_entries(const V (&operand)[PB], const float* HWY_RESTRICT dy,
                                        ptrdiff_t any_stride, const int32_t* HWY_RESTRICT offset,
                                        float* HWY_RESTRICT dw) {
  const ptrdiff_t dy_stride = kStride > 0 ? kStride : any_stride;
  const float* gradient[EB];
  V sum[EB];
  HWY_UNROLL(16)
  for (int e = 0; e < EB; ++e) {
    gradient[e] = opaque(dy + offset[e]);
    sum[e] = hn::Load(kFloats, dw + e * kLanes);
  }
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) {
    HWY_UNROLL(16)
    for (int e = 0; e < EB; ++e) {
      sum[e] = hn::MulAdd(hn::Load(kFloats, gradient[e] + p * dy_stride), operand[p], sum[e]);
    }
  }
  HWY_UNROLL(16)
  for (int e = 0; e < EB; ++e) hn::Store(sum[e], kFloats, dw + e * kLanes);
}

template <int PB, int kStride>
HWY_INLINE void sparse_gradient_block(const float* x, const float* dy, ptrdiff_t dy_stride,
                                      int32_t entries, const int32_t* offset, float* dw) {
  HWY_UNROLL(16)
  for (int v = 0; v < kVectors; ++v, x += kWidth, dy += kWidth, dw += kWidth) {
    V operand[PB];
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) operand[p] = hn::Load(kFloats, x + p * kLanes);
    int32_t i = 0;
    for (; i + 4 <= entries; i += 4) {
      sparse_gradient_entries<4, kStride>(operand, dy, dy_stride, offset + i,
                                          dw + static_cast<ptrdiff_t>(i) * kLanes);
    }
    for (; i + 2 <= entries; i += 2) {
      sparse_gradient_entries<2, kStride>(operand, dy, dy_stride, offset + i,
                                          dw + static_cast<ptrdiff_t>(i) * kLanes);
    }
    for (; i < entries; ++i) {
      sparse_gradient_entries<1, kStride>(operand, dy, dy_stride, offset + i,
                                          dw + static_cast<ptrdiff_t>(i) * kLanes);
    }
  }
}

template <int kStride>
HWY_INLINE void sparse_gradient_rows(const float* x, const float* dy, ptrdiff_t dy_stride, int rows,
                                     int32_t entries, const int32_t* offset, float* dw) {
  int l = 0;
  const auto step = [&](auto positions) HWY_ATTR {
    constexpr int kPositions = decltype(positions)::value;
    for (; l + kPositions <= rows; l += kPositions) {
      sparse_gradient_block<kPositions, kStride>(x + l * kLanes, dy + l * dy_stride, dy_stride,
                                                 entries, offset, dw);
    }
  };
  if constexpr (kVectors == 1) step(std::integral_constant<int, 16>());
  step(std::integral_constant<int, 8>());
  step(std::integral_constant<int, 1>());
}

void conv1d_backward_weight_sparse(const float* x, const float* dy, ptrdiff_t dy_stride, int rows,
                                   int taps, const int32_t* begin, const int32_t* offset,
                                   float* dw) {
  for (int t = 0; t < taps; ++t, x += kLanes) {
    const int32_t entries = begin[t + 1] - begin[t];
    if (entries == 0) continue;
    float* to = dw + static_cast<ptrdiff_t>(begin[t]) * kLanes;
    if (dy_stride == kLanes) {
      sparse_gradient_rows<kLanes>(x, dy, dy_stride, rows, entries, offset + begin[t], to);
    } else {
      sparse_gradient_rows<0>(x, dy, dy_stride, rows, entries, offset + begin[t], to);
    }
  }
}

}  // namespace

void fill_conv1d(Simd& table) {
  table.conv1d_dense = conv1d_dense;
  table.conv1d_sparse = conv1d_sparse;
  table.conv1d_dense_pairs = dense_pairs<PairProducts, float>;
  table.conv1d_dense_pairs_wrapping = dense_pairs<PairProducts, int32_t>;
#if FMP_HAS_VNNI
  if (__builtin_cpu_supports("avx512vnni") != 0) {
    table.conv1d_dense_pairs = dense_pairs<VnniPairProducts, float>;
    table.conv1d_dense_pairs_wrapping = dense_pairs<VnniPairProducts, int32_t>;
  }
#endif
  table.backward_weight_product = backward_weight_product;
  table.conv1d_backward_weight_dense = conv1d_backward_weight_dense;
  table.conv1d_backward_weight_sparse = conv1d_backward_weight_sparse;
}

#undef FMP_HAS_VNNI

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_conv1d);
void fill_conv1d_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_conv1d)(table); }
}  // namespace fmp::cpu
#endif
