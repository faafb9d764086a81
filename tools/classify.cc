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
#include <utility>
#include <vector>

#include "framework/command_line.h"
#include "framework/data/radioml.h"
#include "framework/data/sample_stream.h"
#include "framework/data/sigmf.h"
#include "framework/data/split.h"
#include "framework/error.h"
#include "framework/inference/integer_network.h"
#include "framework/inference/model_file.h"
#include "framework/random.h"
#include "kernels/cpu/ops.h"

namespace fmp {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct ClassifyOptions {
  std::string model, data, format, normalize = "stretch", split = "all";
  std::string target = cpu::target_name();
  int stretch = 256, batch = 64, threads = 0;
  std::optional<int> snr_min;
  std::vector<std::string> classes;
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
                 fmt::format("of the data: hdf5, sigmf, or that of samples: {}; without it, hdf5 "
                             "for .h5 and .hdf5, sigmf for .sigmf-meta, .sigmf-data and .sigmf",
                             kSampleFormats))
      ->type_name("NAME");
  app.add_option("--normalize", o.normalize,
                 "samples are divided by the standard deviation of a long stretch (as RadioML's), "
                 "of each frame, or not at all (none: integers to [-1, 1))")
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
  app.add_option("--classes", o.classes,
                 "what the network's classes are called, in the order of its outputs, separated by "
                 "commas; of an HDF5 file, frames of these classes alone [as the model says]")
      ->delimiter(',')
      ->transform(list_element())
      ->type_name("NAME,..");
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
  if (!o.format.empty()) {
    if (o.format != "hdf5" && o.format != "sigmf" && !find_sample_format(o.format)) {
      throw UsageError(fmt::format("--format: expected hdf5, sigmf, or one of {}; found '{}'",
                                   kSampleFormats, o.format));
    }
    return o.format;
  }
  const std::string extension = std::filesystem::path(o.data).extension().string();
  if (extension == ".h5" || extension == ".hdf5") return "hdf5";
  if (extension == ".sigmf-meta" || extension == ".sigmf-data" || extension == ".sigmf") {
    return "sigmf";
  }
  throw UsageError(
      fmt::format("--format: needed for {} (hdf5, sigmf, or {})", o.data, kSampleFormats));
}

