// SPDX-License-Identifier: MIT
// Networks that branch: training and evaluation on the CPU, and removing channels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "framework/network/compaction.h"
#include "framework/network/cost.h"
#include "framework/network/description.h"
#include "framework/network/network.h"
#include "framework/network/pruning.h"
#include "framework/random.h"
#include "framework/training/trainer.h"
#include "tests/random_batch.h"
#include "tests/ranks_training.h"
#include "tests/thread_ranks.h"
#include "tests/trained_network.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 20'261'127;

// All operations; values with up to three readers, which want different padding and joined
// positions.
constexpr const char* kBranches = R"({"layers": [
    {"type": "conv", "name": "stem", "outputs": 8, "kernel": 3, "pool": 2},
    {"type": "conv", "name": "left", "outputs": 8, "kernel": 5, "signed": true},
    {"type": "add", "reads": ["left", "stem"]},
    {"type": "conv", "name": "half", "outputs": 6, "kernel": 3, "stride": 2, "reads": ["stem"]},
    {"type": "conv", "name": "deep", "outputs": 8, "kernel": 3, "pool": 2, "reads": ["add1"]},
    {"type": "average_pool", "name": "mean", "window": 2, "reads": ["add1"]},
    {"type": "add", "name": "sum", "reads": ["deep", "mean"], "signed": true},
    {"type": "concat", "reads": ["half", "sum"], "pool": 2},
    {"type": "conv", "outputs": 5, "kernel": 3},
    {"type": "dense", "outputs": 7}]})";

NetworkConfig branches(int bits) {
  NetworkConfig config = read_network(kBranches, bits);
  config.length = 32;
  config.classes = kClasses;
  return config;
}

// Padding that makes more or fewer positions, strides and pools that leave some over.
NetworkConfig lengths(int bits) {
  NetworkConfig config = read_network(FMP_FIXTURES_DIR "/lengths.json", bits);
  config.length = 53;
  config.classes = kClasses;
  return config;
}

// Averages whose windows leave positions over.
NetworkConfig averages(int bits) {
  NetworkConfig config = read_network(FMP_FIXTURES_DIR "/averages.json", bits);
  config.length = 53;
  config.classes = kClasses;
  return config;
}

std::vector<float> all_values(const Network& network) {
  std::vector<float> values;
  const auto add = [&](const Tensor& tensor) {
    values.insert(values.end(), tensor.floats().begin(), tensor.floats().end());
  };
  for (const Layer& layer : network.layers()) {
    for (const Parameter* parameter : layer.parameters()) {
      add(parameter->value);
      add(parameter->grad);
    }
    add(layer.running_mean);
    add(layer.running_var);
  }
  return values;
}

TEST(Graph, AnyNumberOfThreadsGivesTheSameBits) {
  for (int i = 0; i < 6; ++i) {
    const bool sparse = i % 2 != 0;
    std::vector<float> of_one;
    for (int threads = 1; threads <= 3; ++threads) {
      Network network(i < 2 ? branches(4) : i < 4 ? lengths(4) : averages(4), 1);
      TrainerOptions options;
      options.threads = threads;
      options.sparse_threshold = sparse ? 1.0 : 0.0;
      options.threshold_statistic_steps = 2;
      Trainer trainer(options);
      trainer.plan(network);
      double loss = 0;
      for (uint64_t step = 0; step < 4; ++step) {
        FrameBatch batch = random_batch(network.config(), 70, step);
        for (int8_t& code : batch.codes) code = static_cast<int8_t>(code / 16);
        loss = trainer.train_step(network, batch, 1e-3).loss;
      }
      EXPECT_TRUE(std::isfinite(loss));
      for (const Layer& layer : network.layers()) {
        if (!layer.threshold.value.defined()) continue;
        EXPECT_NE(layer.threshold.value.floats()[0], 1.0F);
      }
      if (threads == 1) of_one = all_values(network);
      EXPECT_TRUE(all_values(network) == of_one) << threads << " threads, sparse " << sparse;
    }
  }
}

