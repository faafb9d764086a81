// SPDX-License-Identifier: MIT
#include "framework/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>

#include "framework/data/shared_reader.h"
#include "framework/error.h"
#include "framework/hash.h"
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
    if (!layer.running_mean.defined()) continue;
    check(layer, "a batch-norm statistic", layer.running_mean);
    check(layer, "a batch-norm statistic", layer.running_var);
  }
}

// The first rank's choices, which are those of the record, on all ranks.
void take_first_ranks_plan(Communicator& ranks, std::vector<LayerPlan>& plan) {
  std::vector<int64_t> kernels;
  for (const LayerPlan& layer : plan) {
    for (const Kernel kernel : {layer.forward, layer.backward_data, layer.backward_weight})
      kernels.push_back(ranks.rank() == 0 ? static_cast<int64_t>(kernel) : 0);
  }
  ranks.sum(kernels);
  auto next = kernels.begin();
  for (LayerPlan& layer : plan) {
    for (Kernel* kernel : {&layer.forward, &layer.backward_data, &layer.backward_weight})
      *kernel = static_cast<Kernel>(*next++);
  }
}

// A batch of one frame has no variance in a dense layer, and batch-norm no meaning.
constexpr int64_t kSmallestBatch = 2;

}  // namespace

// Frames that the engine has, as a set that says where.
class Trainer::GivenFrames final : public Dataset {
 public:
  GivenFrames(const Dataset& data, std::span<const int64_t> frames)
      : data_(data), places_(static_cast<size_t>(data.size()), kNone) {
    for (size_t place = 0; place < frames.size(); ++place)
      places_[static_cast<size_t>(frames[place])] = static_cast<uint32_t>(place);
  }

  bool are_of(const Dataset& data, std::span<const int64_t> frames) const {
    return &data == &data_ && std::ranges::all_of(frames, [this](int64_t frame) {
      return places_[static_cast<size_t>(frame)] != kNone;
    });
  }

  int64_t size() const override { return data_.size(); }
  int length() const override { return data_.length(); }
  const std::vector<std::string>& class_names() const override { return data_.class_names(); }
  uint8_t label(int64_t frame) const override { return data_.label(frame); }
  int16_t snr_db(int64_t frame) const override { return data_.snr_db(frame); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    batch.count = std::ssize(frames);
    batch.codes.clear();
    batch.values.clear();
    batch.places.clear();
    batch.labels.clear();
    batch.snr_db.clear();
    batch.soft_targets.clear();
    for (const int64_t frame : frames) {
      batch.places.push_back(places_[static_cast<size_t>(frame)]);
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
    }
  }

 private:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  const Dataset& data_;
  std::vector<uint32_t> places_;  // of every frame of the set
};

bool Trainer::give_frames(const Dataset& data, std::span<const int64_t> frames) {
  given_.reset();
  if (options_.ranks != nullptr || data.soft_targets() != 0 ||
      !engine_->take_frames(data, frames)) {
    return false;
  }
  given_ = std::make_unique<GivenFrames>(data, frames);
  return true;
}

const Dataset& Trainer::source(const Dataset& data, std::span<const int64_t> frames) const {
  if (given_ && given_->are_of(data, frames)) return *given_;
  return data;
}

Trainer::Trainer(const TrainerOptions& options)
    : Trainer(options, make_cpu_engine(options.threads, options.ranks)) {}

Trainer::Trainer(const TrainerOptions& options, std::unique_ptr<Engine> engine)
    : options_(options), engine_(std::move(engine)) {}

Trainer::~Trainer() = default;

StepOptions Trainer::step_options(double learning_rate) const {
  return {.adam = {learning_rate, options_.beta1, options_.beta2, options_.epsilon},
          .threshold_statistic_steps = options_.threshold_statistic_steps,
          .loss = options_.loss,
          .gradients = options_.gradients};
}

