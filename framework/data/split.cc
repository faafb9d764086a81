// SPDX-License-Identifier: MIT
#include "framework/data/split.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "framework/error.h"

namespace fmp {
namespace {

// numpy's legacy bounded integer: uniform in 0 .. max, by drawing as many bits as max has until
// they do not exceed it. Lists longer than 2^32 would take 64-bit draws; they do not occur.
uint32_t random_interval(std::mt19937& engine, uint32_t max) {
  const uint32_t mask = UINT32_MAX >> std::countl_zero(max);
  uint32_t value;
  do {
    value = static_cast<uint32_t>(engine()) & mask;
  } while (value > max);
  return value;
}

}  // namespace

void numpy_shuffle(std::span<int64_t> list, std::mt19937& engine) {
  if (list.size() > UINT32_MAX) fail("cannot shuffle a list of {} frames", list.size());
  for (size_t i = list.size(); i > 1; --i) {
    const uint32_t last = static_cast<uint32_t>(i - 1);
    std::swap(list[last], list[random_interval(engine, last)]);
  }
}

int64_t test_count(int64_t n) {
  return static_cast<int64_t>(std::ceil(0.1 * static_cast<double>(n)));
}

Block shortened(const Block& block, int64_t count) {
  const int64_t size = static_cast<int64_t>(block.size());
  if (count < 1 || count > size) fail("cannot take {} frames of a block of {}", count, size);
  const auto rest = block.begin() + test_count(size);
  const int64_t test = test_count(count);
  Block result(block.begin(), block.begin() + test);
  result.insert(result.end(), rest, rest + (count - test));
  return result;
}

Split make_split(std::span<const Block> blocks, double validation_fraction) {
  if (!(validation_fraction >= 0 && validation_fraction < 1)) {
    throw UsageError(
        fmt::format("validation fraction is {}, expected 0 <= fraction < 1", validation_fraction));
  }
  Split split;
  for (const Block& block : blocks) {
    const int64_t test = test_count(static_cast<int64_t>(block.size()));
    const int64_t rest = static_cast<int64_t>(block.size()) - test;
    const int64_t wanted =
        static_cast<int64_t>(std::ceil(validation_fraction * static_cast<double>(rest)));
    const int64_t validation = std::clamp<int64_t>(wanted, 0, std::max<int64_t>(rest - 1, 0));
    const auto train_begin = block.begin() + test;
    const auto validation_begin = block.end() - validation;
    split.test.insert(split.test.end(), block.begin(), train_begin);
    split.train.insert(split.train.end(), train_begin, validation_begin);
    split.validation.insert(split.validation.end(), validation_begin, block.end());
  }
  for (std::vector<int64_t>* part : {&split.train, &split.validation, &split.test}) {
    std::sort(part->begin(), part->end());
  }
  return split;
}

}  // namespace fmp
