// SPDX-License-Identifier: MIT
// The layer that reads the frames. Its windows hold few elements x_k (k: tap and channel), so that
// the sums over the batch X_k of x_k and G_kj of x_k * x_j, exact integers, tell all that
// batch-norm needs of y = sum over k of w_k * x_k:
//
//   sum of y   = sum over k of w_k * X_k
//   sum of y^2 = sum over k and j of w_k * w_j * G_kj
//
// Nobody wants the gradient of the frames, and with S_k, the sum of g * x_k, the weights' is
//
//   dw_k = of_g * S_k + of_y * (sum over j of w_j * G_kj) + of_one * X_k
//
// so that one pass over dp gives S and batch-norm's sums; dy is never formed.
#include <cstdint>

#include "kernels/cuda/batch_norm.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/winners.h"

namespace fmp::cuda {
namespace {

using Total = unsigned long long;

constexpr int kChannels = 2;  // I and Q
constexpr int kMostTaps = 5;  // whose products of elements fit the registers
constexpr int kSumRows = 64;  // positions of a warp
constexpr int kColumns = kFragmentColumns;
constexpr int kThreads = kWarpLanes * kWindowWarps;
constexpr int kBlocksEach = 3;  // on a multiprocessor, at least

// Adds to adding[K] of the elements and adding[K + k (k + 1) / 2 + j] of products, j <= k. The last
// block moves them to norm.sums.
template <bool kSigned, int kTaps>
__global__ void __launch_bounds__(kBlockThreads)
    window_sums(CodeTile x, WarpsByRows grid, int length, Total* adding, unsigned* arrived,
                BatchNormOf<WindowSums> norm) {
  constexpr int kElements = kTaps * kChannels, kProducts = kElements * (kElements + 1) / 2;
  constexpr int kSums = kElements + kProducts;
  static_assert(kSums <= kBlockThreads);
  __shared__ int64_t of_warp[kBlockWarps][kSums];
  const int lane = grid.first_lane() + thread_x();
  const int begin = (grid.row() * kBlockWarps + thread_y()) * kSumRows;
  const int end = min(begin + kSumRows, length);
  int window[kElements] = {}, sum[kSums] = {};
  const auto shift_in = [&](int row) {
#pragma unroll
    for (int i = kChannels; i < kElements; ++i) window[i - kChannels] = window[i];
    const uint32_t word = x.word(row, 0, lane);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      window[kElements - kChannels + c] = code_of<kSigned>(word, c);
    }
  };
  for (int tap = 0; tap + 1 < kTaps && begin < end; ++tap) shift_in(begin + tap);
  for (int position = begin; position < end; ++position) {
    shift_in(position + kTaps - 1);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      sum[k] += window[k];
#pragma unroll
      for (int j = 0; j <= k; ++j) sum[kElements + k * (k + 1) / 2 + j] += window[k] * window[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int64_t total = warp_sum(static_cast<int64_t>(sum[i]));
    if (thread_x() == 0) of_warp[thread_y()][i] = total;
  }
  __syncthreads();
  const int i = thread_of_block();
  if (i < kSums) {
    int64_t total = 0;
    for (int w = 0; w < kBlockWarps; ++w) total += of_warp[w][i];
    atomicAdd(adding + i, static_cast<Total>(total));
  }
  if (!is_last_block(arrived, all_blocks())) return;
  if (i < kSums) {
    norm.sums.data[i] = adding[i];
    adding[i] = 0;
  }
  __syncthreads();
  if (norm.arrived != nullptr) norm.set();
}

// partial[block_x()][channel][2]: sums of g and of dp * code.
// of_blocks[block_x()][channel][kColumnTiles * kColumns]: S.
template <bool kSigned, int kPositions, int kColumnTiles>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    window_gradients(Recompute r, Activation a, const float* dp, const WindowBits* winners,
                     OutputCodes out, int elements, float* of_blocks, double* partial) {
  __shared__ float of_warp[kWindowWarps][kFragmentRows][kColumnTiles * kColumns];
  __shared__ double sums_of_warp[kWindowWarps][kFragmentRows][2];
  const int tile = block_y();
  const int frame = first_frame_of_lane(r.grid.first_lane());
  WindowGradientSums of_lane;
  float s[kColumnTiles][4] = {};
  const RowSlice rows(a.pooled_length(), r.grid.row(), r.grid.rows);
#pragma unroll 1
  for (int row = rows.begin + thread_y(); row < rows.end; row += kWindowWarps) {
    const TileBits bits = read_bits(winners, a, row, tile, frame);
    float gradient[4][kFrameTiles];  // by e
    load_tile_gradients(a, dp, row, tile, frame, gradient);
    of_lane.add(bits, gradient, out, row, tile, frame);
#pragma unroll
    for (int j = 0; j < kPositions; ++j) {
      // This lane's column is an element of the window; its eight frames are those of g.
      uint32_t codes[kColumnTiles][2][kFrameTiles];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const int element = n * kColumns + group_of_lane();
        const uint32_t* from =
            r.x + place(row * kPositions + j + element / kChannels, 0, frame, 1, r.s.lanes);
        load_frames<uint4>(from, element < elements, codes[n][0]);
        load_frames<uint4>(from + kFrameTiles, element < elements, codes[n][1]);
        for (auto& half : codes[n]) {
          for (uint32_t& word : half) word ^= kSigned ? kAdd128 : 0U;
        }
      }
#pragma unroll
      for (int half = 0; half < kFrameTiles / 2; ++half) {  // a product takes half of the frames
        const int i = 2 * half;
        uint32_t g[kFloatParts][4];
        split_gradients(bits, j, half, gradient, g);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const int byte = group_of_lane() % kChannels;
          const uint32_t b[2] = {code_pair<kSigned>(codes[n][0][i], codes[n][1][i], byte),
                                 code_pair<kSigned>(codes[n][0][i + 1], codes[n][1][i + 1], byte)};
          float of_step[4] = {};
#pragma unroll
          for (int p = kFloatParts - 1; p >= 0; --p) mma_m16n8k16_bf16(of_step, g[p], b);
          add_step(of_step, s[n]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      of_warp[thread_y()][2 * group_of_lane() + e / 2]
             [n * kColumns + 2 * member_of_lane() + e % 2] = s[n][e];
    }
  }
  of_lane.end();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (member_of_lane() == 0) {
      double(&to)[2] = sums_of_warp[thread_y()][2 * group_of_lane() + half];
      to[0] = of_lane.all[half][0];
      to[1] = of_lane.all[half][1];
    }
  }
  __syncthreads();
  constexpr int kStride = kColumnTiles * kColumns;
  const int thread = thread_y() * kWarpLanes + thread_x();
  for (int i = thread; i < kFragmentRows * kStride; i += kThreads) {
    const int row = i / kStride, channel = output_of(tile, row / 2, row % 2);
    if (channel >= a.channels) continue;
    float total = 0;
    for (int warp = 0; warp < kWindowWarps; ++warp) total += of_warp[warp][row][i % kStride];
    of_blocks[(static_cast<size_t>(block_x()) * static_cast<size_t>(a.channels) +
               static_cast<size_t>(channel)) *
                  kStride +
              static_cast<size_t>(i % kStride)] = total;
  }
  if (thread >= kFragmentRows * 2) return;
  const int row = thread / 2, channel = output_of(tile, row / 2, row % 2);
  if (channel >= a.channels) return;
  double total = 0;
  for (int warp = 0; warp < kWindowWarps; ++warp) total += sums_of_warp[warp][row][thread % 2];
  place_of_sums(partial, a.channels, channel)[thread % 2] = total;
}

}  // namespace

bool has_few_elements(const Input& x, const Weights& weights) {
  constexpr double kExact = 4.6e18;  // below 2^62
  const ConvShape& s = weights.conv();
  const double largest = static_cast<double>(largest_sum(weights.layer()));
  const int pool = weights.layer().pool;
  return can_recompute(weights) && s.same_padding && s.in_channels == kChannels &&
         (pool == 1 || pool == kPair) && s.taps % 2 == 1 && s.taps <= kMostTaps &&
         static_cast<double>(x.tile.frames_of_batch()) * s.out_length * largest * largest < kExact;
}

void sum_windows(const Input& x, const Weights& weights, Total* adding,
                 const BatchNormOf<WindowSums>& end, unsigned* arrived, Stream stream) {
  const ConvShape& s = weights.conv();
  const WarpsByRows grid = warps_by_rows(
      x.tile.lanes(),
      static_cast<int>(blocks_for(static_cast<size_t>(s.out_length), kBlockWarps * kSumRows)));
  const CodeTile codes{static_cast<const uint32_t*>(x.data), x.tile.quads(), x.tile.lanes()};
  const auto run = [&]<int kTaps>() {
    launch(Where("window_sums", native(stream)),
           Shape{dim3(grid.blocks()), dim3(kWarpLanes, kBlockWarps)},
           x.type == ElementType::kS8 ? window_sums<true, kTaps> : window_sums<false, kTaps>, codes,
           grid, s.out_length, adding, arrived, end);
  };
  switch (s.taps) {
    case 1:
      run.template operator()<1>();
      break;
    case 3:
      run.template operator()<3>();
      break;
    default:
      run.template operator()<kMostTaps>();
      break;
  }
  if (!x.tile.groups().are_all_here())
    weights.ranks()->sum(end.sums.data, WindowSums::size(end.sums.elements), stream);
}

int stride_of_windows(const WindowSums& windows) {
  return windows.elements <= kColumns ? kColumns : 2 * kColumns;
}
size_t memory_for_window_gradients(const Activation& a, const WindowSums& windows) {
  return static_cast<size_t>(gradient_slices(a).blocks()) * static_cast<size_t>(a.channels) *
         static_cast<size_t>(stride_of_windows(windows));
}

void sum_window_gradients(const Input& x, const Weights& weights, const Activation& a,
                          const ForwardPass& forward, const float* dp, const WindowSums& windows,
                          const SumsOfBlocks& sums, Stream stream) {
  const RecomputeCall of(x, weights, stream);
  const WarpsByRows grid = gradient_slices(a);
  of.with_constants(a.pool == kPair, [&]<bool kSigned, int kPositions>() {
    launch(Where("window_gradients", of.on),
           Shape{dim3(grid.blocks(), static_cast<unsigned>(of.s.out_tiles)),
                 dim3(kWarpLanes, kWindowWarps)},
           sums.stride == kColumns ? window_gradients<kSigned, kPositions, 1>
                                   : window_gradients<kSigned, kPositions, 2>,
           of.at(grid), a, dp, forward.winners, forward.out, windows.elements, sums.of_blocks,
           sums.partial);
  });
}

}  // namespace fmp::cuda
