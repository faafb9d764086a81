// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string_view>

namespace fmp {

// Writes `bytes` to `path` so that, whatever happens, a reader finds either the old file or the
// whole new one: into a temporary beside it, flushed to the disk, renamed over `path`, and the
// directory flushed too. Throws Error that names the file and the system's reason.
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

}  // namespace fmp
