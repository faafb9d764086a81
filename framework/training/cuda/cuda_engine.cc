// SPDX-License-Identifier: MIT
// Training and evaluation on a CUDA device. Two batches are on their way at a time: while the
// device works on one, the host fills the other's page-locked memory, and a stream of its own
// copies it over. Losses and predictions come back the same way, so that the host waits for a
// batch only when the next but one has to take its place.
#include "framework/training/cuda/cuda_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "framework/error.h"
#include "framework/training/cuda/device_network.h"
#include "framework/training/cuda/plan_timer.h"
#include "framework/training/plan.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/prune.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

std::span<const std::byte> samples_of(const FrameBatch& batch) {
  return batch.codes.empty() ? std::as_bytes(std::span(batch.values))
                             : std::as_bytes(std::span(batch.codes));
}

// A batch that is under way.
class BatchInFlight {
 public:
  // Starts the way to the device, on `copy`; what is put on `compute` then waits for it. factors:
  // of the batch's step, null = none.
  // taken: frames that the device has. first_frame: of a share of a batch.
  void send(const FrameBatch& batch, const std::byte* taken, const cuda::AdamFactors* factors,
            DeviceNetwork& network, cuda::Stream copy, cuda::Stream compute,
            int64_t first_frame = 0) {
    labels_ = batch.labels;
    snr_db_ = batch.snr_db;
    const bool are_there = !batch.places.empty();
    const std::span<const std::byte> frames =
        are_there ? std::as_bytes(std::span(batch.places)) : samples_of(batch);
    const auto soft = std::as_bytes(std::span(batch.soft_targets));
    // One block, one copy: factors, frames or where they are, a teacher's words, labels.
    const size_t frames_at = sizeof(cuda::AdamFactors);
    const size_t soft_at =
        (frames_at + frames.size() + sizeof(float) - 1) / sizeof(float) * sizeof(float);
    const size_t labels_at = soft_at + soft.size();
    const size_t bytes = labels_at + batch.labels.size();
    std::byte* host = staged_.reserve(bytes);
    const cuda::AdamFactors of_step = factors != nullptr ? *factors : cuda::AdamFactors{};
    std::memcpy(host, &of_step, sizeof(of_step));
    std::ranges::copy(frames, host + frames_at);
    std::ranges::copy(soft, host + soft_at);
    std::ranges::copy(std::as_bytes(std::span(batch.labels)), host + labels_at);
    std::byte* device = nullptr;
    {
      const cuda::MemoryStream for_copies(copy);
      device = device_.reserve(bytes);
    }
    cuda::copy_to_device(device, host, bytes, copy);
    arrived_.record(copy);
    arrived_.hold(compute);
    const auto* which = reinterpret_cast<const uint32_t*>(device + frames_at);
    network.load(are_there ? taken : device + frames_at, are_there ? which : nullptr,
                 reinterpret_cast<const uint8_t*>(device + labels_at), batch.count, first_frame,
                 std::ssize(batch.labels));
    if (!soft.empty()) network.load_soft_targets(reinterpret_cast<const float*>(device + soft_at));
    if (factors != nullptr) network.load(reinterpret_cast<const cuda::AdamFactors*>(device));
  }

  // Starts the way back of what the step gave.
  void receive(const DeviceNetwork& network, bool predictions, cuda::Stream compute) {
    cuda::copy_to_host(loss_.data(), network.loss(), sizeof(cuda::LossResult), compute);
    predictions_ = predictions;
    if (predictions) {
      cuda::copy_to_host(predicted_.reserve(labels_.size()), network.predicted(), labels_.size(),
                         compute);
    }
    done_.record(compute);
    busy_ = true;
  }

  // Waits for the batch, if one is under way, and hands its results over.
  void deliver(const ResultSink& results) {
    if (!std::exchange(busy_, false)) return;
    done_.synchronize();
    const cuda::LossResult& loss = *loss_.data();
    const std::span<const uint8_t> predicted(predicted_.data(), predictions_ ? labels_.size() : 0);
    results({loss.loss_sum, loss.correct, labels_, snr_db_, predicted});
    if (loss.not_finite != 0) throw std::domain_error("a parameter is not finite");
  }
  void forget() { busy_ = false; }

 private:
  cuda::PinnedBuffer<std::byte> staged_;
  cuda::DeviceBuffer<std::byte> device_;
  cuda::PinnedBuffer<cuda::LossResult> loss_{1};
  cuda::PinnedBuffer<uint8_t> predicted_;
  std::vector<uint8_t> labels_;
  std::vector<int16_t> snr_db_;
  cuda::Event arrived_, done_;
  bool predictions_ = false, busy_ = false;
};

// What a captured step depends on beside what is loaded.
struct StepKind {
  int64_t frames = 0;
  bool collect = false, first = false, soft = false;
  bool operator==(const StepKind&) const = default;
};

// Runs steps of a kind as a graph: the first one as it is, so that all memory is there, the second
// one is captured.
class CapturedStep {
 public:
  CapturedStep(bool graphs, const char* name) : graphs_(graphs), name_(name) {}

