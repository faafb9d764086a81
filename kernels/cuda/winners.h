// SPDX-License-Identifier: MIT
// A layer's sums y as a warp computes them again from codes, and the winners of its pool windows.
// The math is that of elementwise.cu. A lane holds a quad of channels (conv1d_tensor.h), i.e. whole
// words of codes, and eight frames side by side. For .cu files only.
#pragma once

#include "kernels/cuda/activation.h"
#include "kernels/cuda/conv1d_tensor.h"

namespace fmp::cuda {

// A lane's sums: [tile][frame tile][element].
template <int kTiles>
using LaneSums = int[kTiles][kFrameTiles][4];

// Floats at 1.5 * 2^23 are 1 apart, and whole numbers below 2^22 added to it stand in their lowest
// bits: adding it rounds to the nearest code, halves to the even one.
inline constexpr float kRoundsToCodes = 12582912.0F;
__device__ __forceinline__ float rounded_code(float t, const Activation& a) {
  return __fadd_rn(fminf(fmaxf(t, a.min_code), a.max_code), kRoundsToCodes);
}
__device__ __forceinline__ float value_of_rounded(float rounded) {
  return __fsub_rn(rounded, kRoundsToCodes);
}
// The lowest bytes of four words.
__device__ __forceinline__ uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// What the kernels that compute y again are called with.
struct Recompute {
  const uint32_t* x;
  const uint4* weights;  // byte fragments
  Windows s;
  WarpsByRows grid;
};

// kPositions of two are whole windows, the most usual ones.
inline constexpr int kPair = 2;
template <int kPositions>
__device__ __forceinline__ int pool_of(const Activation& a) {
  return kPositions == kPair ? kPair : a.pool;
}

// y of `kPositions` positions from `position` on, outputs from tile `first_tile` on.
template <bool kSigned, int kPositions, int kTiles>
__device__ __forceinline__ void multiply_positions(const Recompute& r, int position, int first_tile,
                                                   LaneSums<kTiles> (&y)[kPositions]) {
  using Window = CodeWindow<kSigned>;
  const Windows& s = r.s;
  const uint32_t* frames =
      r.x +
      place(position, 0, r.grid.first_lane() + kFrameTiles * group_of_lane(), s.row_step, s.lanes);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) y[p][m][i][e] = 0;
      }
    }
  }
#pragma unroll 1
  for (int step = 0; step < s.depth_steps; ++step) {
    uint32_t b[kPositions][kFrameTiles][Window::kParts][2];
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      typename Window::Frames read;
      Window::read(frames + (step * Window::kDepth + p * s.row_step) * s.lanes,
                   s.rows - step * Window::kDepth, s.lanes, read);
      Window::convert(read, b[p]);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (first_tile + m < s.out_tiles) {  // the same for the whole warp
        const uint4 w = __ldg(
            r.weights + static_cast<size_t>((first_tile + m) * s.depth_steps + step) * kWarpLanes +
            static_cast<size_t>(thread_x()));
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int p = 0; p < kPositions; ++p) Window::add_product(y[p][m], a, b[p]);
      }
    }
  }
}

// The winners of a pooled row for a lane's elements: the first of the positions whose code is the
// largest.
template <int kTiles>
struct Winners {
  float y[kTiles][kFrameTiles][4], rounded[kTiles][kFrameTiles][4];
  // Which position it is, a byte for each frame tile.
  uint32_t position[kTiles][4];

  // Takes in position j of the windows.
  __device__ __forceinline__ void add(const Activation& a, int first_tile, int j,
                                      const LaneSums<kTiles>& sums) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int channel = min(output_of(first_tile + m, group_of_lane(), e / 2), a.channels - 1);
        const float gain = a.gain[channel], shift = a.shift[channel];
        if (j == 0) position[m][e] = 0;
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          const float sum = static_cast<float>(sums[m][i][e]);
          const float code = rounded_code(__fmaf_rn(sum, gain, shift), a);
          if (j == 0 || code > rounded[m][i][e]) {
            y[m][i][e] = sum;
            rounded[m][i][e] = code;
            const uint32_t byte = 0xffU << (8 * i);
            position[m][e] = (position[m][e] & ~byte) | static_cast<uint32_t>(j) << (8 * i);
          }
        }
      }
    }
  }
  __device__ __forceinline__ bool is_at(int j, int m, int i, int e) const {
    return (position[m][e] >> (8 * i) & 0xffU) == static_cast<uint32_t>(j);
  }
};

