// SPDX-License-Identifier: MIT
// Training and evaluation speed of a network on random frames, in passes over a data set as
// fmp_radioml makes them. On the CPU: the time of the best of a few steps, as frames/s, with the
// kernels' shares and rates. On a device: the mean, as steps overlap with the host's work and each
// other's copies.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "framework/command_line.h"
#include "framework/error.h"
#include "framework/inference/integer_network.h"
#include "framework/network/compaction.h"
#include "framework/network/description.h"
#include "framework/network/network.h"
#include "framework/network/working_part.h"
#include "framework/random.h"
#include "framework/threads.h"
#include "framework/training/engine_choice.h"
#include "framework/training/plan.h"
#include "framework/training/trainer.h"

namespace fmp {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model = "vgg10";
  int length = 1024;
  std::optional<int> channels;
  int bits = 8;
  int batch = 1024;
  double density = 1.0;
  std::optional<int> steps, warm_up;
  int threads = 0;
  DeviceChoice device = DeviceChoice::kAuto;
  uint64_t seed = 1;
  std::string sparse_threshold = "auto";
  std::string target = cpu::target_name();
  bool compact = false;
  ElementType gradients = ElementType::kF32;
  bool json = false;
};

std::optional<BenchOptions> parse(int argc, char** argv) {
  BenchOptions o;
  const std::map<std::string, DeviceChoice> devices = {
      {"auto", DeviceChoice::kAuto}, {"cpu", DeviceChoice::kCpu}, {"cuda", DeviceChoice::kCuda}};
  const std::map<std::string, ElementType> gradient_types = {{"float32", ElementType::kF32},
                                                             {"bf16", ElementType::kBF16}};
  std::string device = "auto", gradients = "float32";
  CLI::App app{"Times training and evaluation steps on random frames.", "fmp_bench"};
  app.add_option("--model", o.model, "network: vgg10, another preset of fmp_radioml, or its file")
      ->capture_default_str();
  app.add_option("--length", o.length, "samples per frame, a multiple of 128")
      ->check(CLI::Range(128, 1 << 20))
      ->capture_default_str();
  app.add_option("--channels", o.channels, "output channels of each convolution of vgg10 [64]")
      ->check(CLI::Range(1, 65536));
  app.add_option("--bits", o.bits, "weight, activation and input bits: 2..8, or 32 for float")
      ->capture_default_str();
  app.add_option("--batch", o.batch, "frames per step")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--density", o.density, "share of weights that are not pruned (random mask)")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--steps", o.steps,
                 "timed steps: 4, of which the best one counts; on a device 50, their mean")
      ->check(CLI::Range(1, 10000));
  app.add_option("--warm-up", o.warm_up, "steps before the timed ones: 2, on a device 5")
      ->check(CLI::Range(0, 10000));
  app.add_option("--device", device,
                 "cpu, cuda, or auto = cuda if there is a device and no --target")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "threads; 0 = all cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "seed of weights, mask and frames")->capture_default_str();
  app.add_option(
         "--sparse-threshold", o.sparse_threshold,
         "auto = time dense and sparse kernels, or the density below which to use sparse ones")
      ->capture_default_str();
  const CLI::Option* target = app.add_option("--target", o.target, "instruction set of the CPU")
                                  ->check(CLI::IsMember(cpu::target_names()))
                                  ->capture_default_str();
  app.add_flag("--compact", o.compact,
               "drop channels that compute nothing, as fmp_radioml does after each prune");
  app.add_option("--gradients", gradients, "between layers, on the CPU: float32 or bf16")
      ->check(CLI::IsMember({"float32", "bf16"}))
      ->capture_default_str();
  app.add_flag("--json", o.json, "print one JSON line");
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
  o.device = devices.at(device);
  if (target->count() > 0 && o.device == DeviceChoice::kAuto) o.device = DeviceChoice::kCpu;
  o.gradients = gradient_types.at(gradients);
  if (o.gradients != ElementType::kF32) {
    if (o.device == DeviceChoice::kCuda)
      throw UsageError("--gradients bf16: gradients are float32 on a device; use --device cpu");
    o.device = DeviceChoice::kCpu;
  }
  return o;
}

