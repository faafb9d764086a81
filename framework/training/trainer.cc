// SPDX-License-Identifier: MIT
#include "framework/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <span>
#include <stdexcept>
#include <utility>

#include "framework/error.h"
#include "framework/training/plan.h"

namespace fmp {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
}

// Throws when a training left a network that computes nothing: quantizers and batch-norm may still
// turn its infinities into numbers. An infinite moment of the optimizer stops a parameter for ever.
void check_finite(const Network& network) {
  const auto check = [&](const Layer& layer, const char* what, const Tensor& values) {
    if (all_finite(values.floats())) return;
    throw DivergedError(fmt::format("training diverged by step {}: {} of {} is no longer finite",
                                    network.steps, what, layer.name));
  };
  for (const Layer& layer : network.layers()) {
    for (const Parameter* parameter : layer.parameters()) {
      check(layer, "a parameter", parameter->value);
      check(layer, "the optimizer's state", parameter->moment1);
      check(layer, "the optimizer's state", parameter->moment2);
    }
    if (layer.kind == Layer::Kind::kOutput) continue;
    check(layer, "a batch-norm statistic", layer.running_mean);
    check(layer, "a batch-norm statistic", layer.running_var);
  }
}

// A batch of one frame has no variance in a dense layer, and batch-norm no meaning.
constexpr int64_t kSmallestBatch = 2;

}  // namespace

Trainer::Trainer(const TrainerOptions& options)
    : Trainer(options, make_cpu_engine(options.threads)) {}

Trainer::Trainer(const TrainerOptions& options, std::unique_ptr<Engine> engine)
    : options_(options), engine_(std::move(engine)) {}

void Trainer::train(Network& network, double learning_rate, const BatchSource& batches,
                    const ResultSink& results) {
  int64_t step = network.steps;  // the one whose result comes next
  try {
    engine_->train(network, plan_,
                   {{learning_rate, options_.beta1, options_.beta2, options_.epsilon},
                    options_.threshold_statistic_steps,
                    options_.loss},
                   batches, [&](const BatchResult& result) {
                     const double loss = result.loss_sum / static_cast<double>(result.frames());
                     if (!std::isfinite(loss)) {
                       throw DivergedError(
                           fmt::format("training diverged at step {}: the loss is {}", step, loss));
                     }
                     ++step;
                     results(result);
                   });
  } catch (const std::domain_error& error) {
    throw DivergedError(fmt::format("training diverged at step {}: {}", step, error.what()));
  }
  check_finite(network);
}

Trainer::StepResult Trainer::train_step(Network& network, const FrameBatch& batch,
                                        double learning_rate) {
  const FrameBatch* next = &batch;
  StepResult step;
  train(
      network, learning_rate, [&] { return std::exchange(next, nullptr); },
      [&](const BatchResult& result) {
        step = {result.loss_sum / static_cast<double>(result.frames()), result.correct};
      });
  return step;
}

EpochResult Trainer::train_epoch(Network& network, const Dataset& data,
                                 const std::vector<int64_t>& frames, uint64_t seed, uint64_t epoch,
                                 double learning_rate, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int64_t> order = epoch_order(frames, options_.epoch_frames, seed, epoch);
  BatchReader reader(data, order, options_.batch);
  const auto next = [&] {
    const FrameBatch* batch = reader.next();
    while (batch != nullptr && batch->count < kSmallestBatch) batch = reader.next();
    return batch;
  };
  EpochResult result;
  double loss_sum = 0;
  int64_t correct = 0;
  train(network, learning_rate, next, [&](const BatchResult& batch) {
    loss_sum += batch.loss_sum;
    correct += batch.correct;
    result.frames += batch.frames();
    const double done = static_cast<double>(result.frames);
    result.loss = loss_sum / done;
    result.accuracy = static_cast<double>(correct) / done;
    if (progress) {
      progress({result.frames, static_cast<int64_t>(order.size()), result.loss,
                done / seconds_since(start)});
    }
  });
  result.seconds = seconds_since(start);
  return result;
}

Evaluation Trainer::evaluate(const Network& network, const Dataset& data,
                             const std::vector<int64_t>& frames, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  const size_t classes = static_cast<size_t>(network.config().classes);
  BatchReader reader(data, frames, options_.batch);
  Evaluation result;
  result.confusion.assign(classes * classes, 0);
  std::map<int, Evaluation::Snr> by_snr;
  double loss_sum = 0;
  engine_->evaluate(
      network, plan_, [&] { return reader.next(); },
      [&](const BatchResult& batch) {
        loss_sum += batch.loss_sum;
        result.correct += batch.correct;
        result.frames += batch.frames();
        for (size_t i = 0; i < batch.labels.size(); ++i) {
          Evaluation::Snr& snr = by_snr[batch.snr_db[i]];
          snr.snr_db = batch.snr_db[i];
          ++snr.frames;
          snr.correct += batch.predicted[i] == batch.labels[i];
          ++result.confusion[batch.labels[i] * classes + batch.predicted[i]];
        }
        result.loss = loss_sum / static_cast<double>(result.frames);
        if (progress) {
          progress({result.frames, static_cast<int64_t>(frames.size()), result.loss,
                    static_cast<double>(result.frames) / seconds_since(start)});
        }
      });
  result.seconds = seconds_since(start);
  for (const auto& [snr_db, snr] : by_snr) result.by_snr.push_back(snr);
  return result;
}

std::vector<float> Trainer::logits(const Network& network, const FrameBatch& batch) {
  return engine_->logits(network, plan_, batch);
}

const std::vector<LayerPlan>& Trainer::plan(const Network& network) {
  plan_.clear();
  for (const Layer& layer : network.layers()) {
    plan_.push_back(options_.sparse_threshold ? plan_by_density(layer, *options_.sparse_threshold)
                                              : engine_->plan_by_timing(layer, options_.batch));
  }
  return plan_;
}

void Trainer::set_plan(std::vector<LayerPlan> plan) { plan_ = std::move(plan); }
}  // namespace fmp
