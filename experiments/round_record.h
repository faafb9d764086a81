// SPDX-License-Identifier: MIT
// What a run records: epochs, rounds and the networks that they end with. rounds.jsonl, rounds.csv,
// summary.json and the checkpoint have these records in one form each, which is written here.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experiments/options.h"
#include "framework/training/engine.h"

namespace fmp {

// What a network reaches. Accuracies are fractions of the frames of that split.
struct EvaluationRecord {
  std::optional<double> validation_loss, validation_accuracy;  // unset: there is no such split
  std::optional<double> test_accuracy;  // set when the criterion is held on the test split
  double criterion_accuracy = 0;        // the one of the two that decides
  double evaluation_seconds = 0, evaluation_frames_per_second = 0;
};

// What one epoch of training gave.
struct EpochRecord : EvaluationRecord {
  int epoch = 0;  // 1.. within its round
  double learning_rate = 0;
  double train_loss = 0, train_accuracy = 0;  // in training mode
  double train_seconds = 0;
  double frames_per_second = 0;
};

// Size and cost of a layer. Counts of weights: see LayerCost.
struct LayerDescription {
  std::string name, kind;  // kind: "conv", "dense", "output"
  int in_channels = 0, out_channels = 0, kernel = 1, stride = 1, groups = 1;
  int64_t positions = 0;
  int weight_bits = 0, input_bits = 0;
  bool signed_inputs = false;  // codes below 0 are among them, as always in the first layer
  int64_t weights = 0, weights_original = 0, weights_alive = 0, nonzeros = 0;
  int64_t macs = 0, bit_ops = 0, bit_mem = 0;
};

// Size and cost of a network. weights_original: before anything was removed.
struct NetworkDescription {
  int64_t weights = 0, weights_original = 0, weights_alive = 0, nonzeros = 0;
  int64_t macs = 0, bit_ops = 0, bit_mem = 0;
  double cost = 0;
  double input_scale = 0;  // value of an input code of 1; 1 for float inputs
  std::vector<LayerDescription> layers;

  double true_compression() const;  // weights_original / nonzeros; 0 without nonzeros
};

enum class Outcome : uint8_t { kAccepted, kRejected, kDiverged };
const char* to_string(Outcome outcome);

// One round: the baseline's training (round 0) or one pruning step with its retraining.
struct RoundRecord {
  int round = 0;
  std::string method;  // empty: the baseline
  double p = 0;
  Outcome outcome = Outcome::kRejected;
  std::string message;              // why it was not accepted
  std::optional<double> criterion;  // unset while a relative one is not known, or there is none
  CriterionSplit criterion_split = CriterionSplit::kValidation;
  int best_epoch = 0;          // the epoch with the best criterion accuracy; 0: none, or as given
  double eq5_compression = 1;  // product of 1 / (1 - p) over all pruning steps tried so far
  int64_t weights_removed = 0, weights_compacted = 0;
  int bits_removed = 0;  // of weights and activations, over all layers; the network tells which
  std::vector<int> channels;    // of every hidden layer after compaction
  NetworkDescription network;   // at the end of the round; of a diverged one at its beginning
  std::vector<LayerPlan> plan;  // how its layers ran: chosen by timing, so not reproducible
  // The network of --init where it meets the criterion untrained: then there is no history.
  std::optional<EvaluationRecord> as_given;
  std::vector<EpochRecord> history;

  bool is_baseline() const { return round == 0; }
  bool accepted() const { return outcome == Outcome::kAccepted; }
  // Whether every epoch that is better than those before is kept as the best network, not only one
  // that meets the criterion: what a baseline that fails, or a relative goal, refers to, and what a
  // round without a criterion ends with.
  bool keeps_best() const { return is_baseline() || !criterion; }
  const EvaluationRecord* best() const;     // null: no epoch completed
  const EpochRecord* best_trained() const;  // null also where it is the network as given
  double seconds() const;
  // Medians over the epochs; unset: none completed.
  std::optional<double> seconds_per_epoch() const, frames_per_second() const,
      evaluation_frames_per_second() const;
};

// One line of rounds.jsonl, which is also a round of the checkpoint. from_json throws Error or
// nlohmann::json::exception when it is something else.
nlohmann::json to_json(const RoundRecord& round);
RoundRecord round_from_json(const nlohmann::json& json);

// The network of a round with its Eq. 5 compression, as it stands in a round and in summary.json.
nlohmann::json network_to_json(const RoundRecord& round);

// rounds.csv with its header.
std::string rounds_to_csv(const std::vector<RoundRecord>& rounds);

// A plan as rounds.csv and the console show it: "conv1=sds ...", d/s for dense/sparse in the
// forward, the backward-data and the backward-weight pass; D, S: cuBLAS and cuSPARSE.
std::string plan_to_text(const std::vector<LayerPlan>& plan);

}  // namespace fmp
