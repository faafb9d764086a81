// SPDX-License-Identifier: MIT
// The main job on the CUDA engine: epochs, evaluation and whole FMP runs of a tiny network against
// the CPU's, checkpoints in between, and what the engine promises of itself: graphs, cached memory
// and named ranges change nothing in the results.
#include "framework/training/cuda/cuda_engine.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "experiments/experiment.h"
#include "experiments/fmp_controller.h"
#include "framework/error.h"
#include "framework/network/checkpoint.h"
#include "framework/network/compaction.h"
#include "framework/random.h"
#include "framework/training/trainer.h"
#include "tests/all_operations.h"
#ifdef FMP_SIMT
#include "tests/simt/nvtx3/nvToolsExt.h"
#include "tests/simt/simt.h"
#endif

namespace fmp {
namespace {

constexpr int kLength = 16, kClasses = 3, kBits = 4;
constexpr int kBatch = 40;  // not a multiple of a warp
constexpr uint64_t kSeed = 7;

// Frames of a level and a slope that tell the classes apart, with noise.
class TinyDataset final : public Dataset {
 public:
  // taught: frames come with soft targets.
  explicit TinyDataset(int64_t size, bool taught = false) : taught_(taught) {
    Random random(kSeed, "frames");
    for (int64_t n = 0; n < size; ++n) {
      const auto label = static_cast<uint8_t>(n % kClasses);
      labels_.push_back(label);
      snr_db_.push_back(static_cast<int16_t>(n % 2 * 10));
      const float amplitude = n % 2 == 0 ? 0.4F : 1.0F;
      for (int t = 0; t < kLength; ++t) {
        const float turn = 6.2831853F * static_cast<float>(t * (label + 1)) / kLength;
        for (const float clean : {std::cos(turn), std::sin(turn)}) {
          const float value = amplitude * clean + random.uniform_float() - 0.5F;
          codes_.push_back(static_cast<int8_t>(std::clamp(std::lround(value * 4), -8L, 7L)));
        }
      }
    }
  }
  int64_t size() const override { return static_cast<int64_t>(labels_.size()); }
  int length() const override { return kLength; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return labels_[static_cast<size_t>(frame)]; }
  int16_t snr_db(int64_t frame) const override { return snr_db_[static_cast<size_t>(frame)]; }
  int soft_targets() const override { return taught_ ? kClasses : 0; }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    frames_read_ += std::ssize(frames);
    batch = {};
    batch.count = static_cast<int64_t>(frames.size());
    for (const int64_t frame : frames) {
      const auto begin = codes_.begin() + frame * 2 * kLength;
      batch.codes.insert(batch.codes.end(), begin, begin + 2 * kLength);
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
      for (int c = 0; taught_ && c < kClasses; ++c)
        batch.soft_targets.push_back(c == label(frame) ? 0.5F : 0.25F);
    }
  }

  int64_t frames_read() const { return frames_read_; }

