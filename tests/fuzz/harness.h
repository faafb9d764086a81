// SPDX-License-Identifier: MIT
// What the fuzz targets have in common. An input that is refused with an Error is fine; anything
// else that is thrown, a sanitizer's complaint, and more time or memory than the limits of
// tools/fuzz allow are findings.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "framework/error.h"

namespace fmp::fuzz {

// A directory in memory for as long as the program runs.
inline const std::filesystem::path& scratch() {
  static const std::filesystem::path path = [] {
    std::string name = (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") +
                       std::string("/fmp_fuzz_XXXXXX");
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    std::atexit([] {
      std::error_code ignored;
      std::filesystem::remove_all(scratch(), ignored);
    });
    return std::filesystem::path(name);
  }();
  return path;
}

// A file with these bytes, to be read by name.
inline std::filesystem::path file(const char* name, std::string_view bytes) {
  std::filesystem::path path = scratch() / name;
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

inline std::string_view text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

template <typename Body>
void refuse_or_run(const Body& body) {
  try {
    body();
  } catch (const Error&) {
    // One line for the user.
  }
}

}  // namespace fmp::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
