// SPDX-License-Identifier: MIT
// A hidden layer: convolution, batch-norm, QuantReLU and max-pool; the math is that of
// kernels/cpu/hidden_layer.cc and kernels/cpu/elementwise.cc. Around the convolutions the batch is
// read twice each way:
//
//   forward:  sums of y and y^2 per channel | t = gain * y + shift, code, pool
//   backward: sums of g and g * xhat per channel, scale gradient | dy
//
// A block sums one channel over a slice of the positions, in double precision and in a fixed order.
// The percentile of the first steps is found by radix selection, eight bits a pass: the value
// first, then, among equal ones, the element that comes first in the CPU's order.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

constexpr int kCpuLanes = 16;  // the CPU's tiles, in whose order elements are numbered
static_assert(kCpuLanes == kLanes);
constexpr int kRadixBits = 8, kBins = 1 << kRadixBits;
constexpr float kSmallestPositive = std::numeric_limits<float>::min();
constexpr int kChannelRows = 8;  // channels or quads of a block of elementwise kernels

using Scalars = HiddenState::Scalars;

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

Shape channel_slices(int channels, int rows) {
  const int wanted = std::max(1, kManyBlocks / std::max(1, channels));
  return {dim3(static_cast<unsigned>(channels), static_cast<unsigned>(std::min(rows, wanted))),
          dim3(kBlockThreads)};
}

// partial[slice][channel][2]
__global__ void __launch_bounds__(kBlockThreads)
    channel_sums(Activation a, const float* y, double* partial) {
  const int channel = block_x();
  const RowSlice rows(a.length);
  double sum = 0, squares = 0;
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int lane = thread_x(); lane < a.lanes; lane += kBlockThreads) {
      const double value = static_cast<double>(y[a.place(row, channel, lane)]);
      sum += value;
      squares += value * value;
    }
  }
  sum = block_sum(sum);
  squares = block_sum(squares);
  if (thread_x() != 0) return;
  double* out = partial + (static_cast<size_t>(block_y()) * static_cast<size_t>(a.channels) +
                           static_cast<size_t>(channel)) *
                              2;
  out[0] = sum;
  out[1] = squares;
}

struct Constants {
  float *gain, *shift, *xhat_gain, *xhat_shift, *inv_std;
};

__device__ void set_batch_norm(const Constants& k, int c, float gamma_c, float beta_c,
                               double sum_scale, double mean, double variance) {
  const double inv_std = 1.0 / sqrt(variance + kBatchNormEpsilon);
  const double gamma = static_cast<double>(gamma_c);
  k.inv_std[c] = static_cast<float>(inv_std);
  k.xhat_gain[c] = static_cast<float>(inv_std * sum_scale);
  k.xhat_shift[c] = static_cast<float>(-inv_std * mean);
  k.gain[c] = static_cast<float>(gamma * inv_std * sum_scale);
  k.shift[c] = static_cast<float>(static_cast<double>(beta_c) - gamma * inv_std * mean);
}

__device__ double scale_of_sums(const float* x_scale, const float* w_scale) {
  return static_cast<double>(x_scale != nullptr ? *x_scale : 1.0F) * static_cast<double>(*w_scale);
}

__device__ void update(float& value, double batch) {
  value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value) +
                             kBatchNormMomentum * batch);
}

__global__ void __launch_bounds__(kBlockThreads)
    batch_constants(int channels, int slices, double n, const double* partial, const float* x_scale,
                    const float* w_scale, const float* gamma, const float* beta,
                    float* running_mean, float* running_var, Constants constants) {
  const int c = static_cast<int>(global_x());
  if (c >= channels) return;
  double sum = 0, squares = 0;
  for (int s = 0; s < slices; ++s) {
    const double* of_slice =
        partial +
        (static_cast<size_t>(s) * static_cast<size_t>(channels) + static_cast<size_t>(c)) * 2;
    sum += of_slice[0];
    squares += of_slice[1];
  }
  const double sum_scale = scale_of_sums(x_scale, w_scale);
  const double mean_code = sum / n;
  const double variance_code = fmax(0.0, squares / n - mean_code * mean_code);
  const double mean = sum_scale * mean_code, variance = sum_scale * sum_scale * variance_code;
  update(running_mean[c], mean);
  update(running_var[c], n > 1 ? variance * n / (n - 1) : variance);
  set_batch_norm(constants, c, gamma[c], beta[c], sum_scale, mean, variance);
}

