// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "experiments/fmp_controller.h"

namespace fmp {
namespace {

constexpr Granularity kWeights = Granularity::kWeights, kChannels = Granularity::kChannels,
                      kBits = Granularity::kBits;

// A "network" is the number of weights that are alive. What an epoch reaches is the test's to say.
class FakeTask final : public FmpTask {
 public:
  struct Call {
    std::string method;
    double p;
    int64_t before;
  };
  // Accuracy after `epoch` epochs of training with `alive` weights; NaN: the training diverges.
  std::function<double(int64_t alive, int epoch)> accuracy;

  std::optional<double> given;  // accuracy of the first network before any training

  int64_t current = 1000, best = -1, baseline = -1;
  int epochs = 0;  // of the present round
  std::vector<Call> prunes;
  bool of_bits = false;  // what is pruned are bits
  std::vector<double> learning_rates;
  std::vector<int64_t> epoch_numbers;

  PruneOutcome prune(const std::string& method, double p, int) override {
    prunes.push_back({method, p, best});
    const int64_t removed = std::llround(p * static_cast<double>(best));
    current = best - removed;
    epochs = 0;
    PruneOutcome outcome;
    if (of_bits) {
      outcome.bits_removed = static_cast<int>(removed);
    } else {
      outcome.weights_removed = removed;
    }
    return outcome;
  }
  std::vector<LayerPlan> plan_baseline() override { return {}; }
  std::optional<EvaluationRecord> evaluate_given() override {
    if (!given) return std::nullopt;
    EvaluationRecord record;
    record.criterion_accuracy = *given;
    return record;
  }
  EpochRecord train_epoch(double learning_rate, int64_t epoch, const std::string&) override {
    learning_rates.push_back(learning_rate);
    epoch_numbers.push_back(epoch);
    const double reached = accuracy(current, ++epochs);
    if (std::isnan(reached)) throw DivergedError("training diverged");
    EpochRecord record;
    record.criterion_accuracy = reached;
    record.validation_accuracy = reached;
    return record;
  }
  void keep() override { best = current; }
  void remember_baseline() override { baseline = best; }
  NetworkDescription describe_current() const override { return describe(current); }
  NetworkDescription describe_best() const override { return describe(best); }
  std::vector<int> channels() const override { return {}; }

 private:
  static NetworkDescription describe(int64_t alive) {
    NetworkDescription description;
    description.weights_alive = alive;
    description.cost = static_cast<double>(alive) / 1000;
    return description;
  }
};

Options options_with(double accuracy, bool relative = false) {
  Options options;
  options.accuracy = {accuracy, relative};
  options.epochs = 4;
  options.patience = 100;
  options.p_methods = {"unstructured"};
  return options;
}

ControllerState run(const Options& options, FakeTask& task,
                    std::vector<Granularity> granularity = {kWeights}) {
  ControllerState state;
  FmpController(options, std::move(granularity), task).run(state);
  return state;
}

std::vector<double> fractions(const FakeTask& task) {
  std::vector<double> result;
  for (const FakeTask::Call& call : task.prunes) result.push_back(call.p);
  return result;
}

// Holds the accuracy as long as at least 600 weights are left, from the second epoch on.
double needs_600(int64_t alive, int epoch) { return epoch >= 2 && alive >= 600 ? 0.8 : 0.5; }

TEST(Controller, StepsBackAndDividesUntilBelowTheFloor) {
  FakeTask task;
  task.accuracy = needs_600;
  const ControllerState state = run(options_with(0.7), task);
  // 1000 -.2-> 800 -.2-> 640 -.2-> 512: too few, so back to 640; -.1-> 576: too few;
  // -.05-> 608 -.05-> 578 (30.4 rounded down): too few; .025 is below the floor of 0.05.
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2, 0.2, 0.1, 0.05, 0.05}));
  std::vector<int64_t> before;
  for (const FakeTask::Call& call : task.prunes) before.push_back(call.before);
  EXPECT_EQ(before, (std::vector<int64_t>{1000, 800, 640, 640, 640, 608}));
  EXPECT_EQ(task.best, 608);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
  std::vector<bool> accepted;
  for (const RoundRecord& round : state.rounds) accepted.push_back(round.accepted());
  EXPECT_EQ(accepted, (std::vector<bool>{true, true, true, false, false, true, false}));
  ASSERT_NE(state.last_accepted(), nullptr);
  EXPECT_EQ(state.last_accepted()->round, 5);
  EXPECT_EQ(state.last_accepted()->network.weights_alive, 608);
  EXPECT_EQ(task.baseline, 1000);
}