TEST(Graph, RanksGiveTheBitsOfOneProcess) {
  const auto trained = [](const NetworkConfig& config, int threads, Communicator* ranks) {
    constexpr int64_t kFrames = 150;
    Network network(config, 1);
    const PartOfFrames data(kFrames, network.config().length, 4, false, ranks);
    std::vector<int64_t> all(kFrames);
    std::iota(all.begin(), all.end(), int64_t{0});
    TrainerOptions options;
    options.threads = threads;
    options.ranks = ranks;
    options.batch = 64;
    options.sparse_threshold = 0.0;
    options.threshold_statistic_steps = 1;
    Trainer trainer(options);
    trainer.plan(network);
    trainer.train_epoch(network, data, all, 1, 1, 1e-3);
    return all_values(network);
  };
  for (const NetworkConfig& config : {branches(4), lengths(4), averages(4)}) {
    const std::vector<float> alone = trained(config, 1, nullptr);
    for (int ranks = 2; ranks <= 3; ++ranks) {
      ThreadRanks::run(ranks, [&](Communicator& communicator) {
        EXPECT_TRUE(trained(config, 1, &communicator) == alone) << ranks << " ranks";
      });
    }
  }
}

// A threshold that came with its layer is not taken from the batch, others are, from the first.
TEST(Graph, ThresholdsAreCollectedWhereTheirLayersSaySo) {
  for (const bool first : {false, true}) {
    NetworkConfig config = branches(4);
    for (size_t i = 0; i < config.layers.size(); ++i)
      config.layers[i].collects = (i % 2 == 0) == first;
    Network network(config, 1);
    const auto given = [](size_t i) { return 0.5F + 0.1F * static_cast<float>(i); };
    for (size_t i = 0; i < config.layers.size(); ++i)
      network.layers()[i].threshold.value.floats()[0] = given(i);
    Trainer trainer{TrainerOptions()};
    for (uint64_t step = 0; step < 2; ++step)
      trainer.train_step(network, random_batch(config, 40, step), 0.0);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const float threshold = network.layers()[i].threshold.value.floats()[0];
      EXPECT_EQ(threshold != given(i), config.layers[i].collects) << i;
    }
  }
}

// With many channels, dense layers of three taps run on algorithms of their own, which must see all
// positions of what is read.
TEST(Graph, EveryAlgorithmSeesAllPositions) {
  NetworkConfig config = read_network(R"({"layers": [
      {"type": "conv", "outputs": 48, "kernel": 3, "padding": [0, 0]},
      {"type": "conv", "outputs": 48, "kernel": 3, "padding": [0, 0]},
      {"type": "conv", "outputs": 48, "kernel": 3, "padding": [2, 2], "pool": 2},
      {"type": "conv", "outputs": 33, "kernel": 5, "padding": [0, 0], "pool": 4},
      {"type": "dense", "outputs": 7}]})",
                                      4);
  config.length = 55;
  config.classes = kClasses;
  const auto gradients = [&](bool sparse) {
    Network network = trained_network(config, 3);
    TrainerOptions options;
    options.sparse_threshold = sparse ? 2.0 : 0.0;
    Trainer trainer(options);
    trainer.plan(network);
    trainer.train_step(network, random_batch(config, 20, 3), 0.0);
    return network;
  };
  const Network dense = gradients(false), sparse = gradients(true);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::span<const float> a = dense.layers()[i].weight.grad.floats();
    const std::span<const float> b = sparse.layers()[i].weight.grad.floats();
    float largest = 0, apart = 0;
    for (size_t k = 0; k < a.size(); ++k) {
      largest = std::max(largest, std::abs(a[k]));
      apart = std::max(apart, std::abs(a[k] - b[k]));
    }
    EXPECT_GT(largest, 0) << i;
    EXPECT_LT(apart, 1e-4F * largest) << i;
  }
}

