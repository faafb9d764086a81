// SPDX-License-Identifier: MIT
// Memory of the device and copies, for code that is compiled without CUDA's headers.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace fmp::cuda {

// A cudaStream_t; null is the default stream.
using Stream = void*;

// Whether there is a device to compute on; if not, `why` says what the driver says.
bool device_available(const char** why = nullptr);

// Throws CudaError; when memory is out, with what was asked and what is free.
void* allocate(size_t bytes);
void release(void* memory) noexcept;
void copy_to_device(void* to, const void* from, size_t bytes, Stream stream);
void copy_to_host(void* to, const void* from, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
void set_bytes(void* memory, int value, size_t bytes, Stream stream);
// Waits for all that was put on the stream, and throws CudaError if any of it failed.
void synchronize(Stream stream);

// Bytes that are in use now, and what is held of the device: with blocks that wait to be used
// again.
struct MemoryFigures {
  size_t now = 0, peak = 0;
  size_t held = 0, held_peak = 0;
};
MemoryFigures memory_figures();

// While one lives, released memory waits to be allocated again, as cudaMalloc and cudaFree take
// long and stop the device. Whoever gets such a block must use it in streams that come after those
// that had it. Tools that find wrong accesses (compute-sanitizer, tests/simt) see more without one.
class MemoryCache {
 public:
  MemoryCache();
  ~MemoryCache();  // the last one gives back what waits
  MemoryCache(const MemoryCache&) = delete;
  MemoryCache& operator=(const MemoryCache&) = delete;
};

// Device memory for `size()` elements, uninitialised.
template <typename T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t size)
      : data_(static_cast<T*>(size == 0 ? nullptr : allocate(size * sizeof(T)))), size_(size) {}
  DeviceBuffer(std::span<const T> values, Stream stream) : DeviceBuffer(values.size()) {
    copy_to_device(data_, values.data(), values.size_bytes(), stream);
  }
  ~DeviceBuffer() { release(data_); }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  // Room for `size` elements; what was in the buffer is lost when it grows.
  T* reserve(size_t size) {
    if (size > size_) *this = DeviceBuffer(size);
    return data_;
  }
  T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // Copies of all elements; they wait for the stream.
  std::vector<T> to_host(Stream stream) const {
    std::vector<T> values(size_);
    copy_to_host(values.data(), data_, size_ * sizeof(T), stream);
    synchronize(stream);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fmp::cuda
