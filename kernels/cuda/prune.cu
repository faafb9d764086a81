// SPDX-License-Identifier: MIT
// Global magnitude pruning: the survivors of all layers are listed (compaction), sorted by the bits
// of their magnitudes, which are ordered as the magnitudes are, and the first ones of the list go.
// Thrust sorts integers by radix and keeps the order of equal ones, so that the result does not
// depend on the device.
#include <thrust/copy.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/sort.h>
#include <thrust/system/cuda/execution_policy.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/prune.h"

namespace fmp::cuda {
namespace {

constexpr unsigned kInfinity = 0x7f800000U;  // bits of the least magnitude that is not finite

struct IsAlive {
  __host__ __device__ bool operator()(uint8_t mask) const { return mask != 0; }
};

// places: of survivors among the weights of all layers; this layer's begin at `first`.
__global__ void __launch_bounds__(kBlockThreads)
    take_magnitudes(const float* weight, const unsigned* places, unsigned first, size_t count,
                    unsigned* magnitudes) {
  const size_t i = global_x();
  if (i < count) magnitudes[i] = __float_as_uint(fabsf(weight[places[i] - first]));
}

__global__ void __launch_bounds__(kBlockThreads)
    clear_masks(const unsigned* places, size_t count, unsigned first, unsigned end, uint8_t* mask) {
  const size_t i = global_x();
  if (i >= count) return;
  const unsigned place = places[i];
  if (place >= first && place < end) mask[place - first] = 0;
}

Shape over(size_t count) { return {dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}; }

}  // namespace

PruneCounts prune_smallest(std::span<const PrunableWeights> layers, double fraction,
                           Stream stream) {
  if (!(fraction > 0 && fraction < 1)) {
    throw std::invalid_argument("CUDA: the fraction to prune is not between 0 and 1");
  }
  size_t weights = 0;
  for (const PrunableWeights& layer : layers) weights += layer.count;
  if (weights > std::numeric_limits<unsigned>::max()) {
    throw std::invalid_argument("CUDA: more weights than 32 bits count");
  }
  const cudaStream_t on = native(stream);
  const auto policy = thrust::cuda::par.on(on);
  const DeviceBuffer<unsigned> places(weights), magnitudes(weights);
  size_t alive = 0;
  unsigned first = 0;
  for (const PrunableWeights& layer : layers) {
    const unsigned end = first + static_cast<unsigned>(layer.count);
    unsigned* list = places.data() + alive;
    const unsigned* list_end =
        thrust::copy_if(policy, thrust::counting_iterator<unsigned>(first),
                        thrust::counting_iterator<unsigned>(end), layer.mask, list, IsAlive{});
    const size_t count = static_cast<size_t>(list_end - list);
    if (count > 0) {
      launch(Where("take_magnitudes", on), over(count), take_magnitudes, layer.weight, list, first,
             count, magnitudes.data() + alive);
    }
    alive += count;
    first = end;
  }
  // In the default rounding mode, nearbyint() rounds halves to even.
  const auto pruned = static_cast<size_t>(std::nearbyint(fraction * static_cast<double>(alive)));
  const PruneCounts counts{static_cast<int64_t>(alive), static_cast<int64_t>(alive - pruned)};
  if (pruned == 0) return counts;
  thrust::stable_sort_by_key(policy, magnitudes.data(), magnitudes.data() + alive, places.data());
  unsigned largest = 0;
  copy_to_host(&largest, magnitudes.data() + alive - 1, sizeof(largest), stream);
  synchronize(stream);
  if (largest >= kInfinity) throw std::domain_error("a weight is not finite");
  first = 0;
  for (const PrunableWeights& layer : layers) {
    const unsigned end = first + static_cast<unsigned>(layer.count);
    launch(Where("clear_masks", on), over(pruned), clear_masks, places.data(), pruned, first, end,
           layer.mask);
    first = end;
  }
  synchronize(stream);  // the list ends here
  return counts;
}

}  // namespace fmp::cuda
