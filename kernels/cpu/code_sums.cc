// SPDX-License-Identifier: MIT
// Sums of products of codes for training: y[l][o] = sum over taps t, channels c of w[o][t][c] *
// x[l + t][c], as floats, for a few outputs at the rows of a chunk.
//
// The operand is packed by quads of channels, each with all rows of the window behind one another
// (CodeWeights::window_rows), so that successive positions are a constant apart and a weight's
// offset is all the arithmetic that an address needs. A dense kernel keeps four outputs x a few
// positions in registers; a sparse one keeps one output x many positions and walks over the quads
// of weights that are not all zero.
#include <type_traits>

#include "kernels/cpu/quad_weights.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_sums.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

constexpr hn::Repartition<int64_t, IntTag> kLongs;

// Sums of one output at PB positions.
template <class D, int PB>
HWY_INLINE void sparse_block(const CodeWeights& w, int out, const uint8_t* HWY_RESTRICT x,
                             VI (&result)[PB]) {
  typename D::Sum sum[PB];
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) sum[p] = D::zero();
  const int32_t* HWY_RESTRICT values = w.values[D::kWords - 1];
  for (int32_t i = w.row_begin[out]; i < w.row_begin[out + 1]; ++i) {
    const typename D::Weights weights = D::set(values + i * D::kWords);
    const uint8_t* operand = x + w.offset[i];
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) D::add(D::load(operand + p * kQuadRow), weights, sum[p]);
  }
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) result[p] = D::finish(out_of_loop(sum[p]));
}

// Sums of four outputs at PB positions.
template <class D, int PB>
HWY_INLINE void dense_block(const CodeWeights& layer, int out_quad, const uint8_t* HWY_RESTRICT x,
                            VI (&result)[kQuad][PB]) {
  typename D::Sum sum[kQuad][PB];
  HWY_UNROLL(16)
  for (int o = 0; o < kQuad; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) sum[o][p] = D::zero();
  }
  const int32_t* HWY_RESTRICT w = layer.dense[D::kWords - 1] + static_cast<ptrdiff_t>(out_quad) *
                                                                   layer.in_quads * layer.taps *
                                                                   kQuad * D::kWords;
  for (int q = 0; q < layer.in_quads;
       ++q, x += static_cast<ptrdiff_t>(layer.window_rows) * kQuadRow) {
    for (int t = 0; t < layer.taps; ++t, w += kQuad * D::kWords) {
      typename D::Operand operand[PB];
      HWY_UNROLL(16)
      for (int p = 0; p < PB; ++p) operand[p] = D::load(x + (t + p) * kQuadRow);
      HWY_UNROLL(16)
      for (int o = 0; o < kQuad; ++o) {
        const typename D::Weights weights = D::set(w + o * D::kWords);
        HWY_UNROLL(16)
        for (int p = 0; p < PB; ++p) D::add(operand[p], weights, sum[o][p]);
      }
    }
  }
  HWY_UNROLL(16)
  for (int o = 0; o < kQuad; ++o) {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) result[o][p] = D::finish(out_of_loop(sum[o][p]));
  }
}

// What becomes of sums: floats in memory, ...
struct ToFloats {
  float* y;
  ptrdiff_t stride;

  template <int PB>
  HWY_INLINE void operator()(int output, int row, int v, const VI (&sums)[PB]) const {
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) {
      hn::Store(hn::ConvertTo(kFloats, sums[p]), kFloats,
                y + (row + p) * stride + output * kLanes + v * kWidth);
    }
  }
};

// ... or no more than their totals.
struct ToTotals {
  int64_t* totals;

  template <int PB>
  HWY_INLINE void operator()(int output, int /*row*/, int v, const VI (&sums)[PB]) const {
    const auto odd = [](VI value)
                         HWY_ATTR { return hn::ShiftRight<32>(hn::BitCast(kLongs, value)); };
    VI sum = hn::Zero(kInts);
    auto squares = hn::Zero(kLongs);
    HWY_UNROLL(16)
    for (int p = 0; p < PB; ++p) {
      const VI other = hn::BitCast(kInts, odd(sums[p]));
      sum = hn::Add(sum, sums[p]);
      squares = hn::Add(squares, hn::Add(hn::MulEven(sums[p], sums[p]), hn::MulEven(other, other)));
    }
    const auto even = hn::ShiftRight<32>(hn::ShiftLeft<32>(hn::BitCast(kLongs, sum)));
    const auto add = [&](int i, auto value) HWY_ATTR {
      int64_t* at = totals + (2 * output + i) * kTotalParts + v * kWidth / 2;
      hn::Store(hn::Add(hn::Load(kLongs, at), value), kLongs, at);
    };
    add(0, hn::Add(even, odd(sum)));
    add(1, squares);
  }
};

template <int PB>
HWY_INLINE void add_offset(int32_t offset, VI (&sums)[PB]) {
  const VI added = hn::Set(kInts, offset);
  HWY_UNROLL(16)
  for (int p = 0; p < PB; ++p) sums[p] = hn::Add(sums[p], added);
}

// PB positions from `row` on.
template <class D, bool kSparse, int PB, class To>
HWY_INLINE void block(const CodeWeights& w, int first, int outputs, const uint8_t* x, int row,
                      const int32_t* offsets, const To& to) {
  x += row * kQuadRow;
  for (int v = 0; v < kVectors; ++v, x += kVectorBytes) {
    if constexpr (kSparse) {
      for (int o = 0; o < outputs; ++o) {
        VI sums[PB];
        sparse_block<D, PB>(w, first + o, x, sums);
        add_offset(offsets[first + o], sums);
        to(o, row, v, sums);
      }
    } else {
      for (int o = 0; o < outputs; o += kQuad) {
        VI sums[kQuad][PB];
        dense_block<D, PB>(w, (first + o) / kQuad, x, sums);
        HWY_UNROLL(16)
        for (int j = 0; j < kQuad; ++j) {
          if (o + j >= outputs) break;
          add_offset(offsets[first + o + j], sums[j]);
          to(o + j, row, v, sums[j]);
        }
      }
    }
  }
}