 private:
  bool taught_;
  mutable std::atomic<int64_t> frames_read_ = 0;  // by another thread
  std::vector<int8_t> codes_;
  std::vector<uint8_t> labels_;
  std::vector<int16_t> snr_db_;
  std::vector<std::string> names_{"A", "B", "C"};
};

std::vector<int64_t> range_of(int64_t begin, int64_t end) {
  std::vector<int64_t> frames;
  for (int64_t i = begin; i < end; ++i) frames.push_back(i);
  return frames;
}

ChainConfig tiny_config() {
  ChainConfig config;
  config.length = kLength;
  config.classes = kClasses;
  config.filters = {6, 5};
  config.dense = {9};
  config.input_bits = kBits;
  config.weight_bits = config.act_bits = {kBits};
  return config;
}

TrainerOptions trainer_options() {
  TrainerOptions options;
  options.batch = kBatch;
  options.threads = 1;
  options.threshold_statistic_steps = 3;
  options.sparse_threshold = 0.5;
  return options;
}

std::vector<float> values_of(const Network& network) {
  std::vector<float> values;
  const auto add = [&](const Tensor& tensor) {
    values.insert(values.end(), tensor.floats().begin(), tensor.floats().end());
  };
  for (const Layer& layer : network.layers()) {
    for (const Parameter* p : layer.parameters()) {
      add(p->value);
      add(p->moment1);
      add(p->moment2);
    }
    if (layer.kind == Layer::Kind::kOutput || !layer.has_weights()) continue;
    add(layer.running_mean);
    add(layer.running_var);
  }
  return values;
}

// Compares whole runs with the CPU's. Sums of floats run in another order on a device, and tensor
// cores cut them off as their generation does, so that weights agree to some digits only and a code
// next to a rounding boundary may become its neighbour; from then on runs drift apart. The host
// runtime always does the same, so that there a difference is a failure; on a device it is told.
void compare_whole_runs(const std::function<void()>& compare) {
#ifdef FMP_SIMT
  compare();
#else
  testing::TestPartResultArray differences;
  {
    testing::ScopedFakeTestPartResultReporter reporter(
        testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &differences);
    compare();
  }
  for (int i = 0; i < differences.size(); ++i) {
    std::printf("soft: %s\n", differences.GetTestPartResult(i).message());
  }
#endif
}

class CudaEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!cuda_available(why)) GTEST_SKIP() << why;
  }

  // Two epochs, the last batch of each smaller than the others.
  static Network train(Trainer& trainer, std::vector<EpochResult>* results = nullptr,
                       bool taught = false) {
    const TinyDataset data(200, taught);
    Network network(tiny_config(), kSeed);
    for (uint64_t epoch = 1; epoch <= 2; ++epoch) {
      const EpochResult result =
          trainer.train_epoch(network, data, range_of(0, 193), kSeed, epoch, 1e-2);
      if (results != nullptr) results->push_back(result);
    }
    return network;
  }
  static Network train(const CudaEngineOptions& options) {
    Trainer trainer(trainer_options(), make_cuda_engine(options));
    return train(trainer);
  }
  static void expect_epochs_of_the_cpu(const LossOptions& loss, bool taught) {
    TrainerOptions options = trainer_options();
    options.loss = loss;
    Trainer cpu(options), cuda(options, make_cuda_engine());
    std::vector<EpochResult> expected, actual;
    const Network on_cpu = train(cpu, &expected, taught), on_device = train(cuda, &actual, taught);
    compare_whole_runs([&] {
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_NEAR(actual[i].loss, expected[i].loss, 1e-4 * expected[i].loss);
        EXPECT_NEAR(actual[i].accuracy, expected[i].accuracy, 1e-9);
      }
    });
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(actual[i].frames, expected[i].frames);
    EXPECT_LT(actual[1].loss, actual[0].loss) << "it learns";
    EXPECT_EQ(on_device.steps, on_cpu.steps);
    const std::vector<float> a = values_of(on_device), b = values_of(on_cpu);
    ASSERT_EQ(a.size(), b.size());
    compare_whole_runs([&] {
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_NEAR(a[i], b[i], 1e-4F * std::max(1.0F, std::fabs(b[i]))) << i;
      }
    });
  }
};

TEST_F(CudaEngineTest, EpochsAreThoseOfTheCpu) { expect_epochs_of_the_cpu({}, false); }

TEST_F(CudaEngineTest, EpochsWithATeacherAreThoseOfTheCpu) {
  expect_epochs_of_the_cpu({.label_smoothing = 0.1, .soft_weight = 0.6, .temperature = 2}, true);
}

TEST_F(CudaEngineTest, GraphsAndCachedMemoryChangeNothing) {
  const std::vector<float> reference = values_of(train({.cache_memory = false, .graphs = false}));
  EXPECT_EQ(values_of(train({.cache_memory = false, .graphs = true})), reference);
  EXPECT_EQ(values_of(train({.cache_memory = true, .graphs = true})), reference);
  EXPECT_EQ(values_of(train({.cache_memory = true, .graphs = true})), reference) << "run to run";
}

// A network that branches: steps that collect and that do not, of two sizes of batch; then without
// channels that were pruned; and from a checkpoint.
TEST_F(CudaEngineTest, BranchesAreTrainedPrunedAndResumed) {
  const TinyDataset data(100);
  const auto epoch = [&](Network& network, uint64_t number, int frames, bool graphs) {
    Trainer trainer(trainer_options(), make_cuda_engine({.graphs = graphs}));
    trainer.plan(network);
    trainer.train_epoch(network, data, range_of(0, frames), kSeed, number, 1e-2);
  };
  Network network(all_operations(kBits, kLength, kClasses), kSeed);
  Network without_graphs = network;
  epoch(network, 1, 90, true);
  epoch(without_graphs, 1, 90, false);
  EXPECT_EQ(values_of(network), values_of(without_graphs));

  // Whole channels of the stem and of "left", which the sum ties, and of "half".
  for (const size_t i : {0U, 1U, 3U}) {
    Layer& layer = network.layers()[i];
    const size_t row = layer.weight.mask.size() / static_cast<size_t>(layer.out_channels);
    for (const size_t channel : {1U, 2U}) {
      std::fill_n(layer.weight.mask.begin() + static_cast<ptrdiff_t>(channel * row), row,
                  uint8_t{0});
      layer.gamma.value.floats()[channel] = layer.beta.value.floats()[channel] = 0;
    }
  }
  network.apply_masks();
  Trainer cpu(trainer_options()), cuda(trainer_options(), make_cuda_engine());
  const double whole = cuda.evaluate(network, data, range_of(3, 40)).loss;
  compact(network);
  EXPECT_LT(network.layers()[3].out_channels, 5);
  EXPECT_NEAR(cuda.evaluate(network, data, range_of(3, 40)).loss, whole, 1e-6);
  EXPECT_NEAR(cpu.evaluate(network, data, range_of(3, 40)).loss, whole, 1e-6);

  Network resumed = network;  // as a checkpoint has it
  epoch(network, 2, kBatch, true);
  epoch(resumed, 2, kBatch, true);
  EXPECT_EQ(values_of(resumed), values_of(network));
}

