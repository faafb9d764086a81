// SPDX-License-Identifier: MIT
// Runs the blocks of a kernel one after the other, and the threads of a block as fibers: a fiber
// takes threads one by one until one of them has to wait, then the next fiber goes on. So a kernel
// without barriers needs one fiber, and one with barriers as many as it has threads.
#include "tests/simt/simt.h"

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "tests/simt/fiber.h"
#include "tests/simt/internal.h"

namespace simt {

Thread* current = nullptr;
Intervals intervals;
Range parameters;

namespace {

Counters totals;
std::string last_fault;
Launch launch_now{};
Index3 block_now{};

// The lanes of a warp that meet at a warp primitive.
struct Warp {
  unsigned arrived = 0;
  unsigned mask = 0;
  Site site;
  std::array<uint64_t, kWarpSize> incoming{};
  std::array<uint64_t, kWarpSize> published{};  // of the last meeting
  unsigned interval = 0;
};

class Block;
Block* block_running = nullptr;

class Block {
 public:
  Block(unsigned threads, void (*body)(void*), void* arguments)
      : body_(body), arguments_(arguments), count_(threads), threads_(threads) {
    warps_.resize((threads + kWarpSize - 1) / kWarpSize);
  }

  // Whether the block ran to its end.
  bool run(Index3 index) {
    block_now = index;
    intervals.block_first = ++intervals.now;
    begin_fences_of_block();
    next_ = arrived_ = exited_ = 0;
    for (Warp& warp : warps_) warp = {};
    for (unsigned i = 0; i < count_; ++i) threads_[i] = Slot{};
    failed_ = false;
    block_running = this;
    while (!failed_ && (!ready_.empty() || next_ < count_)) {
      Fiber* fiber = nullptr;
      if (!ready_.empty()) {
        fiber = ready_.front()->fiber;
        current = &ready_.front()->thread;
        ready_.pop_front();
      } else {
        fiber = idle_fiber();
      }
      ++totals.switches;
      fiber->enter();
      if (failed_) break;
    }
    if (!failed_ && exited_ < count_) explain_standstill();
    current = nullptr;
    block_running = nullptr;
    ready_.clear();
    if (failed_) abandon_fibers();
    return !failed_;
  }

  void barrier(const Site& site) {
    Slot& me = slot_of(*current);
    if (exited_ > 0) {
      fault([&] {
        return std::string("barrier in divergent code: ") + std::to_string(exited_) +
               " threads of the block have left the kernel";
      });
    }
    if (arrived_ == 0) {
      barrier_site_ = site;
    } else if (barrier_site_ != site) {
      fault([&] {
        return std::string("barrier in divergent code: at line ") + std::to_string(site.line) +
               ", where others of the block wait at the one of line " +
               std::to_string(barrier_site_.line);
      });
    }
    if (++arrived_ < count_) {
      wait(me, site);
      return;
    }
    arrived_ = 0;
    ++intervals.now;
    for (Slot& slot : threads_) {
      if (&slot != &me) wake(slot);
    }
  }

  // All lanes of `mask` come here with a value; afterwards `published` holds them. The last one to
  // come calls at_meeting() with them, while the others wait.
  template <typename AtMeeting>
  const Warp& meet(unsigned mask, uint64_t value, const Site& site, const AtMeeting& at_meeting) {
    Slot& me = slot_of(*current);
    const unsigned first = me.thread.linear / kWarpSize * kWarpSize;
    const unsigned lane = me.thread.linear % kWarpSize, bit = 1U << lane;
    Warp& warp = warps_[first / kWarpSize];
    if ((mask & bit) == 0)
      fault([&] { return std::string("warp primitive: the calling lane is not in its mask"); });
    for (unsigned i = 0; i < kWarpSize; ++i) {
      if ((mask >> i & 1) == 0) continue;
      if (first + i >= count_) {
        fault([&] {
          return std::string("warp primitive: lane ") + std::to_string(i) +
                 " of the mask does not exist";
        });
      }
      if (threads_[first + i].thread.exited) {
        fault([&] {
          return std::string("warp primitive: lane ") + std::to_string(i) +
                 " of the mask has left the kernel";
        });
      }
    }
    if (warp.arrived == 0) {
      warp.mask = mask;
      warp.site = site;
    } else if (warp.mask != mask || warp.site != site) {
      fault([&] {
        return std::string("warp primitive at line ") + std::to_string(site.line) +
               " in divergent code: others of the warp wait at line " +
               std::to_string(warp.site.line) + ", or with another mask";
      });
    }
    warp.arrived |= bit;
    warp.incoming[lane] = value;
    if (warp.arrived != mask) {
      wait(me, site);
      return warp;
    }
    warp.arrived = 0;
    warp.published = warp.incoming;
    at_meeting(warp.published);
    ++warp.interval;
    for (unsigned i = 0; i < kWarpSize && first + i < count_; ++i) {
      threads_[first + i].thread.warp_interval = warp.interval;
      if ((mask >> i & 1) != 0 && i != lane) wake(threads_[first + i]);
    }
    return warp;
  }
  const Warp& meet(unsigned mask, uint64_t value, const Site& site) {
    return meet(mask, value, site, [](const auto&) {});
  }

  [[noreturn]] void fail(Thread& thread) {
    failed_ = true;
    slot_of(thread).fiber->leave();
    std::abort();  // a failed fiber is not entered again
  }

 private:
  struct Slot {
    Thread thread{};
    Fiber* fiber = nullptr;
  };

  // Thread is the first member of Slot.
  static Slot& slot_of(Thread& thread) { return reinterpret_cast<Slot&>(thread); }

