// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "framework/data/dataset.h"

namespace fmp {

// The frames of one (class, SNR) pair in shuffled order; the first test_count() of them are the
// test part.
using Block = std::vector<int64_t>;

// The seed of the split that published RadioML 2018.01A accuracies rest on.
inline constexpr uint32_t kSplitSeed = 2018;

// Shuffles `list` exactly as numpy.random.shuffle shuffles a Python list after
// numpy.random.seed(s), with `engine` = std::mt19937(s) (whose output the C++ standard fixes);
// calls may follow each other.
void numpy_shuffle(std::span<int64_t> list, std::mt19937& engine);

// Frames of a block of n that are test frames: ceil(0.1 * n).
int64_t test_count(int64_t n);

// The first `count` frames of a shuffled block as a block of its own: its test part comes from the
// test part of `block`, the rest from the rest, so that a subset never trains on a frame that the
// whole set tests on. 1 <= count <= block.size().
Block shortened(const Block& block, int64_t count);

// Test: the first test_count() of every block. Validation: of each block's other frames, the last
// ceil(validation_fraction * their number) in shuffled order, but never all of them; so every class
// and SNR is represented alike and the choice depends on nothing else. Train: what is left.
// 0 <= validation_fraction < 1, 0 = no validation part.
Split make_split(std::span<const Block> blocks, double validation_fraction);

}  // namespace fmp