void Trainer::train(Network& network, const StepOptions& step, const BatchSource& batches,
                    const ResultSink& results) {
  int64_t number = network.steps;  // of the step whose result comes next
  try {
    engine_->train(network, plan_, step, batches, [&](const BatchResult& result) {
      const double loss = result.loss_sum / static_cast<double>(result.frames());
      if (!std::isfinite(loss)) {
        throw DivergedError(
            fmt::format("training diverged at step {}: the loss is {}", number, loss));
      }
      ++number;
      results(result);
    });
  } catch (const std::domain_error& error) {
    throw DivergedError(fmt::format("training diverged at step {}: {}", number, error.what()));
  }
  check_finite(network);
}

void Trainer::train(Network& network, const StepOptions& step, const Dataset& data,
                    std::span<const int64_t> frames, const ResultSink& results) {
  SharedReader reader(source(data, frames), {frames.begin(), frames.end()}, options_.batch,
                      network.config().input_bits, SharedReader::Give::kShares, options_.ranks,
                      kSmallestBatch, engine_->share_units());
  train(
      network, step, [&] { return reader.next(); }, results);
}

Trainer::StepResult Trainer::train_step(Network& network, const FrameBatch& batch,
                                        double learning_rate) {
  const FrameBatch* next = &batch;
  StepResult reached;
  train(
      network, step_options(learning_rate), [&] { return std::exchange(next, nullptr); },
      [&](const BatchResult& result) {
        reached = {result.loss_sum / static_cast<double>(result.frames()), result.correct};
      });
  return reached;
}

