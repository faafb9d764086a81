// SPDX-License-Identifier: MIT
// Loops that threads share out: every item once, errors reach the caller, loops within loops and
// beside each other, and threads that wait use no processor time.
#include "kernels/cpu/parallel.h"

#include <gmock/gmock.h>

#include <chrono>
#include <ctime>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace fmp::cpu {
namespace {

using testing::Each;
using testing::Le;
using testing::SizeIs;

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(ParallelForTest, CallsEachItemOnceForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const int64_t count : {0, 1, 2, 5, 1000}) {
      std::vector<int> calls(static_cast<size_t>(count));
      parallel_for(count, threads, [&](int64_t item) { ++calls[static_cast<size_t>(item)]; });
      EXPECT_THAT(calls, Each(1)) << threads << " threads, " << count << " items";
    }
  }
}

TEST(ParallelForTest, SeveralThreadsTakePart) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  // Slow items: even on one core, others start while this thread sleeps in its own.
  parallel_for(16, 3, [&](int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const std::lock_guard lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  EXPECT_GT(seen.size(), 1U);
  EXPECT_THAT(seen, SizeIs(Le(3U)));
}

TEST(ParallelForTest, AnErrorReachesTheCallerAndTheNextLoopIsWhole) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    EXPECT_THROW(parallel_for(100, 3,
                              [](int64_t item) {
                                if (item == 17) throw std::runtime_error("seventeen");
                              }),
                 std::runtime_error);
    std::atomic<int64_t> sum = 0;
    parallel_for(100, 3, [&](int64_t item) { sum += item; });
    EXPECT_EQ(sum, 4950);
  }
}

TEST(ParallelForTest, LoopsWithinLoopsAndBesideEachOther) {
  std::atomic<int64_t> sum = 0;
  const auto nested = [&] {
    for (int repeat = 0; repeat < 50; ++repeat) {
      parallel_for(4, 2, [&](int64_t) { parallel_for(8, 3, [&](int64_t item) { sum += item; }); });
    }
  };
  std::thread other(nested);
  nested();
  other.join();
  EXPECT_EQ(sum, 2 * 50 * 4 * 28);
}

TEST(ParallelForTest, WaitingTakesNoProcessorTime) {
  parallel_for(8, 4, [](int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
  const double before = processor_seconds();
  // One thread works on the only long item, by sleeping; the others have nothing to do.
  parallel_for(4, 4, [](int64_t item) {
    if (item == 3) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(processor_seconds() - before, 0.1);
}

}  // namespace
}  // namespace fmp::cpu
