// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "framework/data/sample_format.h"

namespace fmp {

// Bytes of a file that are samples, one after the other without a gap in time.
struct Capture {
  int64_t first_byte = 0;
  int64_t bytes = 0;
  bool operator==(const Capture&) const = default;
};

// Where the samples of a SigMF recording are.
struct SigMf {
  std::filesystem::path data;  // the data set, or the archive that holds it
  SampleFormat format;
  std::vector<Capture> captures;
};

// Reads a recording's metadata: NAME.sigmf-meta with its data set, or both from an archive
// NAME.sigmf. `path` may name any of these, or NAME. Every field that says which bytes are samples,
// or that they are not what this project can take, is honoured or refused; framework/data/README.md
// lists them all. Throws Error of one line that names the file and the field.
SigMf read_sigmf(const std::filesystem::path& path);

}  // namespace fmp
