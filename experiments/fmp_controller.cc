// SPDX-License-Identifier: MIT
#include "experiments/fmp_controller.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "experiments/json_optional.h"

namespace fmp {
namespace {

// Floors below which a smaller fraction is not worth its run time.
constexpr double kDefaultFloor = 0.05;
constexpr double kDefaultStructuredFloor = 0.01;
// p is divided repeatedly: 0.2 / 2 / 2 must not be "below" a floor of 0.05 by a rounding error.
constexpr double kFloorTolerance = 1e-9;

std::string shortfall(const RoundRecord& round, const char* end) {
  const EvaluationRecord* best = round.best();
  return fmt::format("reached {:.5f} of {:.5f} in {} epochs{}", best ? best->criterion_accuracy : 0,
                     round.criterion.value_or(0), round.history.size(), end);
}

}  // namespace

const RoundRecord* ControllerState::last_accepted() const {
  const auto found = std::find_if(rounds.rbegin(), rounds.rend(),
                                  [](const RoundRecord& round) { return round.accepted(); });
  return found == rounds.rend() ? nullptr : &*found;
}

nlohmann::json to_json(const ControllerState& state) {
  nlohmann::json rounds = nlohmann::json::array();
  for (const RoundRecord& round : state.rounds) rounds.push_back(to_json(round));
  return {{"phase", static_cast<int>(state.phase)},
          {"criterion", json_or_null(state.criterion)},
          {"method", state.method},
          {"fractions", state.fractions},
          {"eq5_compression", state.eq5_compression},
          {"epochs_trained", state.epochs_trained},
          {"rounds", std::move(rounds)},
          {"open", state.open ? to_json(*state.open) : nlohmann::json(nullptr)},
          {"schedule", state.schedule.to_json()},
          {"early_stop", state.early_stop.to_json()}};
}

ControllerState controller_state_from_json(const nlohmann::json& json) {
  ControllerState state;
  state.phase = static_cast<ControllerState::Phase>(json.at("phase").get<int>());
  state.criterion = optional_from<double>(json.at("criterion"));
  state.method = json.at("method");
  state.fractions = json.at("fractions").get<std::vector<double>>();
  state.eq5_compression = json.at("eq5_compression");
  state.epochs_trained = json.at("epochs_trained");
  for (const nlohmann::json& round : json.at("rounds"))
    state.rounds.push_back(round_from_json(round));
  if (!json.at("open").is_null()) state.open = round_from_json(json.at("open"));
  state.schedule = ReduceOnPlateau::from_json(json.at("schedule"));
  state.early_stop = EarlyStop::from_json(json.at("early_stop"));
  return state;
}

FmpController::FmpController(const Options& options, std::vector<Granularity> granularity,
                             FmpTask& task, ControllerEvents events)
    : options_(options),
      granularity_(std::move(granularity)),
      task_(task),
      events_(std::move(events)) {
  for (size_t method = 0; method < options.p_methods.size() && options.feedback; ++method) {
    if (below_floor(first_fraction(method), method))
      throw UsageError(
          fmt::format("--p: {} would start with the fraction {}, below its --p-threshold {}",
                      options.p_methods[method], first_fraction(method), floor(method)));
  }
}

double FmpController::first_fraction(size_t method) const {
  const bool small = granularity_.at(method) != Granularity::kWeights && options_.feedback;
  return small ? options_.p / options_.n : options_.p;
}

double FmpController::floor(size_t method) const {
  const std::vector<double>& given = options_.p_threshold;
  if (given.empty()) {
    return granularity_.at(method) == Granularity::kWeights ? kDefaultFloor
                                                            : kDefaultStructuredFloor;
  }
  return given.size() == 1 ? given[0] : given.at(method);
}

bool FmpController::below_floor(double fraction, size_t method) const {
  return fraction < floor(method) * (1 - kFloorTolerance);
}

void FmpController::run(ControllerState& state) {
  while (!state.finished()) {
    if (!state.open && !begin_round(state)) continue;
    if (!accept_given(state)) train_one_epoch(state);
    if (events_.checkpoint) events_.checkpoint(state);
    if (events_.stop && events_.stop()) return;
  }
}

// False: there was nothing to train, and state says what comes next.
bool FmpController::begin_round(ControllerState& state) {
  RoundRecord round;
  round.round = static_cast<int>(state.rounds.size());
  if (state.phase == ControllerState::Phase::kBaseline) {
    if (options_.accuracy && !options_.accuracy->relative) {
      state.criterion = options_.accuracy->value;
    }
    round.plan = task_.plan_baseline();
    round.channels = task_.channels();
  } else {
    round.method = options_.p_methods.at(state.method);
    round.p = state.fractions.at(state.method);
    PruneOutcome pruned = task_.prune(round.method, round.p, round.round);
    // So few are left that p rounds to none of them.
    if (pruned.weights_removed == 0 && pruned.bits_removed == 0) {
      state.fractions[state.method] = 0;
      next_method(state);
      return false;
    }
    if (pruned.weights_removed > 0) state.eq5_compression /= 1 - round.p;
    round.weights_removed = pruned.weights_removed;
    round.weights_compacted = pruned.weights_compacted;
    round.bits_removed = pruned.bits_removed;
    round.channels = std::move(pruned.channels);
    round.plan = std::move(pruned.plan);
  }
  round.criterion = state.criterion;
  round.criterion_split = options_.criterion_split;
  round.eq5_compression = state.eq5_compression;
  round.network = describe(round);
  state.open = std::move(round);
  state.schedule = ReduceOnPlateau(options_.learning_rate, options_.lr_patience);
  state.early_stop = EarlyStop(options_.patience);
  if (events_.round_begun) events_.round_begun(*state.open);
  return true;
}

// Training could only take away from a given network that meets an absolute criterion. Whether it
// does.
bool FmpController::accept_given(ControllerState& state) {
  RoundRecord& round = *state.open;
  if (!round.is_baseline() || !round.history.empty() || !state.criterion) return false;
  const std::optional<EvaluationRecord> reached = task_.evaluate_given();
  if (!reached || reached->criterion_accuracy < *state.criterion) return false;
  round.as_given = reached;
  task_.keep();
  finish_round(state, Outcome::kAccepted, "");
  return true;
}

double FmpController::learning_rate(const ControllerState& state) const {
  if (options_.lr_schedule == LrSchedule::kPlateau) return state.schedule.learning_rate();
  return cosine_rate(options_.learning_rate, static_cast<int>(state.open->history.size()),
                     options_.epochs);
}

void FmpController::train_one_epoch(ControllerState& state) {
  RoundRecord& round = *state.open;
  const double learning_rate = this->learning_rate(state);
  ++state.epochs_trained;
  const std::string label =
      fmt::format("round {} epoch {}/{}", round.round, round.history.size() + 1, options_.epochs);
  try {
    EpochRecord epoch = task_.train_epoch(learning_rate, state.epochs_trained, label);
    epoch.epoch = static_cast<int>(round.history.size()) + 1;
    epoch.learning_rate = learning_rate;
    round.history.push_back(epoch);
  } catch (const DivergedError& error) {
    finish_round(state, Outcome::kDiverged,
                 fmt::format("epoch {}: {}", round.history.size() + 1, error.what()));
    return;
  }
  if (events_.epoch_done) events_.epoch_done(round);
  judge_epoch(state);
}

void FmpController::judge_epoch(ControllerState& state) {
  RoundRecord& round = *state.open;
  const EpochRecord& epoch = round.history.back();
  const double accuracy = epoch.criterion_accuracy;
  const EvaluationRecord* best = round.best();
  if (best == nullptr || accuracy > best->criterion_accuracy) {
    round.best_epoch = epoch.epoch;
    if (round.keeps_best()) task_.keep();
  }
  state.schedule.step(accuracy);
  const bool exhausted = state.early_stop.step(accuracy);
  if (state.criterion && accuracy >= *state.criterion) {
    if (!round.keeps_best()) task_.keep();
    finish_round(state, Outcome::kAccepted, "");
  } else if (exhausted) {
    finish_round(state, Outcome::kRejected,
                 shortfall(round, ", the last of them without progress"));
  } else if (epoch.epoch >= options_.epochs) {
    finish_round(state, Outcome::kRejected, shortfall(round, ""));
  }
}

void FmpController::finish_round(ControllerState& state, Outcome outcome, std::string message) {
  RoundRecord& round = *state.open;
  round.outcome = outcome;
  round.message = std::move(message);
  if (!options_.accuracy && round.best() != nullptr) {  // there is no more to ask of it
    round.outcome = Outcome::kAccepted;
    round.message.clear();
  }
  if (round.is_baseline()) {
    settle_baseline(state);
  } else {
    settle_pruning(state);
  }
  if (outcome != Outcome::kDiverged || round.accepted()) round.network = describe(round);
  if (options_.until_cost && round.accepted() && round.network.cost <= *options_.until_cost) {
    state.phase = ControllerState::Phase::kDone;
  }
  if (round.is_baseline()) task_.remember_baseline();
  state.rounds.push_back(std::move(round));
  state.open.reset();
  if (events_.round_done) events_.round_done(state.rounds.back());
}

// The network that the round ends with, for now: the one that was kept, else the present one.
NetworkDescription FmpController::describe(const RoundRecord& round) const {
  const bool kept = round.accepted() || (round.keeps_best() && round.best() != nullptr);
  return kept ? task_.describe_best() : task_.describe_current();
}

// A relative goal is known now, and the best epoch meets it by definition.
void FmpController::settle_baseline(ControllerState& state) {
  RoundRecord& round = *state.open;
  if (options_.accuracy && options_.accuracy->relative && round.best() != nullptr) {
    state.criterion = options_.accuracy->value * round.best()->criterion_accuracy;
    round.outcome = Outcome::kAccepted;
    round.message.clear();
  }
  if (!round.accepted()) {
    state.phase = ControllerState::Phase::kBaselineFailed;
    return;
  }
  state.phase = ControllerState::Phase::kPruning;
  for (size_t method = 0; method < options_.p_methods.size(); ++method) {
    state.fractions.push_back(first_fraction(method));
  }
}

void FmpController::settle_pruning(ControllerState& state) {
  double& p = state.fractions.at(state.method);
  if (!state.open->accepted()) {  // else the same fraction again
    p /= options_.n;
    // A method of bits takes one at least: when that is too many, no p is small enough.
    const bool smallest = state.open->bits_removed == 1;
    if (!options_.feedback || smallest || below_floor(p, state.method)) p = 0;
  }
  if (p == 0 || options_.p_methods_order == MethodsOrder::kAlternate) next_method(state);
}

// The next one that is not done, from the one after the present one around to that one itself.
void FmpController::next_method(ControllerState& state) const {
  const size_t count = options_.p_methods.size();
  for (size_t step = 1; step <= count; ++step) {
    const size_t method = (state.method + step) % count;
    if (state.fractions[method] == 0) continue;
    state.method = method;
    return;
  }
  state.phase = ControllerState::Phase::kDone;
}

}  // namespace fmp
