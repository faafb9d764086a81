// SPDX-License-Identifier: MIT
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/group_sums.h"

namespace fmp::cuda {
namespace {

// Rows of a block's threads have a group each.
static_assert(kBlockThreads == kWarpLanes * kFrameGroups);

// Of a group, one after the other.
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

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    add_partial_sums(const T* partial, size_t row_size, PartialSums sums, int count,
                     const int* places, const float* scale, float* grad) {
  __shared__ double of_group[kFrameGroups][kWarpLanes];
  const int i = block_x() * kWarpLanes + thread_x();
  double sum = 0;
  if (i < count) sum = sum_in_order(partial + i, row_size, sums.of(thread_y()));
  of_group[thread_y()][thread_x()] = sum;
  __syncthreads();
  if (thread_y() != 0 || i >= count) return;
  for (int group = 1; group < kFrameGroups; ++group) sum += of_group[group][thread_x()];
  const float factor = scale != nullptr ? *scale : 1.0F;
  grad[places != nullptr ? places[i] : i] = static_cast<float>(sum) * factor;
}

// rows: of the groups that are here.
__global__ void __launch_bounds__(kBlockThreads)
    put_group_sums(const float* partial, size_t count, PartialSums sums, double* rows,
                   size_t row_size) {
  const size_t i = static_cast<size_t>(block_x()) * kWarpLanes + static_cast<size_t>(thread_x());
  const int group = thread_y();
  if (i >= count || group >= sums.count) return;
  rows[static_cast<size_t>(group) * row_size + i] =
      sum_in_order(partial + i, count, sums.of(group));
}

template <int kLanes>
__global__ void __launch_bounds__(kBlockThreads)
    put_group_sums_of_doubles(const double* partial, size_t count, PartialSums sums, double* rows,
                              size_t row_size) {
  const size_t item = global_x() / kLanes, i = item % count;
  const int group = static_cast<int>(item / count);
  const double sum = sum_of_group<kLanes>(
      sums, group, [&](int place) { return partial[static_cast<size_t>(place) * count + i]; });
  if (group < sums.count && thread_x() % kLanes == 0) {
    rows[static_cast<size_t>(group) * row_size + i] = sum;
  }
}

template <typename T>
void add(const T* partial, size_t row_size, const PartialSums& sums, int count, const int* places,
         const float* scale, float* grad, Stream stream) {
  launch(Where("add_slices", native(stream)),
         Shape{dim3(blocks_for(static_cast<size_t>(count), kWarpLanes)),
               dim3(kWarpLanes, kFrameGroups)},
         add_partial_sums<T>, partial, row_size, sums, count, places, scale, grad);
}

}  // namespace

RowsOfGroups::RowsOfGroups(DeviceRanks& ranks, const FrameGroups& groups, size_t row_size,
                           Stream stream)
    : ranks_(ranks),
      groups_(groups),
      row_size_(row_size),
      rows_(ranks.rows(static_cast<size_t>(groups.of_batch()) * row_size)),
      stream_(stream) {}

void RowsOfGroups::put(const float* partial, size_t count, const PartialSums& sums) {
  double* const first_here = next() + static_cast<size_t>(groups_.first_group) * row_size_;
  launch(Where("put_group_sums", native(stream_)),
         Shape{dim3(blocks_for(count, kWarpLanes)), dim3(kWarpLanes, kFrameGroups)}, put_group_sums,
         partial, count, sums, first_here, row_size_);
  put_ += count;
}

template <int kLanes>
void RowsOfGroups::put(const double* partial, size_t count, const PartialSums& sums) {
  double* const first_here = next() + static_cast<size_t>(groups_.first_group) * row_size_;
  const size_t threads = count * static_cast<size_t>(sums.count) * kLanes;
  launch(Where("put_group_sums", native(stream_)),
         Shape{dim3(blocks_for(threads, kBlockThreads)), dim3(kBlockThreads)},
         put_group_sums_of_doubles<kLanes>, partial, count, sums, first_here, row_size_);
  put_ += count;
}
template void RowsOfGroups::put<1>(const double*, size_t, const PartialSums&);
template void RowsOfGroups::put<kLanesOfGroup>(const double*, size_t, const PartialSums&);
template void RowsOfGroups::put<kWarpLanes>(const double*, size_t, const PartialSums&);

void RowsOfGroups::exchange() { ranks_.gather_rows(rows_, groups_, row_size_, stream_); }

void add_slices(const float* partial, size_t row_size, const PartialSums& sums, int count,
                const int* places, const float* scale, float* grad, Stream stream) {
  add(partial, row_size, sums, count, places, scale, grad, stream);
}

void add_slices(const RowsOfGroups& rows, size_t first, int count, const int* places,
                const float* scale, float* grad, Stream stream) {
  add(static_cast<const double*>(rows.rows() + first), rows.row_size(), rows.sums(), count, places,
      scale, grad, stream);
}

void add_slices(DeviceRanks* ranks, const float* partial, const PartialSums& sums, int count,
                const int* places, const float* scale, float* grad, Stream stream) {
  const auto row_size = static_cast<size_t>(count);
  if (sums.all > 0 || sums.groups.are_all_here()) {
    return add_slices(partial, row_size, sums, count, places, scale, grad, stream);
  }
  RowsOfGroups rows(*ranks, sums.groups, row_size, stream);
  rows.put(partial, row_size, sums);
  rows.exchange();
  add_slices(rows, 0, count, places, scale, grad, stream);
}

}  // namespace fmp::cuda
