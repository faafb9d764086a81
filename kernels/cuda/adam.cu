// SPDX-License-Identifier: MIT
// Adam, in the CPU's order of operations: see kernels/cpu/adam.cc. The build forbids fused
// multiply-adds where the code does not ask for them, so the results are the CPU's.
#include <cmath>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

struct Factors {
  float step_size, root_correction, beta1, beta2, rest1, rest2, epsilon;
};

__global__ void __launch_bounds__(kBlockThreads)
    adam(Factors f, size_t count, const float* grad, const uint8_t* mask, float* value,
         float* moment1, float* moment2) {
  const size_t i = global_x();
  if (i >= count || (mask != nullptr && mask[i] == 0)) return;
  const float g = grad[i];
  const float m = f.beta1 * moment1[i] + f.rest1 * g;
  const float v = f.beta2 * moment2[i] + f.rest2 * g * g;
  moment1[i] = m;
  moment2[i] = v;
  value[i] -= f.step_size * m / (sqrtf(v) / f.root_correction + f.epsilon);
}

}  // namespace

void adam_step(const ops::AdamOptions& options, int64_t step, size_t count, const float* grad,
               const uint8_t* mask, float* value, float* moment1, float* moment2, Stream stream) {
  if (count == 0) return;
  const double t = static_cast<double>(step);
  const Factors factors{
      static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, t))),
      static_cast<float>(std::sqrt(1 - std::pow(options.beta2, t))),
      static_cast<float>(options.beta1),
      static_cast<float>(options.beta2),
      static_cast<float>(1 - options.beta1),
      static_cast<float>(1 - options.beta2),
      static_cast<float>(options.epsilon)};
  launch(Where("adam", native(stream)),
         Shape{dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}, adam, factors, count,
         grad, mask, value, moment1, moment2);
}

}  // namespace fmp::cuda
