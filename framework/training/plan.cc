// SPDX-License-Identifier: MIT
#include "framework/training/plan.h"

#include <algorithm>
#include <limits>

#include "framework/random.h"
#include "framework/training/functions.h"

namespace fmp {
namespace {

// Each kernel is timed this often, and its best time counts.
constexpr int kRepetitions = 3;
// Positions to time per thread: enough work to be measured (some milliseconds), whatever the layer.
constexpr int64_t kTimedPositions = 2048;

Kernel kernel(bool sparse) { return sparse ? Kernel::kSparse : Kernel::kDense; }

cpu::Weights compile(const Layer& layer, const PassPlan& plan) {
  cpu::Weights weights;
  weights.compile(layer, layer.weight.value.floats(), layer.weight.mask, plan, true);
  return weights;
}

// However a plan was chosen, it must not change the results: see cpu::prefers_dense_backward().
void keep_order_of_sums(const Layer& layer, LayerPlan& plan) {
  if (!cpu::prefers_dense_backward(layer, layer.weight.mask)) return;
  plan.backward_data = plan.backward_weight = Kernel::kDense;
}

// Random input codes or values of the layer.
Tensor random_input(const Layer& layer, int64_t frames) {
  Tensor x = Tensor::tile({frames, layer.length, layer.in_channels, layer.padding()},
                          layer.input_bits == kFloatBits ? ElementType::kF32 : ElementType::kU8);
  Random random(0, "plan");
  if (x.type() == ElementType::kF32) {
    for (float& value : x.floats()) value = random.uniform_float();
  } else {
    const uint32_t mask = (1U << layer.input_bits) - 1;
    std::generate_n(x.data<uint8_t>(), x.size(),
                    [&] { return static_cast<uint8_t>(random.next_u32() & mask); });
  }
  return x;
}

// Seconds of the three passes of a layer with one plan, best of kRepetitions.
class LayerTimer {
 public:
  LayerTimer(const Layer& layer, int64_t frames, int threads)
      : layer_(layer),
        threads_(threads),
        x_(random_input(layer, frames)),
        dy_(Tensor::tile({frames, layer.length / layer.pool, layer.out_channels, 0},
                         ElementType::kF32)),
        dx_(Tensor::tile({frames, layer.length, layer.in_channels, 0}, ElementType::kF32)),
        gradient_(Tensor::zeros({layer.weight.size()})),
        per_channel_(Tensor::zeros({4, layer.out_channels})) {
    std::fill_n(dy_.data<float>(), dy_.size(), 1.0F);
  }

  cpu::Profile time(const PassPlan& plan) {
    const cpu::Weights weights = compile(layer_, plan);
    cpu::Profile best;
    best.conv_forward = best.conv_backward_data = best.conv_backward_weight =
        std::numeric_limits<double>::infinity();
    for (int i = 0; i < kRepetitions; ++i) {
      cpu::Profile forward, backward;
      run(weights, forward, backward);
      // The forward kernels want their operands in different forms: that is part of their time.
      best.conv_forward = std::min(best.conv_forward, forward.conv_forward + forward.unpack);
      best.conv_backward_data = std::min(best.conv_backward_data, backward.conv_backward_data);
      best.conv_backward_weight =
          std::min(best.conv_backward_weight, backward.conv_backward_weight);
    }
    return best;
  }

 private:
  std::span<float> channel_vector(int64_t i) {
    const int64_t n = layer_.out_channels;
    return per_channel_.floats().subspan(static_cast<size_t>(i * n), static_cast<size_t>(n));
  }

  void run(const cpu::Weights& weights, cpu::Profile& forward, cpu::Profile& backward) {
    const cpu::Input x{x_.view(), 1.0F};
    if (layer_.kind == Layer::Kind::kOutput) {
      const cpu::OutputParameters parameters{layer_.bias.value.floats(), gain_of(layer_)};
      cpu::output_forward(x, weights, parameters, dy_.view(), {threads_, &forward});
      cpu::OutputGradients gradients{gradient_.floats(), channel_vector(0)};
      cpu::output_backward(x, weights, parameters, dy_.view(), gradients, dx_.view(),
                           {threads_, &backward});
      return;
    }
    const bool quantized = layer_.act_bits != kFloatBits;
    const cpu::HiddenParameters parameters{layer_.gamma.value.floats(), layer_.beta.value.floats(),
                                           quantized ? layer_.threshold.value.floats()[0] : 1.0F};
    Tensor out = Tensor::tile(dy_.tile_shape(), quantized ? ElementType::kU8 : ElementType::kF32);
    cpu::hidden_forward_train(x, weights, parameters, false, {channel_vector(0), channel_vector(1)},
                              state_, out.view(), nullptr, {threads_, &forward});
    cpu::HiddenGradients gradients{gradient_.floats(), channel_vector(2), channel_vector(3)};
    cpu::hidden_backward({x, &weights, &state_, std::as_const(out).view()}, parameters, dy_.view(),
                         0.0, gradients, dx_.view(), nullptr, {threads_, &backward});
  }

  const Layer& layer_;
  int threads_;
  Tensor x_, dy_, dx_, gradient_, per_channel_;
  cpu::HiddenState state_;
};

}  // namespace

LayerPlan plan_of(std::span<const LayerPlan> plan, const Layer& layer) {
  const auto found = std::ranges::find(plan, layer.name, &LayerPlan::layer);
  if (found != plan.end()) return *found;
  LayerPlan dense;
  dense.layer = layer.name;
  return dense;
}

LayerPlan dense_plan(const Layer& layer) {
  LayerPlan plan;
  plan.layer = layer.name;
  plan.density =
      static_cast<double>(compile(layer, {}).nonzeros()) / static_cast<double>(layer.weight.size());
  return plan;
}

LayerPlan plan_by_density(const Layer& layer, double threshold) {
  LayerPlan plan = dense_plan(layer);
  plan.forward = plan.backward_data = plan.backward_weight = kernel(plan.density < threshold);
  keep_order_of_sums(layer, plan);
  return plan;
}

LayerPlan plan_by_cpu_timing(const Layer& layer, int batch, int threads) {
  const int64_t wanted = std::max<int64_t>(1, kTimedPositions / layer.length) * threads * kLanes;
  LayerTimer timer(layer, std::min<int64_t>(batch, wanted), threads);
  const cpu::Profile dense = timer.time(PassPlan::all(Kernel::kDense));
  const cpu::Profile sparse = timer.time(PassPlan::all(Kernel::kSparse));
  LayerPlan plan = dense_plan(layer);
  plan.forward = kernel(sparse.conv_forward < dense.conv_forward);
  plan.backward_data = kernel(sparse.conv_backward_data < dense.conv_backward_data);
  plan.backward_weight = kernel(sparse.conv_backward_weight < dense.conv_backward_weight);
  keep_order_of_sums(layer, plan);
  return plan;
}

}  // namespace fmp
