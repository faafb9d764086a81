// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "framework/data/frame_store.h"
#include "framework/data/hdf5_file.h"
#include "framework/data/input_level.h"
#include "framework/data/input_quantizer.h"

namespace fmp {

// Called while frames are loaded, one call at a time but from a thread of the loader's.
using LoadProgress = std::function<void(int64_t frames_done, int64_t frames_total)>;

// Bytes that a stored frame of `row_elements` values takes: one byte a value for 2 to 8 bits, a
// float for kFloatBits.
int64_t stored_frame_bytes(int64_t row_elements, int input_bits);

// How the values of a row are a frame: [length][2], or I before Q, [2][length].
struct FrameLayout {
  int64_t length = 0;
  bool i_before_q = false;
};

// Copies rows `rows` (ascending) of x into `store` as frames 0, 1, ... of [length][2] values: each
// sample quantized, or as a float where the quantizer's bits are kFloatBits. The file is read in
// its own order and each of its chunks once, in blocks of a few MB (more where a chunk is larger),
// converted by up to `threads` threads (0 = all cores) whose buffers take about memory_limit / 4
// together. Throws Error, naming the row, when it cannot be read or holds a value that is not
// finite; of several such rows the first is named, whatever the threads do. Returns the level of
// the rows, of large sets that of every 16th.
InputLevel load_frames(const Hdf5DataSet& x, const FrameLayout& layout,
                       std::span<const int64_t> rows, const InputQuantizer& input,
                       int64_t memory_limit, int threads, FrameStore& store,
                       const LoadProgress& progress);

}  // namespace fmp
