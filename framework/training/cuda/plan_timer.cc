// SPDX-License-Identifier: MIT
#include "framework/training/cuda/plan_timer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "framework/training/plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

// Each kernel is timed this often after a first run, and its best time counts.
constexpr int kRepetitions = 3;

// Operands do not matter for the time, but must be there: codes of 1, and floats near 1.
constexpr int kCodeByte = 0x01, kFloatByte = 0x3f;

enum class Pass : uint8_t { kForward, kBackwardData, kBackwardWeight };
constexpr std::array kPasses{Pass::kForward, Pass::kBackwardData, Pass::kBackwardWeight};

const char* name_of(Pass pass) {
  return pass == Pass::kForward        ? "forward"
         : pass == Pass::kBackwardData ? "backward data"
                                       : "backward weight";
}
Kernel& kernel_of(LayerPlan& plan, Pass pass) {
  return pass == Pass::kForward        ? plan.forward
         : pass == Pass::kBackwardData ? plan.backward_data
                                       : plan.backward_weight;
}

// Positions of what a convolution reads, in the tile that it reads. A network may have some samples
// more than its layer tells, fewer than the stride.
int positions_read(const Layer& layer) {
  const Convolution& form = layer.form;
  if (layer.kind != LayerKind::kConv || form.padding_after == Convolution::kAsNeeded)
    return layer.length;
  const int samples =
      (layer.length - 1) * form.stride + form.kernel - form.padding - form.padding_after;
  return layer.positions_read((samples + form.stride - 1) / form.stride);
}

class LayerTimer {
 public:
  LayerTimer(const Layer& layer, int batch, cuda::Libraries& libraries)
      : layer_(layer),
        libraries_(libraries),
        stream_(libraries.stream()),
        shape_(layer),
        in_{batch, positions_read(layer), layer.in_channels, layer.padding()},
        out_{batch, in_.length, layer.out_channels, layer.padding()},
        conv_(cuda::conv_shape(shape_, in_)),
        integers_(layer.input_bits != kFloatBits),
        weight_(layer.weight.value.floats(), stream_),
        x_(integers_ ? in_.code_bytes() : in_.floats() * sizeof(float)),
        y_(out_.floats()),
        dx_(in_.floats()),
        grad_(weight_.size()),
        hidden_(layer.kind != Layer::Kind::kOutput) {
    const std::vector<float> ones(static_cast<size_t>(layer.out_channels), 1.0F);
    x_scale_ = cuda::DeviceBuffer<float>(std::span(ones.data(), 1), stream_);
    if (hidden_) {
      const size_t channels = ones.size();
      pooled_ = {batch, layer.length / layer.pool, layer.out_channels, layer.padding()};
      constants_ = cuda::DeviceBuffer<float>(ones, stream_);
      running_.reserve(2 * channels);
      cuda::set_bytes(running_.data(), kFloatByte, 2 * channels * sizeof(float), stream_);
      constant_gradients_.reserve(2 * channels + 1);
      output_.reserve(pooled_.floats());  // no less than its codes take
    }
    cuda::set_bytes(x_.data(), integers_ ? kCodeByte : kFloatByte, x_.size(), stream_);
    cuda::set_bytes(y_.data(), kFloatByte, y_.size() * sizeof(float), stream_);
    weights_.use_libraries(&libraries);
    weights_.set_mask(conv_, layer.weight.mask, stream_);
  }

  // Whether the kernel may run the forward pass: its integers must be exact.
  bool allows_forward(Kernel kernel) const {
    return !cuda::is_library(kernel) || !integers_ || cuda::exact_in_floats(shape_);
  }

  // Of the plan whose forward and weights' gradient run dense.
  bool sums_gradients_once() {
    weights_.compile(shape_, conv_, weight_.data(), integers_, LayerPlan{}, true, stream_);
    return hidden_ && cuda::sums_gradients_once(input(), weights_);
  }

  // Seconds of a pass with a kernel, the others being dense. Throws cuda::LibraryError where a
  // library refuses it.
  double time(Pass pass, Kernel kernel) {
    LayerPlan plan;
    kernel_of(plan, pass) = kernel;
    return time(plan, [&] { run(pass); });
  }
  // Seconds of all passes of a hidden layer.
  double time_layer(const LayerPlan& plan) {
    return time(plan, [&] { run_hidden(input(), dx_.data()); });
  }
  bool is_hidden() const { return hidden_; }

