// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experiments/console.h"
#include "experiments/data_source.h"
#include "experiments/fmp_controller.h"
#include "experiments/options.h"
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
  // `console` must outlive the experiment.
  FmpExperiment(const Options& options, LoadedData data, Console& console,
                std::unique_ptr<Engine> engine);

  // FmpTask.
  PruneOutcome prune(const std::string& method, double p, int round) override;
  nlohmann::json plan_baseline() override;
  EpochRecord train_epoch(double learning_rate, int64_t epoch) override;
  void keep() override;
  nlohmann::json describe_current() const override;
  nlohmann::json describe_best() const override;
  std::vector<int> channels() const override;

  // Which of options.p_methods remove channels.
  std::vector<bool> structured() const;
  // What is shown while the next epochs train: "round 3 epoch 2/50".
  void set_progress_label(std::string label) { label_ = std::move(label); }
  // The best network is the baseline.
  void remember_baseline() { baseline_ = best_; }

  std::map<std::string, Network> networks() const;
  // Puts back what networks() gave, with the plan of the round that is open (null: none is).
  void restore(std::map<std::string, Network> networks, const nlohmann::json& plan);

  const Engine& engine() const { return trainer_.engine(); }
  const Dataset& dataset() const { return *data_.dataset; }
  const Split& split() const { return data_.split; }
  const Network& current() const { return current_; }
  // The network that met the criterion last; null: no epoch was completed.
  const Network* best() const { return best_ ? &*best_ : nullptr; }
  const Network* baseline() const { return baseline_ ? &*baseline_ : best(); }

  FinalEvaluation evaluate(const Network& network, const std::string& label);

 private:
  nlohmann::json describe(const Network& network) const;
  nlohmann::json plan_current();
  Evaluation evaluate_on(const Network& network, const std::vector<int64_t>& frames,
                         const std::string& label);

  const Options& options_;
  LoadedData data_;
  Console& console_;
  std::vector<std::unique_ptr<PruningMethod>> methods_;
  Trainer trainer_;
  Network current_;
  std::optional<Network> best_, baseline_;
  std::vector<int64_t> weights_original_;  // of every layer
  std::string label_;
};

}  // namespace fmp
