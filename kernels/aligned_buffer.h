// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace fmp {

// Alignment of every buffer that vector code reads: a cache line and the widest vector.
inline constexpr std::align_val_t kAlignment{64};

// Uninitialised, aligned memory for trivial types, grown on demand, contents not kept.
template <typename T>
class AlignedBuffer {
 public:
  // Room for `count` elements; what was in the buffer is lost when it grows.
  T* reserve(size_t count) {
    if (count > capacity_) {
      data_.reset();
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
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
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Delete> data_;
  size_t capacity_ = 0;
};

}  // namespace fmp
