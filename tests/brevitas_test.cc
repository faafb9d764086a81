// SPDX-License-Identifier: MIT
// The whole training step against PyTorch + Brevitas, see tests/fixtures/README.md: integer codes
// equal without a tolerance, everything else up to float32's rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/network/description.h"
#include "framework/network/network.h"
#include "framework/network/weight_codes.h"
#ifdef FMP_SIMT
#include "framework/training/cuda/cuda_engine.h"
#endif
#include "framework/training/functions.h"
#include "framework/training/trainer.h"
#include "kernels/cpu/ops.h"
#include "tests/fixture_file.h"

namespace fmp {
namespace {

// Relative to the largest value of the tensor in question.
constexpr double kForwardTolerance = 1e-5;
constexpr double kGradientTolerance = 1e-4;
// An Adam step moves a parameter by about the learning rate, 1e-3, whatever the gradient's size.
constexpr double kParameterTolerance = 5e-6;
constexpr double kLossTolerance = 1e-5;
// What parameters within their tolerance make of the logits.
constexpr double kTrainedLogitsTolerance = 1e-3;

ChainConfig read_config(const FixtureFile& file) {
  ChainConfig config;
  config.length = file.scalar<int>("config/length");
  config.classes = file.scalar<int>("config/classes");
  config.filters = file.read<int>("config/filters");
  config.dense = file.read<int>("config/dense");
  config.kernel = file.read<int>("config/kernel");
  config.pool = file.read<int>("config/pool");
  for (auto& [name, list] : {std::pair{"stride", &config.stride},
                             {"groups", &config.groups},
                             {"padding", &config.padding}}) {
    if (file.has(std::string("config/") + name))
      *list = file.read<int>(std::string("config/") + name);
  }
  config.input_bits = file.scalar<int>("config/input_bits");
  config.weight_bits = file.read<int>("config/weight_bits");
  config.act_bits = file.read<int>("config/act_bits");
  return config;
}

FrameBatch read_batch(const FixtureFile& file) {
  FrameBatch batch;
  batch.count = file.scalar<int>("config/batch");
  if (file.has("input/codes")) batch.codes = file.read<int8_t>("input/codes");
  if (file.has("input/values")) batch.values = file.read<float>("input/values");
  batch.labels = file.read<uint8_t>("input/labels");
  batch.snr_db.assign(batch.labels.size(), 0);
  return batch;
}

void read_into(const FixtureFile& file, const std::string& name, std::span<float> values) {
  const std::vector<float> stored = file.read<float>(name);
  ASSERT_EQ(stored.size(), values.size()) << name;
  std::ranges::copy(stored, values.begin());
}

// The network with parameters and states from `group` ("initial" or "after").
Network read_state(const FixtureFile& file, const std::string& group, const NetworkConfig& config) {
  Network network(config, 1);
  for (Layer& layer : network.layers()) {
    const std::string from = group + "/" + layer.name + "/";
    if (!layer.has_weights()) {
      read_into(file, from + "threshold", layer.threshold.value.floats());
      continue;
    }
    read_into(file, from + "weight", layer.weight.value.floats());
    const std::string mask = "initial/" + layer.name + "/mask";
    if (file.has(mask)) layer.weight.mask = file.read<uint8_t>(mask);
    if (layer.kind == Layer::Kind::kOutput) {
      read_into(file, from + "bias", layer.bias.value.floats());
      continue;
    }
    read_into(file, from + "gamma", layer.gamma.value.floats());
    read_into(file, from + "beta", layer.beta.value.floats());
    read_into(file, from + "running_mean", layer.running_mean.floats());
    read_into(file, from + "running_var", layer.running_var.floats());
    if (layer.act_bits == kFloatBits) continue;
    read_into(file, from + "threshold", layer.threshold.value.floats());
  }
  network.steps = file.scalar<int>("config/steps_before");
  return network;
}
Network read_network(const FixtureFile& file, const std::string& group) {
  return read_state(file, group, read_config(file));
}

// |actual - expected| <= tolerance * max(|expected|), element by element.
void expect_close(std::span<const float> actual, const std::vector<float>& expected,
                  double tolerance, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = 0;
  for (const float value : expected) largest = std::max<double>(largest, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance * largest) << what << " at " << i;
  }
}

template <typename T>
void expect_same(const std::vector<T>& actual, const std::vector<T>& expected,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(+actual[i], +expected[i]) << what << " at " << i;
  }
}

// A tile's activations as the fixtures have them, [frame][position][channel].
template <typename T>
std::vector<T> unpack(const Tensor& tile) {
  const TileShape& shape = tile.tile_shape();
  std::vector<T> frames;
  for (int64_t n = 0; n < shape.frames; ++n) {
    const T* lane = tile.data<T>() + n / kLanes * shape.tile_elements() + n % kLanes;
    for (int l = 0; l < shape.length; ++l) {
      for (int c = 0; c < shape.channels; ++c) {
        frames.push_back(lane[(l + shape.pad) * shape.row_elements() + c * kLanes]);
      }
    }
  }
  return frames;
}

