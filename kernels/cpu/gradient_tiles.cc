// SPDX-License-Identifier: MIT
#include "kernels/cpu/gradient_tiles.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/code_tiles.h"

namespace fmp::cpu::gradient_tiles {

uint16_t bf16_of(float integer) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(integer) >> 16);
}

namespace {

constexpr int kTileElements = kSide * kDepth;
static_assert(kLanes == kSide);

// Pairs of out channels, those included that fill a last tile.
int channel_pairs(const Chunk& chunk) { return tiles(chunk.out_channels, kDepth) * (kDepth / 2); }
int window_rows(const Chunk& chunk) { return chunk.rows + chunk.taps - 1; }
// Rows of x and dy in the products of the weight gradient: pairs of rows make a tile's depth.
int even_rows(const Chunk& chunk) { return (chunk.rows + 1) / 2 * 2; }
int x_rows(const Chunk& chunk) { return even_rows(chunk) + chunk.taps - 1; }

}  // namespace

size_t data_operand_size(const Chunk& chunk) {
  return static_cast<size_t>(kDataParts * channel_pairs(chunk) * window_rows(chunk) * kDepth);
}
size_t x_operand_size(const Chunk& chunk) {
  return static_cast<size_t>(tiles(chunk.in_channels, kSide) * x_rows(chunk) * kTileElements / 2);
}
size_t gradient_operand_size(const Chunk& chunk) {
  return static_cast<size_t>(kWeightParts * kSide * even_rows(chunk) * kLanes);
}

}  // namespace fmp::cpu::gradient_tiles

#if FMP_HAS_TILES