  void run(const StepKind& kind, cuda::Stream stream, const std::function<void()>& step) {
    if (!graphs_ || kind != kind_) {
      graph_.reset();
      kind_ = kind;
      step();
      return;
    }
    if (graph_.empty()) {
      graph_.capture(stream, step);
      nodes_ = graph_.nodes();
    }
    const cuda::Range range(name_);
    graph_.launch(stream);
  }

  size_t nodes() const { return nodes_; }  // of the last graph; 0: there was none

 private:
  bool graphs_;
  const char* name_;
  StepKind kind_;
  cuda::Graph graph_;
  size_t nodes_ = 0;
};

class CudaEngine final : public Engine {
 public:
  explicit CudaEngine(const CudaEngineOptions& options) : options_(options) {
    if (options.cache_memory) cache_.emplace();
    if (options.ranks != nullptr) ranks_.emplace(*options.ranks);
  }

  std::string description() const override {
    const std::string one = "CUDA, " + cuda::device_name();
    return ranks_ ? fmt::format("{} ranks: {} each", ranks_->ranks(), one) : one;
  }
  ShareUnits share_units() const override { return cuda::kDeviceShareUnits; }

  void train(Network& network, std::span<const LayerPlan> plan, const StepOptions& options,
             const BatchSource& batches, const ResultSink& results) override {
    if (options.gradients != ElementType::kF32)
      throw std::invalid_argument("gradients are float32 on a device");
    const cuda::MemoryStream memory(compute());
    if (ranks_) check_shared(network, plan);
    DeviceNetwork device(network, plan, DeviceNetwork::Use::kTraining, libraries_, ranks());
    device.set_loss(options.loss);
    CapturedStep captured(options_.graphs, "train step (graph)");
    run(batches, results, [&](BatchInFlight& flight, const FrameBatch& batch) {
      const cuda::AdamFactors factors = cuda::adam_factors(options.adam, ++network.optimizer_steps);
      const int64_t frames = std::ssize(batch.labels);
      int64_t first = 0;
      if (ranks_) {
        ranks_->check();
        first =
            BatchShare::of(frames, ranks_->rank(), *options_.ranks, share_units()).first_frame();
      }
      flight.send(batch, frames_.data(), &factors, device, copy(), compute(), first);
      const StepKind kind{frames, network.collects_thresholds(options.threshold_statistic_steps),
                          network.steps == 0, !batch.soft_targets.empty()};
      captured.run(kind, compute(),
                   [&] { device.train_step(kind.collect, kind.first, options.backward); });
      flight.receive(device, false, compute());
      ++network.steps;
    });
    graph_nodes_ = captured.nodes();
    device.store(network);
  }

  void evaluate(const Network& network, std::span<const LayerPlan> plan, const BatchSource& batches,
                const ResultSink& results) override {
    const cuda::MemoryStream memory(compute());
    DeviceNetwork device(network, plan, DeviceNetwork::Use::kEvaluation, libraries_);
    CapturedStep captured(options_.graphs, "evaluation (graph)");
    run(batches, results, [&](BatchInFlight& flight, const FrameBatch& batch) {
      flight.send(batch, frames_.data(), nullptr, device, copy(), compute());
      captured.run({batch.count}, compute(), [&] { device.evaluate(); });
      flight.receive(device, true, compute());
    });
  }

  std::vector<float> logits(const Network& network, std::span<const LayerPlan> plan,
                            const FrameBatch& batch) override {
    const cuda::MemoryStream memory(compute());
    DeviceNetwork device(network, plan, DeviceNetwork::Use::kEvaluation, libraries_);
    std::vector<float> result;
    const FrameBatch* next = &batch;
    run([&] { return std::exchange(next, nullptr); }, [](const BatchResult&) {},
        [&](BatchInFlight& flight, const FrameBatch& frames) {
          flight.send(frames, frames_.data(), nullptr, device, copy(), compute());
          device.evaluate();
          flight.receive(device, true, compute());
          result = device.logits();
        });
    return result;
  }

  LayerPlan plan_by_timing(const Layer& layer, int batch) override {
    const cuda::MemoryStream memory(compute());
    const int64_t share =
        ranks_ ? BatchShare::of(batch, 0, *options_.ranks, share_units()).frames : int64_t{batch};
    return plan_by_device_timing(layer, static_cast<int>(layer.has_positions() ? share : batch),
                                 ranks_.has_value(), libraries_);
  }

  bool take_frames(const Dataset& data, std::span<const int64_t> frames) override {
    // The other half is for networks.
    constexpr size_t kShareOfFree = 2;
    constexpr int kFramesOfCopy = 4096;
    frames_ = {};
    if (frames.empty() || frames.size() > std::numeric_limits<uint32_t>::max()) return false;
    FrameBatch first;
    data.read(frames.first(1), first);
    const size_t bytes = frames.size() * samples_of(first).size();
    if (bytes > cuda::free_bytes() / kShareOfFree) return false;
    const cuda::MemoryStream memory(compute());
    frames_ = cuda::DeviceBuffer<std::byte>(bytes);
    BatchReader reader(data, {frames.begin(), frames.end()}, kFramesOfCopy);
    std::byte* to = frames_.data();
    while (const FrameBatch* batch = reader.next()) {
      const std::span<const std::byte> samples = samples_of(*batch);
      cuda::copy_to_device(to, samples.data(), samples.size(), compute());
      cuda::synchronize(compute());
      to += samples.size();
    }
    return true;
  }

