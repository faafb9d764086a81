// SPDX-License-Identifier: MIT
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/simt/nvtx3/nvToolsExt.h"

namespace {

std::vector<std::string> open, all;

void fail(const std::string& what) {
  std::fprintf(stderr, "simt: %s\n", what.c_str());
  std::abort();
}

}  // namespace

int nvtxRangePushA(const char* message) {
  if (message == nullptr) fail("an NVTX range without a name");
  open.emplace_back(message);
  all.emplace_back(message);
  return static_cast<int>(open.size()) - 1;
}

int nvtxRangePop() {
  if (open.empty()) fail("an NVTX range was popped that was not pushed");
  open.pop_back();
  return static_cast<int>(open.size());
}

namespace simt {

const std::vector<std::string>& open_ranges() { return open; }

std::vector<std::string> take_ranges() {
  if (!open.empty()) fail("the NVTX range '" + open.back() + "' was not popped");
  return std::exchange(all, {});
}

}  // namespace simt
