// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/error.h"

namespace fmp::cuda {
namespace {

// What this thread allocates for.
thread_local Stream memory_stream = nullptr;

// Blocks of the device: in use by their address, waiting ones by their stream and size.
struct Allocations {
  struct Block {
    size_t bytes;
    Stream stream;
  };
  std::mutex mutex;
  std::map<void*, Block> in_use;
  std::map<Stream, std::multimap<size_t, void*>> waiting;
  int caches = 0;  // MemoryCache objects that live
  MemoryFigures figures;

  // Takes a block that waits unless most of it would lie idle; null if there is none.
  void* reuse(size_t bytes, Stream stream) {
    constexpr size_t kMaxWaste = 8;  // one part in eight
    auto& of_stream = waiting[stream];
    const auto fits = of_stream.lower_bound(bytes);
    if (fits == of_stream.end() || fits->first - bytes > bytes / kMaxWaste) return nullptr;
    const auto [size, memory] = *fits;
    of_stream.erase(fits);
    use(memory, {size, stream});
    return memory;
  }
  void use(void* memory, const Block& block) {
    in_use.emplace(memory, block);
    figures.now += block.bytes;
    figures.peak = std::max(figures.peak, figures.now);
  }
  // Gives what waits back to the device, which cudaFree() waits for. After a fault nothing can be
  // freed, and who made it has been told.
  void trim(std::multimap<size_t, void*>& of_stream) noexcept {
    for (const auto& [bytes, memory] : of_stream) {
      static_cast<void>(cudaFree(memory));
      figures.held -= bytes;
    }
    of_stream.clear();
  }
  void trim() noexcept {
    for (auto& [stream, blocks] : waiting) trim(blocks);
    waiting.clear();
  }
};

Allocations& allocations() {
  static Allocations all;
  return all;
}

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

std::string mebibytes(size_t bytes) { return std::to_string((bytes + 1048575) / 1048576) + " MiB"; }

}  // namespace

bool device_available(const char** why) {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) cudaGetLastError();  // it is not anybody else's error
  if (why != nullptr) {
    *why = status != cudaSuccess ? cudaGetErrorString(status) : devices == 0 ? "there is none" : "";
  }
  return status == cudaSuccess && devices > 0;
}

size_t free_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

void* allocate(size_t bytes) {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  if (void* waiting = all.reuse(bytes, memory_stream)) return waiting;
  void* memory = nullptr;
  cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation && !all.waiting.empty()) {
    cudaGetLastError();
    all.trim();
    status = cudaMalloc(&memory, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaGetLastError();
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    const std::string call = "cudaMalloc of " + mebibytes(bytes) + " with " + mebibytes(free) +
                             " of " + mebibytes(total) + " free; a smaller batch needs less";
    check(status, call.c_str());
  }
  check(status, "cudaMalloc");
  all.figures.held += bytes;
  all.figures.held_peak = std::max(all.figures.held_peak, all.figures.held);
  all.use(memory, {bytes, memory_stream});
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  const auto it = all.in_use.find(memory);
  if (it == all.in_use.end()) return;
  const Allocations::Block block = it->second;
  all.in_use.erase(it);
  all.figures.now -= block.bytes;
  all.waiting[block.stream].emplace(block.bytes, memory);
  if (all.caches == 0) all.trim();
}

MemoryStream::MemoryStream(Stream stream) : outer_(std::exchange(memory_stream, stream)) {}
MemoryStream::~MemoryStream() { memory_stream = outer_; }

void give_back_waiting(Stream stream) noexcept {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  const auto of_stream = all.waiting.find(stream);
  if (of_stream == all.waiting.end()) return;
  all.trim(of_stream->second);
  all.waiting.erase(of_stream);
}

MemoryCache::MemoryCache() {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  ++all.caches;
}
MemoryCache::~MemoryCache() {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  if (--all.caches == 0) all.trim();
}

void copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)),
        "copy to the device");
}
void copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)),
        "copy to the host");
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)),
        "copy on the device");
}
void set_bytes(void* memory, int value, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(memory, value, bytes, native(stream)), "cudaMemsetAsync");
}
void synchronize(Stream stream) {
  check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize");
}

MemoryFigures memory_figures() {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  return all.figures;
}

}  // namespace fmp::cuda
