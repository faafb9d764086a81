// SPDX-License-Identifier: MIT
// Adam, in the CPU's order of operations: see kernels/cpu/adam.cc. The build forbids fused
// multiply-adds where the code does not ask for them, so the results are the CPU's.
#include <cmath>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {
namespace {

__global__ void __launch_bounds__(kBlockThreads)
    adam(const AdamFactors* factors, size_t count, const float* grad, const uint8_t* mask,
         float* value, float* moment1, float* moment2, unsigned* not_finite) {
  const size_t i = global_x();
  if (i >= count || (mask != nullptr && mask[i] == 0)) return;
  const AdamFactors f = *factors;
  const float g = grad[i];
  const float m = f.beta1 * moment1[i] + f.rest1 * g;
  const float v = f.beta2 * moment2[i] + f.rest2 * g * g;
  moment1[i] = m;
  moment2[i] = v;
  const float result = value[i] - f.step_size * m / (sqrtf(v) / f.root_correction + f.epsilon);
  value[i] = result;
  constexpr unsigned kMagnitude = 0x7fffffffU, kInfinity = 0x7f800000U;
  const bool finite = (__float_as_uint(result) & kMagnitude) < kInfinity;
  if (!finite && not_finite != nullptr) atomicOr(not_finite, 1U);
}

}  // namespace

AdamFactors adam_factors(const AdamOptions& options, int64_t step) {
  const double t = static_cast<double>(step);
  return {static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, t))),
          static_cast<float>(std::sqrt(1 - std::pow(options.beta2, t))),
          static_cast<float>(options.beta1),
          static_cast<float>(options.beta2),
          static_cast<float>(1 - options.beta1),
          static_cast<float>(1 - options.beta2),
          static_cast<float>(options.epsilon)};
}

void adam_step(const AdamFactors* factors, size_t count, const float* grad, const uint8_t* mask,
               float* value, float* moment1, float* moment2, unsigned* not_finite, Stream stream) {
  if (count == 0) return;
  launch(Where("adam", native(stream)),
         Shape{dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}, adam, factors, count,
         grad, mask, value, moment1, moment2, not_finite);
}

}  // namespace fmp::cuda
