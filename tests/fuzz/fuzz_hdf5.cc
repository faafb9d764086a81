// SPDX-License-Identifier: MIT
// A file in RadioML's layout, or nearly. The HDF5 library is not instrumented: what it does with a
// damaged file shows only by crashing.
#include "framework/data/radioml.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of one function

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RadioMlOptions options;
  options.path = fuzz::file("data.h5", fuzz::text(data, size)).string();
  options.threads = 1;
  options.memory_limit = 64 << 20;
  options.cache_dir = fuzz::scratch().string();
  fuzz::refuse_or_run([&] { open_radioml(options); });
  return 0;
}
