// SPDX-License-Identifier: MIT
// Whole training steps of a tiny network, composed of the CUDA backend's operations as a training
// loop composes them, against the CPU's Trainer: losses, every parameter and running statistic
// after each step, and the logits in evaluation mode at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "framework/network.h"
#include "framework/random.h"
#include "framework/trainer.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/ops.h"

namespace fmp {
namespace {

using cuda::DeviceBuffer;
constexpr cuda::Stream kStream = nullptr;
constexpr uint64_t kSeed = 20252;
constexpr int64_t kFrames = 37;
constexpr int64_t kStatisticSteps = 2;
constexpr int kSteps = 4;
constexpr double kLearningRate = 1e-3;
// Adam divides gradients by their own size, so that their last bits move a weight by this much.
constexpr double kTolerance = 2e-5;

NetworkConfig tiny_config() {
  NetworkConfig config;
  config.length = 16;
  config.classes = 3;
  config.filters = {6, 5};  // not a multiple of a quad of channels
  config.dense = {9};
  config.input_bits = 8;
  config.weight_bits = {4};
  config.act_bits = {4};
  return config;
}

FrameBatch random_batch(const NetworkConfig& config, uint64_t step) {
  Random random(kSeed, "batch" + std::to_string(step));
  FrameBatch batch;
  batch.count = kFrames;
  for (int64_t i = 0; i < kFrames * config.length * config.input_channels; ++i) {
    batch.codes.push_back(static_cast<int8_t>(static_cast<int>(random.below(256)) - 128));
  }
  for (int64_t i = 0; i < kFrames; ++i) {
    batch.labels.push_back(static_cast<uint8_t>(random.below(3)));
    batch.snr_db.push_back(0);
  }
  return batch;
}

ops::LayerShape shape_of(const Layer& layer) {
  return {layer.in_channels, layer.out_channels, layer.kernel,      layer.length,
          layer.pool,        layer.input_bits,   layer.weight_bits, layer.act_bits};
}

DeviceBuffer<float> upload(std::span<const float> values) { return {values, kStream}; }

// A parameter with its gradient and moments on the device.
struct DeviceParameter {
  DeviceParameter() = default;
  explicit DeviceParameter(const Parameter& p)
      : value(upload(p.value.floats())),
        grad(value.size()),
        moment1(upload(p.moment1.floats())),
        moment2(upload(p.moment2.floats())),
        mask(std::span<const uint8_t>(p.mask), kStream) {}
  void adam(int64_t step) const {
    cuda::adam_step({.learning_rate = kLearningRate}, step, value.size(), grad.data(), mask.data(),
                    value.data(), moment1.data(), moment2.data(), kStream);
  }
  DeviceBuffer<float> value, grad, moment1, moment2;
  DeviceBuffer<uint8_t> mask;
};

// A layer on the device, with what its passes leave.
struct DeviceLayer {
  DeviceLayer(const Layer& layer, const cuda::Tile& input_tile, int output_pad, cuda::Kernel kernel,
              cuda::Libraries* libraries)
      : hidden(layer.kind != Layer::Kind::kOutput),
        shape(shape_of(layer)),
        conv(cuda::conv_shape(shape, input_tile)),
        plan{kernel, kernel, kernel},
        in(input_tile),
        out{input_tile.frames, layer.length / layer.pool, layer.out_channels, output_pad},
        weight(layer.weight),
        dx(static_cast<size_t>(in.length * in.channels * in.lanes())) {
    weights.use_libraries(libraries);
    weights.set_mask(conv, layer.weight.mask, kStream);
    if (!hidden) {
      bias = DeviceParameter(layer.bias);
      bias_sums = DeviceBuffer<double>(bias.value.size());
      scales = DeviceBuffer<double>(2);
      logits = DeviceBuffer<float>(out.floats());
      return;
    }
    gamma = DeviceParameter(layer.gamma);
    beta = DeviceParameter(layer.beta);
    threshold = DeviceParameter(layer.threshold);
    mean = upload(layer.running_mean.floats());
    var = upload(layer.running_var.floats());
    codes = DeviceBuffer<uint8_t>(out.code_bytes());
  }

  cuda::HiddenParameters parameters() const {
    return {gamma.value.data(), beta.value.data(), threshold.value.data()};
  }
  void compile(bool backward) {
    weights.compile(shape, conv, weight.value.data(), true, plan, backward, kStream);
  }

