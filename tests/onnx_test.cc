// SPDX-License-Identifier: MIT
// Graphs, their evaluation, import, export and cost, against the qonnx executor and qonnx's
// inference_cost (fixtures/make_onnx_fixtures.py), against published figures where they are at
// hand, and under damage.
#define ONNX_ML 1
#define ONNX_NAMESPACE onnx
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "framework/error.h"
#include "framework/network/description.h"
#include "framework/onnx/evaluate.h"
#include "framework/onnx/export.h"
#include "framework/onnx/graph_cost.h"
#include "framework/onnx/import.h"
#include "framework/training/functions.h"
#include "framework/training/trainer.h"
#include "tests/chain_of.h"
#include "tests/fixture_file.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

fs::path fixture(const std::string& name) {
  return fs::path(FMP_FIXTURES_DIR) / ("onnx_" + name + ".onnx");
}

nlohmann::json expected(const std::string& name) {
  std::ifstream file(fs::path(FMP_FIXTURES_DIR) / "onnx.json");
  return nlohmann::json::parse(file).at(name);
}

std::vector<float> flat(const nlohmann::json& rows) {
  std::vector<float> values;
  for (const nlohmann::json& row : rows) {
    for (const nlohmann::json& value : row) values.push_back(value.get<float>());
  }
  return values;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;  // also when it is not a number
  }
  return largest;
}

// A file in the temporary directory that goes away with it.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& name)
      : path_(fs::path(testing::TempDir()) / (std::to_string(getpid()) + name)) {}
  ~TemporaryFile() { fs::remove(path_); }
  const fs::path& path() const { return path_; }
  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  fs::path path_;
};

// --- Fixtures: graphs of four kinds, in every domain ---

class Fixture : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Onnx, Fixture,
                         testing::Values("brevitas_chain", "folded_chain", "branches",
                                         "two_dimensional"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Fixture, GivesTheOutputsOfQonnx) {
  const nlohmann::json values = expected(GetParam());
  const onnx::GraphEvaluator evaluator(onnx::load(fixture(GetParam())));
  const std::vector<float> reference = flat(values.at("y"));
  for (const int threads : {1, 3}) {
    const std::vector<float> outputs = evaluator.run(flat(values.at("x")), threads);
    EXPECT_LT(largest_difference(outputs, reference), 1e-5F);
  }
}

TEST_P(Fixture, CostsWhatQonnxCounts) {
  const nlohmann::json values = expected(GetParam());
  const NetworkCost cost =
      inference_cost(onnx::load(fixture(GetParam())), onnx::QuantizerReading::kAll);
  EXPECT_EQ(static_cast<double>(cost.bit_ops()), values.at("bit_ops").get<double>());
  EXPECT_EQ(static_cast<double>(cost.bit_mem()), values.at("bit_mem").get<double>());
  int64_t outputs = 0;
  for (const LayerCost& layer : cost.layers) outputs += layer.outputs;
  EXPECT_EQ(static_cast<double>(outputs), values.at("outputs").get<double>());
}

// x: [frames][channels][length] as in the graph -> a batch for the network.
FrameBatch batch_of(const std::vector<float>& x, const NetworkConfig& config) {
  FrameBatch batch;
  const auto channels = static_cast<size_t>(config.input_channels);
  const auto length = static_cast<size_t>(config.length);
  batch.count = static_cast<int64_t>(x.size() / (channels * length));
  batch.labels.assign(static_cast<size_t>(batch.count), 0);
  batch.snr_db.assign(static_cast<size_t>(batch.count), 0);
  batch.values.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t frame = i / (channels * length), c = i / length % channels, l = i % length;
    batch.values[(frame * length + l) * channels + c] = x[i];
  }
  if (config.input_bits != kFloatBits) {
    batch.codes.resize(x.size());
    quantize_input(batch.values, config.input_quantizer(), batch.codes.data());
    batch.values.clear();
  }
  return batch;
}

std::vector<float> logits_of(const Network& network, const std::vector<float>& x) {
  TrainerOptions options;
  options.threads = 1;
  Trainer trainer(options);
  return trainer.logits(network, batch_of(x, network.config()));
}

class Chain : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Onnx, Chain, testing::Values("brevitas_chain", "folded_chain"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Chain, BecomesANetworkThatGivesTheSame) {
  const nlohmann::json values = expected(GetParam());
  const onnx::Graph graph = onnx::load(fixture(GetParam()));
  const Network network = onnx::import_network(graph);
  EXPECT_LT(largest_difference(logits_of(network, flat(values.at("x"))), flat(values.at("y"))),
            1e-5F);
  const NetworkCost cost = inference_cost(network);
  EXPECT_EQ(static_cast<double>(cost.bit_ops()), values.at("bit_ops").get<double>());
  EXPECT_EQ(static_cast<double>(cost.bit_mem()), values.at("bit_mem").get<double>());
  for (const Layer& layer : network.layers()) {
    for (size_t i = 0; i < layer.weight.mask.size(); ++i) {
      ASSERT_EQ(layer.weight.mask[i] != 0, layer.weight.value.floats()[i] != 0) << layer.name;
    }
  }
  EXPECT_LT(network.weights_alive(), network.weights_total());
}

TEST(OnnxImport, ReadsTheSettingsOfTheChains) {
  const ChainConfig brevitas = chain_of(onnx::import_network(fixture("brevitas_chain")).config());
  EXPECT_EQ(brevitas.filters, (std::vector{4, 5}));
  EXPECT_EQ(brevitas.dense, std::vector{8});
  EXPECT_EQ(brevitas.input_bits, 6);
  EXPECT_EQ(brevitas.weight_bits, (std::vector{4, 4, 4, 4}));
  EXPECT_EQ(brevitas.act_bits, (std::vector{4, 4, 4}));
  const ChainConfig folded = chain_of(onnx::import_network(fixture("folded_chain")).config());
  EXPECT_EQ(folded.kernel, (std::vector{5, 5}));
  EXPECT_EQ(folded.weight_bits, (std::vector{5, 3, 4, 4}));
  EXPECT_EQ(folded.act_bits, (std::vector{3, 4, 4}));
}

// --- Export ---

