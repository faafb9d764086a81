// SPDX-License-Identifier: MIT
// Sums over all windows of a hidden layer's input of their elements x_k (k: tap and channel), X_k,
// and of products of two, G_kj. They are exact integers and tell what batch-norm needs of
// y = sum over k of w_k * x_k, and what the gradient of the weights needs beside sums of g * x_k
// (recompute_backward.cu); v_k = sum over j of w_j * G_kj:
//
//   sum of y = sum over k of w_k * X_k,   sum of y^2 = sum over k of w_k * v_k
//
// Windows of neighbouring positions share rows, so that G is made of the products of rows that lie
// 0, 1 and 2 apart. Windows at the ends have a row of zeros: what the first or the last row is not
// part of is taken off.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/batch_norm.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/winners.h"

namespace fmp::cuda {
namespace {

using Total = unsigned long long;

constexpr int kTaps = WindowProducts::kTaps, kLags = kTaps;  // rows 0 .. kTaps - 1 apart
constexpr int kGroupQuads = 8, kGroupChannels = WindowProducts::kGroupChannels;
static_assert(kGroupQuads * kQuad == kGroupChannels);
constexpr int kThreads = kWarpLanes * kWindowWarps;
constexpr int kBlocksEach = 2;
constexpr int kBlocks = 132 * kBlocksEach, kEdgeBlocks = 4;
// Rows of 32 frames of a block: as many as pay, and as sums of products of bytes fit 31 bits.
constexpr int kFewestSteps = 64, kMostSteps = 1024;
static_assert(int64_t{255} * 255 * kWarpLanes * kMostSteps < int64_t{1} << 31);
// A unit multiplies a group of channels by another: tiles of rows and of columns, elements of each.
constexpr int kRowTiles = 2, kColumnTiles = 4;
constexpr int kProducts = kLags * kRowTiles * kColumnTiles * 4, kSums = kRowTiles * 4;
constexpr int kRegisters = kProducts + kSums;  // of a lane

// Which rows of x are multiplied: all, the first, the last.
constexpr int kAll = 0, kFirst = 1, kLast = 2;
struct Jobs {
  int blocks_of_all, blocks_of_edge, warps, length;
  __host__ __device__ int blocks() const { return blocks_of_all + 2 * blocks_of_edge; }
  __host__ __device__ int first_block(int job) const {
    return job == kAll ? 0 : blocks_of_all + (job - 1) * blocks_of_edge;
  }
  __host__ __device__ int blocks_of(int job) const {
    return job == kAll ? blocks_of_all : blocks_of_edge;
  }
  __host__ __device__ int job_of(int block) const {
    return block < blocks_of_all ? kAll : block - blocks_of_all < blocks_of_edge ? kFirst : kLast;
  }
};

// A group's channels of a row, four frames of channel 4 q + i of quad q = group_of_lane() to a
// word: rows of A and columns of B of a product.
struct RowCodes {
  uint32_t of[kQuad][2];
};
struct RawCodes {
  uint32_t words[2][4];
};

struct Rows {
  const uint32_t* x;
  int quads, lanes, pad, length;

