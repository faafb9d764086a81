// SPDX-License-Identifier: MIT
#include "experiments/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "experiments/interrupt.h"
#include "framework/error.h"
#include "framework/inference/model_file.h"
#include "framework/network/compaction.h"
#include "framework/network/cost.h"
#include "framework/onnx/import.h"
#include "framework/threads.h"

namespace fmp {
namespace {

constexpr const char* kCurrent = "current";
constexpr const char* kBest = "best";
constexpr const char* kBaseline = "baseline";
constexpr const char* kTeacher = "teacher";

TrainerOptions trainer_options(const Options& options, Communicator* ranks) {
  TrainerOptions trainer;
  trainer.batch = options.batch;
  trainer.epoch_frames = options.epoch_frames;
  trainer.learning_rate = options.learning_rate;
  trainer.threads = options.threads;
  trainer.ranks = ranks;
  trainer.sparse_threshold = options.sparse_threshold;
  trainer.batch_norm_steps = options.batch_norm_steps;
  trainer.loss = {options.label_smoothing, options.distill.empty() ? 0.0 : options.distill_weight,
                  options.distill_temperature};
  trainer.gradients = options.gradients;
  return trainer;
}

const char* to_string(Layer::Kind kind) {
  switch (kind) {
    case Layer::Kind::kConv:
      return "conv";
    case Layer::Kind::kDense:
      return "dense";
    default:
      return "output";
  }
}

// The network that a run begins with: that of --init, else one with random weights.
Network initial_network(const Options& options, const Dataset& data) {
  const auto classes = static_cast<int>(data.class_names().size());
  if (options.init.empty()) {
    Network network(network_config(options, data.length(), classes), options.seed);
    network.class_names = data.class_names();
    return network;
  }
  Network network = onnx::import_network(options.init, options.init_bits);
  const NetworkConfig& config = network.config();
  constexpr int kChannels = 2;
  if (config.input_channels != kChannels || config.length != data.length() ||
      config.classes != classes) {
    fail(
        "{}: a network for {} x {} samples and {} classes, but {} has {} x {} samples and {} "
        "classes",
        options.init, config.input_channels, config.length, config.classes, options.data, kChannels,
        data.length(), classes);
  }
  if (!network.class_names.empty() && network.class_names != data.class_names()) {
    fail("{}: a network for the classes {}, but {} has {} in this order", options.init,
         fmt::join(network.class_names, ","), options.data, fmt::join(data.class_names(), ","));
  }
  network.class_names = data.class_names();
  return network;
}

bool has_file_teacher(const Options& options) {
  return !options.distill.empty() && options.distill != kDistillBaseline;
}

std::vector<int> hidden_channels(const Network& network) {
  std::vector<int> channels;
  for (const Layer& layer : network.layers())
    if (layer.kind != Layer::Kind::kOutput) channels.push_back(layer.out_channels);
  return channels;
}

}  // namespace

FmpExperiment::FmpExperiment(const Options& options, LoadedData data, Console& console,
                             std::unique_ptr<Engine> engine, Communicator* ranks)
    : options_(options),
      ranks_(ranks),
      data_(std::move(data)),
      console_(console),
      trainer_(trainer_options(options, ranks), std::move(engine)),
      current_(initial_network(options, *data_.dataset)) {
  for (const std::string& name : options.p_methods) methods_.push_back(make_pruning_method(name));
  for (const Layer& layer : current_.layers()) weights_original_.push_back(layer.weights_total());
  if (const Augmentation augmentation = augmentation_of(options.augment); augmentation.any()) {
    augmented_.emplace(*data_.dataset, current_.config().input_quantizer(), augmentation,
                       options.seed, threads_or_all_cores(options.threads));
  }
  if (!data_.begin_epoch) give_frames();
  // A run that goes on has the teacher in its checkpoint.
  if (has_file_teacher(options) && options.resume.empty()) load_teacher();
}

void FmpExperiment::give_frames() {
  std::vector<int64_t> frames;
  for (const auto* part : {&data_.split.train, &data_.split.validation, &data_.split.test}) {
    if (augmented_ && part == &data_.split.train) continue;  // each epoch makes others of them
    frames.insert(frames.end(), part->begin(), part->end());
  }
  frames_given_ = trainer_.give_frames(*data_.dataset, frames);
}

void FmpExperiment::load_teacher() {
  teacher_ = load_model(options_.distill);
  learn_from(*teacher_);
}

void FmpExperiment::learn_from(const Network& teacher) {
  try {
    taught_ = std::make_unique<TaughtFrames>(frames_to_learn(), current_.config().input_quantizer(),
                                             teacher, options_.distill_temperature,
                                             threads_or_all_cores(options_.threads),
                                             !data_.begin_epoch && !augmented_);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    fail("--distill {}: {}", options_.distill, error.what());
  }
}

std::vector<Granularity> FmpExperiment::granularity() const {
  std::vector<Granularity> result;
  for (const auto& method : methods_) result.push_back(method->granularity());
  return result;
}

PruneOutcome FmpExperiment::prune(const std::string& method, double p, int round) {
  const auto index = std::ranges::find(options_.p_methods, method) - options_.p_methods.begin();
  const PruningMethod& chosen = *methods_.at(static_cast<size_t>(index));
  current_ = *best_;
  const PruneResult pruned = fmp::prune(current_, chosen, p, options_.seed,
                                        static_cast<uint64_t>(round), trainer_.prune_smallest());
  PruneOutcome outcome;
  outcome.weights_removed = pruned.weights_before - pruned.weights_after;
  outcome.bits_removed = pruned.bits_removed;
  if (outcome.weights_removed == 0 && outcome.bits_removed == 0) return outcome;
  outcome.weights_compacted = compact(current_).weights_removed;
  current_.reset_optimizer();
  outcome.channels = hidden_channels(current_);
  outcome.plan = trainer_.plan(current_);
  return outcome;
}

std::vector<LayerPlan> FmpExperiment::plan_baseline() { return trainer_.plan(current_); }

std::optional<EvaluationRecord> FmpExperiment::evaluate_given() {
  if (options_.init.empty() || current_.collects_thresholds()) return std::nullopt;
  return evaluate_current("round 0 as given");
}

EpochRecord FmpExperiment::train_epoch(double learning_rate, int64_t epoch,
                                       const std::string& label) {
  if (data_.begin_epoch) data_.begin_epoch(static_cast<uint64_t>(epoch));
  if (augmented_) augmented_->set_epoch(static_cast<uint64_t>(epoch));
  if (has_file_teacher(options_) && !taught_) load_teacher();
  const auto show = [&](const Progress& progress) {
    check_interrupt(ranks_);
    console_.progress(
        label, progress.frames_done, progress.frames_total,
        fmt::format("{:.0f} frames/s  loss {:.4f}", progress.frames_per_second, progress.loss));
  };
  const EpochResult trained =
      trainer_.train_epoch(current_, taught_frames(), data_.split.train, options_.seed,
                           static_cast<uint64_t>(epoch), learning_rate, show);
  EpochRecord record{evaluate_current(label)};
  record.train_loss = trained.loss;
  record.train_accuracy = trained.accuracy;
  record.train_seconds = trained.seconds;
  record.frames_per_second = static_cast<double>(trained.frames) / trained.seconds;
  return record;
}

EvaluationRecord FmpExperiment::evaluate_current(const std::string& label) {
  EvaluationRecord record;
  int64_t evaluated = 0;
  const auto evaluate_part = [&](const std::vector<int64_t>& frames, const char* name) {
    Evaluation result = evaluate_on(current_, frames, fmt::format("{} {}", label, name));
    record.evaluation_seconds += result.seconds;
    evaluated += result.frames;
    return result;
  };
  if (!data_.split.validation.empty()) {
    const Evaluation validation = evaluate_part(data_.split.validation, "validation");
    record.validation_loss = validation.loss;
    record.validation_accuracy = record.criterion_accuracy = validation.accuracy();
  }
  if (options_.criterion_split == CriterionSplit::kTest)
    record.test_accuracy = record.criterion_accuracy =
        evaluate_part(data_.split.test, "test").accuracy();
  record.evaluation_frames_per_second = static_cast<double>(evaluated) / record.evaluation_seconds;
  return record;
}

void FmpExperiment::keep() { best_ = current_; }

void FmpExperiment::remember_baseline() {
  baseline_ = best_;
  if (options_.distill == kDistillBaseline && baseline_) learn_from(*baseline_);
}

NetworkDescription FmpExperiment::describe_current() const { return describe(current_); }

NetworkDescription FmpExperiment::describe_best() const { return describe(best_.value()); }

std::vector<int> FmpExperiment::channels() const { return hidden_channels(current_); }

NetworkDescription FmpExperiment::describe(const Network& network) const {
  const NetworkCost cost = inference_cost(network);
  NetworkDescription description;
  description.weights = cost.weights();
  description.weights_alive = cost.weights_alive();
  description.input_scale = static_cast<double>(network.config().input_quantizer().scale);
  description.nonzeros = cost.weights_nonzero();
  description.macs = cost.macs();
  description.bit_ops = cost.bit_ops();
  description.bit_mem = cost.bit_mem();
  description.cost = cost.normalized();
  auto next_cost = cost.layers.begin();
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const Layer& layer = network.layers()[i];
    if (!layer.has_weights()) continue;
    const LayerCost& c = *next_cost++;
    const int read = layer.reads[0];
    const bool signed_inputs = read == kReadsFrames
                                   ? c.input_bits != kFloatBits
                                   : network.layers()[static_cast<size_t>(read)].smallest_code < 0;
    description.weights_original += weights_original_[i];
    description.layers.push_back({.name = layer.name,
                                  .kind = to_string(layer.kind),
                                  .in_channels = layer.in_channels / layer.form.stride,
                                  .out_channels = layer.out_channels,
                                  .kernel = layer.form.kernel,
                                  .stride = layer.form.stride,
                                  .groups = layer.form.groups,
                                  .positions = c.positions,
                                  .weight_bits = c.weight_bits,
                                  .input_bits = c.input_bits,
                                  .signed_inputs = signed_inputs,
                                  .weights = c.weights,
                                  .weights_original = weights_original_[i],
                                  .weights_alive = c.weights_alive,
                                  .nonzeros = c.weights_nonzero,
                                  .macs = c.macs(),
                                  .bit_ops = c.bit_ops(),
                                  .bit_mem = c.bit_mem()});
  }
  return description;
}

