// SPDX-License-Identifier: MIT
// A layer on integers by AMX: products of tiles of bytes, 16 outputs x 16 frames at a position from
// 64 bytes of the window each, summed up exactly. Activations are used as they lie in memory: 16
// rows of quads are the tile. What follows the products is vector code and takes longer than they
// do, so that the two are made to overlap: while the tiles multiply one block of positions, sums of
// the one before become codes.
//
// Codes come from lines (code_line.h): one that is exact, or two between which they are. Where
// those differ, next to a threshold, a look at it tells.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/amx.h"
#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/integer_ops.h"
#include "kernels/cpu/integer_simd.h"

#if FMP_HAS_TILES

namespace fmp::cpu {
namespace {

using namespace amx;

// Positions that are multiplied together: a tile of sums each.
constexpr int kPositions = 4;
// Quads of the outputs of a tile.
constexpr int kOutputQuads = kTileOutputs / kQuad;
constexpr ptrdiff_t kRowBytes = kQuadRow;         // of a tile in memory
constexpr int kTileSums = kTileOutputs * kLanes;  // sums of a position
// Positions whose activations and sums stay in the first-level cache while all outputs use them.
constexpr int kChunkPositions = 16;

// Tiles of weights that stay in registers.
constexpr int kResidentTiles = kData - kWeights;

// Quads before tile k of a window: the last one ends where the window does.
inline int first_quad_of_tile(const TileLayerView& layer, int k) {
  return std::min(k * kTileQuads, std::max(layer.window_quads - kTileQuads, 0));
}

template <int k, int kTiles>
FMP_TILES_INLINE void load_weights(const int8_t* weights) {
  load<kWeights + k>(weights + k * kTileBytes, kRowBytes);
  if constexpr (k + 1 < kTiles) load_weights<k + 1, kTiles>(weights);
}

// Stores the sums of position p that are in their register, and makes room for the next ones.
template <int p>
FMP_TILES_INLINE void renew(int32_t* sums) {
  store<kSums + p>(sums + p * kTileSums);
  zero<kSums + p>();
}

// Tiles k, k + 1, ... of kTiles of the window at x, for position p. Weights are in registers.
template <int p, int k, int kTiles>
FMP_TILES_INLINE void multiply_window(const uint8_t* x, const std::array<int, 3>& offsets) {
  load<kData>(x + offsets[k], kRowBytes);
  multiply_add<kSums + p, kWeights + k, kData>();
  if constexpr (k + 1 < kTiles) multiply_window<p, k + 1, kTiles>(x, offsets);
}

// Positions p, p + 1, ...
template <int p, int kTiles, typename Between>
FMP_TILES_INLINE void multiply_windows(const uint8_t* x, ptrdiff_t row_bytes,
                                       const std::array<int, 3>& offsets, int32_t* sums,
                                       const Between& between) {
  renew<p>(sums);
  multiply_window<p, 0, kTiles>(x, offsets);
  between(p);
  if constexpr (p + 1 < kPositions) {
    multiply_windows<p + 1, kTiles>(x + row_bytes, row_bytes, offsets, sums, between);
  }
}

// Three taps of 16 quads: a row is a tile, and is loaded once for the windows that it is in.
template <typename Between>
FMP_TILES_INLINE void multiply_three_taps(const uint8_t* x, int32_t* sums, const Between& between) {
  static_assert(kPositions == 4);
  renew<0>(sums);
  load<kData>(x, kRowBytes);
  multiply_add<0, kWeights, kData>();
  load<kData>(x + kTileBytes, kRowBytes);
  multiply_add<0, kWeights + 1, kData>();
  renew<1>(sums);
  multiply_add<1, kWeights, kData>();
  between(0);
  load<kData>(x + 2 * kTileBytes, kRowBytes);
  multiply_add<0, kWeights + 2, kData>();
  multiply_add<1, kWeights + 1, kData>();
  renew<2>(sums);
  multiply_add<2, kWeights, kData>();
  between(1);
  load<kData>(x + 3 * kTileBytes, kRowBytes);
  multiply_add<1, kWeights + 2, kData>();
  multiply_add<2, kWeights + 1, kData>();
  renew<3>(sums);
  multiply_add<3, kWeights, kData>();
  between(2);
  load<kData>(x + 4 * kTileBytes, kRowBytes);
  multiply_add<2, kWeights + 2, kData>();
  multiply_add<3, kWeights + 1, kData>();
  load<kData>(x + 5 * kTileBytes, kRowBytes);
  multiply_add<3, kWeights + 2, kData>();
  between(3);
}

// Tile of weights from memory, for positions p, p + 1, ...
template <bool kFirst, int p, typename Between>
FMP_TILES_INLINE void multiply_positions(const uint8_t* x, ptrdiff_t row_bytes, int32_t* sums,
                                         const Between& between) {
  if constexpr (kFirst) renew<p>(sums);
  constexpr int kTile = kData - p % 3;
  load<kTile>(x, kRowBytes);
  multiply_add<kSums + p, kWeights, kTile>();
  if constexpr (kFirst) between(p);
  if constexpr (p + 1 < kPositions) {
    multiply_positions<kFirst, p + 1>(x + row_bytes, row_bytes, sums, between);
  }
}

// Sums of kPositions positions into registers. What was in them goes to `sums`: the sums of the
// block before, [kPositions][kTileOutputs][kLanes]. Calls between(0) .. between(3) on the way.
template <int kTiles, typename Between>
FMP_TILES_INLINE void multiply_block(const TileLayerView& layer, const int8_t* weights,
                                     const std::array<int, 3>& offsets, const uint8_t* x,
                                     int32_t* sums, const Between& between) {
  if constexpr (kTiles == 0) {
    load<kWeights>(weights, kRowBytes);
    multiply_positions<true, 0>(x, layer.row_bytes, sums, between);
    for (int k = 1; k * kTileQuads < layer.window_quads; ++k) {
      load<kWeights>(weights + k * kTileBytes, kRowBytes);
      multiply_positions<false, 0>(x + first_quad_of_tile(layer, k) * kQuadRow, layer.row_bytes,
                                   sums, between);
    }
  } else if (kTiles == 3 && layer.window_quads == 3 * kTileQuads && layer.row_bytes == kTileBytes) {
    multiply_three_taps(x, sums, between);
  } else {
    multiply_windows<0, kTiles>(x, layer.row_bytes, offsets, sums, between);
  }
}

// Sums of any number of positions, one by one.
FMP_TILES void multiply_rows(const TileLayerView& layer, const int8_t* weights, const uint8_t* x,
                             int positions, int32_t* sums) {
  for (int p = 0; p < positions; ++p) {
    zero<kSums>();
    for (int k = 0; k * kTileQuads < layer.window_quads; ++k) {
      load<kWeights>(weights + k * kTileBytes, kRowBytes);
      load<kData>(x + p * layer.row_bytes + first_quad_of_tile(layer, k) * kQuadRow, kRowBytes);
      multiply_add<kSums, kWeights, kData>();
    }
    store<kSums>(sums + p * kTileSums);
  }
}

// From the bytes of four outputs, 16 of each 128 bits of their lanes, to quads of lanes.
FMP_TILES_INLINE __m512i quads_of_lanes(const __m512i (&codes)[kQuad]) {
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(codes[0], codes[1]),
                                            _mm512_packs_epi32(codes[2], codes[3]));
  // Byte b of lane i from byte i of the channel that is there: 0, 2, 1, 3.
  static_assert(byte_of_channel(1) == 2 && byte_of_channel(2) == 1);
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  return _mm512_shuffle_epi8(bytes, order);
}

FMP_TILES_INLINE __m512i clamped(__m512i bytes, const QuadLines& quad) {
  return _mm512_max_epu8(_mm512_min_epu8(bytes, _mm512_set1_epi32(static_cast<int>(quad.largest))),
                         _mm512_set1_epi32(static_cast<int>(quad.smallest)));
}

// Where the lines tell too little. The sums come in registers: an array would be stored every time.
FMP_TILES __attribute__((noinline)) __m512i looked_up(const TileLayerView& layer,
                                                      const QuadLines& quad, __m512i sums_0,
                                                      __m512i sums_1, __m512i sums_2,
                                                      __m512i sums_3) {
  const int levels = layer.levels;
  const int32_t* thresholds = layer.thresholds + (&quad - layer.quads) * kQuad * (levels + 1);
  const __m512i sums[kQuad] = {sums_0, sums_1, sums_2, sums_3};
  __m512i codes[kQuad];
  for (int j = 0; j < kQuad; ++j, thresholds += levels + 1) {
    if (quad.kind == CodeLine::kSearch) {
      codes[j] = _mm512_setzero_si512();
      for (int step = (levels + 1) / 2; step > 0; step /= 2) {
        const __m512i next = _mm512_add_epi32(codes[j], _mm512_set1_epi32(step));
        const __m512i threshold = _mm512_i32gather_epi32(next, thresholds - 1, 4);
        codes[j] =
            _mm512_mask_mov_epi32(codes[j], _mm512_cmpge_epi32_mask(sums[j], threshold), next);
      }
      continue;
    }
    const int shift = 8 * byte_of_channel(j);
    const __m512i smallest = _mm512_set1_epi32(static_cast<int>(quad.smallest >> shift & 0xff));
    const __m512i largest = _mm512_set1_epi32(static_cast<int>(quad.largest >> shift & 0xff));
    const __m512 line =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j]), _mm512_set1_ps(quad.multiplier[j]),
                        _mm512_set1_ps(quad.low[j]));
    const __m512i low =
        _mm512_max_epi32(_mm512_min_epi32(_mm512_cvttps_epi32(line), largest), smallest);
    const __m512i next = _mm512_i32gather_epi32(low, thresholds, 4);
    codes[j] = _mm512_mask_add_epi32(low, _mm512_cmpge_epi32_mask(sums[j], next), low,
                                     _mm512_set1_epi32(1));
  }
  return quads_of_lanes(codes);
}

