// SPDX-License-Identifier: MIT
// Runs any ONNX network that framework/onnx/graph.h reads on a RadioML file: accuracy over SNR, and
// the logits themselves for comparison with other runtimes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "framework/atomic_file.h"
#include "framework/command_line.h"
#include "framework/data/radioml.h"
#include "framework/error.h"
#include "framework/onnx/evaluate.h"
#include "framework/onnx/export.h"
#include "framework/onnx/import.h"
#include "framework/threads.h"
#include "framework/training/trainer.h"

namespace fmp {
namespace {

constexpr int kBatch = 1024;

struct EvalOptions {
  std::string model, data, engine = "auto", logits, exported;
  std::vector<std::string> classes;
  int64_t max_frames = 0;
  int threads = 0;
};

std::optional<EvalOptions> parse(int argc, char** argv) {
  EvalOptions o;
  CLI::App app("Accuracy of an ONNX network on a RadioML file");
  app.add_option("model", o.model, "ONNX file")->type_name("FILE")->required();
  app.add_option("--data", o.data, "RadioML file (HDF5 with X, Y, Z)")->type_name("FILE");
  app.add_option("--classes", o.classes,
                 "What the network's classes are called, in the order of its outputs, separated by "
                 "commas: frames of these alone are used")
      ->delimiter(',')
      ->transform(list_element())
      ->type_name("NAME,..");
  app.add_option("--max-frames", o.max_frames,
                 "Use this many frames, spread evenly over the file; 0 = all [0]")
      ->type_name("N");
  app.add_option("--engine", o.engine,
                 "network = the kernels that train, for VGG-like chains; graph = node by node in "
                 "float, for every graph; auto = network where possible [auto]")
      ->type_name("NAME");
  app.add_option("--logits", o.logits,
                 "Write the logits here: float32, a row per frame; - = to standard output, and "
                 "nothing else")
      ->type_name("FILE");
  app.add_option("--export", o.exported,
                 "Write a VGG-like chain here again, in the form that fmp_radioml writes")
      ->type_name("FILE");
  app.add_option("--threads", o.threads, "0 = all cores [0]")->type_name("N");
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
  if (o.engine != "auto" && o.engine != "network" && o.engine != "graph") {
    throw UsageError(
        fmt::format("--engine: expected auto, network or graph, found '{}'", o.engine));
  }
  if (o.data.empty() && o.exported.empty()) {
    throw UsageError("--data is missing: a RadioML file to run the network on");
  }
  if (o.threads < 0 || o.threads > 1024) {
    throw UsageError(fmt::format("--threads: expected 0..1024, found {}", o.threads));
  }
  if (o.max_frames < 0) {
    throw UsageError(fmt::format("--max-frames: expected at least 0, found {}", o.max_frames));
  }
  o.threads = threads_or_all_cores(o.threads);
  return o;
}

// The network of a graph, if it is of that form and the options do not forbid it.
std::optional<Network> network_for(const EvalOptions& options, const onnx::Graph& graph) {
  if (options.engine == "graph") return std::nullopt;
  try {
    return onnx::import_network(graph);
  } catch (const Error&) {
    if (options.engine == "network") throw;
    return std::nullopt;
  }
}

// Logits of batches, by either way.
class Engine {
 public:
  Engine(const EvalOptions& options, onnx::Graph graph)
      : threads_(options.threads), graph_(std::move(graph)) {
    network_ = network_for(options, graph_.graph());
    if (!network_) return;
    TrainerOptions trainer;
    trainer.batch = kBatch;
    trainer.threads = threads_;
    trainer_.emplace(trainer);
    trainer_->plan(*network_);
  }

  bool is_network() const { return network_.has_value(); }
  InputQuantizer input() const {
    return network_ ? network_->config().input_quantizer() : InputQuantizer::of(kFloatBits);
  }
  // Of a frame; 0: the graph says so itself.
  int length() const { return network_ ? network_->config().length : 0; }
  int64_t classes() const { return graph_.output_size(); }
  // Empty where the file does not say.
  const std::vector<std::string>& class_names() const { return graph_.graph().class_names; }
  std::vector<float> logits(const FrameBatch& batch, int length) {
    return network_ ? trainer_->logits(*network_, batch) : graph_.run(batch, length, threads_);
  }

