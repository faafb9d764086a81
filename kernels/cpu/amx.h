// SPDX-License-Identifier: MIT
// AMX: registers that are tiles of bytes, and products of two of them added to a third. Here a tile
// of weights has a row for each of kTileOutputs outputs, of up to kTileQuads quads of channels; a
// tile of activations has a row for each quad, of all lanes; a tile of sums has a row for each
// output, of all lanes. For functions that are marked FMP_TILES, whatever the rest of the program
// is compiled for; call none unless tiles_available() (code_tiles.h).
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#define FMP_HAS_TILES 1

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined values in its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/quad_weights.h"

#define FMP_TILES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8")))
#define FMP_TILES_INLINE FMP_TILES __attribute__((always_inline)) inline

namespace fmp::cpu::amx {

// The registers: 0 to 3 are sums, 4 to 6 weights, 7 activations; those of full height may be used
// for either operand.
inline constexpr int kSums = 0, kWeights = 4, kData = 7;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
};

// quads: of the tiles of weights and activations.
FMP_TILES_INLINE void configure(int quads) {
  TileConfig config;
  for (int i = 0; i <= kData; ++i) {
    const bool weights = i >= kWeights && i < kData;
    config.bytes[i] = static_cast<uint16_t>(weights ? quads * kQuad : kQuadRow);
    config.rows[i] = static_cast<uint8_t>(i == kData ? quads : kTileOutputs);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}

FMP_TILES_INLINE void release() { asm volatile("tilerelease"); }

template <int kTile>
FMP_TILES_INLINE void load(const void* rows, ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
FMP_TILES_INLINE void store(int32_t* rows) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(rows), "r"(ptrdiff_t{kLanes * sizeof(int32_t)}), "i"(kTile)
               : "memory");
}

template <int kTile>
FMP_TILES_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Weights are signed, activations are not.
template <int kSum, int kWeight, int kActivation>
FMP_TILES_INLINE void multiply_add() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0"
               :
               : "i"(kSum), "i"(kWeight), "i"(kActivation));
}

}  // namespace fmp::cpu::amx

#else
#define FMP_HAS_TILES 0
#endif
