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

struct Allocations {
  std::mutex mutex;
  std::map<void*, size_t> bytes;
  MemoryFigures figures;
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
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaGetLastError();
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    const std::string call = "cudaMalloc of " + mebibytes(bytes) + " with " + mebibytes(free) +
                             " of " + mebibytes(total) + " free; a smaller batch needs less";
    check(status, call.c_str());
  }
  check(status, "cudaMalloc");
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  all.bytes.emplace(memory, bytes);
  all.figures.now += bytes;
  all.figures.peak = std::max(all.figures.peak, all.figures.now);
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  // After a fault nothing can be freed, and who made it has been told.
  static_cast<void>(cudaFree(memory));
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  const auto it = all.bytes.find(memory);
  if (it == all.bytes.end()) return;
  all.figures.now -= it->second;
  all.bytes.erase(it);
}

void copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)),
        "copy to the device");
}
void copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)),
        "copy to the host");
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
