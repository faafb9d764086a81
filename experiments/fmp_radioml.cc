// SPDX-License-Identifier: MIT
// Feedback Magnitude Pruning of a quantized CNN on RadioML frames, from the file to the report.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "experiments/console.h"
#include "experiments/data_source.h"
#include "experiments/experiment.h"
#include "experiments/fmp_controller.h"
#include "experiments/format.h"
#include "experiments/interrupt.h"
#include "experiments/model_export.h"
#include "experiments/options.h"
#include "experiments/report.h"
#include "experiments/run_directory.h"
#include "experiments/summary.h"
#include "experiments/synth_source.h"
#include "framework/data/frame_store.h"
#include "framework/data/shared_reader.h"
#include "framework/error.h"
#include "framework/network/cost.h"
#include "framework/program.h"
#include "framework/ranks/job.h"
#include "framework/threads.h"
#include "framework/training/engine_choice.h"

namespace fmp {
namespace {

// A list in words, shorter where all are the same.
std::string in_short(const std::vector<int>& values) {
  const bool same = std::ranges::adjacent_find(values, std::not_equal_to()) == values.end();
  return same && !values.empty() ? fmt::to_string(values[0])
                                 : fmt::format("{}", fmt::join(values, " "));
}

std::string network_line(const NetworkConfig& config, int64_t weights) {
  std::vector<int> filters, dense, weight_bits, act_bits;
  int joins = 0;
  bool is_signed = false;
  for (const LayerConfig& layer : config.layers) {
    if (layer.kind == LayerKind::kConv) filters.push_back(layer.outputs);
    if (layer.kind == LayerKind::kDense) dense.push_back(layer.outputs);
    if (has_weights(layer.kind)) weight_bits.push_back(layer.weight_bits);
    joins += has_weights(layer.kind) ? 0 : 1;
    act_bits.push_back(layer.act_bits);
    is_signed = is_signed || layer.smallest_code < 0;
  }
  weight_bits.push_back(config.output_bits);
  const std::string scale =
      config.input_scale == 0 ? std::string() : fmt::format(" (scale {:.6g})", config.input_scale);
  return fmt::format(
      "convolutions {}, dense {}{}, {} weights; bits: input {}{}, weights {}, activations {}{}",
      fmt::join(filters, " "), fmt::join(dense, " "),
      joins == 0 ? std::string() : fmt::format(", {} layers without weights", joins),
      format_count(weights), config.input_bits, scale, in_short(weight_bits), in_short(act_bits),
      is_signed ? ", signed" : "");
}

// One invocation of a run, which may be the continuation of earlier ones.
class Run {
 public:
  // directory: only the first of several ranks has one. It alone writes, to it and to the console.
  Run(const Options& options, std::unique_ptr<Engine> engine, std::optional<RunDirectory> directory,
      Communicator* ranks)
      : options_(options),
        ranks_(ranks),
        engine_(std::move(engine)),
        directory_(std::move(directory)),
        no_output_(directory_ ? nullptr : std::fopen("/dev/null", "w")),
        console_(directory_ ? stdout : no_output_.get()) {}

  int execute();
  void discard_if_unused() {
    if (directory_) directory_->discard_if_unused();
  }

