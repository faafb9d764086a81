// SPDX-License-Identifier: MIT
// Device memory, and the check of every access to it and to shared memory.
//
// Device memory is one range of addresses that the host can only touch while a kernel or a copy
// runs. Allocations lie apart and are never reused, so that an access out of bounds or after
// cudaFree meets a byte that belongs to nothing. Beside each byte stand its state and the stamps of
// its last writer and reader; shared memory has stamps, too.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/simt/internal.h"
#include "tests/simt/library.h"

// Dynamic shared memory of the block that runs: kernels/cuda/launch.h declares it.
namespace fmp::cuda {
alignas(16) thread_local unsigned char dynamic_shared_bytes[simt::kMaxSharedBytes];
}

namespace simt {
namespace {

constexpr size_t kArenaBytes = size_t{8} << 30;  // of addresses; memory is taken where used
constexpr size_t kGap = 256;                     // between allocations, and their alignment

enum State : uint8_t { kNothing = 0, kUninitialised = 1, kInitialised = 2 };

// Who accessed a byte last.
struct Stamp {
  uint64_t interval : 36;
  uint64_t warp_interval : 16;
  uint64_t thread : 10;
  // Readers: several threads of one warp / of several warps. Writers: several_in_warp = atomically.
  uint64_t several_in_warp : 1;
  uint64_t several_warps : 1;
};
static_assert(sizeof(Stamp) == 8);

struct Stamps {
  Stamp writer, reader;
};

template <typename T>
T* reserve_addresses(size_t count, int protection) {
  void* p = mmap(nullptr, count * sizeof(T), protection,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    std::perror("simt: cannot reserve addresses for device memory");
    std::abort();
  }
  return static_cast<T*>(p);
}

struct Arena {
  std::byte* base = reserve_addresses<std::byte>(kArenaBytes, PROT_NONE);
  uint8_t* state = reserve_addresses<uint8_t>(kArenaBytes, PROT_READ | PROT_WRITE);
  Stamps* stamps = reserve_addresses<Stamps>(kArenaBytes, PROT_READ | PROT_WRITE);
  size_t used = kGap;                    // addresses given out
  std::map<size_t, size_t> allocations;  // offset -> bytes
  // Readers of bytes that other streams have read since, without an event between: their intervals.
  std::unordered_map<size_t, std::vector<uint64_t>> more_readers;
  bool accessible = false;
};

Arena& arena() {
  static Arena a;
  return a;
}

// Shared memory: the thread-local variables of this program, __shared__ ones among them.
struct SharedMemory {
  std::byte* base = nullptr;
  size_t bytes = 0;
  std::vector<Stamps> stamps;
  size_t dynamic_end = 0;  // of the valid part of dynamic_shared_bytes

  SharedMemory() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          auto* memory = static_cast<SharedMemory*>(self);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
            memory->base = static_cast<std::byte*>(info->dlpi_tls_data);
            memory->bytes = info->dlpi_phdr[i].p_memsz;
          }
          return 1;  // the program itself comes first; libraries hold no kernels
        },
        this);
    stamps.resize(bytes);
  }
};

SharedMemory& shared_memory() {
  static SharedMemory memory;
  return memory;
}

enum class Kind { kRead, kWrite, kAtomic };

const char* name(Kind kind) {
  return kind == Kind::kRead ? "read" : kind == Kind::kWrite ? "write" : "atomic access";
}

const std::string kByOtherStream = " by work of another stream with no event between";

std::string describe(Kind kind, size_t bytes, const char* where) {
  return std::string(name(kind)) + " of " + std::to_string(bytes) + " bytes " + where;
}

// Fences of the launch that runs. As blocks run one after the other, an atomic access comes after
// all of those of earlier blocks, whatever they count.
struct Fences {
  struct Range {
    uint64_t begin, end;
  };
  std::vector<Range> published;  // intervals of each earlier block, up to its fence
  uint64_t fenced = 0;           // of this block: its last fence, 0 = none
  bool met_others = false, sees_others = false;

  bool publishes(uint64_t interval) const {
    const auto behind =
        std::ranges::upper_bound(published, interval, {}, [](const Range& r) { return r.begin; });
    return behind != published.begin() && interval <= std::prev(behind)->end;
  }
};
Fences fences;

// Whether the access of `stamp` may happen at the same time as one of the current thread.
// first: the interval from which on accesses can meet; of the launch, or of the block for shared
// memory, which each block has anew. What is older may be of another stream.
bool unordered(const Stamp& stamp, bool several, uint64_t first, bool of_device) {
  const Thread& me = *current;
  if (stamp.interval < first) return of_device && is_concurrent(stamp.interval);
  if (stamp.interval < intervals.block_first) {  // another block
    return !of_device || !fences.sees_others || !fences.publishes(stamp.interval);
  }
  if (stamp.interval != intervals.now) return false;  // a barrier lies between
  if (several && stamp.several_warps) return true;
  if (stamp.thread / kWarpSize != me.linear / kWarpSize) return true;
  if (stamp.warp_interval != (me.warp_interval & 0xffff)) return false;
  return stamp.thread != me.linear || (several && stamp.several_in_warp);
}