__device__ float scale_of_codes(float threshold, float max_code) { return threshold / max_code; }
__device__ float usable_threshold(float parameter) {
  return fmaxf(fabsf(parameter), kMinQuantizerRange);
}

// The constants of ops::EvaluationState, with its roundings. threshold: the parameter v, not read
// where max_code is 0.
__global__ void __launch_bounds__(kBlockThreads)
    evaluation_constants(int channels, const float* x_scale, const float* w_scale,
                         const float* gamma, const float* beta, const float* running_mean,
                         const float* running_var, const float* threshold, float max_code,
                         float* gain, float* shift, Scalars* s) {
  const int c = static_cast<int>(global_x());
  if (c == 0) {
    s->sum_scale = (x_scale != nullptr ? *x_scale : 1.0F) * *w_scale;
    s->threshold = max_code > 0 ? usable_threshold(*threshold) : 1.0F;
    s->act_scale = max_code > 0 ? scale_of_codes(s->threshold, max_code) : 1.0F;
  }
  if (c >= channels) return;
  const float epsilon = static_cast<float>(kBatchNormEpsilon);
  const float inv_std = __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(running_var[c], epsilon)));
  gain[c] = __fmul_rn(gamma[c], inv_std);
  shift[c] = __fsub_rn(beta[c], __fmul_rn(running_mean[c], gain[c]));
}

// --- The percentile ----------------------------------------------------------------------------

__global__ void __launch_bounds__(kBlockThreads) start_search(unsigned rank, Scalars* s) {
  s->selected = 0;
  if (rank != 0) s->rank = rank;
  for (int b = 0; b < kBins; ++b) s->histogram[b] = 0;
}

// Counts the next eight bits of every element's key that agrees with what is selected above them.
// kByNumber: the key is the element's number, of elements with the value found before.
template <bool kByNumber>
__global__ void __launch_bounds__(kBlockThreads)
    count_keys(Activation a, const float* y, int shift, Scalars* s) {
  __shared__ unsigned bins[kBins];
  bins[thread_x()] = 0;
  static_assert(kBins == kBlockThreads);
  __syncthreads();
  const unsigned selected = s->selected, value_bits = s->value_bits;
  const unsigned above = shift + kRadixBits < 32 ? ~0U << (shift + kRadixBits) : 0U;
  const int channel = block_x();
  const float gain = a.gain[channel], offset = a.shift[channel];
  const RowSlice rows(a.length);
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int lane = thread_x(); lane < a.frames; lane += kBlockThreads) {
      const float t = __fmaf_rn(y[a.place(row, channel, lane)], gain, offset);
      // Only positive values matter after a ReLU; their bits are ordered as they are.
      const unsigned bits = t >= kSmallestPositive ? __float_as_uint(t) : 0U;
      const unsigned key = kByNumber ? a.number(row, channel, lane) : bits;
      if ((!kByNumber || bits == value_bits) && (key & above) == selected) {
        atomicAdd(&bins[key >> shift & (kBins - 1)], 1U);
      }
    }
  }
  __syncthreads();
  if (bins[thread_x()] != 0) atomicAdd(&s->histogram[thread_x()], bins[thread_x()]);
}

// The bin that holds the element of the wanted rank: values count from the largest, numbers from
// the smallest.
__global__ void __launch_bounds__(kBlockThreads)
    choose_bin(int shift, bool descending, Scalars* s) {
  unsigned rank = s->rank;
  for (int i = 0; i < kBins; ++i) {
    const int bin = descending ? kBins - 1 - i : i;
    const unsigned count = s->histogram[bin];
    if (rank <= count) {
      s->selected |= static_cast<unsigned>(bin) << shift;
      break;
    }
    rank -= count;
  }
  s->rank = rank;
  for (int b = 0; b < kBins; ++b) s->histogram[b] = 0;
}

__global__ void __launch_bounds__(kBlockThreads) keep_value(Scalars* s) {
  s->value_bits = s->selected;
}

