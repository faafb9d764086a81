// SPDX-License-Identifier: MIT
// Sums of what the blocks of a kernel have summed up: within each group of frames, and then over
// the groups from the first to the last. Where devices share a batch, each adds up its groups, they
// exchange these sums, and every device adds them up as one device does with all groups. For .cu
// files only.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/cuda/device_code.h"

namespace fmp::cuda {

// Which of a kernel's partial sums are those of a group.
struct PartialSums {
  FrameGroups groups;
  int count = 0;  // of groups
  int each = 0;   // sums of a group that lie one behind the other; 0: it is one of the others
  int rows = 0;   // blocks of a grid of WarpsByRows, frames first; 0: not so
  int all = 0;    // sums that are not of groups of frames, dealt out to kFrameGroups

  // The sums of a group: `runs` times `length` neighbours.
  struct Places {
    int begin, runs, length, stride;
    __device__ __forceinline__ int size() const { return runs * length; }
    __device__ __forceinline__ int operator[](int i) const {
      return length == 1 ? begin + i * stride : begin + i / length * stride + i % length;
    }
  };
  __device__ __forceinline__ Places of(int group) const {
    if (group >= count) return {0, 0, 1, 0};
    if (each > 0) return {group * each, each, 1, 1};
    if (rows > 0) {
      return {groups.begin(group), rows, groups.warps(group), groups.begin(groups.here)};
    }
    return {group, (all - group + kFrameGroups - 1) / kFrameGroups, 1, kFrameGroups};
  }

  static PartialSums slices(const FrameGroups& groups, int each) {
    return {groups, groups.here, each, 0, 0};
  }
  static PartialSums blocks(const FrameGroups& groups, int rows) {
    return {groups, groups.here, 0, rows, 0};
  }
  static PartialSums dealt_out(int all) { return {{}, kFrameGroups, 0, 0, all}; }
  // One sum of each group of the batch.
  static PartialSums of_batch(const FrameGroups& groups) {
    return {groups, groups.of_batch(), 1, 0, 0};
  }
  // One sum in all.
  static PartialSums one() { return {{}, 1, 1, 0, 0}; }
};

// Lanes that have a group where a warp has all of them.
inline constexpr int kLanesOfGroup = kWarpLanes / kFrameGroups;

// The sum of a group's partial sums, read(place), over kLanes neighbouring lanes of a warp, in each
// of them. All lanes of the warp must come.
template <int kLanes, typename Read>
__device__ __forceinline__ double sum_of_group(const PartialSums& sums, int group,
                                               const Read& read) {
  const PartialSums::Places places = sums.of(group);
  double sum = 0;
  for (int i = thread_x() % kLanes; i < places.size(); i += kLanes) sum += read(places[i]);
  for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
  return sum;
}

// The same by one thread, of partial[place][row_size]: one after the other.
template <typename T>
__device__ __forceinline__ double sum_in_order(const T* partial, size_t row_size,
                                               const PartialSums::Places& places) {
  double sum = 0;
  int place = places.begin, left = places.length;
  const int size = places.size();
#pragma unroll 8
  for (int i = 0; i < size; ++i) {
    sum += static_cast<double>(partial[static_cast<size_t>(place) * row_size]);
    ++place;
    if (--left == 0) {
      left = places.length;
      place += places.stride - places.length;
    }
  }
  return sum;
}

// What all ranks have of a kernel's partial sums, [place][count]: a row of doubles for each group
// of the batch.
class RowsOfGroups {
 public:
  // row_size: doubles, of all that is put into the rows.
  RowsOfGroups(DeviceRanks& ranks, const FrameGroups& groups, size_t row_size, Stream stream);

  // Puts the sums of the groups that are here behind what was put there before. Their order is that
  // of the kernel which is to read the rows in place of the partial sums: add_slices() for floats;
  // sum_of_group() with so many lanes for doubles.
  void put(const float* partial, size_t count, const PartialSums& sums);
  template <int kLanes>
  void put(const double* partial, size_t count, const PartialSums& sums);
  // Gets those of the other ranks.
  void exchange();

  // Where the next sums are put; as they are read, in a row of row_size().
  double* next() const { return rows_ + put_; }
  double* rows() const { return rows_; }
  size_t row_size() const { return row_size_; }
  PartialSums sums() const { return PartialSums::of_batch(groups_); }

 private:
  DeviceRanks& ranks_;
  FrameGroups groups_;
  size_t row_size_, put_ = 0;
  double* rows_;
  Stream stream_;
};

// grad[place of i] = scale * sum of the partial sums i, i < count; places null = i itself, scale
// null = 1. partial: [place][row_size].
template <typename T>
struct SliceSums {
  const T* partial;
  size_t row_size;
  PartialSums sums;
  int count;
  const int* places;
  const float* scale;
  float* grad;
};
// At most kLayersAtOnce of them.
void add_slices(std::span<const SliceSums<float>> of_layers, Stream stream);
// The same of partial sums [place][count] of a share of a batch: with all ranks.
void add_slices(DeviceRanks& ranks, const SliceSums<float>& of_share, Stream stream);

}  // namespace fmp::cuda