namespace fmp::cpu::gradient_tiles {
namespace {

using namespace amx;

constexpr ptrdiff_t kTileRow = kDepth * sizeof(uint16_t);  // bytes

template <int kSum, int kA, int kB>
FMP_TILES_INLINE void multiply_add_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

template <int kTile>
FMP_TILES_INLINE void store(float* rows, ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(rows), "r"(stride * static_cast<ptrdiff_t>(sizeof(float))), "i"(kTile)
               : "memory");
}

// The upper half of floats, rounded to nearest, and what it leaves.
FMP_TILES_INLINE __m512i upper_half(__m512 v) {
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
  return _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
}
FMP_TILES_INLINE __m512 remainder_of(__m512 v, __m512i half) {
  return _mm512_sub_ps(v, _mm512_castsi512_ps(half));
}

// The parts of a pair of vectors: put(part, half of first, half of second).
template <int kParts, typename Put>
FMP_TILES_INLINE void split(__m512 first, __m512 second, const Put& put) {
  for (int p = 0; p < kParts; ++p) {
    const __m512i first_half = upper_half(first), second_half = upper_half(second);
    put(p, first_half, second_half);
    first = remainder_of(first, first_half);
    second = remainder_of(second, second_half);
  }
}

// [parts][pairs of channels][window rows][kLanes][2].
FMP_TILES void pack_data_operand(const Chunk& chunk, float scale, const float* dy,
                                 ptrdiff_t dy_stride, uint16_t* operand) {
  const int rows = window_rows(chunk), pairs = channel_pairs(chunk);
  const ptrdiff_t part = static_cast<ptrdiff_t>(pairs) * rows * kDepth;
  const __m512 scales = _mm512_set1_ps(scale);
  for (int pair = 0; pair < pairs; ++pair, operand += rows * kDepth) {
    const int channel = 2 * pair;
    if (channel >= chunk.out_channels) {
      for (int p = 0; p < kDataParts; ++p)
        std::fill_n(operand + p * part, rows * kDepth, uint16_t{0});
      continue;
    }
    const bool two = channel + 1 < chunk.out_channels;
    const float* from = dy + static_cast<ptrdiff_t>(channel) * kLanes;
    uint16_t* to = operand;
    for (int r = 0; r < rows; ++r, from += dy_stride, to += kDepth) {
      const __m512 first = _mm512_mul_ps(_mm512_load_ps(from), scales);
      const __m512 second =
          two ? _mm512_mul_ps(_mm512_load_ps(from + kLanes), scales) : _mm512_setzero_ps();
      split<kDataParts>(first, second, [&](int p, __m512i a, __m512i b) FMP_TILES {
        _mm512_store_si512(to + p * part, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
      });
    }
  }
}

// A tile of out channels from `first` on: [parts][kSide][even rows][kLanes].
FMP_TILES_INLINE void pack_gradient(const Chunk& chunk, int first, const float* dy,
                                    ptrdiff_t dy_stride, uint16_t* gradient) {
  const int rows = even_rows(chunk);
  const ptrdiff_t part = static_cast<ptrdiff_t>(kSide) * rows * kLanes;
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  for (int o = first; o < first + kSide; ++o, gradient += rows * kLanes) {
    if (o >= chunk.out_channels) {
      for (int p = 0; p < kWeightParts; ++p) {
        std::fill_n(gradient + p * part, rows * kLanes, uint16_t{0});
      }
      continue;
    }
    const float* from = dy + static_cast<ptrdiff_t>(o) * kLanes;
    for (int r = 0; r < rows; r += 2, from += 2 * dy_stride) {
      const __m512 second =
          r + 1 < chunk.rows ? _mm512_load_ps(from + dy_stride) : _mm512_setzero_ps();
      split<kWeightParts>(_mm512_load_ps(from), second, [&](int p, __m512i a, __m512i b) FMP_TILES {
        // Four lanes of the one and of the other in turn; then all of the one first.
        const __m512i packed =
            _mm512_packus_epi32(_mm512_srli_epi32(a, 16), _mm512_srli_epi32(b, 16));
        _mm512_store_si512(gradient + p * part + r * kLanes,
                           _mm512_permutexvar_epi64(order, packed));
      });
    }
  }
}

// kRows rows of dx from row l on, of a tile of channels.
template <int kRows>
FMP_TILES_INLINE void data_rows(const Chunk& chunk, const uint16_t* weights,
                                const uint16_t* operand, int l, float* dx, ptrdiff_t dx_stride) {
  const int rows = window_rows(chunk);
  const ptrdiff_t pair_stride = static_cast<ptrdiff_t>(rows) * kTileRow;
  const ptrdiff_t part = static_cast<ptrdiff_t>(channel_pairs(chunk)) * rows * kDepth;
  zero<0>();
  if constexpr (kRows > 1) {
    zero<1>();
    zero<2>();
    zero<3>();
  }
  for (int first = 0; first < chunk.out_channels; first += kDepth) {
    const uint16_t* block = operand + (static_cast<ptrdiff_t>(first / 2) * rows + l) * kDepth;
    for (int t = 0; t < chunk.taps; ++t, weights += kTileElements) {
      load<4>(weights, kTileRow);
      for (int p = 0; p < kDataParts; ++p) {
        const uint16_t* from = block + p * part + t * kDepth;
        load<6>(from, pair_stride);
        multiply_add_bf16<0, 4, 6>();
        if constexpr (kRows > 1) {
          load<7>(from + kDepth, pair_stride);
          multiply_add_bf16<1, 4, 7>();
          load<6>(from + 2 * kDepth, pair_stride);
          multiply_add_bf16<2, 4, 6>();
          load<7>(from + 3 * kDepth, pair_stride);
          multiply_add_bf16<3, 4, 7>();
        }
      }
    }
  }
  store<0>(dx, kLanes);
  if constexpr (kRows > 1) {
    store<1>(dx + dx_stride, kLanes);
    store<2>(dx + 2 * dx_stride, kLanes);
    store<3>(dx + 3 * dx_stride, kLanes);
  }
}

// The gradients of up to three taps, from t on, for a tile of channels each. x: tile of channels.
template <int kTaps>
FMP_TILES_INLINE void weight_taps(const Chunk& chunk, const uint16_t* x, const uint16_t* gradient,
                                  ptrdiff_t part, float* dw) {
  constexpr int kStep = 2 * kLanes;  // two rows of an output
  constexpr int kXRow = kTileElements / 2;
  const int rows = even_rows(chunk);
  const ptrdiff_t gradient_stride = static_cast<ptrdiff_t>(rows) * kLanes * 2;  // bytes
  constexpr ptrdiff_t kSumRow = kSide * sizeof(float);
  constexpr int kSumTile = kSide * kSide;
  load<0>(dw, kSumRow);
  if constexpr (kTaps > 1) load<1>(dw + kSumTile, kSumRow);
  if constexpr (kTaps > 2) load<2>(dw + 2 * kSumTile, kSumRow);
  for (int r = 0; r < rows; r += 2, gradient += kStep, x += 2 * kXRow) {
    load<3>(gradient, gradient_stride);
    load<5>(x, kTileRow);
    multiply_add_bf16<0, 3, 5>();
    if constexpr (kTaps > 1) {
      load<6>(x + kXRow, kTileRow);
      multiply_add_bf16<1, 3, 6>();
    }
    if constexpr (kTaps > 2) {
      load<7>(x + 2 * kXRow, kTileRow);
      multiply_add_bf16<2, 3, 7>();
    }
    load<4>(gradient + part, gradient_stride);
    multiply_add_bf16<0, 4, 5>();
    if constexpr (kTaps > 1) multiply_add_bf16<1, 4, 6>();
    if constexpr (kTaps > 2) multiply_add_bf16<2, 4, 7>();
  }
  store<0>(dw, kSide);
  if constexpr (kTaps > 1) store<1>(dw + kSumTile, kSide);
  if constexpr (kTaps > 2) store<2>(dw + 2 * kSumTile, kSide);
}

bool processor_has_bf16_tiles() {
  // Leaf 7: a bit of edx.
  constexpr unsigned kBf16 = 1U << 22;
  unsigned a = 0, b = 0, c = 0, d = 0;
  asm("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return (d & kBf16) != 0;
}

}  // namespace

bool available() {
  static const bool available = tiles_available() && processor_has_bf16_tiles();
  return available;
}

FMP_TILES void backward_data(const Chunk& chunk, const uint16_t* weights, float scale,
                             const float* dy, ptrdiff_t dy_stride, uint16_t* operand, float* dx,
                             ptrdiff_t dx_stride) {
  pack_data_operand(chunk, scale, dy, dy_stride, operand);
  const ptrdiff_t of_tile =
      static_cast<ptrdiff_t>(tiles(chunk.out_channels, kDepth)) * chunk.taps * kTileElements;
  alignas(64) float some[4 * kSide * kLanes];
  configure(kTileQuads);
  // Positions outside: the operand of a few, and the weights, stay in the first-level cache.
  for (int l = 0; l < chunk.rows;) {
    const int rows = l + 4 <= chunk.rows ? 4 : 1;
    const uint16_t* w = weights;
    for (int c = 0; c < chunk.in_channels; c += kSide, w += of_tile) {
      const int channels = std::min(kSide, chunk.in_channels - c);
      const bool whole = channels == kSide;
      float* to = dx + l * dx_stride + static_cast<ptrdiff_t>(c) * kLanes;
      float* sums = whole ? to : some;
      const ptrdiff_t stride = whole ? dx_stride : ptrdiff_t{kSide * kLanes};
      if (rows == 4) {
        data_rows<4>(chunk, w, operand, l, sums, stride);
      } else {
        data_rows<1>(chunk, w, operand, l, sums, stride);
      }
      for (int r = 0; !whole && r < rows; ++r) {
        std::copy_n(some + r * stride, channels * kLanes, to + r * dx_stride);
      }
    }
    l += rows;
  }
  release();
}

FMP_TILES void pack_x(const Chunk& chunk, const uint8_t* codes, bool are_signed, int row,
                      uint16_t* operand) {
  const int channel_tiles = tiles(chunk.in_channels, kSide);
  const auto pack = [&](auto is_signed) FMP_TILES {
    const auto load = [&](int lane, int tile) FMP_TILES {
      const uint8_t* at = codes + (static_cast<ptrdiff_t>(lane) * channel_tiles + tile) * kSide;
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
      const __m512i wide =
          decltype(is_signed)::value ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
      return _mm512_castps_si512(_mm512_cvtepi32_ps(wide));
    };
    for (int tile = 0; tile < channel_tiles; ++tile) {
      uint16_t* to =
          operand + (static_cast<ptrdiff_t>(tile) * x_rows(chunk) + row) * (kTileElements / 2);
      for (int lane = 0; lane < kLanes; lane += 2, to += kDepth) {
        const __m512i low = _mm512_srli_epi32(load(lane, tile), 16);
        _mm512_store_si512(to, _mm512_or_si512(low, load(lane + 1, tile)));
      }
    }
  };
  if (are_signed) {
    pack(std::true_type());
  } else {
    pack(std::false_type());
  }
}

FMP_TILES void backward_weight(const Chunk& chunk, const uint16_t* x, const float* dy,
                               ptrdiff_t dy_stride, uint16_t* gradient, float* dw) {
  constexpr int kXRow = kTileElements / 2;
  const int in_tiles = tiles(chunk.in_channels, kSide);
  const ptrdiff_t part = static_cast<ptrdiff_t>(kSide) * even_rows(chunk) * kLanes;
  configure(kTileQuads);
  // The gradient of a tile of outputs stays in the first-level cache for all of x.
  for (int o = 0; o < chunk.out_channels; o += kSide) {
    pack_gradient(chunk, o, dy, dy_stride, gradient);
    for (int c = 0; c < in_tiles; ++c) {
      const uint16_t* x_tile = x + static_cast<ptrdiff_t>(c) * x_rows(chunk) * kXRow;
      for (int t = 0; t < chunk.taps; t += 3) {
        const uint16_t* from = x_tile + t * kXRow;
        const int some = std::min(3, chunk.taps - t);
        switch (some) {
          case 1:
            weight_taps<1>(chunk, from, gradient, part, dw);
            break;
          case 2:
            weight_taps<2>(chunk, from, gradient, part, dw);
            break;
          default:
            weight_taps<3>(chunk, from, gradient, part, dw);
            break;
        }
        dw += some * kSide * kSide;
      }
    }
  }
  release();
}

}  // namespace fmp::cpu::gradient_tiles

#else

namespace fmp::cpu::gradient_tiles {
bool available() { return false; }
void backward_data(const Chunk&, const uint16_t*, float, const float*, ptrdiff_t, uint16_t*, float*,
                   ptrdiff_t) {}
void pack_x(const Chunk&, const uint8_t*, bool, int, uint16_t*) {}
void backward_weight(const Chunk&, const uint16_t*, const float*, ptrdiff_t, uint16_t*, float*) {}
}  // namespace fmp::cpu::gradient_tiles

#endif