__global__ void __launch_bounds__(kBlockThreads)
    keep_statistic(Activation a, const float* xhat_gain, const float* xhat_shift, Scalars* s) {
  s->has_statistic = s->value_bits != 0 ? 1 : 0;
  s->statistic_place = s->selected;
  s->threshold = kMinQuantizerRange;
  if (s->has_statistic == 0) return;
  const float value = __uint_as_float(s->value_bits);
  s->threshold = fmaxf(value, kMinQuantizerRange);
  const int c = a.channel_of_number(s->selected);
  const float y = a.gain[c] != 0 ? (value - a.shift[c]) / a.gain[c] : 0.0F;
  s->statistic_xhat = xhat_gain[c] * y + xhat_shift[c];
}

void find_percentile(const Activation& a, const HiddenState& state, Stream stream) {
  const double n = static_cast<double>(a.frames) * a.length * a.channels;
  if (n >= 4294967296.0 / 2) {
    throw std::invalid_argument("CUDA: too many activations for the percentile; lower the batch");
  }
  const double k = std::floor(0.01 * kThresholdPercentile * n + 0.5);
  const unsigned wanted = static_cast<unsigned>(n - k) + 1;
  const cudaStream_t on = native(stream);
  Scalars* s = state.scalars.data();
  const Shape one{dim3(1), dim3(1)}, all = channel_slices(a.channels, a.length);
  launch(Where("start_search", on), one, start_search, wanted, s);
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    launch(Where("count_keys", on), all, count_keys<false>, a, state.y.data(), shift, s);
    launch(Where("choose_bin", on), one, choose_bin, shift, true, s);
  }
  launch(Where("keep_value", on), one, keep_value, s);
  launch(Where("start_search", on), one, start_search, 0U, s);
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    launch(Where("count_keys", on), all, count_keys<true>, a, state.y.data(), shift, s);
    launch(Where("choose_bin", on), one, choose_bin, shift, false, s);
  }
  launch(Where("keep_statistic", on), one, keep_statistic, a,
         state.constant(HiddenState::kXhatGain), state.constant(HiddenState::kXhatShift), s);
}