// Codes of a quad of outputs at one pooled position.
FMP_TILES_INLINE __m512i codes_of(const TileLayerView& layer, const QuadLines& quad,
                                  const __m512i (&sums)[kQuad]) {
  __m512i low[kQuad];
  __m512 values[kQuad];
#pragma GCC unroll 4
  for (int j = 0; j < kQuad; ++j) {
    values[j] = _mm512_cvtepi32_ps(sums[j]);
    low[j] = _mm512_cvttps_epi32(_mm512_fmadd_ps(values[j], _mm512_set1_ps(quad.multiplier[j]),
                                                 _mm512_set1_ps(quad.low[j])));
  }
  const __m512i codes = clamped(quads_of_lanes(low), quad);
  if (quad.kind == CodeLine::kExact) return codes;
  __m512i high[kQuad];
#pragma GCC unroll 4
  for (int j = 0; j < kQuad; ++j) {
    high[j] = _mm512_cvttps_epi32(_mm512_fmadd_ps(values[j], _mm512_set1_ps(quad.multiplier[j]),
                                                  _mm512_set1_ps(quad.high[j])));
  }
  const __m512i above = clamped(quads_of_lanes(high), quad);
  if (__builtin_expect(_mm512_cmpneq_epi32_mask(codes, above) == 0, 1)) return codes;
  return looked_up(layer, quad, sums[0], sums[1], sums[2], sums[3]);
}

