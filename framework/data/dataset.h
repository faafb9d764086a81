// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/data/input_quantizer.h"

namespace fmp {

// Frames as a backend takes them: `count` frames of `length` complex samples, I and Q interleaved,
// position-major as in a RadioML file: [count][length][2]. Quantized inputs (input_bits 2..8) come
// as signed codes (see input_quantizer.h), float inputs (input_bits 32) as values;
// exactly one of `codes` and `values` is filled. Or neither, where an engine has the frames: then
// `places` says where (Engine::take_frames).
struct FrameBatch {
  int64_t count = 0;
  std::vector<int8_t> codes;
  std::vector<float> values;
  std::vector<uint32_t> places;  // [count]
  std::vector<uint8_t> labels;   // class index, [count]
  std::vector<int16_t> snr_db;   // [count]
  // What a teacher says of the frames, [count][classes] shares that sum up to 1 in each frame, see
  // LossOptions; empty: nothing.
  std::vector<float> soft_targets;
};

// A labelled set of frames that can be read in any order. Implementations: an HDF5 file held in
// memory as codes, the same file streamed, and an endless synthetic source. Thread-safe for
// concurrent read() calls.
class Dataset {
 public:
  virtual ~Dataset() = default;

  virtual int64_t size() const = 0;  // number of frames
  virtual int length() const = 0;    // complex samples per frame
  virtual const std::vector<std::string>& class_names() const = 0;
  virtual uint8_t label(int64_t frame) const = 0;
  virtual int16_t snr_db(int64_t frame) const = 0;
  // Numbers that read() puts into FrameBatch::soft_targets for each frame.
  virtual int soft_targets() const { return 0; }

  // Reads the frames with these indices, in this order, into `batch` (whose buffers are reused).
  virtual void read(std::span<const int64_t> frames, FrameBatch& batch) const = 0;
};

// Frame indices of each part, ascending within a part.
struct Split {
  std::vector<int64_t> train, validation, test;
};

// One pass over a list of frames in batches, the next ones (up to three) being read by another
// thread while the caller computes. Same arguments, same batches. The last batch may be smaller.
class BatchReader {
 public:
  // `frames` in the order in which they are wanted (see shuffled()); `dataset` must outlive the
  // reader; batch_size >= 1.
  BatchReader(const Dataset& dataset, std::vector<int64_t> frames, int batch_size);
  // Batches of these sizes, which may be 0 and add up to frames.size().
  BatchReader(const Dataset& dataset, std::vector<int64_t> frames, std::vector<size_t> sizes);
  ~BatchReader();
  BatchReader(const BatchReader&) = delete;
  BatchReader& operator=(const BatchReader&) = delete;

  // The next batch, or null after the last. Valid until the next call. Rethrows what read() threw.
  const FrameBatch* next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// `frames` in a random order that depends on seed and epoch alone (Fisher-Yates over a
// counter-based generator of ours: the same on every machine and standard library).
std::vector<int64_t> shuffled(std::span<const int64_t> frames, uint64_t seed, uint64_t epoch);

// The frames of an epoch of at most `most` frames (0 = all of them), in their order. A pass over
// all frames, shuffled(frames, seed, pass), is divided evenly among as few epochs in a row as that
// takes.
std::vector<int64_t> epoch_order(std::span<const int64_t> frames, int64_t most, uint64_t seed,
                                 uint64_t epoch);

}  // namespace fmp
