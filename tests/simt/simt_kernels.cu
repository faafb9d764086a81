// SPDX-License-Identifier: MIT
// Kernels, right and wrong, for the tests of the host runtime.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_core.h"
#include "tests/simt/simt_kernels.h"

namespace simt_test {
namespace {

using fmp::cuda::dynamic_shared;

__global__ void scale_add(const float* a, float* b, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) b[i] = 2.0F * a[i] + b[i];
}

// Sum over a block of any size: within warps by shuffles, across warps in shared memory.
__global__ void block_sums(const int* values, int* sums, int n) {
  __shared__ int of_warp[32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int sum = i < n ? values[i] : 0;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, step);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    int total = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) total += of_warp[w];
    sums[blockIdx.x] = total;
  }
}

__global__ void reverse(int* values) {
  int* copy = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  copy[i] = values[i];
  __syncthreads();
  values[i] = copy[n - 1 - i];
}

__global__ void vote(const int* values, unsigned* ballots, unsigned* count, unsigned* permuted) {
  const unsigned i = threadIdx.x;
  const unsigned votes = __ballot_sync(0xffffffffU, values[i] > 0);
  if (i == 0) ballots[0] = votes;
  __syncwarp();
  if (i == 5) ballots[1] = __shfl_sync(1U << 5, i, 5);
  if (values[i] > 0) atomicAdd(count, 1U);
  permuted[i] = __byte_perm(static_cast<unsigned>(values[i]), 0x77665544U, 0x3170U);
}

__global__ void write_at(int* values, int index) { values[index] = 1; }
__global__ void read_at(const int* values, int index, int* out) { out[0] = values[index]; }

__global__ void race_in_shared(int* out) {
  __shared__ int box[64];
  const unsigned i = threadIdx.x;
  box[i] = 0;
  __syncthreads();
  box[i] = static_cast<int>(i);
  out[i] = box[(i + 1) % blockDim.x];  // no barrier
}

__global__ void load_vector(const float* values, float* out) {
  *reinterpret_cast<float4*>(out) = __ldg(reinterpret_cast<const float4*>(values));
}

// One warp: the meeting orders its accesses.
__global__ void ordered_in_warp(int* out) {
  __shared__ int box[32];
  const unsigned i = threadIdx.x;
  box[i] = static_cast<int>(i);
  __syncwarp();
  out[i] = box[(i + 1) % 32] + box[0];
  __syncwarp();
  if (i == 0) box[0] = 7;
}

__global__ void race_between_blocks(int* out) { out[0] = static_cast<int>(blockIdx.x); }

template <Fence kFence>
__global__ void last_block(int* parts, unsigned* arrived, int* sum) {
  parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
  if (kFence != Fence::kNone) __threadfence();
  if (atomicInc(arrived, gridDim.x - 1) != gridDim.x - 1) return;
  if (kFence == Fence::kBoth) __threadfence();
  int total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += parts[i];
  *sum = total;
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void left_before_barrier(int* out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_shuffle(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_sync(0xffffffffU, 1, 0);
  __syncthreads();
}

__global__ void read_unwritten_shared(int* out) {
  int* box = dynamic_shared<int>();
  out[0] = box[3];
}

__global__ void write_past_shared() { dynamic_shared<int>()[4] = 1; }

// A pointer to a local variable of another thread.
__global__ void read_foreign_stack(int* out) {
  __shared__ const int* where;
  int mine = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) where = &mine;
  __syncthreads();
  if (threadIdx.x == 1) out[0] = *where;
  __syncthreads();
  out[1 + threadIdx.x] = mine;
}

// Fragments of one warp, [lane][register]; lanes from `lanes` on do not come.
template <typename Sum>
__global__ void multiply(void (*mma)(Sum (&)[4], const uint32_t (&)[4], const uint32_t (&)[2],
                                     const simt::Site&),
                         unsigned lanes, const uint32_t* a, const uint32_t* b, Sum* d) {
  const unsigned lane = threadIdx.x;
  if (lane >= lanes) {
    __syncthreads();
    return;
  }
  uint32_t of_a[4], of_b[2];
  Sum of_d[4];
  for (unsigned i = 0; i < 4; ++i) of_a[i] = a[lane * 4 + i];
  for (unsigned i = 0; i < 2; ++i) of_b[i] = b[lane * 2 + i];
  for (unsigned i = 0; i < 4; ++i) of_d[i] = d[lane * 4 + i];
  mma(of_d, of_a, of_b, simt::Site::current());
  for (unsigned i = 0; i < 4; ++i) d[lane * 4 + i] = of_d[i];
  if (lanes < 32) __syncthreads();
}

__global__ void mma_after_exit(int* out) {
  if (threadIdx.x == 9) return;
  int d[4] = {};
  fmp::cuda::mma_m16n8k32_s8_s8(d, {1, 2, 3, 4}, {5, 6});
  out[threadIdx.x] = d[0];
}

__global__ void split_floats(const float* values, uint32_t* parts) {
  const unsigned i = threadIdx.x;
  uint32_t of_pair[fmp::cuda::kFloatParts];
  fmp::cuda::split(values[2 * i], values[2 * i + 1], of_pair);
  for (unsigned p = 0; p < fmp::cuda::kFloatParts; ++p) {
    parts[i * fmp::cuda::kFloatParts + p] = of_pair[p];
  }
}

fmp::cuda::Shape one_block(unsigned threads, size_t shared_bytes = 0) {
  return {dim3(1), dim3(threads), shared_bytes};
}

}  // namespace