  __device__ __forceinline__ void read(int group, int row, int lane, RawCodes& to) const {
    const int quad = group * kGroupQuads + group_of_lane();
    const uint32_t* from = x + place(row + pad, quad, lane + 4 * member_of_lane(), quads, lanes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_frames<uint4>(from + half * kWarpLanes / 2, quad < quads && row < length,
                         to.words[half]);
    }
  }
  __device__ __forceinline__ void prefetch(int group, int row, int lane) const {
    const int quad = group * kGroupQuads + thread_x();
    if (thread_x() < kGroupQuads && quad < quads && row < length) {
      cuda::prefetch(x + place(row + pad, quad, lane, quads, lanes));
    }
  }
};
// Rows that are asked for before they are read: what lies between takes as long as memory.
constexpr int kRowsAhead = 4;
__device__ __forceinline__ void transpose(const RawCodes& from, RowCodes& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t(&w)[4] = from.words[half];
    const uint32_t lower[2] = {__byte_perm(w[0], w[1], 0x5140), __byte_perm(w[2], w[3], 0x5140)};
    const uint32_t upper[2] = {__byte_perm(w[0], w[1], 0x7362), __byte_perm(w[2], w[3], 0x7362)};
    to.of[0][half] = __byte_perm(lower[0], lower[1], 0x5410);
    to.of[1][half] = __byte_perm(lower[0], lower[1], 0x7632);
    to.of[2][half] = __byte_perm(upper[0], upper[1], 0x5410);
    to.of[3][half] = __byte_perm(upper[0], upper[1], 0x7632);
  }
}

// partial[block_x()][unit][register][lane]
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    multiply_rows(Rows rows, Jobs jobs, int groups, int* partial) {
  const int unit = block_y() * kWindowWarps + thread_y();
  if (unit >= groups * groups) return;
  const int group_a = unit / groups, group_b = unit % groups;
  const int job = jobs.job_of(block_x());
  const int slice = block_x() - jobs.first_block(job);
  if (job == kFirst) rows.length = 1;
  const int first_row = job == kLast ? rows.length - 1 : 0;
  const int count = rows.length - first_row;
  const int steps = count * jobs.warps;
  const auto begin_of = [&](int i) {
    return static_cast<int>(static_cast<int64_t>(i) * steps / jobs.blocks_of(job));
  };
  const int end = begin_of(slice + 1);
  int products[kLags][kRowTiles][kColumnTiles][4] = {}, sums[kRowTiles][4] = {};
#pragma unroll 1
  for (int step = begin_of(slice); step < end;) {
    const int lane = step / count * kWarpLanes;
    const int begin = step % count + first_row;
    const int stop = min(begin + end - step, rows.length);
    step += stop - begin;
    RawCodes raw_a, raw_b;
    RowCodes b[kLags];
#pragma unroll
    for (int lag = 0; lag + 1 < kLags; ++lag) {
      rows.read(group_b, begin + lag, lane, raw_b);
      transpose(raw_b, b[lag]);
    }
    rows.read(group_a, begin, lane, raw_a);
    rows.read(group_b, begin + kLags - 1, lane, raw_b);
#pragma unroll 1
    for (int row = begin; row < stop; ++row) {
      RowCodes a;
      transpose(raw_a, a);
      transpose(raw_b, b[kLags - 1]);
      rows.read(group_a, row + 1, lane, raw_a);
      rows.read(group_b, row + kLags, lane, raw_b);
      rows.prefetch(group_b, row + kLags + kRowsAhead, lane);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint32_t of_a[4] = {a.of[2 * m][0], a.of[2 * m + 1][0], a.of[2 * m][1],
                                  a.of[2 * m + 1][1]};
#pragma unroll
        for (int lag = 0; lag < kLags; ++lag) {
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n) {
            mma_m16n8k32_u8_u8(products[lag][m][n], of_a, b[lag].of[n]);
          }
        }
        if (group_b == 0) {
          const uint32_t ones[2] = {0x01010101U, 0x01010101U};
          mma_m16n8k32_u8_u8(sums[m], of_a, ones);
        }
      }
#pragma unroll
      for (int lag = 0; lag + 1 < kLags; ++lag) b[lag] = b[lag + 1];
    }
  }
  int* to = partial +
            (static_cast<size_t>(block_x()) * static_cast<size_t>(groups * groups) +
             static_cast<size_t>(unit)) *
                kRegisters * kWarpLanes +
            thread_x();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int lag = 0; lag < kLags; ++lag) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          to[(((lag * kRowTiles + m) * kColumnTiles + n) * 4 + e) * kWarpLanes] =
              products[lag][m][n][e];
        }
      }
      to[(kProducts + m * 4 + e) * kWarpLanes] = sums[m][e];
    }
  }
}

// Adds up the blocks' sums of a job. A block has a register of a unit; its threads' rows share the
// blocks.
constexpr int kAddRows = 16;
__global__ void __launch_bounds__(kWarpLanes* kAddRows)
    add_products(Jobs jobs, int groups, const int* partial, WindowProducts to) {
  __shared__ int64_t of_row[kAddRows][kWarpLanes];
  const int job = block_y(), reg = block_x() % kRegisters, unit = block_x() / kRegisters;
  const int lag = reg / 4 / kColumnTiles / kRowTiles;
  if (job != kAll && lag > 0 && reg < kProducts) return;  // what no window has at its ends
  const size_t count = static_cast<size_t>(groups * groups) * kRegisters * kWarpLanes;
  partial += static_cast<size_t>(block_x()) * kWarpLanes + static_cast<size_t>(thread_x());
  int64_t sum = 0;
#pragma unroll 8
  for (int block = thread_y(); block < jobs.blocks_of(job); block += kAddRows) {
    sum += partial[static_cast<size_t>(jobs.first_block(job) + block) * count];
  }
  of_row[thread_y()][thread_x()] = sum;
  __syncthreads();
  if (thread_y() != 0) return;
  for (int row = 1; row < kAddRows; ++row) sum += of_row[row][thread_x()];
  const Total total = static_cast<Total>(sum);
  const int group = thread_x() / kMembers, member = thread_x() % kMembers;
  const auto channel = [](int of_group, int quad, int in_quad) {
    return of_group * kGroupChannels + quad * kQuad + in_quad;
  };
  const int e = reg % 4;
  if (reg >= kProducts) {
    const int m = (reg - kProducts) / 4;
    if (unit % groups == 0 && member == 0 && e % 2 == 0) {
      *to.sum(job, channel(unit / groups, group, 2 * m + e / 2)) = total;
    }
    return;
  }
  const int n = reg / 4 % kColumnTiles, m = reg / 4 / kColumnTiles % kRowTiles;
  const int a = channel(unit / groups, group, 2 * m + e / 2);
  const int b = channel(unit % groups, 2 * member + e % 2, n);
  if (job != kAll) {
    *to.edge(job, b, a) = total;
    return;
  }
  *to.product(lag, b, a) = total;
  if (lag > 0) *to.product(-lag, a, b) = total;
}

