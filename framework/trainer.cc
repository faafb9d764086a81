// SPDX-License-Identifier: MIT
#include "framework/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <stdexcept>

#include "framework/error.h"
#include "framework/functions.h"
#include "framework/plan.h"
#include "framework/threads.h"

namespace fmp {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A batch of one frame has no variance in a dense layer, and batch-norm no meaning.
constexpr int64_t kSmallestBatch = 2;

void adam(Network& network, const ops::AdamOptions& options) {
  ++network.optimizer_steps;
  for (Layer& layer : network.layers()) {
    for (Parameter* p : layer.parameters()) {
      ops::adam_step(options, network.optimizer_steps, p->grad.floats(), p->mask, p->value.floats(),
                     p->moment1.floats(), p->moment2.floats());
    }
  }
}

}  // namespace

struct Trainer::State {
  TrainerOptions options;
  RunContext context;
  std::vector<LayerPlan> plan;
  std::vector<LayerWorkspace> workspaces;

  // Workspaces of the network's layers, with the plan of each.
  std::span<LayerWorkspace> prepare(const Network& network) {
    workspaces.resize(network.layers().size());
    for (size_t i = 0; i < workspaces.size(); ++i) {
      workspaces[i].plan = {};
      for (const LayerPlan& p : plan) {
        if (p.layer == network.layers()[i].name) workspaces[i].plan = pass_plan(p);
      }
    }
    return workspaces;
  }
};

Trainer::Trainer(const TrainerOptions& options) : state_(std::make_unique<State>()) {
  state_->options = options;
  state_->context.threads = threads_or_all_cores(options.threads);
}

Trainer::~Trainer() = default;

Trainer::StepResult Trainer::train_step(Network& network, const FrameBatch& batch,
                                        double learning_rate) {
  const TrainerOptions& options = state_->options;
  Tape tape;
  ops::LossResult result;
  try {
    const Variable logits = forward(tape, network, state_->prepare(network), batch,
                                    options.threshold_statistic_steps, state_->context);
    result = cross_entropy(tape, logits, batch.labels);
  } catch (const std::domain_error& error) {
    throw DivergedError(
        fmt::format("training diverged at step {}: {}", network.steps, error.what()));
  }
  const double loss = result.loss_sum / static_cast<double>(batch.count);
  if (!std::isfinite(loss)) {
    throw DivergedError(
        fmt::format("training diverged at step {}: the loss is {}", network.steps, loss));
  }
  tape.backward();
  ++network.steps;
  adam(network, {learning_rate, options.beta1, options.beta2, options.epsilon});
  return {loss, result.correct};
}

EpochResult Trainer::train_epoch(Network& network, const Dataset& data,
                                 const std::vector<int64_t>& frames, uint64_t seed, uint64_t epoch,
                                 double learning_rate, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  BatchReader reader(data, shuffled(frames, seed, epoch), state_->options.batch);
  EpochResult result;
  double loss_sum = 0;
  int64_t correct = 0;
  while (const FrameBatch* batch = reader.next()) {
    if (batch->count < kSmallestBatch) continue;
    const StepResult step = train_step(network, *batch, learning_rate);
    loss_sum += step.loss * static_cast<double>(batch->count);
    correct += step.correct;
    result.frames += batch->count;
    result.seconds = seconds_since(start);
    const double done = static_cast<double>(result.frames);
    result.loss = loss_sum / done;
    result.accuracy = static_cast<double>(correct) / done;
    if (progress) {
      progress(
          {result.frames, static_cast<int64_t>(frames.size()), result.loss, done / result.seconds});
    }
  }
  return result;
}

Evaluation Trainer::evaluate(const Network& network, const Dataset& data,
                             const std::vector<int64_t>& frames, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  const size_t classes = static_cast<size_t>(network.config().classes);
  const std::span<LayerWorkspace> workspaces = state_->prepare(network);
  BatchReader reader(data, frames, state_->options.batch);
  Evaluation result;
  result.confusion.assign(classes * classes, 0);
  std::map<int, Evaluation::Snr> by_snr;
  std::vector<uint8_t> predicted;
  double loss_sum = 0;
  while (const FrameBatch* batch = reader.next()) {
    predicted.resize(static_cast<size_t>(batch->count));
    const Variable logits = forward(network, workspaces, *batch, state_->context);
    const ops::LossResult loss = ops::softmax_cross_entropy(std::as_const(logits->value).view(),
                                                            batch->labels, {}, predicted);
    loss_sum += loss.loss_sum;
    result.correct += loss.correct;
    result.frames += batch->count;
    for (size_t i = 0; i < predicted.size(); ++i) {
      Evaluation::Snr& snr = by_snr[batch->snr_db[i]];
      snr.snr_db = batch->snr_db[i];
      ++snr.frames;
      snr.correct += predicted[i] == batch->labels[i];
      ++result.confusion[batch->labels[i] * classes + predicted[i]];
    }
    result.seconds = seconds_since(start);
    result.loss = loss_sum / static_cast<double>(result.frames);
    if (progress) {
      progress({result.frames, static_cast<int64_t>(frames.size()), result.loss,
                static_cast<double>(result.frames) / result.seconds});
    }
  }
  for (const auto& [snr_db, snr] : by_snr) result.by_snr.push_back(snr);
  return result;
}

std::vector<float> Trainer::logits(const Network& network, const FrameBatch& batch) {
  const Variable logits = forward(network, state_->prepare(network), batch, state_->context);
  const int classes = network.config().classes;
  std::vector<float> result;
  result.reserve(static_cast<size_t>(batch.count * classes));
  for (int64_t n = 0; n < batch.count; ++n) {
    const float* frame = logits->value.data<float>() + n / kLanes * classes * kLanes + n % kLanes;
    for (int c = 0; c < classes; ++c) result.push_back(frame[c * kLanes]);
  }
  return result;
}

const std::vector<LayerPlan>& Trainer::plan(const Network& network) {
  const std::optional<double>& threshold = state_->options.sparse_threshold;
  state_->plan.clear();
  for (const Layer& layer : network.layers()) {
    state_->plan.push_back(
        threshold ? plan_by_density(layer, *threshold)
                  : plan_by_timing(layer, state_->options.batch, state_->context.threads));
  }
  return state_->plan;
}

void Trainer::set_plan(std::vector<LayerPlan> plan) { state_->plan = std::move(plan); }
const std::vector<LayerPlan>& Trainer::current_plan() const { return state_->plan; }
void Trainer::set_profile(ops::Profile* profile) { state_->context.profile = profile; }

}  // namespace fmp