// Two convolutions of the same value, side by side, are one with the channels of both: a chain.
TEST(Graph, BranchesSideBySideAreAWiderLayer) {
  ChainConfig chain;
  chain.length = 32;
  chain.classes = 3;
  chain.filters = {8, 16};
  chain.dense = {};
  chain.pool = {2, 1};
  chain.weight_bits = chain.act_bits = {4};
  chain.input_bits = 4;
  chain.smallest_codes = {0, -8};
  NetworkConfig parallel = read_network(R"({"layers": [
      {"type": "conv", "outputs": 8, "kernel": 3, "pool": 2},
      {"type": "conv", "outputs": 8, "kernel": 3, "signed": true},
      {"type": "conv", "outputs": 8, "kernel": 3, "signed": true, "reads": ["conv1"]},
      {"type": "concat", "reads": ["conv2", "conv3"], "signed": true}]})",
                                        4);
  parallel.length = chain.length;
  parallel.classes = chain.classes;
  Network wide = trained_network(chain, kSeed);
  Network graph = trained_network(parallel, kSeed);
  std::vector<Layer>&of_wide = wide.layers(), &of_graph = graph.layers();
  of_wide[1].weight.value.floats()[5] = of_wide[1].weight.value.floats()[8 * 24 + 7] = 0.7F;
  const auto copy_part = [](const Tensor& from, Tensor& to, int64_t skipped) {
    std::copy_n(from.data<float>() + skipped, to.size(), to.data<float>());
  };
  const auto copy_layer = [&](const Layer& from, Layer& to, int64_t channel) {
    copy_part(from.weight.value, to.weight.value, channel * 24);
    if (from.gamma.value.defined()) {
      copy_part(from.gamma.value, to.gamma.value, channel);
      copy_part(from.beta.value, to.beta.value, channel);
      copy_part(from.running_mean, to.running_mean, channel);
      copy_part(from.running_var, to.running_var, channel);
    } else {
      copy_part(from.bias.value, to.bias.value, channel);
    }
  };
  copy_layer(of_wide[0], of_graph[0], 0);
  copy_layer(of_wide[1], of_graph[1], 0);
  copy_layer(of_wide[1], of_graph[2], 8);
  copy_layer(of_wide[2], of_graph[4], 0);

  FrameBatch batch = random_batch(chain, 40, kSeed);
  for (int8_t& code : batch.codes) code = static_cast<int8_t>(code / 16);
  Trainer trainer({});
  EXPECT_EQ(trainer.logits(graph, batch), trainer.logits(wide, batch));
  const double of_graph_loss = trainer.train_step(graph, batch, 1e-3).loss;
  EXPECT_NEAR(of_graph_loss, trainer.train_step(wide, batch, 1e-3).loss, 1e-6);
  const auto expect_near = [](const Tensor& part, const Tensor& whole, int64_t skipped,
                              const std::string& what) {
    float largest = 0;
    for (const float value : whole.floats()) largest = std::max(largest, std::fabs(value));
    EXPECT_GT(largest, 0) << what;
    for (int64_t i = 0; i < part.size(); ++i) {
      ASSERT_NEAR(part.data<float>()[i], whole.data<float>()[skipped + i], 1e-4F * largest)
          << what << " " << i;
    }
  };
  expect_near(of_graph[0].weight.grad, of_wide[0].weight.grad, 0, "stem");
  expect_near(of_graph[0].gamma.grad, of_wide[0].gamma.grad, 0, "stem's gamma");
  expect_near(of_graph[0].threshold.grad, of_wide[0].threshold.grad, 0, "stem's threshold");
  // The largest weight gets the gradient of the scale, which the wide layer spreads over two.
  expect_near(of_graph[1].gamma.grad, of_wide[1].gamma.grad, 0, "gamma");
  expect_near(of_graph[2].gamma.grad, of_wide[1].gamma.grad, 8, "gamma");
  expect_near(of_graph[2].beta.grad, of_wide[1].beta.grad, 8, "beta");
  for (size_t i = 0; i < static_cast<size_t>(of_graph[1].weight.size()); ++i) {
    if (i == 5 || i == 7) continue;
    ASSERT_NEAR(of_graph[1].weight.grad.floats()[i], of_wide[1].weight.grad.floats()[i], 1e-5F);
    ASSERT_NEAR(of_graph[2].weight.grad.floats()[i], of_wide[1].weight.grad.floats()[8 * 24 + i],
                1e-5F);
  }
}

