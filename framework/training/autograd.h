// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "framework/network/tensor.h"
#include "kernels/cpu/ops.h"

namespace fmp {

// What flows between operations: activations (value = code * scale when quantized) and, on the way
// back, their gradient.
struct Activation {
  Tensor value;
  float scale = 1;  // of codes; 1 for float activations
  int bits = kFloatBits;
  bool needs_grad = true;  // false for the network's input
  Tensor grad;             // gradient of the real values: tile of grad_type without padding
  // What a layer with weights writes it in: kBF16 where asked for, if that alone reads it.
  ElementType grad_type = ElementType::kF32;
  double scale_grad = 0;  // gradient of `scale` from operations that read it directly
  // The hidden layer that computed it in training: who reads it can take sums of its gradient.
  std::optional<cpu::HiddenOperands> producer;
};
using Variable = std::shared_ptr<Activation>;

// Reverse-mode differentiation. An operation is a function (framework/training/functions.h) that
// computes its output and records one lambda, which turns the output's gradient into those of its
// inputs and parameters. backward() runs them last to first and frees each, with the tensors that
// it captured, as soon as it has run.
class Tape {
 public:
  void record(std::function<void()> backward) { steps_.push_back(std::move(backward)); }

  void backward() {
    while (!steps_.empty()) {
      steps_.back()();
      steps_.pop_back();
    }
  }

 private:
  std::vector<std::function<void()>> steps_;
};

}  // namespace fmp
