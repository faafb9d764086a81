// SPDX-License-Identifier: MIT
#include "experiments/data_source.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "framework/data/shared_reader.h"
#include "framework/error.h"
#include "framework/hash.h"

namespace fmp {
namespace {

constexpr int64_t kFingerprintFrames = 64;

LoadedData open_file(const Options& options, Communicator* ranks, const LoadProgress& progress) {
  RadioMlOptions file;
  file.path = options.data;
  file.classes = options.classes;
  file.snr_min = options.snr_min;
  file.frames_per_block = options.frames_per_block.value_or(0);
  file.input_bits = options.input_bits.value_or(options.bits);
  file.input_scale = options.input_scale;
  file.memory_limit = options.memory_limit;
  file.threads = options.threads;
  file.ranks = ranks;
  std::unique_ptr<RadioMlDataset> dataset = open_radioml(file, progress);
  LoadedData data;
  data.split = make_split(dataset->blocks(), options.validation_fraction);
  data.storage =
      fmt::format("{}, {:.0f} MB", dataset->streamed() ? "in a temporary file" : "in memory",
                  static_cast<double>(dataset->stored_bytes()) / 1e6);
  data.warnings = dataset->warnings();
  data.dataset = std::move(dataset);
  return data;
}

LoadedData open_source(const Options& options, const DataSources& sources, Communicator* ranks,
                       const LoadProgress& progress) {
  const size_t colon = options.data.find(':');
  if (colon != std::string::npos) {
    const auto source = sources.find(options.data.substr(0, colon));
    if (source != sources.end())
      return source->second(options.data.substr(colon + 1), options, ranks, progress);
  }
  return open_file(options, ranks, progress);
}

}  // namespace

LoadedData open_data(const Options& options, const DataSources& sources, Communicator* ranks,
                     const LoadProgress& progress) {
  LoadedData data = open_source(options, sources, ranks, progress);
  const auto require = [&](const std::vector<int64_t>& part, const char* name) {
    if (part.empty())
      fail("{}: the {} part of its {} frames is empty; use more frames per class and SNR",
           options.data, name, data.dataset->size());
  };
  require(data.split.train, "training");
  require(data.split.test, "test");
  if (options.criterion_split == CriterionSplit::kValidation)
    require(data.split.validation, "validation");
  return data;
}

uint64_t fingerprint(const Dataset& dataset, int input_bits, Communicator* ranks) {
  Hash hash;
  hash.add(dataset.size());
  hash.add(dataset.length());
  for (int64_t frame = 0; frame < dataset.size(); ++frame)
    hash.add(dataset.label(frame) | static_cast<int64_t>(dataset.snr_db(frame)) << 8);
  const int64_t count = std::min(dataset.size(), kFingerprintFrames);
  std::vector<int64_t> sample;
  for (int64_t i = 0; i < count; ++i) sample.push_back(i * dataset.size() / count);
  const FrameBatch batch = read_on_all(dataset, sample, input_bits, ranks);
  hash.add(std::span<const int8_t>(batch.codes));
  hash.add(std::span<const float>(batch.values));
  return hash.value();
}

}  // namespace fmp