// A layer reads a value with more padding around it than it needs, where another reader wants it.
TEST(Graph, ReadersMayWantDifferentPadding) {
  const auto network_of = [](int kernel) {
    NetworkConfig config = read_network(R"({"layers": [
        {"type": "conv", "outputs": 8, "kernel": 3, "pool": 2},
        {"type": "conv", "name": "far", "outputs": 8, "kernel": 7},
        {"type": "conv", "name": "near", "outputs": 8, "kernel": )" +
                                            std::to_string(kernel) + R"(, "reads": ["conv1"]},
        {"type": "add", "reads": ["far", "near"]}]})",
                                        4);
    config.length = 32;
    config.classes = 3;
    return trained_network(config, kSeed);
  };
  Network narrow = network_of(1), wide = network_of(7);
  for (size_t i = 0; i < narrow.layers().size(); ++i) {
    Layer &from = narrow.layers()[i], &to = wide.layers()[i];
    if (i != 2) {
      if (from.has_weights()) to.weight = from.weight.clone();
      continue;
    }
    to.weight.value.fill_zero();
    std::ranges::fill(to.weight.mask, uint8_t{0});
    for (int o = 0; o < 8; ++o) {
      for (int c = 0; c < 8; ++c) {
        to.weight.value.floats()[to.place(o, c, 3)] =
            from.weight.value.floats()[from.place(o, c, 0)];
        to.weight.mask[to.place(o, c, 3)] = 1;
      }
    }
  }
  FrameBatch batch = random_batch(narrow.config(), 40, kSeed);
  for (int8_t& code : batch.codes) code = static_cast<int8_t>(code / 16);
  Trainer trainer({});
  EXPECT_EQ(trainer.logits(narrow, batch), trainer.logits(wide, batch));
  EXPECT_NEAR(trainer.train_step(narrow, batch, 1e-3).loss,
              trainer.train_step(wide, batch, 1e-3).loss, 1e-6);
  const Layer &a = narrow.layers()[0], &b = wide.layers()[0];
  for (size_t i = 0; i < static_cast<size_t>(a.weight.size()); ++i)
    ASSERT_NEAR(a.weight.grad.floats()[i], b.weight.grad.floats()[i], 1e-5F);
}

// A random network in which some layers read the same value and are added or put side by side.
NetworkConfig random_graph(Random& random) {
  NetworkConfig config;
  config.length = 16;
  config.classes = 3;
  config.input_bits = 4;
  config.output_bits = 4;
  const auto channels = [&] { return 3 + static_cast<int>(random.below(4)); };
  const auto conv = [&](int outputs, int reads) {
    LayerConfig layer;
    layer.outputs = outputs;
    layer.reads = {reads};
    layer.weight_bits = layer.act_bits = 4;
    const int kernel = 1 + 2 * static_cast<int>(random.below(2));
    layer.form = {kernel, 1, kernel / 2, 1, 1};
    layer.smallest_code = random.below(2) == 0 ? -8 : 0;
    config.layers.push_back(layer);
    return static_cast<int>(config.layers.size()) - 1;
  };
  const auto join = [&](LayerKind kind, std::vector<int> reads) {
    LayerConfig layer;
    layer.kind = kind;
    layer.reads = std::move(reads);
    layer.act_bits = 4;
    if (kind == LayerKind::kAveragePool) layer.form.kernel = 2;
    config.layers.push_back(layer);
    return static_cast<int>(config.layers.size()) - 1;
  };
  int width = channels();
  int at = conv(width, kReadsFrames);
  for (int block = 0; block < 3; ++block) {
    if (random.below(2) == 0) {
      const int inner = conv(channels(), at);
      at = join(LayerKind::kAdd, {conv(width, inner), at});
    } else {
      const int more = channels();
      at = join(LayerKind::kConcat, {conv(more, at), at});
      width += more;
    }
  }
  at = join(LayerKind::kAveragePool, {at});
  conv(channels(), at);
  return config;
}