// A network with everything that training changes away from its initial value.
Network trained_network(const NetworkConfig& config, uint64_t seed) {
  Network network(config, seed);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(0.0F, 1.0F);
  for (Layer& layer : network.layers()) {
    for (uint8_t& alive : layer.weight.mask) alive = uniform(random) < 0.4F ? 0 : alive;
    if (layer.gain.defined()) {
      for (float& gain : layer.gain.floats()) gain = 0.1F + 0.9F * uniform(random);
      layer.gain.floats()[1] = 1;  // the largest is the layer's own scale
    }
    if (layer.kind == Layer::Kind::kOutput) continue;
    for (size_t c = 0; layer.has_weights() && c < static_cast<size_t>(layer.out_channels); ++c) {
      layer.gamma.value.floats()[c] = 1.5F - 2 * uniform(random);
      layer.beta.value.floats()[c] = uniform(random);
      layer.running_mean.floats()[c] = 0.2F * (uniform(random) - 0.5F);
      layer.running_var.floats()[c] = 0.1F + 0.2F * uniform(random);
    }
    if (layer.act_bits != kFloatBits) layer.threshold.value.floats()[0] = 1 + uniform(random);
  }
  network.apply_masks();
  network.steps = kThresholdStatisticSteps;
  return network;
}

std::vector<float> random_frames(const NetworkConfig& config, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count * static_cast<size_t>(config.input_channels * config.length));
  for (float& value : x) value = normal(random);
  return x;
}

std::vector<ChainConfig> export_configs() {
  ChainConfig small;
  small.length = 48;
  small.classes = 5;
  small.filters = {6, 7, 4};
  small.dense = {9, 8};
  ChainConfig mixed = small;
  mixed.input_bits = 5;
  mixed.weight_bits = {4, 8, 2, 3, 32, 6};
  mixed.act_bits = {3, 4, 8, 32, 2};
  ChainConfig flat = small;  // no pooling, no hidden dense layer, float
  flat.pool = {1};
  flat.kernel = {5};
  flat.dense = {};
  flat.input_bits = kFloatBits;
  flat.weight_bits = flat.act_bits = {kFloatBits};
  ChainConfig scaled = small;
  scaled.class_scales = true;
  ChainConfig forms = small;  // of convolutions
  forms.length = 96;
  forms.filters = {6, 6, 4};
  forms.kernel = {6, 5, 4};
  forms.stride = {2, 1, 2};
  forms.groups = {1, 6, 2};
  forms.padding = {3, 2, 0};
  forms.pool = {1, 2, 4};
  ChainConfig sparse_reading = small;  // strides longer than kernels, all zeros on one side
  sparse_reading.kernel = {2, 4, 3};
  sparse_reading.stride = {3, 1, 4};
  sparse_reading.padding = {1, 3, 0};
  sparse_reading.pool = {2, 2, 1};
  return {small, mixed, flat, scaled, forms, sparse_reading};
}

TEST(OnnxExport, ComesBackBitForBit) {
  for (const ChainConfig& config : export_configs()) {
    Network network = trained_network(config, 21);
    for (int i = 0; i < config.classes; ++i) {
      network.class_names.push_back("class \"" + std::to_string(i) + "\"");
    }
    const TemporaryFile file("export.onnx");
    onnx::export_network(network, file.path());
    const Network back = onnx::import_network(file.path());
    EXPECT_EQ(back.config(), NetworkConfig(config));
    EXPECT_EQ(back.class_names, network.class_names);
    const std::vector<float> x = random_frames(config, 50, 22);
    EXPECT_EQ(logits_of(network, x), logits_of(back, x));
    for (size_t i = 0; i < network.layers().size(); ++i) {
      EXPECT_EQ(network.layers()[i].weight.mask, back.layers()[i].weight.mask);
    }
  }
}

// Layers that read several others, and are read by several; every operation that has no weights.
std::vector<NetworkConfig> graph_configs() {
  using Kind = LayerKind;
  NetworkConfig residual;
  residual.length = 32;
  residual.classes = 5;
  const auto add = [](NetworkConfig& to, Kind kind, std::vector<int> reads, int outputs,
                      Convolution form, int act_bits, bool is_signed = false) {
    LayerConfig& layer = to.layers.emplace_back();
    layer.kind = kind;
    layer.reads = std::move(reads);
    layer.outputs = outputs;
    layer.form = form;
    layer.weight_bits = 4;
    layer.act_bits = act_bits;
    layer.smallest_code = is_signed ? -(1 << (act_bits - 1)) : 0;
  };
  add(residual, Kind::kConv, {}, 6, {3, 2, 1, 1, 1}, 4);
  add(residual, Kind::kConv, {}, 6, {5, 1, 2, 6, 1}, 4);        // depthwise
  add(residual, Kind::kConv, {}, 6, {1, 1, 0, 1, 1}, 5, true);  // linear
  add(residual, Kind::kAdd, {0, 2}, 0, {1, 1, 0, 1, 2}, 4);     // pooled
  add(residual, Kind::kConv, {3}, 4, {3, 1, 1, 1, 1}, 3, true);
  add(residual, Kind::kConcat, {4, 3}, 0, {1, 1, 0, 1, 1}, 6, true);
  add(residual, Kind::kConcat, {5, 4}, 0, {1, 1, 0, 1, 1}, 8, true);
  add(residual, Kind::kAveragePool, {6}, 0, {4, 1, 0, 1, 1}, 8, true);
  add(residual, Kind::kDense, {}, 7, {1, 1, 0, 1, 1}, 4);
  residual.layers[1].name = "depth-wise";
  residual.layers[3].name = "concat1";  // an add
  residual.layers[5].name = "mixed_1";
  NetworkConfig branches = residual;  // of the frames; a window that is no power of two
  branches.length = 24;
  branches.input_scale = 0.013F;
  branches.layers.clear();
  add(branches, Kind::kConv, {}, 3, {3, 3, 1, 1, 1}, 4);
  add(branches, Kind::kAveragePool, {kReadsFrames}, 0, {3, 1, 0, 1, 1}, 5, true);
  add(branches, Kind::kConcat, {1, 0}, 0, {1, 1, 0, 1, 2}, 4);
  add(branches, Kind::kAveragePool, {}, 0, {4, 1, 0, 1, 1}, 7);  // of all positions
  NetworkConfig codes = branches;  // frames whose scale is a power of two
  codes.input_scale = 0;
  // Padding that makes more or fewer positions, strides and pools that leave some over.
  NetworkConfig lengths = read_network(FMP_FIXTURES_DIR "/lengths.json", 4);
  lengths.length = 53;
  lengths.classes = 5;
  NetworkConfig averages = read_network(FMP_FIXTURES_DIR "/averages.json", 4);
  averages.length = 53;
  averages.classes = 5;
  return {residual, branches, codes, lengths, averages};
}

