// SPDX-License-Identifier: MIT
// The words that both backends share: the shape of a layer, the kernels that run its passes, and
// the constants of its operations. What the operations do is said in kernels/cpu/ops.h.
#pragma once

#include <cstdint>

#include "kernels/tile.h"

namespace fmp {

// BatchNorm1d's constants, PyTorch's defaults.
inline constexpr double kBatchNormEpsilon = 1e-5;
inline constexpr double kBatchNormMomentum = 0.1;
// Training steps in which a QuantReLU's largest value is the batch's percentile; then it is
// learned.
inline constexpr int64_t kThresholdStatisticSteps = 300;
inline constexpr double kThresholdPercentile = 99.999;
inline constexpr double kThresholdMomentum = 0.1;
// Smallest threshold and largest weight that a quantizer divides by.
inline constexpr float kMinQuantizerRange = 1e-10f;

// Of codes of so many bits, with a sign (two's complement) or without.
constexpr int largest_code(int bits, bool is_signed) {
  return (1 << (is_signed ? bits - 1 : bits)) - 1;
}

// Shape of a layer with weights. A dense layer has taps = 1, length = 1.
struct LayerShape {
  int in_channels = 0, out_channels = 0;
  int taps = 1;  // odd; same padding, stride 1
  // Positions written before pooling. A convolution reads position p - padding() .. p + padding()
  // for position p: its input may have more positions, up to padding() of them.
  int length = 1;
  int pool = 1;  // MaxPool1d window and stride; 1 = none. It may leave positions over
  int input_bits = 8, weight_bits = 8, act_bits = 8;  // 2..8 or kFloatBits
  // Of the codes that a layer with act_bits < kFloatBits writes: 0, those of a QuantReLU; or
  // -2^(b-1), or one more (a narrow range), the codes of a signed quantizer without a ReLU.
  int smallest_code = 0;

  int64_t weights() const { return static_cast<int64_t>(out_channels) * taps * in_channels; }
  int64_t fan_in() const { return static_cast<int64_t>(taps) * in_channels; }
  // Of the codes written, not with kFloatBits. A quantizer's scale is its largest value / this.
  int largest_code() const { return fmp::largest_code(act_bits, smallest_code < 0); }
  // Of what is written.
  ElementType output_type() const {
    if (act_bits == kFloatBits) return ElementType::kF32;
    return smallest_code < 0 ? ElementType::kS8 : ElementType::kU8;
  }
  // Rows of zeros around the input.
  int padding() const { return (taps - 1) / 2; }
};

// What a layer without weights computes.
struct Join {
  enum Kind : uint8_t {
    kAdd,          // the sum of two values
    kConcat,       // channels side by side
    kAveragePool,  // the mean of each window of positions; those that are left over have none
  };
  constexpr Join(Kind of, int of_window = 0) : kind(of), window(of_window) {}

  Kind kind;
  int window;  // of an average, in positions; otherwise 0
};

// What may run a pass of a layer: a backend's own kernels, or on a device a library's. All give the
// same integers in the forward pass; on a device, sums of floats differ in their last bits.
enum class Kernel : uint8_t {
  kDense,
  kSparse,    // surviving weights only
  kCublas,    // a batched product over positions with overlapping matrices, dense
  kCusparse,  // SpMM tap by tap, and SDDMM for the weights' gradient: surviving weights only
};
constexpr const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::kSparse:
      return "sparse";
    case Kernel::kCublas:
      return "cublas";
    case Kernel::kCusparse:
      return "cusparse";
    default:
      return "dense";
  }
}
// Whether it reads surviving weights only.
constexpr bool skips_zeros(Kernel kernel) {
  return kernel == Kernel::kSparse || kernel == Kernel::kCusparse;
}

// Which kernel runs each pass of a layer. A backend without libraries runs a kernel of its own that
// skips zeros, or not, as the library's does.
struct PassPlan {
  Kernel forward = Kernel::kDense, backward_data = Kernel::kDense, backward_weight = Kernel::kDense;

  static constexpr PassPlan all(Kernel kernel) { return {kernel, kernel, kernel}; }
  bool operator==(const PassPlan&) const = default;
};

// Of an Adam step.
struct AdamOptions {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
};

// What the loss compares a frame's logits z with: its label y and, where there is one, a teacher's
// opinion, as distillation has it (Hinton, Vinyals, Dean: "Distilling the knowledge in a neural
// network", 2015):
//   loss = (1 - w) H(y', softmax(z)) + w T^2 H(q, softmax(z / T)),  H the cross-entropy.
// y' is 1 - s for the label, and s / classes more for every class (Szegedy et al.: "Rethinking the
// Inception architecture", 2016). q is what the teacher's logits t say at the same temperature,
// softmax(t / T). T^2 keeps the share of both parts in the gradient what w says at any T.
struct LossOptions {
  double label_smoothing = 0;  // s, in [0, 1)
  double soft_weight = 0;      // w, in [0, 1]; of frames with q, for others 0 holds
  double temperature = 1;      // T, above 0
};

}  // namespace fmp
