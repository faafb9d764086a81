// SPDX-License-Identifier: MIT
#include "framework/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <new>
#include <stdexcept>
#include <vector>

#include "framework/error.h"
#include "kernels/out_of_memory.h"

#if defined(__has_feature)
#define FMP_HAS_FEATURE(x) __has_feature(x)
#else
#define FMP_HAS_FEATURE(x) 0
#endif

// Whoever runs out of memory is to be told how much was asked for. Sanitizers have allocators of
// their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&           \
    !FMP_HAS_FEATURE(address_sanitizer) && !FMP_HAS_FEATURE(thread_sanitizer) && \
    !FMP_HAS_FEATURE(memory_sanitizer)
void* operator new(size_t bytes) {
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;  // NOLINT
  throw fmp::OutOfMemory(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }          // NOLINT
void operator delete(void* memory, size_t) noexcept { std::free(memory); }  // NOLINT
#endif

namespace fmp {
namespace {

// In which output was lost, if it was.
int output_error = 0;

std::string bytes_text(size_t bytes) {
  constexpr std::array kUnits = {"bytes", "KB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.3g} {}", value, kUnits[unit]);
}

// Addresses that the process has taken: what limits count.
size_t bytes_in_use() {
  std::ifstream status("/proc/self/statm");
  size_t pages = 0;
  status >> pages;
  return pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

void print_error(std::string_view message) {
  write_to_stderr("error: " + one_line(message) + "\n");
}

// Exceptions that leave a thread or a parallel region.
[[noreturn]] void end_program() {
  if (std::current_exception() == nullptr) std::abort();
  const Failure failure = describe_failure({});
  print_error(failure.message);
  ::_exit(failure.exit_code);
}

// Descriptors 0 to 2 are standard streams: were one closed, the next file that is opened would get
// its number, and be read or printed to.
void keep_standard_descriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // Opened the wrong way round: use of input and output fails as if they were closed.
    const int mode = fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY;
    if (::open("/dev/null", mode) != fd) std::abort();
  }
}

size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80                       ? 1
                        : byte(0) >= 0xC2 && byte(0) < 0xE0  ? 2
                        : byte(0) >= 0xE0 && byte(0) < 0xF0  ? 3
                        : byte(0) >= 0xF0 && byte(0) <= 0xF4 ? 4
                                                             : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  // C1 controls, encoded too long, surrogates, beyond the last code point.
  if (length == 2 && byte(0) == 0xC2 && byte(1) < 0xA0) return 0;
  if (length == 3 && ((byte(0) == 0xE0 && byte(1) < 0xA0) || (byte(0) == 0xED && byte(1) >= 0xA0)))
    return 0;
  if (length == 4 && ((byte(0) == 0xF0 && byte(1) < 0x90) || (byte(0) == 0xF4 && byte(1) >= 0x90)))
    return 0;
  return length;
}

}  // namespace

std::string one_line(std::string_view text) {
  constexpr size_t kHead = 200, kTail = 90;  // characters that are kept of longer text
  std::vector<std::string> characters;
  while (!text.empty()) {
    size_t length = utf8_length(text);
    const auto byte = static_cast<unsigned char>(text[0]);
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      length = 1;
      characters.push_back(byte == '\n'   ? "\\n"
                           : byte == '\t' ? "\\t"
                           : byte == '\r' ? "\\r"
                                          : fmt::format("\\x{:02x}", byte));
    } else {
      characters.emplace_back(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  std::string line;
  const bool whole = characters.size() <= kHead + kTail + 5;
  for (size_t i = 0; i < characters.size(); ++i) {
    if (!whole && i == kHead) {
      line += " ... ";
      i = characters.size() - kTail;
    }
    line += characters[i];
  }
  return line;
}

void write_to_stderr(std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void warn(std::string_view text) { write_to_stderr("warning: " + one_line(text) + "\n"); }

void note_lost_output(int error) noexcept {
  if (output_error == 0) output_error = error;
}

void flush_output() {
  if (std::fflush(stdout) != 0) {
    note_lost_output(errno);
  } else if (std::ferror(stdout) == 0) {
    return;
  }
  throw Error(output_error != 0
                  ? "standard output cannot be written: " + errno_message(output_error)
                  : std::string("standard output cannot be written"));
}

Failure describe_failure(std::string_view hint) {
  const auto out_of_memory = [&](const std::string& what) {
    return Failure{kExitFailure, hint.empty() ? what : fmt::format("{}; {}", what, hint)};
  };
  try {
    throw;
  } catch (const UsageError& error) {
    return {kExitUsage, error.what()};
  } catch (const OutOfMemory& error) {
    return out_of_memory(
        fmt::format("out of memory: {} were asked for", bytes_text(error.bytes())));
  } catch (const std::bad_alloc&) {
    return out_of_memory(
        fmt::format("out of memory: {} of addresses are in use and more was asked for",
                    bytes_text(bytes_in_use())));
  } catch (const std::length_error&) {
    return out_of_memory("out of memory: more was asked for than can be addressed");
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0 && dynamic_cast<const Error*>(&error) == nullptr) {
      // What fmt::print() throws names no file.
      return {kExitFailure, fmt::format("standard output cannot be written ({})", error.what())};
    }
    return {kExitFailure, error.what()};
  } catch (...) {
    return {kExitFailure, "an exception of an unknown type"};
  }
}

int run_main(const std::function<int()>& body, std::string_view hint) {
  keep_standard_descriptors();
  std::signal(SIGXFSZ, SIG_IGN);  // a file at the limit of its size is a failed write, with a line
  std::set_terminate(end_program);
  int exit_code = kExitFailure;
  try {
    exit_code = body();
    flush_output();
    // Some file systems say only now that they are full.
    if (std::fclose(stdout) != 0) {
      fail("standard output cannot be written: {}", errno_message(errno));
    }
  } catch (...) {
    const Failure failure = describe_failure(hint);
    print_error(failure.message);
    exit_code = failure.exit_code;
  }
  return exit_code;
}

}  // namespace fmp
