// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/data/frame_loader.h"
#include "framework/data/frame_store.h"

namespace fmp {

// A data set some of whose frames are read from it once and then held in a store: for frames that
// take long to make. The others are read from the set itself whenever they are asked for.
class HeldFrames final : public Dataset {
 public:
  // Reads all of `held` (distinct frames of the set) now, and writes them to `store` as frames 0,
  // 1, ..., of stored_frame_bytes(2 * length, input_bits) bytes; input_bits is what the set's
  // frames have. threads >= 1: that share the work out, here and in read().
  HeldFrames(std::unique_ptr<Dataset> source, std::span<const int64_t> held, int input_bits,
             std::unique_ptr<FrameStore> store, int threads, const LoadProgress& progress = {});

  int64_t size() const override { return source_->size(); }
  int length() const override { return source_->length(); }
  const std::vector<std::string>& class_names() const override { return source_->class_names(); }
  uint8_t label(int64_t frame) const override { return source_->label(frame); }
  int16_t snr_db(int64_t frame) const override { return source_->snr_db(frame); }
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override;

 private:
  static constexpr int64_t kNotHeld = -1;

  void fill(std::span<const int64_t> held, const LoadProgress& progress);
  void read_others(std::span<const int64_t> frames, FrameBatch& batch) const;

  std::unique_ptr<Dataset> source_;
  std::unique_ptr<FrameStore> store_;
  bool as_codes_;
  size_t frame_bytes_;
  int threads_;
  std::vector<int64_t> place_;  // of every frame in the store, or kNotHeld
};

}  // namespace fmp
