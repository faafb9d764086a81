// SPDX-License-Identifier: MIT
// What the files of a hidden layer share: its activations before pooling, and the passes over them.
// For .cu files only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/group_sums.h"

namespace fmp::cuda {

// The CPU's tiles have kLanes frames; in their order elements are numbered.
inline constexpr int kCpuLanes = kLanes;

// The layer's activations before pooling, [length][channels][lanes], and what is done to them.
struct Activation {
  int length, channels, lanes, frames, pool;
  float max_code;  // 0: not quantized
  float min_code;  // 0, or below: codes are signed
  const float *gain, *shift;
  // Of the batch of which `frames` may be a share; the first of them.
  FrameGroups groups;
  int batch_frames, first_frame;

  // Windows; positions that are left over have none.
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
  // Number of an element in the CPU's tiles, which hold the whole batch.
  __device__ __forceinline__ unsigned number(int row, int channel, int of_share) const {
    const int lane = first_frame + of_share;
    const unsigned tile_row = static_cast<unsigned>(lane / kCpuLanes * length + row);
    return (tile_row * static_cast<unsigned>(channels) + static_cast<unsigned>(channel)) *
               kCpuLanes +
           static_cast<unsigned>(lane % kCpuLanes);
  }
  __device__ __forceinline__ int channel_of_number(unsigned n) const {
    return static_cast<int>(n / kCpuLanes % static_cast<unsigned>(channels));
  }
};

// What training does to a sum, in one rounding ...
struct FusedAffine {
  float gain, shift;
  __device__ __forceinline__ FusedAffine(const Activation& a, int channel,
                                         const HiddenState::Scalars* /*s*/)
      : gain(a.gain[channel]), shift(a.shift[channel]) {}
  __device__ __forceinline__ float operator()(float y) const { return __fmaf_rn(y, gain, shift); }
  __device__ __forceinline__ float in_codes(float t) const { return t; }
};

// ... and evaluation in several; see cpu::EvaluationState.
struct EvaluationAffine {
  float sum_scale, gain, shift, act_scale;
  __device__ __forceinline__ EvaluationAffine(const Activation& a, int channel,
                                              const HiddenState::Scalars* s)
      : sum_scale(s->sum_scale),
        gain(a.gain[channel]),
        shift(a.shift[channel]),
        act_scale(s->act_scale) {}
  __device__ __forceinline__ float operator()(float y) const {
    return __fadd_rn(__fmul_rn(__fmul_rn(y, sum_scale), gain), shift);
  }
  __device__ __forceinline__ float in_codes(float value) const {
    return __fdiv_rn(value, act_scale);
  }
};

// Whether the gradient of a window passes its winner: where 0 < t < the first t that is clipped;
// signed codes begin half a code below min_code.
template <bool kQuantized>
__device__ __forceinline__ bool passes(const Activation& a, float t) {
  // max_code is odd, so that max_code + 0.5 rounds up to even.
  if (!kQuantized) return t > 0.0F;
  return t > (a.min_code < 0 ? a.min_code - 0.5F : 0.0F) && t < a.max_code + 0.5F;
}

// Sums of integers y and y^2 of each channel, exact in any order: the sum of y (as two's
// complement) and the sums of the lower and of the upper 32 bits of y^2. Several copies, so that
// blocks do not all add to the same memory.
struct IntegerSums {
  static constexpr int kCopies = 16, kParts = 3;
  unsigned long long* data;
  int channels;

  static size_t elements(size_t channels) { return kCopies * kParts * channels; }
  __device__ __forceinline__ unsigned long long* of(int copy, int channel) const {
    return data + (copy * channels + channel) * kParts;
  }
};

// Sums over all windows of their elements, and of products of two of them: [elements], and
// [k (k + 1) / 2 + j] for j <= k. codes: the layer's weights, [O][elements].
struct WindowSums {
  unsigned long long* data;
  const float* codes;
  int elements;

