// SPDX-License-Identifier: MIT
// A layer on integers: y[l][o] = sum over taps t, channels c of w[o][t][c] * x[l + t][c], then the
// largest y of each pooling window, then its code. Direct sums stay in registers until they are
// codes: four output channels are finished together and stored as one quad.
//
// A dense kernel keeps four outputs x a few positions in registers. A sparse one keeps one output x
// several positions and walks over the quads of weights that are not all zero: at a density of 0.1
// a third of them, each of which costs no more than a single weight would.
//
// Where 8-bit operands cannot be multiplied directly, a dense convolution of three taps runs at
// Winograd's points (winograd.h): here are the transforms around the matrix products of conv1d.cc.
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/integer_simd.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/integer_layer.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/winograd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

constexpr hn::RebindToUnsigned<IntTag> kUnsigned;
constexpr hn::Repartition<uint64_t, IntTag> kLongs;

// Codes of N vectors of sums of one channel; see Requantizer.
template <int N>
HWY_INLINE void multiplied_codes(const VI (&sums)[N], const Requantizer& r,
                                 const int32_t* thresholds, VI (&codes)[N]) {
  const VI base = hn::Set(kInts, r.base), top = hn::Set(kInts, r.top);
  const auto multiplier = hn::Set(kUnsigned, r.multiplier);
  hn::Vec<decltype(kUnsigned)> steps[N];
  HWY_UNROLL(16)
  for (int i = 0; i < N; ++i) {
    steps[i] = hn::BitCast(kUnsigned, hn::Sub(hn::Min(hn::Max(sums[i], base), top), base));
  }
  if (r.fits_32_bits) {
    const auto offset = hn::Set(kUnsigned, static_cast<uint32_t>(r.offset));
    HWY_UNROLL(16)
    for (int i = 0; i < N; ++i) {
      const auto product = hn::Add(hn::Mul(steps[i], multiplier), offset);
      codes[i] = hn::BitCast(kInts, hn::ShiftRightSame(product, r.shift));
    }
    return;
  }
  const auto offset = hn::Set(kLongs, r.offset), slack = hn::Set(kLongs, r.slack);
  auto changed = hn::Zero(kLongs);
  HWY_UNROLL(16)
  for (int i = 0; i < N; ++i) {
    const auto high = hn::BitCast(kUnsigned, hn::ShiftRight<32>(hn::BitCast(kLongs, steps[i])));
    const auto even = hn::Add(hn::MulEven(steps[i], multiplier), offset);
    const auto odd = hn::Add(hn::MulEven(high, multiplier), offset);
    codes[i] = hn::BitCast(kInts, hn::Or(hn::ShiftRightSame(even, r.shift),
                                         hn::ShiftLeft<32>(hn::ShiftRightSame(odd, r.shift))));
    if (r.exact) continue;
    changed = hn::Or(changed, hn::Xor(even, hn::Add(even, slack)));
    changed = hn::Or(changed, hn::Xor(odd, hn::Add(odd, slack)));
  }
  changed = hn::ShiftRightSame(changed, r.shift);
  if (HWY_LIKELY(hn::AllTrue(kLongs, hn::Eq(changed, hn::Zero(kLongs))))) return;
  for (int i = 0; i < N; ++i) {
    const VI next = hn::GatherIndex(kInts, thresholds, codes[i]);
    const VI one = hn::Set(kInts, 1);
    codes[i] = hn::IfThenElse(hn::Lt(sums[i], next), codes[i], hn::Add(codes[i], one));
  }
}

HWY_INLINE VI searched_codes(VI sum, const int32_t* thresholds, int levels) {
  VI code = hn::Zero(kInts);
  for (int step = (levels + 1) / 2; step > 0; step /= 2) {
    const VI next = hn::Add(code, hn::Set(kInts, step));
    const VI threshold = hn::GatherIndex(kInts, thresholds - 1, next);
    code = hn::IfThenElse(hn::Lt(sum, threshold), code, next);
  }
  return code;
}