template <class D, bool kSparse, class To>
HWY_FLATTEN void sums_of_rows(const CodeWeights& w, int first, int outputs, const uint8_t* x,
                              int rows, const int32_t* offsets, const To& to) {
  int l = 0;
  const auto step = [&](auto positions) HWY_ATTR {
    constexpr int kPositions = decltype(positions)::value;
    while (l + kPositions <= rows) {
      block<D, kSparse, kPositions>(w, first, outputs, x, l, offsets, to);
      l += kPositions;
    }
  };
  // As many as registers hold: 16 sums of 32 registers on AVX-512, 8 of 16 elsewhere.
  if constexpr (kSparse && kVectors == 1) step(std::integral_constant<int, 16>());
  if constexpr (kSparse) step(std::integral_constant<int, 8>());
  if constexpr (!kSparse && kVectors == 1) step(std::integral_constant<int, 4>());
  step(std::integral_constant<int, 2>());
  step(std::integral_constant<int, 1>());
}

template <class To>
void with_variant(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
                  const int32_t* offsets, const To& to) {
  with_dot(w.dot, w.two_channels, [&](auto dot) {
    if (w.sparse) {
      sums_of_rows<decltype(dot), true>(w, first, outputs, x, rows, offsets, to);
    } else {
      sums_of_rows<decltype(dot), false>(w, first, outputs, x, rows, offsets, to);
    }
  });
}

void code_sums(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
               const int32_t* offsets, float* y, ptrdiff_t y_stride) {
  with_variant(w, first, outputs, x, rows, offsets, ToFloats{y, y_stride});
}

void code_totals(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                 const int32_t* offsets, int64_t* totals) {
  with_variant(w, 0, outputs, x, rows, offsets, ToTotals{totals});
}

// [channels][kLanes] codes to [ceil(channels/4)] quads of [kLanes][4], `quad_stride` bytes apart:
// 64 bytes at a time, as four blocks of four lanes of four channels. The bytes of a lane are
// channels 0, 2, 1, 3 (byte_of_channel).
void pack_quads(const uint8_t* codes, int channels, uint8_t offset, ptrdiff_t prefetch,
                uint8_t* out, ptrdiff_t quad_stride) {
  constexpr int kSecondLevel = 2;
  int c = 0;
  if constexpr (kVectors == 1) {
    alignas(64) static constexpr int32_t kBlocks[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                        2, 6, 10, 14, 3, 7, 11, 15};
    alignas(16) static constexpr uint8_t kWithin[16] = {0, 8,  4, 12, 1, 9,  5, 13,
                                                        2, 10, 6, 14, 3, 11, 7, 15};
    const auto blocks = hn::SetTableIndices(kInts, kBlocks);
    const auto within = hn::LoadDup128(kBytes, kWithin);
    const auto added = hn::Set(kBytes, offset);
    for (; c + kQuad <= channels; c += kQuad, out += quad_stride) {
      __builtin_prefetch(codes + prefetch + c * kLanes, 0, kSecondLevel);
      const auto row = hn::BitCast(kInts, hn::LoadU(kBytes, codes + c * kLanes));
      const auto moved = hn::BitCast(kBytes, hn::TableLookupLanes(row, blocks));
      hn::Store(hn::Add(hn::TableLookupBytes(moved, within), added), kBytes, out);
    }
  }
  const hn::FixedTag<uint8_t, 16> bytes;
  const hn::FixedTag<uint16_t, 8> shorts;
  const auto added = hn::Set(bytes, offset);
  for (; c < channels; c += kQuad, out += quad_stride) {
    const auto row = [&](int i) HWY_ATTR {
      return c + i < channels ? hn::Add(hn::Load(bytes, codes + (c + i) * kLanes), added)
                              : hn::Zero(bytes);
    };
    const auto c0 = row(0), c1 = row(1), c2 = row(2), c3 = row(3);
    // 0 with 2, 1 with 3, then pairs with pairs.
    const auto low_even = hn::BitCast(shorts, hn::InterleaveLower(bytes, c0, c2));
    const auto high_even = hn::BitCast(shorts, hn::InterleaveUpper(bytes, c0, c2));
    const auto low_odd = hn::BitCast(shorts, hn::InterleaveLower(bytes, c1, c3));
    const auto high_odd = hn::BitCast(shorts, hn::InterleaveUpper(bytes, c1, c3));
    const auto store = [&](int i, auto v)
                           HWY_ATTR { hn::Store(hn::BitCast(bytes, v), bytes, out + i * kLanes); };
    store(0, hn::InterleaveLower(shorts, low_even, low_odd));
    store(1, hn::InterleaveUpper(shorts, low_even, low_odd));
    store(2, hn::InterleaveLower(shorts, high_even, high_odd));
    store(3, hn::InterleaveUpper(shorts, high_even, high_odd));
  }
}

}  // namespace

void fill_code_sums(Simd& table) {
  table.code_sums = code_sums;
  table.code_totals = code_totals;
  table.pack_quads = pack_quads;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_code_sums);
void fill_code_sums_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_code_sums)(table); }
}  // namespace fmp::cpu
#endif
