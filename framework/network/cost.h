// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// What one layer costs per frame. Weights count when their code is not zero: a weight that
// quantization rounds to zero costs as little as a pruned one.
struct LayerCost {
  std::string layer;
  int64_t weights = 0;          // of the dense layer
  int64_t weights_alive = 0;    // not masked
  int64_t weights_nonzero = 0;  // with a nonzero code (float layers: a nonzero value)
  int64_t positions = 0;
  int weight_bits = 0, input_bits = 0;
  int64_t outputs = 0;  // values that the convolution or product writes
  // Names of the types of values as finn-base calls them: FLOAT32, INT8, UINT8 or, with a scale,
  // SCALEDINT8 and SCALEDUINT8.
  std::string input_type, weight_type, output_type;
  // The product of two activations, or of weights that finn-base takes for activations: it has no
  // weights in memory.
  bool weights_are_activations = false;

  int64_t macs() const { return weights_nonzero * positions; }
  int64_t bit_ops() const { return macs() * weight_bits * input_bits; }
  int64_t weights_in_memory() const { return weights_are_activations ? 0 : weights_nonzero; }
  int64_t bit_mem() const { return weights_in_memory() * weight_bits; }
};

// The width of a type of that name: 8 for SCALEDUINT8 or SCALEDINT<8>, 32 for FLOAT32, 1 for BINARY
// and BIPOLAR, 2 for TERNARY; nothing for an unknown name.
std::optional<int> bits_of_type(std::string_view type);

// The published 8 bit VGG10 baseline, against which costs are normalized.
inline constexpr int64_t kBaselineBitOps = 807'699'904;
inline constexpr int64_t kBaselineBitMem = 1'244'936;
// 0.5 * bit_ops / kBaselineBitOps + 0.5 * bit_mem / kBaselineBitMem
double normalized_cost(int64_t bit_ops, int64_t bit_mem);

// The inference cost of a network as finn-base counts it with zero weights discounted
// (discount_sparsity), and the score that the RadioML challenge derives from it.
struct NetworkCost {
  std::vector<LayerCost> layers;
  // Operations of a graph that finn-base neither counts nor knows to be free, sorted.
  std::vector<std::string> unsupported;

  int64_t weights() const;
  int64_t weights_alive() const;
  int64_t weights_nonzero() const;
  int64_t macs() const;
  int64_t bit_ops() const;
  int64_t bit_mem() const;
  double normalized() const;  // see normalized_cost()
};
NetworkCost inference_cost(const Network& network);

// The cost with the keys of finn-base's inference_cost tool: op_mac_<input type>_<weight type>,
// mem_w_<weight type> and mem_o_<output type> in elements, then the totals in bit operations and
// bits.
nlohmann::json to_finn_json(const NetworkCost& cost);

}  // namespace fmp
