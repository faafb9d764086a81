// SPDX-License-Identifier: MIT
#include "framework/synth/synth.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "framework/deterministic_math.h"
#include "framework/error.h"
#include "kernels/cpu/parallel.h"

namespace fmp::synth {
namespace {

void check(const char* flag, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    throw UsageError(fmt::format("{} must lie in {}..{}, not {}", flag, low, high, value));
  }
}

// Frames that a thread takes at a time: long enough (0.3 ms) that taking them costs nothing.
constexpr size_t kFramesOfItem = 8;

}  // namespace

void validate(const Config& config) {
  const ChannelConfig& channel = config.channel;
  check("--sps", config.sps, 2, 64);
  check("--alpha-min", config.alpha_min, 0.01, 1);
  check("--span", config.span, 2, 16);
  check("--alpha-max", config.alpha_max, config.alpha_min, 1);
  check("--snr-slope", config.snr_slope, 0, 10);
  check("--noise-offset", config.noise_offset_db, -60, 60);
  check("--cfo", channel.cfo, 0, 0.5);
  check("--sro", channel.sro, 0, kMaxSampleRateOffset);
  check("--rician-k", channel.rician_k_db, -60, 60);
  check("--delay-spread", channel.delay_spread, 0, 6);
  check("--doppler", channel.doppler, 0, 0.5);
  check("--iq-gain", channel.iq_gain_db, -20, 20);
  check("--iq-phase", channel.iq_phase_degrees, -45, 45);
  check("--phase-noise", channel.phase_noise, 0, 1);
}

Generator::Generator(const Config& config) : config_(config) { validate(config); }

void Generator::frame(uint64_t seed, int class_index, int snr_db, uint64_t index,
                      std::span<float, kFrameValues> out) const {
  const Modulation& modulation = *modulations().at(static_cast<size_t>(class_index));
  StreamId id{seed, index, static_cast<int16_t>(snr_db), static_cast<uint8_t>(class_index),
              Purpose::kShape};
  const auto stream = [&id](Purpose purpose) {
    id.purpose = purpose;
    return Rng(id);
  };
  Rng shape_rng = stream(Purpose::kShape), source_rng = stream(Purpose::kSource);
  Rng channel_rng = stream(Purpose::kChannel), noise_rng = stream(Purpose::kNoise);

  const Shape shape{config_.sps, shape_rng.uniform(config_.alpha_min, config_.alpha_max),
                    config_.span, config_.sps * shape_rng.uniform()};
  Signal sent(kFrameLength + 2 * kMargin), received(kFrameLength);
  modulation.modulate(shape, source_rng, sent);
  propagate(config_.channel, channel_rng, sent, received);

  const Moments moments = modulation.moments(shape);
  const double noise =
      moments.power / power_ratio(config_.snr_slope * snr_db - config_.noise_offset_db);
  add_noise(noise, noise_rng, received);
  imbalance(config_.channel, received);

  // The receiver divides by the deviation of the long recording that the frame is cut from.
  const auto gain = static_cast<float>(1 / std::sqrt(moments.variance + noise));
  for (int n = 0; n < kFrameLength; ++n) {
    out[2 * n] = gain * received.i[n];
    out[2 * n + 1] = gain * received.q[n];
  }
}

std::vector<int> radioml_snrs_db() {
  std::vector<int> snrs;
  for (int snr = -20; snr <= 30; snr += 2) snrs.push_back(snr);
  return snrs;
}

SynthDataset::SynthDataset(Options options)
    : options_(std::move(options)), generator_(options_.config) {
  if (options_.frames_per_block < 1) throw UsageError("frames per block must be at least 1");
  if (options_.input_bits != 32) check("input bits", options_.input_bits, 2, 8);
  for (const auto& modulation : modulations()) class_names_.push_back(modulation->name());
  if (options_.classes.empty()) {
    options_.classes.resize(class_names_.size());
    std::iota(options_.classes.begin(), options_.classes.end(), 0);
  }
  if (options_.snrs_db.empty()) options_.snrs_db = radioml_snrs_db();
}

int64_t SynthDataset::size() const {
  return static_cast<int64_t>(options_.classes.size() * options_.snrs_db.size()) *
         options_.frames_per_block;
}

uint8_t SynthDataset::label(int64_t frame) const {
  const auto snrs = static_cast<int64_t>(options_.snrs_db.size());
  return static_cast<uint8_t>(
      options_.classes[static_cast<size_t>(frame / options_.frames_per_block / snrs)]);
}

int16_t SynthDataset::snr_db(int64_t frame) const {
  const auto snrs = static_cast<int64_t>(options_.snrs_db.size());
  return static_cast<int16_t>(
      options_.snrs_db[static_cast<size_t>(frame / options_.frames_per_block % snrs)]);
}

void SynthDataset::refresh_each_epoch(std::span<const int64_t> frames) {
  refreshed_.assign(static_cast<size_t>(size()), false);
  for (int64_t frame : frames) refreshed_.at(static_cast<size_t>(frame)) = true;
}

void SynthDataset::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  const bool as_codes = options_.input_bits != 32;
  const size_t count = frames.size();
  batch.count = static_cast<int64_t>(count);
  batch.labels.resize(count);
  batch.snr_db.resize(count);
  batch.codes.resize(as_codes ? count * kFrameValues : 0);
  batch.values.resize(as_codes ? 0 : count * kFrameValues);
  const size_t items = (count + kFramesOfItem - 1) / kFramesOfItem;
  cpu::parallel_for(static_cast<int64_t>(items), options_.threads, [&](int64_t item) {
    const size_t first = static_cast<size_t>(item) * kFramesOfItem;
    const size_t end = std::min(count, first + kFramesOfItem);
    for (size_t k = first; k < end; ++k) make(frames[k], k, batch);
  });
}

void SynthDataset::make(int64_t frame, size_t k, FrameBatch& batch) const {
  if (frame < 0 || frame >= size()) fail("no frame {} in a set of {}", frame, size());
  batch.labels[k] = label(frame);
  batch.snr_db[k] = snr_db(frame);
  // A fresh epoch takes the next frames_per_block indices of the block.
  const bool fresh = !refreshed_.empty() && refreshed_[static_cast<size_t>(frame)];
  const uint64_t salt = fresh ? epoch_ * static_cast<uint64_t>(options_.frames_per_block) : 0;
  const uint64_t index = salt + static_cast<uint64_t>(frame % options_.frames_per_block);
  const auto write = [&](std::span<float, kFrameValues> values) {
    generator_.frame(options_.seed, batch.labels[k], batch.snr_db[k], index, values);
  };
  if (options_.input_bits == 32) {
    write(std::span<float, kFrameValues>(batch.values.data() + k * kFrameValues, kFrameValues));
    return;
  }
  std::array<float, kFrameValues> values;
  write(values);
  quantize_input(values, InputQuantizer::of(options_.input_bits, options_.input_scale),
                 batch.codes.data() + k * kFrameValues);
}

}  // namespace fmp::synth
