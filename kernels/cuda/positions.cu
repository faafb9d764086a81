// SPDX-License-Identifier: MIT
// Codes as a layer with a stride reads them: `factor` positions as one of so many times the
// channels. Where the channels fill whole quads, memory has them in that order already; this is for
// the others.
#include <stdexcept>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

constexpr int kQuadRows = 8;  // quads of a block

// Every row of `out`, padding included, from the same rows of the input.
__global__ void __launch_bounds__(kBlockThreads)
    put_side_by_side(CodeTile from, int channels, int factor, WarpsByRows grid, int quads,
                     uint32_t* words) {
  const int lane = grid.first_lane() + thread_x();
  const int quad = block_y() * kQuadRows + thread_y();
  if (quad >= quads) return;
  const int row = grid.row();
  uint32_t word = 0;
  for (int k = 0; k < kQuad && quad * kQuad + k < channels * factor; ++k) {
    const int channel = (quad * kQuad + k) % channels;
    const int position = row * factor + (quad * kQuad + k) / channels;
    const uint32_t code = from.word(position, channel / kQuad, lane) >> (8 * (channel % kQuad));
    word |= (code & 0xff) << (8 * k);
  }
  words[(static_cast<size_t>(row) * static_cast<size_t>(quads) + static_cast<size_t>(quad)) *
            static_cast<size_t>(from.lanes) +
        static_cast<size_t>(lane)] = word;
}

}  // namespace

Input positions_of(const Input& x, int length, int pad) {
  if (pad > x.tile.pad || length + pad > x.tile.length + x.tile.pad)
    throw std::invalid_argument("CUDA: a tile has too few rows of zeros");
  const auto columns =
      static_cast<size_t>(x.type == ElementType::kF32 ? x.tile.channels : x.tile.quads());
  const size_t row_bytes = columns * static_cast<size_t>(x.tile.lanes()) * sizeof(uint32_t);
  Input view = x;
  view.data = static_cast<const char*>(x.data) + static_cast<size_t>(x.tile.pad - pad) * row_bytes;
  view.tile.length = length;
  view.tile.pad = pad;
  return view;
}

Tile joined_positions(const Tile& tile, int factor) {
  if (tile.length % factor != 0 || tile.pad % factor != 0)
    throw std::invalid_argument("CUDA: positions that cannot be joined");
  Tile joined = tile;
  joined.length /= factor;
  joined.channels *= factor;
  joined.pad /= factor;
  return joined;
}

Input join_positions(const Input& x, int factor, DeviceBuffer<uint8_t>& memory, Stream stream) {
  Input joined = x;
  joined.tile = joined_positions(x.tile, factor);
  if (factor == 1 || x.type == ElementType::kF32 || x.tile.channels % kQuad == 0) return joined;
  joined.data = memory.reserve(joined.tile.code_bytes());
  const WarpsByRows grid = warps_by_rows(x.tile.lanes(), joined.tile.rows());
  launch(Where("put_side_by_side", native(stream)),
         Shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(joined.tile.quads()), kQuadRows)),
               dim3(kWarpLanes, kQuadRows)},
         put_side_by_side,
         CodeTile{static_cast<const uint32_t*>(x.data), x.tile.quads(), x.tile.lanes()},
         x.tile.channels, factor, grid, joined.tile.quads(),
         reinterpret_cast<uint32_t*>(memory.data()));
  return joined;
}

}  // namespace fmp::cuda