std::map<std::string, Network> FmpExperiment::networks() const {
  std::map<std::string, Network> networks;
  networks.emplace(kCurrent, current_);
  if (best_) networks.emplace(kBest, *best_);
  if (baseline_) networks.emplace(kBaseline, *baseline_);
  if (teacher_) networks.emplace(kTeacher, *teacher_);
  return networks;
}

void FmpExperiment::restore(std::map<std::string, Network> networks, const RoundRecord* open) {
  const auto take = [&](const char* name) -> std::optional<Network> {
    const auto found = networks.find(name);
    if (found == networks.end()) return std::nullopt;
    return std::move(found->second);
  };
  std::optional<Network> current = take(kCurrent);
  if (!current) fail("the checkpoint holds no network '{}'", kCurrent);
  current_ = std::move(*current);
  best_ = take(kBest);
  baseline_ = take(kBaseline);
  teacher_ = take(kTeacher);
  if (teacher_) learn_from(*teacher_);
  if (options_.distill == kDistillBaseline && baseline_) learn_from(*baseline_);
  if (open != nullptr) trainer_.set_plan(open->plan);
}

FinalEvaluation FmpExperiment::evaluate(const Network& network, const std::string& label) {
  trainer_.plan(network);
  FinalEvaluation result;
  if (!data_.split.validation.empty())
    result.validation = evaluate_on(network, data_.split.validation, label + " validation");
  result.test = evaluate_on(network, data_.split.test, label + " test");
  return result;
}

Evaluation FmpExperiment::evaluate_on(const Network& network, const std::vector<int64_t>& frames,
                                      const std::string& label) {
  return trainer_.evaluate(network, *data_.dataset, frames, [&](const Progress& progress) {
    check_interrupt(ranks_);
    console_.progress(label, progress.frames_done, progress.frames_total,
                      fmt::format("{:.0f} frames/s", progress.frames_per_second));
  });
}

}  // namespace fmp
