// SPDX-License-Identifier: MIT
#include "experiments/summary.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <set>
#include <thread>

#include "experiments/json_optional.h"
#include "framework/threads.h"

namespace fmp {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

nlohmann::json host(const Options& options, const FmpExperiment& experiment,
                    const std::string& started) {
  utsname system{};
  uname(&system);
  return {{"cpu", cpu_name()},
          {"device", experiment.engine().description()},
          {"threads", threads_or_all_cores(options.threads)},
          {"cores", std::thread::hardware_concurrency()},
          {"os", fmt::format("{} {}", system.sysname, system.release)},
#ifdef __clang__
          {"compiler", "clang++ " __VERSION__},
#else
          {"compiler", "g++ " __VERSION__},
#endif
          {"started", started}};
}

double peak_memory_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
}

// Quoted for a POSIX shell where it must be.
std::string shell_word(const std::string& word) {
  const bool plain = std::ranges::all_of(word, [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("-_=.,:/+%@").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain && !word.empty()) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string command_line(Options options) {
  options.resume.clear();
  std::string command = "fmp_radioml";
  for (const std::string& argument : to_arguments(options)) command += ' ' + shell_word(argument);
  return command;
}

nlohmann::json describe_data(const Options& options, const FmpExperiment& experiment) {
  const Dataset& dataset = experiment.dataset();
  std::set<int> snrs;
  for (int64_t frame = 0; frame < dataset.size(); ++frame) snrs.insert(dataset.snr_db(frame));
  return {{"source", options.data},
          {"frames", dataset.size()},
          {"length", dataset.length()},
          {"classes", dataset.class_names()},
          {"snr_db", snrs},
          {"train_frames", experiment.split().train.size()},
          {"validation_frames", experiment.split().validation.size()},
          {"test_frames", experiment.split().test.size()}};
}

const char* status(const ControllerState& state) {
  switch (state.phase) {
    case ControllerState::Phase::kDone:
      return "finished";
    case ControllerState::Phase::kBaselineFailed:
      return "baseline_failed";
    default:
      return "time_limit";
  }
}

std::string message(const Options& options, const ControllerState& state,
                    const std::optional<RoundRecord>& result) {
  const auto accepted = std::ranges::count_if(state.rounds, &RoundRecord::accepted);
  if (state.phase == ControllerState::Phase::kBaselineFailed)
    return "The baseline did not meet the criterion: " + state.rounds.front().message + ".";
  const std::string begin =
      state.finished() ? "Finished" : "Stopped by the time limit (--resume goes on)";
  if (!result) return begin + " before an epoch was completed.";
  if (accepted == 0) return begin + " before the baseline met the criterion.";
  if (options.until_cost) {
    const double cost = result->network.cost;
    return cost <= *options.until_cost
               ? fmt::format("{}: round {} costs {:.4f}, at most the {} that was asked for.", begin,
                             result->round, cost, *options.until_cost)
               : fmt::format("{}: round {} costs {:.4f}, still above the {} that was asked for.",
                             begin, result->round, cost, *options.until_cost);
  }
  if (accepted == 1) return begin + ": no pruning step met the criterion; the baseline stays.";
  return fmt::format("{}: round {} is the smallest network that met the criterion.", begin,
                     result->round);
}

nlohmann::json timing_json(const ControllerState& state, const FmpExperiment& experiment,
                           const RunTiming& timing) {
  double training = 0, evaluation = 0;
  const auto add = [&](const RoundRecord& round) {
    if (round.as_given) evaluation += round.as_given->evaluation_seconds;
    for (const EpochRecord& epoch : round.history) {
      training += epoch.train_seconds;
      evaluation += epoch.evaluation_seconds;
    }
  };
  for (const RoundRecord& round : state.rounds) add(round);
  if (state.open) add(*state.open);
  const std::optional<size_t> device_bytes = experiment.engine().peak_device_bytes();
  return {{"seconds", timing.seconds},
          {"training_seconds", training},
          {"evaluation_seconds", evaluation},
          {"sessions", timing.sessions},
          {"peak_memory_mb", peak_memory_mb()},
          {"peak_device_memory_mb", device_bytes
                                        ? nlohmann::json(static_cast<double>(*device_bytes) / 1e6)
                                        : nlohmann::json(nullptr)}};
}

nlohmann::json snr_json(const Evaluation& evaluation) {
  nlohmann::json result = nlohmann::json::array();
  for (const Evaluation::Snr& snr : evaluation.by_snr) {
    const double share = static_cast<double>(snr.correct) / static_cast<double>(snr.frames);
    result.push_back({{"snr_db", snr.snr_db},
                      {"frames", snr.frames},
                      {"correct", snr.correct},
                      {"accuracy", snr.frames > 0 ? share : 0.0}});
  }
  return result;
}

nlohmann::json confusion_json(const Evaluation& evaluation, size_t classes) {
  nlohmann::json rows = nlohmann::json::array();
  for (size_t row = 0; row < classes; ++row) {
    const auto begin = evaluation.confusion.begin() + static_cast<std::ptrdiff_t>(row * classes);
    rows.push_back(std::vector<int64_t>(begin, begin + static_cast<std::ptrdiff_t>(classes)));
  }
  return rows;
}

}  // namespace

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

std::optional<RoundRecord> result_round(const ControllerState& state,
                                        const FmpExperiment& experiment) {
  if (state.open && state.open->keeps_best() && state.open->best() != nullptr) {
    RoundRecord round = *state.open;
    round.network = experiment.describe_best();
    return round;
  }
  if (const RoundRecord* accepted = state.last_accepted()) return *accepted;
  if (experiment.best() == nullptr) return std::nullopt;
  return state.rounds.front();
}

nlohmann::json summarize(const Options& options, const ControllerState& state,
                         const FmpExperiment& experiment, const RunTiming& timing) {
  const std::optional<RoundRecord> result = result_round(state, experiment);
  const auto tried =
      std::ranges::count_if(state.rounds, [](const RoundRecord& r) { return !r.is_baseline(); });
  const auto accepted = std::ranges::count_if(
      state.rounds, [](const RoundRecord& r) { return !r.is_baseline() && r.accepted(); });
  return {{"program", "fmp_radioml"},
          {"version", kProgramVersion},
          {"schema", 1},
          {"status", status(state)},
          {"message", message(options, state, result)},
          {"options", to_json(options)},
          {"command", command_line(options)},
          {"data", describe_data(options, experiment)},
          {"criterion",
           {{"requested", options.accuracy ? nlohmann::json(to_string(*options.accuracy))
                                           : nlohmann::json(nullptr)},
            {"accuracy", json_or_null(state.criterion)},
            {"cost", json_or_null(options.until_cost)},
            {"split", to_string(options.criterion_split)}}},
          {"baseline", nullptr},
          {"result", nullptr},
          {"rounds", {{"tried", tried}, {"accepted", accepted}, {"epochs", state.epochs_trained}}},
          {"compression",
           {{"true",
             result ? nlohmann::json(result->network.true_compression()) : nlohmann::json(nullptr)},
            {"eq5", state.eq5_compression}}},
          {"timing", timing_json(state, experiment, timing)},
          {"host", host(options, experiment, timing.started)}};
}

nlohmann::json summarize_network(const RoundRecord& round, const FinalEvaluation& evaluation,
                                 size_t classes) {
  const EpochRecord* trained = round.best_trained();
  const auto of_training = [&](double EpochRecord::*value) {
    return trained != nullptr ? nlohmann::json(trained->*value) : nlohmann::json(nullptr);
  };
  const auto of_validation = [&](auto value) {
    return evaluation.validation ? nlohmann::json(value(*evaluation.validation))
                                 : nlohmann::json(nullptr);
  };
  return {{"round", round.round},
          {"method", round.is_baseline() ? nlohmann::json(nullptr) : nlohmann::json(round.method)},
          {"accuracy",
           {{"train", of_training(&EpochRecord::train_accuracy)},
            {"validation", of_validation([](const Evaluation& e) { return e.accuracy(); })},
            {"test", evaluation.test.accuracy()}}},
          {"loss",
           {{"train", of_training(&EpochRecord::train_loss)},
            {"validation", of_validation([](const Evaluation& e) { return e.loss; })},
            {"test", evaluation.test.loss}}},
          {"by_snr", snr_json(evaluation.test)},
          {"confusion", confusion_json(evaluation.test, classes)},
          {"network", network_to_json(round)}};
}

}  // namespace fmp
