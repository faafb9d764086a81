// SPDX-License-Identifier: MIT
#pragma once

#include "framework/network/network.h"

namespace fmp {

// A network that is a chain in lists, with one value for every layer.
inline ChainConfig chain_of(const NetworkConfig& config) {
  ChainConfig chain;
  for (auto* list :
       {&chain.filters, &chain.dense, &chain.kernel, &chain.stride, &chain.padding, &chain.groups,
        &chain.pool, &chain.weight_bits, &chain.act_bits, &chain.smallest_codes})
    list->clear();
  chain.input_channels = config.input_channels;
  chain.length = config.length;
  chain.classes = config.classes;
  chain.input_bits = config.input_bits;
  chain.input_scale = config.input_scale;
  chain.class_scales = config.class_scales;
  for (const LayerConfig& layer : config.layers) {
    chain.weight_bits.push_back(layer.weight_bits);
    chain.act_bits.push_back(layer.act_bits);
    chain.smallest_codes.push_back(layer.smallest_code);
    if (layer.kind == LayerKind::kDense) {
      chain.dense.push_back(layer.outputs);
      continue;
    }
    chain.filters.push_back(layer.outputs);
    chain.kernel.push_back(layer.form.kernel);
    chain.stride.push_back(layer.form.stride);
    chain.padding.push_back(layer.form.padding);
    chain.groups.push_back(layer.form.groups);
    chain.pool.push_back(layer.form.pool);
  }
  chain.weight_bits.push_back(config.output_bits);
  return chain;
}

}  // namespace fmp
