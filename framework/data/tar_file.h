// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fmp {

// A regular file in a tar archive: where its bytes are in the archive.
struct TarMember {
  std::string name;
  int64_t first_byte = 0, bytes = 0;
};

// The regular files of an uncompressed tar archive (POSIX ustar and pax, and GNU's long names and
// large sizes), at most kMaxTarMembers. Throws Error of one line that names the archive.
inline constexpr size_t kMaxTarMembers = 4096;
std::vector<TarMember> list_tar(const std::filesystem::path& archive);

}  // namespace fmp