  // Thrust sorts the weights of all layers.
  PruneSmallest prune_smallest() override {
    return [this](std::span<PrunableLayer> layers, double fraction) {
      const cuda::MemoryStream memory(compute());
      std::vector<cuda::DeviceBuffer<float>> weights;
      std::vector<cuda::DeviceBuffer<uint8_t>> masks;
      std::vector<cuda::PrunableWeights> on_device;
      for (const PrunableLayer& layer : layers) {
        weights.emplace_back(layer.weights, compute());
        masks.emplace_back(layer.mask, compute());
        on_device.push_back({weights.back().data(), masks.back().data(), layer.weights.size()});
      }
      cuda::prune_smallest(on_device, fraction, compute());
      for (size_t i = 0; i < layers.size(); ++i)
        std::ranges::copy(masks[i].to_host(compute()), layers[i].mask.begin());
    };
  }

  std::optional<size_t> graph_nodes() const override { return graph_nodes_; }
  std::optional<size_t> peak_device_bytes() const override {
    return cuda::memory_figures().held_peak;
  }

 private:
  cuda::DeviceRanks* ranks() { return ranks_ ? &*ranks_ : nullptr; }
  // A plan that one device has timed may name libraries where several devices have own kernels
  // only.
  static void check_shared(const Network& network, std::span<const LayerPlan> plan) {
    for (const Layer& layer : network.layers()) {
      const LayerPlan chosen = plan_of(plan, layer);
      if (allowed_in_shares(layer, chosen)) continue;
      fail(
          "the plan of {} was timed on one device and names cuBLAS or cuSPARSE, whose sums of "
          "floats "
          "may depend on the number of devices; go on with one device, or start with "
          "--sparse-threshold",
          layer.name);
    }
  }
  cuda::Stream compute() const { return compute_; }
  cuda::Stream copy() const { return copy_; }

  // Puts batch after batch on the streams; results follow two batches behind.
  void run(const BatchSource& batches, const ResultSink& results,
           const std::function<void(BatchInFlight&, const FrameBatch&)>& start) {
    const Settle settle{*this};
    size_t turn = 0;
    for (;; ++turn) {
      BatchInFlight& flight = batches_[turn % kInFlight];
      flight.deliver(results);
      const FrameBatch* batch = batches();
      if (batch == nullptr) break;
      start(flight, *batch);
    }
    for (size_t i = 1; i < kInFlight; ++i) batches_[(turn + i) % kInFlight].deliver(results);
  }

  // Before memory goes to another use, also after an exception: nothing is under way.
  struct Settle {
    CudaEngine& engine;
    ~Settle() {
      for (BatchInFlight& flight : engine.batches_) flight.forget();
      try {
        cuda::synchronize(engine.copy());
        cuda::synchronize(engine.compute());
      } catch (const std::exception&) {  // the device has failed, and a call before has told
      }
    }
  };

  static constexpr size_t kInFlight = 2;

  CudaEngineOptions options_;
  std::optional<cuda::MemoryCache> cache_;  // first, as it outlives all memory
  cuda::OwnedStream compute_, copy_;
  cuda::Libraries libraries_{compute_};
  std::optional<cuda::DeviceRanks> ranks_;
  cuda::DeviceBuffer<std::byte> frames_;  // that were taken
  size_t graph_nodes_ = 0;
  std::array<BatchInFlight, kInFlight> batches_;
};

}  // namespace

bool cuda_available(std::string& why) {
  const char* reason = "";
  const bool available = cuda::device_available(&reason);
  why = available ? "" : fmt::format("no CUDA device: {}", reason);
  return available;
}

bool cuda_available_to_ranks(const Communicator& ranks, std::string& why) {
  if (!cuda_available(why)) return false;
  const int devices = cuda::device_count(), here = ranks.ranks_on_host();
  if (here > devices) {
    why = fmt::format("{} ranks here, but {} CUDA device{}; each rank needs one of its own", here,
                      devices, devices == 1 ? "" : "s");
  } else if (ranks.ranks() > cuda::kFrameGroups) {
    why = fmt::format("{} ranks; a batch is shared by {} devices at most", ranks.ranks(),
                      cuda::kFrameGroups);
  } else {
    why = cuda::why_no_nccl();
  }
  return why.empty();
}

std::unique_ptr<Engine> make_cuda_engine(const CudaEngineOptions& options) {
  std::string why;
  const bool available =
      options.ranks == nullptr ? cuda_available(why) : cuda_available_to_ranks(*options.ranks, why);
  if (!available) throw Error(why);
  if (options.ranks != nullptr) cuda::use_device(options.ranks->rank_on_host());
  return std::make_unique<CudaEngine>(options);
}

}  // namespace fmp