TEST(Controller, AGivenNetworkThatMeetsTheCriterionIsNotTrained) {
  FakeTask task;
  task.given = 0.7;
  task.accuracy = needs_600;
  const ControllerState state = run(options_with(0.7), task);
  const RoundRecord& baseline = state.rounds.at(0);
  EXPECT_TRUE(baseline.accepted());
  EXPECT_TRUE(baseline.history.empty());
  ASSERT_NE(baseline.best(), nullptr);
  EXPECT_EQ(baseline.best()->criterion_accuracy, 0.7);
  EXPECT_EQ(baseline.best_trained(), nullptr);
  EXPECT_EQ(task.baseline, 1000);
  EXPECT_EQ(task.prunes.at(0).before, 1000);
  EXPECT_EQ(state.rounds.at(1).history.size(), 2U);
  EXPECT_EQ(task.epoch_numbers.front(), 1);
  EXPECT_EQ(task.best, 608) << "as from a trained one";
  const nlohmann::json json = to_json(state);
  EXPECT_EQ(to_json(controller_state_from_json(json)), json);
}

TEST(Controller, AGivenNetworkIsTrainedWhereItMissesTheCriterionOrThereIsNone) {
  FakeTask as_ever, below, relative;
  as_ever.accuracy = below.accuracy = relative.accuracy = needs_600;
  below.given = 0.699;
  EXPECT_EQ(to_json(run(options_with(0.7), below)), to_json(run(options_with(0.7), as_ever)));
  relative.given = 1;
  EXPECT_EQ(run(options_with(0.97, true), relative).rounds.at(0).history.size(), 4U);
}

TEST(Controller, Eq5RatioCountsEveryIterationTried) {
  FakeTask task;
  task.accuracy = needs_600;
  const ControllerState state = run(options_with(0.7), task);
  const double expected = 1 / (0.8 * 0.8 * 0.8 * 0.9 * 0.95 * 0.95);
  EXPECT_NEAR(state.eq5_compression, expected, 1e-12);
  EXPECT_NEAR(state.rounds[2].eq5_compression, 1 / 0.64, 1e-12);
  EXPECT_EQ(to_json(state.rounds[2]).at("network").at("eq5_compression"),
            state.rounds[2].eq5_compression);
}

TEST(Controller, AcceptsAsSoonAsTheCriterionHolds) {
  FakeTask task;
  task.accuracy = needs_600;
  const ControllerState state = run(options_with(0.7), task);
  for (const RoundRecord& round : state.rounds) {
    EXPECT_EQ(round.history.size(), round.accepted() ? 2U : 4U);
    if (round.accepted()) {
      EXPECT_EQ(round.best_epoch, 2);
    }
  }
  EXPECT_EQ(state.epochs_trained, 4 * 2 + 3 * 4);
  std::vector<int64_t> expected(static_cast<size_t>(state.epochs_trained));
  std::iota(expected.begin(), expected.end(), 1);
  EXPECT_EQ(task.epoch_numbers, expected) << "every epoch of a run is shuffled anew";
}

TEST(Controller, WithoutFeedbackStopsAtTheFirstFailure) {
  FakeTask task;
  task.accuracy = needs_600;
  Options options = options_with(0.7);
  options.feedback = false;
  const ControllerState state = run(options, task);
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2, 0.2}));
  EXPECT_EQ(task.best, 640);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
}

TEST(Controller, StructuredMethodsBeginSmallerAndGoFurther) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int) { return alive >= 1000 ? 0.8 : 0.5; };
  Options options = options_with(0.7);
  options.p_methods = {"structured", "unstructured"};
  run(options, task, {kChannels, kWeights});
  EXPECT_EQ(fractions(task), (std::vector<double>{0.1, 0.05, 0.025, 0.0125, 0.2, 0.1, 0.05}));
  EXPECT_EQ(task.prunes[3].method, "structured");
  EXPECT_EQ(task.prunes[4].method, "unstructured");
}