  static size_t size(int elements) {
    return static_cast<size_t>(elements + elements * (elements + 1) / 2);
  }
  __device__ __forceinline__ int64_t of_element(int k) const {
    return static_cast<int64_t>(data[k]);
  }
  // Of element k times y, for an output with these codes.
  __device__ __forceinline__ int64_t of_products(const float* of_output, int k) const {
    int64_t sum = 0;
    for (int j = 0; j < elements; ++j) {
      const int high = max(j, k), low = min(j, k);
      sum += static_cast<int64_t>(of_output[j]) *
             static_cast<int64_t>(data[elements + high * (high + 1) / 2 + low]);
    }
    return sum;
  }
  __device__ __forceinline__ int64_t by_weights(int channel, int k) const {
    return of_products(codes + static_cast<size_t>(channel) * static_cast<size_t>(elements), k);
  }
  // Sums of y and y^2.
  __device__ void of(int channel, double& sum, double& squares) const {
    const float* of_output = codes + static_cast<size_t>(channel) * static_cast<size_t>(elements);
    int64_t of_y = 0, of_squares = 0;
    for (int k = 0; k < elements; ++k) {
      const int64_t w = static_cast<int64_t>(of_output[k]);
      of_y += w * of_element(k);
      of_squares += w * of_products(of_output, k);
    }
    sum = static_cast<double>(of_y);
    squares = static_cast<double>(of_squares);
  }
};

// Sums over all windows of a hidden layer's input of three taps, [lag][channel][channel] for lags
// -2 .. 2, the same for the first and the last row at lag 0, and sums of elements: of all rows, the
// first and the last. See window_products.cu.
struct WindowProducts {
  static constexpr int kTaps = 3, kGroupChannels = 32;
  unsigned long long* data;
  int stride;  // channels, up to whole groups

  static int groups(int channels) { return (channels + kGroupChannels - 1) / kGroupChannels; }
  static size_t size(int channels) {
    const size_t stride = static_cast<size_t>(groups(channels) * kGroupChannels);
    return ((2 * kTaps + 1) * stride + 3) * stride;
  }
  // Sum over rows of x[row][c] * x[row + lag][other].
  __device__ __forceinline__ unsigned long long* product(int lag, int other, int c) const {
    return data + ((lag + kTaps - 1) * stride + other) * stride + c;
  }
  // x[row][c] * x[row][other], which: 1 = of the first row, 2 = of the last.
  __device__ __forceinline__ unsigned long long* edge(int which, int other, int c) const {
    return data + ((2 * kTaps - 2 + which) * stride + other) * stride + c;
  }
  __device__ __forceinline__ unsigned long long* sum(int which, int c) const {
    return data + ((2 * kTaps + 1) * stride + which) * stride + c;
  }
  // Sum over all windows of element (tap, c): zeros before the first row and behind the last.
  __device__ __forceinline__ int64_t of_element(int tap, int c) const {
    const unsigned long long missing = tap == 0 ? *sum(2, c) : tap == 2 ? *sum(1, c) : 0;
    return static_cast<int64_t>(*sum(0, c) - missing);
  }
};

// The same for elements k = (tap, c) of a window, and v_k of each output: [O][elements].
struct ProductSums {
  WindowProducts products;
  int64_t* v;
  int in_channels, elements;

  __device__ __forceinline__ int64_t of_element(int k) const {
    return products.of_element(k / in_channels, k % in_channels);
  }
  __device__ __forceinline__ int64_t by_weights(int channel, int k) const {
    return v[static_cast<size_t>(channel) * static_cast<size_t>(elements) + static_cast<size_t>(k)];
  }
};

// Which position of each window of a layer's output won, and whether its gradient passes:
// [pooled row][quad of channels][eight frames], bits 8 * (channel of the quad) + frame as a lane
// holds them (winners.h).
struct WindowBits {
  uint32_t position, passing;
};

// A layer's output.
struct OutputCodes {
  const uint32_t* words;
  int quads, lanes, pad;
  bool are_signed;

