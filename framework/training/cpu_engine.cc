// SPDX-License-Identifier: MIT
// Training and evaluation on the processor: the functions of functions.h, recorded on a tape.
#include <fmt/format.h>

#include <optional>
#include <utility>

#include "framework/error.h"
#include "framework/inference/integer_network.h"
#include "framework/network/working_part.h"
#include "framework/threads.h"
#include "framework/training/engine.h"
#include "framework/training/functions.h"
#include "framework/training/plan.h"

namespace fmp {
namespace {

// The network on integers alone, which gives the same logits in less time; none if it has floats,
// or sums that could leave 32 bits.
std::optional<IntegerNetwork> integers_of(const Network& network) {
  try {
    return IntegerNetwork(network);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// To compile it takes about as long as it saves on as many frames.
constexpr int64_t kFramesBeforeIntegers = 2048;

class CpuEngine final : public Engine {
 public:
  CpuEngine(int threads, Communicator* ranks) : ranks_(ranks) {
    context_.threads = threads_or_all_cores(threads);
  }

  std::string description() const override {
    const std::string one =
        fmt::format("CPU, {}, {} threads", cpu::target_name(), context_.threads);
    return ranks_ == nullptr ? one : fmt::format("{} ranks: {} each", ranks_->ranks(), one);
  }

  void train(Network& network, std::span<const LayerPlan> plan, const StepOptions& options,
             const BatchSource& batches, const ResultSink& results) override {
    const std::span<LayerWorkspace> workspaces = prepare(network, plan);
    for (LayerWorkspace& workspace : workspaces) workspace.gradients = options.gradients;
    WorkingPart part(network);
    while (const FrameBatch* batch = batches()) {
      const int64_t statistic_steps = options.threshold_statistic_steps;
      Network& trained = part.before_step(network, network.collects_thresholds(statistic_steps));
      Tape tape;
      cpu::RunContext context = context_;
      BatchShare share;
      if (ranks_ != nullptr) {
        share = BatchShare::of(std::ssize(batch->labels), ranks_->rank(), *ranks_);
        context.share = &share;
      }
      const Variable logits = forward(tape, trained, workspaces, *batch, statistic_steps, context);
      const cpu::LossResult loss =
          cross_entropy(tape, logits, {batch->labels, batch->soft_targets, options.loss});
      results({loss.loss_sum, loss.correct, batch->labels, batch->snr_db, {}});
      if (options.backward) tape.backward();
      part.after_step(network);
      ++network.steps;
      if (options.backward) adam(network, options.adam);
    }
  }

  void evaluate(const Network& network, std::span<const LayerPlan> plan, const BatchSource& batches,
                const ResultSink& results) override {
    const std::span<LayerWorkspace> workspaces = prepare(network, plan);
    WorkingPart part(network);
    const Network& evaluated = part.for_evaluation(network);
    std::optional<IntegerNetwork> integers;
    bool compiled = false;
    int64_t frames = 0;
    std::vector<uint8_t> predicted;
    while (const FrameBatch* batch = batches()) {
      if (frames >= kFramesBeforeIntegers && !std::exchange(compiled, true))
        integers = integers_of(evaluated);
      frames += batch->count;
      predicted.resize(static_cast<size_t>(batch->count));
      Tensor logits;
      if (integers) {
        logits = Tensor::tile({batch->count, 1, network.config().classes, 0}, ElementType::kF32);
        integers->float_logits(batch->codes, logits.view(), context_.threads);
      } else {
        logits = forward(evaluated, workspaces, *batch, context_)->value;
      }
      const cpu::LossResult loss =
          cpu::softmax_cross_entropy(logits.view(), {batch->labels, {}, {}}, {}, predicted);
      results({loss.loss_sum, loss.correct, batch->labels, batch->snr_db, predicted});
    }
  }

  std::vector<float> logits(const Network& network, std::span<const LayerPlan> plan,
                            const FrameBatch& batch) override {
    WorkingPart part(network);
    const Variable logits =
        forward(part.for_evaluation(network), prepare(network, plan), batch, context_);
    const int classes = network.config().classes;
    std::vector<float> result;
    result.reserve(static_cast<size_t>(batch.count * classes));
    for (int64_t n = 0; n < batch.count; ++n) {
      const float* frame = logits->value.data<float>() + n / kLanes * classes * kLanes + n % kLanes;
      for (int c = 0; c < classes; ++c) result.push_back(frame[c * kLanes]);
    }
    return result;
  }

  LayerPlan plan_by_timing(const Layer& layer, int batch) override {
    return plan_by_cpu_timing(layer, batch, context_.threads);
  }

  void set_profile(cpu::Profile* profile) override { context_.profile = profile; }

 private:
  // Workspaces of the network's layers, with the plan of each.
  std::span<LayerWorkspace> prepare(const Network& network, std::span<const LayerPlan> plan) {
    workspaces_.resize(network.layers().size());
    for (size_t i = 0; i < workspaces_.size(); ++i) {
      workspaces_[i].plan = plan_of(plan, network.layers()[i]);
    }
    return workspaces_;
  }

  static void adam(Network& network, const AdamOptions& options) {
    ++network.optimizer_steps;
    for (Layer& layer : network.layers()) {
      for (Parameter* p : layer.parameters()) {
        cpu::adam_step(options, network.optimizer_steps, p->grad.floats(), p->mask,
                       p->value.floats(), p->moment1.floats(), p->moment2.floats());
      }
    }
  }

  cpu::RunContext context_;
  Communicator* ranks_;
  std::vector<LayerWorkspace> workspaces_;
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(int threads, Communicator* ranks) {
  return std::make_unique<CpuEngine>(threads, ranks);
}

}  // namespace fmp
