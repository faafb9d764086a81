// SPDX-License-Identifier: MIT
// Training steps of a tiny network on the CUDA engine against the CPU's: losses, every parameter,
// moment and running statistic after each step, and the logits in evaluation mode at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "framework/network/network.h"
#include "framework/random.h"
#include "framework/training/cuda/cuda_engine.h"
#include "framework/training/trainer.h"
#include "tests/all_operations.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 20252;
constexpr int64_t kFrames = 37;
constexpr int64_t kStatisticSteps = 2;
constexpr int kSteps = 4;
constexpr double kLearningRate = 1e-3;
// Adam divides gradients by their own size, so that their last bits move a weight by this much.
constexpr double kTolerance = 2e-5;

ChainConfig tiny_config() {
  ChainConfig config;
  config.length = 16;
  config.classes = 3;
  config.filters = {6, 5};  // not a multiple of a quad of channels
  config.dense = {9};
  config.input_bits = 8;
  config.weight_bits = {4};
  config.act_bits = {4};
  return config;
}

FrameBatch random_batch(const NetworkConfig& config, uint64_t step, int64_t frames = kFrames) {
  Random random(kSeed, "batch" + std::to_string(step));
  FrameBatch batch;
  batch.count = frames;
  for (int64_t i = 0; i < frames * config.length * config.input_channels; ++i) {
    const int code = static_cast<int>(random.below(256)) - 128;
    if (config.input_bits == kFloatBits) {
      batch.values.push_back(static_cast<float>(code) / 64);
    } else {
      batch.codes.push_back(static_cast<int8_t>(code));
    }
  }
  for (int64_t i = 0; i < frames; ++i) {
    batch.labels.push_back(static_cast<uint8_t>(random.below(3)));
    batch.snr_db.push_back(0);
  }
  return batch;
}

void expect_close(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < static_cast<size_t>(actual.size()); ++i) {
    const float value = expected.floats()[i];
    ASSERT_NEAR(actual.floats()[i], value, kTolerance * std::max(1.0F, std::fabs(value)))
        << what << " at " << i;
  }
}

void expect_close(const Network& actual, const Network& expected) {
  EXPECT_EQ(actual.steps, expected.steps);
  EXPECT_EQ(actual.optimizer_steps, expected.optimizer_steps);
  for (size_t i = 0; i < expected.layers().size(); ++i) {
    const Layer &mine = actual.layers()[i], &cpu = expected.layers()[i];
    for (size_t k = 0; k < cpu.parameters().size(); ++k) {
      const Parameter &a = *mine.parameters()[k], &b = *cpu.parameters()[k];
      expect_close(a.value, b.value, b.name);
      expect_close(a.grad, b.grad, b.name + " gradient");
      expect_close(a.moment1, b.moment1, b.name + " first moment");
      expect_close(a.moment2, b.moment2, b.name + " second moment");
      EXPECT_EQ(a.mask, b.mask);
    }
    if (cpu.kind == Layer::Kind::kOutput || !cpu.has_weights()) continue;
    expect_close(mine.running_mean, cpu.running_mean, cpu.name + " running mean");
    expect_close(mine.running_var, cpu.running_var, cpu.name + " running variance");
  }
}

struct Case {
  std::string name;
  Kernel kernel;
  bool pruned = false, is_float = false;
  bool forms = false;      // of convolutions
  bool is_signed = false;  // and another scale of the input
  bool branches = false;
  int bits_of_any_lengths = 0;  // 0: whole lengths
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class CudaStepTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::string why;
    if (!cuda_available(why)) GTEST_SKIP() << why;
  }
};