TEST(Graph, RemovingChannelsKeepsTheFunction) {
  Random random(kSeed, "graphs");
  int removed = 0, tied = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Network network = trained_network(random_graph(random), seed);
    std::vector<Layer>& layers = network.layers();
    for (size_t i = 0; i + 1 < layers.size(); ++i) {
      Layer& layer = layers[i];
      if (!layer.has_weights()) continue;
      const size_t row = layer.weight.mask.size() / static_cast<size_t>(layer.out_channels);
      for (int o = 0; o < layer.out_channels; ++o) {
        // Whole channels without weights, which emit 0; the last one of every layer always.
        if (o > 0 && random.below(3) != 0 && o + 1 != layer.out_channels) continue;
        if (o == 0) continue;
        std::fill_n(layer.weight.mask.begin() + static_cast<ptrdiff_t>(row) * o, row, uint8_t{0});
        layer.gamma.value.floats()[static_cast<size_t>(o)] = 0;
        layer.beta.value.floats()[static_cast<size_t>(o)] = 0;
      }
      layer.weight.value.floats()[0] = 0.9F;  // the scale is channel 0's
    }
    network.apply_masks();
    FrameBatch batch = random_batch(network.config(), 20, seed);
    for (int8_t& code : batch.codes) code = static_cast<int8_t>(code / 16);
    Trainer trainer({});
    const std::vector<float> before = trainer.logits(network, batch);
    Network small = network;
    const CompactionReport report = compact(small);
    EXPECT_EQ(trainer.logits(small, batch), before) << "graph " << seed;
    for (size_t i = 0; i < report.channels_after.size(); ++i) {
      const int gone = report.channels_before[i] - report.channels_after[i];
      removed += gone;
      if (!layers[i].has_weights()) tied += gone;
    }
    // Nothing is left to remove.
    const CompactionReport again = compact(small);
    EXPECT_EQ(again.channels_after, again.channels_before) << "graph " << seed;
    // What is left trains as the whole does.
    EXPECT_NEAR(trainer.train_step(small, batch, 1e-3).loss,
                trainer.train_step(network, batch, 1e-3).loss, 1e-6);
  }
  EXPECT_GT(removed, 50);
  EXPECT_GT(tied, 10) << "channels of sums and of layers side by side";
}

// Structured methods take the channels that a sum ties together, from all layers that write them,
// so that compact() can remove them.
TEST(Graph, TiedChannelsArePrunedTogether) {
  for (const char* method :
       {"structured-l1", "structured-taylor", "cost-structured-taylor", "batch-norm-scale"}) {
    Network network = trained_network(branches(4), kSeed);
    network.optimizer_steps = 1;
    Random random(kSeed, method);
    for (Layer& layer : network.layers()) {
      for (Parameter* parameter : layer.parameters())
        fill_random(parameter->moment2, random, 0.01F, 0.02F);
    }
    const PruneResult result = prune(network, *make_pruning_method(method), 0.3, 1, 1);
    EXPECT_LT(result.weights_after, result.weights_before);
    const std::vector<std::vector<size_t>> ties = tied_channels(network.layers());
    std::map<size_t, int> alive_of_tie;  // 1: alive, 2: pruned, 3: both
    for (size_t i = 0; i < ties.size(); ++i) {
      const Layer& layer = network.layers()[i];
      if (!layer.has_weights()) continue;
      const auto row = static_cast<ptrdiff_t>(layer.weight.mask.size() / ties[i].size());
      for (size_t c = 0; c < ties[i].size(); ++c) {
        const auto begin = layer.weight.mask.begin() + static_cast<ptrdiff_t>(c) * row;
        alive_of_tie[ties[i][c]] |= std::find(begin, begin + row, 1) != begin + row ? 1 : 2;
      }
    }
    int pruned = 0;
    for (const auto& [tie, seen] : alive_of_tie) {
      EXPECT_NE(seen, 3) << method << ": a part of what goes together";
      pruned += seen == 2 ? 1 : 0;
    }
    EXPECT_GT(pruned, 3) << method;
    // stem, left, deep, the mean and both sums are tied: 8 groups, without the concat's other part.
    EXPECT_EQ(ties[0], ties[1]);
    EXPECT_EQ(ties[0], ties[4]);
    EXPECT_EQ(ties[0], ties[6]);
    EXPECT_EQ(std::vector<size_t>(ties[7].begin() + 6, ties[7].end()), ties[0]);
  }
}

