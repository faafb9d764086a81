// SPDX-License-Identifier: MIT
// Frames one after another become frames side by side.
#include <algorithm>
#include <stdexcept>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/parallel.h"

namespace fmp::cpu {
namespace {

template <typename T>
void pack(std::span<const T> frames, TileView out, int threads) {
  const TileShape& s = out.shape;
  const int64_t frame_elements = static_cast<int64_t>(s.length) * s.channels;
  if (static_cast<int64_t>(frames.size()) != s.frames * frame_elements) {
    throw std::invalid_argument("pack_frames: the frames do not fill the tile's shape");
  }
  cpu::parallel_for(s.tiles(), threads, [&](int64_t tile) {
    T* to = static_cast<T*>(out.data) + tile * s.tile_elements() + s.pad * s.row_elements();
    const int used = s.lanes_used(tile);
    for (int lane = 0; lane < used; ++lane) {
      const T* from = frames.data() + (tile * kLanes + lane) * frame_elements;
      for (int64_t i = 0; i < frame_elements; ++i) to[i * kLanes + lane] = from[i];
    }
    for (int64_t i = 0; used < kLanes && i < frame_elements; ++i) {
      std::fill_n(to + i * kLanes + used, kLanes - used, T{0});
    }
  });
}

}  // namespace

void pack_frames(std::span<const int8_t> frames, TileView out, int threads) {
  pack(frames, out, threads);
}
void pack_frames(std::span<const float> frames, TileView out, int threads) {
  pack(frames, out, threads);
}

}  // namespace fmp::cpu
