// SPDX-License-Identifier: MIT
// Stands in for NVTX where kernels run on the host: ranges are kept, so that tests see that each
// that was pushed was popped, and their names.
#pragma once

#include <string>
#include <vector>

// Level of the new range, from 0; negative on an error. NOLINTBEGIN: NVTX's names
int nvtxRangePushA(const char* message);
int nvtxRangePop();
// NOLINTEND

namespace simt {
// Names of the ranges that are open, outermost first.
const std::vector<std::string>& open_ranges();
// Names of all ranges since the last call, in the order in which they were pushed. Aborts when a
// range is open, or one was popped that was not pushed.
std::vector<std::string> take_ranges();
}  // namespace simt
