// SPDX-License-Identifier: MIT
// A short training by ranks, and the bits of all that it leaves: what tests compare with those of
// one process.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "framework/data/shared_reader.h"
#include "framework/network/network.h"
#include "framework/random.h"
#include "framework/training/trainer.h"
#include "kernels/communicator.h"
#include "tests/all_operations.h"

namespace fmp {

inline constexpr int kClasses = 3;

// Random frames, some of which a rank holds: others cannot be read.
class PartOfFrames final : public Dataset {
 public:
  PartOfFrames(int64_t size, int length, int input_bits, bool soft, const Communicator* ranks)
      : size_(size), length_(length), input_bits_(input_bits), soft_(soft), ranks_(ranks) {}

  int64_t size() const override { return size_; }
  int length() const override { return length_; }
  const std::vector<std::string>& class_names() const override { return names_; }
  uint8_t label(int64_t frame) const override { return static_cast<uint8_t>(frame % kClasses); }
  int16_t snr_db(int64_t frame) const override { return static_cast<int16_t>(frame % 5); }
  int soft_targets() const override { return soft_ ? kClasses : 0; }

  void read(std::span<const int64_t> frames, FrameBatch& batch) const override {
    if (held_part(frames, size_, ranks_).size() != frames.size())
      throw std::logic_error("a frame is read that is not here");
    batch = {};
    batch.count = std::ssize(frames);
    for (const int64_t frame : frames) {
      batch.labels.push_back(label(frame));
      batch.snr_db.push_back(snr_db(frame));
      Random random(7, "frame", static_cast<uint64_t>(frame));
      std::vector<float> values(static_cast<size_t>(2 * length_));
      for (float& v : values)
        v = random.uniform(-1.0F, 1.0F) + 0.3F * static_cast<float>(label(frame));
      if (input_bits_ == kFloatBits) {
        batch.values.insert(batch.values.end(), values.begin(), values.end());
      } else {
        std::vector<int8_t> codes(values.size());
        quantize_input(values, input_bits_, codes.data());
        batch.codes.insert(batch.codes.end(), codes.begin(), codes.end());
      }
      for (int c = 0; c < soft_targets(); ++c)
        batch.soft_targets.push_back(c == frame % 2 ? 0.75F : 0.125F);
    }
  }

 private:
  int64_t size_;
  int length_, input_bits_;
  bool soft_;
  const Communicator* ranks_;
  std::vector<std::string> names_ = {"a", "b", "c"};
};

struct RanksCase {
  const char* name;
  int bits = 8, input_bits = 8;
  std::vector<int> filters = {6, 8, 5}, dense = {7};
  int64_t frames = 230;
  int batch = 100;
  int64_t statistic_steps = 2;  // of thresholds
  bool soft = false;
  double sparse_threshold = 0;
  bool pruned = false;
  int length = 16;
  uint64_t epochs = 2;
  // tests/all_operations.h instead of filters
  bool branches = false, any_lengths = false;
};

// Where a rank trains.
using EngineOf = std::function<std::unique_ptr<Engine>(int threads, Communicator* ranks)>;

// Bits of all that two epochs leave, and of what they told.
inline std::vector<uint32_t> trained(const RanksCase& test, int threads, Communicator* ranks,
                                     const EngineOf& engine) {
  ChainConfig config;
  config.length = test.length;
  config.classes = kClasses;
  config.filters = test.filters;
  config.dense = test.dense;
  config.input_bits = test.input_bits;
  config.weight_bits = config.act_bits = {test.bits};
  NetworkConfig layers = config;
  if (test.branches) layers = all_operations(test.bits, test.length, kClasses);
  if (test.any_lengths) layers = any_lengths(test.bits, kClasses);
  Network network(layers, 3);
  if (test.pruned) {
    for (Layer& layer : network.layers()) {
      layer.weight.mask.assign(static_cast<size_t>(layer.weight.size()), 1);
      for (size_t i = 0; i < layer.weight.mask.size(); ++i) layer.weight.mask[i] = i % 3 != 0;
    }
  }
  const PartOfFrames data(test.frames, test.length, test.input_bits, test.soft, ranks);
  std::vector<int64_t> all(static_cast<size_t>(test.frames));
  std::iota(all.begin(), all.end(), int64_t{0});
  TrainerOptions options;
  options.batch = test.batch;
  options.threads = threads;
  options.ranks = ranks;
  options.sparse_threshold = test.sparse_threshold;
  options.threshold_statistic_steps = test.statistic_steps;
  options.loss.soft_weight = test.soft ? 0.5 : 0;
  Trainer trainer(options, engine(threads, ranks));
  trainer.plan(network);

  std::vector<uint32_t> bits;
  const auto add = [&](double value) {
    const auto wide = std::bit_cast<uint64_t>(value);
    bits.insert(bits.end(), {static_cast<uint32_t>(wide), static_cast<uint32_t>(wide >> 32)});
  };
  for (uint64_t epoch = 1; epoch <= test.epochs; ++epoch) {
    const EpochResult result = trainer.train_epoch(network, data, all, 5, epoch, 1e-2);
    add(result.loss);
    add(result.accuracy);
    add(static_cast<double>(result.frames));
  }
  std::vector<int64_t> some(all.begin() + 3, all.end());
  options.batch = 40;  // several, and one rank short in the last round
  Trainer evaluating(options, engine(threads, ranks));
  evaluating.plan(network);
  const Evaluation evaluation = evaluating.evaluate(network, data, some);
  add(evaluation.loss);
  add(evaluation.accuracy());
  for (const Evaluation::Snr& snr : evaluation.by_snr)
    add(static_cast<double>(snr.correct * 1000 + snr.frames));
  for (const int64_t count : evaluation.confusion) add(static_cast<double>(count));
  for (Layer& layer : network.layers()) {
    for (const Parameter* p : layer.parameters()) {
      for (const Tensor* tensor : {&p->value, &p->grad, &p->moment1, &p->moment2})
        for (const float value : tensor->floats()) bits.push_back(std::bit_cast<uint32_t>(value));
    }
    if (layer.kind == Layer::Kind::kOutput || !layer.has_weights()) continue;
    for (const Tensor* tensor : {&layer.running_mean, &layer.running_var})
      for (const float value : tensor->floats()) bits.push_back(std::bit_cast<uint32_t>(value));
  }
  return bits;
}

}  // namespace fmp
