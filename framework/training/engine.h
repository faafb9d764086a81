// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/network/network.h"
#include "framework/network/pruning.h"
#include "kernels/communicator.h"
#include "kernels/cpu/ops.h"
#include "kernels/layer.h"

namespace fmp {

// How a layer's three passes run, as it was decided.
struct LayerPlan : PassPlan {
  std::string layer;
  double density = 0;  // nonzero weight codes / weights
  // Kernels that were no candidates, as their library refused them: kernel, pass and its words.
  std::vector<std::string> refused;
};

// What a batch gave. The spans are valid until the callback that got them returns.
struct BatchResult {
  double loss_sum = 0;  // of its frames; in training that of LossOptions, else the cross-entropy
  int64_t correct = 0;
  std::span<const uint8_t> labels;
  std::span<const int16_t> snr_db;
  std::span<const uint8_t> predicted;  // class of each frame; empty when training

  int64_t frames() const { return static_cast<int64_t>(labels.size()); }
};

// Where batches come from: the next one, valid until the next call, or null at the end.
using BatchSource = std::function<const FrameBatch*()>;
// Gets the results in the order of the batches, some batches later where the engine runs ahead of
// the host. What it throws ends the pass.
using ResultSink = std::function<void(const BatchResult&)>;

struct StepOptions {
  AdamOptions adam;
  // Training steps in which QuantReLU thresholds follow the batches' percentiles.
  int64_t threshold_statistic_steps = kThresholdStatisticSteps;
  LossOptions loss;
  // Of the gradients that are kept between layers: kF32, or on the CPU kBF16.
  ElementType gradients = ElementType::kF32;
  // False: the forward pass alone, in which running statistics follow the batches.
  bool backward = true;
};

// Where networks are trained and evaluated: the processor or a CUDA device. A pass takes a network
// and a plan for its layers (those that the plan does not name run dense), keeps what it needs of
// them for as long as the pass lasts, and leaves what it changed in the network at its end.
class Engine {
 public:
  virtual ~Engine() = default;

  // What it computes on, e.g. "CPU, AVX3, 2 threads".
  virtual std::string description() const = 0;

  // Forward, backward and an Adam step (see StepOptions::backward) for every batch; every batch has
  // at least two frames. Leaves parameters with gradients and moments, running statistics and step
  // counts in the network; after an exception they are unspecified. Throws std::domain_error when a
  // parameter is not finite.
  virtual void train(Network& network, std::span<const LayerPlan> plan, const StepOptions& options,
                     const BatchSource& batches, const ResultSink& results) = 0;

  // In evaluation mode.
  virtual void evaluate(const Network& network, std::span<const LayerPlan> plan,
                        const BatchSource& batches, const ResultSink& results) = 0;
  // Logits in evaluation mode, [count][classes].
  virtual std::vector<float> logits(const Network& network, std::span<const LayerPlan> plan,
                                    const FrameBatch& batch) = 0;

  // Decides dense or sparse for each pass of a layer by timing both on its real shapes. batch:
  // frames of a step.
  virtual LayerPlan plan_by_timing(const Layer& layer, int batch) = 0;

  // Copies these frames of a set to memory of its own, where it has such memory and enough of it,
  // in place of what it took before. Batches may then say which of them they want, 0 = frames[0],
  // instead of bringing frames (FrameBatch::places). Returns whether it took them.
  virtual bool take_frames(const Dataset& /*data*/, std::span<const int64_t> /*frames*/) {
    return false;
  }
  // How to prune by magnitude where it computes; empty: on the host.
  virtual PruneSmallest prune_smallest() { return {}; }
  // How ranks that train together share batches.
  virtual ShareUnits share_units() const { return {}; }
  // Kernels, copies and memsets of the graph that the last steps of the last train() were launched
  // as; 0: they were not. Unset on the CPU.
  virtual std::optional<size_t> graph_nodes() const { return std::nullopt; }
  // Most device memory that was held so far; unset on the CPU.
  virtual std::optional<size_t> peak_device_bytes() const { return std::nullopt; }
  // Adds what the CPU's kernels spend their time on to `profile` from now on; null = stop.
  virtual void set_profile(cpu::Profile* /*profile*/) {}
};

// threads: 0 = all cores; results do not depend on it. ranks: null, or the processes that train
// together; must outlive the engine. train() then takes this rank's share of the frames of every
// batch (see BatchShare) with the labels, SNRs and soft targets of all, and returns the results of
// all. Everything else is this rank's own.
std::unique_ptr<Engine> make_cpu_engine(int threads, Communicator* ranks = nullptr);

}  // namespace fmp
