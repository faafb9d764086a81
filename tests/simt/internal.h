// SPDX-License-Identifier: MIT
// What the parts of the host runtime know of each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
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

// Interval between two barriers of a block, or a copy; no two blocks, launches or copies share one.
struct Intervals {
  uint64_t launch_first = 0, block_first = 0, now = 0;
  // Of the operation of a stream that runs, and before which nothing runs beside it.
  uint64_t operation_first = 0, ordered_before = 0;
};
extern Intervals intervals;

// What runs beside what (streams.cc). A clock has the number of operations of each stream that are
// known to be over.
using Clock = std::map<int, uint64_t>;
inline constexpr int kDefaultStream = 0;
void join(Clock& clock, const Clock& other);
int new_timeline(bool blocking);
void end_timeline(int stream);
// What follows is one operation of the stream, until the next begins.
void begin_operation(int stream);
// Whether the interval is of an operation that may run beside the present one.
bool is_concurrent(uint64_t interval);
Clock clock_of(int stream);  // of what was put on it so far
void wait_on_stream(int stream, const Clock& clock);
void wait_on_host(const Clock& clock);
bool host_has_waited_for(const Clock& clock);
void wait_for_everything();

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

// A fault that no thread made.
void set_fault(std::string text);

// Device memory (memory.cc).
// An access of the present operation as a whole; empty, or what it races with.
std::string access_range(const void* address, size_t bytes, bool writes);
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

// What blocks of a kernel know of each other by fences: at the begin of each.
void begin_fences_of_launch();
void begin_fences_of_block();

void count_access();

}  // namespace simt
