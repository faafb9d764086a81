// SPDX-License-Identifier: MIT
// Integer inference against the fake-quantized network that it was made from: the same predictions
// on every frame, and logits that are the float network's to the last bit.
#include "framework/inference/integer_network.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <random>
#include <stdexcept>

#include "framework/error.h"
#include "framework/training/engine.h"
#include "framework/training/trainer.h"
#include "tests/integer_fixture.h"
#include "tests/random_batch.h"

namespace fmp {
namespace {

constexpr int kThreads = 2;

ChainConfig small_config(int bits) {
  ChainConfig config;
  config.length = 48;
  config.classes = 11;
  config.filters = {10, 7, 12};
  config.dense = {18, 9};
  config.input_bits = bits;
  config.weight_bits = {bits};
  config.act_bits = {bits};
  return config;
}

struct Agreement {
  int64_t frames = 0;
  std::vector<int64_t> of_class;  // predictions
};

// Runs both on `count` frames and compares every logit and prediction.
Agreement expect_same(const Network& network, const IntegerNetwork& integers, int64_t count,
                      uint64_t seed) {
  const size_t classes = static_cast<size_t>(network.config().classes);
  TrainerOptions options;
  options.threads = kThreads;
  Trainer trainer(options);
  Agreement agreement{0, std::vector<int64_t>(classes, 0)};
  const int exponent = std::ilogb(integers.logit_scale()) - 23;  // of the last of 24 bits
  constexpr int64_t kAtOnce = 1000;
  for (int64_t done = 0; done < count; done += kAtOnce) {
    const FrameBatch batch = random_frames(network.config(), std::min(kAtOnce, count - done),
                                           seed + static_cast<uint64_t>(done));
    const std::vector<float> expected = trainer.logits(network, batch);
    std::vector<int32_t> logits(expected.size());
    std::vector<uint8_t> predicted(static_cast<size_t>(batch.count));
    integers.run(batch.codes, logits, predicted, kThreads);
    Tensor floats = Tensor::tile({batch.count, 1, network.config().classes, 0}, ElementType::kF32);
    std::fill_n(floats.data<float>(), floats.size(), -1.0F);
    integers.float_logits(batch.codes, floats.view(), kThreads);
    for (size_t n = 0; n < predicted.size(); ++n) {
      const float* frame = expected.data() + n * classes;
      const auto best = std::max_element(frame, frame + classes) - frame;
      if (predicted[n] != best) {
        ADD_FAILURE() << "frame " << n << " of seed " << seed + static_cast<uint64_t>(done)
                      << ": class " << int{predicted[n]} << ", expected " << best;
        return agreement;
      }
      ++agreement.of_class[predicted[n]];
      for (size_t c = 0; c < classes; ++c) {
        const float in_tile =
            floats.data<float>()[(n / kLanes * classes + c) * kLanes + n % kLanes];
        if (in_tile != frame[c]) {
          ADD_FAILURE() << "frame " << n << ", class " << c << ": " << in_tile << ", expected "
                        << frame[c];
          return agreement;
        }
        const int32_t sum = logits[n * classes + c] - integers.layers().back().bias[c];
        const double logit = std::ldexp(static_cast<double>(integers.rounding()(c, sum)), exponent);
        if (logit != static_cast<double>(frame[c])) {
          ADD_FAILURE() << "frame " << n << " of seed " << seed + static_cast<uint64_t>(done)
                        << ", class " << c << ": " << logit << ", expected " << frame[c];
          return agreement;
        }
      }
    }
    // The lanes past the last frame.
    for (int64_t n = batch.count; n < floats.tile_shape().tiles() * kLanes; ++n) {
      for (size_t c = 0; c < classes; ++c) {
        const size_t row = static_cast<size_t>(n / kLanes) * classes + c;
        EXPECT_EQ(floats.data<float>()[row * kLanes + static_cast<size_t>(n % kLanes)], 0.0F);
      }
    }
    agreement.frames += batch.count;
  }
  return agreement;
}

int classes_seen(const Agreement& agreement) {
  return static_cast<int>(
      std::ranges::count_if(agreement.of_class, [](int64_t n) { return n > 0; }));
}

TEST(IntegerNetwork, PredictsAsTheFakeQuantizedNetworkOnManyFrames) {
  int64_t frames = 0;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    for (const double density : {1.0, 0.3}) {
      const uint64_t seed = 100 + static_cast<uint64_t>(bits);
      SCOPED_TRACE(testing::Message() << bits << " bits, density " << density);
      const Network network = random_network(small_config(bits), density, seed);
      const Agreement agreement = expect_same(network, IntegerNetwork(network), 8000, seed);
      EXPECT_GE(classes_seen(agreement), 2) << "the frames do not tell networks apart";
      frames += agreement.frames;
    }
  }
  EXPECT_GE(frames, 100'000);
  std::cout << frames << " frames\n";
}

TEST(IntegerNetwork, PredictsAsThePublishedNetwork) {
  for (const int bits : {4, 8}) {
    for (const double density : {1.0, 0.1}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, density " << density);
      ChainConfig config;
      config.input_bits = bits;
      config.weight_bits = {bits};
      config.act_bits = {bits};
      const Network network = random_network(config, density, 7);
      const Agreement agreement = expect_same(network, IntegerNetwork(network), 203, 7);
      EXPECT_GE(classes_seen(agreement), 2);
    }
  }
}

// Shapes that fill neither quads nor blocks, all pooling windows, taps and mixtures of bits.
std::vector<ChainConfig> odd_configs() {
  std::vector<ChainConfig> configs;
  ChainConfig c = small_config(8);
  c.filters = {1, 5};
  c.dense = {};
  c.kernel = {5};
  c.pool = {3};
  c.length = 45;
  configs.push_back(c);
  c = small_config(4);
  c.filters = {6};
  c.kernel = {1};
  c.pool = {1};
  c.length = 13;
  c.input_channels = 3;
  configs.push_back(c);
  c = small_config(8);
  c.pool = {4};
  c.length = 64;
  c.filters = {4, 8};
  c.dense = {3};
  c.classes = 2;
  c.input_bits = 6;
  c.weight_bits = {4, 8, 2, 5};
  c.act_bits = {3, 8, 5};
  configs.push_back(c);
  c = small_config(5);
  c.filters = {33, 17};
  c.kernel = {7};
  c.length = 92;
  c.input_channels = 5;
  configs.push_back(c);
  c = small_config(4);  // forms of convolutions
  c.length = 96;
  c.filters = {10, 10, 6};
  c.kernel = {6, 5, 4};
  c.stride = {2, 1, 2};
  c.groups = {1, 10, 2};
  c.padding = {3, 2, 0};
  c.pool = {1, 2, 4};
  configs.push_back(c);
  c = small_config(8);
  c.act_bits = {8, 3, 4, 8, 2};
  c.smallest_codes = {-128, -3, 0, -127, -2};
  c.input_scale = 0.013F;
  configs.push_back(c);
  c = small_config(4);  // pools that leave positions over, and the same with many channels
  c.length = 43;
  c.pool = {2, 4, 1};
  configs.push_back(c);
  c.filters = {40, 33, 34};
  configs.push_back(c);
  return configs;
}

TEST(IntegerNetwork, PredictsAsNetworksThatBranch) {
  for (const int bits : {2, 4, 8}) {
    SCOPED_TRACE(testing::Message() << bits << " bits");
    const Network network = random_network(graph_config(bits), 0.8, 9);
    const IntegerNetwork integers(network);
    EXPECT_LT(integers.slots(), 6);  // of 11 values and the frames
    EXPECT_GE(classes_seen(expect_same(network, integers, 2001, 9)), 2);
  }
}

TEST(IntegerNetwork, PredictsAsNetworksOfAnyLengths) {
  for (const int bits : {2, 4, 8}) {
    SCOPED_TRACE(testing::Message() << bits << " bits");
    for (const NetworkConfig& config : {lengths_config(bits), averages_config(bits)}) {
      const Network network = random_network(config, 0.9, 11);
      EXPECT_GE(classes_seen(expect_same(network, IntegerNetwork(network), 2001, 9)), 2);
    }
  }
}

// The processor evaluates the first frames with the float network and the rest on integers.
TEST(IntegerNetwork, EvaluationGivesWhatTheFloatNetworkDoes) {
  const Network network = random_network(small_config(8), 0.8, 5);
  const FrameBatch batch = random_batch(network.config(), 2048, 5);
  std::vector<double> losses;
  std::vector<std::vector<uint8_t>> predicted;
  constexpr size_t kBatches = 3;  // the same one
  size_t given = 0;
  make_cpu_engine(kThreads, nullptr)
      ->evaluate(
          network, {}, [&] { return given++ < kBatches ? &batch : nullptr; },
          [&](const BatchResult& result) {
            losses.push_back(result.loss_sum);
            predicted.emplace_back(result.predicted.begin(), result.predicted.end());
          });
  ASSERT_EQ(losses.size(), kBatches);
  for (size_t i = 1; i < kBatches; ++i) {
    EXPECT_EQ(losses[i], losses[0]);
    EXPECT_EQ(predicted[i], predicted[0]);
  }
}

TEST(IntegerNetwork, EveryKernelAndInstructionSetGivesTheSameLogits) {
  const std::string best = cpu::target_name();
  int64_t on_tiles = 0;
  for (const ChainConfig& config : odd_configs()) {
    for (const double density : {1.0, 0.4}) {
      for (const std::string& target : cpu::target_names()) {
        cpu::use_target(target);
        const Network network = random_network(config, density, 21);
        IntegerNetwork integers(network);
        for (const cpu::DotProduct dot :
             {cpu::DotProduct::kWide, cpu::DotProduct::kNarrow, cpu::DotProduct::kVnni,
              cpu::DotProduct::kPoints, cpu::DotProduct::kTiles}) {
          for (const bool sparse : {false, true}) {
            if (dot == cpu::DotProduct::kTiles && (sparse || !integers.kernels()[0].tiles_fit())) {
              continue;
            }
            for (cpu::IntegerLayer& layer : integers.kernels()) {
              layer.sparse = sparse;
              const bool fits = (dot != cpu::DotProduct::kNarrow || layer.narrow_fits()) &&
                                (dot != cpu::DotProduct::kPoints || layer.points_fit()) &&
                                (dot != cpu::DotProduct::kTiles || layer.tiles_fit());
              layer.dot = fits ? dot : cpu::DotProduct::kWide;
              if (dot == cpu::DotProduct::kVnni) layer.dot = cpu::best_dot_product(false, false);
              on_tiles += layer.dot == cpu::DotProduct::kTiles;
            }
            SCOPED_TRACE(testing::Message()
                         << target << ", " << cpu::name_of(dot) << ", sparse " << sparse
                         << ", length " << config.length << ", density " << density);
            expect_same(network, integers, 37, 5);
          }
        }
      }
    }
  }
  cpu::use_target(best);
  std::cout << on_tiles << " layers on AMX"
            << (on_tiles == 0 ? ": this machine has none, or does not permit it\n" : "\n");
}

// The code of a sum, written down plainly.
int code_of(const cpu::EvaluationState& state, size_t channel, int bits, int32_t sum) {
  const float scaled = static_cast<float>(sum) * state.sum_scale;
  const float normalized = scaled * state.gain[channel];
  const float t = (normalized + state.shift[channel]) / state.act_scale;
  return static_cast<int>(std::nearbyint(std::clamp(t, 0.0F, static_cast<float>((1 << bits) - 1))));
}

// A layer whose sum in lane i is sums[i], whatever they are: channels with weights of +-127 and 255
// at the input, and one for the rest.
class AnySums {
 public:
  AnySums(int32_t largest, std::vector<cpu::Requantizer> requantizer,
          std::vector<int32_t> thresholds)
      : tens_(largest / (kWeight * kInput) + 1),
        layer_(shape(), codes(), kInput, std::move(requantizer), thresholds,
               static_cast<int>(thresholds.size())) {}