// Codes of channel j of a quad of outputs, each put into its byte of packed.
template <int N>
HWY_INLINE void add_codes(const IntegerLayerView& layer, int out_quad, int j, const VI (&sums)[N],
                          VI (&packed)[N]) {
  const ptrdiff_t channel = static_cast<ptrdiff_t>(out_quad) * kQuad + j;
  const Requantizer& r = layer.requantizers[channel];
  const int32_t* thresholds = layer.thresholds + channel * (layer.levels + 1);
  VI codes[N];
  if (HWY_LIKELY(r.shift >= 0)) {
    multiplied_codes(sums, r, thresholds, codes);
  } else {
    for (int i = 0; i < N; ++i) codes[i] = searched_codes(sums[i], thresholds, layer.levels);
  }
  HWY_UNROLL(16)
  for (int i = 0; i < N; ++i) {
    packed[i] = hn::Or(packed[i], hn::ShiftLeftSame(codes[i], 8 * byte_of_channel(j)));
  }
}

// The largest of each window of kPool vectors.
template <int kPool, int N>
HWY_INLINE void largest_of_windows(const VI (&sums)[N], VI (&largest)[N / kPool]) {
  HWY_UNROLL(16)
  for (int p = 0; p < N / kPool; ++p) {
    largest[p] = sums[p * kPool];
    HWY_UNROLL(16)
    for (int k = 1; k < kPool; ++k) largest[p] = hn::Max(largest[p], sums[p * kPool + k]);
  }
}

// Sums of four outputs at PB positions.
template <class D, int PB>
HWY_INLINE void dense_sums(const IntegerLayerView& layer, int out_quad,
                           const uint8_t* HWY_RESTRICT x, VI (&result)[kQuad][PB]) {
  typename D::Sum sum[kQuad][PB];
  HWY_UNROLL(16)
  for (int o = 0; o < kQuad; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) sum[o][p] = D::zero();
  }
  const ptrdiff_t stride = static_cast<ptrdiff_t>(layer.in_quads) * kQuadRow;
  const int count = layer.taps * layer.in_quads;  // the window is one contiguous block
  const int32_t* HWY_RESTRICT w =
      layer.dense[D::kWords - 1] + static_cast<ptrdiff_t>(out_quad) * count * kQuad * D::kWords;
  for (int i = 0; i < count; ++i, x += kQuadRow, w += kQuad * D::kWords) {
    typename D::Operand operand[PB];
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) operand[p] = D::load(x + p * stride);
    HWY_UNROLL(16)
    for (int o = 0; o < kQuad; ++o) {
      const typename D::Weights weights = D::set(w + o * D::kWords);
      HWY_UNROLL(16)
      for (int p = 0; p < PB; ++p) D::add(operand[p], weights, sum[o][p]);
    }
  }
  HWY_UNROLL(16)
  for (int o = 0; o < kQuad; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) result[o][p] = D::finish(out_of_loop(sum[o][p]));
  }
}

// Sums of one output at PB positions.
template <class D, int PB>
HWY_INLINE void sparse_sums(const IntegerLayerView& layer, int out, const uint8_t* HWY_RESTRICT x,
                            VI (&result)[PB]) {
  typename D::Sum sum[PB];
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) sum[p] = D::zero();
  const ptrdiff_t stride = static_cast<ptrdiff_t>(layer.in_quads) * kQuadRow;
  for (int32_t i = layer.row_begin[out]; i < layer.row_begin[out + 1]; ++i) {
    const typename D::Weights weights = D::set(layer.values[D::kWords - 1] + i * D::kWords);
    const uint8_t* operand = x + layer.offset[i];
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) D::add(D::load(operand + p * stride), weights, sum[p]);
  }
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) result[p] = D::finish(out_of_loop(sum[p]));
}

// Calls f(j, sums) for the four outputs j of a quad, sums being those at PB positions.
template <class D, bool kSparse, int PB, typename F>
HWY_INLINE void for_each_output(const IntegerLayerView& layer, int out_quad, const uint8_t* x,
                                const F& f) {
  if constexpr (kSparse) {
    HWY_UNROLL(16)
    for (int j = 0; j < kQuad; ++j) {
      VI sums[PB];
      sparse_sums<D, PB>(layer, out_quad * kQuad + j, x, sums);
      f(j, sums);
    }
  } else {
    VI sums[kQuad][PB];
    dense_sums<D, PB>(layer, out_quad, x, sums);
    HWY_UNROLL(16)
    for (int j = 0; j < kQuad; ++j) f(j, sums[j]);
  }
}