std::optional<double> sparse_threshold(const BenchOptions& o) {
  if (o.sparse_threshold == "auto") return std::nullopt;
  size_t used = 0;
  double value = -1;
  try {
    value = std::stod(o.sparse_threshold, &used);
  } catch (const std::exception&) {
  }
  if (used != o.sparse_threshold.size() || !(value >= 0 && value <= 1)) {
    throw UsageError(fmt::format("--sparse-threshold: '{}' is neither 'auto' nor a density 0..1",
                                 o.sparse_threshold));
  }
  return value;
}

void mask_at_random(Network& network, double density, uint64_t seed) {
  for (Layer& layer : network.layers()) {
    Random random(seed, layer.name);
    for (uint8_t& alive : layer.weight.mask) alive = random.uniform_double() < density ? alive : 0;
  }
  network.apply_masks();
}

FrameBatch random_frames(const NetworkConfig& config, int count, uint64_t seed) {
  FrameBatch batch;
  batch.count = count;
  Random random(seed, "frames");
  const size_t elements = static_cast<size_t>(count) * static_cast<size_t>(config.length) * 2;
  if (config.input_bits == kFloatBits) {
    batch.values.resize(elements);
    for (float& v : batch.values) v = random.uniform_float() * 4 - 2;
  } else {
    batch.codes.resize(elements);
    const int half = 1 << (config.input_bits - 1);
    for (int8_t& c : batch.codes) {
      c = static_cast<int8_t>(
          static_cast<int>(random.next_u32() % (2U * static_cast<uint32_t>(half))) - half);
    }
  }
  for (int i = 0; i < count; ++i) {
    batch.labels.push_back(
        static_cast<uint8_t>(random.next_u32() % static_cast<uint32_t>(config.classes)));
    batch.snr_db.push_back(0);
  }
  return batch;
}

// As many frames as are asked for, the same `batch` over and over.
class RepeatedFrames final : public Dataset {
 public:
  RepeatedFrames(FrameBatch batch, const NetworkConfig& config, int64_t size)
      : batch_(std::move(batch)),
        length_(config.length),
        names_(static_cast<size_t>(config.classes)),
        size_(size) {}
  int64_t size() const override { return size_; }
  int length() const override { return length_; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return batch_.labels[place(frame)]; }
  int16_t snr_db(int64_t frame) const override { return batch_.snr_db[place(frame)]; }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    batch.count = static_cast<int64_t>(frames.size());
    gather(batch_.codes, frames, batch.codes);
    gather(batch_.values, frames, batch.values);
    gather(batch_.labels, frames, batch.labels);
    gather(batch_.snr_db, frames, batch.snr_db);
  }

 private:
  size_t place(int64_t frame) const { return static_cast<size_t>(frame % batch_.count); }
  template <typename T>
  void gather(const std::vector<T>& from, std::span<const int64_t> frames,
              std::vector<T>& to) const {
    const size_t row = from.size() / static_cast<size_t>(batch_.count);
    to.resize(row * frames.size());
    for (size_t i = 0; i < frames.size(); ++i)
      std::copy_n(from.data() + place(frames[i]) * row, row, to.data() + i * row);
  }

  FrameBatch batch_;
  int length_;
  std::vector<std::string> names_;
  int64_t size_;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Multiply-adds of a frame's forward pass with all weights.
double dense_macs(const Network& network) {
  double macs = 0;
  for (const Layer& layer : network.layers()) {
    macs += static_cast<double>(layer.weights_total()) * static_cast<double>(layer.positions());
  }
  return macs;
}