 private:
  LoadedData load();
  void show_options(const FmpExperiment& experiment, const std::string& storage);
  void restore(FmpExperiment& experiment);
  void save(const FmpExperiment& experiment, const ControllerState& state);
  ControllerEvents events(const FmpExperiment& experiment);
  void publish(const FmpExperiment& experiment);
  void finish(FmpExperiment& experiment);
  double seconds() const;

  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  const Options& options_;
  Communicator* ranks_;
  std::unique_ptr<Engine> engine_;  // until the experiment has it
  std::optional<RunDirectory> directory_;
  std::unique_ptr<std::FILE, CloseFile> no_output_;
  Console console_;
  ControllerState state_;
  uint64_t fingerprint_ = 0;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  double earlier_seconds_ = 0;  // of the invocations before this one
  RunTiming timing_{0, 1, utc_now()};
};

int Run::execute() {
  LoadedData data = load();
  const std::string storage = data.storage;
  fingerprint_ = fingerprint(*data.dataset, options_.input_bits.value_or(options_.bits), ranks_);
  FmpExperiment experiment(options_, std::move(data), console_, std::move(engine_), ranks_);
  FmpController controller(options_, experiment.granularity(), experiment, events(experiment));
  show_options(experiment, storage);
  restore(experiment);
  note_interrupts();
  console_.round_header();
  for (const RoundRecord& round : state_.rounds) console_.round(round);
  controller.run(state_);
  finish(experiment);
  // A stop at --time-limit is what was asked for; --resume goes on.
  if (state_.last_accepted() == nullptr && state_.finished()) {
    fail("the baseline did not meet the criterion: {}", state_.rounds.front().message);
  }
  return kExitSuccess;
}

LoadedData Run::load() {
  const auto show = [&](int64_t done, int64_t total) {
    console_.progress("loading", done, total,
                      fmt::format("{} of {} frames", format_count(done), format_count(total)));
  };
  LoadedData data = open_data(options_, {{"synth", open_synth}}, ranks_, show);
  console_.clear_progress();
  if (directory_) std::ranges::for_each(data.warnings, warn);
  return data;
}

void Run::show_options(const FmpExperiment& experiment, const std::string& storage) {
  const Dataset& dataset = experiment.dataset();
  const Split& split = experiment.split();
  const NetworkConfig& config = experiment.current().config();
  const auto size = [](const auto& list) { return format_count(std::ssize(list)); };
  const bool alternate = options_.p_methods_order == MethodsOrder::kAlternate;
  const std::string methods =
      fmt::format("{}", fmt::join(options_.p_methods, alternate ? " in turn with " : " then "));
  std::vector<std::string> goals;
  if (options_.accuracy) {
    goals.push_back(fmt::format("to hold: accuracy {} on the {} split",
                                to_string(*options_.accuracy),
                                to_string(options_.criterion_split)));
  }
  if (options_.until_cost)
    goals.push_back(fmt::format("until the cost is {}", *options_.until_cost));
  console_.line(fmt::format("data      {}: {} frames of {} samples, {} classes; {}", options_.data,
                            format_count(dataset.size()), dataset.length(),
                            dataset.class_names().size(), storage));
  console_.line(fmt::format("split     {} train, {} validation, {} test", size(split.train),
                            size(split.validation), size(split.test)));
  console_.line(
      fmt::format("network   {}", network_line(config, experiment.current().weights_total())));
  console_.line(fmt::format("pruning   {}, p {}, n {}, feedback {}; {}", methods, options_.p,
                            options_.n, options_.feedback ? "on" : "off", fmt::join(goals, "; ")));
  console_.line(fmt::format(
      "training  up to {} epochs a round, patience {}, batch {}, learning rate {} ({}), seed {}",
      options_.epochs, options_.patience, options_.batch, options_.learning_rate,
      to_string(options_.lr_schedule), options_.seed));
  if (!options_.distill.empty())
    console_.line(fmt::format("teacher   {}, weight {}, temperature {}", options_.distill,
                              options_.distill_weight, options_.distill_temperature));
  if (!options_.augment.empty())
    console_.line(fmt::format("augment   {}", fmt::join(options_.augment, ", ")));
  const char* given = !experiment.frames_given() ? ""
                      : options_.augment.empty() ? ", with the frames in its memory"
                                                 : ", with the frames of evaluations in its memory";
  console_.line(fmt::format("device    {}{}", experiment.engine().description(), given));
  if (directory_) console_.line(fmt::format("results   {}", directory_->path().string()));
  console_.line("");
}

void Run::restore(FmpExperiment& experiment) {
  const std::string bytes =
      text_of_first(ranks_, directory_ ? directory_->read_checkpoint() : std::string());
  if (bytes.empty()) return;
  Checkpoint checkpoint = decode_checkpoint(bytes, options_.out);
  const nlohmann::json& saved = checkpoint.state;
  try {
    if (saved.at("data_fingerprint") != fingerprint_)
      fail("{}: the frames are not those that the run in '{}' began with", options_.data,
           options_.out);
    state_ = controller_state_from_json(saved.at("controller"));
    earlier_seconds_ = saved.at("seconds");
    timing_.sessions = saved.at("sessions").get<int>() + 1;
    timing_.started = saved.at("started");
  } catch (const nlohmann::json::exception& exception) {
    fail("the checkpoint in '{}' is of another version: {}", options_.out, exception.what());
  }
  experiment.restore(std::move(checkpoint.networks), state_.open ? &*state_.open : nullptr);
  if (directory_) directory_->write_rounds(state_.rounds);
}

void Run::save(const FmpExperiment& experiment, const ControllerState& state) {
  Checkpoint checkpoint;
  checkpoint.networks = experiment.networks();
  checkpoint.state = {{"controller", to_json(state)},
                      {"data_fingerprint", fingerprint_},
                      {"seconds", seconds()},
                      {"sessions", timing_.sessions},
                      {"started", timing_.started}};
  directory_->save_checkpoint(checkpoint);
}

ControllerEvents Run::events(const FmpExperiment& experiment) {
  ControllerEvents events;
  events.round_begun = [this](const RoundRecord& round) { console_.plan(round); };
  events.epoch_done = [this](const RoundRecord& round) { console_.epoch(round, options_.epochs); };
  events.round_done = [this, &experiment](const RoundRecord& round) {
    if (round.accepted()) publish(experiment);
    console_.round(round);
  };
  events.checkpoint = [this, &experiment](const ControllerState& state) {
    if (!directory_) return;
    save(experiment, state);
    if (!state.open) directory_->write_rounds(state.rounds);
  };
  events.stop = [this] {
    if (options_.time_limit <= 0) return false;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
    return any_rank(ranks_, elapsed.count() >= options_.time_limit);
  };
  return events;
}

// The best network so far, for others to use.
void Run::publish(const FmpExperiment& experiment) {
  constexpr size_t kFramesToCompare = 256;
  const std::span<const int64_t> train = experiment.split().train;
  const FrameBatch frames =
      read_on_all(experiment.dataset(), train.first(std::min(kFramesToCompare, train.size())),
                  experiment.current().config().input_bits, ranks_);
  if (!directory_) return;
  write_verified_model(*experiment.best(), directory_->path() / "model.onnx", frames,
                       options_.threads);
  directory_->write_json("model_cost.json", to_finn_json(inference_cost(*experiment.best())));
}

// The test frames are looked at here, once, and nothing depends on what they say.
void Run::finish(FmpExperiment& experiment) {
  const std::optional<RoundRecord> result = result_round(state_, experiment);
  nlohmann::json baseline_json, result_json;
  if (result) {
    const size_t classes = experiment.dataset().class_names().size();
    const RoundRecord& first = state_.rounds.empty() ? *result : state_.rounds.front();
    baseline_json =
        summarize_network(first, experiment.evaluate(*experiment.baseline(), "baseline"), classes);
    result_json = result->is_baseline()
                      ? baseline_json
                      : summarize_network(
                            *result, experiment.evaluate(*experiment.best(), "result"), classes);
    if (directory_) directory_->write_network("baseline.fmp", *experiment.baseline());
    if (directory_) directory_->write_network("result.fmp", *experiment.best());
    publish(experiment);
  }
  if (!directory_) return;
  timing_.seconds = seconds();
  nlohmann::json summary = summarize(options_, state_, experiment, timing_);
  summary["baseline"] = std::move(baseline_json);
  summary["result"] = std::move(result_json);
  std::vector<nlohmann::json> rounds;
  for (const RoundRecord& round : state_.rounds) rounds.push_back(to_json(round));
  directory_->write_rounds(state_.rounds);
  directory_->write_text("report.html", render_report(summary, rounds));
  directory_->write_json("summary.json", summary);
  console_.summary(summary, directory_->path().string());
}

double Run::seconds() const {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
  return earlier_seconds_ + elapsed.count();
}

// The command line that a resumed run starts from: it must work from any working directory.
std::vector<std::string> arguments_to_store(Options options) {
  std::error_code error;
  if (std::filesystem::exists(options.data, error))
    options.data = std::filesystem::absolute(options.data).string();
  if (!options.init.empty()) options.init = std::filesystem::absolute(options.init).string();
  options.out.clear();
  return to_arguments(options);
}

RunDirectory open_directory(const Options& options) {
  return options.resume.empty() ? RunDirectory::create(options.out, arguments_to_store(options))
                                : RunDirectory::open(options.resume);
}

std::unique_ptr<Engine> engine_for(Options& options, Communicator* ranks) {
  if (options.gradients != ElementType::kF32) {
    if (options.device == DeviceChoice::kCuda)
      throw UsageError("--device cuda: gradients are float32 there; use --device cpu");
    options.device = DeviceChoice::kCpu;
  }
  try {
    return choose_engine(options.device, options.threads, ranks);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("--device cuda: {}; use --device cpu", error.what()));
  }
}

// The options of rank 0, which alone needs the directory of a run that goes on.
std::optional<Options> options_of_all(const std::vector<std::string>& arguments,
                                      Communicator* ranks) {
  if (ranks == nullptr) return parse_options(arguments);
  std::optional<Options> options;
  nlohmann::json told;  // null: there is nothing to do
  if (ranks->rank() == 0) {
    options = parse_options(arguments);
    if (options) {
      Options others = *options;
      others.resume.clear();
      told = {{"arguments", to_arguments(others)}, {"resume", options->resume}};
    }
  }
  told = nlohmann::json::parse(text_of_first(ranks, told.dump()));
  if (ranks->rank() == 0 || told.is_null()) return options;
  options = parse_options(told.at("arguments").get<std::vector<std::string>>());
  options->resume = told.at("resume");
  return options;
}

// Cores and memory of a machine for each of the ranks that are on it.
void share_machine(Options& options, const Communicator& ranks) {
  const int here = ranks.ranks_on_host();
  if (options.threads == 0) options.threads = std::max(1, threads_or_all_cores(0) / here);
  if (options.memory_limit == 0) options.memory_limit = default_memory_limit() / here;
}

int run(const std::vector<std::string>& arguments, Communicator* ranks) {
  std::optional<Options> options = options_of_all(arguments, ranks);
  if (!options) return 0;
  for (const std::string& method : options->p_methods) make_pruning_method(method);  // or throws
  const Options stored = *options;
  if (ranks != nullptr) share_machine(*options, *ranks);
  // Or throws, before anything is made.
  std::unique_ptr<Engine> engine = engine_for(*options, ranks);
  std::optional<RunDirectory> directory;
  if (ranks == nullptr || ranks->rank() == 0) directory.emplace(open_directory(stored));
  Run run(*options, std::move(engine), std::move(directory), ranks);
  try {
    return run.execute();
  } catch (const InterruptedError&) {
    if (ranks == nullptr || ranks->rank() == 0) {
      write_to_stderr(fmt::format("interrupted; continue with: fmp_radioml --resume {}\n",
                                  one_line(options->out)));
    }
    return kExitInterrupted;
  } catch (...) {
    run.discard_if_unused();
    throw;
  }
}

constexpr const char* kMemoryHint = "a smaller --batch or --memory-limit needs less";

int run_as_rank(const std::vector<std::string>& arguments) {
  const std::unique_ptr<Job> job = join_job();
  if (!job) return run(arguments, nullptr);
  int exit_code = kExitFailure;
  try {
    exit_code = run(arguments, job.get());
    if (job->rank() == 0) flush_output();
  } catch (...) {
    const Failure failure = describe_failure(kMemoryHint);
    job->end(failure.exit_code, failure.message);
  }
  job->leave();
  return exit_code;
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  // A run that nobody watches any more goes on.
  std::signal(SIGPIPE, SIG_IGN);
  return fmp::run_main([&] { return fmp::run_as_rank({argv + 1, argv + argc}); }, fmp::kMemoryHint);
}