void expect_weights(const FixtureFile& file, const std::string& group, const Layer& layer,
                    const cpu::Weights& weights) {
  if (layer.weight_bits == kFloatBits) return;
  const std::vector<int> codes(weights.codes().begin(), weights.codes().end());
  expect_same(codes, file.read<int>(group + "weight_codes"), group + "weight_codes");
  expect_close({{weights.scale()}}, file.read<float>(group + "weight_scale"), kForwardTolerance,
               group + "weight_scale");
  expect_same(quantize_weights(layer).codes, file.read<int8_t>(group + "weight_codes"),
              group + "weight_codes as they are counted");
}

void expect_activation(const FixtureFile& file, const std::string& group, const Activation& y) {
  if (y.bits == kFloatBits) {
    expect_close(unpack<float>(y.value), file.read<float>(group + "values"), kForwardTolerance,
                 group + "values");
    return;
  }
  expect_close({{y.scale}}, file.read<float>(group + "act_scale"), kForwardTolerance,
               group + "act_scale");
  expect_same(unpack<uint8_t>(y.value), file.read<uint8_t>(group + "codes"), group + "codes");
}

void expect_logits(const FixtureFile& file, const std::string& group, const Activation& logits) {
  expect_close(unpack<float>(logits.value), file.read<float>(group + "logits"), kForwardTolerance,
               group + "logits");
}

std::vector<LayerWorkspace> make_workspaces(const Network& network, bool sparse) {
  std::vector<LayerWorkspace> workspaces(network.layers().size());
  for (LayerWorkspace& workspace : workspaces)
    workspace.plan = PassPlan::all(sparse ? Kernel::kSparse : Kernel::kDense);
  return workspaces;
}

Variable as_read_by(const Layer& layer, Tape& tape, const Variable& x) {
  return join_positions(tape, x, layer.in_channels / x->value.tile_shape().channels);
}
Variable as_read_by(const Layer& layer, const Variable& x) {
  return join_positions(x, layer.in_channels / x->value.tile_shape().channels);
}

void expect_gradients(const FixtureFile& file, const Network& network) {
  for (const Layer& layer : network.layers()) {
    for (const Parameter* parameter : layer.parameters()) {
      // "conv1.weight" is stored as step1/conv1/weight_grad.
      const std::string what = parameter->name.substr(parameter->name.find('.') + 1);
      const std::string name = "step1/" + layer.name + "/" + what + "_grad";
      expect_close(parameter->grad.floats(), file.read<float>(name), kGradientTolerance, name);
    }
  }
}

void expect_near_values(std::span<const float> actual, const FixtureFile& file,
                        const std::string& name) {
  const std::vector<float> expected = file.read<float>(name);
  ASSERT_EQ(actual.size(), expected.size()) << name;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], kParameterTolerance) << name << " at " << i;
  }
}

void expect_state_after(const FixtureFile& file, const Network& network) {
  for (const Layer& layer : network.layers()) {
    const std::string group = "after/" + layer.name + "/";
    if (!layer.has_weights()) {
      expect_near_values(layer.threshold.value.floats(), file, group + "threshold");
      continue;
    }
    expect_near_values(layer.weight.value.floats(), file, group + "weight");
    if (layer.kind == Layer::Kind::kOutput) {
      expect_near_values(layer.bias.value.floats(), file, group + "bias");
      continue;
    }
    expect_near_values(layer.gamma.value.floats(), file, group + "gamma");
    expect_near_values(layer.beta.value.floats(), file, group + "beta");
    expect_near_values(layer.running_mean.floats(), file, group + "running_mean");
    expect_near_values(layer.running_var.floats(), file, group + "running_var");
    if (layer.act_bits == kFloatBits) continue;
    expect_near_values(layer.threshold.value.floats(), file, group + "threshold");
  }
}

// A case of the fixtures, and whether all layers run on the sparse kernels.
class Brevitas : public ::testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  FixtureFile file_{std::get<0>(GetParam())};
  bool sparse_ = std::get<1>(GetParam());
};

TEST_P(Brevitas, ForwardInTrainingGivesTheSameCodes) {
  Network network = read_network(file_, "initial");
  std::vector<Layer>& layers = network.layers();
  std::vector<LayerWorkspace> workspaces = make_workspaces(network, sparse_);
  const cpu::RunContext context;
  const bool collect = network.collects_thresholds();
  Tape tape;
  Variable x = input_frames(read_batch(file_), network, context);
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    const std::string group = "step1/" + layers[i].name + "/";
    x = as_read_by(layers[i], tape, x);
    x = hidden_layer(tape, x, layers[i], workspaces[i], collect, network.steps == 0,
                     layers[i + 1].input_padding(), context);
    expect_weights(file_, group, layers[i], workspaces[i].weights);
    expect_activation(file_, group, *x);
    if (HasFatalFailure()) return;
  }
  x = as_read_by(layers.back(), tape, x);
  const Variable logits = output_layer(tape, x, layers.back(), workspaces.back(), context);
  expect_weights(file_, "step1/output/", layers.back(), workspaces.back().weights);
  expect_logits(file_, "step1/", *logits);
}

