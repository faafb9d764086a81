// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace fmp {

// A table of equally large frames that is written once and then read in any order. Different frames
// may be written, and any frames read, by several threads at a time. Frame indices are the caller's
// to check.
class FrameStore {
 public:
  virtual ~FrameStore() = default;

  // Frames first, first + 1, ...; data.size() is a multiple of the frame's size.
  virtual void write(int64_t first, std::span<const std::byte> data) = 0;
  // The frames with these indices, one after the other in this order, into `out`.
  virtual void read(std::span<const int64_t> frames, std::byte* out) const = 0;
};

// Keeps the frames in memory. Throws Error when there is not enough.
std::unique_ptr<FrameStore> make_memory_store(int64_t frames, int64_t frame_bytes);

// Keeps the frames in a temporary file in `directory`, which has no name there and vanishes with
// the store, however the process ends. Frames that are read often stay in the operating system's
// page cache as far as there is memory left; the process itself holds none. Meant for solid-state
// disks: reads are as random as the frames that are asked for, and requested a batch at a time.
// Throws Error when the directory cannot hold the file.
std::unique_ptr<FrameStore> make_file_store(const std::string& directory, int64_t frames,
                                            int64_t frame_bytes);

// Bytes that frames may take in memory where nothing else is said: half of what the machine, or the
// control group of the process, has.
int64_t default_memory_limit();
// Where a file store is made where nothing else is said: $TMPDIR or /var/tmp.
std::string default_cache_directory();

}  // namespace fmp
