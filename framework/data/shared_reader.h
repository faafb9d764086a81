// SPDX-License-Identifier: MIT
// Frames for ranks of which each holds a part of the set: rank r those from r / ranks of the set on
// (see first_held()). Whoever needs a frame gets it from the rank that holds it, for the order of
// the frames is shuffled anew in every epoch and must not depend on who holds what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "framework/data/dataset.h"
#include "kernels/communicator.h"

namespace fmp {

// The first frame of a set of `size` that `rank` holds; it holds those up to first_held(rank + 1).
constexpr int64_t first_held(int64_t size, int rank, int ranks) { return size * rank / ranks; }

// The part of `frames` that this rank holds, in the same order; all of it without ranks.
std::vector<int64_t> held_part(std::span<const int64_t> frames, int64_t size,
                               const Communicator* ranks);

// One pass over a list of frames, as a BatchReader makes it, that all ranks make together.
class SharedReader {
 public:
  enum class Give : uint8_t {
    kShares,   // to every rank its BatchShare of every batch
    kBatches,  // whole batches in turn: the first to rank 0, the next to rank 1, ...
  };
  // input_bits: of the set's frames. ranks: null = this process is alone and gets everything.
  // Batches of less than `smallest` frames are left out. units: of kShares. The set must outlive
  // the reader.
  SharedReader(const Dataset& dataset, std::vector<int64_t> frames, int batch_size, int input_bits,
               Give give, Communicator* ranks, int64_t smallest = 1, ShareUnits units = {});
  ~SharedReader();

  // What this rank gets of the next batch, or of the next batches of which each rank gets one; it
  // may have no frames. Null after the last; then every rank gets null. kShares: labels, SNRs and
  // soft targets are those of the whole batch. kBatches: without soft targets. Valid until the next
  // call. All ranks call it.
  const FrameBatch* next();

  // The frames that every rank got with the last next() of kBatches: rank r those from cuts()[r] to
  // cuts()[r + 1] of the list.
  std::span<const size_t> cuts() const { return cuts_; }
  const std::vector<int64_t>& frames() const { return frames_; }

 private:
  // Places in the list.
  struct Part {
    size_t begin, end;
  };
  Part part_of(int rank, size_t first, size_t count) const;
  int holder(int64_t frame) const;
  void take_frames(const FrameBatch& held);
  void take_soft_targets(const FrameBatch& held, Part batch);

  const Dataset& dataset_;
  std::vector<int64_t> frames_;
  size_t batch_size_;
  int64_t frame_bytes_;
  bool as_codes_;
  Give give_;
  Communicator* ranks_;
  std::vector<size_t> starts_;  // in frames_, of what a call of next() gives; the end of all last
  size_t call_ = 0;
  ShareUnits units_;
  std::vector<Part> parts_;  // of the ranks, of what the last next() gave
  std::vector<size_t> cuts_;
  std::unique_ptr<BatchReader> reader_;  // of the frames that this rank holds
  FrameBatch batch_;
  std::vector<std::byte> received_, sent_;
};

// These frames, read by the ranks that hold them, on all ranks.
FrameBatch read_on_all(const Dataset& dataset, std::span<const int64_t> frames, int input_bits,
                       Communicator* ranks);

}  // namespace fmp