// From values to codes: divides the affine step by the scale. parameter: v, or null when the
// threshold has been set.
__global__ void __launch_bounds__(kBlockThreads)
    set_threshold(int channels, float max_code, const float* parameter, float* gain, float* shift,
                  Scalars* s) {
  const float threshold = parameter != nullptr ? usable_threshold(*parameter) : s->threshold;
  const float act_scale = scale_of_codes(threshold, max_code);
  __syncthreads();
  for (int c = thread_x(); c < channels; c += kBlockThreads) {
    gain[c] /= act_scale;
    shift[c] /= act_scale;
  }
  if (thread_x() == 0) {
    s->threshold = threshold;
    s->act_scale = act_scale;
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    follow(const Scalars* s, bool first, float* threshold) {
  const float momentum = static_cast<float>(kThresholdMomentum);
  *threshold = first ? s->threshold : (1 - momentum) * *threshold + momentum * s->threshold;
}

// --- Activation --------------------------------------------------------------------------------

// What training does to a sum, in one rounding ...
struct FusedAffine {
  float gain, shift;
  __device__ __forceinline__ FusedAffine(const Activation& a, int channel, const Scalars* /*s*/)
      : gain(a.gain[channel]), shift(a.shift[channel]) {}
  __device__ __forceinline__ float operator()(float y) const { return __fmaf_rn(y, gain, shift); }
  __device__ __forceinline__ float in_codes(float t) const { return t; }
};

// ... and evaluation in several; see ops::EvaluationState.
struct EvaluationAffine {
  float sum_scale, gain, shift, act_scale;
  __device__ __forceinline__ EvaluationAffine(const Activation& a, int channel, const Scalars* s)
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

template <typename Affine>
__device__ __forceinline__ float pooled_maximum(const Activation& a, const Affine& affine,
                                                const float* y, int row, int channel, int lane) {
  const float* at = y + a.place(row * a.pool, channel, lane);
  float largest = affine(at[0]);
  for (int j = 1; j < a.pool; ++j) {
    largest = fmaxf(largest, affine(at[static_cast<size_t>(j) * a.row_stride()]));
  }
  return largest;
}

// Every row of `out`, padding included: block_x() is the row.
template <typename Affine>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_pool(Activation a, const Scalars* s, const float* y, Tile out, uint32_t* words) {
  const int lane = block_y() * kWarpLanes + thread_x();
  const int quad = block_z() * kChannelRows + thread_y();
  if (quad >= out.quads()) return;
  const int row = block_x() - out.pad;
  uint32_t word = 0;
  if (row >= 0 && row < out.length && lane < a.frames) {
    for (int k = 0; k < kQuad && quad * kQuad + k < a.channels; ++k) {
      const int channel = quad * kQuad + k;
      const Affine affine(a, channel, s);
      const float t = affine.in_codes(pooled_maximum(a, affine, y, row, channel, lane));
      const float code = rintf(fminf(fmaxf(t, 0.0F), a.max_code));
      word |= static_cast<uint32_t>(code) << (8 * k);
    }
  }
  words[(static_cast<size_t>(block_x()) * static_cast<size_t>(out.quads()) +
         static_cast<size_t>(quad)) *
            static_cast<size_t>(a.lanes) +
        static_cast<size_t>(lane)] = word;
}

template <typename Affine>
__global__ void __launch_bounds__(kBlockThreads)
    relu_pool(Activation a, const Scalars* s, const float* y, Tile out, float* values) {
  const int lane = block_y() * kWarpLanes + thread_x();
  const int channel = block_z() * kChannelRows + thread_y();
  if (channel >= a.channels) return;
  const int row = block_x() - out.pad;
  const bool used = row >= 0 && row < out.length && lane < a.frames;
  const Affine affine(a, channel, s);
  values[a.place(block_x(), channel, lane)] =
      used ? fmaxf(pooled_maximum(a, affine, y, row, channel, lane), 0.0F) : 0.0F;
}

// The winner of a window, the first position with the largest value, and the part of its gradient
// that passes: where 0 < t < the first t that is clipped.
struct Winner {
  float value, t, y;
  int position;
};

template <bool kQuantized>
__device__ __forceinline__ Winner find_winner(const Activation& a, const float* y, int row,
                                              int channel, int lane) {
  const float gain = a.gain[channel], shift = a.shift[channel];
  const float* at = y + a.place(row * a.pool, channel, lane);
  Winner w{};
  for (int j = 0; j < a.pool; ++j) {
    const float y_j = at[static_cast<size_t>(j) * a.row_stride()];
    const float t_j = __fmaf_rn(y_j, gain, shift);
    const float positive = fmaxf(t_j, 0.0F);
    const float value_j = kQuantized ? fminf(rintf(positive), a.max_code) : positive;
    if (j == 0 || value_j > w.value) w = {value_j, t_j, y_j, j};
  }
  return w;
}

template <bool kQuantized>
__device__ __forceinline__ float passed(const Activation& a, const Winner& w, float gradient) {
  // max_code is odd, so that max_code + 0.5 rounds up to even.
  const bool passes = w.t > 0.0F && (!kQuantized || w.t < a.max_code + 0.5F);
  return passes ? gradient : 0.0F;
}

// partial[slice][channel][3]: sums of g, of g * xhat, and of the scale's gradient.
template <bool kQuantized>
__global__ void __launch_bounds__(kBlockThreads)
    activation_sums(Activation a, const float* y, const float* dp, const float* xhat_gain,
                    const float* xhat_shift, double* partial) {
  const int channel = block_x();
  const RowSlice rows(a.pooled_length());
  const float to_xhat = xhat_gain[channel], offset = xhat_shift[channel];
  double sum_g = 0, sum_g_xhat = 0, of_scale = 0;
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int lane = thread_x(); lane < a.frames; lane += kBlockThreads) {
      const Winner w = find_winner<kQuantized>(a, y, row, channel, lane);
      const float gradient = dp[a.place(row, channel, lane)];
      const float g = passed<kQuantized>(a, w, gradient);
      sum_g += static_cast<double>(g);
      sum_g_xhat += static_cast<double>(g) * static_cast<double>(__fmaf_rn(w.y, to_xhat, offset));
      // code - t where it passes, max_code where clipped, 0 below zero.
      if (kQuantized) {
        of_scale += static_cast<double>(gradient) * static_cast<double>(w.value) -
                    static_cast<double>(g) * static_cast<double>(w.t);
      }
    }
  }
  sum_g = block_sum(sum_g);
  sum_g_xhat = block_sum(sum_g_xhat);
  of_scale = block_sum(of_scale);
  if (thread_x() != 0) return;
  double* out = partial + (static_cast<size_t>(block_y()) * static_cast<size_t>(a.channels) +
                           static_cast<size_t>(channel)) *
                              3;
  out[0] = sum_g;
  out[1] = sum_g_xhat;
  out[2] = of_scale;
}

struct BackwardConstants {
  const float *gamma, *inv_std, *xhat_gain, *xhat_shift;
  float *of_g, *of_y, *of_one;  // dy = of_g * g + of_y * y + of_one
  float *gamma_gradient, *beta_gradient;
};

// One block: totals of the channels, the threshold's gradient, batch-norm's backward constants.
__global__ void __launch_bounds__(kBlockThreads)
    backward_constants(Activation a, int slices, double n, double* partial, const float* threshold,
                       bool collected, const double* act_scale_gradient, BackwardConstants k,
                       float* threshold_gradient, Scalars* s) {
  double of_scale = 0;
  for (int c = thread_x(); c < a.channels; c += kBlockThreads) {
    double* total = partial + static_cast<size_t>(c) * 3;  // slice 0 becomes the sum
    for (int slice = 1; slice < slices; ++slice) {
      const double* part = partial + (static_cast<size_t>(slice) * static_cast<size_t>(a.channels) +
                                      static_cast<size_t>(c)) *
                                         3;
      for (int i = 0; i < 3; ++i) total[i] += part[i];
    }
    of_scale += total[2];
  }
  of_scale = block_sum(of_scale);
  if (thread_x() == 0) {
    float to_threshold = 0;
    s->statistic_gradient = 0;
    if (a.max_code > 0) {
      const double extra = act_scale_gradient != nullptr ? *act_scale_gradient : 0.0;
      const double of_threshold = (of_scale + extra) / static_cast<double>(a.max_code);
      if (!collected) {
        const float v = *threshold;
        to_threshold = static_cast<float>(v > 0 ? of_threshold : v < 0 ? -of_threshold : 0.0);
      } else if (s->has_statistic != 0) {
        // The percentile is an element of the batch: the threshold's gradient is that element's.
        double* total = partial + static_cast<size_t>(a.channel_of_number(s->statistic_place)) * 3;
        s->statistic_gradient = static_cast<float>(of_threshold);
        total[0] += of_threshold;
        total[1] += of_threshold * static_cast<double>(s->statistic_xhat);
      }
    }
    if (threshold_gradient != nullptr) *threshold_gradient = to_threshold;
  }
  __syncthreads();
  for (int c = thread_x(); c < a.channels; c += kBlockThreads) {
    const double sum_g = partial[static_cast<size_t>(c) * 3];
    const double sum_g_xhat = partial[static_cast<size_t>(c) * 3 + 1];
    k.beta_gradient[c] = static_cast<float>(sum_g);
    k.gamma_gradient[c] = static_cast<float>(sum_g_xhat);
    const double factor = static_cast<double>(k.gamma[c]) * static_cast<double>(k.inv_std[c]);
    const double mean_g = sum_g / n, mean_g_xhat = sum_g_xhat / n;
    k.of_g[c] = static_cast<float>(factor);
    k.of_y[c] = static_cast<float>(-factor * mean_g_xhat * static_cast<double>(k.xhat_gain[c]));
    k.of_one[c] =
        static_cast<float>(-factor * (mean_g + static_cast<double>(k.xhat_shift[c]) * mean_g_xhat));
  }
}

// Every pooled row of dy; block_x() past the last one: a row of padding.
template <bool kQuantized>
__global__ void __launch_bounds__(kBlockThreads)
    activation_backward(Activation a, const float* y, const float* dp, BackwardConstants k,
                        bool collected, const Scalars* s, int pad, float* dy) {
  const int lane = block_y() * kWarpLanes + thread_x();
  const int channel = block_z() * kChannelRows + thread_y();
  if (channel >= a.channels) return;
  const int row = block_x();
  if (row >= a.pooled_length()) {
    const int i = row - a.pooled_length();  // 0 .. 2 pad - 1
    dy[a.place(i < pad ? i : a.length + i, channel, lane)] = 0.0F;
    return;
  }
  Winner w{};
  float g = 0;
  if (lane < a.frames) {
    w = find_winner<kQuantized>(a, y, row, channel, lane);
    g = passed<kQuantized>(a, w, dp[a.place(row, channel, lane)]);
  }
  for (int j = 0; j < a.pool; ++j) {
    const int position = row * a.pool + j;
    float value = 0;
    if (lane < a.frames) {
      const float rest =
          __fmaf_rn(k.of_y[channel], y[a.place(position, channel, lane)], k.of_one[channel]);
      value = __fmaf_rn(k.of_g[channel], j == w.position ? g : 0.0F, rest);
      if (collected && s->has_statistic != 0 &&
          s->statistic_place == a.number(position, channel, lane)) {
        value += k.of_g[channel] * s->statistic_gradient;
      }
    }
    dy[a.place(position + pad, channel, lane)] = value;
  }
}

Activation activation_of(const ops::LayerShape& layer, const Tile& x, const HiddenState& state) {
  const bool quantized = layer.act_bits != kFloatBits;
  return {layer.length,
          layer.out_channels,
          x.lanes(),
          static_cast<int>(x.frames),
          layer.pool,
          quantized ? static_cast<float>((1 << layer.act_bits) - 1) : 0.0F,
          state.constant(HiddenState::kGain),
          state.constant(HiddenState::kShift)};
}

Constants constants_of(const HiddenState& state) {
  return {state.constant(HiddenState::kGain), state.constant(HiddenState::kShift),
          state.constant(HiddenState::kXhatGain), state.constant(HiddenState::kXhatShift),
          state.constant(HiddenState::kInvStd)};
}

void prepare(const ops::LayerShape& layer, const Tile& x, HiddenState& state, Stream stream) {
  state.channels = static_cast<size_t>(layer.out_channels);
  state.constants.reserve(state.channels * HiddenState::kConstants);
  if (state.scalars.empty()) {
    state.scalars.reserve(1);
    set_bytes(state.scalars.data(), 0, sizeof(Scalars), stream);
  }
  state.y.reserve(static_cast<size_t>(layer.length) * state.channels *
                  static_cast<size_t>(x.lanes()));
}

double elements_of_channel(const Activation& a) { return static_cast<double>(a.frames) * a.length; }

Shape elementwise(const Activation& a, int rows, int channels) {
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(a.lanes / kWarpLanes),
               blocks_for(static_cast<size_t>(channels), kChannelRows)),
          dim3(kWarpLanes, kChannelRows)};
}