  // The layer on vectors, whatever is fastest here.
  AnySums& on_vectors() {
    layer_.dot = cpu::best_dot_product(layer_.narrow_fits(), false);
    return *this;
  }

  std::array<uint8_t, kLanes> operator()(const std::array<int32_t, kLanes>& sums) const {
    std::vector<uint8_t> storage(static_cast<size_t>(layer_.in_quads()) * cpu::kQuadRow + 64);
    uint8_t* x = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const auto at = [&](int channel) -> uint8_t& {
        return x[channel / cpu::kQuad * cpu::kQuadRow + static_cast<int>(lane) * cpu::kQuad +
                 cpu::byte_of_channel(channel)];
      };
      int32_t rest = std::abs(sums[lane]);
      const int sign = sums[lane] < 0 ? 1 : 0;
      for (int i = 0; i < tens_; ++i) {
        const int32_t digit = std::min(kInput, rest / kWeight);
        at(4 + 2 * i + sign) = static_cast<uint8_t>(digit);
        rest -= digit * kWeight;
      }
      at(sign) = static_cast<uint8_t>(rest);
    }
    alignas(64) std::array<uint8_t, cpu::kQuadRow> out{};
    layer_.hidden(x, 1, out.data());
    std::array<uint8_t, kLanes> result{};
    for (size_t lane = 0; lane < kLanes; ++lane) result[lane] = out[lane * cpu::kQuad];
    return result;
  }

