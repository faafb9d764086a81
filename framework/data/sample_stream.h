// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <deque>
#include <istream>
#include <string>
#include <vector>

#include "framework/data/sample_format.h"

namespace fmp {

// How samples become the values that networks are trained on. RadioML's frames are cut from long
// recordings that were divided by their standard deviation, signal and noise together: the complex
// variance E|x|^2 - |E x|^2 is 1 over a long stretch, not in each frame. The mean is not
// subtracted.
enum class Normalization : uint8_t {
  kStretch,  // by the deviation of a long stretch of the stream
  kFrame,    // by each frame's own deviation
  kNone,     // not at all: floats as they are, integers as convert_samples() says
};
Normalization parse_normalization(const std::string& name);  // "stretch", "frame", "none"

// Frames of `length` complex samples from a stream, one after the other.
//
// kStretch: the deviation is that of the first `stretch_frames` frames, or of as many as there are,
// for all of these; then each frame is first added to a running average in which it weighs
// 1 / stretch_frames, so that the level of a long recording may change slowly. A stretch ends where
// the level changes for good, by more than kLevelChangeDb for kLevelFrames frames: silence before a
// signal, or a gain that is switched. From there a new one begins, with a deviation of its own.
// Fewer frames of another level, such as a transient, do not count for the deviation. Where the
// deviation is 0, values are 0. The values do not depend on how many frames are asked for at a
// time.
class SampleStream {
 public:
  static constexpr double kLevelChangeDb = 12;
  static constexpr int kLevelFrames = 8;

  struct Options {
    SampleFormat format;
    Normalization normalization = Normalization::kStretch;
    int length = 1024;
    int stretch_frames = 256;
    int64_t bytes = -1;  // that belong to it; -1: all until the end of the stream
  };
  // Where a new stretch began.
  struct LevelChange {
    int64_t frame = 0;
    double db = 0;  // the new level over the one before
  };

  // `name` is for error messages. `in` must outlive this.
  SampleStream(std::istream& in, std::string name, const Options& options);

  // Up to `count` next frames to values, [frames][length][2]; returns how many, fewer than count
  // only at the end. With kStretch the first call reads stretch_frames frames. Throws Error when
  // the stream cannot be read, ends within a sample or holds a value that is not finite.
  int64_t read(int64_t count, std::vector<float>& values);

  // Samples at the end that filled no frame; known once read() returned less than asked for.
  int64_t left_over() const { return left_over_; }
  // Values that were at the limits of their integers, of all that were read so far.
  int64_t clipped_values() const { return clipped_values_; }
  // Of the frames that read() gave back so far, at most the first kMostChanges.
  const std::vector<LevelChange>& level_changes() const { return changes_; }
  static constexpr size_t kMostChanges = 1000;

 private:
  struct Moments {
    double i = 0, q = 0, power = 0;  // means
    double variance() const { return power - i * i - q * q; }
    double power_about(const Moments& mean) const;  // of the samples less another mean
    double gain() const;
    void add(const Moments& other, double weight);
  };
  struct Frame {
    std::vector<float> values;
    Moments moments;
  };
  bool read_frame(float* frame);
  Moments moments_of(const float* frame) const;
  bool look_ahead(size_t frames);
  bool at_level(const Moments& frame) const;
  void take_level();
  void look_for_change();
  bool next_of_stretch(float* out);
  bool next(float* out);

  std::istream& in_;
  std::string name_;
  Options options_;
  std::vector<char> bytes_;  // of a frame in the stream
  std::deque<Frame> ahead_;  // frames that were read but not handed out
  bool level_known_ = false;
  Moments level_;             // of the stretch
  int64_t fixed_frames_ = 0;  // of ahead_ that have this level as it is
  int64_t frames_read_ = 0, frames_given_ = 0, left_over_ = 0, bytes_left_ = -1,
          clipped_values_ = 0;
  std::vector<LevelChange> changes_;
};

}  // namespace fmp
