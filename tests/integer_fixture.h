// SPDX-License-Identifier: MIT
// Networks and frames for the tests of integer inference and of the C code made from it.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/network/description.h"
#include "framework/network/network.h"
#include "framework/random.h"
#include "framework/training/trainer.h"

namespace fmp {

// Codes of tones with noise, at amplitudes from silence to clipping.
inline FrameBatch random_frames(const NetworkConfig& config, int64_t count, uint64_t seed) {
  FrameBatch batch;
  batch.count = count;
  Random random(seed, "frames");
  std::vector<float> values;
  for (int64_t n = 0; n < count; ++n) {
    const float amplitude = 2 * random.uniform_float(), noise = random.uniform_float();
    const float step = random.uniform(0.0F, 3.0F), phase = random.uniform(0.0F, 6.3F);
    for (int l = 0; l < config.length; ++l) {
      for (int c = 0; c < config.input_channels; ++c) {
        const float angle = phase + step * static_cast<float>(l) - 1.5708F * static_cast<float>(c);
        values.push_back(amplitude * std::cos(angle) + noise * random.uniform(-1.0F, 1.0F));
      }
    }
    batch.labels.push_back(static_cast<uint8_t>(n % config.classes));
    batch.snr_db.push_back(0);
  }
  batch.codes.resize(values.size());
  quantize_input(values, config.input_bits, batch.codes.data());
  return batch;
}

// Layers of all kinds that branch: strides, depthwise, signed codes, values with several readers of
// different paddings, layers without weights that read frames.
inline NetworkConfig graph_config(int bits) {
  const auto layer = [&](LayerKind kind, std::vector<int> reads, int outputs, Convolution form,
                         int act_bits, bool is_signed) {
    LayerConfig config;
    config.kind = kind;
    config.reads = std::move(reads);
    config.outputs = outputs;
    config.form = form;
    config.weight_bits = bits;
    config.act_bits = act_bits;
    config.smallest_code = is_signed ? -(1 << (act_bits - 1)) : 0;
    return config;
  };
  using enum LayerKind;
  NetworkConfig config;
  config.length = 48;
  config.classes = 7;
  config.input_bits = config.output_bits = bits;
  const Convolution none{1, 1, 0, 1, 1}, pooled{1, 1, 0, 1, 2};
  config.layers = {
      layer(kConv, {kReadsFrames}, 6, {3, 2, 1, 1, 1}, bits, true),  // 0: 24 positions
      layer(kConv, {0}, 6, {5, 1, 2, 6, 1}, bits, false),
      layer(kAdd, {1, 0}, 0, pooled, bits, false),  // 2: 12 positions
      layer(kConv, {2}, 3, {3, 1, 1, 1, 1}, bits, true),
      layer(kAveragePool, {kReadsFrames}, 0, {4, 4, 0, 1, 1}, 6, true),
      layer(kConcat, {3, 2, 4}, 0, none, 5, true),  // 5: 11 channels
      layer(kConv, {5}, 5, none, bits, false),
      layer(kAveragePool, {6}, 0, {3, 3, 0, 1, 1}, 8, false),  // 7: 4 positions
      layer(kAveragePool, {2}, 0, {3, 3, 0, 1, 1}, 3, false),
      layer(kConcat, {7, 8}, 0, pooled, bits, false),  // 9: 2 positions
      layer(kDense, {9}, 9, none, bits, false),
  };
  return config;
}

// Padding that makes more or fewer positions, strides and pools that leave some over.
inline NetworkConfig lengths_config(int bits) {
  NetworkConfig config = read_network(FMP_FIXTURES_DIR "/lengths.json", bits);
  config.length = 53;
  config.classes = 5;
  return config;
}

// Averages whose windows leave positions over.
inline NetworkConfig averages_config(int bits) {
  NetworkConfig config = read_network(FMP_FIXTURES_DIR "/averages.json", bits);
  config.length = 53;
  config.classes = 5;
  return config;
}

// A network as training leaves it, with `density` of the weights alive: batch-norm and thresholds
// follow what the layers compute, some channels decrease, some are constant, and all classes are
// about as likely.
inline Network random_network(const NetworkConfig& config, double density, uint64_t seed) {
  constexpr int kSteps = 15;
  constexpr int64_t kBatch = 32;
  Network network(config, seed);
  for (Layer& layer : network.layers()) {
    if (!layer.has_weights()) continue;
    Random random(seed, layer.name + ".test");
    for (uint8_t& alive : layer.weight.mask) alive = random.uniform_double() < density ? alive : 0;
    layer.weight.mask[layer.place(0, 0, 0)] = 1;  // no layer is dead
    if (layer.kind == Layer::Kind::kOutput) continue;
    for (size_t c = 0; c < static_cast<size_t>(layer.out_channels); ++c) {
      const uint64_t kind = random.below(12);
      const float sign = kind < 4 ? -1.0F : 1.0F;
      layer.gamma.value.floats()[c] = kind == 11 ? 0.0F : sign * random.uniform(0.3F, 1.5F);
      layer.beta.value.floats()[c] = random.uniform(0.1F, 0.8F);
    }
  }
  network.apply_masks();
  // Steps of size zero: statistics move, parameters do not.
  Trainer trainer{TrainerOptions()};
  for (uint64_t i = 0; i < kSteps; ++i) {
    trainer.train_step(network, random_frames(config, kBatch, seed + i), 0.0);
  }
  const std::vector<float> logits = trainer.logits(network, random_frames(config, kBatch, seed));
  const std::span<float> bias = network.layers().back().bias.value.floats();
  for (size_t i = 0; i < logits.size(); ++i) {
    bias[i % bias.size()] -= logits[i] / static_cast<float>(kBatch);
  }
  return network;
}

}  // namespace fmp