std::string bytes_of(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(OnnxExport, GraphsComeBackBitForBit) {
  for (const NetworkConfig& config : graph_configs()) {
    const Network network = trained_network(config, 41);
    const TemporaryFile first("first.onnx"), second("second.onnx");
    onnx::export_network(network, first.path());
    Network back = onnx::import_network(first.path());
    // It comes back in codes.
    back.layers().back().bias.value = network.layers().back().bias.value;
    onnx::export_network(back, second.path());
    EXPECT_TRUE(bytes_of(first.path()) == bytes_of(second.path()));
    EXPECT_EQ(to_finn_json(inference_cost(network)),
              to_finn_json(inference_cost(onnx::load(first.path()))));
    const std::vector<float> x = random_frames(config, 50, 42);
    EXPECT_EQ(logits_of(network, x), logits_of(back, x));
    for (size_t i = 0; i < network.layers().size(); ++i) {
      EXPECT_EQ(network.layers()[i].reads, back.layers()[i].reads);
      EXPECT_EQ(network.layers()[i].kind, back.layers()[i].kind);
      EXPECT_EQ(network.layers()[i].name, back.layers()[i].name);
      if (network.layers()[i].kind == LayerKind::kOutput) continue;
      const auto scale_of = [&](const Network& of) {
        const Layer& layer = of.layers()[i];
        return layer.threshold.value.floats()[0] / static_cast<float>(layer.largest_code());
      };
      EXPECT_EQ(scale_of(network), scale_of(back));
    }
  }
}

TEST(OnnxExport, TheGraphGivesTheNetworksLogitsAndCost) {
  std::vector<NetworkConfig> configs = graph_configs();
  for (const ChainConfig& chain : export_configs()) configs.emplace_back(chain);
  for (const NetworkConfig& config : configs) {
    const Network network = trained_network(config, 31);
    const TemporaryFile file("graph.onnx");
    onnx::export_network(network, file.path());
    const onnx::GraphEvaluator evaluator(onnx::load(file.path()));
    const std::vector<float> x = random_frames(config, 50, 32);
    const std::vector<float> ours = logits_of(network, x), theirs = evaluator.run(x, 2);
    const auto classes = static_cast<size_t>(config.classes);
    const bool on_codes = std::ranges::all_of(network.layers(), [](const Layer& layer) {
      return !layer.has_weights() || multiplies_codes(layer);
    });
    int apart = 0;
    for (size_t i = 0; i < ours.size(); i += classes) {
      const std::vector<float> a(ours.begin() + static_cast<ptrdiff_t>(i),
                                 ours.begin() + static_cast<ptrdiff_t>(i + classes));
      const std::vector<float> b(theirs.begin() + static_cast<ptrdiff_t>(i),
                                 theirs.begin() + static_cast<ptrdiff_t>(i + classes));
      // Float layers sum in another order, which moves a code at times.
      apart += on_codes ? a != b : largest_difference(a, b) > 1e-4F;
    }
    EXPECT_LE(apart, on_codes ? 0 : 2);
    EXPECT_EQ(to_finn_json(inference_cost(network)),
              to_finn_json(inference_cost(evaluator.graph())));
  }
}

// An exported network, to change.
class ExportedModel {
 public:
  explicit ExportedModel(const Network& network) {
    const TemporaryFile file("exported.onnx");
    onnx::export_network(network, file.path());
    std::ifstream stream(file.path(), std::ios::binary);
    EXPECT_TRUE(model.ParseFromIstream(&stream));
  }

  ::onnx::TensorProto* initializer(const std::string& name) {
    for (::onnx::TensorProto& tensor : *model.mutable_graph()->mutable_initializer()) {
      if (tensor.name() == name) return &tensor;
    }
    return nullptr;
  }
  static std::vector<float> values_of(const ::onnx::TensorProto& tensor) {
    std::vector<float> values(tensor.raw_data().size() / sizeof(float));
    std::memcpy(values.data(), tensor.raw_data().data(), tensor.raw_data().size());
    return values;
  }
  static void set(::onnx::TensorProto& tensor, std::span<const float> values) {
    tensor.set_raw_data(values.data(), values.size_bytes());
  }

  ::onnx::ModelProto model;
};

// Where one layer has no name, or one that it cannot have, all are called by kind and number.
TEST(OnnxImport, LayersHaveTheirNamesOrNone) {
  const NetworkConfig config = graph_configs()[0];
  const Network network = trained_network(config, 43);
  const auto names_with = [&](const std::string& old_name, const std::string& new_name) {
    ExportedModel exported(network);
    for (::onnx::NodeProto& node : *exported.model.mutable_graph()->mutable_node()) {
      if (node.name() == old_name) node.set_name(new_name);
    }
    const TemporaryFile file("renamed.onnx");
    std::ofstream(file.path(), std::ios::binary) << exported.model.SerializeAsString();
    std::vector<std::string> names;
    const Network renamed = onnx::import_network(file.path());
    for (const Layer& layer : renamed.layers()) names.push_back(layer.name);
    return names;
  };
  const std::vector<std::string> given = {"conv1",   "depth-wise", "conv3", "concat1", "conv4",
                                          "mixed_1", "concat2",    "pool1", "dense1",  "output"};
  std::vector<std::string> none = given;
  none[1] = "conv2";
  none[3] = "add1";
  none[5] = "concat1";
  EXPECT_EQ(names_with("", ""), given);
  EXPECT_EQ(names_with("mixed_1.Concat", "Concat_17"), none);
  EXPECT_EQ(names_with("mixed_1.Concat", "a b.Concat"), none);
  EXPECT_EQ(names_with("mixed_1.Concat", "conv1.Concat"), none);
  EXPECT_EQ(names_with("mixed_1.Concat", "output.Concat"), none);
}

// What loading (or importing) the model fails with.
std::string complaint(const ::onnx::ModelProto& model, bool import = false) {
  const TemporaryFile file("broken.onnx");
  file.write(model.SerializeAsString());
  try {
    const onnx::Graph graph = onnx::load(file.path());
    if (import) onnx::import_network(graph);
  } catch (const Error& error) {
    std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_EQ(message.find(file.path().string()), 0U) << message;
    return message;
  }
  return "";
}

// A layer that the file leaves without a quantizer gets one with `bits`, and only that takes its
// threshold from the first batch.
TEST(OnnxImport, AddsQuantizersWhereBitsAreGiven) {
  ChainConfig chain = export_configs().front();
  chain.act_bits = {4, kFloatBits, 4, 4, 4};
  const NetworkConfig config(chain);
  const Network network = trained_network(config, 47);
  ExportedModel exported(network);
  for (const bool has_relu : {true, false}) {
    SCOPED_TRACE(has_relu);
    if (!has_relu) {
      auto& nodes = *exported.model.mutable_graph()->mutable_node();
      for (int i = 0; i < nodes.size(); ++i) {
        if (nodes[i].name() != "conv2.Relu") continue;
        for (auto& node : nodes)
          if (node.input(0) == nodes[i].output(0)) node.set_input(0, nodes[i].input(0));
        nodes.DeleteSubrange(i, 1);
        break;
      }
      EXPECT_THAT(complaint(exported.model, true),
                  testing::HasSubstr("expected Relu or Quant after conv2.Conv (fmp_radioml --init "
                                     "adds quantizers with --bits N)"));
    }
    const TemporaryFile file("float_activations.onnx");
    file.write(exported.model.SerializeAsString());
    Network found = onnx::import_network(file.path(), 6);
    EXPECT_EQ(found.steps, 0);
    EXPECT_EQ(found.layers()[1].act_bits, 6);
    EXPECT_EQ(found.layers()[1].smallest_code, has_relu ? 0 : -32);

    // What the batch's largest value is: of the network without that quantizer, in training mode.
    FrameBatch batch = batch_of(random_frames(config, 20, 48), config);
    batch.labels.assign(static_cast<size_t>(batch.count), 0);
    batch.snr_db.assign(static_cast<size_t>(batch.count), 0);
    Network reference = network;
    std::vector<LayerWorkspace> workspaces(reference.layers().size());
    Tape tape;
    Variable x = input_frames(batch, reference, {});
    for (size_t i = 0; i < 2; ++i) {
      Layer& layer = reference.layers()[i];
      x = hidden_layer(tape, x, layer, workspaces[i], false, false,
                       reference.layers()[i + 1].input_padding(), {});
    }
    float largest = 0;
    for (const float value : x->value.floats()) largest = std::max(largest, value);

    Trainer{TrainerOptions()}.train_step(found, batch, 0.0);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const float threshold = found.layers()[i].threshold.value.floats()[0];
      EXPECT_EQ(found.layers()[i].collects, i == 1);
      if (i != 1) {
        EXPECT_FLOAT_EQ(threshold, network.layers()[i].threshold.value.floats()[0]) << i;
      } else if (has_relu) {
        EXPECT_FLOAT_EQ(threshold, largest);
      } else {
        EXPECT_GE(threshold, largest);  // of the magnitudes
      }
    }
  }
  const TemporaryFile file("quantized.onnx");
  onnx::export_network(trained_network(export_configs().front(), 47), file.path());
  try {
    onnx::import_network(file.path(), 6);
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("every layer has a quantizer"));
  }
}

