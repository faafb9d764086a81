// SPDX-License-Identifier: MIT
// What the main functions of the tools have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "framework/error.h"

namespace fmp {

// False when the user asked for help or the version, which is printed. Throws UsageError when the
// command line is wrong.
inline bool parse_command_line(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    app.exit(success);
    return false;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  return true;
}

// Runs `body` and returns the program's exit status: 0, or 2 after a wrong command line, or 1 after
// another failure, of which one line goes to standard error.
template <typename Body>
int run_main(const Body& body) {
  try {
    body();
    return 0;
  } catch (const UsageError& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}

}  // namespace fmp
