// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>

namespace fmp {

// Runs `body` in a process of its own first and throws Error, beginning with `where`, if that does
// not come to its end: for libraries in C that crash on damaged files, or run for ever. What the
// body throws or changes stays in that process; the caller does the same again. `body` may start no
// threads. Where there can be no further process nothing is tried.
void try_in_another_process(const std::string& where, const std::function<void()>& body);

}  // namespace fmp