  void wait(Slot& me, const Site& site) {
    me.thread.waits_at = site;
    me.fiber->leave();
  }
  void wake(Slot& slot) { ready_.push_back(&slot); }

  // Runs threads that have not started, on this fiber, until none is left.
  static void work(Fiber* fiber) {
    for (;;) {
      while (block_running->next_ < block_running->count_) block_running->run_next(fiber);
      idle_.push_back(fiber);
      fiber->leave();
    }
  }
  void run_next(Fiber* fiber) {
    Slot& slot = threads_[next_];
    slot.fiber = fiber;
    Thread& thread = slot.thread;
    const Index3& size = launch_now.block;
    thread.linear = next_++;
    thread.index = {thread.linear % size.x, thread.linear / size.x % size.y,
                    thread.linear / (size.x * size.y)};
    thread.stack_low = fiber->stack_low();
    thread.stack_high = fiber->stack_high();
    thread.warp_interval = warps_[thread.linear / kWarpSize].interval;
    current = &thread;
    body_(arguments_);
    thread.exited = true;
    ++exited_;
    if (arrived_ > 0) {
      fault([&] {
        return std::string("barrier in divergent code: this thread leaves the kernel while ") +
               std::to_string(arrived_) + " others wait at the barrier of line " +
               std::to_string(barrier_site_.line);
      });
    }
  }

  // Every thread that is left waits for something that will not come.
  void explain_standstill() {
    for (Slot& slot : threads_) {
      if (slot.thread.exited) continue;
      last_fault = "threads wait for each other at different places, this one at line " +
                   std::to_string(slot.thread.waits_at.line);
      add_place(last_fault, slot.thread);
      break;
    }
    failed_ = true;
  }

  static Fiber* idle_fiber() {
    if (idle_.empty()) {
      all_.push_back(std::make_unique<Fiber>(&Block::work));
      return all_.back().get();
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }
  static void abandon_fibers() {
    idle_.clear();
    for (const auto& fiber : all_) {
      fiber->restart();
      idle_.push_back(fiber.get());
    }
  }

 public:
  static void add_place(std::string& text, const Thread& thread) {
    const auto triple = [](const Index3& i) {
      return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) +
             ")";
    };
    text += "; block " + triple(block_now) + ", thread " + triple(thread.index);
  }

 private:
  static inline std::vector<std::unique_ptr<Fiber>> all_;
  static inline std::vector<Fiber*> idle_;

  void (*body_)(void*);
  void* arguments_;
  unsigned count_;
  std::vector<Slot> threads_;
  std::vector<Warp> warps_;
  std::deque<Slot*> ready_;
  unsigned next_ = 0, arrived_ = 0, exited_ = 0;
  Site barrier_site_;
  bool failed_ = false;
};

Block& running_block() {
  if (block_running == nullptr || current == nullptr) {
    std::fputs("simt: a device function was called outside a kernel\n", stderr);
    std::abort();
  }
  return *block_running;
}

}  // namespace

void record_fault(const Thread& thread, std::string text) {
  Block::add_place(text, thread);
  last_fault = std::move(text);
}

void set_fault(std::string text) { last_fault = std::move(text); }

void abandon(Thread& thread) { block_running->fail(thread); }

Index3 thread_index() { return running_block(), current->index; }
Index3 block_index() { return block_now; }
Index3 block_size() { return launch_now.block; }
Index3 grid_size() { return launch_now.grid; }

void barrier(const Site& site) { running_block().barrier(site); }

void sync_warp(unsigned mask, const Site& site) { running_block().meet(mask, 0, site); }

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, const Site& site) {
  const Warp& warp = running_block().meet(mask, value, site);
  if ((mask >> source & 1) == 0) {
    fault([&] {
      return std::string("shuffle from lane ") + std::to_string(source) +
             ", which does not take part";
    });
  }
  return warp.published[source];
}

unsigned ballot(unsigned mask, bool predicate, const Site& site) {
  const Warp& warp = running_block().meet(mask, predicate ? 1 : 0, site);
  unsigned bits = 0;
  for (int i = 0; i < kWarpSize; ++i) {
    if ((mask >> i & 1) != 0 && warp.published[static_cast<size_t>(i)] != 0) bits |= 1U << i;
  }
  return bits;
}

void meet_for(WarpWork work, void* mine, const Site& site) {
  constexpr unsigned kAll = 0xffffffffU;
  running_block().meet(kAll, std::bit_cast<uint64_t>(mine), site, [&](const auto& published) {
    std::array<void*, kWarpSize> of_lane{};
    for (size_t i = 0; i < of_lane.size(); ++i) of_lane[i] = std::bit_cast<void*>(published[i]);
    work(of_lane);
  });
}

bool run(const Launch& launch, void (*body)(void*), void* arguments, size_t argument_bytes) {
  ++totals.launches;
  launch_now = launch;
  intervals.launch_first = intervals.now + 1;
  begin_fences_of_launch();
  const std::byte* bytes = static_cast<const std::byte*>(arguments);
  parameters = {bytes, bytes + argument_bytes};
  set_dynamic_shared_bytes(launch.shared_bytes);
  protect_device_memory(true);
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  Block block(threads, body, arguments);
  bool good = true;
  for (unsigned z = 0; good && z < launch.grid.z; ++z) {
    for (unsigned y = 0; good && y < launch.grid.y; ++y) {
      for (unsigned x = 0; good && x < launch.grid.x; ++x) {
        good = block.run({x, y, z});
        ++totals.blocks;
        totals.threads += threads;
      }
    }
  }
  protect_device_memory(false);
  return good;
}

const std::string& fault_text() { return last_fault; }
const Counters& counters() { return totals; }
void count_access() { ++totals.accesses; }

}  // namespace simt