 private:
  static constexpr int32_t kWeight = 127, kInput = 255;
  cpu::IntegerShape shape() const { return {4 + 2 * tens_, 1, 1, 1, 1}; }
  std::vector<int8_t> codes() const {
    std::vector<int8_t> codes = {1, -1, 0, 0};
    for (int i = 0; i < tens_; ++i) codes.insert(codes.end(), {kWeight, -kWeight});
    return codes;
  }

  int tens_;
  cpu::IntegerLayer layer_;
};

// Every threshold of every channel, from both sides, through the kernels.
TEST(IntegerNetwork, CodesChangeExactlyWhereTheFloatNetworksDo) {
  int64_t checked = 0, multiplied = 0, channels = 0;
  for (const int bits : {2, 4, 8}) {
    const Network network = random_network(small_config(bits), 0.6, 300);
    const IntegerNetwork integers(network);
    float x_scale = 2.0F / static_cast<float>(1 << (bits - 1));
    for (size_t i = 0; i + 1 < network.layers().size(); ++i) {
      const Layer& layer = network.layers()[i];
      const IntegerLayerData& data = integers.layers()[i];
      // Batch-norm and quantizer in double precision would round elsewhere: the float constants
      // themselves are the definition.
      float largest = 0;
      for (const float w : layer.weight.value.floats()) largest = std::max(largest, std::fabs(w));
      const float w_scale = largest / static_cast<float>((1 << (bits - 1)) - 1);
      const cpu::EvaluationState state =
          cpu::evaluation_state({.act_bits = bits}, x_scale, w_scale,
                                {layer.gamma.value.floats(), layer.beta.value.floats(),
                                 layer.threshold.value.floats()[0]},
                                layer.running_mean.floats(), layer.running_var.floats());
      const size_t levels = static_cast<size_t>(data.levels());
      for (int o = 0; o < layer.out_channels; ++o) {
        const size_t c = static_cast<size_t>(o);
        const cpu::SumRange range = data.range(o);
        const std::vector<int32_t> thresholds(
            data.thresholds.begin() + static_cast<ptrdiff_t>(c * levels),
            data.thresholds.begin() + static_cast<ptrdiff_t>((c + 1) * levels));
        const AnySums layer_of_sums(std::max(range.high, -range.low), {data.requantizers[c]},
                                    thresholds);
        cpu::Requantizer search = data.requantizers[c];
        search.shift = -1;
        search.exact = false;
        AnySums searching(std::max(range.high, -range.low), {search}, thresholds);
        searching.on_vectors();
        AnySums on_vectors = layer_of_sums;
        on_vectors.on_vectors();
        std::vector<int32_t> sums = {range.low, range.high, 0};
        for (const int32_t t : thresholds) {
          for (const int32_t sum : {t - 1, t, t + 1}) {
            if (sum >= range.low && sum <= range.high) sums.push_back(sum);
          }
        }
        while (sums.size() % kLanes != 0) sums.push_back(0);
        const int sign = state.gain[c] < 0 ? -1 : 1;
        for (size_t at = 0; at < sums.size(); at += kLanes) {
          std::array<int32_t, kLanes> lanes{};
          std::copy_n(sums.begin() + static_cast<ptrdiff_t>(at), kLanes, lanes.begin());
          const auto codes = layer_of_sums(lanes), searched = searching(lanes);
          const auto vector_codes = on_vectors(lanes);
          for (size_t k = 0; k < kLanes; ++k) {
            const int expected = code_of(state, c, bits, sign * lanes[k]);
            ASSERT_EQ(int{codes[k]}, expected)
                << layer.name << " output " << o << " sum " << lanes[k];
            ASSERT_EQ(int{searched[k]}, expected) << layer.name << " output " << o;
            ASSERT_EQ(int{vector_codes[k]}, expected) << layer.name << " output " << o;
            ++checked;
          }
        }
        multiplied += data.requantizers[c].exact;
        ++channels;
      }
      x_scale = state.act_scale;
    }
  }
  std::cout << checked << " sums; " << multiplied << " of " << channels
            << " channels by multiplication alone\n";
  EXPECT_GT(multiplied, channels / 2);
}

// Batch-norm constants that put sums exactly on the boundary between two codes, where rounding to
// even decides.
TEST(IntegerNetwork, TiesAreRoundedToEvenAsInTheFloatNetwork) {
  for (const float beta : {0.0F, 0.5F, 0.25F}) {
    ChainConfig config = small_config(4);
    Network network = random_network(config, 1.0, 9);
    // Scales that are powers of two, and batch-norm without a remainder.
    for (Layer& layer : network.layers()) {
      const std::span<float> weights = layer.weight.value.floats();
      Random random(9, layer.name);
      for (float& w : weights) w = static_cast<float>(static_cast<int>(random.below(15)) - 7);
      weights[0] = 7;
      if (layer.kind == Layer::Kind::kOutput) continue;
      layer.threshold.value.floats()[0] = 15;
      for (size_t c = 0; c < static_cast<size_t>(layer.out_channels); ++c) {
        layer.gamma.value.floats()[c] = (c % 2 == 0 ? 0.5F : -0.5F);
        layer.beta.value.floats()[c] = beta + static_cast<float>(c % 3);
        layer.running_mean.floats()[c] = 0;
        layer.running_var.floats()[c] = static_cast<float>(16.0 - kBatchNormEpsilon);
      }
    }
    expect_same(network, IntegerNetwork(network), 3000, 31);
  }
}

// Every sum of small ranges against the thresholds themselves, and thresholds that no line meets.
TEST(Requantizer, EqualsItsThresholdsOnEverySumOrIsNotFound) {
  const uint64_t seed = 17;
  std::cout << "seed " << seed << "\n";
  Random random(seed, "requantizer");
  int found = 0;
  int64_t in_32_bits = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const int bits = 1 + static_cast<int>(random.below(8));
    const cpu::SumRange range{-static_cast<int32_t>(random.below(20000)),
                              static_cast<int32_t>(random.below(20000))};
    const double gain = std::exp2(random.uniform(-12.0, 1.0));
    const double shift = random.uniform(-20.0, 20.0);
    const bool lines = trial % 3 != 0;
    std::vector<int32_t> thresholds;
    for (int k = 1; k < 1 << bits; ++k) {
      const double at = lines ? std::ceil((k - 0.5 - shift) / gain) : random.uniform(-2e4, 2e4);
      thresholds.push_back(static_cast<int32_t>(std::clamp<double>(at, range.low, range.high + 1)));
    }
    std::ranges::sort(thresholds);
    const cpu::Requantizer r = cpu::fit_requantizer(thresholds, range, gain);
    if (r.shift < 0) continue;
    found += r.exact;
    for (int32_t sum = range.low; sum <= range.high; ++sum) {
      const auto expected =
          std::upper_bound(thresholds.begin(), thresholds.end(), sum) - thresholds.begin();
      const uint64_t a = static_cast<uint64_t>(std::clamp(sum, r.base, r.top) - r.base);
      const uint64_t product = a * r.multiplier + r.offset;
      size_t code = product >> r.shift;
      if (r.fits_32_bits) {
        ASSERT_TRUE(r.exact) << "trial " << trial;
        ASSERT_LT(product, uint64_t{1} << 32) << "trial " << trial << ", sum " << sum;
      }
      in_32_bits += r.fits_32_bits;
      if (!r.exact) {
        // The kernels look at the threshold only where the slack changes the code.
        const bool near = (product + r.slack) >> r.shift != code;
        ASSERT_TRUE(near || static_cast<int64_t>(code) == expected) << "trial " << trial;
        if (code < thresholds.size() && sum >= thresholds[code]) ++code;
      }
      ASSERT_EQ(static_cast<int64_t>(code), expected) << "trial " << trial << ", sum " << sum;
    }
  }
  std::cout << found << " of 300 found\n";
  EXPECT_GT(found, 150);
  EXPECT_GT(in_32_bits, 0);
}

