// SPDX-License-Identifier: MIT
// What kernels share: reading operands, sums of blocks. For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace fmp::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffU;
inline constexpr int kBlockThreads = 256;
inline constexpr int kBlockWarps = kBlockThreads / kWarpLanes;
// Blocks that keep a device with about 130 multiprocessors busy. A constant, so that the order of
// sums does not depend on the device.
inline constexpr int kManyBlocks = 512;

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }
inline unsigned blocks_for(size_t count, size_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

__device__ __forceinline__ int thread_x() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int thread_y() { return static_cast<int>(threadIdx.y); }
__device__ __forceinline__ int block_x() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int block_y() { return static_cast<int>(blockIdx.y); }
__device__ __forceinline__ int block_z() { return static_cast<int>(blockIdx.z); }
__device__ __forceinline__ int thread_of_block() {
  return thread_y() * static_cast<int>(blockDim.x) + thread_x();
}
__device__ __forceinline__ int block_threads() { return static_cast<int>(blockDim.x * blockDim.y); }
__device__ __forceinline__ size_t global_x() {
  return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Asks for a line of memory that will be read soon, so that it is in L2 by then.
__device__ __forceinline__ void prefetch(const void* address) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
#else
  static_cast<void>(address);
#endif
}

// Sum over the threads of a warp, in every lane; the same order whatever the data.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, step);
  }
  return value;
}

// Sum over a block of so many warps, valid in thread 0. All threads must come; a later call may
// reuse the memory at once.
template <int kWarps = kBlockWarps, typename T>
__device__ T block_sum(T value) {
  __shared__ T of_warp[kWarps];
  value = warp_sum(value);
  const int thread = thread_of_block();
  if (thread % kWarpLanes == 0) of_warp[thread / kWarpLanes] = value;
  __syncthreads();
  T total = T{};
  if (thread == 0) {
    for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  }
  __syncthreads();
  return total;
}

// Whether this block is the last one of `blocks` to come here; it then sees what all of them have
// written before, and what it makes of that depends on no order. All threads must come, once.
// *arrived: 0, also afterwards.
__device__ __forceinline__ bool is_last_block(unsigned* arrived, unsigned blocks) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (thread_of_block() == 0) is_last = atomicInc(arrived, blocks - 1) == blocks - 1;
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}
__device__ __forceinline__ unsigned all_blocks() { return gridDim.x * gridDim.y * gridDim.z; }

// A grid of warps of frames by rows, in x, so that there may be as many rows as memory holds.
struct WarpsByRows {
  int warps, rows;
  Walk walk;

  unsigned blocks() const { return static_cast<unsigned>(warps) * static_cast<unsigned>(rows); }
  __device__ __forceinline__ int row() const {
    return walk == Walk::kFramesFirst ? block_x() / warps : block_x() % rows;
  }
  __device__ __forceinline__ int first_lane() const {
    return (walk == Walk::kFramesFirst ? block_x() % warps : block_x() / rows) * kWarpLanes;
  }
};
inline WarpsByRows warps_by_rows(int lanes, int rows, Walk walk = Walk::kFramesFirst) {
  return {lanes / kWarpLanes, rows, walk};
}

// A tile in device memory, element by element or a quad of channels at once.
struct CodeTile {
  const uint32_t* words;
  int quads, lanes;
  __device__ __forceinline__ uint32_t word(int row, int quad, int lane) const {
    return __ldg(
        words +
        (static_cast<size_t>(row) * static_cast<size_t>(quads) + static_cast<size_t>(quad)) *
            static_cast<size_t>(lanes) +
        static_cast<size_t>(lane));
  }
};

template <bool kSigned>
__device__ __forceinline__ int code_of(uint32_t word, int channel) {
  const uint32_t byte = word >> (8 * (channel % kQuad)) & 0xff;
  return kSigned ? static_cast<int>(static_cast<int8_t>(byte)) : static_cast<int>(byte);
}

template <bool kSigned>
struct Codes : CodeTile {
  __device__ __forceinline__ int value(int row, int channel, int lane) const {
    return code_of<kSigned>(word(row, channel / kQuad, lane), channel);
  }
  __device__ __forceinline__ void quad(int row, int q, int lane, float (&out)[kQuad]) const {
    const uint32_t w = word(row, q, lane);
    for (int i = 0; i < kQuad; ++i) out[i] = static_cast<float>(code_of<kSigned>(w, i));
  }
};

struct Values {
  const float* data;
  int channels, lanes;
  __device__ __forceinline__ float value(int row, int channel, int lane) const {
    return __ldg(
        data +
        (static_cast<size_t>(row) * static_cast<size_t>(channels) + static_cast<size_t>(channel)) *
            static_cast<size_t>(lanes) +
        static_cast<size_t>(lane));
  }
  __device__ __forceinline__ void quad(int row, int q, int lane, float (&out)[kQuad]) const {
    for (int i = 0; i < kQuad; ++i) {
      out[i] = q * kQuad + i < channels ? value(row, q * kQuad + i, lane) : 0.0F;
    }
  }
};

inline Values values_of(const Tile& tile, const void* data) {
  return {static_cast<const float*>(data), tile.channels, tile.lanes()};
}
template <bool kSigned>
Codes<kSigned> codes_of(const Tile& tile, const void* data) {
  return {{static_cast<const uint32_t*>(data), tile.quads(), tile.lanes()}};
}

// Calls f with the reader of an input's type.
template <typename F>
void with_reader(const Input& x, const F& f) {
  switch (x.type) {
    case ElementType::kU8:
      f(codes_of<false>(x.tile, x.data));
      break;
    case ElementType::kS8:
      f(codes_of<true>(x.tile, x.data));
      break;
    case ElementType::kF32:
      f(values_of(x.tile, x.data));
      break;
    case ElementType::kBF16:  // no input is
      break;
  }
}

}  // namespace fmp::cuda