[[noreturn]] void race(Kind kind, const char* memory, const char* other, const Stamp& stamp) {
  const bool same_block = stamp.interval >= intervals.block_first;
  const bool other_stream = stamp.interval < intervals.operation_first;
  fault([&] {
    return std::string("race on ") + memory + " memory: " + name(kind) + " and " + other +
           (other_stream ? kByOtherStream
                         : " by thread " + std::to_string(stamp.thread) +
                               (same_block ? " of the same block with no barrier between"
                                           : " of another block"));
  });
}

// A reader that may be running when another one takes its stamp is kept.
void keep_reader(const Stamps& stamps, size_t offset) {
  if (is_concurrent(stamps.reader.interval)) {
    arena().more_readers[offset].push_back(stamps.reader.interval);
  }
}
// Whether one of those may be running still; they are forgotten.
bool meets_other_readers(size_t offset) {
  auto& more = arena().more_readers;
  if (more.empty()) return false;
  const auto it = more.find(offset);
  if (it == more.end()) return false;
  const bool meets = std::ranges::any_of(it->second, is_concurrent);
  more.erase(it);
  return meets;
}
bool is_of_device(const Stamps& stamps) {
  return &stamps >= arena().stamps && &stamps < arena().stamps + kArenaBytes;
}

void stamp_access(Stamps& stamps, Kind kind, const char* memory, uint64_t first) {
  const Thread& me = *current;
  const bool both_atomic = kind == Kind::kAtomic && stamps.writer.several_in_warp;
  const bool of_device = is_of_device(stamps);
  if (!both_atomic && unordered(stamps.writer, false, first, of_device))
    race(kind, memory, "write", stamps.writer);
  const Stamp mine{intervals.now, me.warp_interval & 0xffff, me.linear, 0, 0};
  if (kind == Kind::kRead) {
    Stamp next = mine;
    const Stamp& before = stamps.reader;
    if (of_device && is_concurrent(before.interval)) {
      keep_reader(stamps, static_cast<size_t>(&stamps - arena().stamps));
    }
    if (before.interval == intervals.now && before.thread != me.linear) {
      next.several_warps =
          before.several_warps || before.thread / kWarpSize != me.linear / kWarpSize;
      next.several_in_warp = 1;
    } else if (before.interval == intervals.now) {
      next.several_warps = before.several_warps;
      next.several_in_warp = before.several_in_warp;
    }
    stamps.reader = next;
    return;
  }
  if (unordered(stamps.reader, true, first, of_device)) race(kind, memory, "read", stamps.reader);
  if (of_device && meets_other_readers(static_cast<size_t>(&stamps - arena().stamps))) {
    race(kind, memory, "read", {});
  }
  stamps.writer = mine;
  stamps.writer.several_in_warp = kind == Kind::kAtomic;
}

// Stamps of neighbouring bytes are mostly alike, as they were accessed together: those need no
// check of their own.
void stamp_range(Stamps* stamps, size_t bytes, Kind kind, const char* memory, uint64_t first) {
  const Stamps before = stamps[0];
  stamp_access(stamps[0], kind, memory, first);
  for (size_t i = 1; i < bytes; ++i) {
    if (std::memcmp(&stamps[i], &before, sizeof(Stamps)) == 0) {
      stamps[i] = stamps[0];
    } else {
      stamp_access(stamps[i], kind, memory, first);
    }
  }
}

void check_device(size_t offset, size_t bytes, Kind kind) {
  Arena& a = arena();
  for (size_t i = offset; i < offset + bytes; ++i) {
    if (i >= kArenaBytes || a.state[i] == kNothing) {
      fault([&] { return describe(kind, bytes, "outside every allocation of device memory"); });
    }
    if (kind != Kind::kWrite && a.state[i] == kUninitialised) {
      fault([&] { return describe(kind, bytes, "of device memory that was never written"); });
    }
    a.state[i] = kInitialised;
  }
  stamp_range(a.stamps + offset, bytes, kind, "device", intervals.launch_first);
}

