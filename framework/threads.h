// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <thread>

namespace fmp {

// The number of threads that is meant by an option where 0 stands for all cores.
inline int threads_or_all_cores(int threads) {
  if (threads > 0) return threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace fmp
