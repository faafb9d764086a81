// SPDX-License-Identifier: MIT
// Sums of products of codes for training: y[l][o] = sum over taps t, channels c of w[o][t][c] *
// x[l + t][c], as floats, for a few outputs at the rows of a chunk.
//
// The operand is packed by quads of channels, each with all rows of the window behind one another
// (CodeWeights::window_rows), so that successive positions are a constant apart and a weight's
// offset is all the arithmetic that an address needs. A dense kernel keeps four outputs x a few
// positions in registers; a sparse one keeps one output x many positions and walks over the quads
// of weights that are not all zero.
#include "kernels/cpu/quad_weights.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_sums.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/code_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

constexpr hn::Repartition<int64_t, IntTag> kLongs;

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
  bool small_sums;

  template <int PB>
  HWY_INLINE void operator()(int output, int /*row*/, int v, const VI (&sums)[PB]) const {
    const auto odd = [](VI value)
                         HWY_ATTR { return hn::ShiftRight<32>(hn::BitCast(kLongs, value)); };
    VI sum = hn::Zero(kInts);
    auto squares = hn::Zero(kLongs);
    if (small_sums) {  // of 16 bits: one multiplication for each
      VI small = hn::Zero(kInts);
      HWY_UNROLL(16)
      for (int p = 0; p < PB; ++p) {
        const auto value = hn::BitCast(kShorts, sums[p]);
        const auto low = hn::BitCast(kShorts, hn::And(sums[p], hn::Set(kInts, 0xffff)));
        sum = hn::Add(sum, sums[p]);
        small = multiply_add_pairs(low, value, small);
      }
      const auto even = hn::ShiftRight<32>(hn::ShiftLeft<32>(hn::BitCast(kLongs, small)));
      squares = hn::Add(even, odd(small));
    } else {
      HWY_UNROLL(16)
      for (int p = 0; p < PB; ++p) {
        const VI other = hn::BitCast(kInts, odd(sums[p]));
        sum = hn::Add(sum, sums[p]);
        squares =
            hn::Add(squares, hn::Add(hn::MulEven(sums[p], sums[p]), hn::MulEven(other, other)));
      }
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
  with_variant(w, 0, outputs, x, rows, offsets, ToTotals{totals, w.small_sums});
}

// [channels][kLanes] codes to [ceil(channels/4)] quads of [kLanes][4], `quad_stride` bytes apart:
// 64 bytes at a time, as four blocks of four lanes of four channels. The bytes of a lane are
// channels 0, 2, 1, 3 (byte_of_channel).
HWY_INLINE void pack_row(const uint8_t* codes, int channels, uint8_t offset, ptrdiff_t prefetch,
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

void pack_quads(const uint8_t* codes, int rows, int channels, uint8_t offset, ptrdiff_t prefetch,
                uint8_t* out, ptrdiff_t quad_stride) {
  for (int r = 0; r < rows; ++r, codes += channels * kLanes, out += kQuadRow)
    pack_row(codes, channels, offset, prefetch, out, quad_stride);
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
