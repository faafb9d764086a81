// SPDX-License-Identifier: MIT
// Metadata beside a data set of 4 KB, or, where the input does not begin with '{', an archive; then
// the frames of every capture.
#include <vector>

#include "framework/data/sample_stream.h"
#include "framework/data/sigmf.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of one function

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const bool archive = size > 0 && data[0] != '{';
  const std::filesystem::path path =
      fuzz::file(archive ? "r.sigmf" : "r.sigmf-meta", fuzz::text(data, size));
  static const std::string samples(4096, '?');
  if (!archive) fuzz::file("r.sigmf-data", samples);
  fuzz::refuse_or_run([&] {
    const SigMf recording = read_sigmf(path);
    std::ifstream in(recording.data, std::ios::binary);
    std::vector<float> values;
    for (const Capture& capture : recording.captures) {
      in.clear();
      in.seekg(capture.first_byte);
      SampleStream stream(in, "x",
                          {recording.format, Normalization::kStretch, 16, 8, capture.bytes});
      while (stream.read(16, values) == 16) {
      }
    }
  });
  return 0;
}