TEST(CodeLine, EnclosesItsThresholdsOnEverySumOrIsNotFound) {
  const uint64_t seed = 19;
  std::cout << "seed " << seed << "\n";
  Random random(seed, "code line");
  std::array<int, 3> of_kind{};
  for (int trial = 0; trial < 300; ++trial) {
    const int bits = 1 + static_cast<int>(random.below(8));
    const int32_t low = -static_cast<int32_t>(random.below(20000));
    const int32_t high = static_cast<int32_t>(random.below(20000));
    const double gain = std::exp2(random.uniform(-12.0, 1.0));
    const double shift = random.uniform(-20.0, 20.0), noise = random.uniform(0.0, 1e-3);
    const bool lines = trial % 3 != 0;
    std::vector<int32_t> thresholds;
    for (int k = 1; k < 1 << bits; ++k) {
      const double off = k - 0.5 + random.uniform(-noise, noise) - shift;
      const double at = lines ? std::ceil(off / gain) : random.uniform(-2e4, 2e4);
      thresholds.push_back(static_cast<int32_t>(std::clamp<double>(at, low, high + 1)));
    }
    std::ranges::sort(thresholds);
    // As requantizers name the range: from below the first threshold that is reached to the last.
    const cpu::Requantizer r = cpu::fit_requantizer(thresholds, {low, high}, gain);
    const cpu::CodeLine line = cpu::fit_code_line(thresholds, r.base, r.top, std::max(high, -low));
    ++of_kind[static_cast<size_t>(line.kind)];
    for (int32_t sum = low; sum <= high; ++sum) {
      const auto expected =
          std::upper_bound(thresholds.begin(), thresholds.end(), sum) - thresholds.begin();
      const int below = cpu::code_on_line(line, line.low, sum);
      const int above = cpu::code_on_line(line, line.high, sum);
      ASSERT_LE(below, expected) << "trial " << trial << ", sum " << sum;
      ASSERT_GE(above, expected) << "trial " << trial << ", sum " << sum;
      // Vectors look at one threshold only.
      const int furthest = line.kind == cpu::CodeLine::kExact ? 0 : 1;
      if (line.kind != cpu::CodeLine::kSearch) {
        ASSERT_LE(above - below, furthest) << "trial " << trial << ", sum " << sum;
      }
    }
  }
  std::cout << of_kind[0] << " exact, " << of_kind[1] << " with a look, " << of_kind[2]
            << " searched\n";
  EXPECT_THAT(of_kind, testing::Each(testing::Gt(10)));
}

