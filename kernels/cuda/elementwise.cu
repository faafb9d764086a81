// SPDX-License-Identifier: MIT
// The passes of a hidden layer over its elements: batch-norm's sums, and batch-norm + QuantReLU +
// MaxPool1d in one pass, forward and backward. The math is that of kernels/cpu/elementwise.cc.
//
// A block sums one channel over a slice of the positions, in double precision and in a fixed order.
#include "kernels/cuda/batch_norm.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;

constexpr int kChannelRows = 8;  // channels or quads of a block

// partial[slice][channel][2]
__global__ void __launch_bounds__(kBlockThreads)
    channel_sums(Activation a, GroupSlices slices, const float* y, double* partial,
                 BatchNormOf<SlicedSums> end) {
  const int channel = block_x();
  double sum = 0, squares = 0;
  slices.for_each([&](int row, int lane) {
    const double value = static_cast<double>(y[a.place(row, channel, lane)]);
    sum += value;
    squares += value * value;
  });
  sum = block_sum(sum);
  squares = block_sum(squares);
  if (thread_x() == 0) {
    double* out = partial + (static_cast<size_t>(block_y()) * static_cast<size_t>(a.channels) +
                             static_cast<size_t>(channel)) *
                                2;
    out[0] = sum;
    out[1] = squares;
  }
  end.finish();
}

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

// Every row of `out`, padding included.
template <typename Affine>
__global__ void __launch_bounds__(kBlockThreads)
    quantize_pool(Activation a, WarpsByRows grid, const Scalars* s, const float* y, Tile out,
                  uint32_t* words) {
  const int lane = grid.first_lane() + thread_x();
  const int quad = block_y() * kChannelRows + thread_y();
  if (quad >= out.quads()) return;
  const int row = grid.row() - out.pad;
  uint32_t word = 0;
  if (row >= 0 && row < out.length && lane < a.frames) {
    for (int k = 0; k < kQuad && quad * kQuad + k < a.channels; ++k) {
      const int channel = quad * kQuad + k;
      const Affine affine(a, channel, s);
      const float t = affine.in_codes(pooled_maximum(a, affine, y, row, channel, lane));
      const int code = static_cast<int>(rintf(fminf(fmaxf(t, a.min_code), a.max_code)));
      word |= static_cast<uint32_t>(code & 0xff) << (8 * k);
    }
  }
  words[(static_cast<size_t>(row + out.pad) * static_cast<size_t>(out.quads()) +
         static_cast<size_t>(quad)) *
            static_cast<size_t>(a.lanes) +
        static_cast<size_t>(lane)] = word;
}

template <typename Affine>
__global__ void __launch_bounds__(kBlockThreads)
    relu_pool(Activation a, WarpsByRows grid, const Scalars* s, const float* y, Tile out,
              float* values) {
  const int lane = grid.first_lane() + thread_x();
  const int channel = block_y() * kChannelRows + thread_y();
  if (channel >= a.channels) return;
  const int row = grid.row() - out.pad;
  const bool used = row >= 0 && row < out.length && lane < a.frames;
  const Affine affine(a, channel, s);
  values[a.place(row + out.pad, channel, lane)] =
      used ? fmaxf(pooled_maximum(a, affine, y, row, channel, lane), 0.0F) : 0.0F;
}

// The winner of a window, the first position with the largest value.
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
    const float value_j =
        kQuantized ? fminf(fmaxf(rintf(t_j), a.min_code), a.max_code) : fmaxf(t_j, 0.0F);
    if (j == 0 || value_j > w.value) w = {value_j, t_j, y_j, j};
  }
  return w;
}

// The part of its gradient that passes.
template <bool kQuantized>
__device__ __forceinline__ float passed(const Activation& a, const Winner& w, float gradient) {
  return passes<kQuantized>(a, w.t) ? gradient : 0.0F;
}

// end.partial[slice][channel][3]: sums of g, of g * xhat, and of the scale's gradient.
template <bool kQuantized>
__global__ void __launch_bounds__(kBlockThreads, 4)
    activation_backward_sums(GroupSlices slices, const float* y, const float* dp,
                             const float* xhat_gain, const float* xhat_shift, BackwardNormOf end) {
  const Activation& a = end.a;
  const int channel = block_x();
  const float to_xhat = xhat_gain[channel], offset = xhat_shift[channel];
  double sum_g = 0, sum_g_xhat = 0, of_scale = 0;
  slices.for_each([&](int row, int lane) {
    if (lane >= a.frames) return;
    const Winner w = find_winner<kQuantized>(a, y, row, channel, lane);
    const float gradient = dp[a.place(row, channel, lane)];
    const float g = passed<kQuantized>(a, w, gradient);
    sum_g += static_cast<double>(g);
    sum_g_xhat += static_cast<double>(g) * static_cast<double>(__fmaf_rn(w.y, to_xhat, offset));
    // code - t where it passes, the last code where clipped.
    if (kQuantized) {
      of_scale += static_cast<double>(gradient) * static_cast<double>(w.value) -
                  static_cast<double>(g) * static_cast<double>(w.t);
    }
  });
  sum_g = block_sum(sum_g);
  sum_g_xhat = block_sum(sum_g_xhat);
  of_scale = block_sum(of_scale);
  if (thread_x() == 0) {
    double* out = end.partial + (static_cast<size_t>(block_y()) * static_cast<size_t>(a.channels) +
                                 static_cast<size_t>(channel)) *
                                    3;
    out[0] = sum_g;
    out[1] = sum_g_xhat;
    out[2] = of_scale;
  }
  end.finish<kBlockWarps>();
}

