// SPDX-License-Identifier: MIT
#include "framework/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

#include "framework/error.h"

namespace fmp {
namespace {

// An open file descriptor. close() reports the error that a destructor would have to swallow.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

[[noreturn]] void fail_with_errno(const std::filesystem::path& path, const char* what) {
  const int reason = errno;  // before anything below changes it
  fail("{}: {}: {}", path.string(), what, errno_message(reason));
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

void write_and_flush(const std::filesystem::path& path, std::string_view bytes) {
  FileDescriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) fail_with_errno(path, "cannot create");
  if (!write_all(file.get(), bytes) || ::fsync(file.get()) != 0 || !file.close()) {
    fail_with_errno(path, "cannot write");
  }
}

// A rename survives a power cut only once the directory that holds the name has been flushed.
void flush_directory(const std::filesystem::path& directory) {
  FileDescriptor handle(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!handle.valid()) fail_with_errno(directory, "cannot open the directory");
  // EINVAL: a file system that cannot flush directories; there is nothing more to be done there.
  if (::fsync(handle.get()) != 0 && errno != EINVAL) {
    fail_with_errno(directory, "cannot flush the directory");
  }
}

}  // namespace

void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  try {
    write_and_flush(temporary, bytes);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail_with_errno(path, "cannot replace");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  flush_directory(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

}  // namespace fmp
