// SPDX-License-Identifier: MIT
// What a hidden layer's sums over the batch come to: the constants of its channels. The kernels
// that add up the sums end with them, in the block that is the last one to finish, as a launch of
// its own takes longer than they do. Where devices share a batch they exchange sums between. For
// .cu files only.
#pragma once

#include "kernels/cuda/activation.h"

namespace fmp::cuda {

__device__ __forceinline__ double scale_of_sums(const float* x_scale, const float* w_scale) {
  return static_cast<double>(x_scale != nullptr ? *x_scale : 1.0F) * static_cast<double>(*w_scale);
}
__device__ __forceinline__ float scale_of_codes(float threshold, float max_code) {
  return threshold / max_code;
}
__device__ __forceinline__ float usable_threshold(float parameter) {
  return fmaxf(fabsf(parameter), kMinQuantizerRange);
}

// The forward pass.
struct BatchNorm {
  double n;  // elements of a channel
  const float *x_scale, *w_scale, *gamma, *beta;
  RunningStatistics running;
  // The parameter v, which turns the affine step to values into one to codes; null: that is not
  // known yet, or there are no codes.
  const float* threshold;
  float max_code;
  float *gain, *shift, *xhat_gain, *xhat_shift, *inv_std;
  HiddenState::Scalars* s;

  // From a channel's sums of y and y^2.
  __device__ __forceinline__ void set(int c, double sum, double squares) const {
    const auto follow = [](float& value, double batch) {
      value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value) +
                                 kBatchNormMomentum * batch);
    };
    const double sum_scale = scale_of_sums(x_scale, w_scale);
    const double mean_code = sum / n;
    const double variance_code = fmax(0.0, squares / n - mean_code * mean_code);
    const double mean = sum_scale * mean_code, variance = sum_scale * sum_scale * variance_code;
    follow(running.mean[c], mean);
    follow(running.var[c], n > 1 ? variance * n / (n - 1) : variance);
    const double std = 1.0 / sqrt(variance + kBatchNormEpsilon);
    const double by_gamma = static_cast<double>(gamma[c]) * std;
    inv_std[c] = static_cast<float>(std);
    xhat_gain[c] = static_cast<float>(std * sum_scale);
    xhat_shift[c] = static_cast<float>(-std * mean);
    gain[c] = static_cast<float>(by_gamma * sum_scale);
    shift[c] = static_cast<float>(static_cast<double>(beta[c]) - by_gamma * mean);
    if (threshold == nullptr) return;
    const float v = usable_threshold(*threshold), act_scale = scale_of_codes(v, max_code);
    gain[c] /= act_scale;
    shift[c] /= act_scale;
    if (c == 0) {
      s->threshold = v;
      s->act_scale = act_scale;
    }
  }
};

// ... of all channels, from sums that tell them one by one.
template <typename Sums>
struct BatchNormOf {
  int channels;
  Sums sums;
  BatchNorm norm;
  unsigned* arrived;  // blocks; null: sums of other devices are missing

  // By one block.
  __device__ __forceinline__ void set() const {
    for (int c = thread_of_block(); c < channels; c += block_threads()) {
      double sum = 0, squares = 0;
      sums.of(c, sum, squares);
      norm.set(c, sum, squares);
    }
  }
  // At the end of a kernel. All threads must come.
  __device__ __forceinline__ void finish() const {
    if (arrived != nullptr && is_last_block(arrived, all_blocks())) set();
  }
};

// The backward pass: the coefficients of dy = of_g * g + of_y * y + of_one.
struct BackwardNorm {
  double n;
  const float *gamma, *inv_std, *xhat_gain, *xhat_shift;
  const float* threshold;            // v
  const double* act_scale_gradient;  // from elsewhere; null = 0
  bool collected;
  float *of_g, *of_y, *of_one;
  float *gamma_gradient, *beta_gradient;
  float* threshold_gradient;  // null: there is none
  HiddenState::Scalars* s;
  unsigned* arrived;  // as above

  // From a channel's sums of g and of g * xhat.
  __device__ __forceinline__ void set(int c, double sum_g, double sum_g_xhat) const {
    beta_gradient[c] = static_cast<float>(sum_g);
    gamma_gradient[c] = static_cast<float>(sum_g_xhat);
    const double factor = static_cast<double>(gamma[c]) * static_cast<double>(inv_std[c]);
    const double mean_g = sum_g / n, mean_g_xhat = sum_g_xhat / n;
    of_g[c] = static_cast<float>(factor);
    of_y[c] = static_cast<float>(-factor * mean_g_xhat * static_cast<double>(xhat_gain[c]));
    of_one[c] =
        static_cast<float>(-factor * (mean_g + static_cast<double>(xhat_shift[c]) * mean_g_xhat));
  }
  // By one thread, of_scale: the sum of all channels.
  __device__ __forceinline__ double gradient_of_threshold(const Activation& a,
                                                          double of_scale) const {
    const double extra = act_scale_gradient != nullptr ? *act_scale_gradient : 0.0;
    return (of_scale + extra) / static_cast<double>(a.max_code);
  }
  __device__ __forceinline__ void set_threshold_gradient(const Activation& a,
                                                         double of_scale) const {
    float gradient = 0;
    if (a.max_code > 0 && !collected) {
      const double of_v = gradient_of_threshold(a, of_scale);
      gradient = static_cast<float>(*threshold > 0 ? of_v : *threshold < 0 ? -of_v : 0.0);
    }
    if (threshold_gradient != nullptr) *threshold_gradient = gradient;
  }
};