// Windows, and one for the positions that none has.
__host__ __device__ __forceinline__ int begun_windows(const Activation& a) {
  return (a.length + a.pool - 1) / a.pool;
}

// dy of every window, the last of which may be a part of one that is no window; past it: a row of
// zeros.
template <bool kQuantized>
__global__ void __launch_bounds__(kBlockThreads)
    activation_backward_apply(Activation a, WarpsByRows grid, const float* y, const float* dp,
                              GradientAffine k, bool collected, const Scalars* s, int pad,
                              float* dy) {
  const int lane = grid.first_lane() + thread_x();
  const int channel = block_y() * kChannelRows + thread_y();
  if (channel >= a.channels) return;
  const int row = grid.row(), windows = begun_windows(a);
  if (row >= windows) {
    const int i = row - windows;  // from 0 on, `pad` of them before the first position
    dy[a.place(i < pad ? i : a.length + i, channel, lane)] = 0.0F;
    return;
  }
  Winner w{};
  float g = 0;
  if (row < a.pooled_length() && lane < a.frames) {
    w = find_winner<kQuantized>(a, y, row, channel, lane);
    g = passed<kQuantized>(a, w, dp[a.place(row, channel, lane)]);
  }
  const int positions = min(a.pool, a.length - row * a.pool);
  for (int j = 0; j < positions; ++j) {
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

Shape elementwise(const WarpsByRows& grid, int channels) {
  return {dim3(grid.blocks(), blocks_for(static_cast<size_t>(channels), kChannelRows)),
          dim3(kWarpLanes, kChannelRows)};
}

template <typename Affine>
void activate_with(const Activation& a, const HiddenState& state, const Tile& out, void* out_data,
                   Stream stream) {
  const cudaStream_t on = native(stream);
  const Scalars* scalars = state.scalars.data();
  const WarpsByRows grid = warps_by_rows(a.lanes, out.rows(), state.walk);
  if (a.max_code == 0) {
    launch(Where("relu_pool", on), elementwise(grid, out.channels), relu_pool<Affine>, a, grid,
           scalars, state.y.data(), out, static_cast<float*>(out_data));
  } else {
    launch(Where("quantize_pool", on), elementwise(grid, out.quads()), quantize_pool<Affine>, a,
           grid, scalars, state.y.data(), out, static_cast<uint32_t*>(out_data));
  }
}

}  // namespace

void sum_channels(const Activation& a, const float* y, double* partial,
                  const BatchNormOf<SlicedSums>& end, Stream stream) {
  const GroupSlices slices(a, a.length);
  launch(Where("channel_sums", native(stream)), slices.shape(), channel_sums, a, slices, y, partial,
         end);
}

void activate(const Activation& a, Mode mode, const HiddenState& state, const Tile& out,
              void* out_data, Stream stream) {
  const auto run =
      mode == Mode::kTraining ? activate_with<FusedAffine> : activate_with<EvaluationAffine>;
  run(a, state, out, out_data, stream);
}

void sum_gradients(const Activation& a, const HiddenState& state, const float* dp,
                   const BackwardNormOf& end, Stream stream) {
  const GroupSlices slices(a, a.pooled_length());
  launch(Where("activation_backward_sums", native(stream)), slices.shape(),
         a.max_code > 0 ? activation_backward_sums<true> : activation_backward_sums<false>, slices,
         state.y.data(), dp, state.constant(HiddenState::kXhatGain),
         state.constant(HiddenState::kXhatShift), end);
}

void apply_gradients(const Activation& a, const HiddenState& state, const float* dp,
                     const GradientAffine& gradient, const Tile& dy_tile, float* dy,
                     Stream stream) {
  const int zeros = dy_tile.rows() - a.length;
  const WarpsByRows grid = warps_by_rows(a.lanes, begun_windows(a) + zeros, state.walk);
  launch(Where("activation_backward_apply", native(stream)), elementwise(grid, a.channels),
         a.max_code > 0 ? activation_backward_apply<true> : activation_backward_apply<false>, a,
         grid, state.y.data(), dp, gradient, state.collected, state.scalars.data(), dy_tile.pad,
         dy);
}

}  // namespace fmp::cuda
