// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <istream>
#include <string>
#include <vector>

namespace fmp {

// Types of interleaved I and Q, little-endian.
enum class SampleFormat : uint8_t { kCf32, kCi16, kCi8 };

// "cf32", "ci16" or "ci8"; throws UsageError for anything else.
SampleFormat parse_sample_format(const std::string& name);

// What a SigMF recording's metadata says about its samples.
struct SigMf {
  std::filesystem::path data;  // NAME.sigmf-data
  SampleFormat format = SampleFormat::kCf32;
};

// Reads NAME.sigmf-meta; `path` may name it, NAME.sigmf-data or NAME. core:datatype must be
// cf32_le, ci16_le or ci8, and core:num_channels 1. Throws Error that names the file and the field.
SigMf read_sigmf(const std::filesystem::path& path);

// How samples become the values that networks are trained on. RadioML's frames are cut from long
// recordings that were divided by their standard deviation, signal and noise together: the complex
// variance E|x|^2 - |E x|^2 is 1 over a long stretch, not in each frame. The mean is not
// subtracted.
enum class Normalization : uint8_t {
  kStretch,  // by the deviation of a long stretch of the stream
  kFrame,    // by each frame's own deviation
  kNone,     // not at all: cf32 as it is, ci16 / 32768, ci8 / 128
};
Normalization parse_normalization(const std::string& name);  // "stretch", "frame", "none"

// Frames of `length` complex samples from a stream, one after the other. kStretch: the deviation is
// that of the first `stretch_frames` frames, or of as many as there are, for all of these; then
// each frame is first added to a running average in which it weighs 1 / stretch_frames, so that the
// level of a long recording may change slowly. Where the deviation is 0, values are 0.
class SampleStream {
 public:
  struct Options {
    SampleFormat format = SampleFormat::kCf32;
    Normalization normalization = Normalization::kStretch;
    int length = 1024;
    int stretch_frames = 256;
  };

  // `name` is for error messages. `in` must outlive this.
  SampleStream(std::istream& in, std::string name, const Options& options);

  // Up to `count` next frames to values, [frames][length][2]; returns how many, fewer than count
  // only at the end. With kStretch the first call reads stretch_frames frames. Throws Error when
  // the stream cannot be read, ends within a sample or holds a value that is not finite.
  int64_t read(int64_t count, std::vector<float>& values);

  // Samples at the end that filled no frame; known once read() returned less than asked for.
  int64_t left_over() const { return left_over_; }

 private:
  struct Moments {
    double i = 0, q = 0, power = 0;  // means
    double gain() const;
  };
  bool read_frame(float* frame);
  Moments moments_of(const float* frame) const;
  void fill_stretch();

  std::istream& in_;
  std::string name_;
  Options options_;
  std::vector<char> bytes_;     // of a frame in the stream
  std::vector<float> waiting_;  // frames of the stretch that were not handed out yet
  size_t handed_out_ = 0;       // values of waiting_ that were
  bool stretch_known_ = false;
  Moments stretch_;
  int64_t frames_read_ = 0, left_over_ = 0;
};

}  // namespace fmp
