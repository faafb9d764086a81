// SPDX-License-Identifier: MIT
// The runtime library: streams run at once and keep count of what they would have to wait for
// (streams.cc), copies check which side each address is on, and after a fault every call fails
// until cudaDeviceReset(), as on a device. A stream that captures records its work instead, and
// refuses what CUDA refuses then.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/simt/cuda_runtime.h"
#include "tests/simt/internal.h"
#include "tests/simt/library.h"

using Work = std::function<cudaError_t()>;

struct SimtStream {
  int timeline = simt::kDefaultStream;
  bool captures = false;
  std::vector<Work> captured;
};
struct SimtEvent {
  std::chrono::steady_clock::time_point time;
  bool recorded = false, timed = true;
  simt::Clock clock;  // of the stream when it was recorded
};
struct SimtGraph {
  std::vector<Work> work;
};
struct SimtGraphExec {
  std::vector<Work> work;
};

namespace {

bool broken = false;  // a kernel failed
int device_now = 0;
bool device_used = false;
cudaError_t last_error = cudaSuccess;
std::string detail;  // of the last refusal
std::set<cudaStream_t> streams;
std::set<cudaEvent_t> events;
std::set<cudaGraph_t> graphs;
std::set<cudaGraphExec_t> executables;
std::map<void*, size_t> pinned;  // page-locked memory and its size
std::map<const void*, size_t> shared_limits;
cudaStream_t capturing = nullptr;  // one at a time
bool capture_broken = false;       // something was refused since it began

cudaError_t refuse(cudaError_t error, const std::string& why) {
  detail = why;
  return last_error = error;
}

cudaError_t check_stream(cudaStream_t stream) {
  if (broken) return cudaErrorLaunchFailure;
  if (stream != nullptr && !streams.contains(stream)) {
    return refuse(cudaErrorInvalidResourceHandle, "no such stream");
  }
  return cudaSuccess;
}

// Calls that CUDA forbids while a stream captures.
cudaError_t check_no_capture(const char* call) {
  if (broken) return cudaErrorLaunchFailure;
  if (capturing == nullptr) return cudaSuccess;
  capture_broken = true;
  return refuse(cudaErrorStreamCaptureUnsupported,
                std::string(call) + " while a stream is captured into a graph");
}

int timeline_of(cudaStream_t stream) {
  return stream == nullptr ? simt::kDefaultStream : stream->timeline;
}

// The present operation touches memory as a whole.
cudaError_t touch(const void* address, size_t bytes, bool writes) {
  const std::string race = simt::access_range(address, bytes, writes);
  if (race.empty()) return cudaSuccess;
  simt::set_fault(race);
  broken = true;
  return cudaErrorLaunchFailure;
}

bool is_pinned(const void* address, size_t bytes) {
  auto it = pinned.upper_bound(const_cast<void*>(address));
  if (it == pinned.begin()) return false;
  --it;
  const auto* begin = static_cast<const std::byte*>(it->first);
  return static_cast<const std::byte*>(address) + bytes <= begin + it->second;
}

cudaError_t check_event(cudaEvent_t event) {
  if (broken) return cudaErrorLaunchFailure;
  if (!events.contains(event)) return refuse(cudaErrorInvalidResourceHandle, "no such event");
  return cudaSuccess;
}

// Whether `address` is where `device` says it is; `bytes` of it inside one allocation.
cudaError_t check_side(const char* what, const void* address, size_t bytes, bool device) {
  if (!device && simt::is_device_address(address)) {
    return refuse(cudaErrorInvalidValue,
                  std::string(what) + ": device memory, expected host memory");
  }
  if (device && !simt::in_one_allocation(address, bytes)) {
    return refuse(cudaErrorInvalidValue,
                  std::string(what) + ": " + std::to_string(bytes) +
                      " bytes that are not inside one allocation of device memory");
  }
  return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevicePointer:
      return "cudaErrorInvalidDevicePointer";
    case cudaErrorInvalidMemcpyDirection:
      return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorLaunchFailure) return simt::fault_text().c_str();
  if (error == last_error && !detail.empty()) return detail.c_str();
  return cudaGetErrorName(error);
}

