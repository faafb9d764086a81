// SPDX-License-Identifier: MIT
// What runs at the same time on a device. Here all work runs when it is put on its stream, one
// after the other, so that vector clocks tell what a device may do side by side: each stream counts
// its operations (kernels, copies, memsets, calls of libraries) and knows up to which operation of
// every other stream its own ones must wait, by events and by the host, which waits for streams and
// events before it puts more on a stream. An access to device memory is stamped with the interval
// of its operation (see internal.h); one by an operation that the present one need not wait for is
// a race.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tests/simt/internal.h"

namespace simt {
namespace {

struct Timeline {
  bool blocking;                         // waits for the default stream and it for this one
  Clock clock;                           // own operations included
  std::vector<uint64_t> first_interval;  // of its operations; number 1 stands first
};
struct Operation {
  uint64_t first_interval;
  int stream;
  uint64_t number;
};

// A function's static, as streams are created by static objects, too.
struct All {
  int next_stream = 1;
  std::map<int, Timeline> streams{{kDefaultStream, {true, {}, {}}}};
  std::vector<Operation> operations;
  Clock host, now;
  int stream_now = kDefaultStream;
};
All& all() {
  static All a;
  return a;
}

uint64_t known(const Clock& clock, int stream) {
  const auto it = clock.find(stream);
  return it == clock.end() ? 0 : it->second;
}

}  // namespace

void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) clock[stream] = std::max(clock[stream], number);
}

int new_timeline(bool blocking) {
  All& a = all();
  a.streams.emplace(a.next_stream, Timeline{blocking, {}, {}});
  return a.next_stream++;
}

void end_timeline(int stream) {
  All& a = all();
  const auto it = a.streams.find(stream);
  // Its work goes on without it, until the host has waited for it.
  if (known(a.host, stream) >= it->second.first_interval.size()) a.streams.erase(it);
}

void begin_operation(int stream) {
  All& a = all();
  Timeline& mine = a.streams.at(stream);
  join(mine.clock, a.host);
  for (const auto& [other, timeline] : a.streams) {
    const bool waits =
        stream == kDefaultStream ? timeline.blocking : mine.blocking && other == kDefaultStream;
    if (waits) join(mine.clock, timeline.clock);
  }
  intervals.operation_first = ++intervals.now;
  mine.first_interval.push_back(intervals.now);
  mine.clock[stream] = mine.first_interval.size();
  a.operations.push_back({intervals.now, stream, mine.first_interval.size()});
  a.now = mine.clock;
  a.stream_now = stream;
  intervals.ordered_before = intervals.now;
  for (const auto& [other, timeline] : a.streams) {
    const uint64_t waited_for = known(a.now, other);
    if (waited_for < timeline.first_interval.size()) {
      intervals.ordered_before =
          std::min(intervals.ordered_before, timeline.first_interval[waited_for]);
    }
  }
}

bool is_concurrent(uint64_t interval) {
  const All& a = all();
  if (interval < intervals.ordered_before || interval >= intervals.operation_first) return false;
  const auto after =
      std::ranges::upper_bound(a.operations, interval, {}, &Operation::first_interval);
  const Operation& operation = *std::prev(after);
  return operation.number > known(a.now, operation.stream);
}

Clock clock_of(int stream) {
  All& a = all();
  Clock clock = a.streams.at(stream).clock;
  join(clock, a.host);
  return clock;
}
void wait_on_stream(int stream, const Clock& clock) { join(all().streams.at(stream).clock, clock); }
void wait_on_host(const Clock& clock) { join(all().host, clock); }
bool host_has_waited_for(const Clock& clock) {
  return std::ranges::all_of(
      clock, [](const auto& entry) { return entry.second <= known(all().host, entry.first); });
}
void wait_for_everything() {
  for (const auto& [stream, timeline] : all().streams) join(all().host, timeline.clock);
}

}  // namespace simt
