// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace fmp {

// What was published for RadioML 2018.01A at an accuracy of at least 56 % over all SNRs: the
// baseline and the entries of the 2021 challenge "Lightning-Fast Modulation Classification" (ITU
// ML5G-PS-007), with finn-base's inference cost.
struct PublishedResult {
  const char* network;
  std::optional<int> bits;
  std::optional<int64_t> bit_ops, bit_mem;
  double cost;
  // As published: the product of 1 / (1 - p) over all pruning steps tried, failed ones included.
  std::optional<double> eq5_compression;
};

inline constexpr std::array<PublishedResult, 9> kPublishedResults = {{
    {"VGG10 baseline", 8, 807'699'904, 1'244'936, 1, 1},
    {"VGG10, iterative magnitude pruning", 4, 24'436'576, 68'072, 0.0424, 9.3},
    {"VGG10, FMP", 8, 49'892'544, 68'384, 0.0583, 5821},
    {"VGG10, FMP", 7, 39'056'969, 59'836, 0.0482, 5821},
    {"VGG10, FMP", 6, 34'321'896, 62'976, 0.0465, 3072},
    {"VGG10, FMP", 5, 28'316'625, 64'430, 0.0434, 1621},
    {"VGG10, FMP", 4, 24'601'600, 66'616, 0.0419, 813},
    {"BacalhauNet", {}, {}, {}, 0.016211, {}},
    {"AaronNet32++", {}, {}, {}, 0.015705, {}},
}};

}  // namespace fmp