// Of the parameters nothing changes; running statistics are those of a network that stands still.
TEST_F(CudaEngineTest, BatchNormSettlesAfterAnEpoch) {
  constexpr int kSettling = 2;
  const TinyDataset data(150);
  const std::vector<int64_t> frames = range_of(0, 130);
  for (const bool on_device : {false, true}) {
    const auto trained = [&](int64_t settling) {
      TrainerOptions options = trainer_options();
      options.batch_norm_steps = settling;
      Trainer trainer(options, on_device ? make_cuda_engine() : make_cpu_engine(1));
      Network network(tiny_config(), kSeed);
      trainer.train_epoch(network, data, frames, kSeed, 1, 1e-2);
      return network;
    };
    Network expected = trained(0);
    const Network plain = expected;
    Trainer trainer(trainer_options(), on_device ? make_cuda_engine() : make_cpu_engine(1));
    const std::vector<int64_t> order = shuffled(frames, kSeed, 1);
    for (int step = 0; step < kSettling; ++step) {
      FrameBatch batch;
      data.read(std::span(order).subspan(static_cast<size_t>(step * kBatch), kBatch), batch);
      trainer.train_step(expected, batch, 0);
    }
    const Network settled = trained(kSettling);
    EXPECT_EQ(settled.steps, plain.steps);
    for (size_t i = 0; i + 1 < settled.layers().size(); ++i) {
      const Layer& layer = settled.layers()[i];
      const auto equal = [&](const Tensor& a, const Tensor& b) {
        return std::ranges::equal(a.floats(), b.floats());
      };
      EXPECT_TRUE(equal(layer.weight.value, plain.layers()[i].weight.value));
      EXPECT_TRUE(equal(layer.weight.moment1, plain.layers()[i].weight.moment1));
      EXPECT_EQ(layer.threshold.value.floats()[0], plain.layers()[i].threshold.value.floats()[0]);
      EXPECT_TRUE(equal(layer.running_mean, expected.layers()[i].running_mean));
      EXPECT_TRUE(equal(layer.running_var, expected.layers()[i].running_var));
      EXPECT_FALSE(equal(layer.running_mean, plain.layers()[i].running_mean));
    }
  }
}

// Launches bound a step of small batches: a VGG10 has 10 layers.
TEST_F(CudaEngineTest, AStepIsOneGraphOfFewNodes) {
  const TinyDataset data(5 * kBatch);
  for (const double threshold : {0.0, 1.0}) {  // dense, sparse
    TrainerOptions options = trainer_options();
    options.sparse_threshold = threshold;
    Trainer trainer(options, make_cuda_engine());
    ChainConfig config = tiny_config();
    config.filters = {4, 4, 4, 4, 4, 4, 4};
    config.pool = {2, 2, 2, 1, 1, 1, 1};
    config.dense = {5, 5};
    Network network(config, kSeed);
    trainer.plan(network);
    trainer.train_epoch(network, data, range_of(0, 5 * kBatch), kSeed, 1, 1e-2);
    std::cout << trainer.engine().graph_nodes().value() << " nodes\n";
    EXPECT_GT(trainer.engine().graph_nodes().value(), 0U);
    EXPECT_LE(trainer.engine().graph_nodes().value(), threshold == 0 ? 74U : 76U);
  }
}