// PB positions of a quad of outputs, one vector of lanes; PB is a multiple of kPool.
template <class D, bool kSparse, int PB, int kPool>
HWY_INLINE void hidden_block(const IntegerLayerView& layer, int out_quad, const uint8_t* x,
                             uint8_t* HWY_RESTRICT out) {
  constexpr int kOut = PB / kPool;
  VI packed[kOut];
  HWY_UNROLL(16)
  for (int p = 0; p < kOut; ++p) packed[p] = hn::Zero(kInts);
  for_each_output<D, kSparse, PB>(layer, out_quad, x, [&](int j, const VI(&sums)[PB]) HWY_ATTR {
    VI largest[kOut];
    largest_of_windows<kPool>(sums, largest);
    add_codes(layer, out_quad, j, largest, packed);
  });
  const ptrdiff_t stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  HWY_UNROLL(16)
  for (int p = 0; p < kOut; ++p) {
    hn::Store(hn::BitCast(kBytes, packed[p]), kBytes, out + p * stride);
  }
}

// One window of any length.
template <class D, bool kSparse>
HWY_INLINE void hidden_window(const IntegerLayerView& layer, int out_quad, const uint8_t* x,
                              uint8_t* HWY_RESTRICT out) {
  const ptrdiff_t stride = static_cast<ptrdiff_t>(layer.in_quads) * kQuadRow;
  VI largest[kQuad][1];
  for (int k = 0; k < layer.pool; ++k) {
    for_each_output<D, kSparse, 1>(
        layer, out_quad, x + k * stride, [&](int j, const VI(&sums)[1]) HWY_ATTR {
          largest[j][0] = k == 0 ? sums[0] : hn::Max(largest[j][0], sums[0]);
        });
  }
  VI packed[1] = {hn::Zero(kInts)};
  for (int j = 0; j < kQuad; ++j) add_codes(layer, out_quad, j, largest[j], packed);
  hn::Store(hn::BitCast(kBytes, packed[0]), kBytes, out);
}

// Positions outside, outputs inside: the few rows of a step stay in the first-level cache.
template <class D, bool kSparse, int kPool>
HWY_FLATTEN void hidden_rows(const IntegerLayerView& layer, const uint8_t* x, int rows,
                             uint8_t* out) {
  // What the register file holds beside four outputs, or enough sums to hide the latency of one.
  constexpr int kPositions = kSparse ? 8 : kVectors == 1 ? 4 : 2;
  constexpr int kWindow = std::max(kPool, 1);
  const ptrdiff_t x_stride = static_cast<ptrdiff_t>(layer.in_quads) * kQuadRow;
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  const int window = kPool > 0 ? kPool : layer.pool;
  for (int l = 0; l < rows;) {
    const bool block = kPool > 0 && l + kPositions <= rows;
    const uint8_t* x_l = x + l * x_stride;
    uint8_t* out_l = out + l / window * out_stride;
    for (int v = 0; v < kVectors; ++v) {
      for (int q = 0; q < layer.out_quads; ++q) {
        const uint8_t* from = x_l + v * kVectorBytes;
        uint8_t* to = out_l + q * kQuadRow + v * kVectorBytes;
        if constexpr (kPool == 0) {
          hidden_window<D, kSparse>(layer, q, from, to);
        } else if (block) {
          hidden_block<D, kSparse, kPositions, kWindow>(layer, q, from, to);
        } else {
          hidden_block<D, kSparse, kWindow, kWindow>(layer, q, from, to);
        }
      }
    }
    l += block ? kPositions : window;
  }
}

template <class D, bool kSparse>
void hidden_pools(const IntegerLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  switch (layer.pool) {
    case 1:
      return hidden_rows<D, kSparse, 1>(layer, x, rows, out);
    case 2:
      return hidden_rows<D, kSparse, 2>(layer, x, rows, out);
    default:
      return hidden_rows<D, kSparse, 0>(layer, x, rows, out);
  }
}

template <class D, bool kSparse>
HWY_FLATTEN void output_sums(const IntegerLayerView& layer, const uint8_t* x, int32_t* sums) {
  for (int v = 0; v < kVectors; ++v) {
    for (int q = 0; q < layer.out_quads; ++q) {
      int32_t* to = sums + q * kQuad * kLanes + v * kWidth;
      for_each_output<D, kSparse, 1>(layer, q, x + v * kVectorBytes,
                                     [&](int j, const VI(&s)[1])
                                         HWY_ATTR { hn::Store(s[0], kInts, to + j * kLanes); });
    }
  }
}

// Calls f with the layer's way to multiply, and whether it is sparse, as types.
template <typename F>
void with_variant(const IntegerLayerView& layer, const F& f) {
  with_dot(layer.dot, layer.two_channels, [&](auto dot) {
    if (layer.sparse) {
      f(dot, std::true_type());
    } else {
      f(dot, std::false_type());
    }
  });
}