// y: the sums of the last positions, which are all of the row where kPositions is the pool.
template <bool kSigned, int kPositions, int kTiles>
__device__ __forceinline__ void find_winners(const Recompute& r, const Activation& a,
                                             int first_tile, int row, Winners<kTiles>& w,
                                             LaneSums<kTiles> (&y)[kPositions]) {
  const int pool = pool_of<kPositions>(a);
#pragma unroll 1
  for (int j = 0; j < pool; j += kPositions) {
    multiply_positions<kSigned, kPositions, kTiles>(r, row * pool + j, first_tile, y);
#pragma unroll
    for (int p = 0; p < kPositions; ++p) w.add(a, first_tile, j + p, y[p]);
  }
}

// A lane's four frames of a channel, zeros past the last frame.
__device__ __forceinline__ void load_gradients(const Activation& a, const float* dp, int row,
                                               int channel, int frame, float (&of_frame)[4]) {
  load_frames<float4>(dp + a.place(row, channel, frame), channel < a.channels, of_frame);
#pragma unroll
  for (int i = 0; i < kFrameTiles; ++i) of_frame[i] = frame + i < a.frames ? of_frame[i] : 0.0F;
}

// Window bits of a lane's elements of a tile: bit 8 * half + 4 * column + frame tile.
__device__ __forceinline__ size_t place_of_bits(int row, int quad, int quads, int lane, int lanes) {
  return place(row, quad, lane / 8, quads, lanes / 8);
}
__device__ __forceinline__ constexpr int bit_of(int e, int i) {
  return 8 * (e / 2) + 4 * (e % 2) + i;
}

// Bits of a lane's windows of a tile that pass and whose position is j.
struct TileBits {
  uint32_t at[kPair];
};
__device__ __forceinline__ TileBits read_bits(const WindowBits* winners, const Activation& a,
                                              int row, int tile, int lane) {
  const int quads = (a.channels + kQuad - 1) / kQuad;
  const int quad = tile / 2 * kFragmentColumns + group_of_lane();
  WindowBits bits{};
  if (quad < quads) bits = winners[place_of_bits(row, quad, quads, lane, a.lanes)];
  const int shift = tile % 2 * 16;
  return {{(bits.passing & ~bits.position) >> shift, (bits.passing & bits.position) >> shift}};
}
__device__ __forceinline__ float gradient_at(const TileBits& bits, int position, int e, int i,
                                             float dp) {
  return (bits.at[position] >> bit_of(e, i) & 1U) != 0 ? dp : 0.0F;
}

// Gradients of position `j` as A of a product, the parts of half of the frames: those of frame
// tiles 2 half and 2 half + 1.
__device__ __forceinline__ void split_gradients(const TileBits& bits, int j, int half,
                                                const float (&gradient)[4][kFrameTiles],
                                                uint32_t (&a)[kFloatParts][4]) {
#pragma unroll
  for (int reg = 0; reg < 4; ++reg) {
    const int i = 2 * half + reg / 2, e = reg % 2 * 2;
    uint32_t parts[kFloatParts];
    split(gradient_at(bits, j, e, i, gradient[e][i]),
          gradient_at(bits, j, e + 1, i, gradient[e + 1][i]), parts);
#pragma unroll
    for (int part = 0; part < kFloatParts; ++part) a[part][reg] = parts[part];
  }
}

// A lane's gradients of a pooled row's windows.
__device__ __forceinline__ void load_tile_gradients(const Activation& a, const float* dp, int row,
                                                    int tile, int first_frame,
                                                    float (&gradient)[4][kFrameTiles]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    load_gradients(a, dp, row, output_of(tile, group_of_lane(), e / 2), first_frame + 4 * (e % 2),
                   gradient[e]);
  }
}

