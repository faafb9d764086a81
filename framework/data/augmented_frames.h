// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/data/input_quantizer.h"

namespace fmp {

// How training frames are varied, so that a network sees a frame in another form in every epoch.
struct Augmentation {
  // All samples times e^(i a), a uniform in [0, 2 pi): a receiver does not know the carrier's
  // phase.
  bool rotate = false;
  // All samples later by n, uniform in [0, length), the last n first: nor when a frame begins. A
  // frame's end and its beginning do not fit together, so that there is a jump between them.
  bool shift = false;
  // I and Q exchanged, with probability 1/2. This mirrors the spectrum: an upper sideband becomes a
  // lower one.
  bool swap = false;

  bool any() const { return rotate || shift || swap; }
  bool operator==(const Augmentation&) const = default;
};

// By the names "rotate", "shift" and "swap", in any order. Throws UsageError when one has no
// meaning or stands there twice.
Augmentation augmentation_of(std::span<const std::string> names);

// A data set whose frames are varied when they are read; labels and SNRs stay. What becomes of a
// frame depends on it, seed, epoch and number of the frame alone. Each kind of change draws from a
// stream of its own: one more changes nothing of the others.
class AugmentedFrames final : public Dataset {
 public:
  // source: must outlive this; its frames are in `input`. threads >= 1: that share out the frames
  // of a read().
  AugmentedFrames(const Dataset& source, const InputQuantizer& input,
                  const Augmentation& augmentation, uint64_t seed, int threads);

  // 0 at first. Not while read() runs.
  void set_epoch(uint64_t epoch);

  int64_t size() const override { return source_.size(); }
  int length() const override { return source_.length(); }
  const std::vector<std::string>& class_names() const override { return source_.class_names(); }
  uint8_t label(int64_t frame) const override { return source_.label(frame); }
  int16_t snr_db(int64_t frame) const override { return source_.snr_db(frame); }
  int soft_targets() const override { return source_.soft_targets(); }
  // Shifts, then swaps, then rotates. Of codes the first two are exact; a rotation turns them as
  // numbers, rounds half to even and clamps to the quantizer's range, which is a second rounding.
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override;

 private:
  template <typename T>
  void change(int64_t frame, std::span<T> samples, std::span<float> turned) const;

  const Dataset& source_;
  int bits_;  // of the input
  Augmentation augmentation_;
  uint64_t seed_;
  uint64_t epoch_seed_ = 0;  // of seed and epoch
  int threads_;
};

}  // namespace fmp