  bool hidden;
  ops::LayerShape shape;
  cuda::ConvShape conv;
  cuda::PassPlan plan;
  cuda::Tile in, out;
  cuda::Weights weights;
  cuda::HiddenState state;
  DeviceParameter weight, gamma, beta, threshold, bias;
  DeviceBuffer<float> mean, var, logits, dx;
  DeviceBuffer<uint8_t> codes;
  DeviceBuffer<double> bias_sums, scales;
};

class DeviceNetwork {
 public:
  DeviceNetwork(const Network& network, cuda::Kernel kernel) : config_(network.config()) {
    const std::vector<Layer>& layers = network.layers();
    const auto pad_of = [&](size_t i) { return (layers[i].kernel - 1) / 2; };
    input_ = {kFrames, config_.length, config_.input_channels, pad_of(0)};
    input_codes_ = DeviceBuffer<uint8_t>(input_.code_bytes());
    input_scale_ = upload(std::vector<float>{2.0F / 128});
    cuda::Tile tile = input_;
    for (size_t i = 0; i < layers.size(); ++i) {
      layers_.push_back(std::make_unique<DeviceLayer>(
          layers[i], tile, i + 1 < layers.size() ? pad_of(i + 1) : 0, kernel, &libraries_));
      tile = layers_.back()->out;
    }
  }

  const DeviceLayer& layer(size_t i) const { return *layers_[i]; }

  double step(const FrameBatch& batch) {
    load(batch);
    const bool collect = steps_ < kStatisticSteps;
    cuda::Input x{input_, ElementType::kS8, input_codes_.data(), input_scale_.data()};
    std::vector<cuda::Input> inputs;
    for (const auto& layer : layers_) {
      inputs.push_back(x);
      layer->compile(true);
      if (!layer->hidden) break;
      cuda::hidden_forward_train(layer->shape, layer->conv, x, layer->weights, layer->parameters(),
                                 collect, layer->mean.data(), layer->var.data(), layer->state,
                                 layer->out, layer->codes.data(), kStream);
      if (collect) follow_threshold(*layer);
      x = {layer->out, ElementType::kU8, layer->codes.data(), layer->state.act_scale()};
    }
    DeviceLayer& output = *layers_.back();
    cuda::output_forward(output.shape, x, output.weights, output.bias.value.data(),
                         output.logits.data(), kStream);
    const DeviceBuffer<uint8_t> labels(std::span<const uint8_t>(batch.labels), kStream);
    const DeviceBuffer<cuda::LossResult> loss(cuda::loss_partials(kFrames));
    const DeviceBuffer<float> dlogits(output.logits.size());
    cuda::softmax_cross_entropy(kFrames, config_.classes, output.logits.data(), labels.data(),
                                dlogits.data(), nullptr, loss.data(), kStream);

    cuda::output_backward(output.shape, x, output.weights, output.bias.value.data(), dlogits.data(),
                          {output.weight.grad.data(), output.bias.grad.data(),
                           output.bias_sums.data(), output.scales.data()},
                          output.dx.data(), kStream);
    output.weights.backward(output.weight.value.data(), output.scales.data(),
                            output.weight.grad.data(), kStream);
    for (size_t i = layers_.size() - 1; i-- > 0;) {
      DeviceLayer& layer = *layers_[i];
      const double* of_act_scale = i + 2 == layers_.size() ? output.scales.data() + 1 : nullptr;
      cuda::hidden_backward(layer.shape, layer.conv, inputs[i], layer.weights, layer.parameters(),
                            layer.state, layers_[i + 1]->dx.data(), of_act_scale,
                            {layer.weight.grad.data(), layer.gamma.grad.data(),
                             layer.beta.grad.data(), layer.threshold.grad.data()},
                            i == 0 ? nullptr : layer.dx.data(), kStream);
      layer.weights.backward(layer.weight.value.data(), nullptr, layer.weight.grad.data(), kStream);
    }
    ++steps_;
    for (const auto& layer : layers_) {
      layer->weight.adam(steps_);
      if (!layer->hidden) {
        layer->bias.adam(steps_);
        continue;
      }
      layer->gamma.adam(steps_);
      layer->beta.adam(steps_);
      layer->threshold.adam(steps_);
    }
    return loss.to_host(kStream)[0].loss_sum / static_cast<double>(kFrames);
  }

  // In evaluation mode, [N][classes].
  std::vector<float> logits(const FrameBatch& batch) {
    load(batch);
    cuda::Input x{input_, ElementType::kS8, input_codes_.data(), input_scale_.data()};
    for (const auto& layer : layers_) {
      layer->compile(false);
      if (!layer->hidden) break;
      cuda::hidden_forward_eval(layer->shape, layer->conv, x, layer->weights, layer->parameters(),
                                layer->mean.data(), layer->var.data(), layer->state, layer->out,
                                layer->codes.data(), kStream);
      x = {layer->out, ElementType::kU8, layer->codes.data(), layer->state.act_scale()};
    }
    DeviceLayer& output = *layers_.back();
    cuda::output_forward(output.shape, x, output.weights, output.bias.value.data(),
                         output.logits.data(), kStream);
    const std::vector<float> tile = output.logits.to_host(kStream);
    std::vector<float> result;
    for (int64_t n = 0; n < kFrames; ++n) {
      for (int c = 0; c < config_.classes; ++c) {
        result.push_back(tile[static_cast<size_t>(c * output.out.lanes() + n)]);
      }
    }
    return result;
  }

