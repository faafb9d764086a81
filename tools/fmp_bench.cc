// SPDX-License-Identifier: MIT
// Training and evaluation speed of a network on random frames: the time of the best of a few whole
// steps, as frames/s, with the kernels' shares and rates.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "framework/compaction.h"
#include "framework/error.h"
#include "framework/integer_network.h"
#include "framework/network.h"
#include "framework/random.h"
#include "framework/threads.h"
#include "framework/trainer.h"
#include "tools/command_line.h"

namespace fmp {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::string model = "vgg10";
  int bits = 8;
  int batch = 1024;
  double density = 1.0;
  int steps = 4;
  int warm_up = 2;
  int threads = 0;
  uint64_t seed = 1;
  std::string sparse_threshold = "auto";
  std::string target = ops::target_name();
  bool compact = false;
  bool json = false;
};

std::optional<BenchOptions> parse(int argc, char** argv) {
  BenchOptions o;
  CLI::App app{"Times training and evaluation steps on random frames.", "fmp_bench"};
  app.add_option("--model", o.model, "network: vgg10")
      ->check(CLI::IsMember({"vgg10"}))
      ->capture_default_str();
  app.add_option("--bits", o.bits, "weight, activation and input bits: 2..8, or 32 for float")
      ->capture_default_str();
  app.add_option("--batch", o.batch, "frames per step")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--density", o.density, "share of weights that are not pruned (random mask)")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--steps", o.steps, "timed steps; the best one counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--warm-up", o.warm_up, "steps before the timed ones")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "threads; 0 = all cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "seed of weights, mask and frames")->capture_default_str();
  app.add_option(
         "--sparse-threshold", o.sparse_threshold,
         "auto = time dense and sparse kernels, or the density below which to use sparse ones")
      ->capture_default_str();
  app.add_option("--target", o.target, "instruction set")
      ->check(CLI::IsMember(ops::target_names()))
      ->capture_default_str();
  app.add_flag("--compact", o.compact,
               "drop channels that compute nothing, as fmp_radioml does after each prune");
  app.add_flag("--json", o.json, "print one JSON line");
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
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
    for (uint8_t& alive : layer.weight.mask) alive = random.uniform_double() < density ? 1 : 0;
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

// Best wall-clock seconds of a step; then one more step with the clocks on, which slow it down.
template <typename Step>
double best_seconds(const BenchOptions& o, Trainer& trainer, ops::Profile& profile,
                    const Step& step) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < o.warm_up; ++i) step();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < o.steps; ++i) {
    const auto start = Clock::now();
    step();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  trainer.set_profile(&profile);
  step();
  trainer.set_profile(nullptr);
  return best;
}

// Multiply-adds of a frame's forward pass with all weights.
double dense_macs(const Network& network) {
  double macs = 0;
  for (const Layer& layer : network.layers()) {
    macs += static_cast<double>(layer.weight.size()) * static_cast<double>(layer.positions());
  }
  return macs;
}

Json shares(const ops::Profile& p) {
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

Json plan_json(const std::vector<LayerPlan>& plan) {
  Json result = Json::array();
  for (const LayerPlan& p : plan) {
    result.push_back({{"layer", p.layer},
                      {"density", std::round(10000 * p.density) / 10000},
                      {"forward", ops::kernel_name(p.forward)},
                      {"backward_data", ops::kernel_name(p.backward_data)},
                      {"backward_weight", ops::kernel_name(p.backward_weight)}});
  }
  return result;
}

int64_t nonzeros(const std::vector<LayerPlan>& plan, const Network& network) {
  double sum = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    sum += plan[i].density * static_cast<double>(network.layers()[i].weight.size());
  }
  return std::llround(sum);
}

int64_t peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_maxrss + 1023) / 1024;
}

