// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/error.h"

namespace fmp::cuda {
namespace {

// Blocks of the device: in use by their address, waiting ones by their size.
struct Allocations {
  std::mutex mutex;
  std::map<void*, size_t> in_use;
  std::multimap<size_t, void*> waiting;
  int caches = 0;  // MemoryCache objects that live
  MemoryFigures figures;

  // Takes a block that waits unless most of it would lie idle; null if there is none.
  void* reuse(size_t bytes) {
    constexpr size_t kMaxWaste = 8;  // one part in eight
    const auto fits = waiting.lower_bound(bytes);
    if (fits == waiting.end() || fits->first - bytes > bytes / kMaxWaste) return nullptr;
    const auto [size, memory] = *fits;
    waiting.erase(fits);
    use(memory, size);
    return memory;
  }
  void use(void* memory, size_t bytes) {
    in_use.emplace(memory, bytes);
    figures.now += bytes;
    figures.peak = std::max(figures.peak, figures.now);
  }
  // Gives what waits back to the device. After a fault nothing can be freed, and who made it has
  // been told.
  void trim() noexcept {
    for (const auto& [bytes, memory] : waiting) {
      static_cast<void>(cudaFree(memory));
      figures.held -= bytes;
    }
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

void* allocate(size_t bytes) {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  if (void* waiting = all.reuse(bytes)) return waiting;
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
  all.use(memory, bytes);
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  const auto it = all.in_use.find(memory);
  if (it == all.in_use.end()) return;
  const size_t bytes = it->second;
  all.in_use.erase(it);
  all.figures.now -= bytes;
  all.waiting.emplace(bytes, memory);
  if (all.caches == 0) all.trim();
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
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)),
        "copy to the device");
}
void copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)),
        "copy to the host");
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)),
        "copy on the device");
}
void set_bytes(void* memory, int value, size_t bytes, Stream stream) {
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