// From sums and constants to the layer's output.
template <typename Affine>
void activate(const Activation& a, const HiddenState& state, const Tile& out, void* out_data,
              Stream stream) {
  const cudaStream_t on = native(stream);
  const Scalars* scalars = state.scalars.data();
  if (a.max_code == 0) {
    launch(Where("relu_pool", on), elementwise(a, out.rows(), out.channels), relu_pool<Affine>, a,
           scalars, state.y.data(), out, static_cast<float*>(out_data));
  } else {
    launch(Where("quantize_pool", on), elementwise(a, out.rows(), out.quads()),
           quantize_pool<Affine>, a, scalars, state.y.data(), out,
           static_cast<uint32_t*>(out_data));
  }
}

}  // namespace

void hidden_forward_train(const ops::LayerShape& layer, const ConvShape& /*shape*/, const Input& x,
                          const Weights& weights, const HiddenParameters& parameters, bool collect,
                          float* running_mean, float* running_var, HiddenState& state,
                          const Tile& out, void* out_data, Stream stream) {
  prepare(layer, x.tile, state, stream);
  const Activation a = activation_of(layer, x.tile, state);
  const cudaStream_t on = native(stream);
  weights.forward(x, state.y.data(), stream);
  const Shape slices = channel_slices(a.channels, a.length);
  double* partial = state.partial.reserve(size_t{slices.grid.y} * state.channels * 3);
  launch(Where("channel_sums", on), slices, channel_sums, a, state.y.data(), partial);
  launch(Where("batch_constants", on),
         Shape{dim3(blocks_for(state.channels, kBlockThreads)), dim3(kBlockThreads)},
         batch_constants, a.channels, static_cast<int>(slices.grid.y), elements_of_channel(a),
         partial, x.scale, weights.scale(), parameters.gamma, parameters.beta, running_mean,
         running_var, constants_of(state));
  state.collected = collect && a.max_code > 0;
  if (state.collected) find_percentile(a, state, stream);
  if (a.max_code > 0) {
    launch(Where("set_threshold", on), Shape{dim3(1), dim3(kBlockThreads)}, set_threshold,
           a.channels, a.max_code, state.collected ? nullptr : parameters.threshold,
           state.constant(HiddenState::kGain), state.constant(HiddenState::kShift),
           state.scalars.data());
  }
  activate<FusedAffine>(a, state, out, out_data, stream);
}

