// SPDX-License-Identifier: MIT
// A channel's thresholds as a line in floats: code = clamp(floor(sum * multiplier + offset)), which
// vectors compute in five instructions. Two of them where one would not be exact.
#pragma once

#include <cstdint>
#include <span>

namespace fmp::cpu {

struct CodeLine {
  enum Kind : int32_t {
    kExact,   // the line with `low` gives the code of every sum; high is the same
    kLook,    // with `low` the code or one less, with `high` the code or one more: where the two
              // are the same, that is the code
    kSearch,  // no such lines were found; multiplier 0, and the two differ everywhere
  };
  Kind kind = kExact;
  float multiplier = 0, low = 0, high = 0;
  int smallest = 0, largest = 0;  // what codes are clamped to
};

// floor(sum * multiplier + offset) as the kernels compute it, clamped to smallest .. largest.
int code_on_line(const CodeLine& line, float offset, int32_t sum);

// The lines for `thresholds` (ascending; the code of a sum is how many are <= sum). Sums up to
// `base` have the code of base, sums from `top` on that of top. largest_sum: the largest magnitude
// of a sum.
CodeLine fit_code_line(std::span<const int32_t> thresholds, int32_t base, int32_t top,
                       int64_t largest_sum);

// The lines of a quad of outputs, as vectors use them.
struct QuadLines {
  float multiplier[4] = {}, low[4] = {}, high[4] = {};
  uint32_t smallest = 0, largest = 0;      // codes, in the order of bytes in a quad
  CodeLine::Kind kind = CodeLine::kExact;  // of the four, the one that takes longest
};

}  // namespace fmp::cpu
