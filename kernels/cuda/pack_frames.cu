// SPDX-License-Identifier: MIT
// Frames one after another become frames side by side. A block takes a warp of frames and a stretch
// of their elements through shared memory, so that reads follow a frame and writes follow the
// lanes.
#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

constexpr int kPositions = 16;  // of a block
constexpr int kThreadRows = 8;

// staged[lane][position * channels + channel], of frames [N][L][C].
template <typename T>
__device__ void stage(const T* frames, const uint32_t* which, const Tile& tile, int lane0,
                      int first, int positions, T* staged, int stride) {
  const int count = positions * tile.channels;
  for (int lane = thread_y(); lane < kWarpLanes; lane += kThreadRows) {
    const int64_t frame = lane0 + lane;
    const bool used = frame < tile.frames;
    const int64_t from = which != nullptr && used ? which[frame] : frame;
    for (int i = thread_x(); i < count; i += kWarpLanes) {
      const int64_t at = (from * tile.length + first) * tile.channels + i;
      staged[lane * stride + i] = used ? frames[at] : T{0};
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kBlockThreads)
    pack_codes(const int8_t* frames, const uint32_t* which, Tile tile, WarpsByRows grid,
               uint32_t* out) {
  int8_t* staged = dynamic_shared<int8_t>();
  const int stride = kPositions * tile.channels + 4;
  const int first = grid.row() * kPositions;
  const int positions = min(kPositions, tile.length - first);
  stage(frames, which, tile, grid.first_lane(), first, positions, staged, stride);
  const int lane = thread_x();
  for (int i = thread_y(); i < positions * tile.quads(); i += kThreadRows) {
    const int position = i / tile.quads(), quad = i % tile.quads();
    uint32_t word = 0;
    for (int k = 0; k < kQuad && quad * kQuad + k < tile.channels; ++k) {
      const int8_t code = staged[lane * stride + position * tile.channels + quad * kQuad + k];
      word |= static_cast<uint32_t>(static_cast<uint8_t>(code)) << (8 * k);
    }
    const size_t row = static_cast<size_t>(tile.pad + first + position);
    out[(row * static_cast<size_t>(tile.quads()) + static_cast<size_t>(quad)) *
            static_cast<size_t>(tile.lanes()) +
        static_cast<size_t>(grid.first_lane() + lane)] = word;
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    pack_values(const float* frames, const uint32_t* which, Tile tile, WarpsByRows grid,
                float* out) {
  float* staged = dynamic_shared<float>();
  const int stride = kPositions * tile.channels + 1;
  const int first = grid.row() * kPositions;
  const int positions = min(kPositions, tile.length - first);
  stage(frames, which, tile, grid.first_lane(), first, positions, staged, stride);
  const int lane = thread_x();
  for (int i = thread_y(); i < positions * tile.channels; i += kThreadRows) {
    const size_t row = static_cast<size_t>((tile.pad + first) * tile.channels + i);
    out[row * static_cast<size_t>(tile.lanes()) + static_cast<size_t>(grid.first_lane() + lane)] =
        staged[lane * stride + i];
  }
}

WarpsByRows grid_of(const Tile& tile) {
  return warps_by_rows(tile.lanes(),
                       static_cast<int>(blocks_for(static_cast<size_t>(tile.length), kPositions)));
}
Shape shape_of(const Tile& tile, size_t shared_bytes) {
  return {dim3(grid_of(tile).blocks()), dim3(kWarpLanes, kThreadRows), shared_bytes};
}

// The rows of zeros at both ends.
void clear_padding(const Tile& tile, void* data, size_t row_bytes, Stream stream) {
  if (tile.pad == 0) return;
  const size_t bytes = row_bytes * static_cast<size_t>(tile.pad);
  set_bytes(data, 0, bytes, stream);
  char* end = static_cast<char*>(data) + row_bytes * static_cast<size_t>(tile.rows());
  set_bytes(end - bytes, 0, bytes, stream);
}

}  // namespace

void pack_frames(const int8_t* frames, const Tile& out, void* codes, Stream stream,
                 const uint32_t* which) {
  clear_padding(out, codes, out.code_bytes() / static_cast<size_t>(out.rows()), stream);
  const size_t bytes = kWarpLanes * static_cast<size_t>(kPositions * out.channels + 4);
  launch(Where("pack_codes", native(stream)), shape_of(out, bytes), pack_codes, frames, which, out,
         grid_of(out), static_cast<uint32_t*>(codes));
}

void pack_frames(const float* frames, const Tile& out, float* values, Stream stream,
                 const uint32_t* which) {
  clear_padding(out, values, out.floats() / static_cast<size_t>(out.rows()) * sizeof(float),
                stream);
  const size_t bytes =
      kWarpLanes * static_cast<size_t>(kPositions * out.channels + 1) * sizeof(float);
  launch(Where("pack_values", native(stream)), shape_of(out, bytes), pack_values, frames, which,
         out, grid_of(out), values);
}

}  // namespace fmp::cuda
