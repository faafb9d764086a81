// SPDX-License-Identifier: MIT
// The output layer: logits = x_scale * w_scale * (W_codes * x_codes) + bias, and softmax
// cross-entropy on them; see kernels/cpu/output_layer.cc for the bias quantizer's gradients.
#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

__device__ __forceinline__ float product(const float* x_scale, const float* w_scale) {
  return (x_scale != nullptr ? *x_scale : 1.0F) * *w_scale;
}

__device__ __forceinline__ float bias_code(float bias, float scale) {
  return fminf(fmaxf(rintf(bias / scale), -2147483648.0F), 2147483648.0F);
}

__global__ void __launch_bounds__(kBlockThreads)
    add_bias(const float* x_scale, const float* w_scale, const float* bias, bool quantized,
             int64_t frames, int lanes, float* logits) {
  const int lane = block_x() * kBlockThreads + thread_x(), out = block_y();
  if (lane >= lanes) return;
  const float scale = product(x_scale, w_scale);
  const float offset = quantized ? bias_code(bias[out], scale) * scale : bias[out];
  float* at =
      logits + static_cast<size_t>(out) * static_cast<size_t>(lanes) + static_cast<size_t>(lane);
  *at = lane < frames ? *at * scale + offset : 0.0F;
}

__global__ void __launch_bounds__(kBlockThreads)
    bias_gradient(const float* dlogits, int lanes, float* grad, double* sums) {
  const int out = block_x();
  double sum = 0;
  for (int lane = thread_x(); lane < lanes; lane += kBlockThreads) {
    sum += static_cast<double>(
        dlogits[static_cast<size_t>(out) * static_cast<size_t>(lanes) + static_cast<size_t>(lane)]);
  }
  sum = block_sum(sum);
  if (thread_x() != 0) return;
  grad[out] = static_cast<float>(sum);
  sums[out] = sum;
}

// scales: the weights' and the input's.
__global__ void __launch_bounds__(kBlockThreads)
    bias_scale_gradient(int outputs, const float* x_scale, const float* w_scale, const float* bias,
                        bool quantized, const double* sums, double* scales) {
  double of_scale = 0;
  const float scale = product(x_scale, w_scale);
  for (int o = 0; quantized && o < outputs; ++o) {
    of_scale += sums[o] * (static_cast<double>(bias_code(bias[o], scale)) -
                           static_cast<double>(bias[o]) / static_cast<double>(scale));
  }
  scales[0] = of_scale * static_cast<double>(x_scale != nullptr ? *x_scale : 1.0F);
  scales[1] = of_scale * static_cast<double>(*w_scale);
}

// A thread has one frame: its logits are lanes apart.
__global__ void __launch_bounds__(kBlockThreads)
    softmax(int frames, int lanes, int classes, const float* logits, const uint8_t* labels,
            float* dlogits, uint8_t* predicted, LossResult* partial) {
  const int lane = block_x() * kBlockThreads + thread_x();
  const auto at = [&](int c) {
    return static_cast<size_t>(c) * static_cast<size_t>(lanes) + static_cast<size_t>(lane);
  };
  double loss = 0;
  unsigned correct = 0;
  if (lane < frames) {
    int best = 0;
    for (int c = 1; c < classes; ++c) {
      if (logits[at(c)] > logits[at(best)]) best = c;
    }
    const double largest = static_cast<double>(logits[at(best)]);
    double sum = 0;
    for (int c = 0; c < classes; ++c) sum += exp(static_cast<double>(logits[at(c)]) - largest);
    const int label = labels[lane];
    loss = log(sum) - (static_cast<double>(logits[at(label)]) - largest);
    correct = best == label ? 1 : 0;
    if (predicted != nullptr) predicted[lane] = static_cast<uint8_t>(best);
    const double weight = 1.0 / frames, inverse = 1.0 / sum;
    for (int c = 0; dlogits != nullptr && c < classes; ++c) {
      const double p = exp(static_cast<double>(logits[at(c)]) - largest) * inverse;
      dlogits[at(c)] = static_cast<float>((p - (c == label ? 1.0 : 0.0)) * weight);
    }
  } else if (lane < lanes) {
    for (int c = 0; dlogits != nullptr && c < classes; ++c) dlogits[at(c)] = 0.0F;
  }
  const double loss_sum = block_sum(loss);
  const unsigned correct_sum = block_sum(correct);
  if (thread_x() == 0) partial[blockIdx.x] = {loss_sum, correct_sum, 0};
}

__global__ void __launch_bounds__(kBlockThreads) add_losses(int blocks, LossResult* partial) {
  LossResult total = partial[0];
  for (int b = 1; b < blocks; ++b) {
    total.loss_sum += partial[b].loss_sum;
    total.correct += partial[b].correct;
  }
  partial[0] = total;
}

bool bias_is_quantized(const LayerShape& layer) {
  return layer.input_bits != kFloatBits && layer.weight_bits != kFloatBits;
}

}  // namespace

void output_forward(const Input& x, const Weights& weights, const float* bias, float* logits,
                    Stream stream) {
  const LayerShape& layer = weights.layer();
  weights.forward(x, logits, stream);
  const int lanes = x.tile.lanes();
  launch(Where("add_bias", native(stream)),
         Shape{dim3(blocks_for(static_cast<size_t>(lanes), kBlockThreads),
                    static_cast<unsigned>(layer.out_channels)),
               dim3(kBlockThreads)},
         add_bias, x.scale, weights.scale(), bias, bias_is_quantized(layer), x.tile.frames, lanes,
         logits);
}

void output_backward(const Input& x, Weights& weights, const float* bias, const float* dlogits,
                     const OutputGradients& gradients, float* dx, Stream stream) {
  const LayerShape& layer = weights.layer();
  const Tile dy{x.tile.frames, 1, layer.out_channels, 0};
  const cudaStream_t on = native(stream);
  launch(Where("bias_gradient", on),
         Shape{dim3(static_cast<unsigned>(layer.out_channels)), dim3(kBlockThreads)}, bias_gradient,
         dlogits, dy.lanes(), gradients.bias, gradients.bias_sums);
  launch(Where("bias_scale_gradient", on), Shape{dim3(1), dim3(1)}, bias_scale_gradient,
         layer.out_channels, x.scale, weights.scale(), bias, bias_is_quantized(layer),
         gradients.bias_sums, gradients.scales);
  weights.backward_weight(x, dy, dlogits, gradients.weight, stream);
  if (dx != nullptr) weights.backward_data(dy, dlogits, dx, stream);
}

size_t loss_partials(int64_t frames) {
  return blocks_for(static_cast<size_t>(round_up(frames, kWarpLanes)), kBlockThreads);
}

void softmax_cross_entropy(int64_t frames, int classes, const float* logits, const uint8_t* labels,
                           float* dlogits, uint8_t* predicted, LossResult* partial, Stream stream) {
  const int lanes = static_cast<int>(round_up(frames, kWarpLanes));
  const unsigned blocks = static_cast<unsigned>(loss_partials(frames));
  launch(Where("softmax", native(stream)), Shape{dim3(blocks), dim3(kBlockThreads)}, softmax,
         static_cast<int>(frames), lanes, classes, logits, labels, dlogits, predicted, partial);
  launch(Where("add_losses", native(stream)), Shape{dim3(1), dim3(1)}, add_losses,
         static_cast<int>(blocks), partial);
}

}  // namespace fmp::cuda
