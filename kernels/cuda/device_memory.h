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

// Bytes of the device that nobody has.
size_t free_bytes();

// While one lives, what this thread allocates is for work on `stream`; otherwise for the default
// stream. Work of other streams may use it, too, but must be over for that stream (by events) or
// for the host when the memory is released.
class MemoryStream {
 public:
  explicit MemoryStream(Stream stream);
  ~MemoryStream();
  MemoryStream(const MemoryStream&) = delete;
  MemoryStream& operator=(const MemoryStream&) = delete;

 private:
  Stream outer_;
};

// While one lives, released memory waits to be allocated again, as cudaMalloc and cudaFree take
// long and stop the device. Work that uses it may still be under way: it is used again for the same
// stream only (MemoryStream), whose work comes after that. Tools that find wrong accesses
// (compute-sanitizer, tests/simt) see more without one.
class MemoryCache {
 public:
  MemoryCache();
  ~MemoryCache();  // the last one gives back what waits
  MemoryCache(const MemoryCache&) = delete;
  MemoryCache& operator=(const MemoryCache&) = delete;
};

// Gives the memory that waits for the stream back to the device: before the stream ends.
void give_back_waiting(Stream stream) noexcept;

// `size()` uninitialised elements in memory of one kind.
template <typename T, void* (*kAllocate)(size_t bytes), void (*kRelease)(void*) noexcept>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t size)
      : data_(static_cast<T*>(size == 0 ? nullptr : kAllocate(size * sizeof(T)))), size_(size) {}
  ~Buffer() { kRelease(data_); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  // Room for `size` elements; what was in the buffer is lost when it grows.
  T* reserve(size_t size) {
    if (size > size_) *this = Buffer(size);
    return data_;
  }
  T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

template <typename T>
class DeviceBuffer : public Buffer<T, allocate, release> {
 public:
  using Buffer<T, allocate, release>::Buffer;
  DeviceBuffer(std::span<const T> values, Stream stream) : DeviceBuffer(values.size()) {
    copy_to_device(this->data(), values.data(), values.size_bytes(), stream);
  }

  // Copies of all elements; they wait for the stream.
  std::vector<T> to_host(Stream stream) const {
    std::vector<T> values(this->size());
    copy_to_host(values.data(), this->data(), values.size() * sizeof(T), stream);
    synchronize(stream);
    return values;
  }
};

}  // namespace fmp::cuda