// qonnx's cleanup computes the codes of the weights beforehand. Their scale is then known from the
// factor of the sums alone.
TEST(OnnxImport, FactorsThatDoNotCancelGoIntoTheWeights) {
  const Network network = trained_network(export_configs().front(), 41);
  ExportedModel exported(network);
  int folded = 0;
  auto& nodes = *exported.model.mutable_graph()->mutable_node();
  for (int i = nodes.size() - 1; i >= 0; --i) {
    if (nodes[i].op_type() != "Div") continue;
    ::onnx::TensorProto* weight = exported.initializer(nodes[i].input(0));
    if (weight == nullptr) continue;
    std::vector<float> values = ExportedModel::values_of(*weight);
    const float divisor = ExportedModel::values_of(*exported.initializer(nodes[i].input(1)))[0];
    for (float& value : values) value /= divisor;
    ExportedModel::set(*weight, values);
    weight->set_name(nodes[i].output(0));
    nodes.DeleteSubrange(i, 1);
    ++folded;
  }
  ASSERT_EQ(folded, 6);
  const TemporaryFile file("folded.onnx");
  file.write(exported.model.SerializeAsString());
  const Network back = onnx::import_network(file.path());
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const auto expected = network.layers()[i].weight.value.floats();
    const auto found = back.layers()[i].weight.value.floats();
    for (size_t k = 0; k < expected.size(); ++k) {
      ASSERT_NEAR(found[k], expected[k], 1e-6F + 1e-6F * std::abs(expected[k]));
    }
  }
}

// --- Errors: one line that names the file and the node ---

::onnx::ModelProto model_of(const std::string& name) {
  ::onnx::ModelProto model;
  std::ifstream stream(fixture(name), std::ios::binary);
  EXPECT_TRUE(model.ParseFromIstream(&stream));
  return model;
}

::onnx::NodeProto& node_of(::onnx::ModelProto& model, const std::string& op) {
  for (::onnx::NodeProto& node : *model.mutable_graph()->mutable_node()) {
    if (node.op_type() == op) return node;
  }
  throw std::logic_error("no node " + op);
}

struct Damage {
  const char* what;
  std::function<void(::onnx::ModelProto&)> apply;
  std::vector<std::string> expected;  // parts of the message
  bool import = false;
};

