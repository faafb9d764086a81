// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include "kernels/cuda/error.h"
#include "kernels/cuda/runtime.h"

namespace fmp::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t native_event(void* event) { return static_cast<cudaEvent_t>(event); }
cudaGraphExec_t native_graph(void* graph) { return static_cast<cudaGraphExec_t>(graph); }

}  // namespace

int device_count() {
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  return devices;
}

void use_device(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

std::string device_name() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

// Handles are released where nothing can be thrown; after a fault that fails, and it has been told.

OwnedStream::OwnedStream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_ = stream;
}
OwnedStream::~OwnedStream() {
  give_back_waiting(stream_);
  static_cast<void>(cudaStreamDestroy(native(stream_)));
}

Event::Event(Timing timing) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(
            &event, timing == Timing::kYes ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
  event_ = event;
}
Event::~Event() { static_cast<void>(cudaEventDestroy(native_event(event_))); }

void Event::record(Stream stream) {
  check(cudaEventRecord(native_event(event_), native(stream)), "cudaEventRecord");
}
void Event::hold(Stream stream) const {
  check(cudaStreamWaitEvent(native(stream), native_event(event_), 0), "cudaStreamWaitEvent");
}
void Event::synchronize() const {
  check(cudaEventSynchronize(native_event(event_)), "cudaEventSynchronize");
}
double Event::seconds_since(const Event& start) const {
  synchronize();
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, native_event(start.event_), native_event(event_)),
        "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

void Graph::capture(Stream stream, const std::function<void()>& enqueue) {
  reset();
  cudaGraph_t recorded = nullptr;
  // Other threads may allocate meanwhile.
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  try {
    enqueue();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(native(stream), &recorded));
    if (recorded != nullptr) static_cast<void>(cudaGraphDestroy(recorded));
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(native(stream), &recorded), "cudaStreamEndCapture");
  cudaGraphExec_t graph = nullptr;
  cudaError_t status = cudaGraphGetNodes(recorded, nullptr, &nodes_);
  if (status == cudaSuccess) status = cudaGraphInstantiate(&graph, recorded, 0);
  static_cast<void>(cudaGraphDestroy(recorded));
  check(status, "cudaGraphGetNodes, cudaGraphInstantiate");
  graph_ = graph;
}

void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(native_graph(graph_), native(stream)), "cudaGraphLaunch");
}

void Graph::reset() noexcept {
  if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(native_graph(graph_)));
  graph_ = nullptr;
  nodes_ = 0;
}

void* allocate_pinned(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  const std::string call = "cudaHostAlloc of " + std::to_string(bytes) + " bytes";
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), call.c_str());
  return memory;
}
void release_pinned(void* memory) noexcept { static_cast<void>(cudaFreeHost(memory)); }

Range::Range(const std::string& name) { nvtxRangePushA(name.c_str()); }
Range::~Range() { nvtxRangePop(); }

}  // namespace fmp::cuda
