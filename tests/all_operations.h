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

// Strides that do not divide what they read, padding that makes more positions or fewer, pools and
// strides that leave some over, values whose readers see more or fewer positions than there are; of
// kAnyLength samples.
inline constexpr int kAnyLength = 101;
inline constexpr const char* kAnyLengths = R"({"layers": [
    {"type": "conv", "name": "stem", "outputs": 6, "kernel": 5, "stride": 2, "padding": [2, 4], "pool": 3},
    {"type": "conv", "name": "left", "outputs": 5, "kernel": 3, "padding": [0, 0], "pool": 2},
    {"type": "conv", "name": "right", "outputs": 5, "kernel": 5, "stride": 3, "padding": [4, 3],
     "signed": true, "reads": ["stem"]},
    {"type": "add", "name": "sum", "reads": ["left", "right"], "pool": 2},
    {"type": "conv", "name": "fast", "outputs": 8, "kernel": 2, "stride": 4, "padding": [0, 0], "pool": 2,
     "reads": ["input"]},
    {"type": "conv", "name": "faster", "outputs": 3, "kernel": 4, "stride": 4, "padding": [0, 1]},
    {"type": "concat", "name": "joined", "reads": ["sum", "faster"]},
    {"type": "conv", "name": "wide", "outputs": 4, "kernel": 3, "padding": [2, 2]},
    {"type": "conv", "name": "tail", "outputs": 5, "kernel": 4, "padding": [1, 2], "pool": 2},
    {"type": "dense", "outputs": 7}]})";

// Without the operations that read codes alone.
inline constexpr const char* kAnyFloatLengths = R"({"layers": [
    {"type": "conv", "outputs": 6, "kernel": 5, "stride": 3, "padding": [0, 2], "pool": 2},
    {"type": "conv", "outputs": 5, "kernel": 4, "stride": 2, "padding": [3, 1], "pool": 2},
    {"type": "conv", "outputs": 5, "kernel": 3, "padding": [0, 0]},
    {"type": "dense", "outputs": 7}]})";

inline NetworkConfig any_lengths(int bits, int classes) {
  NetworkConfig config = read_network(bits == kFloatBits ? kAnyFloatLengths : kAnyLengths, bits);
  config.length = kAnyLength;
  config.classes = classes;
  return config;
}

}  // namespace fmp
