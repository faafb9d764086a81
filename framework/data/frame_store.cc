// SPDX-License-Identifier: MIT
#include "framework/data/frame_store.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <system_error>

#include "framework/error.h"

namespace fmp {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

std::string reason(int error) { return std::generic_category().message(error); }

class MemoryStore final : public FrameStore {
 public:
  MemoryStore(int64_t frames, int64_t frame_bytes) : frame_bytes_(frame_bytes) {
    const size_t bytes = static_cast<size_t>(frames) * static_cast<size_t>(frame_bytes);
    try {
      data_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    } catch (const std::bad_alloc&) {
      fail("no memory for {} frames of {} bytes ({:.3g} GiB); set a memory limit below that",
           frames, frame_bytes, static_cast<double>(bytes) / kGiB);
    }
  }

  void write(int64_t first, std::span<const std::byte> data) override {
    std::memcpy(at(first), data.data(), data.size());
  }

  void read(std::span<const int64_t> frames, std::byte* out) const override {
    for (const int64_t frame : frames) {
      std::memcpy(out, at(frame), static_cast<size_t>(frame_bytes_));
      out += frame_bytes_;
    }
  }

 private:
  std::byte* at(int64_t frame) const { return data_.get() + frame * frame_bytes_; }

  int64_t frame_bytes_;
  std::unique_ptr<std::byte[]> data_;
};

class FileStore final : public FrameStore {
 public:
  FileStore(const std::string& directory, int64_t frames, int64_t frame_bytes)
      : directory_(directory), frame_bytes_(frame_bytes) {
    check_space(frames * frame_bytes);
    std::string path = directory + "/fmp-frames-XXXXXX";
    descriptor_ = mkostemp(path.data(), O_CLOEXEC);
    if (descriptor_ < 0) fail("{}: cannot make a temporary file ({})", directory, reason(errno));
    unlink(path.c_str());
  }
  ~FileStore() override { close(descriptor_); }
  FileStore(const FileStore&) = delete;
  FileStore& operator=(const FileStore&) = delete;

  void write(int64_t first, std::span<const std::byte> data) override {
    off_t offset = first * frame_bytes_;
    while (!data.empty()) {
      const ssize_t written = pwrite(descriptor_, data.data(), data.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("{}: cannot write the temporary file ({})", directory_, reason(errno));
      data = data.subspan(static_cast<size_t>(written));
      offset += written;
    }
  }

  void read(std::span<const int64_t> frames, std::byte* out) const override {
    // All requests are announced first, so that the disk works on many at a time.
    for (const int64_t frame : frames) {
      posix_fadvise(descriptor_, frame * frame_bytes_, frame_bytes_, POSIX_FADV_WILLNEED);
    }
    for (const int64_t frame : frames) {
      read_frame(frame, out);
      out += frame_bytes_;
    }
  }

 private:
  void check_space(int64_t bytes) const {
    struct statvfs disk {};
    if (statvfs(directory_.c_str(), &disk) != 0) {
      fail("{}: cannot be used for temporary files ({})", directory_, reason(errno));
    }
    const double available =
        static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    if (static_cast<double>(bytes) > available) {
      fail("{}: a temporary file of {:.3g} GiB is needed, {:.3g} GiB are free", directory_,
           static_cast<double>(bytes) / kGiB, available / kGiB);
    }
  }

  void read_frame(int64_t frame, std::byte* out) const {
    off_t offset = frame * frame_bytes_;
    size_t left = static_cast<size_t>(frame_bytes_);
    while (left > 0) {
      const ssize_t got = pread(descriptor_, out, left, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        fail("{}: cannot read frame {} back from the temporary file ({})", directory_, frame,
             got < 0 ? reason(errno) : "it is too short");
      }
      out += got;
      offset += got;
      left -= static_cast<size_t>(got);
    }
  }

  std::string directory_;
  int64_t frame_bytes_;
  int descriptor_ = -1;
};

}  // namespace

std::unique_ptr<FrameStore> make_memory_store(int64_t frames, int64_t frame_bytes) {
  return std::make_unique<MemoryStore>(frames, frame_bytes);
}

std::unique_ptr<FrameStore> make_file_store(const std::string& directory, int64_t frames,
                                            int64_t frame_bytes) {
  return std::make_unique<FileStore>(directory, frames, frame_bytes);
}

int64_t default_memory_limit() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::ifstream group("/sys/fs/cgroup/memory.max");
  int64_t group_bytes = 0;
  if (group >> group_bytes) bytes = std::min(bytes, group_bytes);  // "max" is no number: no limit
  return bytes / 2;
}

std::string default_cache_directory() {
  const char* directory = std::getenv("TMPDIR");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  return directory != nullptr && *directory != '\0' ? directory : "/var/tmp";  // /tmp may be memory
}

}  // namespace fmp
