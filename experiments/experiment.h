// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "experiments/console.h"
#include "experiments/data_source.h"
#include "experiments/fmp_controller.h"
#include "experiments/options.h"
#include "framework/data/augmented_frames.h"
#include "framework/inference/teacher.h"
#include "framework/network/checkpoint.h"
#include "framework/network/network.h"
#include "framework/network/pruning.h"
#include "framework/training/engine.h"
#include "framework/training/trainer.h"

namespace fmp {

// A network at the end of a run.
struct FinalEvaluation {
  std::optional<Evaluation> validation;  // unset: there is no such split
  Evaluation test;
};

// The networks, the data and the trainer of a run: what the controller's decisions are carried out
// on. Shows progress on the console.
class FmpExperiment final : public FmpTask {
 public:
  // `console` must outlive the experiment, and so must `ranks`, those that run it together: each
  // with its part of the data. Null = this process alone.
  FmpExperiment(const Options& options, LoadedData data, Console& console,
                std::unique_ptr<Engine> engine, Communicator* ranks = nullptr);

  // FmpTask.
  PruneOutcome prune(const std::string& method, double p, int round) override;
  std::vector<LayerPlan> plan_baseline() override;
  std::optional<EvaluationRecord> evaluate_given() override;
  EpochRecord train_epoch(double learning_rate, int64_t epoch, const std::string& label) override;
  void keep() override;
  void remember_baseline() override;
  NetworkDescription describe_current() const override;
  NetworkDescription describe_best() const override;
  std::vector<int> channels() const override;

  // What each of options.p_methods removes.
  std::vector<Granularity> granularity() const;

  std::map<std::string, Network> networks() const;
  // Puts back what networks() gave, with the round that is open (null: none is).
  void restore(std::map<std::string, Network> networks, const RoundRecord* open);

  const Engine& engine() const { return trainer_.engine(); }
  // Whether the frames lie in the engine's own memory; with --augment, those of evaluations.
  bool frames_given() const { return frames_given_; }
  const Dataset& dataset() const { return *data_.dataset; }
  const Split& split() const { return data_.split; }
  const Network& current() const { return current_; }
  // The network that met the criterion last; null: no epoch was completed.
  const Network* best() const { return best_ ? &*best_ : nullptr; }
  const Network* baseline() const { return baseline_ ? &*baseline_ : best(); }

  FinalEvaluation evaluate(const Network& network, const std::string& label);

 private:
  // From now on training frames come with what this network says of them.
  void learn_from(const Network& teacher);
  void load_teacher();  // that of --distill FILE
  void give_frames();   // to the engine
  // What training reads, without a teacher and with.
  const Dataset& frames_to_learn() const {
    if (augmented_) return *augmented_;
    return *data_.dataset;
  }
  const Dataset& taught_frames() const { return taught_ ? *taught_ : frames_to_learn(); }
  NetworkDescription describe(const Network& network) const;
  EvaluationRecord evaluate_current(const std::string& label);  // for the criterion
  Evaluation evaluate_on(const Network& network, const std::vector<int64_t>& frames,
                         const std::string& label);

  const Options& options_;
  Communicator* ranks_;
  LoadedData data_;
  Console& console_;
  std::vector<std::unique_ptr<PruningMethod>> methods_;
  Trainer trainer_;
  bool frames_given_ = false;
  Network current_;
  std::optional<Network> best_, baseline_;
  std::optional<AugmentedFrames> augmented_;  // unset: without --augment
  std::optional<Network> teacher_;            // of --distill FILE
  std::unique_ptr<TaughtFrames> taught_;      // null: there is no teacher, or not yet
  std::vector<int64_t> weights_original_;     // of every layer
};

}  // namespace fmp