// Codes of a quad of outputs at `positions` positions, from sums [positions][kTileOutputs][kLanes]
// of which the quad's are the first. kPool: the pool, or 0 for any.
template <int kPool>
FMP_TILES_INLINE void finish_quad(const TileLayerView& layer, const QuadLines& quad,
                                  const int32_t* from, int positions, uint8_t* to) {
  const int pool = kPool > 0 ? kPool : layer.pool;
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  for (int p = 0; p < positions; p += pool, from += pool * kTileSums, to += out_stride) {
    __m512i largest[kQuad];
#pragma GCC unroll 4
    for (int j = 0; j < kQuad; ++j) {
      largest[j] = _mm512_load_si512(from + j * kLanes);
      for (int k = 1; k < pool; ++k) {
        largest[j] =
            _mm512_max_epi32(largest[j], _mm512_load_si512(from + k * kTileSums + j * kLanes));
      }
    }
    _mm512_store_si512(to, codes_of(layer, quad, largest));
  }
}

ptrdiff_t weights_of_tile(const TileLayerView& layer) {
  return static_cast<ptrdiff_t>((layer.window_quads + kTileQuads - 1) / kTileQuads) * kTileBytes;
}

// `rows` positions, a multiple of kPositions. While one block is multiplied, the sums of the one
// before go from registers to memory and those of the one before that become codes: as stores of
// tiles wait for the products, and loads for stores, nothing that follows closely would overlap.
template <int kPool, int kTiles>
FMP_TILES void hidden_blocks(const TileLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  alignas(64) int32_t sums[2][kPositions * kTileSums];
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  std::array<int, 3> offsets{};
  for (int k = 0; k < 3; ++k)
    offsets[static_cast<size_t>(k)] = first_quad_of_tile(layer, k) * kQuadRow;
  struct Block {
    int quads = 0;  // of outputs, in the tile
    const QuadLines* lines = nullptr;
    uint8_t* out = nullptr;
  } multiplied, stored;
  int turn = 0;
  const auto finish_stored = [&](int q) FMP_TILES {
    if (q >= stored.quads) return;
    finish_quad<kPool>(layer, stored.lines[q], sums[1 - turn] + q * kQuad * kLanes, kPositions,
                       stored.out + q * kQuadRow);
  };
  for (int begin = 0; begin < rows; begin += kChunkPositions) {
    const int end = std::min(begin + kChunkPositions, rows);
    const int8_t* weights = layer.weights;
    for (int quad = 0; quad < layer.out_quads;
         quad += kOutputQuads, weights += weights_of_tile(layer)) {
      if constexpr (kTiles > 0) load_weights<0, kTiles>(weights);
      for (int row = begin; row < end; row += kPositions) {
        multiply_block<kTiles>(layer, weights, offsets, x + row * layer.row_bytes, sums[turn],
                               finish_stored);
        stored = multiplied;
        multiplied = {std::min(kOutputQuads, layer.out_quads - quad), layer.quads + quad,
                      out + row / kPool * out_stride + quad * kQuadRow};
        turn = 1 - turn;
      }
    }
  }
  for (int q = 0; q < kOutputQuads; ++q) finish_stored(q);
  stored = multiplied;
  renew<0>(sums[turn]);
  renew<1>(sums[turn]);
  renew<2>(sums[turn]);
  renew<3>(sums[turn]);
  turn = 1 - turn;
  for (int q = 0; q < kOutputQuads; ++q) finish_stored(q);
}