// `network` with a bit less of a layer's weights or activations.
Network with_fewer_bits(const Network& network, size_t layer, bool of_weights) {
  NetworkConfig config = network.config();
  std::vector<Layer> layers = Network(network).layers();
  const bool is_output = layer == config.layers.size();
  if (of_weights) {
    --layers[layer].weight_bits;
    --(is_output ? config.output_bits : config.layers[layer].weight_bits);
  } else {
    LayerConfig& changed = config.layers[layer];
    --changed.act_bits;
    if (changed.smallest_code < 0) changed.smallest_code /= 2;
    layers[layer].act_bits = changed.act_bits;
    layers[layer].smallest_code = changed.smallest_code;
    for (Layer& reader : layers) {
      if (reader.reads[0] == static_cast<int>(layer)) reader.input_bits = changed.act_bits;
    }
  }
  Network fewer = network;
  fewer.replace(config, std::move(layers));
  return fewer;
}

// Random gradients of the weights, of about the same size. As of one step: moment2 / (1 - beta2).
void fill_weight_moments(Network& network) {
  network.optimizer_steps = 1;
  Random random(kSeed, "moments");
  for (Layer& layer : network.layers()) {
    if (layer.has_weights()) fill_random(layer.weight.moment2, random, 1e-9F, 2e-9F);
  }
}

// Each step takes the bit with the least loss for what the whole network's cost then falls by,
// computed here from the network with that bit less. shifts: by layer, what stands for the squared
// gradient of its values, summed over the channels. Leaves no bit that can go. Returns which layers
// lost bits of their values, in order.
std::vector<size_t> expect_fewer_bits(Network& network, const std::vector<double>& shifts) {
  std::vector<size_t> order;
  const auto loss = [&](size_t i, bool of_weights) {
    const Layer& layer = network.layers()[i];
    double sum = 0;
    if (of_weights) {
      float largest = 0;
      for (const float w : layer.weight.value.floats()) largest = std::max(largest, std::abs(w));
      const auto rounded = [&](float w, int bits) {
        const double scale = largest / static_cast<float>((1 << (bits - 1)) - 1);
        return std::nearbyint(w / scale) * scale;
      };
      for (size_t k = 0; k < layer.weight.mask.size(); ++k) {
        const float w = layer.weight.value.floats()[k];
        const double change = rounded(w, layer.weight_bits) - rounded(w, layer.weight_bits - 1);
        sum += change * change * layer.weight.moment2.floats()[k];
      }
      return sum;
    }
    const double range = layer.threshold.value.floats()[0];
    const auto distance = [&](int bits) {
      return range / ((1 << (layer.smallest_code < 0 ? bits - 1 : bits)) - 1);
    };
    double squares = shifts[i];
    if (layer.smallest_code < 0) {  // 9 / range^2 of what multiplies it
      squares = 0;
      for (const Layer& reader : network.layers()) {
        if (!reader.has_weights() || reader.reads[0] != static_cast<int>(i)) continue;
        for (size_t k = 0; k < reader.weight.mask.size(); ++k) {
          if (reader.weight.mask[k] == 0) continue;
          const double w = reader.weight.value.floats()[k];
          squares += w * w * reader.weight.moment2.floats()[k];
        }
      }
      squares *= 9 / (range * range);
    }
    return squares / 12 *
           (std::pow(distance(layer.act_bits - 1), 2) - std::pow(distance(layer.act_bits), 2));
  };
  for (;;) {
    struct Bit {
      double score;
      size_t layer;
      bool of_weights;
    };
    std::vector<Bit> bits;
    const double before = inference_cost(network).normalized();
    for (size_t i = 0; i < network.layers().size(); ++i) {
      const Layer& layer = network.layers()[i];
      for (const bool of_weights : {true, false}) {
        const int now = of_weights ? layer.weight_bits : layer.act_bits;
        if (now == 2 || now == kFloatBits) continue;
        const Network fewer = with_fewer_bits(network, i, of_weights);
        const double saved = before - inference_cost(fewer).normalized();
        if (saved > 0) bits.push_back({loss(i, of_weights) / saved, i, of_weights});
      }
    }
    const Network old = network;
    const PruneResult result = prune(network, *make_pruning_method("fewer-bits"), 0.001, 1, 1);
    if (bits.empty()) {
      EXPECT_EQ(result.bits_removed, 0);
      break;
    }
    EXPECT_EQ(result.bits_removed, 1);
    const Bit best = *std::ranges::min_element(bits, {}, &Bit::score);
    EXPECT_EQ(network.config(), with_fewer_bits(old, best.layer, best.of_weights).config());
    if (!best.of_weights) order.push_back(best.layer);
  }
  return order;
}

