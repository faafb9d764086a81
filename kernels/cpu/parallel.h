// SPDX-License-Identifier: MIT
// Loops whose items threads share out. Threads that have nothing to do sleep: with other programs
// on the cores, one that turned in a loop would take the time that the others need to get done.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>

namespace fmp::cpu {

// Calls `work` on this thread and on at most `threads` - 1 others at the same time; returns when
// all have returned. Helpers that did not start by the time this thread's call returns are not
// waited for and never start, so `work` must see to it that one call does everything that is left.
// The first exception is thrown again here. May be called by several threads, and within `work`.
// Throws std::system_error where the system has no room for more threads.
void run_on_threads(int threads, const std::function<void()>& work);

// Items 0 .. count - 1, each given out once.
class SharedItems {
 public:
  explicit SharedItems(int64_t count) : count_(count) {}

  std::optional<int64_t> take() {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= count_) return std::nullopt;
    return item;
  }

 private:
  std::atomic<int64_t> next_ = 0;
  int64_t count_;
};

// Calls work(items) on up to `threads` threads; it takes items until there are none.
template <typename Work>
void share_items(int64_t count, int threads, const Work& work) {
  SharedItems items(count);
  run_on_threads(static_cast<int>(std::min<int64_t>(threads, count)), [&] { work(items); });
}

// Calls body(item) for items 0 .. count - 1, each on one of up to `threads` threads.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  share_items(count, threads, [&](SharedItems& items) {
    while (const std::optional<int64_t> item = items.take()) body(*item);
  });
}

}  // namespace fmp::cpu
