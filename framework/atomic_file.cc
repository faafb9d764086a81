// SPDX-License-Identifier: MIT
#include "framework/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

// An open file descriptor. close() reports the error that a destructor would have to swallow.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

[[noreturn]] void fail_with_errno(const fs::path& path, const char* what) {
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

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// A rename survives a power cut only once the directory that holds the name has been flushed.
void flush_directory(const fs::path& directory) {
  FileDescriptor handle(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!handle.valid()) fail_with_errno(directory, "cannot open the directory");
  // EINVAL: a file system that cannot flush directories; there is nothing more to be done there.
  if (::fsync(handle.get()) != 0 && errno != EINVAL) {
    fail_with_errno(directory, "cannot flush the directory");
  }
}

// --- Where a path leads ---

struct Target {
  enum class Kind {
    kReplace,     // a regular file, there or not
    kDescriptor,  // an open descriptor of this process
    kDevice,      // anything else that can be written to
  };
  Kind kind = Kind::kReplace;
  fs::path path;
  int descriptor = -1;
  std::optional<struct stat> old;  // the file that is replaced
};

// The number of an entry of the directory in which the system shows this process's descriptors.
std::optional<int> descriptor_of(const fs::path& path) {
  std::error_code error;
  const std::string folder = fs::canonical(folder_of(path), error).string();
  if (error || !folder.starts_with("/proc/") || !folder.ends_with("/fd")) return std::nullopt;
  const std::string own = fmt::format("/proc/{}/", ::getpid());
  if (!folder.starts_with(own)) return std::nullopt;
  const std::string name = path.filename().string();
  int number = -1;
  const auto [end, failure] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (failure != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return number;
}

bool same_file(const struct stat& a, int descriptor) {
  struct stat b {};
  return ::fstat(descriptor, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

Target find_target(const fs::path& path) {
  constexpr int kMostLinks = 40;  // as the system itself follows
  if (path == "-") return {Target::Kind::kDescriptor, path, STDOUT_FILENO, {}};
  Target target{Target::Kind::kReplace, path, -1, {}};
  struct stat status {};
  for (int links = 0; ::lstat(target.path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
       ++links) {
    if (links == kMostLinks) {
      errno = ELOOP;
      fail_with_errno(path, "cannot write");
    }
    if (const auto descriptor = descriptor_of(target.path)) {
      return {Target::Kind::kDescriptor, path, *descriptor, {}};
    }
    std::error_code error;
    const fs::path next = fs::read_symlink(target.path, error);
    if (error) fail("{}: cannot read the link: {}", target.path.string(), error.message());
    target.path = folder_of(target.path) / next;  // or `next` alone if that is absolute
  }
  if (::stat(target.path.c_str(), &status) != 0) {
    if (errno != ENOENT) fail_with_errno(path, "cannot write");
    return target;
  }
  // Replacing the file that standard output goes to would lose what is printed from then on.
  if (same_file(status, STDOUT_FILENO)) return {Target::Kind::kDescriptor, path, STDOUT_FILENO, {}};
  if (S_ISREG(status.st_mode)) {
    target.old = status;
  } else if (S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    fail_with_errno(path, "cannot write");
  } else {
    target.kind = Target::Kind::kDevice;
  }
  return target;
}

// --- Files with a name meanwhile, where the file system needs one ---

// The one to remove when a signal ends the program.
constexpr size_t kMaxPath = 4096;
std::array<char, kMaxPath> named_file;
volatile std::sig_atomic_t named_file_is_set = 0;

extern "C" void remove_named_file(int signal) {
  if (named_file_is_set != 0) ::unlink(named_file.data());
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void remove_at_signals(const std::string& path) {
  if (path.size() + 1 > named_file.size() || named_file_is_set != 0) return;
  std::memcpy(named_file.data(), path.c_str(), path.size() + 1);
  named_file_is_set = 1;
  for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
    struct sigaction action {};
    // Programs that handle signals end in an orderly way.
    if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) {
      std::signal(signal, remove_named_file);
    }
  }
}

constexpr mode_t kMode = 0644;

fs::path partial_name(const fs::path& target, const std::string& suffix) {
  constexpr size_t kLongestName = 255;
  std::string name = fmt::format(".{}{}", target.filename().string(), suffix);
  if (name.size() > kLongestName) name = fmt::format(".fmp{}", suffix);
  return folder_of(target) / name;
}

}  // namespace

struct OutputFile::State {
  Target target;
  FileDescriptor file;  // to write to, or none: target.descriptor
  std::string named;    // of a file that has a name meanwhile
  bool copied = false;  // through a file of its own to a target that cannot be sought in
  FileDescriptor pipe;  // which is then this one

  ~State() { discard(); }

  void discard() {
    if (named.empty()) return;
    ::unlink(named.c_str());
    if (named == named_file.data()) named_file_is_set = 0;
    named.clear();
  }

  int descriptor() const { return file.valid() ? file.get() : target.descriptor; }

  // Makes a file beside `place`, without a name where possible.
  void make(const fs::path& place) {
    file = FileDescriptor(::open(folder_of(place).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, kMode));
    if (file.valid() && ::access(fmt::format("/proc/self/fd/{}", file.get()).c_str(), F_OK) == 0)
      return;
    const fs::path path = partial_name(place, fmt::format(".{}.partial", ::getpid()));
    ::unlink(path.c_str());  // of a process that had this number before
    file = FileDescriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kMode));
    if (!file.valid()) fail_with_errno(place, "cannot create");
    named = path.string();
    remove_at_signals(named);
  }

  void keep_permissions() {
    if (!target.old) return;
    // Whether the owner can be kept is for the system to say.
    if (::fchown(file.get(), target.old->st_uid, target.old->st_gid) != 0) errno = 0;
    if (::fchmod(file.get(), target.old->st_mode & 07777) != 0) errno = 0;
  }

  // Gives the file a name beside the target and renames it over that. The name is the same for all
  // who write to this target, so that what one leaves who is killed in between is found by the
  // next; a lock on the file tells whether its owner lives.
  void put_in_place() {
    const fs::path path = named.empty() ? partial_name(target.path, ".partial") : fs::path(named);
    if (named.empty()) {
      (void)::flock(file.get(), LOCK_EX);
      const std::string own = fmt::format("/proc/self/fd/{}", file.get());
      constexpr int kTries = 10'000;  // of a millisecond
      for (int i = 0;
           ::linkat(AT_FDCWD, own.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0; ++i) {
        if (errno != EEXIST || i == kTries) fail_with_errno(target.path, "cannot replace");
        if (!remove_left_over(path)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
    if (::rename(path.c_str(), target.path.c_str()) != 0) {
      const int reason = errno;
      ::unlink(path.c_str());
      errno = reason;
      fail_with_errno(target.path, "cannot replace");
    }
    if (!named.empty() && named == named_file.data()) named_file_is_set = 0;
    named.clear();
  }

  // Removes the file unless somebody is about to rename it.
  static bool remove_left_over(const fs::path& path) {
    const FileDescriptor other(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    struct stat now {};
    return other.valid() && ::flock(other.get(), LOCK_EX | LOCK_NB) == 0 &&
           ::lstat(path.c_str(), &now) == 0 && same_file(now, other.get()) &&
           ::unlink(path.c_str()) == 0;
  }

  void copy_to_pipe() {
    std::array<char, 1 << 16> buffer;
    for (off_t at = 0;;) {
      const ssize_t got = ::pread(file.get(), buffer.data(), buffer.size(), at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_with_errno(target.path, "cannot be read back");
      if (got == 0) return;
      const int to = pipe.valid() ? pipe.get() : target.descriptor;
      if (!write_all(to, {buffer.data(), static_cast<size_t>(got)})) {
        fail_with_errno(target.path, "cannot write");
      }
      at += got;
    }
  }
};

OutputFile::OutputFile(const fs::path& path) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.target = find_target(path);
  switch (s.target.kind) {
    case Target::Kind::kReplace:
      s.make(s.target.path);
      s.keep_permissions();
      break;
    case Target::Kind::kDevice:
      s.file = FileDescriptor(::open(s.target.path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC));
      if (!s.file.valid()) fail_with_errno(path, "cannot write");
      break;
    case Target::Kind::kDescriptor:
      // In the order in which it was printed.
      if (s.target.descriptor == STDOUT_FILENO) std::fflush(stdout);
      break;
  }
}

OutputFile::~OutputFile() = default;
OutputFile::OutputFile(OutputFile&&) noexcept = default;

void OutputFile::write(std::string_view bytes) {
  if (!write_all(state_->descriptor(), bytes)) fail_with_errno(state_->target.path, "cannot write");
}

fs::path OutputFile::work_path() {
  State& s = *state_;
  if (s.target.kind != Target::Kind::kReplace && !std::exchange(s.copied, true)) {
    s.pipe = std::move(s.file);
    const char* folder = std::getenv("TMPDIR");  // NOLINT(concurrency-mt-unsafe): nobody sets it
    const fs::path temporary = folder != nullptr && *folder != '\0' ? folder : "/var/tmp";
    s.make(temporary / "fmp-output");
  }
  return s.named.empty() ? fs::path(fmt::format("/proc/self/fd/{}", s.file.get()))
                         : fs::path(s.named);
}

void OutputFile::commit() {
  State& s = *state_;
  if (s.target.kind != Target::Kind::kReplace) {
    if (s.copied) s.copy_to_pipe();
    FileDescriptor& device = s.copied ? s.pipe : s.file;
    if (device.valid() && !device.close()) fail_with_errno(s.target.path, "cannot write");
    return;
  }
  if (::fsync(s.file.get()) != 0) fail_with_errno(s.target.path, "cannot write");
  s.put_in_place();
  if (!s.file.close()) fail_with_errno(s.target.path, "cannot write");
  flush_directory(folder_of(s.target.path));
}

void write_file_atomically(const fs::path& path, std::string_view bytes) {
  write_files_atomically({{path, bytes}});
}

void write_files_atomically(const std::vector<std::pair<fs::path, std::string_view>>& files) {
  std::vector<OutputFile> outputs;
  for (const auto& [path, bytes] : files) {
    outputs.emplace_back(path);
    outputs.back().write(bytes);
  }
  for (OutputFile& output : outputs) output.commit();
}

}  // namespace fmp
