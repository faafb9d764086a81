// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/inference/integer_network.h"
#include "framework/network/network.h"

namespace fmp {

// A data set whose frames come with what a trained network says of them: soft targets for another
// network that learns from it (see LossOptions). The teacher runs on integers, beside the training:
// on the thread that reads batches, and those that it has help from.
class TaughtFrames final : public Dataset {
 public:
  // source: must outlive this; the teacher sees its frames as they are, in `input`, the quantizer
  // of the network that learns. temperature: above 0. threads >= 1. stay: the frames stay what they
  // are, so that what the teacher says of them is kept (up to 1 GB of it) and it sees each frame
  // once. Throws Error when the teacher is not for such frames and classes or is not quantized
  // throughout.
  TaughtFrames(const Dataset& source, const InputQuantizer& input, const Network& teacher,
               double temperature, int threads, bool stay);

  int64_t size() const override { return source_.size(); }
  int length() const override { return source_.length(); }
  const std::vector<std::string>& class_names() const override { return source_.class_names(); }
  uint8_t label(int64_t frame) const override { return source_.label(frame); }
  int16_t snr_db(int64_t frame) const override { return source_.snr_db(frame); }
  int soft_targets() const override { return static_cast<int>(class_names().size()); }
  // Fills soft_targets, too.
  void read(std::span<const int64_t> frames, FrameBatch& batch) const override;

 private:
  void ask_teacher(FrameBatch& batch) const;
  bool recall(std::span<const int64_t> frames, std::vector<float>& soft_targets) const;
  void keep(std::span<const int64_t> frames, const std::vector<float>& soft_targets) const;
  std::span<const int8_t> codes_for_teacher(const FrameBatch& batch,
                                            std::vector<int8_t>& codes) const;

  const Dataset& source_;
  InputQuantizer input_;
  IntegerNetwork teacher_;
  double temperature_;
  int threads_;
  // Soft targets by frame, [frame][classes]; empty: none are kept. is_kept_[frame]: 1 if they are.
  mutable std::mutex mutex_;
  mutable std::vector<float> kept_;
  mutable std::vector<uint8_t> is_kept_;
};

}  // namespace fmp