Json run(const BenchOptions& o) {
  ops::use_target(o.target);
  NetworkConfig config;
  config.input_bits = o.bits;
  config.weight_bits = {o.bits};
  config.act_bits = {o.bits};
  config.validate();
  Network network(config, o.seed);
  mask_at_random(network, o.density, o.seed);
  const double gflop = 2e-9 * dense_macs(network) * o.batch;
  if (o.compact) compact(network);

  TrainerOptions options;
  options.batch = o.batch;
  options.threads = o.threads;
  options.sparse_threshold = sparse_threshold(o);
  options.threshold_statistic_steps = 1;  // time the steady state, where thresholds are learned
  Trainer trainer(options);
  const std::vector<LayerPlan> plan = trainer.plan(network);
  const FrameBatch batch = random_frames(config, o.batch, o.seed);

  ops::Profile training, evaluation;
  const double train_seconds = best_seconds(
      o, trainer, training, [&] { trainer.train_step(network, batch, options.learning_rate); });
  const double eval_seconds =
      best_seconds(o, trainer, evaluation, [&] { trainer.logits(network, batch); });

  // What `classify` runs: the same predictions on integers alone.
  double integer_seconds = 0;
  if (o.bits != kFloatBits) {
    const IntegerNetwork integers(network);
    std::vector<int32_t> logits(static_cast<size_t>(o.batch) *
                                static_cast<size_t>(network.config().classes));
    ops::Profile unused;
    integer_seconds =
        best_seconds(o, trainer, unused, [&] { integers.run(batch.codes, logits, {}, o.threads); });
  }

  const auto rate = [&](double passes, double seconds_all) {
    return std::round(10 * passes * gflop / seconds_all) / 10;
  };
  const auto per_second = [&](double seconds) { return std::round(10 * o.batch / seconds) / 10; };
  Json result = {{"model", o.model},
                 {"bits", o.bits},
                 {"batch", o.batch},
                 {"density", o.density},
                 {"compact", o.compact},
                 {"nonzeros", nonzeros(plan, network)},
                 {"threads", threads_or_all_cores(o.threads)},
                 {"target", ops::target_name()},
                 {"train_frames_per_s", per_second(train_seconds)},
                 {"eval_frames_per_s", per_second(eval_seconds)},
                 {"peak_rss_mb", peak_rss_mb()}};
  if (o.bits != kFloatBits) result["integer_frames_per_s"] = per_second(integer_seconds);
  // As if every weight were multiplied: what a dense kernel would have to reach.
  result["train_dense_equivalent_gflop_per_s"] = std::round(30 * gflop / train_seconds) / 10;
  result["eval_dense_equivalent_gflop_per_s"] = std::round(10 * gflop / eval_seconds) / 10;
  result["gflop_per_s_and_thread"] = {
      {"conv_forward", rate(1, training.conv_forward)},
      {"conv_backward_data", rate(1, training.conv_backward_data)},
      {"conv_backward_weight", rate(1, training.conv_backward_weight)},
      {"eval_conv_forward", rate(1, evaluation.conv_forward)}};
  result["train_share"] = shares(training);
  result["eval_share"] = shares(evaluation);
  result["plan"] = plan_json(plan);
  return result;
}

void print(const Json& r) {
  fmt::print("{} at {} bits, batch {}, density {}, {}\n", r["model"].get<std::string>(),
             r["bits"].get<int>(), r["batch"].get<int>(), r["density"].get<double>(),
             r["target"].get<std::string>());
  fmt::print("training   {:10.1f} frames/s, {:7.1f} GFLOP/s dense equivalent\n",
             r["train_frames_per_s"].get<double>(),
             r["train_dense_equivalent_gflop_per_s"].get<double>());
  fmt::print("evaluation {:10.1f} frames/s, {:7.1f} GFLOP/s dense equivalent\n",
             r["eval_frames_per_s"].get<double>(),
             r["eval_dense_equivalent_gflop_per_s"].get<double>());
  if (r.contains("integer_frames_per_s")) {
    fmt::print("on integers {:9.1f} frames/s\n", r["integer_frames_per_s"].get<double>());
  }
  fmt::print("peak memory {} MB\n\nshare of the threads' time      training  evaluation\n",
             r["peak_rss_mb"].get<int64_t>());
  for (const auto& [name, share] : r["train_share"].items()) {
    fmt::print("  {:28} {:8.1f}%  {:9.1f}%\n", name, 100 * share.get<double>(),
               100 * r["eval_share"][name].get<double>());
  }
  fmt::print("\nGFLOP/s of a thread in the kernels, dense equivalent\n");
  for (const auto& [name, value] : r["gflop_per_s_and_thread"].items()) {
    fmt::print("  {:28} {:8.1f}\n", name, value.get<double>());
  }
  fmt::print("\nlayer     density  forward  backward data  backward weight\n");
  for (const Json& p : r["plan"]) {
    fmt::print("{:8} {:8.4f}  {:7}  {:13}  {}\n", p["layer"].get<std::string>(),
               p["density"].get<double>(), p["forward"].get<std::string>(),
               p["backward_data"].get<std::string>(), p["backward_weight"].get<std::string>());
  }
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    const auto options = fmp::parse(argc, argv);
    if (!options) return;
    const fmp::Json result = fmp::run(*options);
    if (options->json) {
      fmt::print("{}\n", result.dump());
    } else {
      fmp::print(result);
    }
  });
}