TEST(Controller, FloorsCanBeGivenForAllOrEach) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int) { return alive >= 1000 ? 0.8 : 0.5; };
  Options options = options_with(0.7);
  options.p_methods = {"a", "b"};
  options.p_threshold = {0.1, 0.2};
  run(options, task, {kWeights, kWeights});
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.1, 0.2}));
  options.p_threshold = {0.3};
  EXPECT_THROW(run(options, task, {kWeights, kWeights}), UsageError);
}

TEST(Controller, RepeatedDivisionDoesNotMissTheFloor) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int) { return alive >= 1000 ? 0.8 : 0.5; };
  Options options = options_with(0.7);
  options.p = 0.3;
  options.n = 10;
  options.p_threshold = {0.03};  // 0.3 / 10 = 0.03 only up to rounding
  run(options, task);
  EXPECT_EQ(task.prunes.size(), 2U);
}

TEST(Controller, ABaselineThatFailsEndsTheRunAndSaysWhatItReached) {
  FakeTask task;
  task.accuracy = [](int64_t, int epoch) { return epoch == 3 ? 0.6 : 0.5; };
  const ControllerState state = run(options_with(0.7), task);
  EXPECT_EQ(state.phase, ControllerState::Phase::kBaselineFailed);
  EXPECT_EQ(state.last_accepted(), nullptr);
  EXPECT_TRUE(task.prunes.empty());
  ASSERT_EQ(state.rounds.size(), 1U);
  EXPECT_EQ(state.rounds[0].best_epoch, 3);
  EXPECT_NE(state.rounds[0].message.find("0.60000 of 0.70000"), std::string::npos)
      << state.rounds[0].message;
}

TEST(Controller, ARelativeGoalIsAShareOfTheBestBaselineEpoch) {
  FakeTask task;
  std::vector<double> baseline = {0.5, 0.8, 0.7, 0.6};
  task.accuracy = [&](int64_t alive, int epoch) {
    return alive == 1000 ? baseline[static_cast<size_t>(epoch - 1)] : alive >= 800 ? 0.73 : 0.71;
  };
  const ControllerState state = run(options_with(0.9, true), task);
  ASSERT_TRUE(state.criterion);
  EXPECT_DOUBLE_EQ(*state.criterion, 0.72);
  EXPECT_EQ(state.rounds[0].history.size(), 4U) << "the baseline trains to the end";
  EXPECT_EQ(state.rounds[0].best_epoch, 2);
  EXPECT_TRUE(state.rounds[0].accepted());
  EXPECT_TRUE(state.rounds[1].accepted());
  EXPECT_EQ(task.best, 800);
}

TEST(Controller, DivergenceCostsTheRoundNotTheRun) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int epoch) {
    if (alive == 640 && epoch == 2) return std::numeric_limits<double>::quiet_NaN();
    return needs_600(alive, epoch);
  };
  const ControllerState state = run(options_with(0.7), task);
  ASSERT_GT(state.rounds.size(), 3U);
  EXPECT_EQ(state.rounds[2].outcome, Outcome::kDiverged);
  EXPECT_EQ(state.rounds[2].history.size(), 1U);
  EXPECT_NE(state.rounds[2].message.find("epoch 2: training diverged"), std::string::npos);
  EXPECT_EQ(task.prunes[2].before, 800) << "it goes back to the best network";
  EXPECT_EQ(task.prunes[2].p, 0.1);
}

TEST(Controller, ADivergedBaselineFails) {
  FakeTask task;
  task.accuracy = [](int64_t, int) { return std::numeric_limits<double>::quiet_NaN(); };
  for (const bool relative : {false, true}) {
    const ControllerState state = run(options_with(0.7, relative), task);
    EXPECT_EQ(state.phase, ControllerState::Phase::kBaselineFailed);
    EXPECT_EQ(state.rounds.at(0).best(), nullptr);
  }
}