TEST_F(CudaEngineTest, FramesInItsMemoryChangeNothing) {
  const TinyDataset data(200);
  const std::vector<int64_t> given = range_of(3, 190);
  std::vector<float> values[2];
  std::vector<int64_t> confusion[2];
  for (const bool give : {false, true}) {
    Trainer trainer(trainer_options(), make_cuda_engine());
    if (give) {
      EXPECT_TRUE(trainer.give_frames(data, given));
    }
    Network network(tiny_config(), kSeed);
    const int64_t before = data.frames_read();
    trainer.train_epoch(network, data, range_of(10, 180), kSeed, 1, 1e-2);
    confusion[give] = trainer.evaluate(network, data, range_of(3, 90)).confusion;
    EXPECT_EQ(data.frames_read() - before, give ? 0 : 170 + 87);
    // Frames that were not given come from the set.
    trainer.train_epoch(network, data, range_of(150, 200), kSeed, 2, 1e-2);
    EXPECT_EQ(data.frames_read() - before, give ? 50 : 170 + 87 + 50);
    values[give] = values_of(network);
  }
  EXPECT_EQ(values[0], values[1]);
  EXPECT_EQ(confusion[0], confusion[1]);
}

TEST_F(CudaEngineTest, TakesNoFramesThatDoNotFit) {
  // More than any device has, without that memory here.
  class Huge final : public Dataset {
   public:
    int64_t size() const override { return 4; }
    int length() const override { return 1 << 28; }
    const std::vector<std::string>& class_names() const override { return names_; }
    uint8_t label(int64_t) const override { return 0; }
    int16_t snr_db(int64_t) const override { return 0; }
    void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
      batch.count = std::ssize(frames);
      batch.codes.assign(1 << 20, 0);
    }

   private:
    std::vector<std::string> names_;
  };
  const Huge data;
  const std::vector<int64_t> frames(1 << 20, 0);  // of a MB each
  Trainer trainer(trainer_options(), make_cuda_engine());
  EXPECT_FALSE(trainer.give_frames(data, frames));
  EXPECT_FALSE(Trainer(trainer_options()).give_frames(data, frames)) << "the CPU has none";
  const TinyDataset taught(8, true);
  EXPECT_FALSE(trainer.give_frames(taught, range_of(0, 8))) << "the teacher speaks on the host";
}

TEST_F(CudaEngineTest, EvaluatesAsTheCpuDoes) {
  Trainer cpu(trainer_options()), cuda(trainer_options(), make_cuda_engine());
  const Network network = train(cpu);
  const TinyDataset data(210);
  const Evaluation expected = cpu.evaluate(network, data, range_of(3, 204));
  const Evaluation actual = cuda.evaluate(network, data, range_of(3, 204));
  EXPECT_EQ(actual.frames, expected.frames);
  EXPECT_EQ(actual.correct, expected.correct);
  EXPECT_EQ(actual.confusion, expected.confusion);
  EXPECT_NEAR(actual.loss, expected.loss, 1e-6 * expected.loss);
  ASSERT_EQ(actual.by_snr.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(actual.by_snr[i].snr_db, expected.by_snr[i].snr_db);
    EXPECT_EQ(actual.by_snr[i].frames, expected.by_snr[i].frames);
    EXPECT_EQ(actual.by_snr[i].correct, expected.by_snr[i].correct);
  }
}

TEST_F(CudaEngineTest, TheTimedPlanNamesEveryLayer) {
  TrainerOptions options = trainer_options();
  Trainer cpu(options);
  options.sparse_threshold.reset();
  Trainer cuda(options, make_cuda_engine());
  Network network(tiny_config(), kSeed);
  Random random(kSeed, "mask");
  for (Layer& layer : network.layers()) {
    for (uint8_t& alive : layer.weight.mask) alive = random.below(4) == 0 ? 1 : 0;
  }
  network.apply_masks();
  const std::vector<LayerPlan>& expected = cpu.plan(network);
  const std::vector<LayerPlan>& actual = cuda.plan(network);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(actual[i].layer, expected[i].layer);
    EXPECT_EQ(actual[i].density, expected[i].density);
    EXPECT_TRUE(actual[i].refused.empty()) << actual[i].refused[0];
  }
}

