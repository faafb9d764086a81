// SPDX-License-Identifier: MIT
// Adam: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
// w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps), as PyTorch orders it.
#include <cmath>

#include "kernels/cpu/ops.h"

namespace fmp::cpu {

void adam_step(const AdamOptions& options, int64_t step, std::span<const float> grad,
               std::span<const uint8_t> mask, std::span<float> value, std::span<float> moment1,
               std::span<float> moment2) {
  const double t = static_cast<double>(step);
  const float step_size =
      static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, t)));
  const float root_correction = static_cast<float>(std::sqrt(1 - std::pow(options.beta2, t)));
  const float beta1 = static_cast<float>(options.beta1), beta2 = static_cast<float>(options.beta2);
  const float rest1 = static_cast<float>(1 - options.beta1);
  const float rest2 = static_cast<float>(1 - options.beta2);
  const float epsilon = static_cast<float>(options.epsilon);
  for (size_t i = 0; i < value.size(); ++i) {
    if (!mask.empty() && mask[i] == 0) continue;
    const float g = grad[i];
    moment1[i] = beta1 * moment1[i] + rest1 * g;
    moment2[i] = beta2 * moment2[i] + rest2 * g * g;
    value[i] -= step_size * moment1[i] / (std::sqrt(moment2[i]) / root_correction + epsilon);
  }
}

}  // namespace fmp::cpu