// by_weights[O][T][C] = v, and the output's sums of y and y^2 come to its constants. A block has an
// output; rows of its threads share the sum over j.
constexpr int kShares = 4;
__global__ void __launch_bounds__(kBlockThreads* kShares, 1)
    multiply_by_weights(WindowProducts products, const float* codes, int in_channels,
                        int64_t* by_weights, BatchNorm norm) {
  __shared__ int64_t of_share[kShares][kBlockThreads];
  __shared__ int64_t of_warp[kBlockWarps][3];
  const int elements = kTaps * in_channels;
  const float* of_output = codes + block_x() * elements;
  const int begin = thread_y() * in_channels / kShares;
  const int end = (thread_y() + 1) * in_channels / kShares;
  int64_t sum = 0, lower = 0, upper = 0;
  for (int first = 0; first < elements; first += kBlockThreads) {
    const int k = first + thread_x(), tap = k / in_channels, c = k % in_channels;
    int64_t v = 0;
    if (k < elements) {
#pragma unroll 1
      for (int t = 0; t < kTaps; ++t) {
        const int edge = t != tap ? kAll : t == 0 ? kLast : t == kTaps - 1 ? kFirst : kAll;
#pragma unroll 8
        for (int j = begin; j < end; ++j) {
          Total product = *products.product(t - tap, j, c);
          if (edge != kAll) product -= *products.edge(edge, j, c);
          v += static_cast<int64_t>(of_output[t * in_channels + j]) * static_cast<int64_t>(product);
        }
      }
    }
    of_share[thread_y()][thread_x()] = v;
    __syncthreads();
    if (thread_y() == 0 && k < elements) {
      for (int share = 1; share < kShares; ++share) v += of_share[share][thread_x()];
      by_weights[block_x() * elements + k] = v;
      const int64_t w = static_cast<int64_t>(of_output[k]);
      sum += w * products.of_element(tap, c);
      // In two parts, whose sums fit 64 bits.
      lower += w * (v & 0xffffffff);
      upper += w * (v >> 32);
    }
    __syncthreads();
  }
  if (thread_y() == 0) {
    const int warp = thread_x() / kWarpLanes;
    sum = warp_sum(sum);
    lower = warp_sum(lower);
    upper = warp_sum(upper);
    if (thread_x() % kWarpLanes == 0) {
      of_warp[warp][0] = sum;
      of_warp[warp][1] = lower;
      of_warp[warp][2] = upper;
    }
  }
  __syncthreads();
  if (thread_x() != 0 || thread_y() != 0) return;
  for (int warp = 1; warp < kBlockWarps; ++warp) {
    sum += of_warp[warp][0];
    lower += of_warp[warp][1];
    upper += of_warp[warp][2];
  }
  norm.set(block_x(), static_cast<double>(sum),
           static_cast<double>(upper) * 4294967296.0 + static_cast<double>(lower));
}

struct Call {
  Rows rows;
  Jobs jobs;
  int groups;

  explicit Call(const Input& x)
      : rows{static_cast<const uint32_t*>(x.data), x.tile.quads(), x.tile.lanes(), x.tile.pad,
             x.tile.length},
        groups(WindowProducts::groups(x.tile.channels)) {
    const int warps = rows.lanes / kWarpLanes;
    const auto blocks = [](int steps, int most) {
      const int fewest = (steps + kMostSteps - 1) / kMostSteps;
      return std::max(fewest, std::min(most, std::max(1, steps / kFewestSteps)));
    };
    jobs = {blocks(warps * rows.length, kBlocks), blocks(warps, kEdgeBlocks), warps, rows.length};
  }
  size_t size_of_block() const {
    return static_cast<size_t>(groups * groups) * kRegisters * kWarpLanes;
  }
};

}  // namespace

size_t memory_for_products(const Input& x) {
  const Call call(x);
  return static_cast<size_t>(call.jobs.blocks()) * call.size_of_block();
}

void sum_products(const Input& x, const Weights& weights, const ProductSums& sums, int* memory,
                  const BatchNorm& norm, Stream stream) {
  const Call call(x);
  const cudaStream_t on = native(stream);
  launch(Where("multiply_rows", on),
         Shape{dim3(static_cast<unsigned>(call.jobs.blocks()),
                    blocks_for(static_cast<size_t>(call.groups * call.groups), kWindowWarps)),
               dim3(kWarpLanes, kWindowWarps)},
         multiply_rows, call.rows, call.jobs, call.groups, memory);
  launch(Where("add_products", on),
         Shape{dim3(static_cast<unsigned>(call.groups * call.groups * kRegisters), kLast + 1),
               dim3(kWarpLanes, kAddRows)},
         add_products, call.jobs, call.groups, static_cast<const int*>(memory), sums.products);
  if (!x.tile.groups().are_all_here())
    weights.ranks()->sum(sums.products.data, WindowProducts::size(x.tile.channels), stream);
  launch(
      Where("multiply_by_weights", on),
      Shape{dim3(static_cast<unsigned>(weights.conv().out_channels)), dim3(kBlockThreads, kShares)},
      multiply_by_weights, sums.products, weights.codes(), x.tile.channels, sums.v, norm);
}

}  // namespace fmp::cuda
