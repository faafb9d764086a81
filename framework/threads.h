// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <thread>

namespace fmp {

// More threads than these on a core only take turns, and each has its own buffers and stack.
inline constexpr int kMostThreadsOfACore = 4;

// The number of threads that is meant by an option where 0 stands for all cores; at most
// kMostThreadsOfACore for each of them (of which at least 16 are assumed), results do not depend on
// it.
inline int threads_or_all_cores(int threads) {
  constexpr int kFewCores = 16;
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  if (threads > 0) return std::min(threads, kMostThreadsOfACore * std::max(cores, kFewCores));
  return cores;
}

}  // namespace fmp
