// SPDX-License-Identifier: MIT
// What the files of the convolution share. For .cu files only.
#pragma once

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {

// How a matrix [out][tap][in] is taken from codes [O][T][C].
struct Packing {
  int out, in, taps, out_stride;
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
};

// grad[place of i] = scale * sum of the slices' partial sums, i < count; places null = i itself,
// scale null = 1. partial: [slices][count].
void add_slices(const float* partial, int slices, int count, const int* places, const float* scale,
                float* grad, Stream stream);

}  // namespace fmp::cuda
