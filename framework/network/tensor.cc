// SPDX-License-Identifier: MIT
#include "framework/network/tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>

#include "kernels/aligned_buffer.h"

namespace fmp {
namespace {

// Activations have the same sizes in every step, so their memory is kept for the next one: asking
// the system again would cost a page fault per 4 KiB.
class TileCache {
 public:
  std::shared_ptr<std::byte> take(size_t bytes) {
    auto [memory, capacity] = find(bytes);
    // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks): the shared pointer gives it back
    return {memory, [this, capacity = capacity](std::byte* p) { give_back(p, capacity); }};
  }

 private:
  // A free block is used again unless most of it would lie idle.
  static constexpr size_t kMaxWaste = 4;

  std::pair<std::byte*, size_t> find(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto fits = free_.lower_bound(bytes);
    if (fits != free_.end() && fits->first <= kMaxWaste * bytes) {
      const std::pair<std::byte*, size_t> found{fits->second, fits->first};
      free_.erase(fits);
      return found;
    }
    // Shapes have changed: what is free and smaller will not be asked for again.
    for (auto it = free_.begin(); it != free_.end() && it->first < bytes;) {
      std::free(it->second);
      it = free_.erase(it);
    }
    return {static_cast<std::byte*>(allocate_aligned(bytes)), bytes};
  }
  void give_back(std::byte* memory, size_t capacity) {
    const std::lock_guard lock(mutex_);
    free_.emplace(capacity, memory);
  }

  std::mutex mutex_;
  std::multimap<size_t, std::byte*> free_;
};

TileCache& tile_cache() {
  static TileCache& cache = *new TileCache;  // outlives every tensor, static ones included
  return cache;
}

}  // namespace

Tensor Tensor::zeros(std::vector<int64_t> shape, ElementType type) {
  Tensor t;
  t.size_ = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  t.shape_ = std::move(shape);
  t.type_ = type;
  t.storage_ = {static_cast<std::byte*>(allocate_aligned(t.bytes())),
                [](std::byte* p) { std::free(p); }};
  t.fill_zero();
  return t;
}

Tensor Tensor::tile(const TileShape& shape, ElementType type) {
  Tensor t;
  t.shape_ = {shape.tiles(), shape.length + 2 * static_cast<int64_t>(shape.pad), shape.channels,
              kLanes};
  t.size_ = shape.elements();
  t.type_ = type;
  t.is_tile_ = true;
  t.tile_ = shape;
  t.storage_ = tile_cache().take(std::max<size_t>(t.bytes(), 1));
  const size_t tile_bytes = static_cast<size_t>(shape.tile_elements()) * element_bytes(type);
  const size_t pad_bytes =
      static_cast<size_t>(shape.pad * shape.row_elements()) * element_bytes(type);
  for (int64_t i = 0; pad_bytes > 0 && i < shape.tiles(); ++i) {
    std::byte* start = t.storage_.get() + static_cast<size_t>(i) * tile_bytes;
    std::memset(start, 0, pad_bytes);
    std::memset(start + tile_bytes - pad_bytes, 0, pad_bytes);
  }
  return t;
}

Tensor Tensor::reshaped(const TileShape& shape) const {
  Tensor t = *this;
  t.tile_ = shape;
  t.shape_ = {shape.tiles(), shape.length + 2 * static_cast<int64_t>(shape.pad), shape.channels,
              kLanes};
  return t;
}

Tensor Tensor::clone() const {
  if (!defined()) return {};
  Tensor t = is_tile_ ? tile(tile_, type_) : zeros(shape_, type_);
  std::memcpy(t.storage_.get(), storage_.get(), bytes());
  return t;
}

void Tensor::fill_zero() { std::memset(storage_.get(), 0, bytes()); }

}  // namespace fmp