#define SIMT_LAUNCH(shape, kernel, ...) \
  fmp::cuda::launch({#kernel, nullptr}, shape, kernel __VA_OPT__(, ) __VA_ARGS__)

void run_scale_add(const float* a, float* b, int n, cudaStream_t stream) {
  fmp::cuda::launch(fmp::cuda::Where("scale_add", stream), fmp::cuda::Shape{dim3(3), dim3(100)},
                    scale_add, a, b, n);
}
void run_block_sums(const int* values, int* sums, int n, unsigned blocks, unsigned threads) {
  SIMT_LAUNCH((fmp::cuda::Shape{dim3(blocks), dim3(threads)}), block_sums, values, sums, n);
}
void run_reverse(int* values, unsigned n) {
  SIMT_LAUNCH(one_block(n, n * sizeof(int)), reverse, values);
}
void run_vote(const int* values, unsigned* ballots, unsigned* count, unsigned* permuted) {
  SIMT_LAUNCH(one_block(32), vote, values, ballots, count, permuted);
}
void run_write_at(int* values, int index) { SIMT_LAUNCH(one_block(1), write_at, values, index); }
void run_load_vector(const float* values, float* out) {
  SIMT_LAUNCH(one_block(1), load_vector, values, out);
}
void run_read_at(const int* values, int index, int* out) {
  SIMT_LAUNCH(one_block(1), read_at, values, index, out);
}
void run_race_in_shared(int* out) { SIMT_LAUNCH(one_block(64), race_in_shared, out); }
void run_ordered_in_warp(int* out) { SIMT_LAUNCH(one_block(32), ordered_in_warp, out); }
void run_race_between_blocks(int* out) {
  SIMT_LAUNCH((fmp::cuda::Shape{dim3(2), dim3(1)}), race_between_blocks, out);
}
void run_last_block(Fence fence, int* parts, unsigned* arrived, int* sum) {
  const auto kernel = fence == Fence::kNone        ? last_block<Fence::kNone>
                      : fence == Fence::kOfWriters ? last_block<Fence::kOfWriters>
                                                   : last_block<Fence::kBoth>;
  SIMT_LAUNCH((fmp::cuda::Shape{dim3(3), dim3(1)}), kernel, parts, arrived, sum);
}
void run_divergent_barrier(int* out) { SIMT_LAUNCH(one_block(32), divergent_barrier, out); }
void run_left_before_barrier(int* out) { SIMT_LAUNCH(one_block(32), left_before_barrier, out); }
void run_divergent_shuffle(int* out) { SIMT_LAUNCH(one_block(32), divergent_shuffle, out); }
void run_read_unwritten_shared(int* out) {
  SIMT_LAUNCH(one_block(1, 64), read_unwritten_shared, out);
}
void run_write_past_shared() { SIMT_LAUNCH(one_block(1, 16), write_past_shared); }
void run_read_foreign_stack(int* out) { SIMT_LAUNCH(one_block(32), read_foreign_stack, out); }
void run_multiply_bf16(const uint32_t* a, const uint32_t* b, float* d, unsigned lanes) {
  SIMT_LAUNCH(one_block(32), multiply<float>, simt::mma_m16n8k16_bf16, lanes, a, b, d);
}
void run_multiply_bytes(Signs signs, const uint32_t* a, const uint32_t* b, int* d) {
  SIMT_LAUNCH(one_block(32), multiply<int>,
              signs == Signs::kBoth  ? simt::mma_m16n8k32_s8_s8
              : signs == Signs::kOfA ? simt::mma_m16n8k32_s8_u8
                                     : simt::mma_m16n8k32_u8_u8,
              32U, a, b, d);
}
void run_mma_after_exit(int* out) { SIMT_LAUNCH(one_block(32), mma_after_exit, out); }
void run_split_floats(const float* values, uint32_t* parts, unsigned pairs) {
  SIMT_LAUNCH(one_block(pairs), split_floats, values, parts);
}
void run_too_much_shared(int* values) { SIMT_LAUNCH(one_block(32, 64 * 1024), reverse, values); }
void run_too_many_threads(int* values) { SIMT_LAUNCH(one_block(2048), reverse, values); }

}  // namespace simt_test
