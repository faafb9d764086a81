// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experiments/lr_schedule.h"
#include "experiments/options.h"
#include "experiments/round_record.h"
#include "framework/error.h"
#include "framework/network/pruning.h"

// Feedback Magnitude Pruning, without any network in it.
//
//   train the baseline until the criterion holds; a given network that meets it is not trained
//   for each method:
//     repeat: prune the fraction p of what is left of the best network, retrain
//       the criterion holds after an epoch: this network is the best one now, prune it again
//       it does not within the epochs and the patience: back to the best network, p = p / n
//     until p is below the method's floor
//
// With the order "alternate" the methods take turns, a step each, as long as they are not below
// their floors; each keeps a p of its own.
//
// With --until-cost the run ends as soon as the best network costs at most that. If it is the only
// goal, there is no criterion: every round trains to its end and the best epoch's network is taken.
//
// "Back to the best network" means all of it: weights, masks, batch-norm statistics and quantizers.
// Every round starts with a fresh Adam and the initial learning rate: the moments describe the
// gradient at another point, of weights that may be gone, and the rate has decayed for a network
// that had settled.
// Every round so runs through the learning rates of the baseline again, which is known as learning
// rate rewinding (Renda, Frankle, Carbin: "Comparing rewinding and fine-tuning in neural network
// pruning", 2020).
namespace fmp {

// What a pruning step did.
struct PruneOutcome {
  int64_t weights_removed = 0;    // by the method
  int64_t weights_compacted = 0;  // more, that became useless with removed channels
  int bits_removed = 0;           // of weights and activations, over all layers
  std::vector<int> channels;
  std::vector<LayerPlan> plan;
};

// What the controller has others do to networks. Two of them: the current one, which is pruned and
// trained, and the best one, which has met the criterion.
class FmpTask {
 public:
  virtual ~FmpTask() = default;

  // Replaces the current network by the best one with the fraction p of what is left of it pruned,
  // compacted if the method removes channels, and a fresh optimizer. `round` is distinct for every
  // call. Says what the current network is then.
  virtual PruneOutcome prune(const std::string& method, double p, int round) = 0;
  // The first plan: how the layers of the baseline run.
  virtual std::vector<LayerPlan> plan_baseline() = 0;
  // What the baseline reaches before any training; unset: it has random weights, or ranges that are
  // still to be found.
  virtual std::optional<EvaluationRecord> evaluate_given() = 0;
  // Trains the current network for one epoch and evaluates it. `epoch` is distinct for every call
  // of a run; `label` says for people which one it is ("round 3 epoch 2/50"). Fills everything but
  // `epoch` and `learning_rate`. Throws DivergedError, which costs the round, not the run.
  virtual EpochRecord train_epoch(double learning_rate, int64_t epoch,
                                  const std::string& label) = 0;
  // The current network becomes the best one.
  virtual void keep() = 0;
  // The best network is the baseline.
  virtual void remember_baseline() = 0;
  // Size and cost of the current or the best network.
  virtual NetworkDescription describe_current() const = 0;
  virtual NetworkDescription describe_best() const = 0;
  // Channels of the hidden layers of the current network.
  virtual std::vector<int> channels() const = 0;
};

// Where the controller is. With the two networks it is all that a run needs to go on.
struct ControllerState {
  enum class Phase : uint8_t { kBaseline, kPruning, kDone, kBaselineFailed };

  Phase phase = Phase::kBaseline;
  std::optional<double> criterion;
  size_t method = 0;              // index of the method that is tried
  std::vector<double> fractions;  // the present p of each method; 0: it is done
  double eq5_compression = 1;
  int64_t epochs_trained = 0;       // in all rounds
  std::vector<RoundRecord> rounds;  // finished
  std::optional<RoundRecord> open;  // in progress
  ReduceOnPlateau schedule;         // of the open round
  EarlyStop early_stop;

  bool finished() const { return phase == Phase::kDone || phase == Phase::kBaselineFailed; }
  const RoundRecord* last_accepted() const;  // null: not even the baseline
};

nlohmann::json to_json(const ControllerState& state);
ControllerState controller_state_from_json(const nlohmann::json& json);

// Called as things happen; all may be left empty.
struct ControllerEvents {
  std::function<void(const RoundRecord&)> round_begun;
  std::function<void(const RoundRecord&)> epoch_done;  // its last epoch is history.back()
  std::function<void(const RoundRecord&)> round_done;
  // After every epoch, or a baseline that needed none, when state and networks belong together: the
  // moment to save both.
  std::function<void(const ControllerState&)> checkpoint;
  // Asked after every epoch: true ends run() early.
  std::function<bool()> stop;
};

class FmpController {
 public:
  // `granularity[i]`: what options.p_methods[i] removes. A method that removes more than single
  // weights starts at p / n (without feedback at p) and has the lower default floor.
  // Throws UsageError when a method would start below its floor.
  FmpController(const Options& options, std::vector<Granularity> granularity, FmpTask& task,
                ControllerEvents events = {});

  // Goes on from `state` until it is finished or events.stop() says so.
  void run(ControllerState& state);

  double first_fraction(size_t method) const;
  double floor(size_t method) const;

 private:
  bool begin_round(ControllerState& state);
  bool accept_given(ControllerState& state);
  double learning_rate(const ControllerState& state) const;  // of the next epoch
  void train_one_epoch(ControllerState& state);
  void judge_epoch(ControllerState& state);
  void finish_round(ControllerState& state, Outcome outcome, std::string message);
  void settle_baseline(ControllerState& state);
  void settle_pruning(ControllerState& state);
  void next_method(ControllerState& state) const;
  bool below_floor(double fraction, size_t method) const;
  NetworkDescription describe(const RoundRecord& round) const;

  const Options& options_;
  std::vector<Granularity> granularity_;
  FmpTask& task_;
  ControllerEvents events_;
};

}  // namespace fmp
