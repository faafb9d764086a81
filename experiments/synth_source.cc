// SPDX-License-Identifier: MIT
#include "experiments/synth_source.h"

#include <charconv>
#include <numeric>
#include <utility>

#include "experiments/format.h"
#include "framework/data/frame_store.h"
#include "framework/data/held_frames.h"
#include "framework/data/shared_reader.h"
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

synth::SynthDataset::Options set_options(const std::string& seed, const Options& options) {
  synth::SynthDataset::Options set;
  set.seed = parse_seed(seed);
  set.input_bits = options.input_bits.value_or(options.bits);
  set.input_scale = options.input_scale;
  set.threads = threads_or_all_cores(options.threads);
  if (options.frames_per_block) set.frames_per_block = *options.frames_per_block;
  for (const std::string& name : options.classes) set.classes.push_back(synth::class_index(name));
  for (int snr_db : synth::radioml_snrs_db())
    if (snr_db >= options.snr_min.value_or(snr_db)) set.snrs_db.push_back(snr_db);
  if (set.snrs_db.empty())
    throw UsageError(fmt::format("--snr-min {}: synthesized frames have at most {} dB",
                                 options.snr_min.value_or(0), synth::radioml_snrs_db().back()));
  return set;
}

// The frames that every epoch reads.
std::vector<int64_t> lasting_frames(const Split& split, const Options& options, bool fixed) {
  std::vector<int64_t> frames;
  const auto add = [&](const std::vector<int64_t>& part) {
    frames.insert(frames.end(), part.begin(), part.end());
  };
  if (fixed) add(split.train);
  add(split.validation);
  if (options.criterion_split == CriterionSplit::kTest) add(split.test);
  return frames;
}

}  // namespace

LoadedData open_synth(const std::string& seed, const Options& options, Communicator* ranks,
                      const LoadProgress& progress) {
  const synth::SynthDataset::Options set = set_options(seed, options);
  const bool fixed = options.synth_frames == SynthFrames::kFixed;
  auto dataset = std::make_unique<synth::SynthDataset>(set);
  LoadedData data;
  data.split =
      make_split(blocks_of(dataset->size(), set.frames_per_block), options.validation_fraction);
  if (!fixed) {
    dataset->refresh_each_epoch(data.split.train);
    data.begin_epoch = [set_of = dataset.get()](uint64_t epoch) { set_of->set_epoch(epoch); };
  }
  const std::vector<int64_t> lasting =
      held_part(lasting_frames(data.split, options, fixed), dataset->size(), ranks);
  const auto count = static_cast<int64_t>(lasting.size());
  const int64_t frame_bytes = stored_frame_bytes(synth::kFrameValues, set.input_bits);
  const bool in_memory = count * frame_bytes <=
                         (options.memory_limit > 0 ? options.memory_limit : default_memory_limit());
  data.storage = fixed ? "synthesized once" : "synthesized as they are read";
  if (lasting.empty() || !(in_memory || fixed)) {
    data.dataset = std::move(dataset);
    return data;
  }
  data.storage += fmt::format(", {} {}, {:.0f} MB", format_count(count),
                              in_memory ? "in memory" : "in a temporary file",
                              static_cast<double>(count * frame_bytes) / 1e6);
  data.dataset = std::make_unique<HeldFrames>(
      std::move(dataset), lasting, set.input_bits,
      in_memory ? make_memory_store(count, frame_bytes)
                : make_file_store(default_cache_directory(), count, frame_bytes),
      set.threads, progress);
  return data;
}

}  // namespace fmp
