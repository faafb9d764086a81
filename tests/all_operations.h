// SPDX-License-Identifier: MIT
// A small network that branches, for tests of all engines.
#pragma once

#include "framework/network/description.h"
#include "framework/network/network.h"

namespace fmp {

// All operations; values, and the frames, with several readers, which want different padding and
// joined positions.
inline constexpr const char* kAllOperations = R"({"layers": [
    {"type": "conv", "name": "stem", "outputs": 6, "kernel": 3, "pool": 2},
    {"type": "conv", "name": "left", "outputs": 6, "kernel": 5, "signed": true},
    {"type": "add", "reads": ["left", "stem"]},
    {"type": "conv", "name": "half", "outputs": 5, "kernel": 3, "stride": 2, "reads": ["stem"]},
    {"type": "conv", "name": "deep", "outputs": 6, "kernel": 3, "pool": 2, "reads": ["add1"]},
    {"type": "average_pool", "name": "mean", "window": 2, "reads": ["add1"]},
    {"type": "add", "name": "sum", "reads": ["deep", "mean"], "signed": true},
    {"type": "conv", "name": "fast", "outputs": 3, "kernel": 4, "stride": 4, "reads": ["input"]},
    {"type": "concat", "reads": ["half", "sum", "fast"], "pool": 2},
    {"type": "conv", "outputs": 5, "kernel": 3},
    {"type": "dense", "outputs": 7}]})";

inline NetworkConfig all_operations(int bits, int length, int classes) {
  NetworkConfig config = read_network(kAllOperations, bits);
  config.length = length;
  config.classes = classes;
  return config;
}

}  // namespace fmp