 private:
  int threads_;
  onnx::GraphEvaluator graph_;
  std::optional<Network> network_;
  std::optional<Trainer> trainer_;
};

std::vector<int64_t> chosen_frames(const Dataset& data, int64_t max_frames) {
  const int64_t count = max_frames > 0 ? std::min(max_frames, data.size()) : data.size();
  std::vector<int64_t> frames(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) frames[static_cast<size_t>(i)] = i * data.size() / count;
  return frames;
}

void evaluate(const EvalOptions& options) {
  Engine engine(options, onnx::load(options.model));
  RadioMlOptions file;
  file.path = options.data;
  file.input_bits = engine.input().bits;
  file.input_scale = engine.input().scale;
  file.threads = options.threads;
  ClassMatch match;
  const std::vector<std::string> names =
      options.classes.empty() ? engine.class_names() : options.classes;
  if (!names.empty()) {
    if (static_cast<int64_t>(names.size()) != engine.classes()) {
      throw UsageError(fmt::format("--classes: {} names, but {} gives {} values", names.size(),
                                   options.model, engine.classes()));
    }
    match = match_classes(options.data, names);
    file.classes = match.classes;
  }
  const auto data = open_radioml(file);
  if (static_cast<int64_t>(data->class_names().size()) > engine.classes()) {
    fail("{}: {} classes, but {} gives {} values", options.data, data->class_names().size(),
         options.model, engine.classes());
  }
  if (const int expected = engine.length(); expected != 0 && data->length() != expected) {
    fail("{}: frames of {} samples, but {} is for {}", options.data, data->length(), options.model,
         expected);
  }
  if (names.empty() && static_cast<int64_t>(data->class_names().size()) < engine.classes()) {
    warn(
        fmt::format("{} does not say what its {} values are; the first {} are taken for the "
                    "classes of {}, as long as --classes names no others",
                    options.model, engine.classes(), data->class_names().size(), options.data));
  }
  const std::vector<int64_t> frames = chosen_frames(*data, options.max_frames);
  std::map<int, std::pair<int64_t, int64_t>> by_snr;  // frames, correct
  std::string written;
  double seconds = 0;
  int64_t correct = 0;
  BatchReader reader(*data, frames, kBatch);
  const auto classes = static_cast<size_t>(engine.classes());
  while (const FrameBatch* batch = reader.next()) {
    const auto began = std::chrono::steady_clock::now();
    const std::vector<float> logits = engine.logits(*batch, data->length());
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    for (size_t i = 0; i < static_cast<size_t>(batch->count); ++i) {
      const auto row = std::span(logits).subspan(i * classes, classes);
      const int label = names.empty() ? batch->labels[i] : match.network_class[batch->labels[i]];
      const bool right = std::ranges::max_element(row) - row.begin() == label;
      auto& [count, hits] = by_snr[batch->snr_db[i]];
      ++count;
      hits += right ? 1 : 0;
      correct += right ? 1 : 0;
    }
    if (!options.logits.empty()) {
      written.append(reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float));
    }
  }
  for (const std::string& warning : data->warnings()) warn(warning);
  if (options.logits == "-") return write_file_atomically(options.logits, written);
  const auto total = static_cast<double>(frames.size());
  fmt::print("{}: {} frames, accuracy {:.4f}, {:.0f} frames/s ({})\n", options.model, frames.size(),
             static_cast<double>(correct) / total, total / seconds,
             engine.is_network() ? "network" : "graph");
  fmt::print("SNR dB   frames  accuracy\n");
  for (const auto& [snr, counts] : by_snr) {
    fmt::print("{:6} {:8}    {:.4f}\n", snr, counts.first,
               static_cast<double>(counts.second) / static_cast<double>(counts.first));
  }
  if (!options.logits.empty()) write_file_atomically(options.logits, written);
}

void run(const EvalOptions& options) {
  if (!options.exported.empty())
    onnx::export_network(onnx::import_network(options.model), options.exported);
  if (!options.data.empty()) evaluate(options);
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    if (const auto options = fmp::parse(argc, argv)) fmp::run(*options);
    return fmp::kExitSuccess;
  });
}