// ... of all channels, from partial[slice][channel][3]: sums of g, of g * xhat, and of the scale's
// gradient.
struct BackwardNormOf {
  Activation a;
  PartialSums slices;
  double* partial;
  BackwardNorm norm;

  // By one block of so many warps: a warp adds up the sums of a channel, whose first slice becomes
  // their sum.
  template <int kWarps>
  __device__ __forceinline__ void set() const {
    double of_scale = 0;
    const int lane = thread_x() % kWarpLanes;
    for (int c = thread_of_block() / kWarpLanes; c < a.channels; c += kWarps) {
      double* total = partial + static_cast<size_t>(c) * 3;
      double sums[3];
      for (int i = 0; i < 3; ++i) {
        double sum = sum_of_group<kLanesOfGroup>(slices, lane / kLanesOfGroup, [&](int slice) {
          return total[static_cast<size_t>(slice) * static_cast<size_t>(a.channels) * 3 +
                       static_cast<size_t>(i)];
        });
        for (int step = kLanesOfGroup; step < kWarpLanes; step *= 2) {
          sum += __shfl_xor_sync(kWholeWarp, sum, step);
        }
        sums[i] = sum;
      }
      if (lane == 0) {
        for (int i = 0; i < 3; ++i) total[i] = sums[i];
        of_scale += sums[2];
      }
    }
    of_scale = block_sum<kWarps>(of_scale);
    if (thread_of_block() == 0) {
      norm.s->statistic_gradient = 0;
      norm.set_threshold_gradient(a, of_scale);
      if (norm.collected && norm.s->has_statistic != 0) {
        // The percentile is an element of the batch: the threshold's gradient is that element's.
        double* total =
            partial + static_cast<size_t>(a.channel_of_number(norm.s->statistic_place)) * 3;
        const double of_element =
            norm.gradient_of_threshold(a, of_scale) * static_cast<double>(norm.s->statistic_sign);
        norm.s->statistic_gradient = static_cast<float>(of_element);
        total[0] += of_element;
        total[1] += of_element * static_cast<double>(norm.s->statistic_xhat);
      }
    }
    __syncthreads();
    for (int c = thread_of_block(); c < a.channels; c += kWarps * kWarpLanes) {
      norm.set(c, partial[static_cast<size_t>(c) * 3], partial[static_cast<size_t>(c) * 3 + 1]);
    }
  }
  // At the end of a kernel. All threads must come.
  template <int kWarps>
  __device__ __forceinline__ void finish() const {
    if (norm.arrived != nullptr && is_last_block(norm.arrived, all_blocks())) set<kWarps>();
  }
};

// A channel's sums of y and y^2, from slices, [slice][channel][2] ...
struct SlicedSums {
  const double* partial;
  int channels;
  PartialSums slices;
  __device__ void of(int c, double& sum, double& squares) const {
    const auto add = [&](int which) {
      double total = 0;
      for (int group = 0; group < slices.count; ++group) {
        total += sum_of_group<1>(slices, group, [&](int slice) {
          return partial[(static_cast<size_t>(slice) * static_cast<size_t>(channels) +
                          static_cast<size_t>(c)) *
                             2 +
                         static_cast<size_t>(which)];
        });
      }
      return total;
    };
    sum = add(0);
    squares = add(1);
  }
};
// ... or from exact integers, which it leaves at 0 for the next sums.
struct ExactSums {
  IntegerSums totals;
  __device__ void of(int c, double& sum, double& squares) const {
    unsigned long long of_y = 0, lower = 0, upper = 0;
    for (int copy = 0; copy < IntegerSums::kCopies; ++copy) {
      unsigned long long* parts = totals.of(copy, c);
      of_y += parts[0];
      lower += parts[1];
      upper += parts[2];
      for (int part = 0; part < IntegerSums::kParts; ++part) parts[part] = 0;
    }
    sum = static_cast<double>(static_cast<long long>(of_y));
    squares = static_cast<double>(upper) * 4294967296.0 + static_cast<double>(lower);
  }
};

}  // namespace fmp::cuda