Json shares(const cpu::Profile& p) {
  const std::vector<std::pair<const char*, double>> parts = {
      {"unpack", p.unpack},
      {"conv_forward", p.conv_forward},
      {"activation_forward", p.activation_forward},
      {"activation_backward", p.activation_backward},
      {"conv_backward_data", p.conv_backward_data},
      {"conv_backward_weight", p.conv_backward_weight},
      {"other", p.other}};
  double total = 0;
  for (const auto& [name, seconds] : parts) total += seconds;
  Json result;
  for (const auto& [name, seconds] : parts)
    result[name] = std::round(1000 * seconds / total) / 1000;
  return result;
}

// Bytes of a frame that a training step on the CPU moves between its sweeps, layer by layer of the
// part of a network that works: what no cache holds from one sweep to the next when the batch is
// large. See kernels/README.md.
Json traffic_json(const Network& network, ElementType gradients) {
  Json result = Json::array();
  const std::vector<Layer>& layers = network.layers();
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    const Layer& l = layers[i];
    const auto bytes = [](int bits) { return bits == kFloatBits ? 4.0 : 1.0; };
    const double sums = static_cast<double>(l.length) * l.out_channels;
    const double x = static_cast<double>(l.length) * l.in_channels * bytes(l.input_bits);
    const double out = sums / l.pool * bytes(l.act_bits), passes = sums / 8;
    // Layers on floats keep their sums; the first one on few codes needs no second sweep.
    const double y = l.input_bits == kFloatBits || l.weight_bits == kFloatBits ? 4 * sums : 0;
    const auto has_one_sweep = [&](size_t layer) {
      return layer == 0 && y == 0 && layers[0].fan_in() <= 16;
    };
    const bool one_sweep = has_one_sweep(i);
    // Statistics are taken where x is written, between layers of the same kind.
    const bool in_cache = i > 0 && layers[i - 1].kind == l.kind && l.form.stride == 1;
    const double gradient = static_cast<double>(element_bytes(gradients));
    const double dp = one_sweep ? 0 : gradient * sums / l.pool;
    const double dx = i == 0 || has_one_sweep(i - 1)
                          ? 0
                          : gradient * static_cast<double>(l.length) * l.in_channels;
    const double sweeps = one_sweep ? 1 : 2;
    result.push_back({{"layer", l.name},
                      {"forward_read", (in_cache ? 1 : 2) * x + y},
                      {"forward_written", out + passes + y},
                      {"backward_read", sweeps * (x + passes + y) + dp},
                      {"backward_written", dx}});
  }
  return result;
}

Json plan_json(const std::vector<LayerPlan>& plan) {
  Json result = Json::array();
  for (const LayerPlan& p : plan) {
    result.push_back({{"layer", p.layer},
                      {"density", std::round(10000 * p.density) / 10000},
                      {"forward", kernel_name(p.forward)},
                      {"backward_data", kernel_name(p.backward_data)},
                      {"backward_weight", kernel_name(p.backward_weight)}});
    if (!p.refused.empty()) result.back()["refused"] = p.refused;
  }
  return result;
}

int64_t nonzeros(const std::vector<LayerPlan>& plan, const Network& network) {
  double sum = 0;
  for (const Layer& layer : network.layers()) {
    if (layer.has_weights())
      sum += plan_of(plan, layer).density * static_cast<double>(layer.weight.size());
  }
  return std::llround(sum);
}

int64_t peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_maxrss + 1023) / 1024;
}

// What is timed: a network and how it is trained.
struct Subject {
  Network network;
  TrainerOptions options;
  std::vector<LayerPlan> plan;
  double gflop;  // of a batch's forward pass, as if every weight were multiplied: what a dense
                 // kernel would have to reach
};

