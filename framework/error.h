// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace fmp {

// A failure that the user can act on: bad data, a missing file, a full disk, a diverged training.
// what() is one line that names the file, field or value and what was expected. main() prints it
// after "error: " and exits with 1.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// A wrong command line: main() prints it and exits with 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// The loss of a training is no longer finite.
class DivergedError : public Error {
 public:
  using Error::Error;
};

// What an errno means, from any thread.
inline std::string errno_message(int code) { return std::generic_category().message(code); }

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace fmp
