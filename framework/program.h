// SPDX-License-Identifier: MIT
// What the main functions of all programs have in common: exit codes, errors of one line, and
// standard streams that may be closed, full, or a pipe that nobody reads.
//
// Programs print their results to stdout as they like (fmt::print). run_main() sees to it that a
// result which did not get there is an error. Everything else goes to standard error through the
// functions here, which never fail: what cannot be told must not end a program.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace fmp {

inline constexpr int kExitSuccess = 0;
inline constexpr int kExitFailure = 1;        // and a line on standard error that says why
inline constexpr int kExitUsage = 2;          // a wrong command line, likewise
inline constexpr int kExitInterrupted = 130;  // as a shell reports SIGINT

// Runs a program and returns its exit code: what `body` returns, or, after an exception of which
// one line goes to standard error, kExitUsage (UsageError) or kExitFailure. A result that standard
// output did not take is such a failure. `hint` follows a message that memory ran out. To be called
// once, first in main.
int run_main(const std::function<int()>& body, std::string_view hint = {});

// What is wrong, in words and as an exit code.
struct Failure {
  int exit_code = kExitFailure;
  std::string message;
};
// The exception that is being handled. hint: as of run_main().
Failure describe_failure(std::string_view hint);

// Throws Error when standard output did not take all that was printed so far.
void flush_output();
// For who goes on without it: `error` (errno) is why, told at the end.
void note_lost_output(int error) noexcept;

// `text` as it is to standard error.
void write_to_stderr(std::string_view text) noexcept;

// `text` as it can stand in one line of at most some 300 characters: control characters and bytes
// that are no UTF-8 are escaped, and the middle of longer text is left out.
std::string one_line(std::string_view text);

// "warning: ..." and "note: ..." in a line each, to standard error.
void warn(std::string_view text);
template <typename... Args>
void note(fmt::format_string<Args...> format, Args&&... args) {
  write_to_stderr("note: " + one_line(fmt::format(format, std::forward<Args>(args)...)) + "\n");
}

}  // namespace fmp