double per_second(const BenchOptions& o, double step_seconds) {
  return std::round(10 * o.batch / step_seconds) / 10;
}
double gflop_rate(const Subject& subject, double passes, double step_seconds) {
  return std::round(10 * passes * subject.gflop / step_seconds) / 10;
}
void add_dense_equivalents(const Subject& subject, double train_seconds, double eval_seconds,
                           Json& result) {
  result["train_dense_equivalent_gflop_per_s"] = gflop_rate(subject, 3, train_seconds);
  result["eval_dense_equivalent_gflop_per_s"] = gflop_rate(subject, 1, eval_seconds);
}

// Best wall-clock seconds of a batch in a pass over a data set, as fmp_radioml makes it: from one
// batch's loss to the next. pass(data, frames, progress): trains or evaluates.
template <typename Pass>
double best_seconds_of_pass(const BenchOptions& o, const NetworkConfig& config, int warm_up,
                            const FrameBatch& batch, const Pass& pass) {
  const int batches = warm_up + o.steps.value_or(4) + 1;
  const RepeatedFrames data(batch, config, static_cast<int64_t>(o.batch) * batches);
  std::vector<int64_t> frames(static_cast<size_t>(data.size()));
  std::iota(frames.begin(), frames.end(), int64_t{0});
  double best = std::numeric_limits<double>::infinity();
  Clock::time_point last;
  pass(data, frames, [&](const Progress& progress) {
    const Clock::time_point now = Clock::now();
    if (progress.frames_done > static_cast<int64_t>(o.batch) * (warm_up + 1))
      best = std::min(best, std::chrono::duration<double>(now - last).count());
    last = now;
  });
  return best;
}

void time_on_cpu(const BenchOptions& o, Subject& subject, Trainer& trainer, Json& result) {
  Network& network = subject.network;
  const FrameBatch batch = random_frames(network.config(), o.batch, o.seed);
  cpu::Profile training;
  const int warm_up = o.warm_up.value_or(2);
  const double train_seconds =
      best_seconds_of_pass(o, network.config(), warm_up, batch,
                           [&](const Dataset& data, const std::vector<int64_t>& frames,
                               const ProgressCallback& progress) {
                             trainer.train_epoch(network, data, frames, o.seed, 1,
                                                 subject.options.learning_rate, progress);
                           });
  trainer.set_profile(&training);
  trainer.train_step(network, batch, subject.options.learning_rate);
  trainer.set_profile(nullptr);
  // The engine compiles the network to integers once it has seen so many frames.
  constexpr int kFramesBeforeIntegers = 2048;
  const double eval_seconds = best_seconds_of_pass(
      o, network.config(), std::max(warm_up, kFramesBeforeIntegers / o.batch + 1), batch,
      [&](const Dataset& data, const std::vector<int64_t>& frames,
          const ProgressCallback& progress) { trainer.evaluate(network, data, frames, progress); });

  // What `classify` runs: the same predictions on integers alone.
  double integer_seconds = 0;
  if (o.bits != kFloatBits) {
    const IntegerNetwork integers(network);
    std::vector<int32_t> logits(static_cast<size_t>(o.batch) *
                                static_cast<size_t>(network.config().classes));
    integer_seconds = std::numeric_limits<double>::infinity();
    for (int i = 0; i < warm_up + o.steps.value_or(4); ++i) {
      const auto start = Clock::now();
      integers.run(batch.codes, logits, {}, o.threads);
      integer_seconds = std::min(integer_seconds, seconds_since(start));
    }
  }

  result["threads"] = threads_or_all_cores(o.threads);
  result["target"] = cpu::target_name();
  result["train_frames_per_s"] = per_second(o, train_seconds);
  result["eval_frames_per_s"] = per_second(o, eval_seconds);
  result["peak_rss_mb"] = peak_rss_mb();
  if (o.bits != kFloatBits) result["integer_frames_per_s"] = per_second(o, integer_seconds);
  add_dense_equivalents(subject, train_seconds, eval_seconds, result);
  result["gflop_per_s_and_thread"] = {
      {"conv_forward", gflop_rate(subject, 1, training.conv_forward)},
      {"conv_backward_data", gflop_rate(subject, 1, training.conv_backward_data)},
      {"conv_backward_weight", gflop_rate(subject, 1, training.conv_backward_weight)}};
  result["train_share"] = shares(training);
  WorkingPart part(network);
  result["traffic"] = traffic_json(part.before_step(network, false), o.gradients);
}

