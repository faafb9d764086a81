// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace fmp::synth {

// Writes a file in the layout of RadioML 2018.01A, block by block:
//   X  frames x 1024 x 2 float32, I and Q;  Y  frames x classes int64, one-hot;
//   Z  frames x 1 int64, SNR in dB.
// The file is an OutputFile (framework/atomic_file.h): it takes its place in finish(), flushed to
// the disk; without finish() nothing is left behind. Every failure throws Error naming the file.
class RadioMlWriter {
 public:
  // `compression`: 0 (none) to 9, zlib's level.
  RadioMlWriter(const std::filesystem::path& path, int64_t frames, int classes, int compression);
  ~RadioMlWriter();
  RadioMlWriter(const RadioMlWriter&) = delete;
  RadioMlWriter& operator=(const RadioMlWriter&) = delete;

  // Appends frames of one class and SNR; `values` holds them as [count][1024][2].
  void append(std::span<const float> values, int class_index, int snr_db);

  void attribute(const std::string& name, double value);
  void attribute(const std::string& name, int64_t value);
  void attribute(const std::string& name, const std::string& value);

  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fmp::synth
