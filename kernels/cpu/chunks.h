// SPDX-License-Identifier: MIT
// How a layer's activations are cut into work: items that threads share out, and chunks of rows
// within an item that stay in the second-level cache. Neither depends on the number of threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/parallel.h"

namespace fmp::cpu {

// Tiles of a dense layer that make one item; its positions are tiles.
inline constexpr int kDenseItemTiles = 16;
// Channels whose sums are made and used together: 16 rows of them take 8 KiB.
inline constexpr int kRunChannels = 8;

// An item is a tile of a convolution, or kDenseItemTiles tiles of a dense layer, whose single
// positions are consecutive rows in memory.
class Items {
 public:
  Items(const LayerShape& shape, int64_t frames)
      : tiles_{frames, shape.length, shape.out_channels, 0},
        dense_(shape.taps == 1 && shape.length == 1) {}

  int64_t count() const {
    return dense_ ? (tiles_.tiles() + kDenseItemTiles - 1) / kDenseItemTiles : tiles_.tiles();
  }
  int64_t first_tile(int64_t item) const { return dense_ ? item * kDenseItemTiles : item; }
  int rows(int64_t item) const {
    if (!dense_) return tiles_.length;
    return static_cast<int>(std::min<int64_t>(kDenseItemTiles, tiles_.tiles() - first_tile(item)));
  }
  // Index of row r of an item among all rows of a tensor whose tiles have `length` + 2 `pad` rows.
  int64_t row(int64_t item, int r, int length, int pad) const {
    if (dense_) return first_tile(item) + r;
    return item * (length + 2 * static_cast<int64_t>(pad)) + pad + r;
  }
  int lanes_used(int64_t item, int r) const {
    return tiles_.lanes_used(dense_ ? first_tile(item) + r : item);
  }

 private:
  TileShape tiles_;
  bool dense_;
};

// Zeroes the lanes of rows r0 .. r0 + rows - 1 that hold no frame; at points to row r0.
template <typename T>
void zero_unused_lanes(const Items& items, int64_t item, int r0, int rows, int channels, T* at,
                       ptrdiff_t stride, ptrdiff_t channel_stride = kLanes) {
  for (int r = 0; r < rows; ++r) {
    const int used = items.lanes_used(item, r0 + r);
    if (used == kLanes) continue;
    for (int c = 0; c < channels; ++c) {
      std::fill_n(at + r * stride + c * channel_stride + used, kLanes - used, T{0});
    }
  }
}

// Rows of a chunk: its operands (rows x 64 channels x 16 lanes of float, twice) fill half of a 512
// KiB second-level cache.
inline constexpr int kChunkRows = 16;
// The same for a pooling window, of which it is a multiple.
inline int chunk_rows(int pool) { return std::max(1, kChunkRows / pool) * pool; }

// Adds the time since the last lap to a figure; does nothing without a profile. Wall-clock time:
// asking for a thread's processor time takes longer than the shorter laps do.
class LapTimer {
 public:
  explicit LapTimer(bool on) : on_(on) {
    if (on_) last_ = Clock::now();
  }
  void lap(double& seconds) {
    if (!on_) return;
    const Clock::time_point time = Clock::now();
    seconds += std::chrono::duration<double>(time - last_).count();
    last_ = time;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_;
  Clock::time_point last_;
};

inline void add(const Profile& from, Profile& to) {
  to.unpack += from.unpack;
  to.conv_forward += from.conv_forward;
  to.activation_forward += from.activation_forward;
  to.activation_backward += from.activation_backward;
  to.conv_backward_data += from.conv_backward_data;
  to.conv_backward_weight += from.conv_backward_weight;
  to.other += from.other;
}

// Memory of one thread.
struct Scratch {
  AlignedBuffer<float> x, y, run, dy, dx, sums, dw;
  AlignedBuffer<uint8_t> quads;
  AlignedBuffer<int64_t> totals;
  // Of the layer whose sums are taken while another one's gradient is in the cache; rows that
  // `sums` has since it was zero.
  AlignedBuffer<float> producer_g, producer_dw;
  int rows_in_sums = 0;
  AlignedBuffer<int16_t> pairs;
  AlignedBuffer<uint8_t> codes;
  // Values at Winograd's points.
  AlignedBuffer<float> data_points, gradient_points, output_points;
  AlignedBuffer<int16_t> pair_points;
  AlignedBuffer<int32_t> sum_points;
  AlignedBuffer<float> dp;  // widened rows of a gradient in bf16
  // See gradient_tiles.h.
  AlignedBuffer<uint16_t> tile_x, tile_gradient, tile_data;
};

// Calls body(item, scratch, timer, profile) for items 0 .. count - 1, shared out to the threads.
template <typename Body>
void for_each_item(int64_t count, const RunContext& context, const Body& body) {
  std::mutex adding;
  share_items(count, context.threads, [&](SharedItems& items) {
    static thread_local Scratch scratch;
    Profile mine;
    while (const std::optional<int64_t> item = items.take()) {
      LapTimer timer(context.profile != nullptr);
      body(*item, scratch, timer, mine);
      timer.lap(mine.other);
    }
    if (context.profile != nullptr) {
      const std::lock_guard lock(adding);
      add(mine, *context.profile);
    }
  });
}

}  // namespace fmp::cpu
