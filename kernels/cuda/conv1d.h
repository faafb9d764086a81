// SPDX-License-Identifier: MIT
// What the files of the convolution share. For .cu files only.
#pragma once

#include <algorithm>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {

// Outputs of a thread of the fp32 product; weights are padded to it.
inline constexpr int kOutBlock = 8;
// Surviving weights that a warp of the sparse gradient shares.
inline constexpr int kGroup = 8;

// Layers whose weights a launch takes at once: a kernel's parameters hold what it does for each.
inline constexpr int kLayersAtOnce = 16;

// How a matrix [out][tap][in] is taken from codes [O][T][C].
struct Packing {
  int out, in, taps;
  bool transposed;  // out = C, in = O, taps flipped
  __host__ __device__ __forceinline__ size_t place(int o, int t, int c) const {
    const size_t taps_ = static_cast<size_t>(taps);
    return transposed ? (static_cast<size_t>(c) * taps_ + static_cast<size_t>(taps - 1 - t)) *
                                static_cast<size_t>(out) +
                            static_cast<size_t>(o)
                      : (static_cast<size_t>(o) * taps_ + static_cast<size_t>(t)) *
                                static_cast<size_t>(in) +
                            static_cast<size_t>(c);
  }
  __host__ __device__ int quads() const { return (in + kQuad - 1) / kQuad; }
  __host__ __device__ int out_stride() const {
    return (out + kOutBlock - 1) / kOutBlock * kOutBlock;
  }
};
// The gradient of a dense layer's input (transposed) has the input's rows as channels of one row.
inline Packing packing_of(const ConvShape& s, bool transposed) {
  if (!transposed) return {s.out_channels, s.in_channels, s.taps, false};
  return s.same_padding ? Packing{s.in_channels, s.out_channels, s.taps, true}
                        : Packing{s.taps * s.in_channels, s.out_channels, 1, true};
}

// Of an element in [row][channel][lane], or of a weight in [out][tap][in].
__device__ __forceinline__ size_t place(int row, int channel, int lane, int channels, int lanes) {
  return (static_cast<size_t>(row) * static_cast<size_t>(channels) + static_cast<size_t>(channel)) *
             static_cast<size_t>(lanes) +
         static_cast<size_t>(lane);
}

// Gradients of weights are summed in slices of the batch. A step is one position and one warp of
// frames.
struct Slices {
  int positions, warps;
  Walk walk;
  int slices;
  __host__ __device__ int steps() const { return positions * warps; }
  __host__ __device__ int begin(int slice) const {
    return static_cast<int>(static_cast<int64_t>(slice) * steps() / slices);
  }
  __device__ __forceinline__ int row(int step) const {
    return walk == Walk::kPositionsFirst ? step % positions : step / warps;
  }
  __device__ __forceinline__ int first_frame(int step) const {
    return (walk == Walk::kPositionsFirst ? step / positions : step % warps) * kWarpLanes;
  }
};
// As many slices as make about `blocks` blocks.
inline Slices slices_for(int out_length, int lanes, Walk walk, int blocks_of_a_slice, int blocks) {
  Slices s{out_length, lanes / kWarpLanes, walk, 1};
  s.slices = std::max(1, std::min(s.steps(), blocks / std::max(1, blocks_of_a_slice)));
  return s;
}

struct GradientShape {
  int out_channels, in_channels, taps, lanes, dy_pad;
  Slices slices;
};
inline GradientShape gradient_shape(const ConvShape& s, const Tile& x, const Tile& dy) {
  return {s.out_channels, s.in_channels, s.taps, x.lanes(), dy.pad, {}};
}

// grad[place of i] = scale * sum of the slices' partial sums, i < count; places null = i itself,
// scale null = 1. partial: [slices][count].
void add_slices(const float* partial, int slices, int count, const int* places, const float* scale,
                float* grad, Stream stream);

}  // namespace fmp::cuda