EpochResult Trainer::train_epoch(Network& network, const Dataset& data,
                                 const std::vector<int64_t>& frames, uint64_t seed, uint64_t epoch,
                                 double learning_rate, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int64_t> order = epoch_order(frames, options_.epoch_frames, seed, epoch);
  EpochResult result;
  double loss_sum = 0;
  int64_t correct = 0;
  train(network, step_options(learning_rate), data, order, [&](const BatchResult& batch) {
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
  const int64_t settling = options_.batch_norm_steps * options_.batch;
  if (settling > 0) {
    settle_batch_norm(
        network, data,
        std::span(order).first(std::min(order.size(), static_cast<size_t>(settling))));
  }
  check_agreement(network);
  result.seconds = seconds_since(start);
  return result;
}

// Forward passes of a copy, whose gradients are not the network's.
void Trainer::settle_batch_norm(Network& network, const Dataset& data,
                                std::span<const int64_t> frames) {
  Network still = network;
  still.steps = std::max(still.steps, options_.threshold_statistic_steps);  // thresholds stay, too
  StepOptions forward_alone = step_options(0);
  forward_alone.backward = false;
  train(still, forward_alone, data, frames, [](const BatchResult&) {});
  for (size_t i = 0; i < network.layers().size(); ++i) {
    network.layers()[i].running_mean = std::move(still.layers()[i].running_mean);
    network.layers()[i].running_var = std::move(still.layers()[i].running_var);
  }
}

// All ranks compute the same steps from the same sums: a difference is a fault of a machine or of
// this program, and must not become a result.
void Trainer::check_agreement(const Network& network) const {
  if (options_.ranks == nullptr) return;
  std::vector<int64_t> sums(static_cast<size_t>(options_.ranks->ranks()), 0);  // one of each rank
  Hash hash;
  for (const Layer& layer : network.layers()) {
    for (const Parameter* parameter : layer.parameters())
      hash.add(std::span<const float>(parameter->value.floats()));
  }
  sums[static_cast<size_t>(options_.ranks->rank())] = static_cast<int64_t>(hash.value());
  options_.ranks->sum(sums);
  for (size_t rank = 1; rank < sums.size(); ++rank) {
    if (sums[rank] == sums[0]) continue;
    fail("after step {} {} has another network than {}", network.steps,
         options_.ranks->name(static_cast<int>(rank)), options_.ranks->name(0));
  }
}

namespace {

// What a rank tells of a batch that it evaluated: this, and a byte for every frame's class.
struct BatchEvaluation {
  double loss_sum = 0;
  int64_t correct = 0;
};

}  // namespace

Evaluation Trainer::evaluate(const Network& network, const Dataset& data,
                             const std::vector<int64_t>& frames, const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  const size_t classes = static_cast<size_t>(network.config().classes);
  Communicator* ranks = options_.ranks;
  SharedReader reader(source(data, frames), frames, options_.batch, network.config().input_bits,
                      SharedReader::Give::kBatches, ranks);
  Evaluation result;
  result.confusion.assign(classes * classes, 0);
  std::map<int, Evaluation::Snr> by_snr;
  double loss_sum = 0;
  const auto count = [&](const BatchResult& batch) {
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
  };
  const auto show = [&] {
    if (!progress) return;
    progress({result.frames, static_cast<int64_t>(frames.size()), result.loss,
              static_cast<double>(result.frames) / seconds_since(start)});
  };
  // What this rank found, or nothing, to all; counted by all in the order of the batches. An engine
  // may tell what a batch gave after it has taken further ones.
  std::deque<std::vector<size_t>> untold;  // cuts of what the reader gave
  const auto tell = [&](std::span<const std::byte> mine) {
    const std::vector<size_t> cuts = std::move(untold.front());
    untold.pop_front();
    std::vector<int64_t> sizes;
    for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
      const size_t batch = cuts[rank + 1] - cuts[rank];
      sizes.push_back(static_cast<int64_t>(batch == 0 ? 0 : sizeof(BatchEvaluation) + batch));
    }
    std::vector<std::byte> all(
        static_cast<size_t>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0})));
    ranks->gather(mine, sizes, all);
    const std::byte* at = all.data();
    for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
      if (sizes[rank] == 0) continue;
      BatchEvaluation evaluation;
      std::memcpy(&evaluation, at, sizeof evaluation);
      std::vector<uint8_t> labels;
      std::vector<int16_t> snr_db;
      for (size_t i = cuts[rank]; i < cuts[rank + 1]; ++i) {
        labels.push_back(data.label(frames[i]));
        snr_db.push_back(data.snr_db(frames[i]));
      }
      const auto* predicted = reinterpret_cast<const uint8_t*>(at + sizeof evaluation);
      count({evaluation.loss_sum, evaluation.correct, labels, snr_db, {predicted, labels.size()}});
      at += sizes[rank];
    }
    show();
  };
  const auto next = [&]() -> const FrameBatch* {
    const FrameBatch* batch = reader.next();
    if (ranks == nullptr || batch == nullptr) return batch;
    untold.emplace_back(reader.cuts().begin(), reader.cuts().end());
    return batch->count > 0 ? batch : nullptr;
  };
  engine_->evaluate(network, plan_, next, [&](const BatchResult& batch) {
    if (ranks == nullptr) {
      count(batch);
      return show();
    }
    const BatchEvaluation evaluation{batch.loss_sum, batch.correct};
    std::vector<std::byte> mine(sizeof evaluation + batch.predicted.size());
    std::memcpy(mine.data(), &evaluation, sizeof evaluation);
    std::ranges::copy(std::as_bytes(batch.predicted),
                      mine.begin() + static_cast<ptrdiff_t>(sizeof evaluation));
    tell(mine);
  });
  if (!untold.empty()) tell({});  // there were not enough batches for this rank the last time
  result.seconds = seconds_since(start);
  for (const auto& [snr_db, snr] : by_snr) result.by_snr.push_back(snr);
  return result;
}

std::vector<float> Trainer::logits(const Network& network, const FrameBatch& batch) {
  return engine_->logits(network, plan_, batch);
}

const std::vector<LayerPlan>& Trainer::plan(const Network& network) {
  plan_.clear();
  const bool timed = !options_.sparse_threshold;
  const bool elsewhere = options_.ranks != nullptr && options_.ranks->rank() != 0;
  for (const Layer& layer : network.layers()) {
    if (!layer.has_weights()) continue;
    plan_.push_back(!timed      ? plan_by_density(layer, *options_.sparse_threshold)
                    : elsewhere ? dense_plan(layer)
                                : engine_->plan_by_timing(layer, options_.batch));
  }
  if (timed && options_.ranks != nullptr) take_first_ranks_plan(*options_.ranks, plan_);
  return plan_;
}

void Trainer::set_plan(std::vector<LayerPlan> plan) { plan_ = std::move(plan); }
}  // namespace fmp