TEST(OnnxErrors, NameTheNodeAndTheReason) {
  const std::vector<Damage> damages = {
      {"unknown operation",
       [](auto& m) { node_of(m, "Conv").set_op_type("Einsum"); },
       {"not supported: Einsum (node Conv_"}},
      {"two operator sets",
       [](auto& m) {
         ::onnx::OperatorSetIdProto& set = *m.add_opset_import();
         set.set_domain("ai.onnx");
         set.set_version(9);
       },
       {"operator sets ", " and 9 of ONNX, expected one"}},
      {"class names twice",
       [](auto& m) {
         for (const char* names : {R"(["a"])", R"(["b"])"}) {
           ::onnx::StringStringEntryProto& property = *m.add_metadata_props();
           property.set_key(onnx::kClassNamesKey);
           property.set_value(names);
         }
       },
       {"fmp_class_names is given twice"}},
      {"unknown domain",
       [](auto& m) { node_of(m, "Quant").set_domain("elsewhere"); },
       {"Quant of domain elsewhere (node Quant_"}},
      {"missing input",
       [](auto& m) { node_of(m, "Relu").set_input(0, "nowhere"); },
       {"Relu_", "nowhere"}},
      {"cycle",
       [](auto& m) {
         ::onnx::NodeProto& first = node_of(m, "BatchNormalization");
         first.set_input(0, m.graph().output(0).name());
       },
       {"cycle"}},
      {"written twice",
       [](auto& m) {
         ::onnx::NodeProto& node = node_of(m, "Relu");
         node.set_output(0, node.input(0));
       },
       {"Relu_", "already written"}},
      {"wrong pads",
       [](auto& m) {
         for (auto& attribute : *node_of(m, "Conv").mutable_attribute()) {
           if (attribute.name() == "pads") attribute.set_ints(0, -1);
         }
       },
       {"Conv_", "pads"}},
      {"attribute of another type",
       [](auto& m) {
         for (auto& attribute : *node_of(m, "Conv").mutable_attribute()) {
           if (attribute.name() != "kernel_shape") continue;
           attribute.set_type(::onnx::AttributeProto::FLOAT);
         }
       },
       {"Conv_", "kernel_shape"}},
      {"no input", [](auto& m) { m.mutable_graph()->clear_input(); }, {"no input"}},
      {"two outputs",
       [](auto& m) { *m.mutable_graph()->add_output() = m.graph().output(0); },
       {"outputs"}},
      {"unknown length",
       [](auto& m) {
         m.mutable_graph()
             ->mutable_input(0)
             ->mutable_type()
             ->mutable_tensor_type()
             ->mutable_shape()
             ->mutable_dim(2)
             ->set_dim_param("length");
       },
       {"dimension 2"}},
      {"huge input",
       [](auto& m) {
         m.mutable_graph()
             ->mutable_input(0)
             ->mutable_type()
             ->mutable_tensor_type()
             ->mutable_shape()
             ->mutable_dim(2)
             ->set_dim_value(int64_t{1} << 60);
       },
       {"elements"}},
      {"unsupported activation quantizer",
       [](auto& m) {
         int quants = 0;
         for (::onnx::NodeProto& node : *m.mutable_graph()->mutable_node()) {
           if (node.op_type() != "Quant" || ++quants != 3) continue;
           for (auto& attribute : *node.mutable_attribute()) {
             if (attribute.name() == "narrow") attribute.set_i(1);
           }
         }
       },
       {"Quant_", "codes are 0 to 6"},
       true},
      {"another rounding",
       [](auto& m) {
         int quants = 0;
         for (::onnx::NodeProto& node : *m.mutable_graph()->mutable_node()) {
           if (node.op_type() != "Quant" || ++quants != 3) continue;
           for (auto& attribute : *node.mutable_attribute()) {
             if (attribute.name() == "rounding_mode") attribute.set_s("FLOOR");
           }
         }
       },
       {"Quant_", "not rounded to the nearest"},
       true},
  };
  for (const Damage& damage : damages) {
    ::onnx::ModelProto model = model_of("folded_chain");
    damage.apply(model);
    const std::string message = complaint(model, damage.import);
    for (const std::string& part : damage.expected) {
      EXPECT_NE(message.find(part), std::string::npos) << damage.what << ": " << message;
    }
    EXPECT_FALSE(message.empty()) << damage.what;
  }
}

TEST(OnnxErrors, FactorsThatLeaveTheRangeOfFloats) {
  const Network network = trained_network(export_configs().front(), 43);
  const auto complaint_with = [&](const std::string& name, float value) {
    ExportedModel exported(network);
    ExportedModel::set(*exported.initializer(name), {&value, 1});
    return complaint(exported.model, true);
  };
  const auto expect = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect(complaint_with("conv2.sum_scale", 1e38F), "with all factors");
  expect(complaint_with("conv2.sum_scale", 1e-30F), "with all factors");
  expect(complaint_with("conv2.weight.divisor", 1e-30F), "with all factors");
  expect(complaint_with("conv2.divisor", 1e-38F), "with all factors");
  expect(complaint_with("conv2.sum_scale", -1), "a single positive number");
  expect(complaint_with("conv2.divisor", 0), "a single positive number");

  ExportedModel exported(network);
  ::onnx::NodeProto& last = *exported.model.mutable_graph()->mutable_node()->rbegin();
  const std::string output = last.output(0);
  last.set_output(0, "biased");
  ::onnx::NodeProto& factor = *exported.model.mutable_graph()->add_node();
  factor.set_op_type("Mul");
  factor.set_name("louder");
  factor.add_input("biased");
  factor.add_input("output.sum_scale");
  factor.add_output(output);
  expect(complaint(exported.model, true), "multiplied by a factor");
}

TEST(OnnxErrors, TensorsThatDoNotFitTheirShape) {
  ::onnx::ModelProto model = model_of("branches");
  ::onnx::TensorProto& tensor = *model.mutable_graph()->mutable_initializer(0);
  const std::string name = tensor.name();
  const auto expect = [&](const std::string& part) {
    const std::string message = complaint(model);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find(name), std::string::npos) << message;
  };
  tensor.clear_dims();
  tensor.add_dims(1'000'000);
  expect("expected 4000000");
  tensor.add_dims(int64_t{1} << 50);
  expect("elements");
  tensor.set_dims(1, -3);
  expect("negative");
  tensor.set_data_type(::onnx::TensorProto::COMPLEX64);
  tensor.clear_dims();
  expect("COMPLEX64");
  tensor.set_data_location(::onnx::TensorProto::EXTERNAL);
  expect("no location");
}