TEST(Controller, PatienceEndsARoundEarly) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int epoch) { return alive == 1000 ? 0.8 : 0.1 + 1e-4 * epoch; };
  Options options = options_with(0.7);
  options.epochs = 50;
  options.patience = 5;
  const ControllerState state = run(options, task);
  // Gains of 0.0001 add up to more than 0.001 after epoch 1 only in epoch 12: too late.
  EXPECT_EQ(state.rounds.at(1).history.size(), 6U);
}

TEST(Controller, EveryRoundBeginsWithTheInitialLearningRate) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int) { return alive == 1000 ? 0.8 : 0.5; };
  Options options = options_with(0.7);
  options.lr_patience = 1;
  options.learning_rate = 0.5;
  run(options, task);
  // Baseline: one epoch. Then of 4 epochs without progress the last comes after 2 bad ones.
  ASSERT_GE(task.learning_rates.size(), 9U);
  EXPECT_EQ((std::vector<double>(task.learning_rates.begin(), task.learning_rates.begin() + 9)),
            (std::vector<double>{0.5, 0.5, 0.5, 0.5, 0.05, 0.5, 0.5, 0.5, 0.05}));
}

TEST(Controller, ACosineBeginsAnewInEveryRoundAndEndsWithIt) {
  Options options = options_with(0.7);
  options.learning_rate = 0.01;
  options.lr_schedule = LrSchedule::kCosine;
  FakeTask task;
  task.accuracy = needs_600;  // rounds of 2 epochs where they are accepted, else of all 4
  run(options, task);
  // (1 + cos(k pi / 4)) / 2 by hand.
  const std::vector<double> whole = {0.01, 0.01 * (2 + std::sqrt(2)) / 4, 0.005,
                                     0.01 * (2 - std::sqrt(2)) / 4};
  size_t epoch = 0;
  for (const size_t epochs : {2, 2, 2, 4, 4, 2, 4}) {
    for (size_t i = 0; i < epochs; ++i, ++epoch)
      EXPECT_NEAR(task.learning_rates.at(epoch), whole[i], 1e-15) << epoch;
  }
  EXPECT_EQ(epoch, task.learning_rates.size());

  options.patience = 2;  // ends rounds as with the other schedule
  FakeTask impatient;
  impatient.accuracy = [](int64_t, int) { return 0.5; };
  const ControllerState state = run(options, impatient);
  EXPECT_EQ(state.rounds.at(0).history.size(), 3U);
}

TEST(Controller, EndsWhenNothingIsLeftToPrune) {
  FakeTask task;
  task.current = 12;
  task.accuracy = [](int64_t, int) { return 0.8; };
  const ControllerState state = run(options_with(0.7), task);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
  EXPECT_EQ(task.best, 2) << "12 10 8 6 5 4 3 2, of which 0.2 rounds to 0";
}

TEST(Controller, MethodsTakeTurnsUntilEachIsBelowItsFloor) {
  FakeTask task;
  task.accuracy = needs_600;
  Options options = options_with(0.7);
  options.p_methods = {"a", "b"};
  options.p_threshold = {0.1, 0.05};
  options.p_methods_order = MethodsOrder::kAlternate;
  const ControllerState state = run(options, task, {kWeights, kWeights});
  // 1000 -a-> 800 -b-> 640 -a .2-> 512: too few; b .2: likewise; a .1-> 576: too few, and a is
  // done; b .1: likewise; b .05-> 608; b .05-> 578: too few.
  std::string order;
  for (const FakeTask::Call& call : task.prunes) order += call.method;
  EXPECT_EQ(order, "abababbb");
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05}));
  EXPECT_EQ(task.best, 608);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
  EXPECT_EQ(state.fractions, (std::vector<double>{0, 0}));
}

TEST(Controller, WithoutFeedbackAMethodLeavesTheTurnsAtItsFirstFailure) {
  FakeTask task;
  task.accuracy = [&](int64_t alive, int) {
    return alive >= 1000 || task.prunes.back().method == "b" ? 0.8 : 0.5;
  };
  Options options = options_with(0.7);
  options.p_methods = {"a", "b"};
  options.p_methods_order = MethodsOrder::kAlternate;
  options.feedback = false;
  options.until_cost = 0.5;
  run(options, task, {kWeights, kWeights});
  std::string order;
  for (const FakeTask::Call& call : task.prunes) order += call.method;
  EXPECT_EQ(order, "abbbb");
  EXPECT_EQ(task.best, 410) << "1000 800 640 512 410";
}