TEST(LogitRounding, RoundsAsFloatsDo) {
  Random random(3, "rounding");
  for (int i = 0; i < 1'000'000; ++i) {
    const int64_t value = static_cast<int64_t>(random.next_u64()) >> (1 + random.below(62));
    ASSERT_EQ(LogitRounding::round(value), static_cast<int64_t>(static_cast<float>(value)))
        << value;
  }
  for (const int64_t tie :
       {(1 << 24) + 1, (1 << 24) + 3, (1 << 25) + 2, (1 << 25) - 1, -(1 << 24) - 3}) {
    EXPECT_EQ(LogitRounding::round(tie), static_cast<int64_t>(static_cast<float>(tie)));
  }
}

// Pruning may leave nothing of a layer but its biases.
TEST(IntegerNetwork, AnOutputWithoutWeightsSaysItsBiases) {
  for (const bool class_scales : {false, true}) {
    ChainConfig config = small_config(4);
    config.class_scales = class_scales;
    Network network = random_network(config, 0.5, 51);
    Layer& output = network.layers().back();
    std::ranges::fill(output.weight.mask, uint8_t{0});
    network.apply_masks();
    const std::span<float> bias = output.bias.value.floats();
    for (const std::vector<float>& biases :
         {std::vector<float>(bias.begin(), bias.end()), std::vector<float>{0, 0, 0, 0, 0, 0, 0},
          std::vector<float>{-3, 7.25F, 1e-8F, 7.25F, 0, -2e5F, 5}}) {
      std::copy_n(biases.begin(), std::min(biases.size(), bias.size()), bias.begin());
      const IntegerNetwork integers(network);
      const FrameBatch batch = random_frames(config, 20, 52);
      const std::vector<float> expected = Trainer({}).logits(network, batch);
      std::vector<int32_t> logits(expected.size());
      std::vector<uint8_t> predicted(20);
      integers.run(batch.codes, logits, predicted, 1);
      for (size_t i = 0; i < logits.size(); ++i) {
        const float logit = static_cast<float>(logits[i]) * integers.logit_scale();
        EXPECT_NEAR(logit, expected[i], integers.logit_scale());
      }
      const auto best = std::max_element(expected.begin(), expected.begin() + config.classes);
      EXPECT_EQ(predicted, std::vector<uint8_t>(20, static_cast<uint8_t>(best - expected.begin())));
    }
  }
}

