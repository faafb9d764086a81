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
    add_bias(const float* x_scale, const float* w_scale, OutputParameters parameters,
             bool quantized, int64_t frames, int lanes, float* logits) {
  const int lane = block_x() * kBlockThreads + thread_x(), out = block_y();
  if (lane >= lanes) return;
  float scale = product(x_scale, w_scale);
  const float bias = parameters.bias[out];
  const float offset = quantized ? bias_code(bias, scale) * scale : bias;
  if (parameters.gain != nullptr) scale *= parameters.gain[out];
  float* at =
      logits + static_cast<size_t>(out) * static_cast<size_t>(lanes) + static_cast<size_t>(lane);
  *at = lane < frames ? *at * scale + offset : 0.0F;
}

__global__ void __launch_bounds__(kBlockThreads)
    bias_gradient(float* dlogits, const float* gain, int lanes, float* grad, double* sums) {
  const int out = block_x();
  double sum = 0;
  for (int lane = thread_x(); lane < lanes; lane += kBlockThreads) {
    float& gradient =
        dlogits[static_cast<size_t>(out) * static_cast<size_t>(lanes) + static_cast<size_t>(lane)];
    sum += static_cast<double>(gradient);
    if (gain != nullptr) gradient *= gain[out];
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

// A frame's logits, `lanes` apart, and the largest of them.
struct FrameLogits {
  const float* first;
  size_t lanes;
  int classes;
  double largest;

  __device__ __forceinline__ double above_largest(int c) const {
    return static_cast<double>(first[static_cast<size_t>(c) * lanes]) - largest;
  }
};

// The targets of a frame: smoothed labels or a teacher's.
struct LabelTarget {
  int label;
  double at_label, elsewhere;
  __device__ __forceinline__ double operator()(int c) const {
    return (c == label ? at_label : 0.0) + elsewhere;
  }
};
struct SoftTarget {
  const float* q;
  __device__ __forceinline__ double operator()(int c) const { return static_cast<double>(q[c]); }
};

// weight * T^2 * H(target, softmax(z / T)) and, where `gradient` is not null, what it adds to the
// gradient of the loss's mean: `mean` times its own. The first part of a loss overwrites.
template <bool kFirst, typename Target>
__device__ __forceinline__ double cross_entropy(const FrameLogits& z, double weight,
                                                double temperature, const Target& target,
                                                double mean, float* gradient) {
  const double coldness = 1.0 / temperature;
  double sum = 0, expected = 0;
  for (int c = 0; c < z.classes; ++c) {
    const double scaled = z.above_largest(c) * coldness;
    sum += exp(scaled);
    if (const double q = target(c); q != 0) expected += q * scaled;
  }
  const double inverse = 1.0 / sum, factor = weight * temperature * mean;
  for (int c = 0; gradient != nullptr && c < z.classes; ++c) {
    const double p = exp(z.above_largest(c) * coldness) * inverse;
    float& out = gradient[static_cast<size_t>(c) * z.lanes];
    const double before = kFirst ? 0.0 : static_cast<double>(out);
    out = static_cast<float>(before + (p - target(c)) * factor);
  }
  return weight * temperature * temperature * (log(sum) - expected);
}

// A thread has one frame: its logits are lanes apart. One block on a multiprocessor is enough, so
// that the compiler need not save registers.
__global__ void __launch_bounds__(kBlockThreads, 1)
    softmax(int frames, int lanes, int classes, const float* logits, Targets targets,
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
    const int label = targets.labels[lane];
    correct = best == label ? 1 : 0;
    if (predicted != nullptr) predicted[lane] = static_cast<uint8_t>(best);
    const FrameLogits z{logits + lane, static_cast<size_t>(lanes), classes,
                        static_cast<double>(logits[at(best)])};
    float* gradient = dlogits != nullptr ? dlogits + lane : nullptr;
    const LossOptions& options = targets.loss;
    const double mean = 1.0 / frames;
    const double soft_weight = targets.soft != nullptr ? options.soft_weight : 0.0;
    const double smoothing = options.label_smoothing;
    loss = cross_entropy<true>(z, 1.0 - soft_weight, 1.0,
                               LabelTarget{label, 1.0 - smoothing, smoothing / classes}, mean,
                               gradient);
    if (soft_weight != 0) {
      const float* q = targets.soft + static_cast<size_t>(lane) * static_cast<size_t>(classes);
      loss +=
          cross_entropy<false>(z, soft_weight, options.temperature, SoftTarget{q}, mean, gradient);
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

bool bias_is_quantized(const LayerShape& layer, const OutputParameters& parameters) {
  return layer.input_bits != kFloatBits && layer.weight_bits != kFloatBits &&
         parameters.gain == nullptr;
}

}  // namespace

void output_forward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                    float* logits, Stream stream) {
  const LayerShape& layer = weights.layer();
  weights.forward(x, logits, stream);
  const int lanes = x.tile.lanes();
  launch(Where("add_bias", native(stream)),
         Shape{dim3(blocks_for(static_cast<size_t>(lanes), kBlockThreads),
                    static_cast<unsigned>(layer.out_channels)),
               dim3(kBlockThreads)},
         add_bias, x.scale, weights.scale(), parameters, bias_is_quantized(layer, parameters),
         x.tile.frames, lanes, logits);
}

void output_backward(const Input& x, Weights& weights, const OutputParameters& parameters,
                     float* dlogits, const OutputGradients& gradients, float* dx, Stream stream) {
  const LayerShape& layer = weights.layer();
  const Tile dy{x.tile.frames, 1, layer.out_channels, 0};
  const cudaStream_t on = native(stream);
  launch(Where("bias_gradient", on),
         Shape{dim3(static_cast<unsigned>(layer.out_channels)), dim3(kBlockThreads)}, bias_gradient,
         dlogits, parameters.gain, dy.lanes(), gradients.bias, gradients.bias_sums);
  launch(Where("bias_scale_gradient", on), Shape{dim3(1), dim3(1)}, bias_scale_gradient,
         layer.out_channels, x.scale, weights.scale(), parameters.bias,
         bias_is_quantized(layer, parameters), gradients.bias_sums, gradients.scales);
  weights.backward_weight(x, dy, dlogits, gradients.weight, stream);
  if (dx != nullptr) weights.backward_data(dy, dlogits, dx, stream);
}

size_t loss_partials(int64_t frames) {
  return blocks_for(static_cast<size_t>(round_up(frames, kWarpLanes)), kBlockThreads);
}

void softmax_cross_entropy(int64_t frames, int classes, const float* logits, const Targets& targets,
                           float* dlogits, uint8_t* predicted, LossResult* partial, Stream stream) {
  const int lanes = static_cast<int>(round_up(frames, kWarpLanes));
  const unsigned blocks = static_cast<unsigned>(loss_partials(frames));
  launch(Where("softmax", native(stream)), Shape{dim3(blocks), dim3(kBlockThreads)}, softmax,
         static_cast<int>(frames), lanes, classes, logits, targets, dlogits, predicted, partial);
  launch(Where("add_losses", native(stream)), Shape{dim3(1), dim3(1)}, add_losses,
         static_cast<int>(blocks), partial);
}

}  // namespace fmp::cuda