TEST_F(CudaEngineTest, DivergenceIsTold) {
  const TinyDataset data(200);
  Trainer cuda(trainer_options(), make_cuda_engine());
  Network network(tiny_config(), kSeed);
  network.layers()[1].gamma.value.floats()[2] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(cuda.train_epoch(network, data, range_of(0, 120), kSeed, 1, 1e-2), DivergedError);
  network = Network(tiny_config(), kSeed);
  network.layers()[1].weight.value.floats()[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(cuda.train_epoch(network, data, range_of(0, 120), kSeed, 1, 1e-2), DivergedError);
  // A step so large that weights overflow: the loss before it is finite, the weights are not.
  network = Network(tiny_config(), kSeed);
  EXPECT_THROW(cuda.train_epoch(network, data, range_of(0, 40), kSeed, 1, 1e39), DivergedError);
}

TEST_F(CudaEngineTest, AnExceptionOfTheCallersLeavesTheEngineUsable) {
  const TinyDataset data(200);
  Trainer cuda(trainer_options(), make_cuda_engine());
  Network network(tiny_config(), kSeed);
  struct Stop {};
  EXPECT_THROW(cuda.train_epoch(network, data, range_of(0, 193), kSeed, 1, 1e-2,
                                [](const Progress&) { throw Stop(); }),
               Stop);
  EXPECT_EQ(values_of(train(cuda)), values_of(train(CudaEngineOptions{})));
}

TEST_F(CudaEngineTest, PeakMemoryIsThatOfTheLargestBatch) {
  Trainer cuda(trainer_options(), make_cuda_engine());
  train(cuda);
  const size_t before = cuda.engine().peak_device_bytes().value();
  EXPECT_GT(before, 0U);
  train(cuda);
  EXPECT_EQ(cuda.engine().peak_device_bytes().value(), before) << "memory is used again";
}

// Graphs hold the libraries' work, too.
TEST_F(CudaEngineTest, GraphsChangeNothingForKernelsOfLibraries) {
  const TinyDataset data(200);
  for (const Kernel kernel : {Kernel::kCublas, Kernel::kCusparse}) {
    SCOPED_TRACE(kernel_name(kernel));
    std::vector<std::vector<float>> results;
    for (const bool graphs : {false, true}) {
      Trainer cuda(trainer_options(), make_cuda_engine({.graphs = graphs}));
      Network network(tiny_config(), kSeed);
      network.steps = 10;  // no statistics, so that all steps are alike
      std::vector<LayerPlan> plan;
      for (const Layer& layer : network.layers())
        plan.push_back({PassPlan::all(kernel), layer.name, 1, {}});
      cuda.set_plan(plan);
      cuda.train_epoch(network, data, range_of(0, 160), kSeed, 1, 1e-2);
      results.push_back(values_of(network));
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

// A threshold that came with its layer is not taken from the batch, others are, from the first.
TEST_F(CudaEngineTest, ThresholdsAreCollectedWhereTheirLayersSaySo) {
  const TinyDataset data(80);
  NetworkConfig config = all_operations(kBits, kLength, kClasses);
  for (size_t i = 0; i < config.layers.size(); ++i) config.layers[i].collects = i % 2 != 0;
  Network network(config, kSeed);
  const auto given = [](size_t i) { return 0.5F + 0.1F * static_cast<float>(i); };
  for (size_t i = 0; i < config.layers.size(); ++i)
    network.layers()[i].threshold.value.floats()[0] = given(i);
  Trainer cuda(trainer_options(), make_cuda_engine());
  cuda.plan(network);
  cuda.train_epoch(network, data, range_of(0, 2 * kBatch), kSeed, 1, 0.0);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const float threshold = network.layers()[i].threshold.value.floats()[0];
    EXPECT_EQ(threshold != given(i), config.layers[i].collects) << i;
  }
}

// Padding that makes more positions, and pools and strides that leave some over: planned by timing,
// trained with graphs and without, and compacted.
TEST_F(CudaEngineTest, AnyLengthsArePlannedTrainedAndPruned) {
  const TinyDataset data(100);
  NetworkConfig config = tiny_config();
  config.layers[0].form.padding_after = 2;  // 17 positions, 8 windows
  config.layers[1].form.kernel = 4;
  config.layers[1].form.stride = 3;  // of 8 positions the first 7
  config.layers[1].form.padding = config.layers[1].form.padding_after = 0;
  for (const bool timed : {false, true}) {
    TrainerOptions options = trainer_options();
    if (timed) options.sparse_threshold.reset();
    std::vector<std::vector<float>> results;
    Network network(config, kSeed);
    std::vector<LayerPlan> plan;
    for (const bool graphs : {false, true}) {
      network = Network(config, kSeed);
      Trainer cuda(options, make_cuda_engine({.graphs = graphs}));
      if (plan.empty()) {
        plan = cuda.plan(network);
      } else {
        cuda.set_plan(plan);
      }
      cuda.train_epoch(network, data, range_of(0, 90), kSeed, 1, 1e-2);
      results.push_back(values_of(network));
    }
    EXPECT_EQ(results[0], results[1]);

    // Channels that are always 0. One stays where the largest weight reads it, which sets a scale.
    Layer& layer = network.layers()[0];
    const size_t row = layer.weight.mask.size() / static_cast<size_t>(layer.out_channels);
    std::fill_n(layer.weight.mask.begin() + static_cast<ptrdiff_t>(row), 2 * row, uint8_t{0});
    for (const size_t channel : {1U, 2U})
      layer.gamma.value.floats()[channel] = layer.beta.value.floats()[channel] = 0;
    network.apply_masks();
    Trainer cpu(trainer_options()), cuda(options, make_cuda_engine());
    const double whole = cuda.evaluate(network, data, range_of(3, 40)).loss;
    compact(network);
    EXPECT_LT(network.layers()[0].out_channels, 6);
    EXPECT_NEAR(cuda.evaluate(network, data, range_of(3, 40)).loss, whole, 1e-6);
    EXPECT_NEAR(cpu.evaluate(network, data, range_of(3, 40)).loss, whole, 1e-6);
  }
}

#ifdef FMP_SIMT
// The first step releases memory of gradients that its kernels still use, 9 floats for each of 1024
// lanes, while the second batch asks for 33,028 bytes to copy frames to: within an eighth of that.
// The host runtime reports a block that crosses from one stream to the other as a race.
TEST_F(CudaEngineTest, MemoryDoesNotCrossFromTheKernelsToTheCopies) {
  constexpr int kMany = 1000;
  const TinyDataset data(2 * kMany);
  TrainerOptions options = trainer_options();
  options.batch = kMany;
  options.threshold_statistic_steps = 0;
  Trainer cuda(options, make_cuda_engine({.cache_memory = true}));
  Network network(tiny_config(), kSeed);
  const EpochResult result =
      cuda.train_epoch(network, data, range_of(0, 2 * kMany), kSeed, 1, 1e-3);
  EXPECT_EQ(result.frames, 2 * kMany);
}

// What a library refuses is no candidate, and a run goes on without it.
TEST_F(CudaEngineTest, ARefusalOfALibraryIsNoCandidate) {
  struct Refusing {
    // NOLINTBEGIN(concurrency-mt-unsafe): one thread
    Refusing() { setenv("SIMT_REFUSE", "cusparseSpMM,cublasGemmStridedBatchedEx", 1); }
    ~Refusing() { unsetenv("SIMT_REFUSE"); }
    // NOLINTEND(concurrency-mt-unsafe)
  } refusing;
  TrainerOptions options = trainer_options();
  options.sparse_threshold.reset();
  Trainer cuda(options, make_cuda_engine());
  const TinyDataset data(200);
  Network network(tiny_config(), kSeed);
  for (const LayerPlan& layer : cuda.plan(network)) {
    for (const Kernel kernel : {layer.forward, layer.backward_data}) {
      EXPECT_TRUE(kernel == Kernel::kDense || kernel == Kernel::kSparse) << layer.layer;
    }
    EXPECT_NE(layer.backward_weight, Kernel::kCublas) << layer.layer;
    ASSERT_EQ(layer.refused.size(), 5U) << layer.layer;  // three of cuBLAS, two of cuSPARSE
    EXPECT_TRUE(layer.refused[0].starts_with("cublas forward: ")) << layer.refused[0];
    EXPECT_NE(layer.refused[4].find("CUSPARSE_STATUS_NOT_SUPPORTED"), std::string::npos)
        << layer.refused[4];
  }
  const EpochResult result = cuda.train_epoch(network, data, range_of(0, 120), kSeed, 1, 1e-2);
  EXPECT_EQ(result.frames, 120);
}

TEST_F(CudaEngineTest, RangesAreNamedAfterLayerPassAndPlan) {
  const TinyDataset data(200);
  Network network(tiny_config(), kSeed);
  Random random(kSeed, "mask");
  for (uint8_t& alive : network.layers()[1].weight.mask) alive = random.below(4) == 0 ? 1 : 0;
  network.apply_masks();
  const auto contains = [](const std::vector<std::string>& names, const std::string& name) {
    return std::ranges::find(names, name) != names.end();
  };
  simt::take_ranges();
  for (const bool graphs : {false, true}) {
    Trainer cuda(trainer_options(), make_cuda_engine({.graphs = graphs}));
    cuda.plan(network);
    cuda.train_epoch(network, data, range_of(0, 160), kSeed, 1, 1e-3);
    const std::vector<std::string> names = simt::take_ranges();  // all of them were closed
    EXPECT_TRUE(contains(names, "conv1 forward dense"));
    EXPECT_TRUE(contains(names, "conv2 forward sparse"));
    EXPECT_TRUE(contains(names, "conv2 backward data sparse weight sparse"));
    EXPECT_TRUE(contains(names, "output backward data dense weight dense"));
    EXPECT_TRUE(contains(names, "adam"));
    // Four steps: with graphs one as it is and one that is captured.
    EXPECT_EQ(std::ranges::count(names, "conv1 forward dense"), graphs ? 2 : 4);
    EXPECT_EQ(std::ranges::count(names, "train step (graph)"), graphs ? 3 : 0);
  }
}
#endif

// --- Whole runs ----------------------------------------------------------------------------------

Options run_options() {
  Options options;
  options.data = "tiny";
  options.bits = kBits;
  options.filters = {6, 5};
  options.dense = {9};
  options.accuracy = {0.97, true};
  options.p_methods = {"structured-l1", "unstructured-l1"};
  options.p = 0.3;
  options.p_threshold = {0.12};
  options.epochs = 3;
  options.patience = 2;
  options.learning_rate = 1e-2;
  options.batch = kBatch;
  options.seed = kSeed;
  options.threads = 1;
  options.sparse_threshold = 0.5;
  return options;
}

LoadedData tiny_data() {
  LoadedData data;
  data.dataset = std::make_unique<TinyDataset>(420);
  data.split = {range_of(0, 200), range_of(200, 320), range_of(320, 420)};
  return data;
}

struct RunResult {
  ControllerState state;
  std::vector<std::vector<uint8_t>> masks;  // of every layer of the best network, round by round
  std::optional<Network> best;
  FinalEvaluation evaluation;
};

// A run to its end. interrupted: saved after every epoch, and gone on with from the file by another
// engine.
RunResult run(const std::function<std::unique_ptr<Engine>()>& make_engine, bool interrupted,
              const Options& options) {
  const std::string file = testing::TempDir() + "fmp_cuda_engine_test.fmp";
  std::FILE* nowhere = std::fopen("/dev/null", "w");
  RunResult result;
  {
    Console console(nowhere);
    auto experiment = std::make_unique<FmpExperiment>(options, tiny_data(), console, make_engine());
    ControllerEvents events;
    events.round_done = [&](const RoundRecord& /*round*/) {
      for (const Layer& layer : experiment->current().layers())
        result.masks.push_back(layer.weight.mask);
    };
    events.stop = [&] { return interrupted; };
    while (!result.state.finished()) {
      FmpController(options, experiment->granularity(), *experiment, events).run(result.state);
      if (!interrupted || result.state.finished()) continue;
      save_checkpoint(file, {experiment->networks(), to_json(result.state)});
      Checkpoint checkpoint = load_checkpoint(file);
      result.state = controller_state_from_json(checkpoint.state);
      experiment = std::make_unique<FmpExperiment>(options, tiny_data(), console, make_engine());
      experiment->restore(std::move(checkpoint.networks),
                          result.state.open ? &*result.state.open : nullptr);
    }
    result.best = *experiment->best();
    result.evaluation = experiment->evaluate(*experiment->best(), "result");
  }
  std::remove(file.c_str());
  std::fclose(nowhere);
  return result;
}

RunResult run_on_cuda(bool interrupted, const Options& options) {
  return run([] { return make_cuda_engine(); }, interrupted, options);
}

// What was decided and what came of it.
nlohmann::json decisions(const RunResult& result) {
  nlohmann::json rounds = nlohmann::json::array();
  for (const RoundRecord& round : result.state.rounds) {
    rounds.push_back({round.method, round.p, to_string(round.outcome), round.weights_removed,
                      round.channels, round.network.nonzeros, plan_to_text(round.plan),
                      round.history.size()});
  }
  return rounds;
}

// On the validation frames, after each epoch of each round.
std::vector<double> accuracies(const RunResult& result) {
  std::vector<double> values;
  for (const RoundRecord& round : result.state.rounds) {
    for (const EpochRecord& epoch : round.history) {
      values.push_back(epoch.validation_accuracy.value());
    }
  }
  return values;
}

class CudaRunTest : public CudaEngineTest {};

// The run is short (some 60 steps) so that drift stays small: masks, channels, outcomes, epochs and
// the result on the test frames are the same, and after an epoch at most four of the 120 validation
// frames are classified otherwise.
TEST_F(CudaRunTest, MasksAndAccuraciesAreThoseOfTheCpu) {
  const RunResult expected = run([] { return make_cpu_engine(1); }, false, run_options());
  const RunResult actual = run_on_cuda(false, run_options());
  int accepted = 0, rejected = 0, sparse = 0;
  for (const RoundRecord& round : expected.state.rounds) {
    ++(round.accepted() ? accepted : rejected);
    for (const LayerPlan& layer : round.plan) sparse += layer.forward == Kernel::kSparse;
  }
  EXPECT_GE(accepted, 3) << decisions(expected).dump(1);
  EXPECT_GE(rejected, 1) << decisions(expected).dump(1);
  EXPECT_GE(sparse, 3) << decisions(expected).dump(1);
  compare_whole_runs([&] {
    EXPECT_EQ(decisions(actual).dump(1), decisions(expected).dump(1));
    const std::vector<double> on_cuda = accuracies(actual), on_cpu = accuracies(expected);
    ASSERT_EQ(on_cuda.size(), on_cpu.size());
    for (size_t i = 0; i < on_cpu.size(); ++i) EXPECT_NEAR(on_cuda[i], on_cpu[i], 4.5 / 120) << i;
    EXPECT_EQ(actual.masks, expected.masks);
    EXPECT_EQ(actual.evaluation.test.correct, expected.evaluation.test.correct);
    EXPECT_EQ(actual.evaluation.test.confusion, expected.evaluation.test.confusion);
  });
}

// Not on those that the device holds: augmented frames are read on the host.
TEST_F(CudaRunTest, TrainsOnAugmentedFrames) {
  Options options = run_options();
  options.accuracy.reset();
  options.until_cost = 100;  // the baseline alone
  options.epochs = 2;
  const auto losses = [](const RunResult& result) {
    std::vector<double> values;
    for (const EpochRecord& epoch : result.state.rounds.at(0).history)
      values.push_back(epoch.train_loss);
    return values;
  };
  const std::vector<double> unchanged =
      losses(run([] { return make_cpu_engine(1); }, false, options));
  options.augment = {"rotate", "shift", "swap"};
  const std::vector<double> expected =
      losses(run([] { return make_cpu_engine(1); }, false, options));
  const std::vector<double> actual = losses(run_on_cuda(false, options));
  ASSERT_EQ(expected.size(), 2U);
  ASSERT_EQ(actual.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-3);
    EXPECT_GT(std::abs(unchanged[i] - expected[i]), 3e-3);
  }
}

// By magnitude, with equal ones among the weights, and on top of what was pruned before.
TEST_F(CudaEngineTest, PrunesByMagnitudeAsTheCpuDoes) {
  const std::unique_ptr<Engine> engine = make_cuda_engine();
  const auto method = make_pruning_method("unstructured-l1");
  Network on_cpu(tiny_config(), kSeed);
  for (Layer& layer : on_cpu.layers()) {
    for (float& w : layer.weight.value.floats()) w = std::round(w * 50) / 50;
  }
  Network on_device = on_cpu;
  for (const double fraction : {0.3, 0.47, 0.9}) {
    const PruneResult expected = prune(on_cpu, *method, fraction, kSeed, 1);
    const PruneResult actual =
        prune(on_device, *method, fraction, kSeed, 1, engine->prune_smallest());
    EXPECT_EQ(actual.weights_after, expected.weights_after);
    EXPECT_LT(actual.weights_after, actual.weights_before);
    for (size_t i = 0; i < on_cpu.layers().size(); ++i)
      EXPECT_EQ(on_device.layers()[i].weight.mask, on_cpu.layers()[i].weight.mask) << i;
  }
}

// The methods choose by gradients, which come from the device and go through the file.
TEST_F(CudaRunTest, GoesOnFromAnyEpochAsIfItHadNeverStopped) {
  Options options = run_options();
  options.p_methods = {"cost-taylor", "fewer-bits"};
  options.p_methods_order = MethodsOrder::kAlternate;
  options.p = 0.5;
  options.feedback = false;
  options.epochs = 2;
  const RunResult whole = run_on_cuda(false, options), pieces = run_on_cuda(true, options);
  EXPECT_TRUE(std::ranges::any_of(whole.state.rounds, [](const RoundRecord& round) {
    return round.accepted() && round.bits_removed > 0;
  })) << decisions(whole).dump(1);
  EXPECT_EQ(decisions(pieces).dump(1), decisions(whole).dump(1));
  EXPECT_EQ(accuracies(pieces), accuracies(whole));
  EXPECT_EQ(values_of(*pieces.best), values_of(*whole.best));
  EXPECT_EQ(pieces.masks, whole.masks);
}

}  // namespace
}  // namespace fmp