void check_shared(size_t offset, size_t bytes, Kind kind) {
  SharedMemory& memory = shared_memory();
  const auto* dynamic = reinterpret_cast<std::byte*>(fmp::cuda::dynamic_shared_bytes);
  const size_t begin = static_cast<size_t>(dynamic - memory.base);
  const bool past_dynamic =
      offset >= begin && offset < begin + kMaxSharedBytes && offset + bytes > memory.dynamic_end;
  if (past_dynamic || offset + bytes > memory.bytes) {
    fault([&] { return describe(kind, bytes, "outside the block's shared memory"); });
  }
  Stamps* stamps = memory.stamps.data() + offset;
  for (size_t i = 0; kind != Kind::kWrite && i < bytes; ++i) {
    if (stamps[i].writer.interval < intervals.block_first) {
      fault([&] { return describe(kind, bytes, "of shared memory that this block never wrote"); });
    }
  }
  stamp_range(stamps, bytes, kind, "shared", intervals.block_first);
}

void check(const void* address, size_t bytes, Kind kind) {
  if (current == nullptr) return;  // the host's own accesses
  const std::byte* p = static_cast<const std::byte*>(address);
  if (p >= current->stack_low && p < current->stack_high) return;
  count_access();
  const Arena& a = arena();
  if (const size_t offset = static_cast<size_t>(p - a.base); offset < kArenaBytes) {
    check_device(offset, bytes, kind);
    return;
  }
  const SharedMemory& memory = shared_memory();
  if (const size_t offset = static_cast<size_t>(p - memory.base); offset < memory.bytes) {
    check_shared(offset, bytes, kind);
    return;
  }
  if (kind == Kind::kRead && parameters.contains(address, bytes)) return;
  fault([&] { return describe(kind, bytes, "through a pointer to host memory or to nothing"); });
}

}  // namespace

std::string access_range(const void* address, size_t bytes, bool writes) {
  Arena& a = arena();
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - a.base);
  const auto race_with = [&](const char* other) {
    return std::string("race on device memory: ") + (writes ? "write" : "read") + " and " + other +
           kByOtherStream;
  };
  const Stamp mine{intervals.operation_first, 0, 0, 0, 0};
  for (size_t i = offset; i < offset + bytes; ++i) {
    Stamps& stamps = a.stamps[i];
    if (is_concurrent(stamps.writer.interval)) return race_with("write");
    if (!writes) {
      keep_reader(stamps, i);
      stamps.reader = mine;
      continue;
    }
    if (is_concurrent(stamps.reader.interval) || meets_other_readers(i)) return race_with("read");
    stamps.writer = mine;
  }
  return "";
}

void check_alignment(const void* address, size_t bytes) {
  if (current == nullptr || reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fault([&] { return "misaligned access to " + std::to_string(bytes) + " bytes"; });
}

void check_atomic(const void* address, size_t bytes) {
  check(address, bytes, Kind::kAtomic);
  if (current == nullptr || !is_device_address(address)) return;
  fences.met_others = true;
  if (fences.fenced == 0) return;
  if (fences.published.empty() || fences.published.back().begin != intervals.block_first) {
    fences.published.push_back({intervals.block_first, 0});
  }
  fences.published.back().end = fences.fenced;
}

void fence() {
  fences.fenced = intervals.now;
  fences.sees_others = fences.sees_others || fences.met_others;
}
void begin_fences_of_launch() { fences.published.clear(); }
void begin_fences_of_block() {
  fences.fenced = 0;
  fences.met_others = fences.sees_others = false;
}

void protect_device_memory(bool accessible) {
  Arena& a = arena();
  if (a.accessible == accessible) return;
  a.accessible = accessible;
  if (mprotect(a.base, a.used, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
    std::perror("simt: mprotect");
    std::abort();
  }
}

void set_dynamic_shared_bytes(size_t bytes) {
  SharedMemory& memory = shared_memory();
  const auto* begin = reinterpret_cast<std::byte*>(fmp::cuda::dynamic_shared_bytes);
  memory.dynamic_end = static_cast<size_t>(begin - memory.base) + bytes;
}

bool is_device_address(const void* address) {
  return static_cast<size_t>(static_cast<const std::byte*>(address) - arena().base) < kArenaBytes;
}

bool in_one_allocation(const void* address, size_t bytes) {
  const Arena& a = arena();
  const size_t offset = static_cast<size_t>(static_cast<const std::byte*>(address) - a.base);
  auto it = a.allocations.upper_bound(offset);
  if (it == a.allocations.begin()) return false;
  --it;
  return offset >= it->first && offset + bytes <= it->first + it->second;
}

void mark_initialised(const void* address, size_t bytes) {
  Arena& a = arena();
  std::memset(a.state + (static_cast<const std::byte*>(address) - a.base), kInitialised, bytes);
}

bool is_initialised(const void* address, size_t bytes) {
  const Arena& a = arena();
  const uint8_t* state = a.state + (static_cast<const std::byte*>(address) - a.base);
  return std::all_of(state, state + bytes, [](uint8_t s) { return s == kInitialised; });
}

std::string Extent::check(bool is_read) const {
  if (run == 0 || lines == 0 || batches == 0) return "";
  if (!is_device_address(data)) return std::string(what) + " is not in device memory";
  const auto bytes = static_cast<size_t>(end() - static_cast<const std::byte*>(data));
  if (!in_one_allocation(data, bytes)) {
    return std::string(what) + ": its " + std::to_string(bytes) + " bytes leave the allocation";
  }
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t l = 0; l < lines; ++l) {
      const auto line_bytes = static_cast<size_t>(4 * run);
      if (is_read && !is_initialised(at(b, l), line_bytes)) {
        return std::string(what) + " holds memory that was never written";
      }
      if (std::string race = access_range(at(b, l), line_bytes, !is_read); !race.empty()) {
        return std::string(what) + ": " + race;
      }
    }
  }
  return "";
}