// Asks for what a warp will read of a pooled row of a tile: dp, and bits of windows.
__device__ __forceinline__ void prefetch_row(const Activation& a, const float* dp,
                                             const WindowBits* winners, int row, int tile,
                                             int first_frame) {
  const int lane = thread_x(), quads = (a.channels + kQuad - 1) / kQuad;
  if (lane < kFragmentRows) {
    const int channel = output_of(tile, lane / 2, lane % 2);
    if (channel < a.channels) prefetch(dp + a.place(row, channel, first_frame));
  } else if (lane < kFragmentRows + kFragmentColumns) {
    const int quad = tile / 2 * kFragmentColumns + lane - kFragmentRows;
    if (quad < quads) prefetch(winners + place_of_bits(row, quad, quads, first_frame, a.lanes));
  }
}

// Sums of g and of dp * code for a lane's channels of a tile, in floats over a few rows and then in
// doubles.
struct WindowGradientSums {
  static constexpr int kRowsInFloats = 8;
  float few[2][2] = {};
  double all[2][2] = {};
  int rows = 0;

  __device__ __forceinline__ void add(const TileBits& bits, const float (&gradient)[4][kFrameTiles],
                                      const OutputCodes& out, int row, int tile, int frame) {
    const int quad = tile / 2 * kFragmentColumns + group_of_lane();
    const uint32_t passing = bits.at[0] | bits.at[1];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      uint32_t codes[kFrameTiles];
      load_frames<uint4>(out.at(row, quad, frame + 4 * column), quad < out.quads, codes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = 2 * half + column;
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          few[half][0] += (passing >> bit_of(e, i) & 1U) != 0 ? gradient[e][i] : 0.0F;
          const int k = tile % 2 * 2 + half;
          const float code = out.are_signed ? code_value<true>(codes[i] ^ kAdd128, k)
                                            : code_value<false>(codes[i], k);
          few[half][1] = __fmaf_rn(gradient[e][i], code, few[half][1]);
        }
      }
    }
    if (++rows % kRowsInFloats == 0) flush();
  }
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        all[half][which] += static_cast<double>(few[half][which]);
        few[half][which] = 0;
      }
    }
  }
  // Adds up a warp's lanes.
  __device__ __forceinline__ void end() {
    flush();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        for (int step = 1; step < kMembers; step *= 2) {
          all[half][which] += __shfl_xor_sync(kWholeWarp, all[half][which], step);
        }
      }
    }
  }
};

__device__ __forceinline__ double* place_of_sums(double* partial, int channels, int channel) {
  return partial + (static_cast<size_t>(block_x()) * static_cast<size_t>(channels) +
                    static_cast<size_t>(channel)) *
                       2;
}

// Sums of g, of g * xhat, and of the scale's gradient for a lane's channels, in floats over a few
// rows and then in doubles: conversions to double take eight times as long as additions of floats.
template <int kTiles>
struct GradientSums {
  static constexpr int kSums = 3, kRowsInFloats = 8;
  float few[kTiles][2][kSums] = {};
  double all[kTiles][2][kSums] = {};
  int rows = 0;

  // Of a window with gradient dp: the winner's t, whether its gradient passes, xhat and code.
  __device__ __forceinline__ void add(int m, int half, float dp, float t, bool passing, float xhat,
                                      float code) {
    float(&sums)[kSums] = few[m][half];
    const float g = passing ? dp : 0.0F;
    sums[0] += g;
    sums[1] = __fmaf_rn(g, xhat, sums[1]);
    sums[2] = __fmaf_rn(dp, code - (passing ? t : 0.0F), sums[2]);
  }
  __device__ __forceinline__ void end_row() {
    if (++rows % kRowsInFloats == 0) flush();
  }
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < kSums; ++k) {
          all[m][half][k] += static_cast<double>(few[m][half][k]);
          few[m][half][k] = 0;
        }
      }
    }
  }
};