  __device__ __forceinline__ const uint32_t* at(int row, int quad, int lane) const {
    return words +
           (static_cast<size_t>(row + pad) * static_cast<size_t>(quads) +
            static_cast<size_t>(quad)) *
               static_cast<size_t>(lanes) +
           static_cast<size_t>(lane);
  }
  // The codes of eight quads, by the first eight lanes of a warp.
  __device__ __forceinline__ void prefetch(int row, int quad, int lane) const {
    if (thread_x() < 8 && quad < quads) cuda::prefetch(at(row, quad, lane));
  }
};

// Positions of a slice of all `rows`; of slice `block_y()` by itself.
struct RowSlice {
  int begin, end;
  __device__ explicit RowSlice(int rows) : RowSlice(rows, block_y(), static_cast<int>(gridDim.y)) {}
  __device__ RowSlice(int rows, int64_t slice, int64_t slices) {
    begin = static_cast<int>(slice * rows / slices);
    end = static_cast<int>((slice + 1) * rows / slices);
  }
};

inline Shape channel_slices(int channels, int rows) {
  const int wanted = std::max(1, kManyBlocks / std::max(1, channels));
  return {dim3(static_cast<unsigned>(channels), static_cast<unsigned>(std::min(rows, wanted))),
          dim3(kBlockThreads)};
}

// Sums of channels over a slice of the positions of a group of frames: a block each, for every
// channel. The warps of a block take warps of frames in turn, position by position.
struct GroupSlices {
  FrameGroups groups;
  int channels, rows, each;

  GroupSlices(const Activation& a, int of_rows)
      : groups(a.groups), channels(a.channels), rows(of_rows) {
    const int wanted = kManyBlocks / std::max(1, channels) / groups.of_batch();
    each = std::max(1, std::min(rows, wanted));
  }
  int count() const { return each * groups.here; }
  PartialSums sums() const { return PartialSums::slices(groups, each); }
  Shape shape() const {
    return {dim3(static_cast<unsigned>(channels), static_cast<unsigned>(count())),
            dim3(kBlockThreads)};
  }
  // Calls f(row, lane).
  template <typename F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int group = block_y() / each, slice = block_y() % each;
    const int warps = groups.warps(group), begin = groups.begin(group);
    const int end = static_cast<int>(int64_t{slice + 1} * rows / each);
    int row = static_cast<int>(int64_t{slice} * rows / each), warp = thread_x() / kWarpLanes;
    for (;; warp += kBlockWarps) {
      for (; warp >= warps; warp -= warps) ++row;
      if (row >= end) return;
      f(row, (begin + warp) * kWarpLanes + thread_x() % kWarpLanes);
    }
  }
};

// dy = of_g * g + of_y * y + of_one per channel: the backward pass of batch-norm.
struct GradientAffine {
  const float *of_g, *of_y, *of_one;
};

// What the forward pass does to sums: in training, or in evaluation.
enum class Mode : bool { kTraining, kEvaluation };

// What sums come to (batch_norm.h): kernels end with it.
struct BatchNorm;
template <typename Sums>
struct BatchNormOf;
struct SlicedSums;
struct ExactSums;
struct BackwardNorm;
struct BackwardNormOf;

// partial[slice of GroupSlices(a, length)][channel][2]: sums of y and y^2.
void sum_channels(const Activation& a, const float* y, double* partial,
                  const BatchNormOf<SlicedSums>& end, Stream stream);

// From sums and constants to the layer's output.
void activate(const Activation& a, Mode mode, const HiddenState& state, const Tile& out,
              void* out_data, Stream stream);

// end.partial[slice of GroupSlices(a, pooled_length)][channel][3]: sums of g, of g * xhat, and of
// the scale's gradient.
void sum_gradients(const Activation& a, const HiddenState& state, const float* dp,
                   const BackwardNormOf& end, Stream stream);

// dy of every position, and the tile's rows of zeros around them.
void apply_gradients(const Activation& a, const HiddenState& state, const float* dp,
                     const GradientAffine& gradient, const Tile& dy_tile, float* dy, Stream stream);