void hidden(const IntegerLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  with_variant(layer, [&](auto dot, auto sparse) {
    hidden_pools<decltype(dot), decltype(sparse)::value>(layer, x, rows, out);
  });
}

void output(const IntegerLayerView& layer, const uint8_t* x, int32_t* sums) {
  with_variant(layer, [&](auto dot, auto sparse) {
    output_sums<decltype(dot), decltype(sparse)::value>(layer, x, sums);
  });
}

void data_at_points(const uint8_t* x, int in_quads, int groups, int16_t* points,
                    ptrdiff_t group_stride, ptrdiff_t point_stride) {
  const ptrdiff_t x_stride = static_cast<ptrdiff_t>(in_quads) * kQuadRow;
  for (int g = 0; g < groups; ++g, x += winograd::kOutputs * x_stride, points += group_stride) {
    for (int i = 0; i < in_quads * kQuadRow; i += kVectorBytes) {
      // Pairs of channels: [quad][even, odd][kLanes][2].
      const int lanes = i % kQuadRow, quad = i - lanes;
      int16_t* even = points + quad + lanes / 2;
      points_of_rows([&](int r) HWY_ATTR { return Wide::even(x + r * x_stride + i); },
                     [&](int point, auto value)
                         HWY_ATTR { hn::Store(value, kShorts, even + point * point_stride); });
      int16_t* odd = even + 2 * kLanes;
      points_of_rows([&](int r) HWY_ATTR { return Wide::odd(x + r * x_stride + i); },
                     [&](int point, auto value)
                         HWY_ATTR { hn::Store(value, kShorts, odd + point * point_stride); });
    }
  }
}

template <int kPool>
HWY_FLATTEN void pooled_codes_of_points(const IntegerLayerView& layer, const int32_t* sums,
                                        ptrdiff_t group_stride, ptrdiff_t point_stride, int groups,
                                        uint8_t* HWY_RESTRICT out) {
  constexpr int kOut = winograd::kOutputs / kPool;
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  for (int g = 0; g < groups; ++g, sums += group_stride, out += kOut * out_stride) {
    for (int q = 0; q < layer.out_quads; ++q) {
      for (int v = 0; v < kVectors; ++v) {
        VI packed[kOut];
        HWY_UNROLL(16)
        for (int p = 0; p < kOut; ++p) packed[p] = hn::Zero(kInts);
        HWY_UNROLL(16)
        for (int j = 0; j < kQuad; ++j) {
          const int32_t* at = sums + (q * kQuad + j) * kLanes + v * kWidth;
          VI y[winograd::kOutputs];
          outputs_of_points([&](int point)
                                HWY_ATTR { return hn::Load(kInts, at + point * point_stride); },
                            [&](int output, VI value) HWY_ATTR { y[output] = value; });
          VI largest[kOut];
          largest_of_windows<kPool>(y, largest);
          HWY_UNROLL(16)
          for (int p = 0; p < kOut; ++p) largest[p] = without_denominator(largest[p]);
          add_codes(layer, q, j, largest, packed);
        }
        HWY_UNROLL(16)
        for (int p = 0; p < kOut; ++p) {
          hn::Store(hn::BitCast(kBytes, packed[p]), kBytes,
                    out + p * out_stride + q * kQuadRow + v * kVectorBytes);
        }
      }
    }
  }
}

void codes_of_points(const IntegerLayerView& layer, const int32_t* sums, ptrdiff_t group_stride,
                     ptrdiff_t point_stride, int groups, uint8_t* out) {
  const auto with_pool = [&](auto pool) {
    pooled_codes_of_points<decltype(pool)::value>(layer, sums, group_stride, point_stride, groups,
                                                  out);
  };
  switch (layer.pool) {
    case 1:
      return with_pool(std::integral_constant<int, 1>());
    case 2:
      return with_pool(std::integral_constant<int, 2>());
    default:
      return with_pool(std::integral_constant<int, 4>());
  }
}

}  // namespace

void fill_integer(Simd& table) {
  table.integer = {FMP_DOT_HAS_NARROW == 1, has_vnni(),     hidden, output,
                   data_at_points,          codes_of_points};
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_integer);
void fill_integer_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_integer)(table); }
}  // namespace fmp::cpu
#endif