TEST(Graph, FewerBitsTakesWhatAllReadersSave) {
  Network network = trained_network(branches(4), kSeed);
  fill_weight_moments(network);
  const std::map<std::string, double> shift = {{"stem", 3}, {"left", 1},  {"half", 2},
                                               {"deep", 1}, {"conv5", 4}, {"dense1", 0.5}};
  for (Layer& layer : network.layers()) {
    if (layer.gamma.value.defined())
      std::ranges::fill(layer.beta.moment2.floats(), static_cast<float>(shift.at(layer.name)));
  }
  // By layer, the sum over the channels: stem, left, add1 = the larger of both, half, deep, mean =
  // add1, sum = the larger of deep and mean, concat1 = half and sum.
  const std::vector<double> gradients = {8 * 3, 8 * 1, 8 * 3,         6 * 2, 8 * 1,
                                         8 * 3, 8 * 3, 6 * 2 + 8 * 3, 5 * 4, 7 * 0.5};
  const std::vector<size_t> order = expect_fewer_bits(network, gradients);
  EXPECT_GT(
      std::ranges::count_if(order, [&](size_t i) { return !network.layers()[i].has_weights(); }),
      2);
  // What no weight is multiplied with keeps its bits: left, half, deep, mean and sum.
  std::vector<int> left;
  for (const LayerConfig& layer : network.config().layers) left.push_back(layer.act_bits);
  EXPECT_EQ(left, (std::vector<int>{2, 4, 2, 4, 4, 4, 4, 2, 2, 2}));
  EXPECT_EQ(network.layers()[9].input_bits, 2);
}

// Gradients of a shift that batch-norm takes off again add up to 0. That says nothing of the
// values.
TEST(Graph, FewerBitsOfSignedValuesLookAtWhatReadsThem) {
  NetworkConfig config = read_network(R"({"layers": [
    {"type": "conv", "outputs": 8, "kernel": 3},
    {"type": "conv", "outputs": 6, "kernel": 1, "signed": true},
    {"type": "conv", "outputs": 6, "kernel": 3, "groups": 6},
    {"type": "dense", "outputs": 5}]})",
                                      4);
  config.length = 32;
  config.classes = kClasses;
  Network network = trained_network(config, kSeed);
  fill_weight_moments(network);
  for (Layer& layer : network.layers()) {
    if (!layer.gamma.value.defined()) continue;
    const float square = layer.smallest_code < 0 ? 0 : 1e-8F;
    std::ranges::fill(layer.beta.moment2.floats(), square);
  }
  const std::vector<size_t> order =
      expect_fewer_bits(network, {8 * 1e-8F, 0, 6 * 1e-8F, 5 * 1e-8F});
  EXPECT_EQ(std::ranges::count(order, 1U), 2);
  EXPECT_NE(order.at(0), 1U);
}