// The same without y, where can_recompute(); the last two only after a forward pass that did so.
// Layers whose inputs and weights are codes, are multiplied by tensor cores and come to codes
// again.
bool can_recompute(const Weights& weights);
void sum_channels(const Input& x, const Weights& weights, const BatchNormOf<ExactSums>& end,
                  Stream stream);
// winners: null = not wanted.
void activate(const Input& x, const Weights& weights, const Activation& a, Mode mode,
              const HiddenState& state, const Tile& out, void* out_data, WindowBits* winners,
              Stream stream);
// end.partial: [block of sums_of_gradients(a)][channel][3]
PartialSums sums_of_gradients(const Activation& a);
int blocks_of(const PartialSums& sums);
void sum_gradients(const Input& x, const Weights& weights, const Activation& a,
                   const HiddenState& state, const float* dp, const BackwardNormOf& end,
                   Stream stream);
void apply_gradients(const Input& x, const Weights& weights, const Activation& a, const float* dp,
                     const GradientAffine& gradient, const Tile& dy_tile, float* dy, Stream stream);

// Hidden layers whose training step needs neither y nor dy in memory nor the search for winners
// twice: where can_recompute(), inputs are unsigned codes with as many positions as are written,
// windows are of three taps and pooled by one or two, which leaves none over, and both gradients
// are planned to run dense. The forward pass sums up products of elements of windows
// (window_products.cu) and keeps the winners, the backward pass gets along with those
// (recompute_backward.cu). memory: memory_for_products() ints.
size_t memory_for_products(const Input& x);
void sum_products(const Input& x, const Weights& weights, const ProductSums& sums, int* memory,
                  const BatchNorm& norm, Stream stream);
// What the backward pass reads beside dp.
struct ForwardPass {
  OutputCodes out;
  const WindowBits* winners;
};
// What blocks have summed up in the backward pass.
struct SumsOfBlocks {
  PartialSums blocks;
  int stride;        // of a channel's sums of g * x_k, those of the elements first
  float* of_blocks;  // [block][channel][stride]
  double* partial;   // [block][channel][2]: sums of g and of dp * code
};
// Sums of g * x. partial: [block of sums_of_products()][channel][2]; of_blocks has
// memory_for_gradients() floats.
size_t memory_for_gradients(const Weights& weights, const Activation& a);
PartialSums sums_of_products(const Activation& a);
void sum_gradient_products(const Input& x, const Weights& weights, const Activation& a,
                           const ForwardPass& forward, const float* dp, const SumsOfBlocks& sums,
                           Stream stream);
// What they and the sums of the forward pass, ProductSums or WindowSums, come to: norm, and grad of
// the fake-quantized weights, [O][T][C]. of_scale: memory of a double for each channel.
template <typename Windows>
void finish_gradients(const Input& x, const Weights& weights, const Activation& a,
                      const Windows& windows, const SumsOfBlocks& sums, const BackwardNorm& norm,
                      double* of_scale, float* grad, Stream stream);
// dx: [L][C][lane]
void input_gradient(const Input& x, const Weights& weights, const Activation& a,
                    const ForwardPass& forward, const float* dp, const GradientAffine& gradient,
                    float* dx, Stream stream);

// Layers whose windows hold few elements, and are to be summed up instead of y (first_layer.cu).
bool has_few_elements(const Input& x, const Weights& weights);
// adding: as many integers as end.sums has, 0 before and after.
void sum_windows(const Input& x, const Weights& weights, unsigned long long* adding,
                 const BatchNormOf<WindowSums>& end, unsigned* arrived, Stream stream);
// As sum_gradient_products(); sums.stride: stride_of_windows().
int stride_of_windows(const WindowSums& windows);
size_t memory_for_window_gradients(const Activation& a, const WindowSums& windows);
void sum_window_gradients(const Input& x, const Weights& weights, const Activation& a,
                          const ForwardPass& forward, const float* dp, const WindowSums& windows,
                          const SumsOfBlocks& sums, Stream stream);

// Sets the threshold to the percentile of the activations, and where it was found.
void find_percentile(const Activation& a, const HiddenState& state, DeviceRanks* ranks,
                     Stream stream);

}  // namespace fmp::cuda