// --- Tensors in other files ---

class OnnxExternalData : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / (std::to_string(getpid()) + "external");
    fs::create_directories(folder_ / "model" / "below");
    model_ = model_of("branches");
    graph_ = model_.mutable_graph();
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Moves all constants of more than one value to a file.
  void move_to(const std::string& location, const fs::path& file) {
    std::string bytes(7, '?');  // offsets are not 0
    for (::onnx::TensorProto& tensor : *graph_->mutable_initializer()) {
      if (!tensor.has_raw_data() || tensor.raw_data().size() <= sizeof(float)) continue;
      const std::string raw = tensor.raw_data();
      tensor.clear_raw_data();
      tensor.set_data_location(::onnx::TensorProto::EXTERNAL);
      const auto add = [&](const std::string& key, const std::string& value) {
        ::onnx::StringStringEntryProto& entry = *tensor.add_external_data();
        entry.set_key(key);
        entry.set_value(value);
      };
      add("location", location);
      add("offset", std::to_string(bytes.size()));
      add("length", std::to_string(raw.size()));
      bytes += raw;
    }
    std::ofstream(file, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  // Of loading the model; "" when that works.
  std::string complaint() const {
    const fs::path file = folder_ / "model" / "model.onnx";
    std::ofstream(file, std::ios::binary) << model_.SerializeAsString();
    try {
      const nlohmann::json values = expected("branches");
      const onnx::GraphEvaluator evaluator(onnx::load(file));
      EXPECT_LT(largest_difference(evaluator.run(flat(values.at("x")), 1), flat(values.at("y"))),
                1e-5F);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_;
  ::onnx::ModelProto model_;
  ::onnx::GraphProto* graph_ = nullptr;
};

TEST_F(OnnxExternalData, IsReadBesideTheModelAndBelow) {
  const ::onnx::ModelProto intact = model_;
  move_to("model.onnx.data", folder_ / "model" / "model.onnx.data");
  EXPECT_EQ(complaint(), "");
  model_ = intact;
  move_to("below/weights", folder_ / "model" / "below" / "weights");
  EXPECT_EQ(complaint(), "");
}

TEST_F(OnnxExternalData, IsNeverReadOutsideTheFolder) {
  const ::onnx::ModelProto intact = model_;
  const fs::path outside = folder_ / "secret";
  fs::create_symlink(outside, folder_ / "model" / "link");
  fs::create_directory_symlink(folder_, folder_ / "model" / "up");
  for (const std::string& location :
       {std::string("../secret"), outside.string(), std::string("below/../../secret"),
        std::string("link"), std::string("up/secret")}) {
    model_ = intact;
    move_to(location, outside);
    EXPECT_NE(complaint().find("not read"), std::string::npos) << location << ": " << complaint();
  }
}

TEST_F(OnnxExternalData, FailsInOneLineWhereItIsDamaged) {
  move_to("data", folder_ / "model" / "data");
  fs::resize_file(folder_ / "model" / "data", 100);
  EXPECT_NE(complaint().find("data, which has 100"), std::string::npos) << complaint();
  fs::remove(folder_ / "model" / "data");
  EXPECT_NE(complaint().find("No such file"), std::string::npos) << complaint();
  fs::create_directory(folder_ / "model" / "data");
  EXPECT_NE(complaint().find("no file"), std::string::npos) << complaint();
}

// --- Bounds: files of a few bytes that ask for much, refused before anything is done ---

::onnx::NodeProto& add_node(::onnx::GraphProto& graph, const std::string& op,
                            const std::vector<std::string>& inputs, const std::string& output) {
  ::onnx::NodeProto& node = *graph.add_node();
  node.set_op_type(op);
  for (const std::string& input : inputs) node.add_input(input);
  node.add_output(output);
  return node;
}

void add_integers(::onnx::NodeProto& node, const std::string& name,
                  const std::vector<int64_t>& values) {
  ::onnx::AttributeProto& attribute = *node.add_attribute();
  attribute.set_name(name);
  attribute.set_type(::onnx::AttributeProto::INTS);
  for (const int64_t value : values) attribute.add_ints(value);
}

::onnx::ModelProto small_model() {
  ::onnx::ModelProto model;
  model.set_ir_version(8);
  model.add_opset_import()->set_version(13);
  ::onnx::ValueInfoProto& input = *model.mutable_graph()->add_input();
  input.set_name("x");
  input.mutable_type()->mutable_tensor_type()->set_elem_type(::onnx::TensorProto::FLOAT);
  for (const int64_t size : {1, 2, 1024}) {
    input.mutable_type()->mutable_tensor_type()->mutable_shape()->add_dim()->set_dim_value(size);
  }
  model.mutable_graph()->add_output()->set_name("y");
  return model;
}

void add_shape(::onnx::GraphProto& graph, const std::string& name,
               const std::vector<int64_t>& values) {
  ::onnx::TensorProto& tensor = *graph.add_initializer();
  tensor.set_name(name);
  tensor.set_data_type(::onnx::TensorProto::INT64);
  tensor.add_dims(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) tensor.add_int64_data(value);
}

TEST(OnnxBounds, AreCheckedBeforeWorkAndMemory) {
  using Make = std::function<void(::onnx::GraphProto&)>;
  const std::vector<std::pair<std::string, Make>> graphs = {
      {"multiplications",  // a product that grows with every node
       [](auto& g) {
         add_shape(g, "s", {4096, 1});
         add_shape(g, "t", {1, 4096});
         add_node(g, "ConstantOfShape", {"s"}, "a");
         add_node(g, "ConstantOfShape", {"t"}, "b");
         add_node(g, "MatMul", {"a", "b"}, "c");
         add_node(g, "MatMul", {"c", "c"}, "d");
         add_node(g, "ReduceMax", {"d"}, "m");
         add_node(g, "Add", {"x", "m"}, "y");
       }},
      {"multiplications",  // the same of what depends on the input
       [](auto& g) {
         add_shape(g, "r", {1, 1, 2048});
         add_shape(g, "q", {1, 2048, 1});
         add_node(g, "Reshape", {"x", "q"}, "column");
         add_node(g, "Reshape", {"x", "r"}, "row");
         add_node(g, "MatMul", {"column", "row"}, "square");
         add_node(g, "MatMul", {"square", "square"}, "y");
       }},
      {"reach over",
       [](auto& g) {
         ::onnx::NodeProto& node = add_node(g, "MaxPool", {"x"}, "y");
         add_integers(node, "kernel_shape", {1 << 20});
         add_integers(node, "pads", {1 << 20, 1 << 20});
       }},
      {"multiplications",
       [](auto& g) {
         ::onnx::NodeProto& node = add_node(g, "AveragePool", {"x"}, "y");
         add_integers(node, "kernel_shape", {1 << 20});
         add_integers(node, "pads", {(1 << 20) - 1, (1 << 20) - 1});
       }},
      {"elements",
       [](auto& g) {
         add_shape(g, "s", {1 << 14, 1 << 14});
         add_node(g, "ConstantOfShape", {"s"}, "c");
         add_node(g, "ReduceMax", {"c"}, "m");
         add_node(g, "Add", {"x", "m"}, "y");
       }},
      {"values for a frame",
       [](auto& g) {
         add_shape(g, "s", {2048, 2, 1024});
         add_node(g, "Expand", {"x", "s"}, "y");
       }},
      {"values are computed",
       [](auto& g) {
         add_shape(g, "s", {2048, 2, 1024});
         std::string last = "x";
         for (int i = 0; i < 20; ++i) {
           const std::string next = i == 19 ? "y" : "v" + std::to_string(i);
           add_node(g, "Expand", {last, "s"}, next);
           last = next;
         }
       }},
  };
  for (const auto& [part, make] : graphs) {
    ::onnx::ModelProto model = small_model();
    make(*model.mutable_graph());
    const auto began = std::chrono::steady_clock::now();
    const std::string message = complaint(model);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_LT(seconds.count(), 5) << message;
  }
}

TEST(OnnxErrors, ABatchThatIsFixedInTheFile) {
  ::onnx::ModelProto model = small_model();
  ::onnx::GraphProto& graph = *model.mutable_graph();
  graph.mutable_input(0)
      ->mutable_type()
      ->mutable_tensor_type()
      ->mutable_shape()
      ->mutable_dim(0)
      ->set_dim_value(32);
  add_shape(graph, "s", {32, -1});
  add_node(graph, "Reshape", {"x", "s"}, "y");
  EXPECT_NE(complaint(model).find("the batch is fixed at 32"), std::string::npos)
      << complaint(model);
}

// Frames in every order of their axes.
TEST(OnnxEvaluate, FramesSampleBySampleAndChannelByChannel) {
  constexpr int kLength = 1024;
  FrameBatch batch;
  batch.count = 3;
  for (int i = 0; i < 3 * kLength * 2; ++i) batch.values.push_back(static_cast<float>(i % 977));
  const auto run = [&](const std::vector<int64_t>& shape) {
    ::onnx::ModelProto model = small_model();
    ::onnx::GraphProto& graph = *model.mutable_graph();
    auto& dims = *graph.mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape();
    dims.clear_dim();
    for (const int64_t size : shape) dims.add_dim()->set_dim_value(size);
    add_node(graph, "Flatten", {"x"}, "y");
    const TemporaryFile file("layout.onnx");
    file.write(model.SerializeAsString());
    return onnx::GraphEvaluator(onnx::load(file.path())).run(batch, kLength, 2);
  };
  for (const auto& shape : std::vector<std::vector<int64_t>>{
           {1, kLength, 2}, {1, 1, kLength, 2}, {1, kLength, 2, 1}, {1, kLength, 1, 2}}) {
    EXPECT_EQ(run(shape), batch.values) << onnx::to_string(shape);
  }
  const std::vector<float> by_channel = run({1, 2, kLength});
  for (size_t i = 0; i < by_channel.size(); ++i) {
    const size_t frame = i / (2 * kLength), c = i / kLength % 2, l = i % kLength;
    ASSERT_EQ(by_channel[i], batch.values[(frame * kLength + l) * 2 + c]);
  }
  for (const auto& shape : std::vector<std::vector<int64_t>>{
           {1, 1, 2, kLength}, {1, 2, kLength, 1}, {1, 2, 1, kLength}}) {
    EXPECT_EQ(run(shape), by_channel) << onnx::to_string(shape);
  }
  EXPECT_THROW(run({1, 4, kLength / 2}), Error);
}

// What of a graph is no Network: the node and the reason.
TEST(OnnxImport, RefusesWhatDoesNotJoin) {
  NetworkConfig config = graph_configs()[0];
  for (LayerConfig& layer : config.layers) layer.name.clear();
  const Network network = trained_network(config, 51);
  const auto node = [](::onnx::ModelProto& model, const std::string& name) -> ::onnx::NodeProto& {
    for (::onnx::NodeProto& each : *model.mutable_graph()->mutable_node()) {
      if (each.name() == name) return each;
    }
    throw std::runtime_error("no node " + name);
  };
  const auto message = [&](const std::function<void(ExportedModel&)>& damage) -> std::string {
    ExportedModel exported(network);
    damage(exported);
    return complaint(exported.model, true);
  };
  EXPECT_THAT(message([&](ExportedModel& e) {
                const float twice = 2;
                e.set(*e.initializer("add1.input0.factor"), {&twice, 1});
              }),
              testing::HasSubstr("node add1.Add (Add): its inputs are multiplied by"));
  EXPECT_THAT(message([&](ExportedModel& e) {
                node(e.model, "add1.MaxPool").set_input(0, "add1.Relu.out");
              }),
              testing::AllOf(testing::HasSubstr("node add1."), testing::HasSubstr("add1.Add")));
  EXPECT_THAT(message([&](ExportedModel& e) {
                node(e.model, "conv2.Conv").set_input(0, "conv1.Relu.out");
              }),
              testing::HasSubstr("node conv1.Quant (Quant): the network branches here"));
}

TEST(OnnxErrors, BranchesAreNoNetwork) {
  const std::string message = complaint(model_of("branches"), true);
  EXPECT_NE(message.find("node "), std::string::npos) << message;
}

TEST(OnnxErrors, MissingAndForeignFiles) {
  EXPECT_THROW(onnx::load("/nowhere/model.onnx"), Error);
  const TemporaryFile file("text.onnx");
  file.write("this is no network");
  EXPECT_THROW(onnx::load(file.path()), Error);
  file.write("");
  EXPECT_THROW(onnx::load(file.path()), Error);
}

// Whatever bytes a file holds: it is read, or refused with an Error.
TEST(OnnxErrors, SurvivesDamagedFiles) {
  constexpr uint64_t kSeed = 77;
  std::cout << "seed " << kSeed << '\n';
  std::mt19937_64 random(kSeed);
  int refused = 0;
  const TemporaryFile file("damaged.onnx");
  for (const char* name : {"branches", "folded_chain", "two_dimensional"}) {
    const std::string intact = model_of(name).SerializeAsString();
    for (int i = 0; i < 150; ++i) {
      std::string bytes = intact;
      if (i % 3 == 0) bytes.resize(random() % bytes.size());
      for (int k = 0; k < 1 + i % 4 && !bytes.empty(); ++k) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
      file.write(bytes);
      try {
        const onnx::GraphEvaluator evaluator(onnx::load(file.path()));
        inference_cost(evaluator.graph());
        const auto size = static_cast<size_t>(evaluator.input_size());
        if (size < 100'000) evaluator.run(std::vector<float>(size, 0.5F), 1);
        onnx::import_network(evaluator.graph());
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 100);
}

// --- Published networks, where they are at hand ---

fs::path published_dir() {
  return fs::path(FMP_FIXTURES_DIR).parent_path().parent_path().parent_path() / "shared" / "judges";
}

TEST(OnnxPublished, CostsArePublishedOnesToTheDigit) {
  const fs::path dir = published_dir();
  if (!fs::exists(dir / "published_costs.json")) {
    GTEST_SKIP() << "skipped: no published networks in " << dir;
  }
  std::ifstream file(dir / "published_costs.json");
  const nlohmann::json published = nlohmann::json::parse(file);
  int networks = 0;
  for (const auto& [name, figures] : published.items()) {
    if (!name.ends_with(".onnx")) continue;
    ++networks;
    const nlohmann::json ours = to_finn_json(inference_cost(onnx::load(dir / name)));
    for (const auto& [key, value] : figures.items()) {
      if (key.starts_with("accuracy")) continue;
      EXPECT_EQ(ours.at(key), value) << name << ' ' << key;
    }
    for (const auto& [key, value] : ours.items()) {
      const bool is_listed = key.starts_with("op_mac") || key.starts_with("mem_");
      EXPECT_TRUE(!is_listed || figures.contains(key)) << name << ' ' << key;
    }
  }
  EXPECT_EQ(networks, 3);
}

// fixtures/make_published_fixture.py: frames on which no value is next to a rounding boundary.
TEST(OnnxPublished, GivesTheLogitsOfPyTorch) {
  const fs::path dir = published_dir();
  if (!fs::exists(dir / "xilinx_vgg10.onnx")) {
    GTEST_SKIP() << "skipped: no published networks in " << dir;
  }
  const FixtureFile file("onnx_published");
  std::vector<float> frames;
  for (const int8_t code : file.read<int8_t>("codes")) {
    frames.push_back(static_cast<float>(code) / 64);
  }
  for (const char* name : {"xilinx_vgg10", "amc_fmp_w4a4", "aaronnet32_float"}) {
    const onnx::Graph graph = onnx::load(dir / (std::string(name) + ".onnx"));
    const std::vector<float> reference = file.read<float>(name);
    EXPECT_LT(largest_difference(onnx::GraphEvaluator(graph).run(frames, 2), reference), 1e-4F)
        << name;
    if (name == std::string("aaronnet32_float")) continue;  // has floats between its layers
    EXPECT_LT(largest_difference(logits_of(onnx::import_network(graph), frames), reference), 1e-4F)
        << name;
  }
}

// A network with floats between its layers: quantizers of 8 bits, whose ranges come from frames,
// change little of its answers.
TEST(OnnxPublished, AnswersAlikeWithQuantizersAdded) {
  const fs::path path = published_dir() / "aaronnet32_float.onnx";
  if (!fs::exists(path)) GTEST_SKIP() << "skipped: there is no " << path;
  const onnx::Graph graph = onnx::load(path);
  const Network found = onnx::import_network(graph, 8);
  const std::vector<Layer>& layers = found.layers();
  EXPECT_EQ(layers[0].length, 257);
  EXPECT_EQ(std::ranges::count(layers, true, &Layer::collects), 9 + 1);  // and the output layer

  const FixtureFile file("onnx_published");
  std::vector<float> frames;
  for (const int8_t code : file.read<int8_t>("codes")) {
    frames.push_back(static_cast<float>(code) / 64);
  }
  FrameBatch batch = batch_of(frames, found.config());
  batch.labels.assign(static_cast<size_t>(batch.count), 0);
  batch.snr_db.assign(static_cast<size_t>(batch.count), 0);
  Trainer trainer{TrainerOptions()};
  Network collected = found;
  trainer.train_step(collected, batch, 0.0);
  for (size_t i = 0; i < layers.size(); ++i) {  // of the file
    collected.layers()[i].running_mean = layers[i].running_mean;
    collected.layers()[i].running_var = layers[i].running_var;
  }
  const std::vector<float> ours = trainer.logits(collected, batch);
  const std::vector<float> theirs = file.read<float>("aaronnet32_float");
  int same = 0;
  double product = 0, of_ours = 0, of_theirs = 0;
  const auto classes = static_cast<size_t>(found.config().classes);
  for (size_t i = 0; i < ours.size(); i += classes) {
    const auto best = [&](const std::vector<float>& logits) {
      const auto first = logits.begin() + static_cast<ptrdiff_t>(i);
      return std::max_element(first, first + static_cast<ptrdiff_t>(classes)) - first;
    };
    same += best(ours) == best(theirs);
  }
  for (size_t i = 0; i < ours.size(); ++i) {
    product += double{ours[i]} * double{theirs[i]};
    of_ours += double{ours[i]} * double{ours[i]};
    of_theirs += double{theirs[i]} * double{theirs[i]};
  }
  EXPECT_GE(same, batch.count - 2);
  EXPECT_GT(product / std::sqrt(of_ours * of_theirs), 0.99);
}

}  // namespace
}  // namespace fmp
