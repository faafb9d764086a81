// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/input_quantizer.h"

namespace fmp {

// How large the values of frames are, beside what networks are made for: a complex deviation of 1,
// as RadioML's frames have it over a long stretch, in an input of, usually, [-2, 2). Data of
// another level reach a quantized network as zeros, or as its largest codes, and nothing else tells
// so.
class InputLevel {
 public:
  // Values of a frame, I and Q interleaved, and what they become.
  void add(std::span<const float> frame, const InputQuantizer& input);
  // Frames all of whose samples are 0, as a file has them that was only partly written.
  void add_silent_frames(int64_t frames) { silent_frames_ += frames; }
  // Values at the limits of the integers that they are stored as.
  void add_clipped_values(int64_t values) { clipped_values_ += values; }
  void add(const InputLevel& other);

  // sqrt(E|x|^2 - |E x|^2) over all samples; 0 if there are none.
  double deviation() const;
  // Shares of the codes that are 0, and that are the lowest or highest one; 0 for float inputs.
  double share_of_zeros() const;
  double share_at_limits() const;

  // What is wrong, in lines that begin with `name`; none if all is well: the deviation is within a
  // factor of 2 of 1 and, at 4 bits or more, at most 5 % of the codes are at the limits; at most
  // 1 % of the stored integers are at theirs; no frame is silent. `frames`: all that there are.
  std::vector<std::string> warnings(const std::string& name, int64_t frames) const;

 private:
  int64_t values_ = 0, zeros_ = 0, limits_ = 0, silent_frames_ = 0, clipped_values_ = 0;
  int bits_ = 0;
  double i_ = 0, q_ = 0, power_ = 0;  // sums
};

}  // namespace fmp