// Adds a pooled row's windows to `sums`.
template <int kTiles>
__device__ __forceinline__ void add_winners(GradientSums<kTiles>& sums, const Winners<kTiles>& w,
                                            const Activation& a, const float* dp, int row,
                                            int first_tile, int first_frame, const float* xhat_gain,
                                            const float* xhat_shift) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int wanted = output_of(first_tile + m, group_of_lane(), e / 2);
      const int channel = min(wanted, a.channels - 1);
      const float gain = a.gain[channel], shift = a.shift[channel];
      const float to_xhat = xhat_gain[channel], offset = xhat_shift[channel];
      float gradient[4];
      load_gradients(a, dp, row, wanted, first_frame + 4 * (e % 2), gradient);
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) {
        const float y = w.y[m][i][e], t = __fmaf_rn(y, gain, shift);
        const bool passing = passes<true>(a, t);
        sums.add(m, e / 2, gradient[i], t, passing, __fmaf_rn(y, to_xhat, offset),
                 value_of_rounded(w.rounded[m][i][e]));
      }
    }
  }
}

// Adds up the sums of a block's warps and writes them: partial[block_x()][channel][3].
template <int kTiles>
__device__ __forceinline__ void write_sums(GradientSums<kTiles>& sums, int first_tile, int channels,
                                           double* partial) {
  constexpr int kSums = GradientSums<kTiles>::kSums;
  __shared__ double of_warp[kWindowWarps][kTiles][kFragmentRows][kSums];
  sums.flush();
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        double sum = sums.all[m][half][k];
        for (int step = 1; step < kMembers; step *= 2) {
          sum += __shfl_xor_sync(kWholeWarp, sum, step);
        }
        if (member_of_lane() == 0) {
          of_warp[thread_y()][m][2 * group_of_lane() + half][k] = sum;
        }
      }
    }
  }
  __syncthreads();
  const int thread = thread_y() * kWarpLanes + thread_x();
  static_assert(kWarpLanes * kWindowWarps >= kTiles * kFragmentRows * kSums);
  const int k = thread % kSums, row = thread / kSums % kFragmentRows;
  const int m = thread / kSums / kFragmentRows;
  if (m >= kTiles) return;
  const int channel = output_of(first_tile + m, row / 2, row % 2);
  if (channel >= channels) return;
  double total = 0;
  for (int warp = 0; warp < kWindowWarps; ++warp) total += of_warp[warp][m][row][k];
  partial[(static_cast<size_t>(block_x()) * static_cast<size_t>(channels) +
           static_cast<size_t>(channel)) *
              kSums +
          static_cast<size_t>(k)] = total;
}

// How a layer's kernels are called.
struct RecomputeCall {
  const Input& x;
  const Weights& weights;
  Windows s;
  cudaStream_t on;
  bool is_signed;

  RecomputeCall(const Input& input, const Weights& of_layer, Stream stream)
      : x(input),
        weights(of_layer),
        s(windows<true>(packing_of(of_layer.conv(), false), of_layer.conv().out_length,
                        input.tile.lanes())),
        on(native(stream)),
        is_signed(input.type == ElementType::kS8) {}

  Recompute at(const WarpsByRows& grid) const {
    return {static_cast<const uint32_t*>(x.data),
            reinterpret_cast<const uint4*>(weights.byte_fragments()), s, grid};
  }
  // Calls f<kSigned, kPositions>(). Warps multiply pairs of positions at once where they can, so
  // that they load weights once for both.
  template <typename F>
  void with_constants(bool pairs, const F& f) const {
    if (pairs) {
      is_signed ? f.template operator()<true, kPair>() : f.template operator()<false, kPair>();
    } else {
      is_signed ? f.template operator()<true, 1>() : f.template operator()<false, 1>();
    }
  }
  WarpsByRows warps_by(int rows, int per_block) const {
    return warps_by_rows(s.lanes, static_cast<int>(blocks_for(static_cast<size_t>(rows),
                                                              static_cast<size_t>(per_block))));
  }
};

// Blocks that add up gradients: of a whole batch, as many as keep the device busy.
inline WarpsByRows gradient_slices(const Activation& a) {
  const int wanted = std::max(1, kManyBlocks / a.groups.batch_warps);
  return warps_by_rows(a.lanes, std::min(a.pooled_length(), wanted));
}

}  // namespace fmp::cuda
