// SPDX-License-Identifier: MIT
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "kernels/out_of_memory.h"

namespace fmp {

// Alignment of every buffer that vector code reads: a cache line and the widest vector.
inline constexpr size_t kAlignment = 64;

// Uninitialised memory, aligned to kAlignment; give it back with std::free. Throws OutOfMemory,
// which says what was asked for, where there is none. Large blocks ask for huge pages: passes over
// activations touch a new page every few rows, and finding it costs time.
inline void* allocate_aligned(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole > 0 ? whole : alignment);
  if (memory == nullptr) throw OutOfMemory(bytes);
  // A wish that the system may not grant.
  if (alignment == kHugePage) (void)madvise(memory, whole, MADV_HUGEPAGE);
  return memory;
}

// Uninitialised, aligned memory for trivial types, grown on demand, contents not kept.
template <typename T>
class AlignedBuffer {
 public:
  // Room for `count` elements; what was in the buffer is lost when it grows.
  T* reserve(size_t count) {
    if (count > capacity_) {
      data_.reset();
      data_.reset(static_cast<T*>(allocate_aligned(count * sizeof(T))));
      capacity_ = count;
    }
    return data_.get();
  }
  void release() {
    data_.reset();
    capacity_ = 0;
  }
  bool empty() const { return data_ == nullptr; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Delete {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Delete> data_;
  size_t capacity_ = 0;
};

}  // namespace fmp