void follow_threshold(const HiddenState& state, bool first, float* threshold, Stream stream) {
  launch(Where("follow", native(stream)), Shape{dim3(1), dim3(1)}, follow,
         static_cast<const Scalars*>(state.scalars.data()), first, threshold);
}

void hidden_forward_eval(const ops::LayerShape& layer, const ConvShape& /*shape*/, const Input& x,
                         const Weights& weights, const HiddenParameters& parameters,
                         const float* running_mean, const float* running_var, HiddenState& state,
                         const Tile& out, void* out_data, Stream stream) {
  prepare(layer, x.tile, state, stream);
  const Activation a = activation_of(layer, x.tile, state);
  weights.forward(x, state.y.data(), stream);
  launch(Where("evaluation_constants", native(stream)),
         Shape{dim3(blocks_for(state.channels, kBlockThreads)), dim3(kBlockThreads)},
         evaluation_constants, a.channels, x.scale, weights.scale(), parameters.gamma,
         parameters.beta, running_mean, running_var, parameters.threshold, a.max_code,
         state.constant(HiddenState::kGain), state.constant(HiddenState::kShift),
         state.scalars.data());
  state.collected = false;
  activate<EvaluationAffine>(a, state, out, out_data, stream);
}

void hidden_backward(const ops::LayerShape& layer, const ConvShape& shape, const Input& x,
                     Weights& weights, const HiddenParameters& parameters, HiddenState& state,
                     const float* dp, const double* act_scale_gradient,
                     const HiddenGradients& gradients, float* dx, Stream stream) {
  const Activation a = activation_of(layer, x.tile, state);
  const bool quantized = a.max_code > 0;
  const cudaStream_t on = native(stream);
  const float* y = state.y.data();
  const Shape slices = channel_slices(a.channels, a.pooled_length());
  double* partial = state.partial.reserve(size_t{slices.grid.y} * state.channels * 3);
  launch(Where("activation_sums", on), slices,
         quantized ? activation_sums<true> : activation_sums<false>, a, y, dp,
         state.constant(HiddenState::kXhatGain), state.constant(HiddenState::kXhatShift), partial);

  const BackwardConstants k{parameters.gamma,
                            state.constant(HiddenState::kInvStd),
                            state.constant(HiddenState::kXhatGain),
                            state.constant(HiddenState::kXhatShift),
                            state.constant(HiddenState::kOfG),
                            state.constant(HiddenState::kOfY),
                            state.constant(HiddenState::kOfOne),
                            gradients.gamma,
                            gradients.beta};
  launch(Where("backward_constants", on), Shape{dim3(1), dim3(kBlockThreads)}, backward_constants,
         a, static_cast<int>(slices.grid.y), elements_of_channel(a), partial, parameters.threshold,
         state.collected, act_scale_gradient, k, gradients.threshold, state.scalars.data());

  const Tile dy{x.tile.frames, a.length, a.channels, shape.same_padding ? (shape.taps - 1) / 2 : 0};
  float* dy_data = state.dy.reserve(dy.floats());
  launch(Where("activation_backward", on),
         elementwise(a, a.pooled_length() + 2 * dy.pad, a.channels),
         quantized ? activation_backward<true> : activation_backward<false>, a, y, dp, k,
         state.collected, static_cast<const Scalars*>(state.scalars.data()), dy.pad, dy_data);
  weights.backward_weight(x, dy, dy_data, gradients.weight, stream);
  if (dx != nullptr) weights.backward_data(dy, dy_data, dx, stream);
}

}  // namespace fmp::cuda
