// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/synth/channel.h"
#include "framework/synth/modulation.h"

namespace fmp::synth {

inline constexpr int kFrameLength = 1024;              // complex samples
inline constexpr int kFrameValues = 2 * kFrameLength;  // floats, I and Q interleaved

// Everything that frames depend on besides (seed, class, SNR, index). The defaults are what was
// identified as RadioML 2018.01A's.
struct Config {
  int sps = 8;              // samples per symbol, 2..64
  double alpha_min = 0.35;  // roll-off, uniform between the two, of transmit and receive filter
  double alpha_max = 0.35;
  int span = 8;  // length of each of these filters in symbols, 2..16
  // Decibels of signal over noise per decibel of the label. The real set's labels count in powers
  // what are amplitudes: its noise amplitude is 10^(-SNR/10), so that a step of 2 dB is one of 4.
  double snr_slope = 2;
  // Noise power over what the label then says; fits the real set best.
  double noise_offset_db = -1.2;
  ChannelConfig channel;
};

// Throws UsageError that names the flag whose value is out of range.
void validate(const Config& config);

// Makes frames. Stateless after construction, so any number of threads may call it.
class Generator {
 public:
  explicit Generator(const Config& config);

  // Writes frame `index` of the block (class, SNR) of the set that `seed` selects: bit-identical
  // whenever, wherever and in whatever order it is asked for.
  void frame(uint64_t seed, int class_index, int snr_db, uint64_t index,
             std::span<float, kFrameValues> out) const;

 private:
  Config config_;
};

// An endless data set: frames made as they are read. Frame order as in a RadioML file: by class,
// then SNR, then index within the block.
class SynthDataset : public Dataset {
 public:
  struct Options {
    Config config;
    uint64_t seed = 0;
    int64_t frames_per_block = 4096;
    std::vector<int> classes;  // indices; empty: all
    std::vector<int> snrs_db;  // empty: -20, -18, ..., 30
    int input_bits = 8;        // as FrameBatch describes: 2..8 codes, 32 values
    float input_scale = 0;     // of the codes; 0: the usual one, see InputQuantizer
    int threads = 1;  // that share out the frames of a read(); the frames do not depend on it
  };
  explicit SynthDataset(Options options);

  int64_t size() const override;
  int length() const override { return kFrameLength; }
  const std::vector<std::string>& class_names() const override { return class_names_; }
  uint8_t label(int64_t frame) const override;
  int16_t snr_db(int64_t frame) const override;
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override;

  // From here on these frames (the training split) are other ones for every epoch; the rest (the
  // validation and test splits) stay what they are. Not while read() runs.
  void refresh_each_epoch(std::span<const int64_t> frames);
  // Chooses the epoch that refreshed frames belong to; 0 at first. Between epochs, not during one.
  void set_epoch(uint64_t epoch) { epoch_ = epoch; }

 private:
  // Frame `frame` as element k of the batch, whose buffers have their sizes.
  void make(int64_t frame, size_t k, FrameBatch& batch) const;

  Options options_;
  Generator generator_;
  std::vector<std::string> class_names_;
  std::vector<bool> refreshed_;
  std::atomic<uint64_t> epoch_ = 0;
};

// -20, -18, ..., 30.
std::vector<int> radioml_snrs_db();

}  // namespace fmp::synth
