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
// Positions whose sums wait in memory: stores of tiles should be long past when they are read.
constexpr int kWaiting = 16;

// Sums of a tile of outputs at `rows` positions to sums [rows][kTileOutputs][kLanes]. Registers: 0
// to 3 sums of four positions, 4 weights, 6 and 7 codes.
FMP_TILES void multiply(const CodeWeights& w, int out_tile, const uint8_t* x, int rows,
                        int32_t* sums) {
  const ptrdiff_t quad_stride = static_cast<ptrdiff_t>(w.window_rows) * kQuadRow;
  const int depth = (w.in_quads + kTileQuads - 1) / kTileQuads;
  const int8_t* first = w.tiles + static_cast<ptrdiff_t>(out_tile) * depth * w.taps * kTileBytes;
  const auto for_each_tile = [&](int l, const auto& body) FMP_TILES {
    const int8_t* weights = first;
    for (int d = 0; d < depth; ++d) {
      const uint8_t* codes = x + d * kTileQuads * quad_stride + l * kQuadRow;
      for (int t = 0; t < w.taps; ++t, weights += kTileBytes, codes += kQuadRow) {
        load<4>(weights, kTileBytes / kTileOutputs);
        body(codes);
      }
    }
  };
  int l = 0;
  for (; l + 4 <= rows; l += 4, sums += 4 * kPositionSums) {
    zero<0>();
    zero<1>();
    zero<2>();
    zero<3>();
    for_each_tile(l, [&](const uint8_t* codes) FMP_TILES {
      load<6>(codes, quad_stride);
      multiply_add<0, 4, 6>();
      load<7>(codes + kQuadRow, quad_stride);
      multiply_add<1, 4, 7>();
      load<6>(codes + 2 * kQuadRow, quad_stride);
      multiply_add<2, 4, 6>();
      load<7>(codes + 3 * kQuadRow, quad_stride);
      multiply_add<3, 4, 7>();
    });
    store<0>(sums);
    store<1>(sums + kPositionSums);
    store<2>(sums + 2 * kPositionSums);
    store<3>(sums + 3 * kPositionSums);
  }
  for (; l < rows; ++l, sums += kPositionSums) {
    zero<0>();
    for_each_tile(l, [&](const uint8_t* codes) FMP_TILES {
      load<6>(codes, quad_stride);
      multiply_add<0, 4, 6>();
    });
    store<0>(sums);
  }
}

// body(output, first row, rows, its first sums) with the sums of all outputs, tile by tile.
template <typename Body>
FMP_TILES_INLINE void for_each_output(const CodeWeights& w, int first, int outputs,
                                      const uint8_t* x, int rows, const Body& body) {
  alignas(64) int32_t sums[kWaiting * kPositionSums];
  configure(kTileQuads);
  for (int o = 0; o < outputs; o += kTileOutputs) {
    for (int l = 0; l < rows; l += kWaiting) {
      const int some = std::min(kWaiting, rows - l);
      multiply(w, (first + o) / kTileOutputs, x + static_cast<ptrdiff_t>(l) * kQuadRow, some, sums);
      for (int j = 0; j < std::min(kTileOutputs, outputs - o); ++j) {
        body(o + j, l, some, sums + j * kLanes);
      }
    }
  }
  release();
}

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

FMP_TILES void tile_sums(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
                         const int32_t* offsets, float* y, ptrdiff_t y_stride) {
  for_each_output(w, first, outputs, x, rows,
                  [&](int output, int row, int count, const int32_t* sums) FMP_TILES {
                    const __m512i offset = _mm512_set1_epi32(offsets[first + output]);
                    float* to = y + row * y_stride + output * kLanes;
                    for (int l = 0; l < count; ++l, sums += kPositionSums, to += y_stride) {
                      const __m512i sum = _mm512_add_epi32(_mm512_load_si512(sums), offset);
                      _mm512_store_ps(to, _mm512_cvtepi32_ps(sum));
                    }
                  });
}

FMP_TILES void tile_totals(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                           const int32_t* offsets, int64_t* totals) {
  for_each_output(
      w, 0, outputs, x, rows,
      [&](int output, int /*row*/, int count, const int32_t* sums) FMP_TILES {
        const __m512i offset = _mm512_set1_epi32(offsets[output]);
        __m512i sum = _mm512_setzero_si512(), squares = sum;  // a sum of kWaiting fits into 32 bits
        for (int l = 0; l < count; ++l, sums += kPositionSums) {
          const __m512i even = _mm512_add_epi32(_mm512_load_si512(sums), offset);
          const __m512i odd = _mm512_srli_epi64(even, 32);
          sum = _mm512_add_epi32(sum, even);
          squares = _mm512_add_epi64(squares, _mm512_mul_epi32(even, even));
          squares = _mm512_add_epi64(squares, _mm512_mul_epi32(odd, odd));
        }
        const __m512i wide = _mm512_add_epi64(_mm512_srai_epi64(sum, 32),
                                              _mm512_srai_epi64(_mm512_slli_epi64(sum, 32), 32));
        int64_t* to = totals + static_cast<ptrdiff_t>(output) * 2 * kTotalParts;
        _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), wide));
        to += kTotalParts;
        _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), squares));
      });
}

}  // namespace fmp::cpu

#else

namespace fmp::cpu {
bool tiles_available() { return false; }
void tile_sums(const CodeWeights&, int, int, const uint8_t*, int, const int32_t*, float*,
               ptrdiff_t) {}
void tile_totals(const CodeWeights&, int, const uint8_t*, int, const int32_t*, int64_t*) {}
}  // namespace fmp::cpu

#endif
