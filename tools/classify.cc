// SPDX-License-Identifier: MIT
// Classifies frames with a network compiled to integers: an HDF5 file with labels, for accuracy
// over SNR and the confusion matrix, or a stream of samples, for a label with a confidence per
// frame.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "framework/data/radioml.h"
#include "framework/data/sample_stream.h"
#include "framework/data/split.h"
#include "framework/error.h"
#include "framework/inference/integer_network.h"
#include "framework/inference/model_file.h"
#include "framework/random.h"
#include "kernels/cpu/ops.h"
#include "tools/command_line.h"

namespace fmp {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct ClassifyOptions {
  std::string model, data, format, normalize = "stretch", split = "all";
  std::string target = cpu::target_name();
  int stretch = 256, batch = 64, threads = 0;
  std::optional<int> snr_min;
  bool json = false, benchmark = false;
};

std::optional<ClassifyOptions> parse(int argc, char** argv) {
  ClassifyOptions o;
  CLI::App app{"Classifies frames with a quantized network, exactly, on integers.", "classify"};
  app.add_option("--model", o.model, "network: .onnx, or .fmp of a run")
      ->type_name("FILE")
      ->required();
  app.add_option("--data", o.data, "HDF5 file with X, Y, Z; samples; or - for standard input")
      ->type_name("FILE");
  app.add_option("--format", o.format,
                 "of the data; without it, hdf5 for .h5 and .hdf5, sigmf for .sigmf-meta and "
                 ".sigmf-data")
      ->check(CLI::IsMember({"hdf5", "cf32", "ci16", "ci8", "sigmf"}));
  app.add_option("--normalize", o.normalize,
                 "samples are divided by the standard deviation of a long stretch (as RadioML's), "
                 "of each frame, or not at all (none: integers / 2^15 or 2^7)")
      ->check(CLI::IsMember({"stretch", "frame", "none"}))
      ->capture_default_str();
  app.add_option("--stretch", o.stretch, "frames of that stretch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "frames of a stream that are read before any is answered")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--split", o.split, "frames of an HDF5 file: all, or the published test frames")
      ->check(CLI::IsMember({"all", "test"}))
      ->capture_default_str();
  app.add_option("--snr-min", o.snr_min, "frames of an HDF5 file with at least this SNR, dB");
  app.add_option("--threads", o.threads, "threads; 0 = all cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--target", o.target, "instruction set")
      ->check(CLI::IsMember(cpu::target_names()))
      ->capture_default_str();
  app.add_flag("--json", o.json, "print JSON: one document, or for streams a line per frame");
  app.add_flag("--benchmark", o.benchmark,
               "also time the network on random frames: frames/s, and the latency of single ones");
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
  if (o.data.empty() && !o.benchmark) throw UsageError("--data or --benchmark is needed");
  return o;
}

std::string format_of(const ClassifyOptions& o) {
  if (!o.format.empty()) return o.format;
  const std::string extension = std::filesystem::path(o.data).extension().string();
  if (extension == ".h5" || extension == ".hdf5") return "hdf5";
  if (extension == ".sigmf-meta" || extension == ".sigmf-data") return "sigmf";
  throw UsageError("--format: needed for " + o.data + " (hdf5, cf32, ci16, ci8 or sigmf)");
}

std::vector<std::string> class_names(int classes) {
  if (static_cast<size_t>(classes) == radioml_class_names().size()) return radioml_class_names();
  std::vector<std::string> names;
  for (int c = 0; c < classes; ++c) names.push_back(fmt::format("class{}", c));
  return names;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What a labelled set gave.
struct Accuracy {
  struct Count {
    int64_t frames = 0, correct = 0;
    double accuracy() const {
      return frames > 0 ? static_cast<double>(correct) / static_cast<double>(frames) : 0.0;
    }
  };
  Count all;
  std::map<int, Count> by_snr;
  std::vector<std::vector<int64_t>> confusion;  // [true class][predicted class]
  double seconds = 0;                           // of classification alone
};

std::unique_ptr<RadioMlDataset> open(const ClassifyOptions& o, const IntegerNetwork& network) {
  const NetworkConfig& config = network.config();
  RadioMlOptions options;
  options.path = o.data;
  options.snr_min = o.snr_min;
  options.input_bits = network.has_standard_input() ? config.input_bits : kFloatBits;
  options.threads = o.threads;
  std::unique_ptr<RadioMlDataset> data = open_radioml(options);
  if (data->length() != config.length || config.input_channels != 2) {
    fail("{}: frames of {} samples of 2 values, the network takes {} of {}", o.data, data->length(),
         config.length, config.input_channels);
  }
  if (data->class_names().size() != static_cast<size_t>(config.classes)) {
    fail("{}: {} classes, the network tells {} apart", o.data, data->class_names().size(),
         config.classes);
  }
  return data;
}

Accuracy measure(const ClassifyOptions& o, const IntegerNetwork& network, const Dataset& data,
                 std::vector<int64_t> frames) {
  constexpr int kBatch = 1024;
  const size_t classes = static_cast<size_t>(network.config().classes);
  Accuracy result;
  result.confusion.assign(classes, std::vector<int64_t>(classes, 0));
  BatchReader reader(data, std::move(frames), kBatch);
  std::vector<int32_t> logits;
  std::vector<uint8_t> predicted;
  std::vector<int8_t> codes;  // of values that the file's reader does not know the scale of
  while (const FrameBatch* batch = reader.next()) {
    const size_t count = static_cast<size_t>(batch->count);
    logits.resize(count * classes);
    predicted.resize(count);
    codes.resize(batch->values.size());
    network.quantize(batch->values, codes.data());
    const Clock::time_point start = Clock::now();
    network.run(codes.empty() ? batch->codes : codes, logits, predicted, o.threads);
    result.seconds += seconds_since(start);
    for (size_t n = 0; n < count; ++n) {
      const bool correct = predicted[n] == batch->labels[n];
      for (Accuracy::Count* c : {&result.all, &result.by_snr[batch->snr_db[n]]}) {
        ++c->frames;
        c->correct += correct;
      }
      ++result.confusion[batch->labels[n]][predicted[n]];
    }
  }
  return result;
}

Json to_json(const Accuracy& a, const std::vector<std::string>& names) {
  Json snrs = Json::array();
  for (const auto& [snr, count] : a.by_snr) {
    snrs.push_back({{"snr_db", snr},
                    {"frames", count.frames},
                    {"correct", count.correct},
                    {"accuracy", count.accuracy()}});
  }
  return {{"frames", a.all.frames},
          {"correct", a.all.correct},
          {"accuracy", a.all.accuracy()},
          {"frames_per_s", static_cast<double>(a.all.frames) / a.seconds},
          {"by_snr", snrs},
          {"classes", names},
          {"confusion", a.confusion}};
}

void print(const Accuracy& a, const std::vector<std::string>& names) {
  fmt::print("{} of {} frames right: accuracy {:.4f}; {:.0f} frames/s\n\n", a.all.correct,
             a.all.frames, a.all.accuracy(), static_cast<double>(a.all.frames) / a.seconds);
  fmt::print("SNR, dB   frames  accuracy\n");
  for (const auto& [snr, count] : a.by_snr) {
    fmt::print("{:7} {:8} {:9.4f}\n", snr, count.frames, count.accuracy());
  }
  fmt::print("\nconfusion, % of the frames of a class (rows) taken for another (columns)\n{:14}",
             "");
  for (size_t c = 0; c < names.size(); ++c) fmt::print("{:>4}", c);
  fmt::print("\n");
  for (size_t t = 0; t < names.size(); ++t) {
    int64_t frames = 0;
    for (const int64_t n : a.confusion[t]) frames += n;
    fmt::print("{:2} {:11}", t, names[t]);
    for (const int64_t n : a.confusion[t]) {
      if (n == 0) {
        fmt::print("   .");
      } else {
        fmt::print("{:4.0f}", 100.0 * static_cast<double>(n) / static_cast<double>(frames));
      }
    }
    fmt::print("\n");
  }
}

Json classify_file(const ClassifyOptions& o, const IntegerNetwork& network) {
  const std::unique_ptr<RadioMlDataset> data = open(o, network);
  std::vector<int64_t> frames;
  if (o.split == "test") {
    frames = make_split(data->blocks(), 0).test;
  } else {
    for (int64_t i = 0; i < data->size(); ++i) frames.push_back(i);
  }
  const Accuracy accuracy = measure(o, network, *data, std::move(frames));
  if (!o.json) print(accuracy, data->class_names());
  return to_json(accuracy, data->class_names());
}

// Probability of the predicted class: softmax of the logits.
double confidence(const int32_t* logits, size_t classes, size_t predicted, double scale) {
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) {
    sum +=
        std::exp(scale * (static_cast<double>(logits[c]) - static_cast<double>(logits[predicted])));
  }
  return 1 / sum;
}

void classify_stream(const ClassifyOptions& o, const IntegerNetwork& network, std::istream& in,
                     const std::string& name, SampleFormat format) {
  const NetworkConfig& config = network.config();
  if (config.input_channels != 2) {
    fail("{}: samples have 2 values, the network takes {}", name, config.input_channels);
  }
  SampleStream stream(in, name,
                      {format, parse_normalization(o.normalize), config.length, o.stretch});
  const size_t classes = static_cast<size_t>(config.classes);
  const std::vector<std::string> names = class_names(config.classes);
  std::vector<float> values;
  std::vector<int8_t> codes;
  std::vector<int32_t> logits;
  std::vector<uint8_t> predicted;
  int64_t done = 0;
  for (int64_t count = o.batch; count == o.batch; done += count) {
    count = stream.read(o.batch, values);
    codes.resize(values.size());
    network.quantize(values, codes.data());
    logits.resize(static_cast<size_t>(count) * classes);
    predicted.resize(static_cast<size_t>(count));
    network.run(codes, logits, predicted, o.threads);
    for (size_t n = 0; n < predicted.size(); ++n) {
      const size_t label = predicted[n];
      const double certain = confidence(logits.data() + n * classes, classes, label,
                                        static_cast<double>(network.logit_scale()));
      const int64_t frame = done + static_cast<int64_t>(n);
      if (o.json) {
        const Json line = {{"frame", frame},
                           {"class", names[label]},
                           {"label", label},
                           {"confidence", std::round(1e6 * certain) / 1e6}};
        fmt::print("{}\n", line.dump());
      } else {
        fmt::print("{:8} {:12} {:.4f}\n", frame, names[label], certain);
      }
    }
    // Whoever reads a pipe wants the answers now.
    if (std::fflush(stdout) != 0) fail("the output cannot be written");
  }
  if (done == 0) {
    fail("{}: {} samples, fewer than the {} of a frame", name, stream.left_over(), config.length);
  }
  if (stream.left_over() > 0) {
    fmt::print(stderr, "note: {}: the last {} samples fill no frame\n", name, stream.left_over());
  }
}

void classify_samples(const ClassifyOptions& o, const IntegerNetwork& network,
                      const std::string& format) {
  if (o.data == "-") {
    if (format == "sigmf") throw UsageError("--format: a SigMF recording is not read from a pipe");
    std::ios::sync_with_stdio(false);
    return classify_stream(o, network, std::cin, "standard input", parse_sample_format(format));
  }
  std::filesystem::path file = o.data;
  SampleFormat type = SampleFormat::kCf32;
  if (format == "sigmf") {
    const SigMf sigmf = read_sigmf(file);
    file = sigmf.data;
    type = sigmf.format;
  } else {
    type = parse_sample_format(format);
  }
  std::ifstream in(file, std::ios::binary);
  if (!in) fail("{}: cannot be opened", file.string());
  classify_stream(o, network, in, file.string(), type);
}

// Codes as good as any: the time does not depend on them.
std::vector<int8_t> random_codes(const NetworkConfig& config, int frames) {
  Random random(1, "benchmark");
  const int half = 1 << (config.input_bits - 1);
  std::vector<int8_t> codes(static_cast<size_t>(frames) * static_cast<size_t>(config.length) *
                            static_cast<size_t>(config.input_channels));
  for (int8_t& code : codes) {
    code =
        static_cast<int8_t>(static_cast<int>(random.below(2 * static_cast<uint64_t>(half))) - half);
  }
  return codes;
}

// Seconds of `runs` runs over the frames, ascending.
std::vector<double> times_of(const IntegerNetwork& network, std::span<const int8_t> codes,
                             int frames, int runs, int threads) {
  std::vector<int32_t> logits(static_cast<size_t>(frames) *
                              static_cast<size_t>(network.config().classes));
  std::vector<uint8_t> predicted(static_cast<size_t>(frames));
  std::vector<double> seconds;
  constexpr int kWarmUp = 2;
  for (int i = -kWarmUp; i < runs; ++i) {
    const Clock::time_point start = Clock::now();
    network.run(codes, logits, predicted, threads);
    if (i >= 0) seconds.push_back(seconds_since(start));
  }
  std::ranges::sort(seconds);
  return seconds;
}

Json benchmark(const ClassifyOptions& o, const IntegerNetwork& network) {
  constexpr int kBatch = 1024, kRuns = 9, kSingles = 1000;
  const std::vector<int8_t> codes = random_codes(network.config(), kBatch);
  const std::vector<double> batches = times_of(network, codes, kBatch, kRuns, o.threads);
  const std::vector<double> singles =
      times_of(network, std::span(codes).first(codes.size() / kBatch), 1, kSingles, 1);
  const auto percentile = [&](double p) {
    const size_t at = static_cast<size_t>(p / 100 * static_cast<double>(kSingles - 1));
    return std::round(1e7 * singles[at]) / 1e4;
  };
  Json layers = Json::array();
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const cpu::IntegerLayer& kernel = network.kernels()[i];
    const IntegerLayerData& data = network.layers()[i];
    layers.push_back(
        {{"layer", data.name},
         {"kernel", kernel.sparse ? "sparse" : "dense"},
         {"sums", cpu::name_of(kernel.dot)},
         {"density", static_cast<double>(data.nonzeros()) / static_cast<double>(data.codes.size())},
         {"channels_with_thresholds",
          std::ranges::count_if(data.requantizers, [](const auto& r) { return !r.exact; })}});
  }
  Json result = {{"target", cpu::target_name()},
                 {"batch", kBatch},
                 {"frames_per_s", std::round(kBatch / batches.front())},
                 {"frames_per_s_median", std::round(kBatch / batches[kRuns / 2])},
                 {"latency_ms",
                  {{"p50", percentile(50)},
                   {"p90", percentile(90)},
                   {"p99", percentile(99)},
                   {"max", percentile(100)}}},
                 {"layers", layers}};
  if (o.json) return result;
  fmt::print("{} frames at a time, {}: {:.0f} frames/s (best of {}), {:.0f} (median)\n", kBatch,
             cpu::target_name(), result["frames_per_s"].get<double>(), kRuns,
             result["frames_per_s_median"].get<double>());
  fmt::print("single frames, ms: p50 {}, p90 {}, p99 {}, max {} ({} frames)\n", percentile(50),
             percentile(90), percentile(99), percentile(100), kSingles);
  fmt::print("\nlayer     density  kernel  sums    channels that look at thresholds\n");
  for (const Json& l : layers) {
    fmt::print("{:8} {:8.4f}  {:6}  {:6}  {}\n", l["layer"].get<std::string>(),
               l["density"].get<double>(), l["kernel"].get<std::string>(),
               l["sums"].get<std::string>(), l["channels_with_thresholds"].get<int64_t>());
  }
  return result;
}

void run(const ClassifyOptions& o) {
  const std::string format = o.data.empty() ? "" : format_of(o);
  if (format == "hdf5" && o.data == "-") {
    throw UsageError("--format: an HDF5 file is not read from a pipe");
  }
  cpu::use_target(o.target);
  const auto [trained, form] = load_for_inference(o.model);
  const IntegerNetwork network(trained, form);
  Json document;
  if (o.benchmark) document["benchmark"] = benchmark(o, network);
  if (format == "hdf5") {
    if (o.benchmark && !o.json) fmt::print("\n");
    document.update(classify_file(o, network));
  }
  if (o.json && !document.empty()) fmt::print("{}\n", document.dump());
  if (!format.empty() && format != "hdf5") classify_samples(o, network, format);
  if (std::fflush(stdout) != 0) fail("the output cannot be written");
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    if (const auto options = fmp::parse(argc, argv)) fmp::run(*options);
  });
}
