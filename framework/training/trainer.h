// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/network/network.h"
#include "framework/training/engine.h"
#include "kernels/cpu/ops.h"

namespace fmp {

struct TrainerOptions {
  int batch = 1024;
  int64_t epoch_frames = 0;  // most frames of an epoch; 0 = all
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // Adam's, as PyTorch's defaults
  int threads = 0;                                    // of the CPU; 0 = all cores
  // Below this share of nonzero weights a layer's pass runs on the sparse kernel; unset = measured
  // after each prune ("auto").
  std::optional<double> sparse_threshold;
  // Training steps in which QuantReLU thresholds follow the batches' percentiles.
  int64_t threshold_statistic_steps = kThresholdStatisticSteps;
  // Batches after each epoch in which nothing but batch-norm's running statistics follow (see
  // train_epoch()); 0 = none, as PyTorch's training does.
  int64_t batch_norm_steps = 0;
  LossOptions loss;                           // of training
  ElementType gradients = ElementType::kF32;  // see StepOptions
  // The processes that train together, each of which makes the same calls; null = this one alone.
  // Must outlive the trainer.
  Communicator* ranks = nullptr;
};

struct Progress {
  int64_t frames_done = 0, frames_total = 0;
  double loss = 0;  // mean over the frames done so far
  double frames_per_second = 0;
};
using ProgressCallback = std::function<void(const Progress&)>;

struct EpochResult {
  double loss = 0;      // mean over the epoch, training mode
  double accuracy = 0;  // training mode
  double seconds = 0;
  int64_t frames = 0;
};

struct Evaluation {
  struct Snr {
    int snr_db = 0;
    int64_t frames = 0, correct = 0;
  };
  int64_t frames = 0, correct = 0;
  double loss = 0;
  double seconds = 0;
  std::vector<Snr> by_snr;         // ascending
  std::vector<int64_t> confusion;  // [true class][predicted class]
  double accuracy() const {
    return frames > 0 ? static_cast<double>(correct) / static_cast<double>(frames) : 0.0;
  }
};

// Trains and evaluates a Network on an engine. Results depend on the network, the data, the
// options, the seed and the kind of engine, never on the number of threads or ranks. The network is
// the caller's: it may be replaced, pruned, compacted between calls.
class Trainer {
 public:
  explicit Trainer(const TrainerOptions& options);  // on the CPU
  Trainer(const TrainerOptions& options, std::unique_ptr<Engine> engine);
  ~Trainer();

  // Lets the engine have these frames, if it can take them: from then on passes over frames among
  // them read labels and SNRs alone from `data`, which must outlive the trainer and give the same
  // frames whenever it is asked. Not with ranks. Results do not depend on it. Returns whether.
  bool give_frames(const Dataset& data, std::span<const int64_t> frames);

  // One epoch over `frames` in the order of epoch_order(), one Adam step a batch. Running
  // statistics lag behind weights that move, and few bits move them a step of the quantizer at a
  // time. So batch_norm_steps batches, the epoch's first, run once more through the network that
  // the epoch left (Nagel et al., Overcoming Oscillations in Quantization-Aware Training, 2022,
  // arxiv.org/abs/2203.11086).
  // Throws DivergedError when the loss is no longer finite. Ranks need to hold their part of the
  // frames alone (see first_held()), and know the labels of all.
  EpochResult train_epoch(Network& network, const Dataset& data, const std::vector<int64_t>& frames,
                          uint64_t seed, uint64_t epoch, double learning_rate,
                          const ProgressCallback& progress = {});

  Evaluation evaluate(const Network& network, const Dataset& data,
                      const std::vector<int64_t>& frames, const ProgressCallback& progress = {});

  // One step of the above: forward, backward, Adam. Leaves the gradients in the parameters. Returns
  // the batch's loss (mean) and how many frames it got right.
  struct StepResult {
    double loss = 0;
    int64_t correct = 0;
  };
  StepResult train_step(Network& network, const FrameBatch& batch, double learning_rate);

  // Logits in evaluation mode, [count][classes].
  std::vector<float> logits(const Network& network, const FrameBatch& batch);

  // Decides dense or sparse for every layer and pass of this network: by timing both on the real
  // shapes, or by the fixed threshold. The decision holds until the next call; before the first one
  // everything is dense.
  const std::vector<LayerPlan>& plan(const Network& network);
  // A decision made elsewhere, e.g. by the run that is being resumed.
  void set_plan(std::vector<LayerPlan> plan);

  PruneSmallest prune_smallest() { return engine_->prune_smallest(); }

  // Adds what the kernels spend their time on to `profile` from now on; null = stop. CPU only.
  void set_profile(cpu::Profile* profile) { engine_->set_profile(profile); }
  const Engine& engine() const { return *engine_; }

 private:
  StepOptions step_options(double learning_rate) const;
  // engine.train() with divergence told from other errors.
  void train(Network& network, const StepOptions& step, const BatchSource& batches,
             const ResultSink& results);
  // The same on these frames of `data`, in their order.
  void train(Network& network, const StepOptions& step, const Dataset& data,
             std::span<const int64_t> frames, const ResultSink& results);
  // Batch-norm's running statistics of these frames.
  void settle_batch_norm(Network& network, const Dataset& data, std::span<const int64_t> frames);
  void check_agreement(const Network& network) const;
  // Where a pass over these frames of `data` reads from.
  const Dataset& source(const Dataset& data, std::span<const int64_t> frames) const;

  TrainerOptions options_;
  std::unique_ptr<Engine> engine_;
  std::vector<LayerPlan> plan_;
  class GivenFrames;
  std::unique_ptr<GivenFrames> given_;  // null: none
};

}  // namespace fmp