// Torch-Pruning's dependency graph of the same network. It ties a depthwise convolution's channel
// to the one that it reads. Here it has a score of its own, and compact() removes what then nobody
// reads: the channel that it reads stays where others read it.
TEST(Graph, TiesAndReadersAreThoseOfTorchPruning) {
  using Channel = std::pair<std::string, int>;
  constexpr int kChannel = 3;
  struct Spy final : PruningMethod {
    std::vector<PrunableLayer>& layers;
    explicit Spy(std::vector<PrunableLayer>& to) : layers(to) {}
    void prune(PruneRequest& request) const override { layers = request.layers; }
  };
  NetworkConfig config = read_network(R"({"layers": [
      {"type": "conv", "name": "stem", "outputs": 8, "kernel": 3},
      {"type": "conv", "name": "left", "outputs": 8, "kernel": 5, "signed": true},
      {"type": "add", "reads": ["left", "stem"]},
      {"type": "conv", "name": "side", "outputs": 6, "kernel": 3, "reads": ["stem"]},
      {"type": "conv", "name": "dw", "outputs": 8, "kernel": 3, "groups": 8, "reads": ["add1"]},
      {"type": "conv", "name": "pw", "outputs": 8, "kernel": 1},
      {"type": "concat", "reads": ["side", "pw"]},
      {"type": "conv", "name": "after", "outputs": 5, "kernel": 3}]})",
                                      4);
  config.length = 16;
  config.classes = 7;
  Network network(config, kSeed);
  std::vector<PrunableLayer> layers;
  prune(network, Spy(layers), 0.3, 1, 1);
  const std::vector<ChannelGroup> groups = alive_channel_groups(layers);
  std::ifstream file(std::string(FMP_FIXTURES_DIR) + "/torch_pruning.json");
  const nlohmann::json expected = nlohmann::json::parse(file);
  ASSERT_EQ(expected.size(), 6U);
  int depthwise = 0;
  for (const auto& [root, theirs] : expected.items()) {
    SCOPED_TRACE(root);
    std::set<Channel> outputs, inputs, of_depthwise;
    std::set<std::pair<size_t, int>> todo, done;
    for (const PrunableLayer& layer : layers) {
      if (layer.name == root) todo.emplace(layer.index, kChannel);
    }
    ASSERT_EQ(todo.size(), 1U);
    const size_t root_layer = todo.begin()->first;
    while (!todo.empty()) {
      const std::pair<size_t, int> next = *todo.begin();
      todo.erase(next);
      for (const ChannelGroup& group : groups) {
        if (std::ranges::find(group, next) == group.end()) continue;
        for (const auto& [at, channel] : group) {
          if (!done.emplace(at, channel).second) continue;
          outputs.emplace(layers[at].name, channel);
          for (const PrunableLayer::Reader& reader : layers[at].readers) {
            const Channel read(layers[reader.layer].name, reader.first + channel);
            if (read.first != "dw") {
              inputs.insert(read);
            } else if (of_depthwise.insert(read).second) {
              todo.emplace(reader.layer, read.second);
            }
          }
        }
      }
      // From a depthwise channel back to the one that it reads.
      if (layers[next.first].name == "dw") todo.emplace(0, next.second);
      if (done.contains({0, next.second})) todo.erase({0, next.second});
    }
    depthwise += of_depthwise.empty() ? 0 : 1;
    EXPECT_EQ(outputs, theirs.at("outputs").get<std::set<Channel>>());
    EXPECT_EQ(inputs, theirs.at("inputs").get<std::set<Channel>>());
    // The group that goes as one here: all of theirs but for the depthwise convolution.
    for (const ChannelGroup& group : groups) {
      if (std::ranges::find(group, std::pair(root_layer, kChannel)) == group.end()) continue;
      const bool is_sum = root == "stem" || root == "left";
      EXPECT_EQ(group.size(), is_sum ? 2U : 1U);
    }
  }
  EXPECT_EQ(depthwise, 3);  // stem, left and dw
}

}  // namespace
}  // namespace fmp
