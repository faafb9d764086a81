// SPDX-License-Identifier: MIT
// What the files of a hidden layer share: its activations before pooling, and the passes over them.
// For .cu files only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {

// The CPU's tiles have kLanes frames; in their order elements are numbered.
inline constexpr int kCpuLanes = kLanes;

// The layer's activations before pooling, [length][channels][lanes], and what is done to them.
struct Activation {
  int length, channels, lanes, frames, pool;
  float max_code;  // 0: not quantized
  const float *gain, *shift;

  __host__ __device__ int pooled_length() const { return length / pool; }
  __device__ __forceinline__ size_t place(int row, int channel, int lane) const {
    return (static_cast<size_t>(row) * static_cast<size_t>(channels) +
            static_cast<size_t>(channel)) *
               static_cast<size_t>(lanes) +
           static_cast<size_t>(lane);
  }
  __device__ __forceinline__ size_t row_stride() const {
    return static_cast<size_t>(channels) * static_cast<size_t>(lanes);
  }
  // Number of an element in the CPU's tiles.
  __device__ __forceinline__ unsigned number(int row, int channel, int lane) const {
    const unsigned tile_row = static_cast<unsigned>(lane / kCpuLanes * length + row);
    return (tile_row * static_cast<unsigned>(channels) + static_cast<unsigned>(channel)) *
               kCpuLanes +
           static_cast<unsigned>(lane % kCpuLanes);
  }
  __device__ __forceinline__ int channel_of_number(unsigned n) const {
    return static_cast<int>(n / kCpuLanes % static_cast<unsigned>(channels));
  }
};

// Positions of slice `block_y()` of all `rows`.
struct RowSlice {
  int begin, end;
  __device__ explicit RowSlice(int rows) {
    const int64_t slices = gridDim.y, slice = blockIdx.y;
    begin = static_cast<int>(slice * rows / slices);
    end = static_cast<int>((slice + 1) * rows / slices);
  }
};

inline Shape channel_slices(int channels, int rows) {
  const int wanted = std::max(1, kManyBlocks / std::max(1, channels));
  return {dim3(static_cast<unsigned>(channels), static_cast<unsigned>(std::min(rows, wanted))),
          dim3(kBlockThreads)};
}

// dy = of_g * g + of_y * y + of_one per channel: the backward pass of batch-norm.
struct GradientAffine {
  const float *of_g, *of_y, *of_one;
};

// What the forward pass does to sums: in training, or in evaluation.
enum class Mode : bool { kTraining, kEvaluation };

// partial[slice of channel_slices(channels, length)][channel][2]: sums of y and y^2.
void sum_channels(const Activation& a, const float* y, double* partial, Stream stream);

// From sums and constants to the layer's output.
void activate(const Activation& a, Mode mode, const HiddenState& state, const Tile& out,
              void* out_data, Stream stream);

// partial[slice of channel_slices(channels, pooled_length)][channel][3]: sums of g, of g * xhat,
// and of the scale's gradient.
void sum_gradients(const Activation& a, const HiddenState& state, const float* dp, double* partial,
                   Stream stream);

// dy of every position, with `pad` rows of zeros at each end.
void apply_gradients(const Activation& a, const HiddenState& state, const float* dp,
                     const GradientAffine& gradient, int pad, float* dy, Stream stream);

// Sets the threshold to the percentile of the activations, and where it was found.
void find_percentile(const Activation& a, const HiddenState& state, Stream stream);

}  // namespace fmp::cuda
