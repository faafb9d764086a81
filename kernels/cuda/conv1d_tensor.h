// SPDX-License-Identifier: MIT
// Products of weights and windows on tensor cores, as a warp holds them; conv1d_tensor.cu says how
// it is done, recompute.cu uses them, too. For .cu files only.
#pragma once

#include "kernels/cuda/conv1d.h"
#include "kernels/cuda/tensor_core.h"

namespace fmp::cuda {

__device__ __forceinline__ int group_of_lane() { return thread_x() / kMembers; }
__device__ __forceinline__ int member_of_lane() { return thread_x() % kMembers; }

// Four neighbouring frames, zeros where there is no such row.
template <typename Vector, typename T>
__device__ __forceinline__ void load_frames(const T* frames, bool exists, T (&of_frame)[4]) {
  Vector v{};
  if (exists) v = __ldg(reinterpret_cast<const Vector*>(frames));
  of_frame[0] = v.x;
  of_frame[1] = v.y;
  of_frame[2] = v.z;
  of_frame[3] = v.w;
}

// Tensor cores round sums of floats towards zero, which adds up. So they add up the parts of one
// step only, the smallest first, and steps are added with rounding to nearest.
__device__ __forceinline__ void add_step(const float (&of_step)[4], float (&sums)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] += of_step[e];
}

inline constexpr int kOutTiles = 4;  // of kFragmentRows outputs; of a warp
inline constexpr int kFrameTiles =
    4;  // of kFragmentColumns frames: column c of tile i is frame 4 c + i
static_assert(kFrameTiles * kFragmentColumns == kWarpLanes);
inline constexpr int kWindowWarps = 4;  // of a block, each with positions of its own

// Which output a row of a tile is: two tiles are 32 outputs, and each lane holds a quad of them,
// which it packs into one word of codes. half: of the rows, of group_of_lane() or + 8.
inline constexpr int kPairOutputs = 2 * kFragmentRows;
static_assert(kPairOutputs == kFragmentColumns * kQuad);
__host__ __device__ __forceinline__ constexpr int output_of(int tile, int group, int half) {
  return tile / 2 * kPairOutputs + group * kQuad + tile % 2 * 2 + half;
}
constexpr int tiles_for(int outputs) { return (outputs + kPairOutputs - 1) / kPairOutputs * 2; }
// The frame of a lane's element `column` of D in tile `i` is first_frame() + 4 * column + i.
__device__ __forceinline__ int first_frame_of_lane(int first_lane) {
  return first_lane + 2 * kFrameTiles * member_of_lane();
}

// B of one product for each tile of frames: read() a lane's frames in the rows of a window that are
// left, a step ahead, and convert() them. A quad of codes is four k.
template <bool kSigned>
struct CodeWindow {
  using Row = uint32_t;
  using Sum = int;
  static constexpr int kDepth = kByteDepth / kQuad, kParts = 1;
  // Blocks on a multiprocessor that the registers of conv_tensor allow.
  static constexpr int kBlocksEach = 4;

  struct Frames {
    uint32_t words[2][kFrameTiles];
  };

  static __device__ __forceinline__ void read(const Row* frames, int rows, int lanes, Frames& to) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = member_of_lane() + kMembers * half;
      load_frames<uint4>(frames + row * lanes, row < rows, to.words[half]);
    }
  }
  static __device__ __forceinline__ void convert(const Frames& from,
                                                 uint32_t (&b)[kFrameTiles][kParts][2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) b[i][0][half] = from.words[half][i];
    }
  }
  static __device__ __forceinline__ void add_product(Sum (&sums)[kFrameTiles][4],
                                                     const uint32_t (&a)[4],
                                                     const uint32_t (&b)[kFrameTiles][kParts][2]) {
#pragma unroll
    for (int i = 0; i < kFrameTiles; ++i) {
      if constexpr (kSigned) {
        mma_m16n8k32_s8_s8(sums[i], a, b[i][0]);
      } else {
        mma_m16n8k32_s8_u8(sums[i], a, b[i][0]);
      }
    }
  }
};

// The code in byte i of a word. kSigned: bytes are codes + 128.
inline constexpr uint32_t kAdd128 = 0x80808080U;  // to signed bytes, by exclusive or
template <bool kSigned>
__device__ __forceinline__ float code_value(uint32_t word, int i) {
  constexpr uint32_t kBits = 0x4b000000U;  // 2^23 + n has n in its lowest bits
  constexpr float kOffset = 8388608.0F + (kSigned ? 128.0F : 0.0F);
  const unsigned byte_and_bits = 0x7440U + static_cast<unsigned>(i);
  return __uint_as_float(__byte_perm(word, kBits, byte_and_bits)) - kOffset;
}
// Two codes as bf16.
template <bool kSigned>
__device__ __forceinline__ uint32_t code_pair(uint32_t first, uint32_t second, int i) {
  return upper_halves(code_value<kSigned>(first, i), code_value<kSigned>(second, i));
}

// Shape of a product of weights and windows. A window has `rows` rows of memory, the next one
// begins `row_step` rows behind it; `depth_steps` products cover it.
struct Windows {
  int rows, row_step, depth_steps, out_tiles, out_channels, out_length, lanes;
};

// sums = weights * window, outputs from tile `first_tile` on. frames: this lane's, in the first row
// of the window. weights: [tile of outputs][step][lane][4].
template <typename Window, int kTiles>
__device__ __forceinline__ void multiply_window(
    const typename Window::Row* frames, const Windows& s, const uint4* weights, int first_tile,
    typename Window::Sum (&sums)[kTiles][kFrameTiles][4]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < kFrameTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][i][e] = 0;
    }
  }
  typename Window::Frames next;
  Window::read(frames, s.rows, s.lanes, next);
#pragma unroll 1
  for (int step = 0; step < s.depth_steps; ++step) {
    uint32_t b[kFrameTiles][Window::kParts][2];
    Window::convert(next, b);
    frames += Window::kDepth * s.lanes;
    Window::read(frames, s.rows - (step + 1) * Window::kDepth, s.lanes, next);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (first_tile + m < s.out_tiles) {  // the same for the whole warp
        const uint4 w = __ldg(
            weights + static_cast<size_t>((first_tile + m) * s.depth_steps + step) * kWarpLanes +
            static_cast<size_t>(thread_x()));
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        Window::add_product(sums[m], a, b);
      }
    }
  }
}

// Weights as A of each product, [tile of outputs][step][lane][register]: kBytes: four signed bytes
// of a quad, with quads of every tap filled up; otherwise two bf16.
template <bool kBytes>
struct FragmentOrder {
  static constexpr int kPerRegister = kBytes ? 4 : 2, kDepth = 2 * kMembers * kPerRegister;

  static __host__ __device__ __forceinline__ int row_channels(const Packing& p) {
    return kBytes ? p.quads() * kQuad : p.in;
  }
  static __host__ __device__ __forceinline__ int steps(const Packing& p) {  // of a whole window
    return (p.taps * row_channels(p) + kDepth - 1) / kDepth;
  }
};

template <bool kBytes>
Windows windows(const Packing& p, int out_length, int lanes) {
  using Order = FragmentOrder<kBytes>;
  const int row_step = kBytes ? p.quads() : p.in;
  return {p.taps * row_step, row_step, Order::steps(p), tiles_for(p.out), p.out, out_length, lanes};
}

}  // namespace fmp::cuda