cudaError_t cudaGetLastError() {
  if (broken) return cudaErrorLaunchFailure;
  return std::exchange(last_error, cudaSuccess);
}

// As many as the environment's SIMT_DEVICES says, or one. A process uses one of them.
cudaError_t cudaGetDeviceCount(int* count) {
  const char* devices = std::getenv("SIMT_DEVICES");     // NOLINT(concurrency-mt-unsafe)
  *count = devices != nullptr ? std::atoi(devices) : 1;  // NOLINT(cert-err34-c)
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return refuse(cudaErrorInvalidValue, "no such device");
  if (device != device_now && device_used)
    return refuse(cudaErrorInvalidValue, "this process uses another device already");
  device_now = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = device_now;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const cudaError_t error = check_no_capture("cudaDeviceSynchronize");
  if (error == cudaSuccess) simt::wait_for_everything();
  return error;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != device_now) return refuse(cudaErrorInvalidValue, "another device than is used");
  *properties = {"host runtime of the tests"};
  return cudaSuccess;
}

cudaError_t cudaDeviceReset() {
  broken = device_used = false;
  device_now = 0;
  last_error = cudaSuccess;
  if (capturing != nullptr) capturing->captures = false;
  capturing = nullptr;
  simt::wait_for_everything();
  simt::release_everything();
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = simt::free_bytes();
  *total = simt::total_bytes();
  return broken ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t error = check_no_capture("cudaMalloc"); error != cudaSuccess) return error;
  if (bytes == 0) return refuse(cudaErrorInvalidValue, "an allocation of nothing");
  device_used = true;
  *memory = simt::allocate(bytes);
  if (*memory == nullptr) {
    return refuse(cudaErrorMemoryAllocation, "out of memory");
  }
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (const cudaError_t error = check_no_capture("cudaFree"); error != cudaSuccess) return error;
  simt::wait_for_everything();  // "Stream Ordered Memory Allocator": cudaFree synchronizes
  if (memory != nullptr && !simt::release(memory)) {
    return refuse(cudaErrorInvalidValue, "cudaFree of an address that cudaMalloc did not return");
  }
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned /*flags*/) {
  if (const cudaError_t error = check_no_capture("cudaHostAlloc"); error != cudaSuccess)
    return error;
  if (bytes == 0) return refuse(cudaErrorInvalidValue, "an allocation of nothing");
  *memory = ::operator new(bytes);
  pinned.emplace(*memory, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  if (const cudaError_t error = check_no_capture("cudaFreeHost"); error != cudaSuccess)
    return error;
  if (memory != nullptr && pinned.erase(memory) == 0) {
    return refuse(cudaErrorInvalidValue,
                  "cudaFreeHost of an address that cudaHostAlloc did not return");
  }
  ::operator delete(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  // CUDA takes it, but nobody means it.
  if (bytes == 0) return refuse(cudaErrorInvalidValue, "a copy of nothing");
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  cudaError_t error = check_side("destination of a copy", to, bytes, to_device);
  if (error == cudaSuccess) error = check_side("source of a copy", from, bytes, from_device);
  if (error != cudaSuccess) return error;
  const bool of_host = !to_device || !from_device;
  if (stream != nullptr && stream->captures && of_host &&
      !is_pinned(to_device ? from : to, bytes)) {
    return check_no_capture("a copy from or to memory that is not page-locked");
  }
  const cudaError_t status = simt::enqueue(stream, [=] {
    if (from_device) {
      if (const cudaError_t race = touch(from, bytes, false); race != cudaSuccess) return race;
    }
    if (to_device) {
      if (const cudaError_t race = touch(to, bytes, true); race != cudaSuccess) return race;
    }
    simt::protect_device_memory(true);
    std::memmove(to, from, bytes);
    simt::protect_device_memory(false);
    if (to_device && from_device) {
      simt::copy_initialised(to, from, bytes);
    } else if (to_device) {
      simt::mark_initialised(to, bytes);
    }
    return cudaSuccess;
  });
  // To memory that is not page-locked, the call returns when the copy is over.
  if (!to_device && !is_pinned(to, bytes)) simt::wait_on_host(simt::clock_of(timeline_of(stream)));
  return status;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (bytes == 0) return refuse(cudaErrorInvalidValue, "a memset of nothing");
  if (const cudaError_t error = check_side("memory to set", memory, bytes, true);
      error != cudaSuccess) {
    return error;
  }
  return simt::enqueue(stream, [=] {
    if (const cudaError_t race = touch(memory, bytes, true); race != cudaSuccess) return race;
    simt::protect_device_memory(true);
    std::memset(memory, value, bytes);
    simt::protect_device_memory(false);
    simt::mark_initialised(memory, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (broken) return cudaErrorLaunchFailure;
  if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) {
    return refuse(cudaErrorInvalidValue, "no such flags of a stream");
  }
  device_used = true;
  *stream = new SimtStream;
  (*stream)->timeline = simt::new_timeline(flags == cudaStreamDefault);
  streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream != nullptr && stream == capturing) return check_no_capture("cudaStreamDestroy");
  if (streams.erase(stream) == 0) return refuse(cudaErrorInvalidResourceHandle, "no such stream");
  simt::end_timeline(stream->timeline);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  const cudaError_t error = check_no_capture("cudaStreamSynchronize");
  if (error == cudaSuccess) simt::wait_on_host(simt::clock_of(timeline_of(stream)));
  return error;
}
// Of an event that was never recorded: nothing.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (const cudaError_t error = check_event(event); error != cudaSuccess) return error;
  if (flags != 0) return refuse(cudaErrorInvalidValue, "no such flags of a wait");
  // A graph would have to hold the event, too; nobody means that here.
  if (stream != nullptr && stream == capturing) return check_no_capture("cudaStreamWaitEvent");
  simt::wait_on_stream(timeline_of(stream), event->clock);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (broken) return cudaErrorLaunchFailure;
  if (flags != cudaEventDefault && flags != cudaEventDisableTiming) {
    return refuse(cudaErrorInvalidValue, "no such flags of an event");
  }
  *event = new SimtEvent;
  (*event)->timed = flags != cudaEventDisableTiming;
  events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (events.erase(event) == 0) return refuse(cudaErrorInvalidResourceHandle, "no such event");
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (const cudaError_t error = check_event(event); error != cudaSuccess) return error;
  if (stream != nullptr && stream == capturing) return check_no_capture("cudaEventRecord");
  event->time = std::chrono::steady_clock::now();
  event->recorded = true;
  event->clock = simt::clock_of(timeline_of(stream));
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = check_event(event); error != cudaSuccess) return error;
  const cudaError_t error = check_no_capture("cudaEventSynchronize");
  if (error == cudaSuccess) simt::wait_on_host(event->clock);
  return error;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  for (const cudaEvent_t event : {start, stop}) {
    if (const cudaError_t error = check_event(event); error != cudaSuccess) return error;
    if (!event->recorded) {
      return refuse(cudaErrorInvalidResourceHandle, "an event that was not recorded");
    }
    if (!event->timed) {
      return refuse(cudaErrorInvalidResourceHandle, "an event without time stamps");
    }
    if (!simt::host_has_waited_for(event->clock)) {
      return refuse(cudaErrorNotReady, "an event that the host has not waited for");
    }
  }
  *milliseconds = std::chrono::duration<float, std::milli>(stop->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  if (const cudaError_t error = check_no_capture("cudaStreamBeginCapture"); error != cudaSuccess)
    return error;
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (stream == nullptr) {
    return refuse(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
  }
  capturing = stream;
  capture_broken = false;
  stream->captures = true;
  stream->captured.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (stream == nullptr || !stream->captures) {
    return refuse(cudaErrorInvalidValue, "the end of a capture that did not begin");
  }
  capturing = nullptr;
  stream->captures = false;
  *graph = nullptr;
  if (capture_broken) {
    stream->captured.clear();
    return refuse(cudaErrorStreamCaptureInvalidated, "a call that a capture does not allow");
  }
  *graph = new SimtGraph{std::move(stream->captured)};
  graphs.insert(*graph);
  return cudaSuccess;
}

// Only how many there are: nodes is null.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (!graphs.contains(graph)) return refuse(cudaErrorInvalidValue, "no such graph");
  if (count == nullptr || nodes != nullptr)
    return refuse(cudaErrorInvalidValue, "more than the number of a graph's nodes");
  *count = graph->work.size();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (graphs.erase(graph) == 0) return refuse(cudaErrorInvalidValue, "no such graph");
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  if (!graphs.contains(graph)) return refuse(cudaErrorInvalidValue, "no such graph");
  *exec = new SimtGraphExec{graph->work};
  executables.insert(*exec);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (executables.erase(exec) == 0) return refuse(cudaErrorInvalidValue, "no such graph");
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (!executables.contains(exec)) return refuse(cudaErrorInvalidValue, "no such graph");
  for (const Work& work : exec->work) {
    if (const cudaError_t error = simt::enqueue(stream, work); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

namespace simt {

bool is_to_be_refused(const std::string& call) {
  const char* calls = std::getenv("SIMT_REFUSE");  // NOLINT(concurrency-mt-unsafe): one thread
  return calls != nullptr &&
         ("," + std::string(calls) + ",").find("," + call + ",") != std::string::npos;
}

void begin_operation(cudaStream_t stream) { begin_operation(timeline_of(stream)); }
bool device_failed() { return broken; }
bool stream_captures(cudaStream_t stream) { return stream != nullptr && stream->captures; }
bool stream_exists(cudaStream_t stream) { return stream == nullptr || streams.contains(stream); }

cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (stream == nullptr || !stream->captures) {
    // The default stream waits for all others, which a capture cannot record.
    if (stream == nullptr && capturing != nullptr) return check_no_capture("the default stream");
    begin_operation(stream);
    return work();
  }
  stream->captured.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t set_function_attribute(const void* function, cudaFuncAttribute /*attribute*/,
                                   int value) {
  if (broken) return cudaErrorLaunchFailure;
  if (value < 0 || static_cast<size_t>(value) > kMaxSharedBytes) {
    return refuse(cudaErrorInvalidValue, "more dynamic shared memory than a block can have");
  }
  shared_limits[function] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, void (*body)(void*),
                   void* arguments, size_t argument_bytes) {
  if (const cudaError_t error = check_stream(config.stream); error != cudaSuccess) return error;
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  constexpr size_t kMaxArgumentBytes = 4096;  // sm_70 and newer take more
  constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535, kMaxBlockZ = 64;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxBlockZ) {
    return refuse(cudaErrorInvalidConfiguration,
                  "a block of " + std::to_string(threads) + " threads, or deeper than 64");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ) {
    return refuse(cudaErrorInvalidConfiguration, "a grid of " + std::to_string(grid.x) + " x " +
                                                     std::to_string(grid.y) + " x " +
                                                     std::to_string(grid.z) + " blocks");
  }
  if (argument_bytes > kMaxArgumentBytes) {
    return refuse(cudaErrorInvalidValue,
                  std::to_string(argument_bytes) + " bytes of kernel parameters");
  }
  const auto limit = shared_limits.find(function);
  const size_t allowed = limit == shared_limits.end() ? kDefaultSharedBytes : limit->second;
  if (config.dynamicSmemBytes > allowed) {
    return refuse(cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                             " bytes of dynamic shared memory, " +
                                             std::to_string(allowed) + " allowed");
  }
  const Launch shape{
      {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config.dynamicSmemBytes};
  if (!run(shape, body, arguments, argument_bytes)) {
    broken = true;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace simt
