// SPDX-License-Identifier: MIT
#include "framework/cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/ops.h"

namespace fmp {
namespace {

int64_t count_nonzero(const Layer& layer) {
  const auto is_nonzero = [](auto value) { return value != 0; };
  if (layer.weight_bits == kFloatBits) {
    return std::ranges::count_if(layer.weight.value.floats(), is_nonzero);
  }
  return std::ranges::count_if(quantize_weights(layer).codes, is_nonzero);
}

LayerCost layer_cost(const Layer& layer) {
  LayerCost cost;
  cost.layer = layer.name;
  cost.weights = layer.weight.size();
  cost.weights_alive = layer.weights_alive();
  cost.weights_nonzero = count_nonzero(layer);
  cost.positions = layer.positions();
  cost.weight_bits = layer.weight_bits;
  cost.input_bits = layer.input_bits;
  cost.outputs = layer.positions() * layer.out_channels;
  return cost;
}

template <typename Count>
int64_t sum(const std::vector<LayerCost>& layers, Count count) {
  return std::transform_reduce(layers.begin(), layers.end(), int64_t{0}, std::plus<>{}, count);
}

std::string type_name(std::string_view integer, int bits) {
  return bits == kFloatBits ? "FLOAT32" : fmt::format("{}{}", integer, bits);
}

void add(nlohmann::json& totals, const std::string& key, int64_t amount) {
  totals[key] = totals.value(key, int64_t{0}) + amount;
}

}  // namespace

WeightCodes quantize_weights(const Layer& layer) {
  WeightCodes quantized;
  if (layer.weight_bits == kFloatBits) return quantized;
  const std::span<const float> weights = layer.weight.value.floats();
  quantized.codes.resize(weights.size());
  // Pruned weights are kept at zero, so the mask needs no look here.
  float largest = kMinQuantizerRange;
  for (const float weight : weights) largest = std::max(largest, std::abs(weight));
  quantized.scale = largest / static_cast<float>((1 << (layer.weight_bits - 1)) - 1);
  std::ranges::transform(weights, quantized.codes.begin(), [&](float weight) {
    return static_cast<int8_t>(std::nearbyint(weight / quantized.scale));
  });
  return quantized;
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

double NetworkCost::normalized() const {
  return 0.5 * static_cast<double>(bit_ops()) / static_cast<double>(kBaselineBitOps) +
         0.5 * static_cast<double>(bit_mem()) / static_cast<double>(kBaselineBitMem);
}

NetworkCost inference_cost(const Network& network) {
  NetworkCost cost;
  for (const Layer& layer : network.layers()) cost.layers.push_back(layer_cost(layer));
  return cost;
}

nlohmann::json to_finn_json(const NetworkCost& cost) {
  nlohmann::json totals = {{"discount_sparsity", true}, {"unsupported", "set()"}};
  int64_t output_bits = 0;
  for (size_t i = 0; i < cost.layers.size(); ++i) {
    const LayerCost& layer = cost.layers[i];
    // What a QuantReLU writes is unsigned; the quantized input is signed.
    const std::string input = type_name(i == 0 ? "INT" : "UINT", layer.input_bits);
    const std::string weight = type_name("INT", layer.weight_bits);
    const bool is_integer = layer.input_bits != kFloatBits && layer.weight_bits != kFloatBits;
    constexpr int kAccumulatorBits = 32;  // of INT32 and FLOAT32 alike
    add(totals, fmt::format("op_mac_{}_{}", input, weight), layer.macs());
    add(totals, "mem_w_" + weight, layer.weights_nonzero);
    add(totals, is_integer ? "mem_o_INT32" : "mem_o_FLOAT32", layer.outputs);
    output_bits += layer.outputs * kAccumulatorBits;
  }
  totals["total_bops"] = cost.bit_ops();
  totals["total_mem_w_bits"] = cost.bit_mem();
  totals["total_mem_o_bits"] = output_bits;
  return totals;
}

}  // namespace fmp