// Mean seconds of a step in a pass of warm_up + steps batches, from the end of the last warm-up
// step on: steps overlap, so that one alone says nothing.
double mean_seconds(int batch, int warm_up, int steps,
                    const std::function<void(const ProgressCallback&)>& pass) {
  Clock::time_point start = Clock::now();
  double seconds = 0;
  pass([&](const Progress& progress) {
    if (progress.frames_done == static_cast<int64_t>(batch) * warm_up) start = Clock::now();
    if (progress.frames_done == progress.frames_total) seconds = seconds_since(start);
  });
  return seconds / steps;
}

void time_on_device(const BenchOptions& o, Subject& subject, Trainer& trainer, Json& result) {
  // The third step is captured into a graph, and results come back two steps later.
  const int warm_up = o.warm_up.value_or(5), steps = o.steps.value_or(50);
  const NetworkConfig& config = subject.network.config();
  const RepeatedFrames data(random_frames(config, o.batch, o.seed), config,
                            static_cast<int64_t>(o.batch) * (warm_up + steps));
  std::vector<int64_t> frames(static_cast<size_t>(data.size()));
  std::iota(frames.begin(), frames.end(), int64_t{0});
  result["frames_on_device"] = trainer.give_frames(data, frames);
  const double train_seconds =
      mean_seconds(o.batch, warm_up, steps, [&](const ProgressCallback& progress) {
        trainer.train_epoch(subject.network, data, frames, o.seed, 1, subject.options.learning_rate,
                            progress);
      });
  const size_t nodes = trainer.engine().graph_nodes().value();
  const double eval_seconds =
      mean_seconds(o.batch, warm_up, steps, [&](const ProgressCallback& progress) {
        trainer.evaluate(subject.network, data, frames, progress);
      });
  result["graph_nodes"] = nodes;
  result["train_frames_per_s"] = per_second(o, train_seconds);
  result["eval_frames_per_s"] = per_second(o, eval_seconds);
  result["peak_rss_mb"] = peak_rss_mb();
  result["peak_device_mb"] = (trainer.engine().peak_device_bytes().value() + 1048575) / 1048576;
  add_dense_equivalents(subject, train_seconds, eval_seconds, result);
}

Subject make_subject(const BenchOptions& o) {
  NetworkConfig config = read_network(o.model, o.bits);
  config.length = o.length;
  if (o.channels && o.model != "vgg10") throw UsageError("--channels: only for --model vgg10");
  for (LayerConfig& layer : config.layers) {
    if (o.channels && layer.kind == LayerKind::kConv) layer.outputs = *o.channels;
  }
  config.validate();
  Subject subject{Network(config, o.seed), {}, {}, 0};
  mask_at_random(subject.network, o.density, o.seed);
  subject.gflop = 2e-9 * dense_macs(subject.network) * o.batch;
  if (o.compact) compact(subject.network);
  subject.options.batch = o.batch;
  subject.options.threads = o.threads;
  subject.options.gradients = o.gradients;
  subject.options.sparse_threshold = sparse_threshold(o);
  // Time the steady state, where thresholds are learned.
  subject.options.threshold_statistic_steps = 1;
  return subject;
}