TEST(IntegerNetwork, RefusesWhatIsNotQuantized) {
  const auto message = [](const NetworkConfig& config) -> std::string {
    try {
      const Network network(config, 1);
      IntegerNetwork integers(network);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  ChainConfig config = small_config(8);
  config.input_bits = kFloatBits;
  EXPECT_THAT(message(config), testing::StartsWith("conv1: its inputs are float"));
  config = small_config(8);
  config.weight_bits = {8, 8, 32, 8, 8, 8};
  EXPECT_THAT(message(config), testing::StartsWith("conv3: its weights are float"));
  config = small_config(8);
  config.act_bits = {8, 32, 8, 8, 8};
  EXPECT_THAT(message(config), testing::StartsWith("conv2: its activations are float"));
}

TEST(IntegerNetwork, RefusesValuesThatAreNotFiniteOrTooLarge) {
  Network network = random_network(small_config(8), 1.0, 1);
  network.layers()[1].beta.value.floats()[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT([&] { IntegerNetwork integers(network); },
              testing::ThrowsMessage<Error>("conv2: batch-norm of output 3 is not finite"));
  network = random_network(small_config(8), 1.0, 1);
  network.layers().back().bias.value.floats()[2] = 1e30F;
  EXPECT_THAT([&] { IntegerNetwork integers(network); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("output: the bias of output 2")));
  network = random_network(small_config(8), 1.0, 1);
  network.layers()[0].weight.value.floats()[0] = std::numeric_limits<float>::infinity();
  EXPECT_THAT([&] { IntegerNetwork integers(network); },
              testing::ThrowsMessage<Error>(testing::StartsWith("conv1: ")));
}

TEST(IntegerNetwork, ChecksTheSizesOfItsArguments) {
  const IntegerNetwork integers(random_network(small_config(8), 1.0, 1));
  std::vector<int8_t> frames(2 * 48 * 2 - 1);
  std::vector<int32_t> logits(2 * 11);
  EXPECT_THROW(integers.run(frames, logits, {}, 1), std::invalid_argument);
  frames.resize(2 * 48 * 2);
  logits.resize(11);
  EXPECT_THROW(integers.run(frames, logits, {}, 1), std::invalid_argument);
}

// Classes with scales and float biases of their own are in the order of the floats, biases far
// smaller than a step of the sums included.
TEST(LogitRounding, OrdersClassesOfDifferentScalesAsFloatsDo) {
  std::mt19937_64 random(5);
  constexpr int kClasses = 6;
  for (int trial = 0; trial < 200; ++trial) {
    const float scale = std::ldexp(1 + static_cast<float>(random() % 1000) / 1000, -12);
    std::vector<float> gain, bias;
    for (int c = 0; c < kClasses; ++c) {
      gain.push_back(0.05F + static_cast<float>(random() % 1000) / 1050);
      const float size = trial % 2 == 0 ? 1 : 1e-9F;
      bias.push_back(size * (static_cast<float>(random() % 20001) / 10000 - 1));
    }
    const LogitRounding rounding(scale, gain, bias, 1 << 20);
    for (int frame = 0; frame < 200; ++frame) {
      std::vector<int64_t> found;
      std::vector<float> expected;
      for (size_t c = 0; c < kClasses; ++c) {
        // Few different sums, so that classes often come close to each other.
        const auto sum = static_cast<int32_t>(random() % 7) - 3;
        found.push_back(rounding(c, sum));
        expected.push_back(static_cast<float>(sum) * (scale * gain[c]) + bias[c]);
      }
      for (size_t a = 0; a < kClasses; ++a) {
        for (size_t b = 0; b < a; ++b) {
          ASSERT_EQ(found[a] < found[b], expected[a] < expected[b])
              << expected[a] << ' ' << expected[b];
          ASSERT_EQ(found[a] > found[b], expected[a] > expected[b])
              << expected[a] << ' ' << expected[b];
        }
      }
    }
  }
}

TEST(LogitRounding, RefusesWhat64BitsCannotHold) {
  const std::vector<float> far_apart = {1.0F, 1e-6F}, one = {1.0F, 1.0F}, none = {0, 0};
  EXPECT_THROW(LogitRounding(1, far_apart, none, 1000), std::range_error);
  const std::vector<float> large = {1e30F, 0};
  EXPECT_THROW(LogitRounding(1, one, large, 1000), std::range_error);
}

}  // namespace
}  // namespace fmp
