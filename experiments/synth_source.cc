// SPDX-License-Identifier: MIT
#include "experiments/synth_source.h"

#include <charconv>
#include <numeric>
#include <utility>

#include "framework/data/split.h"
#include "framework/error.h"
#include "framework/synth/modulation.h"
#include "framework/synth/synth.h"
#include "framework/threads.h"

namespace fmp {
namespace {

uint64_t parse_seed(const std::string& text) {
  uint64_t seed = 0;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, seed);
  if (error != std::errc() || end != last)
    throw UsageError(fmt::format("--data synth:SEED: expected a whole number, found '{}'", text));
  return seed;
}

// Frames are independent of each other, so blocks need no shuffling before they are split.
std::vector<Block> blocks_of(int64_t frames, int64_t frames_per_block) {
  std::vector<Block> blocks;
  for (int64_t first = 0; first < frames; first += frames_per_block) {
    Block block(static_cast<size_t>(frames_per_block));
    std::iota(block.begin(), block.end(), first);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

}  // namespace

LoadedData open_synth(const std::string& seed, const Options& options) {
  synth::SynthDataset::Options set;
  set.seed = parse_seed(seed);
  set.input_bits = options.input_bits.value_or(options.bits);
  set.threads = threads_or_all_cores(options.threads);
  if (options.frames_per_block) set.frames_per_block = *options.frames_per_block;
  for (const std::string& name : options.classes) set.classes.push_back(synth::class_index(name));
  for (int snr_db : synth::radioml_snrs_db())
    if (snr_db >= options.snr_min.value_or(snr_db)) set.snrs_db.push_back(snr_db);
  if (set.snrs_db.empty())
    throw UsageError(fmt::format("--snr-min {}: synthesized frames have at most {} dB",
                                 options.snr_min.value_or(0), synth::radioml_snrs_db().back()));
  auto dataset = std::make_unique<synth::SynthDataset>(set);
  LoadedData data;
  data.split =
      make_split(blocks_of(dataset->size(), set.frames_per_block), options.validation_fraction);
  dataset->refresh_each_epoch(data.split.train);
  data.storage = "synthesized as they are read";
  data.begin_epoch = [set_of = dataset.get()](uint64_t epoch) { set_of->set_epoch(epoch); };
  data.dataset = std::move(dataset);
  return data;
}

}  // namespace fmp
