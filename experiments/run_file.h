// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace fmp {

// run.json, the command line of the run in a directory: written first, read by --resume.
inline constexpr const char* kRunFile = "run.json";

// Replaces the file atomically.
void write_run_file(const std::filesystem::path& directory,
                    const std::vector<std::string>& arguments);
// The command line of the run in `directory`. Throws Error when there is none.
std::vector<std::string> stored_arguments(const std::filesystem::path& directory);

}  // namespace fmp