 private:
  template <typename F>
  double time(const LayerPlan& plan, const F& passes) {
    weights_.compile(shape_, conv_, weight_.data(), integers_, plan, true, stream_);
    passes();  // allocates
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kRepetitions; ++i) {
      begin_.record(stream_);
      passes();
      end_.record(stream_);
      best = std::min(best, end_.seconds_since(begin_));
    }
    return best;
  }
  cuda::Input input() const {
    return {in_, integers_ ? ElementType::kU8 : ElementType::kF32, x_.data(),
            integers_ ? x_scale_.data() : nullptr};
  }
  void run(Pass pass) {
    const cuda::Input x = input();
    if (pass == Pass::kForward && hidden_) {
      run_hidden(x, nullptr);
    } else if (pass == Pass::kForward) {
      weights_.forward(x, y_.data(), stream_);
    } else if (pass == Pass::kBackwardData) {
      weights_.backward_data(out_, y_.data(), dx_.data(), stream_);
    } else {
      weights_.backward_weight(x, out_, y_.data(), grad_.data(), stream_);
      weights_.add_up_gradients(stream_);
    }
  }

  // A hidden layer's forward kernel decides whether its sums are kept in memory or computed again
  // in every pass that needs them, so that all of those count.
  void run_hidden(const cuda::Input& x, float* dx) {
    const size_t channels = constants_.size();
    const cuda::HiddenParameters parameters{constants_.data(), constants_.data(),
                                            constants_.data()};
    cuda::hidden_forward_train(x, weights_, parameters, false,
                               {running_.data(), running_.data() + channels}, state_, pooled_,
                               output_.data(), stream_);
    cuda::hidden_backward(
        x, weights_, parameters, state_, y_.data(), nullptr,
        {grad_.data(), constant_gradients_.data(), constant_gradients_.data() + channels,
         constant_gradients_.data() + 2 * channels},
        dx, stream_);
    weights_.add_up_gradients(stream_);
  }

  const Layer& layer_;
  cuda::Libraries& libraries_;
  cuda::Stream stream_;
  LayerShape shape_;
  cuda::Tile in_, out_;
  cuda::ConvShape conv_;
  bool integers_;
  cuda::DeviceBuffer<float> weight_;
  cuda::DeviceBuffer<uint8_t> x_;
  cuda::DeviceBuffer<float> y_, dx_, grad_, x_scale_;
  bool hidden_;
  cuda::Tile pooled_;
  cuda::DeviceBuffer<float> constants_, running_, constant_gradients_, output_;
  cuda::HiddenState state_;
  cuda::Weights weights_;
  cuda::Event begin_{cuda::Event::Timing::kYes}, end_{cuda::Event::Timing::kYes};
};

}  // namespace

bool allowed_in_shares(const Layer& layer, const PassPlan& plan) {
  if (!layer.has_positions()) return true;  // whole batches on all devices
  return !cuda::is_library(plan.backward_data) && !cuda::is_library(plan.backward_weight) &&
         (!cuda::is_library(plan.forward) || multiplies_codes(layer));
}

LayerPlan plan_by_device_timing(const Layer& layer, int batch, bool shared,
                                cuda::Libraries& libraries) {
  const cuda::Range range("plan " + layer.name);
  LayerTimer timer(layer, batch, libraries);
  LayerPlan plan = dense_plan(layer);
  std::array<double, kPasses.size()> best;
  best.fill(std::numeric_limits<double>::infinity());
  for (const Kernel kernel :
       {Kernel::kDense, Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse}) {
    for (const Pass pass : kPasses) {
      if (pass == Pass::kForward && !timer.allows_forward(kernel)) continue;
      LayerPlan candidate = dense_plan(layer);
      kernel_of(candidate, pass) = kernel;
      if (shared && !allowed_in_shares(layer, candidate)) continue;
      double& fastest = best[static_cast<size_t>(pass)];
      try {
        const double seconds = timer.time(pass, kernel);
        if (seconds >= fastest) continue;
        fastest = seconds;
        kernel_of(plan, pass) = kernel;
      } catch (const cuda::LibraryError& error) {
        plan.refused.push_back(
            fmt::format("{} {}: {}", kernel_name(kernel), name_of(pass), error.what()));
      }
    }
  }
  // Then the backward pass gives the weights' gradient without any dy to time a kernel with.
  if (plan.forward != Kernel::kDense || !timer.is_hidden()) return plan;
  if (timer.sums_gradients_once()) {
    plan.backward_weight = Kernel::kDense;
    return plan;
  }
  // Nor where dense passes form dy on the chip: whole layers tell whether other kernels are better.
  LayerPlan dense = plan;
  dense.backward_data = dense.backward_weight = Kernel::kDense;
  if (dense != plan && timer.time_layer(dense) <= timer.time_layer(plan)) return dense;
  return plan;
}

}  // namespace fmp
