// SPDX-License-Identifier: MIT
#include <algorithm>

#include "kernels/cuda/conv1d.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/group_sums.h"

namespace fmp::cuda {
namespace {

// Rows of a block's threads have a group each.
static_assert(kBlockThreads == kWarpLanes * kFrameGroups);

template <typename T>
struct Jobs {
  SliceSums<T> of[kLayersAtOnce];
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) add_partial_sums(Jobs<T> jobs) {
  __shared__ double of_group[kFrameGroups][kWarpLanes];
  const SliceSums<T>& job = jobs.of[block_y()];
  const int i = block_x() * kWarpLanes + thread_x();
  if (block_x() * kWarpLanes >= job.count) return;  // the whole block
  double sum = 0;
  if (i < job.count) sum = sum_in_order(job.partial + i, job.row_size, job.sums.of(thread_y()));
  of_group[thread_y()][thread_x()] = sum;
  __syncthreads();
  if (thread_y() != 0 || i >= job.count) return;
  for (int group = 1; group < kFrameGroups; ++group) sum += of_group[group][thread_x()];
  const float factor = job.scale != nullptr ? *job.scale : 1.0F;
  job.grad[job.places != nullptr ? job.places[i] : i] = static_cast<float>(sum) * factor;
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
void add(std::span<const SliceSums<T>> of_layers, Stream stream) {
  Jobs<T> jobs{};
  std::ranges::copy(of_layers, jobs.of);
  int largest = 0;
  for (const SliceSums<T>& layer : of_layers) largest = std::max(largest, layer.count);
  if (largest == 0) return;
  launch(Where("add_slices", native(stream)),
         Shape{dim3(blocks_for(static_cast<size_t>(largest), kWarpLanes),
                    static_cast<unsigned>(of_layers.size())),
               dim3(kWarpLanes, kFrameGroups)},
         add_partial_sums<T>, jobs);
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

void add_slices(std::span<const SliceSums<float>> of_layers, Stream stream) {
  add(of_layers, stream);
}

void add_slices(DeviceRanks& ranks, const SliceSums<float>& of_share, Stream stream) {
  RowsOfGroups rows(ranks, of_share.sums.groups, of_share.row_size, stream);
  rows.put(of_share.partial, of_share.row_size, of_share.sums);
  rows.exchange();
  const SliceSums<double> of_groups{rows.rows(),     rows.row_size(), rows.sums(),  of_share.count,
                                    of_share.places, of_share.scale,  of_share.grad};
  add(std::span(&of_groups, 1), stream);
}

}  // namespace fmp::cuda
