// SPDX-License-Identifier: MIT
#include "framework/training/cuda/plan_timer.h"

#include <algorithm>
#include <limits>

#include "framework/training/functions.h"
#include "framework/training/plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

// Each kernel is timed this often after a first run, and its best time counts.
constexpr int kRepetitions = 3;

// Operands do not matter for the time, but must be there: codes of 1, and floats near 1.
constexpr int kCodeByte = 0x01, kFloatByte = 0x3f;

struct Seconds {
  double forward, backward_data, backward_weight;
};

class LayerTimer {
 public:
  LayerTimer(const Layer& layer, int batch, cuda::Libraries& libraries)
      : layer_(layer),
        libraries_(libraries),
        stream_(libraries.stream()),
        shape_(shape_of(layer)),
        in_{batch, layer.length, layer.in_channels, padding_of(layer)},
        out_{batch, layer.length, layer.out_channels, padding_of(layer)},
        conv_(cuda::conv_shape(shape_, in_)),
        integers_(layer.input_bits != kFloatBits),
        weight_(layer.weight.value.floats(), stream_),
        x_(integers_ ? in_.code_bytes() : in_.floats() * sizeof(float)),
        y_(out_.floats()),
        dx_(in_.floats()),
        grad_(weight_.size()) {
    const float one = 1.0F;
    x_scale_ = cuda::DeviceBuffer<float>(std::span(&one, 1), stream_);
    cuda::set_bytes(x_.data(), integers_ ? kCodeByte : kFloatByte, x_.size(), stream_);
    cuda::set_bytes(y_.data(), kFloatByte, y_.size() * sizeof(float), stream_);
    cuda::synchronize(stream_);
  }

  // Whether the kernel may run the forward pass: its integers must be exact.
  bool allows_forward(cuda::Kernel kernel) const {
    return !cuda::is_library(kernel) || !integers_ || cuda::exact_in_floats(shape_);
  }

  // Of one kernel in all passes, but for a forward pass that it may not run.
  Seconds time(cuda::Kernel kernel) {
    const cuda::PassPlan plan(allows_forward(kernel) ? kernel : cuda::Kernel::kDense, kernel,
                              kernel);
    cuda::Weights weights;
    weights.use_libraries(&libraries_);
    weights.set_mask(conv_, layer_.weight.mask, stream_);
    weights.compile(shape_, conv_, weight_.data(), integers_, plan, true, stream_);
    run(weights);  // allocates
    constexpr double kNever = std::numeric_limits<double>::infinity();
    Seconds best{kNever, kNever, kNever};
    for (int i = 0; i < kRepetitions; ++i) {
      const Seconds now = run(weights);
      best.forward = std::min(best.forward, now.forward);
      best.backward_data = std::min(best.backward_data, now.backward_data);
      best.backward_weight = std::min(best.backward_weight, now.backward_weight);
    }
    return best;
  }

 private:
  Seconds run(cuda::Weights& weights) {
    const cuda::Input x{in_, integers_ ? ElementType::kU8 : ElementType::kF32, x_.data(),
                        integers_ ? x_scale_.data() : nullptr};
    begin_.record(stream_);
    weights.forward(x, y_.data(), stream_);
    forward_.record(stream_);
    weights.backward_data(out_, y_.data(), dx_.data(), stream_);
    data_.record(stream_);
    weights.backward_weight(x, out_, y_.data(), grad_.data(), stream_);
    weight_done_.record(stream_);
    return {forward_.seconds_since(begin_), data_.seconds_since(forward_),
            weight_done_.seconds_since(data_)};
  }

  const Layer& layer_;
  cuda::Libraries& libraries_;
  cuda::Stream stream_;
  ops::LayerShape shape_;
  cuda::Tile in_, out_;
  cuda::ConvShape conv_;
  bool integers_;
  cuda::DeviceBuffer<float> weight_;
  cuda::DeviceBuffer<uint8_t> x_;
  cuda::DeviceBuffer<float> y_, dx_, grad_, x_scale_;
  cuda::Event begin_{cuda::Event::Timing::kYes}, forward_{cuda::Event::Timing::kYes},
      data_{cuda::Event::Timing::kYes}, weight_done_{cuda::Event::Timing::kYes};
};

}  // namespace

LayerPlan plan_by_device_timing(const Layer& layer, int batch, cuda::Libraries& libraries) {
  using cuda::Kernel;
  const cuda::Range range("plan " + layer.name);
  LayerTimer timer(layer, batch, libraries);
  LayerPlan plan = dense_plan(layer);
  Seconds best = timer.time(Kernel::kDense);
  const auto choose = [](Kernel kernel, double seconds, Kernel& chosen, double& fastest) {
    if (seconds >= fastest) return;
    chosen = kernel;
    fastest = seconds;
  };
  for (const Kernel kernel : {Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse}) {
    const Seconds now = timer.time(kernel);
    if (timer.allows_forward(kernel)) choose(kernel, now.forward, plan.forward, best.forward);
    choose(kernel, now.backward_data, plan.backward_data, best.backward_data);
    choose(kernel, now.backward_weight, plan.backward_weight, best.backward_weight);
  }
  return plan;
}

}  // namespace fmp