 private:
  void load(const FrameBatch& batch) {
    const DeviceBuffer<int8_t> frames(std::span<const int8_t>(batch.codes), kStream);
    cuda::pack_frames(frames.data(), input_, input_codes_.data(), kStream);
  }
  // The threshold is the running mean of the batches' percentiles.
  void follow_threshold(DeviceLayer& layer) const {
    const float batch = layer.state.scalars.to_host(kStream)[0].threshold;
    const float momentum = static_cast<float>(kThresholdMomentum);
    const float before = layer.threshold.value.to_host(kStream)[0];
    const float now = steps_ == 0 ? batch : (1 - momentum) * before + momentum * batch;
    cuda::copy_to_device(layer.threshold.value.data(), &now, sizeof(now), kStream);
    cuda::synchronize(kStream);
  }

  NetworkConfig config_;
  cuda::Libraries libraries_{kStream};
  cuda::Tile input_;
  DeviceBuffer<uint8_t> input_codes_;
  DeviceBuffer<float> input_scale_;
  std::vector<std::unique_ptr<DeviceLayer>> layers_;
  int64_t steps_ = 0;
};

void expect_close(const DeviceBuffer<float>& actual, std::span<const float> expected,
                  const std::string& what) {
  const std::vector<float> values = actual.to_host(kStream);
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], kTolerance * std::max(1.0F, std::fabs(expected[i])))
        << what << " at " << i;
  }
}

class CudaStepTest : public testing::TestWithParam<cuda::Kernel> {
 protected:
  void SetUp() override {
    const char* why = "";
    if (!cuda::device_available(&why)) GTEST_SKIP() << "no CUDA device: " << why;
  }
};

TEST_P(CudaStepTest, TrainsAsTheCpuDoes) {
  const cuda::Kernel kernel = GetParam();
  const bool pruned = kernel == cuda::Kernel::kSparse || kernel == cuda::Kernel::kCusparse;
  Network network(tiny_config(), kSeed);
  if (pruned) {
    Random random(kSeed, "mask");
    for (Layer& layer : network.layers()) {
      for (uint8_t& alive : layer.weight.mask) alive = random.below(3) == 0 ? 1 : 0;
    }
    network.apply_masks();
  }
  DeviceNetwork device(network, kernel);
  TrainerOptions options;
  options.batch = static_cast<int>(kFrames);
  options.threads = 1;
  options.threshold_statistic_steps = kStatisticSteps;
  Trainer trainer(options);
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const FrameBatch batch = random_batch(network.config(), static_cast<uint64_t>(step));
    const double loss = trainer.train_step(network, batch, kLearningRate).loss;
    EXPECT_NEAR(device.step(batch), loss, 1e-5 * loss);
    for (size_t i = 0; i < network.layers().size(); ++i) {
      const Layer& layer = network.layers()[i];
      const DeviceLayer& mine = device.layer(i);
      expect_close(mine.weight.value, layer.weight.value.floats(), layer.weight.name);
      if (!mine.hidden) {
        expect_close(mine.bias.value, layer.bias.value.floats(), layer.bias.name);
        continue;
      }
      expect_close(mine.gamma.value, layer.gamma.value.floats(), layer.gamma.name);
      expect_close(mine.beta.value, layer.beta.value.floats(), layer.beta.name);
      expect_close(mine.threshold.value, layer.threshold.value.floats(), layer.threshold.name);
      expect_close(mine.mean, layer.running_mean.floats(), layer.name + " running mean");
      expect_close(mine.var, layer.running_var.floats(), layer.name + " running variance");
    }
    if (HasFatalFailure()) return;
  }
  const FrameBatch batch = random_batch(network.config(), kSteps);
  const std::vector<float> expected = trainer.logits(network, batch), actual = device.logits(batch);
  ASSERT_EQ(actual.size(), expected.size());
  int64_t same = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    same += std::fabs(actual[i] - expected[i]) <= 1e-3F;
  }
  // A code of a layer before may round the other way after four steps; most frames see none.
  EXPECT_GE(same, static_cast<int64_t>(0.9 * static_cast<double>(expected.size())));
}

INSTANTIATE_TEST_SUITE_P(Plans, CudaStepTest,
                         testing::Values(cuda::Kernel::kDense, cuda::Kernel::kSparse,
                                         cuda::Kernel::kCublas, cuda::Kernel::kCusparse),
                         [](const auto& parameter) {
                           return std::string(cuda::kernel_name(parameter.param));
                         });

}  // namespace
}  // namespace fmp