void copy_initialised(void* to, const void* from, size_t bytes) {
  Arena& a = arena();
  std::memmove(a.state + (static_cast<std::byte*>(to) - a.base),
               a.state + (static_cast<const std::byte*>(from) - a.base), bytes);
}

void* allocate(size_t bytes) {
  Arena& a = arena();
  if (bytes > kArenaBytes - a.used || kArenaBytes - a.used - bytes < 2 * kGap) return nullptr;
  const size_t offset = a.used;
  a.used = (offset + bytes + kGap + kGap - 1) / kGap * kGap;
  a.allocations.emplace(offset, bytes);
  std::memset(a.state + offset, kUninitialised, bytes);
  return a.base + offset;
}

bool release(void* address) {
  Arena& a = arena();
  const size_t offset = static_cast<size_t>(static_cast<std::byte*>(address) - a.base);
  const auto it = a.allocations.find(offset);
  if (it == a.allocations.end()) return false;
  std::memset(a.state + offset, kNothing, it->second);
  // Whole pages go back to the system.
  constexpr size_t kPage = 4096;
  const size_t first = (offset + kPage - 1) / kPage * kPage;
  const size_t last = (offset + it->second) / kPage * kPage;
  if (first < last) {
    madvise(a.base + first, last - first, MADV_DONTNEED);
    madvise(a.stamps + first, (last - first) * sizeof(Stamps), MADV_DONTNEED);
  }
  if (!a.more_readers.empty()) {
    std::erase_if(a.more_readers, [&](const auto& entry) {
      return entry.first >= offset && entry.first < offset + it->second;
    });
  }
  a.allocations.erase(it);
  return true;
}

void release_everything() {
  Arena& a = arena();
  while (!a.allocations.empty()) release(a.base + a.allocations.begin()->first);
}

size_t total_bytes() { return kArenaBytes; }
size_t free_bytes() { return kArenaBytes - arena().used; }

}  // namespace simt

// What -fsanitize=thread calls before every access. NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" {
#define SIMT_ACCESS(bytes)                                                                   \
  void __tsan_read##bytes(void* p) { simt::check(p, bytes, simt::Kind::kRead); }             \
  void __tsan_write##bytes(void* p) { simt::check(p, bytes, simt::Kind::kWrite); }           \
  void __tsan_unaligned_read##bytes(void* p) { simt::check(p, bytes, simt::Kind::kRead); }   \
  void __tsan_unaligned_write##bytes(void* p) { simt::check(p, bytes, simt::Kind::kWrite); } \
  void __tsan_read_write##bytes(void* p) {                                                   \
    simt::check(p, bytes, simt::Kind::kRead);                                                \
    simt::check(p, bytes, simt::Kind::kWrite);                                               \
  }                                                                                          \
  static_assert(true)
SIMT_ACCESS(1);
SIMT_ACCESS(2);
SIMT_ACCESS(4);
SIMT_ACCESS(8);
SIMT_ACCESS(16);
#undef SIMT_ACCESS
void __tsan_read_range(void* p, size_t bytes) { simt::check(p, bytes, simt::Kind::kRead); }
void __tsan_write_range(void* p, size_t bytes) { simt::check(p, bytes, simt::Kind::kWrite); }
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  simt::check(from, bytes, simt::Kind::kRead);
  simt::check(to, bytes, simt::Kind::kWrite);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  simt::check(to, bytes, simt::Kind::kWrite);
  return std::memset(to, value, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  simt::check(from, bytes, simt::Kind::kRead);
  simt::check(to, bytes, simt::Kind::kWrite);
  return std::memmove(to, from, bytes);
}
// The guard of a static variable of the host's code.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int /*order*/) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
}
// NOLINTEND(bugprone-reserved-identifier)