// The same for any number of positions and any pool, one window at a time.
template <int kPool>
FMP_TILES void hidden_windows(const TileLayerView& layer, const uint8_t* x, int rows,
                              uint8_t* out) {
  static thread_local AlignedBuffer<int32_t> buffer;
  int32_t* sums = buffer.reserve(static_cast<size_t>(layer.pool * kTileSums));
  const ptrdiff_t out_stride = static_cast<ptrdiff_t>(layer.out_quads) * kQuadRow;
  for (int row = 0; row < rows; row += layer.pool) {
    const int8_t* weights = layer.weights;
    for (int quad = 0; quad < layer.out_quads;
         quad += kOutputQuads, weights += weights_of_tile(layer)) {
      multiply_rows(layer, weights, x + row * layer.row_bytes, layer.pool, sums);
      uint8_t* to = out + row / layer.pool * out_stride;
      for (int q = quad; q < std::min(quad + kOutputQuads, layer.out_quads); ++q) {
        finish_quad<kPool>(layer, layer.quads[q], sums + (q - quad) * kQuad * kLanes, layer.pool,
                           to + q * kQuadRow);
      }
    }
  }
}

template <int kPool, int kTiles>
FMP_TILES void hidden_layer(const TileLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  const int in_blocks = kPool > 0 ? rows / kPositions * kPositions : 0;
  configure(std::min(layer.window_quads, kTileQuads));
  if constexpr (kPool > 0) {
    if (in_blocks > 0) hidden_blocks<kPool, kTiles>(layer, x, in_blocks, out);
  }
  hidden_windows<kPool>(
      layer, x + in_blocks * layer.row_bytes, rows - in_blocks,
      out + static_cast<ptrdiff_t>(in_blocks / layer.pool) * layer.out_quads * kQuadRow);
  release();
}

template <int kPool>
void hidden_pool(const TileLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  switch ((layer.window_quads + kTileQuads - 1) / kTileQuads) {
    case 1:
      return hidden_layer<kPool, 1>(layer, x, rows, out);
    case 2:
      return hidden_layer<kPool, 2>(layer, x, rows, out);
    case 3:
      static_assert(kResidentTiles == 3);
      return hidden_layer<kPool, 3>(layer, x, rows, out);
    default:
      return hidden_layer<kPool, 0>(layer, x, rows, out);
  }
}

}  // namespace

void hidden_on_tiles(const TileLayerView& layer, const uint8_t* x, int rows, uint8_t* out) {
  switch (layer.pool) {
    case 1:
      return hidden_pool<1>(layer, x, rows, out);
    case 2:
      return hidden_pool<2>(layer, x, rows, out);
    default:
      return hidden_pool<0>(layer, x, rows, out);
  }
}

}  // namespace fmp::cpu

#else

namespace fmp::cpu {
void hidden_on_tiles(const TileLayerView&, const uint8_t*, int, uint8_t*) {}
}  // namespace fmp::cpu

#endif
