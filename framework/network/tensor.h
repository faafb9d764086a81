// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/tile.h"

namespace fmp {

// An owned, aligned block of memory with a shape. Row-major tensors hold parameters and per-channel
// vectors; tile tensors hold activations in the layout that kernels/tile.h describes.
// Copying a Tensor shares its memory; clone() copies it.
class Tensor {
 public:
  Tensor() = default;

  // Row-major, zero-filled.
  static Tensor zeros(std::vector<int64_t> shape, ElementType type = ElementType::kF32);
  // Activations: padding rows are zero, the rest is not initialised. The memory comes from a cache
  // and goes back to it.
  static Tensor tile(const TileShape& shape, ElementType type);
  // The same memory seen as tiles of another shape with as many elements, e.g. flattened.
  Tensor reshaped(const TileShape& shape) const;

  bool defined() const { return storage_ != nullptr; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t size() const { return size_; }  // elements, padding included
  size_t bytes() const { return static_cast<size_t>(size_) * element_bytes(type_); }
  ElementType type() const { return type_; }
  const TileShape& tile_shape() const { return tile_; }

  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(storage_.get());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(storage_.get());
  }
  std::span<float> floats() { return {data<float>(), static_cast<size_t>(size_)}; }
  std::span<const float> floats() const { return {data<float>(), static_cast<size_t>(size_)}; }

  Tensor clone() const;
  void fill_zero();

  TileView view() { return {tile_, type_, storage_.get()}; }
  ConstTileView view() const { return {tile_, type_, storage_.get()}; }

 private:
  std::vector<int64_t> shape_;
  int64_t size_ = 0;
  ElementType type_ = ElementType::kF32;
  bool is_tile_ = false;
  TileShape tile_;
  std::shared_ptr<std::byte> storage_;
};

}  // namespace fmp