// What the classes of the model are called: --classes, else what its file says, else RadioML's.
std::vector<std::string> class_names(const ClassifyOptions& o, const Network& network) {
  const auto classes = static_cast<size_t>(network.config().classes);
  if (!o.classes.empty() && o.classes.size() != classes) {
    throw UsageError(fmt::format("--classes: {} names, {} tells {} classes apart", o.classes.size(),
                                 o.model, classes));
  }
  if (!o.classes.empty()) return o.classes;
  return network.class_names.empty() ? default_class_names(classes) : network.class_names;
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

// The frames of the network's classes; network_class[label] is the network's class of a label.
std::unique_ptr<RadioMlDataset> open(const ClassifyOptions& o, const IntegerNetwork& network,
                                     const ClassMatch& match) {
  const NetworkConfig& config = network.config();
  RadioMlOptions options;
  options.path = o.data;
  options.classes = match.classes;
  options.snr_min = o.snr_min;
  options.input_bits = config.input_bits;
  options.input_scale = config.input_scale;
  options.threads = o.threads;
  std::unique_ptr<RadioMlDataset> data = open_radioml(options);
  if (data->length() != config.length || config.input_channels != 2) {
    fail("{}: frames of {} samples of 2 values, the network takes {} of {}", o.data, data->length(),
         config.length, config.input_channels);
  }
  for (const std::string& warning : data->warnings()) warn(warning);
  return data;
}

Accuracy measure(const ClassifyOptions& o, const IntegerNetwork& network, const Dataset& data,
                 const ClassMatch& match, std::vector<int64_t> frames) {
  constexpr int kBatch = 1024;
  const size_t classes = static_cast<size_t>(network.config().classes);
  Accuracy result;
  result.confusion.assign(classes, std::vector<int64_t>(classes, 0));
  BatchReader reader(data, std::move(frames), kBatch);
  std::vector<int32_t> logits;
  std::vector<uint8_t> predicted;
  while (const FrameBatch* batch = reader.next()) {
    const size_t count = static_cast<size_t>(batch->count);
    logits.resize(count * classes);
    predicted.resize(count);
    const Clock::time_point start = Clock::now();
    network.run(batch->codes, logits, predicted, o.threads);
    result.seconds += seconds_since(start);
    for (size_t n = 0; n < count; ++n) {
      const size_t label = match.network_class[batch->labels[n]];
      const bool correct = predicted[n] == label;
      for (Accuracy::Count* c : {&result.all, &result.by_snr[batch->snr_db[n]]}) {
        ++c->frames;
        c->correct += correct;
      }
      ++result.confusion[label][predicted[n]];
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

Json classify_file(const ClassifyOptions& o, const IntegerNetwork& network,
                   const std::vector<std::string>& names) {
  const ClassMatch match = match_classes(o.data, names);
  const std::unique_ptr<RadioMlDataset> data = open(o, network, match);
  std::vector<int64_t> frames;
  if (o.split == "test") {
    frames = make_split(data->blocks(), 0).test;
  } else {
    for (int64_t i = 0; i < data->size(); ++i) frames.push_back(i);
  }
  const Accuracy accuracy = measure(o, network, *data, match, std::move(frames));
  if (!o.json) print(accuracy, names);
  return to_json(accuracy, names);
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

// Classifies the frames of streams, one after the other.
class StreamClassifier {
 public:
  StreamClassifier(const ClassifyOptions& o, const IntegerNetwork& network,
                   const std::vector<std::string>& names)
      : options_(o), network_(network), names_(names) {}

  // `bytes` of the stream, or all (-1), which hold samples without a gap.
  void run(std::istream& in, const std::string& name, const SampleFormat& format, int64_t bytes);
  // Throws when there was not a single frame; `name` is for the message.
  void finish(const std::string& name) {
    warn_of_level(name);
    if (frames_ > 0) return;
    fail("{}: {} samples, fewer than the {} of a frame", name, left_over_,
         network_.config().length);
  }

 private:
  void print(int64_t frame, size_t label, double certain) const;
  void look_at_level(std::span<const float> values, int64_t clipped, const std::string& name) {
    level_.add(values, network_.config().input_quantizer());
    level_.add_clipped_values(clipped);
    if (frames_ >= options_.stretch) warn_of_level(name);
  }
  // Once: after as many frames as say enough, or at the end.
  void warn_of_level(const std::string& name) {
    if (std::exchange(level_was_told_, true)) return;
    for (const std::string& warning : level_.warnings(name, frames_)) warn(warning);
  }

  const ClassifyOptions& options_;
  const IntegerNetwork& network_;
  const std::vector<std::string>& names_;
  int64_t frames_ = 0, left_over_ = 0;
  InputLevel level_;
  bool level_was_told_ = false;
};

void StreamClassifier::print(int64_t frame, size_t label, double certain) const {
  if (options_.json) {
    const Json line = {{"frame", frame},
                       {"class", names_[label]},
                       {"label", label},
                       {"confidence", std::round(1e6 * certain) / 1e6}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:8} {:12} {:.4f}\n", frame, names_[label], certain);
  }
}

void StreamClassifier::run(std::istream& in, const std::string& name, const SampleFormat& format,
                           int64_t bytes) {
  const NetworkConfig& config = network_.config();
  if (config.input_channels != 2) {
    fail("{}: samples have 2 values, the network takes {}", name, config.input_channels);
  }
  SampleStream stream(
      in, name,
      {format, parse_normalization(options_.normalize), config.length, options_.stretch, bytes});
  const size_t classes = static_cast<size_t>(config.classes);
  std::vector<float> values;
  std::vector<int8_t> codes;
  std::vector<int32_t> logits;
  std::vector<uint8_t> predicted;
  const int64_t first = frames_;
  size_t changes = 0;
  int64_t clipped = 0;
  for (int64_t count = options_.batch; count == options_.batch; frames_ += count) {
    count = stream.read(options_.batch, values);
    codes.resize(values.size());
    quantize_input(values, config.input_quantizer(), codes.data());
    look_at_level(values, stream.clipped_values() - clipped, name);
    clipped = stream.clipped_values();
    logits.resize(static_cast<size_t>(count) * classes);
    predicted.resize(static_cast<size_t>(count));
    network_.run(codes, logits, predicted, options_.threads);
    for (size_t n = 0; n < predicted.size(); ++n) {
      const size_t label = predicted[n];
      print(frames_ + static_cast<int64_t>(n), label,
            confidence(logits.data() + n * classes, classes, label,
                       static_cast<double>(network_.logit_scale())));
    }
    // Whoever reads a pipe wants the answers now.
    flush_output();
    for (; changes < stream.level_changes().size(); ++changes) {
      constexpr size_t kNotes = 5;
      if (changes > kNotes) continue;
      const SampleStream::LevelChange& change = stream.level_changes()[changes];
      note(
          "{}: frame {}: the level changes by {:+.1f} dB for good and is {}", name,
          first + change.frame, change.db,
          changes < kNotes ? "taken anew from there" : "taken anew; further changes are not noted");
    }
  }
  left_over_ += stream.left_over();
  if (stream.left_over() > 0 && frames_ > first) {
    note("{}: the last {} samples fill no frame", name, stream.left_over());
  }
}

void classify_samples(const ClassifyOptions& o, const IntegerNetwork& network,
                      const std::vector<std::string>& names, const std::string& format) {
  StreamClassifier classifier(o, network, names);
  if (o.data == "-") {
    if (format == "sigmf") throw UsageError("--format: a SigMF recording is not read from a pipe");
    std::ios::sync_with_stdio(false);
    classifier.run(std::cin, "standard input", parse_sample_format(format), -1);
    return classifier.finish("standard input");
  }
  SigMf recording{o.data, {}, {{0, -1}}};
  if (format == "sigmf") {
    recording = read_sigmf(o.data);
  } else {
    recording.format = parse_sample_format(format);
  }
  const std::string name = recording.data.string();
  std::ifstream in(recording.data, std::ios::binary);
  if (!in) fail("{}: cannot be opened", name);
  for (const Capture& capture : recording.captures) {
    in.clear();
    // Where there is one capture alone, the name says all; a pipe cannot be sought in.
    if (capture.first_byte > 0 || recording.captures.size() > 1) in.seekg(capture.first_byte);
    classifier.run(in, name, recording.format, capture.bytes);
  }
  classifier.finish(name);
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
  size_t kernels = 0;
  for (const IntegerLayerData& data : network.layers()) {
    if (!data.has_weights()) continue;
    const cpu::IntegerLayer& kernel = network.kernels()[kernels++];
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
  const Network trained = load_model(o.model);
  const std::vector<std::string> names = class_names(o, trained);
  const IntegerNetwork network(trained);
  Json document;
  if (o.benchmark) document["benchmark"] = benchmark(o, network);
  if (format == "hdf5") {
    if (o.benchmark && !o.json) fmt::print("\n");
    document.update(classify_file(o, network, names));
  }
  if (o.json && !document.empty()) fmt::print("{}\n", document.dump());
  if (!format.empty() && format != "hdf5") classify_samples(o, network, names, format);
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    if (const auto options = fmp::parse(argc, argv)) fmp::run(*options);
    return fmp::kExitSuccess;
  });
}
