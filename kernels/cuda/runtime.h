// SPDX-License-Identifier: MIT
// Streams, events, graphs, page-locked memory and named ranges, for code that is compiled without
// CUDA's headers. All throw CudaError; none is copied.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>

#include "kernels/cuda/device_memory.h"

namespace fmp::cuda {

int device_count();
// This thread uses the device from now on; before, the first one.
void use_device(int device);
// The name of the device that is used, e.g. "NVIDIA H100 80GB HBM3".
std::string device_name();

// What is put on a stream runs in order; different streams run side by side.
class OwnedStream {
 public:
  OwnedStream();
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  operator Stream() const { return stream_; }

 private:
  Stream stream_ = nullptr;
};

// A point in a stream's work.
class Event {
 public:
  enum class Timing : bool { kNo, kYes };
  explicit Event(Timing timing = Timing::kNo);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream);
  // What is put on `stream` from now on waits for the event; the host does not.
  void hold(Stream stream) const;
  // The host waits.
  void synchronize() const;
  // Between two recorded events with Timing::kYes; waits for the later one.
  double seconds_since(const Event& start) const;

 private:
  void* event_ = nullptr;
};

// Work of a stream that is put on it as a whole, for the cost of one launch.
class Graph {
 public:
  Graph() = default;
  ~Graph() { reset(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Takes up what `enqueue` puts on the stream, which does not run it. It must neither allocate
  // device memory nor wait.
  void capture(Stream stream, const std::function<void()>& enqueue);
  void launch(Stream stream) const;
  bool empty() const { return graph_ == nullptr; }
  size_t nodes() const { return nodes_; }  // kernels, copies and memsets; 0 when empty
  void reset() noexcept;

 private:
  void* graph_ = nullptr;
  size_t nodes_ = 0;
};

void* allocate_pinned(size_t bytes);
void release_pinned(void* memory) noexcept;

// Page-locked memory of the host, which is copied from and to while both sides go on.
template <typename T>
using PinnedBuffer = Buffer<T, allocate_pinned, release_pinned>;

// Names what the host puts on streams while it lives, for the timeline of Nsight Systems.
class Range {
 public:
  explicit Range(const std::string& name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace fmp::cuda
