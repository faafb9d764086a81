// SPDX-License-Identifier: MIT
// Sums of products of codes by AMX: a tile of 16 outputs x 16 frames at a position from tiles of 16
// quads of channels at a tap. The operand is that of code_sums.cc as it is: a tile's rows are
// quads, window_rows apart. A last tile of quads reads on into what lies behind; its weights there
// are 0.
#include "kernels/cpu/code_tiles.h"

#include <algorithm>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/simd.h"

#if FMP_HAS_TILES

#include <sys/syscall.h>
#include <unistd.h>

namespace fmp::cpu {
namespace {

using namespace amx;

constexpr int kPositionSums = kTileOutputs * kLanes;

// Where the window of a position is in an operand, and how many tiles it has.
struct Window {
  explicit Window(const CodeWeights& w)
      : quad_stride(static_cast<ptrdiff_t>(w.window_rows) * kQuadRow),
        depth((w.in_quads + kTileQuads - 1) / kTileQuads),
        taps(w.taps) {}
  ptrdiff_t quad_stride;
  int depth, taps;
};

// Stores the sums of a position that are in their register, and makes room for the next ones: a
// store waits for its products, so it is best made as late as can be.
template <int p>
FMP_TILES_INLINE void renew(int32_t* sums) {
  store<p>(sums + p * kPositionSums);
  zero<p>();
}

// Sums of four positions into registers 0 to 3; those that were there go to `before`. Weights are
// in registers 4 to 6, one for each tap: a row is loaded once for the windows that it is in.
FMP_TILES_INLINE void multiply_three_taps(const uint8_t* x, ptrdiff_t quad_stride,
                                          int32_t* before) {
  renew<0>(before);
  load<7>(x, quad_stride);
  multiply_add<0, 4, 7>();
  renew<1>(before);
  load<7>(x + kQuadRow, quad_stride);
  multiply_add<1, 4, 7>();
  multiply_add<0, 5, 7>();
  renew<2>(before);
  load<7>(x + 2 * kQuadRow, quad_stride);
  multiply_add<2, 4, 7>();
  multiply_add<1, 5, 7>();
  multiply_add<0, 6, 7>();
  renew<3>(before);
  load<7>(x + 3 * kQuadRow, quad_stride);
  multiply_add<3, 4, 7>();
  multiply_add<2, 5, 7>();
  multiply_add<1, 6, 7>();
  load<7>(x + 4 * kQuadRow, quad_stride);
  multiply_add<3, 5, 7>();
  multiply_add<2, 6, 7>();
  load<7>(x + 5 * kQuadRow, quad_stride);
  multiply_add<3, 6, 7>();
}

// The same with any window. Registers: 4 weights, 6 and 7 codes.
FMP_TILES_INLINE void multiply_four(const Window& window, const int8_t* weights, const uint8_t* x,
                                    int32_t* before) {
  renew<0>(before);
  renew<1>(before);
  renew<2>(before);
  renew<3>(before);
  for (int d = 0; d < window.depth; ++d) {
    const uint8_t* codes = x + d * kTileQuads * window.quad_stride;
    for (int t = 0; t < window.taps; ++t, weights += kTileBytes, codes += kQuadRow) {
      load<4>(weights, kTileBytes / kTileOutputs);
      load<6>(codes, window.quad_stride);
      multiply_add<0, 4, 6>();
      load<7>(codes + kQuadRow, window.quad_stride);
      multiply_add<1, 4, 7>();
      load<6>(codes + 2 * kQuadRow, window.quad_stride);
      multiply_add<2, 4, 6>();
      load<7>(codes + 3 * kQuadRow, window.quad_stride);
      multiply_add<3, 4, 7>();
    }
  }
}

// body(first row, rows, sums [rows][kTileOutputs][kLanes]) with the sums of a tile of outputs, up
// to four rows at a time. They come two steps after they were multiplied: stores of tiles should be
// long past when they are read, and products go on while others become what they should.
template <typename Body>
FMP_TILES_INLINE void multiply(const CodeWeights& w, int out_tile, const uint8_t* x, int rows,
                               const Body& body) {
  const Window window(w);
  const int8_t* weights =
      w.tiles + static_cast<ptrdiff_t>(out_tile) * window.depth * window.taps * kTileBytes;
  const bool three = window.depth == 1 && window.taps == 3;
  if (three) {
    load<4>(weights, kTileBytes / kTileOutputs);
    load<5>(weights + kTileBytes, kTileBytes / kTileOutputs);
    load<6>(weights + 2 * kTileBytes, kTileBytes / kTileOutputs);
  }
  constexpr int kStep = 4;
  alignas(64) int32_t ring[3][kStep * kPositionSums];
  const int steps = rows / kStep;
  const auto sums_of = [&](int step) FMP_TILES { return ring[(step + 3) % 3]; };
  for (int step = 0; step < steps; ++step) {
    // Before the next stores, whose addresses look like those that are read here.
    if (step >= 2) body((step - 2) * kStep, kStep, sums_of(step - 2));
    const uint8_t* codes = x + static_cast<ptrdiff_t>(step) * kStep * kQuadRow;
    if (three) {
      multiply_three_taps(codes, window.quad_stride, sums_of(step - 1));
    } else {
      multiply_four(window, weights, codes, sums_of(step - 1));
    }
  }
  if (steps > 0) {
    int32_t* last = sums_of(steps - 1);
    store<0>(last);
    store<1>(last + kPositionSums);
    store<2>(last + 2 * kPositionSums);
    store<3>(last + 3 * kPositionSums);
    if (steps > 1) body((steps - 2) * kStep, kStep, sums_of(steps - 2));
    body((steps - 1) * kStep, kStep, last);
  }
  for (int l = steps * kStep; l < rows; ++l) {
    zero<0>();
    const int8_t* of_tile = weights;
    for (int d = 0; d < window.depth; ++d) {
      const uint8_t* codes = x + d * kTileQuads * window.quad_stride + l * kQuadRow;
      for (int t = 0; t < window.taps; ++t, of_tile += kTileBytes, codes += kQuadRow) {
        load<4>(of_tile, kTileBytes / kTileOutputs);
        load<7>(codes, window.quad_stride);
        multiply_add<0, 4, 7>();
      }
    }
    int32_t* sums = sums_of(steps + l);
    store<0>(sums);
    body(l, 1, sums);
  }
}

FMP_TILES void take() { configure(kTileQuads); }
FMP_TILES void give_back() { release(); }

// Linux saves the tiles of a process that asked for them, and of no other.
bool tiles_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool processor_has_tiles() {
  // Leaf 7: bits of edx.
  constexpr unsigned kTile = 1U << 24, kInt8 = 1U << 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  asm("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return (d & kTile) != 0 && (d & kInt8) != 0;
}

}  // namespace

bool tiles_available() {
  static const bool available = processor_has_tiles() && tiles_permitted();
  return available;
}

TilesInUse::TilesInUse(bool wanted) : in_use_(wanted) {
  if (in_use_) take();
}
TilesInUse::~TilesInUse() {
  if (in_use_) give_back();
}

FMP_TILES void tile_sums(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
                         const int32_t* offsets, float* y, ptrdiff_t y_stride) {
  for (int o = 0; o < outputs; o += kTileOutputs) {
    const int some = std::min(kTileOutputs, outputs - o);
    multiply(w, (first + o) / kTileOutputs, x, rows,
             [&](int row, int count, const int32_t* sums) FMP_TILES {
               for (int j = 0; j < some; ++j) {
                 const __m512i offset = _mm512_set1_epi32(offsets[first + o + j]);
                 const int32_t* from = sums + j * kLanes;
                 float* to = y + row * y_stride + static_cast<ptrdiff_t>(o + j) * kLanes;
                 for (int l = 0; l < count; ++l, from += kPositionSums, to += y_stride) {
                   const __m512i sum = _mm512_add_epi32(_mm512_load_si512(from), offset);
                   _mm512_store_ps(to, _mm512_cvtepi32_ps(sum));
                 }
               }
             });
  }
}

FMP_TILES void tile_totals(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                           const int32_t* offsets, int64_t* totals) {
  const TilesInUse in_use(true);
  for (int o = 0; o < outputs; o += kTileOutputs) {
    const int some = std::min(kTileOutputs, outputs - o);
    multiply(w, o / kTileOutputs, x, rows,
             [&](int /*row*/, int count, const int32_t* sums) FMP_TILES {
               for (int j = 0; j < some; ++j) {
                 const __m512i offset = _mm512_set1_epi32(offsets[o + j]);
                 const int32_t* from = sums + j * kLanes;
                 __m512i sum = _mm512_setzero_si512(),
                         squares = sum;  // the sum of a few fits into 32 bits
                 for (int l = 0; l < count; ++l, from += kPositionSums) {
                   const __m512i even = _mm512_add_epi32(_mm512_load_si512(from), offset);
                   const __m512i odd = _mm512_srli_epi64(even, 32);
                   sum = _mm512_add_epi32(sum, even);
                   squares = _mm512_add_epi64(squares, _mm512_mul_epi32(even, even));
                   squares = _mm512_add_epi64(squares, _mm512_mul_epi32(odd, odd));
                 }
                 const __m512i wide = _mm512_add_epi64(
                     _mm512_srai_epi64(sum, 32), _mm512_srai_epi64(_mm512_slli_epi64(sum, 32), 32));
                 int64_t* to = totals + static_cast<ptrdiff_t>(o + j) * 2 * kTotalParts;
                 _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), wide));
                 to += kTotalParts;
                 _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), squares));
               }
             });
  }
}

}  // namespace fmp::cpu

#else

namespace fmp::cpu {
bool tiles_available() { return false; }
TilesInUse::TilesInUse(bool) : in_use_(false) {}
TilesInUse::~TilesInUse() = default;
void tile_sums(const CodeWeights&, int, int, const uint8_t*, int, const int32_t*, float*,
               ptrdiff_t) {}
void tile_totals(const CodeWeights&, int, const uint8_t*, int, const int32_t*, int64_t*) {}
}  // namespace fmp::cpu

#endif