Json run(const BenchOptions& o) {
  cpu::use_target(o.target);
  DeviceChoice device = o.device;
  std::unique_ptr<Engine> engine = choose_engine(device, o.threads);
  Subject subject = make_subject(o);
  Trainer trainer(subject.options, std::move(engine));
  subject.plan = trainer.plan(subject.network);
  Json result = {{"model", o.model},
                 {"bits", o.bits},
                 {"batch", o.batch},
                 {"density", o.density},
                 {"compact", o.compact},
                 {"gradients", o.gradients == ElementType::kBF16 ? "bf16" : "float32"},
                 {"nonzeros", nonzeros(subject.plan, subject.network)},
                 {"device", trainer.engine().description()}};
  (device == DeviceChoice::kCuda ? time_on_device : time_on_cpu)(o, subject, trainer, result);
  result["plan"] = plan_json(subject.plan);
  return result;
}

void print(const Json& r) {
  const bool on_cpu = r.contains("target");
  fmt::print("{} at {} bits, batch {}, density {}, {}\n", r["model"].get<std::string>(),
             r["bits"].get<int>(), r["batch"].get<int>(), r["density"].get<double>(),
             r[on_cpu ? "target" : "device"].get<std::string>());
  fmt::print("training   {:10.1f} frames/s, {:7.1f} GFLOP/s dense equivalent\n",
             r["train_frames_per_s"].get<double>(),
             r["train_dense_equivalent_gflop_per_s"].get<double>());
  fmt::print("evaluation {:10.1f} frames/s, {:7.1f} GFLOP/s dense equivalent\n",
             r["eval_frames_per_s"].get<double>(),
             r["eval_dense_equivalent_gflop_per_s"].get<double>());
  if (r.contains("integer_frames_per_s")) {
    fmt::print("on integers {:9.1f} frames/s\n", r["integer_frames_per_s"].get<double>());
  }
  fmt::print("peak memory {} MB\n", r["peak_rss_mb"].get<int64_t>());
  if (on_cpu) {
    fmt::print("\nshare of the threads' time in training\n");
    for (const auto& [name, share] : r["train_share"].items()) {
      fmt::print("  {:28} {:8.1f}%\n", name, 100 * share.get<double>());
    }
    fmt::print("\nGFLOP/s of a thread in the kernels, dense equivalent\n");
    for (const auto& [name, value] : r["gflop_per_s_and_thread"].items()) {
      fmt::print("  {:28} {:8.1f}\n", name, value.get<double>());
    }
    fmt::print("\nbytes of a frame between sweeps  forward        backward\n");
    fmt::print("layer                       read  written    read  written\n");
    double total = 0;
    for (const Json& layer : r["traffic"]) {
      fmt::print("  {:20}", layer["layer"].get<std::string>());
      for (const char* what :
           {"forward_read", "forward_written", "backward_read", "backward_written"}) {
        fmt::print(" {:8.0f}", layer[what].get<double>());
        total += layer[what].get<double>();
      }
      fmt::print("\n");
    }
    fmt::print("  all of them: {:.2f} MB, at this speed {:.1f} GB/s\n", total / 1e6,
               total / 1e9 * r["train_frames_per_s"].get<double>());
  } else {
    fmt::print("peak device memory {} MB\n", r["peak_device_mb"].get<int64_t>());
  }
  fmt::print("\nlayer     density  forward  backward data  backward weight\n");
  for (const Json& p : r["plan"]) {
    fmt::print("{:8} {:8.4f}  {:9}{:15}{}\n", p["layer"].get<std::string>(),
               p["density"].get<double>(), p["forward"].get<std::string>(),
               p["backward_data"].get<std::string>(), p["backward_weight"].get<std::string>());
    for (const std::string refused : p.value("refused", Json::array())) {
      fmt::print("         not a candidate: {}\n", refused);
    }
  }
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    const auto options = fmp::parse(argc, argv);
    if (!options) return fmp::kExitSuccess;
    const fmp::Json result = fmp::run(*options);
    if (options->json) {
      fmt::print("{}\n", result.dump());
    } else {
      fmp::print(result);
    }
    return fmp::kExitSuccess;
  });
}