TEST_P(CudaStepTest, TrainsAsTheCpuDoes) {
  ChainConfig config = tiny_config();
  if (GetParam().is_float) {
    config.input_bits = kFloatBits;
    config.weight_bits = config.act_bits = {kFloatBits};
  }
  if (GetParam().forms) {
    // Strides behind channels that fill no quads and that do, the last over all positions.
    config.filters = {6, 6, 8, 5};
    config.kernel = {6, 5, 4, 2};
    config.stride = {2, 2, 2, 2};
    config.groups = {1, 6, 2, 1};
    config.padding = {3, 2, 1, 0};
    config.pool = {1};
  }
  if (GetParam().is_signed) {
    config.smallest_codes = {-8, -7, 0};
    config.input_scale = 0.013F;
  }
  NetworkConfig network_config = config;
  if (GetParam().branches) {
    network_config = all_operations(4, config.length, config.classes);
    network_config.input_bits = config.input_bits;
  }
  if (GetParam().bits_of_any_lengths != 0) {
    network_config = any_lengths(GetParam().bits_of_any_lengths, config.classes);
    if (!GetParam().is_float) network_config.input_bits = config.input_bits;
  }
  Network network(network_config, kSeed);
  if (GetParam().pruned) {
    Random random(kSeed, "mask");
    for (Layer& layer : network.layers()) {
      for (uint8_t& alive : layer.weight.mask) alive = random.below(3) == 0 ? alive : 0;
    }
    network.apply_masks();
  }
  TrainerOptions options;
  options.batch = static_cast<int>(kFrames);
  options.threads = 1;
  // At the percentile a signed quantizer clips nothing, so that the next batch-norm takes a shift
  // away: Adam would make steps of the rounding of gradients that are zero.
  options.threshold_statistic_steps = GetParam().is_signed ? 0 : kStatisticSteps;
  Trainer cpu(options);
  // Without the cache, tests/simt sees accesses to memory that was released.
  Trainer cuda(options, make_cuda_engine({.cache_memory = false}));
  std::vector<LayerPlan> plan;
  const Kernel kernel = GetParam().kernel;
  for (const Layer& layer : network.layers())
    plan.push_back({PassPlan::all(kernel), layer.name, 1, {}});
  for (Trainer* trainer : {&cpu, &cuda}) trainer->set_plan(plan);
  Network device_network = network;
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const FrameBatch batch = random_batch(network_config, static_cast<uint64_t>(step));
    const Trainer::StepResult expected = cpu.train_step(network, batch, kLearningRate);
    const Trainer::StepResult actual = cuda.train_step(device_network, batch, kLearningRate);
    EXPECT_NEAR(actual.loss, expected.loss, 1e-5 * expected.loss);
    expect_close(device_network, network);
    if (HasFatalFailure()) return;
  }
  // The same network gives the same logits: its forward pass is exact.
  const FrameBatch batch = random_batch(network_config, kSteps);
  const std::vector<float> expected = cpu.logits(network, batch);
  const std::vector<float> actual = cuda.logits(network, batch);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 1e-5F * std::max(1.0F, std::fabs(expected[i]))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Plans, CudaStepTest,
    testing::Values(
        Case{"Dense", Kernel::kDense, false, false},
        Case{"PrunedSparse", Kernel::kSparse, true, false},
        Case{"Float", Kernel::kDense, false, true}, Case{"Cublas", Kernel::kCublas, false, false},
        Case{"FloatCublas", Kernel::kCublas, false, true},
        Case{"Cusparse", Kernel::kCusparse, true, false},
        Case{"Forms", Kernel::kDense, false, false, true},
        Case{"FormsSparse", Kernel::kSparse, false, false, true},
        Case{"Signed", Kernel::kDense, false, false, false, true},
        Case{"SignedCusparse", Kernel::kCusparse, true, false, false, true},
        Case{"Branches", Kernel::kDense, false, false, false, false, true},
        Case{"BranchesPrunedSparse", Kernel::kSparse, true, false, false, false, true},
        Case{.name = "AnyLengths", .kernel = Kernel::kDense, .bits_of_any_lengths = 4},
        Case{.name = "AnyLengthsOfEightBits", .kernel = Kernel::kDense, .bits_of_any_lengths = 8},
        Case{.name = "AnyLengthsSparse", .kernel = Kernel::kSparse, .bits_of_any_lengths = 8},
        Case{.name = "AnyLengthsPrunedSparse",
             .kernel = Kernel::kSparse,
             .pruned = true,
             .bits_of_any_lengths = 4},
        Case{.name = "AnyLengthsFloat",
             .kernel = Kernel::kDense,
             .is_float = true,
             .bits_of_any_lengths = kFloatBits},
        Case{.name = "AnyLengthsCublas", .kernel = Kernel::kCublas, .bits_of_any_lengths = 4},
        Case{.name = "AnyLengthsCusparse",
             .kernel = Kernel::kCusparse,
             .pruned = true,
             .bits_of_any_lengths = 4}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

class CudaRealStepTest : public CudaStepTest {};

// A step of a whole VGG10 with 64 channels x 1024 samples, with own dense and own sparse kernels,
// which agree but for the rounding of sums of floats. The host runtime takes a tiny network.
TEST_F(CudaRealStepTest, DenseAndSparseKernelsAgree) {
  ChainConfig config;
  int64_t frames = 4096;
#ifdef FMP_SIMT
  config = tiny_config();
  frames = 40;
#endif
  Network network(config, kSeed);
  Random random(kSeed, "mask");
  for (Layer& layer : network.layers()) {
    for (uint8_t& alive : layer.weight.mask) alive = random.below(3) == 0 ? 1 : 0;
  }
  network.apply_masks();
  const FrameBatch batch = random_batch(config, 0, frames);
  TrainerOptions options;
  options.batch = static_cast<int>(frames);
  options.threshold_statistic_steps = 0;
  Trainer cuda(options, make_cuda_engine());
  std::vector<Network> networks;
  std::vector<double> losses;
  for (const Kernel kernel : {Kernel::kDense, Kernel::kSparse}) {
    std::vector<LayerPlan> plan;
    for (const Layer& layer : network.layers()) {
      plan.push_back({});
      plan.back().layer = layer.name;
      static_cast<PassPlan&>(plan.back()) = PassPlan::all(kernel);
    }
    cuda.set_plan(plan);
    networks.push_back(network);
    losses.push_back(cuda.train_step(networks.back(), batch, kLearningRate).loss);
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-5 * losses[0]);
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const Parameter &dense = networks[0].layers()[i].weight,
                    &sparse = networks[1].layers()[i].weight;
    float largest = 0;
    for (const float g : dense.grad.floats()) largest = std::max(largest, std::fabs(g));
    EXPECT_GT(largest, 0.0F) << dense.name;
    for (size_t k = 0; k < static_cast<size_t>(dense.size()); ++k) {
      // On a device sums have four million addends, which mostly cancel: 1.8e-4 was seen.
      ASSERT_NEAR(dense.grad.floats()[k], sparse.grad.floats()[k], 5e-4F * largest)
          << dense.name << " at " << k;
    }
  }
}

}  // namespace
}  // namespace fmp