TEST_P(Brevitas, ForwardInEvaluationGivesTheSameCodes) {
  const Network network = read_network(file_, "after");
  const std::vector<Layer>& layers = network.layers();
  std::vector<LayerWorkspace> workspaces = make_workspaces(network, sparse_);
  const cpu::RunContext context;
  Variable x = input_frames(read_batch(file_), network, context);
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    const std::string group = "evaluation/" + layers[i].name + "/";
    x = as_read_by(layers[i], x);
    x = hidden_layer(x, layers[i], workspaces[i], layers[i + 1].input_padding(), context);
    expect_weights(file_, group, layers[i], workspaces[i].weights);
    expect_activation(file_, group, *x);
    if (HasFatalFailure()) return;
  }
  x = as_read_by(layers.back(), x);
  expect_logits(file_, "evaluation/", *output_layer(x, layers.back(), workspaces.back(), context));
}

// tests/simt compiles this file, too, for networks trained on the CUDA engine.
Trainer make_trainer(const TrainerOptions& options) {
#ifdef FMP_SIMT
  return Trainer(options, make_cuda_engine({.cache_memory = false}));
#else
  return Trainer(options);
#endif
}

void expect_same_training(const FixtureFile& file, Network network, bool sparse) {
  const FrameBatch batch = read_batch(file);
  TrainerOptions options;
  options.batch = static_cast<int>(batch.count);
  options.threads = 2;
  options.sparse_threshold = sparse ? 2.0 : 0.0;  // every density is below 2
  Trainer trainer = make_trainer(options);
  trainer.plan(network);

  const std::vector<double> losses = file.read<double>("losses");
  const double learning_rate = file.scalar<double>("config/learning_rate");
  for (size_t step = 0; step < losses.size(); ++step) {
    const Trainer::StepResult result = trainer.train_step(network, batch, learning_rate);
    EXPECT_NEAR(result.loss, losses[step], kLossTolerance) << "step " << step;
    if (step == 0) expect_gradients(file, network);
    if (testing::Test::HasFatalFailure()) return;
  }
  expect_state_after(file, network);
  expect_close(trainer.logits(network, batch), file.read<float>("evaluation/logits"),
               kTrainedLogitsTolerance, "logits after training");
}

TEST_P(Brevitas, TrainingGivesTheSameGradientsAndParameters) {
  expect_same_training(file_, read_network(file_, "initial"), sparse_);
}

INSTANTIATE_TEST_SUITE_P(
    Fixtures, Brevitas,
    ::testing::Combine(::testing::Values("w8a8_statistics", "w8a8_learned",
                                         "w8a8_masked_transition", "w4a4_statistics",
                                         "w4a4_transition", "w4a4_masked_statistics",
                                         "w4a4_masked_learned", "w4a4_kernel5", "w2a2_learned",
                                         "w2a2_masked_first_learned", "float", "float_masked",
                                         "mixed_bits", "w4_float_activations", "a4_float_weights",
                                         "no_hidden_dense", "forms_w4a4", "forms_float",
                                         "percentile"),
                       ::testing::Bool()),
    [](const auto& instance) {
      return std::string(std::get<0>(instance.param)) +
             (std::get<1>(instance.param) ? "_sparse" : "_dense");
    });

void expect_same_training_of(const std::string& name, int length) {
  NetworkConfig config = fmp::read_network(std::string(FMP_FIXTURES_DIR "/") + name + ".json", 4);
  config.length = length;
  config.classes = 5;
  const FixtureFile file(name + "_transition");
  for (const bool sparse : {false, true}) {
    expect_same_training(file, read_state(file, "initial", config), sparse);
  }
}

// Residual and parallel branches, an average, signed quantizers.
TEST(BrevitasGraph, TrainingGivesTheSameGradientsAndParameters) {
  expect_same_training_of("graph", 32);
}

// Padding that makes more or fewer positions, strides and pools that leave some over.
TEST(BrevitasGraph, AnyLengthsTrainAlike) { expect_same_training_of("lengths", 53); }

// Averages that leave positions over.
TEST(BrevitasGraph, AnyAveragesTrainAlike) { expect_same_training_of("averages", 53); }

TEST(BrevitasQuantizer, InputCodesAreTheSame) {
  const FixtureFile file("input_quantizer");
  for (int bits = 2; bits <= 8; ++bits) {
    const std::string group = "bits" + std::to_string(bits) + "/";
    const std::vector<float> values = file.read<float>(group + "values");
    std::vector<int8_t> codes(values.size());
    quantize_input(values, bits, codes.data());
    expect_same(codes, file.read<int8_t>(group + "codes"), group + "codes");
  }
}

}  // namespace
}  // namespace fmp
