// SPDX-License-Identifier: MIT
// What the parts of the host runtime know of each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/simt/simt.h"

namespace simt {

inline constexpr int kWarpSize = 32, kMaxThreads = 1024;

// Of a running thread: what its accesses are stamped with.
struct Thread {
  Index3 index{};
  unsigned linear = 0;                   // in its block
  const std::byte* stack_low = nullptr;  // its local memory
  const std::byte* stack_high = nullptr;
  unsigned warp_interval = 0;  // counts the meetings of its warp
  Site waits_at;
  bool exited = false;
};

// The thread that runs, null outside kernels. Not thread-local: with -fsanitize=undefined, GCC 12
// takes the address of such a variable of another file for null.
extern Thread* current;

// Interval between two barriers of a block; no two blocks or launches share one.
struct Intervals {
  uint64_t launch_first = 0, block_first = 0, now = 0;
};
extern Intervals intervals;

// Memory that threads may read without further ado: the parameters of the kernel.
struct Range {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
  bool contains(const void* address, size_t bytes) const {
    const std::byte* p = static_cast<const std::byte*>(address);
    return p >= begin && p < end && bytes <= static_cast<size_t>(end - p);
  }
};
extern Range parameters;

// The two halves of fault(): the second one never returns to the fiber, so nothing of the first may
// be left on its stack.
void record_fault(const Thread& thread, std::string text);
[[noreturn]] void abandon(Thread& thread);

// Ends the kernel with a fault of the current thread. text(): says what is wrong; it runs as the
// host, as the standard library's templates may be instrumented, too.
template <typename Text>
[[noreturn]] void fault(const Text& text) {
  Thread* thread = current;
  current = nullptr;
  record_fault(*thread, text());
  abandon(*thread);
}

// Meeting point of all 32 lanes of a warp; the last one runs work on what each lane brings, in the
// order of the lanes, before any goes on.
using WarpWork = void (*)(const std::array<void*, kWarpSize>& of_lane);
void meet_for(WarpWork work, void* mine, const Site& site);

// Device memory (memory.cc).
void protect_device_memory(bool accessible);
void set_dynamic_shared_bytes(size_t bytes);
// In bounds of one allocation; device memory only.
bool in_one_allocation(const void* address, size_t bytes);
bool is_device_address(const void* address);
void mark_initialised(const void* address, size_t bytes);
void copy_initialised(void* to, const void* from, size_t bytes);
// nullptr: no memory left.
void* allocate(size_t bytes);
bool release(void* address);
void release_everything();
size_t free_bytes();
size_t total_bytes();

void count_access();

}  // namespace simt
