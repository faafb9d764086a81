// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace fmp {

// Bit width that stands for "not quantized".
inline constexpr int kFloatBits = 32;

// kBF16: the upper half of a float, for gradients alone.
enum class ElementType : uint8_t { kF32, kU8, kS8, kBF16 };

inline size_t element_bytes(ElementType type) {
  if (type == ElementType::kBF16) return 2;
  return type == ElementType::kF32 ? 4 : 1;
}

// Frames that sit side by side in a CPU tile: one AVX-512 or two AVX2 vectors of floats.
inline constexpr int kLanes = 16;

// Activations of `frames` frames: [tiles][pad + length + pad][channels][kLanes], tiles =
// ceil(frames / kLanes). Lane j of tile t is frame t * kLanes + j. Rows are positions in time; the
// pad rows at each end are zero, so that a convolution window is one contiguous block everywhere.
// Lanes past the last frame are zero in what networks read and are counted by no statistic.
struct TileShape {
  int64_t frames = 0;
  int length = 0;
  int channels = 0;
  int pad = 0;

  int64_t tiles() const { return (frames + kLanes - 1) / kLanes; }
  int64_t row_elements() const { return static_cast<int64_t>(channels) * kLanes; }
  int64_t tile_elements() const {
    return (length + 2 * static_cast<int64_t>(pad)) * row_elements();
  }
  int64_t elements() const { return tiles() * tile_elements(); }
  // Lanes of tile `t` that hold frames.
  int lanes_used(int64_t t) const {
    const int64_t left = frames - t * kLanes;
    return static_cast<int>(left < kLanes ? left : kLanes);
  }
};

struct ConstTileView {
  TileShape shape;
  ElementType type = ElementType::kF32;
  const void* data = nullptr;
};

struct TileView {
  TileShape shape;
  ElementType type = ElementType::kF32;
  void* data = nullptr;

  operator ConstTileView() const { return {shape, type, data}; }
};

}  // namespace fmp