// A method of bits: 20 are left, of which at least 17 are needed.
TEST(Controller, ASingleBitThatIsTooMuchEndsAMethodOfBits) {
  FakeTask task;
  task.of_bits = true;
  task.current = 20;
  task.accuracy = [](int64_t alive, int) { return alive >= 17 ? 0.8 : 0.5; };
  Options options = options_with(0.7);
  options.p = 0.4;
  options.p_threshold = {0.0001};
  const ControllerState state = run(options, task, {kBits});
  // 20 -.2-> 16: too few; -.1-> 18 -.1-> 16: too few; -.05-> 17 -.05-> 16: one bit is too much, and
  // no smaller fraction is tried.
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.1, 0.1, 0.05, 0.05}));
  EXPECT_EQ(task.best, 17);
  EXPECT_EQ(state.rounds.back().bits_removed, 1);
  EXPECT_EQ(state.eq5_compression, 1) << "no weights were removed";
  EXPECT_EQ(round_from_json(to_json(state.rounds.back())).bits_removed, 1);
}

TEST(Controller, EndsAtTheCostAndHoldsTheAccuracyToo) {
  FakeTask task;
  task.accuracy = needs_600;
  Options options = options_with(0.7);
  options.until_cost = 0.64;
  const ControllerState state = run(options, task);
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2}));
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
  EXPECT_EQ(state.last_accepted()->network.cost, 0.64);

  FakeTask other;
  other.accuracy = needs_600;
  options.until_cost = 0.5;  // out of reach: the feedback decides, as without
  run(options, other);
  EXPECT_EQ(fractions(other), (std::vector<double>{0.2, 0.2, 0.2, 0.1, 0.05, 0.05}));
}

TEST(Controller, ABaselineThatIsCheapEnoughIsTheEnd) {
  FakeTask task;
  task.accuracy = needs_600;
  Options options = options_with(0.7);
  options.until_cost = 1;
  const ControllerState state = run(options, task);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
  EXPECT_TRUE(task.prunes.empty());
}

TEST(Controller, WithTheCostAloneEveryRoundTrainsToItsEndAndKeepsItsBestEpoch) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int epoch) { return epoch == 3 ? 0.2 : 1e-5 * alive; };
  Options options = options_with(0.7);
  options.accuracy.reset();
  options.until_cost = 0.6;
  const ControllerState state = run(options, task);
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2, 0.2}));
  ASSERT_EQ(state.rounds.size(), 4U);
  for (const RoundRecord& round : state.rounds) {
    EXPECT_TRUE(round.accepted());
    EXPECT_FALSE(round.criterion);
    EXPECT_EQ(round.history.size(), 4U);
    EXPECT_EQ(round.best_epoch, 3);
  }
  EXPECT_EQ(state.last_accepted()->network.cost, 0.512);
  EXPECT_EQ(state.phase, ControllerState::Phase::kDone);
}

TEST(Controller, WithTheCostAloneARoundThatDivergesEndsWithWhatItHad) {
  FakeTask task;
  task.accuracy = [](int64_t alive, int epoch) {
    const bool diverges = (alive == 800 && epoch == 2) || alive == 640;
    return diverges ? std::numeric_limits<double>::quiet_NaN() : 0.5;
  };
  Options options = options_with(0.7);
  options.accuracy.reset();
  options.until_cost = 0.7;
  const ControllerState state = run(options, task);
  // 800 is kept after its first epoch; 640 has no epoch to keep: back to 800, half of the fraction.
  EXPECT_EQ(fractions(task), (std::vector<double>{0.2, 0.2, 0.1, 0.1}));
  EXPECT_TRUE(state.rounds[1].accepted());
  EXPECT_EQ(state.rounds[2].outcome, Outcome::kDiverged);
  EXPECT_EQ(task.best, 648);
}

