// SPDX-License-Identifier: MIT
#include "framework/network/cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "framework/network/weight_codes.h"

namespace fmp {
namespace {

int64_t count_nonzero(const Layer& layer) {
  const auto is_nonzero = [](auto value) { return value != 0; };
  if (layer.weight_bits == kFloatBits) {
    return std::ranges::count_if(layer.weight.value.floats(), is_nonzero);
  }
  return std::ranges::count_if(quantize_weights(layer).codes, is_nonzero);
}

std::string type_name(std::string_view integer, int bits) {
  return bits == kFloatBits ? "FLOAT32" : fmt::format("{}{}", integer, bits);
}

// Whether the frames are written as values, not as codes: where their scale is a power of two.
bool are_scaled(const NetworkConfig& config) {
  int exponent = 0;
  constexpr float kOne = 0.5F;  // the fraction of a power of two
  return config.input_bits == kFloatBits ||
         std::frexp(config.input_quantizer().scale, &exponent) == kOne;
}

LayerCost layer_cost(const Layer& layer, bool is_scaled, bool signed_input) {
  LayerCost cost;
  cost.layer = layer.name;
  cost.weights = layer.weights_total();
  cost.weights_alive = layer.weights_alive();
  cost.weights_nonzero = count_nonzero(layer);
  cost.positions = layer.positions();
  cost.weight_bits = layer.weight_bits;
  cost.input_bits = layer.input_bits;
  cost.outputs = layer.positions() * layer.out_channels;
  // As in the file that onnx::export_network() writes.
  const bool on_codes = multiplies_codes(layer);
  cost.input_type = type_name(
      fmt::format("{}{}", is_scaled || !on_codes ? "SCALED" : "", signed_input ? "INT" : "UINT"),
      layer.input_bits);
  cost.weight_type = type_name(on_codes ? "INT" : "SCALEDINT", layer.weight_bits);
  cost.output_type = on_codes && !is_scaled ? "INT32" : "FLOAT32";
  return cost;
}

template <typename Count>
int64_t sum(const std::vector<LayerCost>& layers, Count count) {
  return std::transform_reduce(layers.begin(), layers.end(), int64_t{0}, std::plus<>{}, count);
}

void add(nlohmann::json& totals, const std::string& key, int64_t amount) {
  totals[key] = totals.value(key, int64_t{0}) + amount;
}

}  // namespace

double normalized_cost(int64_t bit_ops, int64_t bit_mem) {
  return 0.5 * static_cast<double>(bit_ops) / static_cast<double>(kBaselineBitOps) +
         0.5 * static_cast<double>(bit_mem) / static_cast<double>(kBaselineBitMem);
}

std::optional<int> bits_of_type(std::string_view type) {
  if (type == "FLOAT32") return kFloatBits;
  if (type == "BINARY" || type == "BIPOLAR") return 1;
  if (type == "TERNARY") return 2;
  if (type.starts_with("SCALED")) type.remove_prefix(std::string_view("SCALED").size());
  if (type.starts_with("U")) type.remove_prefix(1);
  if (!type.starts_with("INT")) return std::nullopt;
  type.remove_prefix(std::string_view("INT").size());
  if (type.starts_with("<") && type.ends_with(">")) type = type.substr(1, type.size() - 2);
  int bits = 0;
  const auto [end, error] = std::from_chars(type.data(), type.data() + type.size(), bits);
  constexpr int kMaxBits = 64;
  if (error != std::errc() || end != type.data() + type.size() || bits < 1 || bits > kMaxBits) {
    return std::nullopt;
  }
  return bits;
}

int64_t NetworkCost::weights() const {
  return sum(layers, [](const LayerCost& layer) { return layer.weights; });
}

int64_t NetworkCost::weights_alive() const {
  return sum(layers, [](const LayerCost& layer) { return layer.weights_alive; });
}

int64_t NetworkCost::weights_nonzero() const {
  return sum(layers, [](const LayerCost& layer) { return layer.weights_nonzero; });
}

int64_t NetworkCost::macs() const {
  return sum(layers, [](const LayerCost& layer) { return layer.macs(); });
}

int64_t NetworkCost::bit_ops() const {
  return sum(layers, [](const LayerCost& layer) { return layer.bit_ops(); });
}

int64_t NetworkCost::bit_mem() const {
  return sum(layers, [](const LayerCost& layer) { return layer.bit_mem(); });
}

double NetworkCost::normalized() const { return normalized_cost(bit_ops(), bit_mem()); }

NetworkCost inference_cost(const Network& network) {
  NetworkCost cost;
  for (const Layer& layer : network.layers()) {
    if (!layer.has_weights()) continue;
    const bool reads_frames = layer.reads[0] == kReadsFrames;
    const bool signed_input =
        reads_frames || network.layers()[static_cast<size_t>(layer.reads[0])].smallest_code < 0;
    cost.layers.push_back(
        layer_cost(layer, reads_frames && are_scaled(network.config()), signed_input));
  }
  return cost;
}

nlohmann::json to_finn_json(const NetworkCost& cost) {
  nlohmann::json totals = {{"discount_sparsity", true}, {"unsupported", cost.unsupported}};
  int64_t output_bits = 0;
  for (const LayerCost& layer : cost.layers) {
    add(totals, fmt::format("op_mac_{}_{}", layer.input_type, layer.weight_type), layer.macs());
    add(totals, "mem_w_" + layer.weight_type, layer.weights_in_memory());
    add(totals, "mem_o_" + layer.output_type, layer.outputs);
    output_bits += layer.outputs * bits_of_type(layer.output_type).value_or(kFloatBits);
  }
  totals["total_bops"] = cost.bit_ops();
  totals["total_mem_w_bits"] = cost.bit_mem();
  totals["total_mem_o_bits"] = output_bits;
  return totals;
}

}  // namespace fmp
