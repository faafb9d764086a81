// SPDX-License-Identifier: MIT
// The walk over a layer's sums of products of codes, a few of them in registers at a time, for the
// target that is being compiled; see code_sums.cc.

#if defined(FMP_KERNELS_CPU_CODE_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FMP_KERNELS_CPU_CODE_SUMS_INL_H_
#undef FMP_KERNELS_CPU_CODE_SUMS_INL_H_
#else
#define FMP_KERNELS_CPU_CODE_SUMS_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/quad_weights.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {

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
    const uint8_t* operand = opaque(x + w.offset[i]);
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

template <int PB>
HWY_INLINE void add_offset(int32_t offset, VI (&sums)[PB]) {
  if (offset == 0) return;  // as always where codes are unsigned
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

// rows: a multiple of kMultiple, 1 or 2, and blocks are, too.
template <class D, bool kSparse, int kMultiple = 1, class To>
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
  if constexpr (kMultiple == 1) step(std::integral_constant<int, 1>());
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