// Stops after every epoch, sends the state through its JSON form and goes on: nothing may differ.
void expect_same_in_pieces(Options options) {
  const auto seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  options.p_methods = {"structured", "unstructured"};
  options.epochs = 9;
  options.patience = 6;
  options.lr_patience = 1;
  const auto noisy = [seed](int64_t alive, int epoch) {
    std::mt19937 engine(seed ^ static_cast<uint32_t>(alive * 131 + epoch));
    const double noise = std::uniform_real_distribution<>(0, 0.3)(engine);
    return 0.3 + 0.0005 * static_cast<double>(alive) + noise;
  };
  FakeTask whole;
  whole.accuracy = noisy;
  const ControllerState expected = run(options, whole, {kChannels, kWeights});

  FakeTask pieces;
  pieces.accuracy = noisy;
  ControllerState state;
  ControllerEvents events;
  events.stop = [] { return true; };
  while (!state.finished()) {
    FmpController(options, {kChannels, kWeights}, pieces, events).run(state);
    state = controller_state_from_json(nlohmann::json::parse(to_json(state).dump()));
  }
  EXPECT_EQ(to_json(state), to_json(expected));
  EXPECT_EQ(pieces.learning_rates, whole.learning_rates);
  EXPECT_EQ(pieces.epoch_numbers, whole.epoch_numbers);
  EXPECT_EQ(pieces.best, whole.best);
}

TEST(Controller, GoesOnFromAnyEpochAsIfItHadNeverStopped) {
  Options options = options_with(0.9, true);
  expect_same_in_pieces(options);
  options.p_methods_order = MethodsOrder::kAlternate;
  expect_same_in_pieces(options);
  options.until_cost = 0.8;
  expect_same_in_pieces(options);
  options.accuracy.reset();
  expect_same_in_pieces(options);
}

// What torch.optim.lr_scheduler.ReduceLROnPlateau (2.13, mode="max", factor 0.1, patience 2) makes
// of these accuracies, starting at 0.01: pairs of an accuracy and the rate after it. The last steps
// would change the rate by less than its eps.
TEST(ReduceOnPlateau, AgreesWithPyTorch) {
  const std::vector<std::pair<double, double>> expected = {{0.1, 0.01},
                                                           {0.2, 0.01},
                                                           {0.2, 0.01},
                                                           {0.20001, 0.01},
                                                           {0.2, 0.001},
                                                           {0.3, 0.001},
                                                           {0.1, 0.001},
                                                           {0.1, 0.001},
                                                           {0.1, 0.0001},
                                                           {0.1, 0.0001},
                                                           {0.1, 0.0001},
                                                           {0.1, 1.0000000000000001e-05},
                                                           {0.31, 1.0000000000000001e-05},
                                                           {0.3, 1.0000000000000001e-05},
                                                           {0.3, 1.0000000000000001e-05},
                                                           {0.3, 1.0000000000000002e-06},
                                                           {0.31, 1.0000000000000002e-06},
                                                           {0.31, 1.0000000000000002e-06},
                                                           {0.31003, 1.0000000000000002e-07},
                                                           {0.3101, 1.0000000000000002e-07},
                                                           {0.3, 1.0000000000000002e-07},
                                                           {0.3, 1.0000000000000002e-07},
                                                           {0.3, 1.0000000000000004e-08},
                                                           {0.3, 1.0000000000000004e-08},
                                                           {0.3, 1.0000000000000004e-08},
                                                           {0.3, 1.0000000000000004e-08},
                                                           {0.3, 1.0000000000000004e-08}};
  ReduceOnPlateau schedule(0.01, 2);
  for (const auto& [accuracy, rate] : expected) {
    schedule.step(accuracy);
    EXPECT_DOUBLE_EQ(schedule.learning_rate(), rate);
    schedule = ReduceOnPlateau::from_json(nlohmann::json::parse(schedule.to_json().dump()));
  }
}

TEST(EarlyStop, CountsEpochsSinceTheLastGain) {
  EarlyStop stop(2);
  EXPECT_FALSE(stop.step(0.5));
  EXPECT_FALSE(stop.step(0.5));
  EXPECT_FALSE(stop.step(0.502));
  EXPECT_FALSE(stop.step(0.5025));  // less than kMinimumGain above 0.502
  EXPECT_FALSE(stop.step(0.5035));  // but this is more
  EXPECT_FALSE(stop.step(0.1));
  EXPECT_TRUE(stop.step(0.5));
}

}  // namespace
}  // namespace fmp
