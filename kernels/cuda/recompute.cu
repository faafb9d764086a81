// SPDX-License-Identifier: MIT
// The passes of a hidden layer whose inputs and weights are codes, without its sums y in memory: y
// is exact and costs less to compute again on tensor cores than to read, so that each pass reads
// the codes of the input and consumes y where it is made, in registers:
//
//   sums of y and y^2          integers, exact in any order: 64-bit atomics
//   codes                      affine step, code, pool and packing; the evaluation pass, too
//   sums of g, g * xhat        the winner of each window, found again from y
//   dy                         likewise
//
// first_layer.cu does better where windows hold few elements.
#include "kernels/cuda/batch_norm.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/winners.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;
using Total = unsigned long long;

constexpr int kThreads = kWarpLanes * kWindowWarps;
// Tiles of a warp: what its registers hold beside what is done with the sums.
constexpr int kForwardTiles = 2, kSumTiles = 1, kApplyTiles = 1;
constexpr int kBlockOutputs = kForwardTiles * kFragmentRows;
// Blocks on a multiprocessor, at least, so that loads of some wait while others compute.
constexpr int kBlocksEach = 4;
constexpr int kMostPooled = 256;  // whose winner's position fits a byte
constexpr int kRun = 8;           // times that a warp adds up y
// Sums of a warp's positions and frames, of a lane each time, must fit 32 bits, and sums of a block
// 64 bits.
constexpr int64_t kLargestSum = int64_t{1} << 26;
static_assert(2 * kFrameTiles * kPair * kLargestSum <= int64_t{1} << 30);
static_assert(kWindowWarps * kWarpLanes * kRun * kPair <= 1 << 11);

// --- Sums of y and y^2 ---------------------------------------------------------------------------

// totals[copy][channel]: sum of y, and of the lower and upper 32 bits of sums of y^2.
template <bool kSigned, int kPositions>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    recompute_sums(Recompute r, BatchNormOf<ExactSums> end) {
  __shared__ Total of_warp[kWindowWarps][kBlockOutputs][2];
  const int first_tile = block_y() * kForwardTiles;
  int64_t sum[kForwardTiles][2] = {};
  Total squares[kForwardTiles][2] = {};
#pragma unroll 1
  for (int i = 0; i < kRun; ++i) {
    const int position = ((r.grid.row() * kRun + i) * kWindowWarps + thread_y()) * kPositions;
    if (position >= r.s.out_length) break;
    LaneSums<kForwardTiles> y[kPositions];
    multiply_positions<kSigned, kPositions, kForwardTiles>(r, position, first_tile, y);
#pragma unroll
    for (int m = 0; m < kForwardTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int of_lane = 0;
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
#pragma unroll
          for (int t = 0; t < kFrameTiles; ++t) {
#pragma unroll
            for (int column = 0; column < 2; ++column) {
              const int value = y[p][m][t][2 * half + column];
              of_lane += value;
              squares[m][half] += static_cast<Total>(static_cast<int64_t>(value) * value);
            }
          }
        }
        sum[m][half] += of_lane;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kForwardTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Total of_lanes[2] = {static_cast<Total>(sum[m][half]), squares[m][half]};
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        for (int step = 1; step < kMembers; step *= 2) {
          of_lanes[which] += __shfl_xor_sync(kWholeWarp, of_lanes[which], step);
        }
        if (member_of_lane() == 0) {
          of_warp[thread_y()][output_of(m, group_of_lane(), half)][which] = of_lanes[which];
        }
      }
    }
  }
  __syncthreads();
  const int thread = thread_y() * kWarpLanes + thread_x();
  static_assert(kThreads >= kBlockOutputs * 2);
  const int output = thread / 2, which = thread % 2;
  const int channel = first_tile * kFragmentRows + output;
  if (output < kBlockOutputs && channel < r.s.out_channels) {
    Total total = 0;
    for (int w = 0; w < kWindowWarps; ++w) total += of_warp[w][output][which];
    Total* to = end.sums.totals.of(block_x() % IntegerSums::kCopies, channel);
    if (which == 0) {
      atomicAdd(to, total);
    } else {
      atomicAdd(to + 1, total & 0xffffffffU);
      atomicAdd(to + 2, total >> 32);
    }
  }
  end.finish();
}

// --- Codes ---------------------------------------------------------------------------------------

// Every row of `out`, padding included.
template <bool kSigned, int kPositions, bool kWinners, typename Affine>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    recompute_codes(Recompute r, Activation a, const Scalars* scalars, Tile out, uint32_t* words,
                    WindowBits* winners) {
  static_assert(kForwardTiles == 2, "a pair of tiles holds the quads of a lane");
  const int row = r.grid.row() * kWindowWarps + thread_y() - out.pad;
  if (row >= out.length + out.pad) return;
  const int first_tile = block_y() * kForwardTiles;
  const int quad = first_tile / 2 * kFragmentColumns + group_of_lane();
  const int frame = first_frame_of_lane(r.grid.first_lane());
  const bool inside = row >= 0 && row < out.length;
  // Affine step, code and rounding never decrease: the code of the largest value is the largest.
  float largest[kForwardTiles][kFrameTiles][4];
  WindowBits bits{};
  const int pool = pool_of<kPositions>(a);
#pragma unroll 1
  for (int j = 0; inside && j < pool; j += kPositions) {
    LaneSums<kForwardTiles> y[kPositions];
    multiply_positions<kSigned, kPositions, kForwardTiles>(r, row * pool + j, first_tile, y);
#pragma unroll
    for (int m = 0; m < kForwardTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = min(output_of(first_tile + m, group_of_lane(), half), a.channels - 1);
        const Affine affine(a, channel, scalars);
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
#pragma unroll
          for (int column = 0; column < 2; ++column) {
            const int e = 2 * half + column;
            float most = affine(static_cast<float>(y[0][m][i][e]));
            if constexpr (kWinners) {
              // The first of the largest codes wins, and whether it passes is its sum's to tell.
              const uint32_t bit = 1U << (16 * m + bit_of(e, i));
              if constexpr (kPositions == kPair) {
                const float other = affine(static_cast<float>(y[1][m][i][e]));
                if (rounded_code(other, a) > rounded_code(most, a)) {
                  most = other;
                  bits.position |= bit;
                }
              }
              if (passes<true>(a, most)) bits.passing |= bit;
            } else {
#pragma unroll
              for (int p = 1; p < kPositions; ++p) {
                most = fmaxf(most, affine(static_cast<float>(y[p][m][i][e])));
              }
            }
            largest[m][i][e] = j == 0 ? most : fmaxf(largest[m][i][e], most);
          }
        }
      }
    }
  }
  if (quad >= out.quads()) return;
  if (kWinners && inside) winners[place_of_bits(row, quad, out.quads(), frame, r.s.lanes)] = bits;
  uint4* to =
      reinterpret_cast<uint4*>(words + place(row + out.pad, quad, frame, out.quads(), r.s.lanes));
#pragma unroll
  for (int column = 0; column < 2; ++column) {
    uint32_t of_frame[kFrameTiles];
#pragma unroll
    for (int i = 0; i < kFrameTiles; ++i) {
      uint32_t codes[kQuad];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const int channel = quad * kQuad + k;
        const Affine affine(a, min(channel, a.channels - 1), scalars);
        const float t = affine.in_codes(largest[k / 2][i][2 * (k % 2) + column]);
        codes[k] = channel < a.channels ? __float_as_uint(rounded_code(t, a)) : 0U;
      }
      const uint32_t word = pack_bytes(codes[0], codes[1], codes[2], codes[3]);
      of_frame[i] = inside && frame + 4 * column + i < a.frames ? word : 0U;
    }
    to[column] = uint4{of_frame[0], of_frame[1], of_frame[2], of_frame[3]};
  }
}

// --- The way back --------------------------------------------------------------------------------

// end.partial[block_x()][channel][3]: sums of g, of g * xhat, and of the scale's gradient. A block
// has the rows of its slice, a warp every fourth of them.
template <bool kSigned, int kPositions>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    recompute_gradient_sums(Recompute r, const float* dp, const float* xhat_gain,
                            const float* xhat_shift, BackwardNormOf end) {
  const Activation& a = end.a;
  const int first_tile = block_y() * kSumTiles;
  GradientSums<kSumTiles> sums;
  const RowSlice rows(a.pooled_length(), r.grid.row(), r.grid.rows);
#pragma unroll 1
  for (int row = rows.begin + thread_y(); row < rows.end; row += kWindowWarps) {
    Winners<kSumTiles> w;
    LaneSums<kSumTiles> y[kPositions];
    find_winners<kSigned, kPositions, kSumTiles>(r, a, first_tile, row, w, y);
    add_winners(sums, w, a, dp, row, first_tile, first_frame_of_lane(r.grid.first_lane()),
                xhat_gain, xhat_shift);
    sums.end_row();
  }
  write_sums(sums, first_tile, a.channels, end.partial);
  end.finish<kWindowWarps>();
}

// dy of every pooled row; past the last one: a row of padding.
template <bool kSigned, int kPositions>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    recompute_gradients(Recompute r, Activation a, const float* dp, GradientAffine k, int pad,
                        float* dy) {
  const int row = r.grid.row() * kWindowWarps + thread_y();
  if (row >= a.pooled_length() + 2 * pad) return;
  const int first_tile = block_y() * kApplyTiles;
  const int frame = first_frame_of_lane(r.grid.first_lane());
  const auto store = [&](int position, int m, int e, const float(&of_frame)[kFrameTiles]) {
    const int channel = output_of(first_tile + m, group_of_lane(), e / 2);
    if (channel >= a.channels) return;
    *reinterpret_cast<float4*>(dy + a.place(position, channel, frame + 4 * (e % 2))) =
        float4{of_frame[0], of_frame[1], of_frame[2], of_frame[3]};
  };
  if (row >= a.pooled_length()) {
    const int i = row - a.pooled_length();  // 0 .. 2 pad - 1
    const float zeros[kFrameTiles] = {};
#pragma unroll
    for (int m = 0; m < kApplyTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) store(i < pad ? i : a.length + i, m, e, zeros);
    }
    return;
  }
  Winners<kApplyTiles> w;
  LaneSums<kApplyTiles> y[kPositions];
  find_winners<kSigned, kPositions, kApplyTiles>(r, a, first_tile, row, w, y);
  const int pool = pool_of<kPositions>(a);
#pragma unroll 1
  for (int j = 0; j < pool; j += kPositions) {
    if (kPositions < pool) {
      multiply_positions<kSigned, kPositions, kApplyTiles>(r, row * pool + j, first_tile, y);
    }
#pragma unroll
    for (int m = 0; m < kApplyTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int wanted = output_of(first_tile + m, group_of_lane(), e / 2);
        const int channel = min(wanted, a.channels - 1);
        const float gain = a.gain[channel], shift = a.shift[channel];
        const float of_g = k.of_g[channel], of_y = k.of_y[channel], of_one = k.of_one[channel];
        const int first = frame + 4 * (e % 2);
        float gradient[4];
        load_gradients(a, dp, row, wanted, first, gradient);
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          if (!passes<true>(a, __fmaf_rn(w.y[m][i][e], gain, shift))) gradient[i] = 0;
        }
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          const int position = j + p;
          float of_frame[kFrameTiles];
#pragma unroll
          for (int i = 0; i < kFrameTiles; ++i) {
            const float g = w.is_at(position, m, i, e) ? gradient[i] : 0.0F;
            const float sum = static_cast<float>(y[p][m][i][e]);
            const float value = __fmaf_rn(of_g, g, __fmaf_rn(of_y, sum, of_one));
            of_frame[i] = first + i < a.frames ? value : 0.0F;
          }
          store(row * pool + position + pad, m, e, of_frame);
        }
      }
    }
  }
}

// dy of the positions that no window has: batch-norm's part of it alone.
template <bool kSigned>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    recompute_left_over(Recompute r, Activation a, GradientAffine k, int pad, float* dy) {
  const int position = a.pooled_length() * a.pool + r.grid.row() * kWindowWarps + thread_y();
  if (position >= a.length) return;
  const int first_tile = block_y() * kApplyTiles;
  const int frame = first_frame_of_lane(r.grid.first_lane());
  LaneSums<kApplyTiles> y[1];
  multiply_positions<kSigned, 1, kApplyTiles>(r, position, first_tile, y);
#pragma unroll
  for (int m = 0; m < kApplyTiles; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int channel = output_of(first_tile + m, group_of_lane(), e / 2);
      if (channel >= a.channels) continue;
      const float of_y = k.of_y[channel], of_one = k.of_one[channel];
      const int first = frame + 4 * (e % 2);
      float of_frame[kFrameTiles];
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) {
        const float value = __fmaf_rn(of_y, static_cast<float>(y[0][m][i][e]), of_one);
        of_frame[i] = first + i < a.frames ? value : 0.0F;
      }
      *reinterpret_cast<float4*>(dy + a.place(position + pad, channel, first)) =
          float4{of_frame[0], of_frame[1], of_frame[2], of_frame[3]};
    }
  }
}

// --- Launches ------------------------------------------------------------------------------------

// tiles: of a warp.
template <typename Kernel, typename... Arguments>
void run(const char* name, const RecomputeCall& of, const WarpsByRows& grid, int tiles,
         Kernel kernel, Arguments... arguments) {
  const Shape shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(of.s.out_tiles),
                                                   static_cast<size_t>(tiles))),
                    dim3(kWarpLanes, kWindowWarps)};
  launch(Where(name, of.on), shape, kernel, of.at(grid), arguments...);
}

}  // namespace

bool can_recompute(const Weights& weights) {
  return weights.byte_fragments() != nullptr && largest_sum(weights.layer()) < kLargestSum &&
         weights.layer().act_bits != kFloatBits && weights.layer().pool <= kMostPooled;
}

void sum_channels(const Input& x, const Weights& weights, const BatchNormOf<ExactSums>& end,
                  Stream stream) {
  const RecomputeCall of(x, weights, stream);
  const IntegerSums& totals = end.sums.totals;
  of.with_constants(of.s.out_length % kPair == 0, [&]<bool kSigned, int kPositions>() {
    run("recompute_sums", of, of.warps_by(of.s.out_length, kWindowWarps * kRun * kPositions),
        kForwardTiles, recompute_sums<kSigned, kPositions>, end);
  });
  if (!x.tile.groups().are_all_here()) {
    const auto channels = static_cast<size_t>(totals.channels);
    weights.ranks()->sum(totals.data, IntegerSums::elements(channels), stream);
  }
}

void activate(const Input& x, const Weights& weights, const Activation& a, Mode mode,
              const HiddenState& state, const Tile& out, void* out_data, WindowBits* winners,
              Stream stream) {
  const RecomputeCall of(x, weights, stream);
  of.with_constants(a.pool == kPair, [&]<bool kSigned, int kPositions>() {
    const auto kernel = winners != nullptr ? recompute_codes<kSigned, kPositions, true, FusedAffine>
                        : mode == Mode::kTraining
                            ? recompute_codes<kSigned, kPositions, false, FusedAffine>
                            : recompute_codes<kSigned, kPositions, false, EvaluationAffine>;
    run("recompute_codes", of, of.warps_by(out.rows(), kWindowWarps), kForwardTiles, kernel, a,
        static_cast<const Scalars*>(state.scalars.data()), out, static_cast<uint32_t*>(out_data),
        winners);
  });
}

PartialSums sums_of_gradients(const Activation& a) {
  return PartialSums::blocks(a.groups, gradient_slices(a).rows);
}
int blocks_of(const PartialSums& sums) {
  return sums.each > 0 ? sums.each * sums.count : sums.rows * sums.groups.begin(sums.groups.here);
}

void sum_gradients(const Input& x, const Weights& weights, const Activation& a,
                   const HiddenState& state, const float* dp, const BackwardNormOf& end,
                   Stream stream) {
  const RecomputeCall of(x, weights, stream);
  of.with_constants(a.pool == kPair, [&]<bool kSigned, int kPositions>() {
    run("recompute_gradient_sums", of, gradient_slices(a), kSumTiles,
        recompute_gradient_sums<kSigned, kPositions>, dp,
        static_cast<const float*>(state.constant(HiddenState::kXhatGain)),
        static_cast<const float*>(state.constant(HiddenState::kXhatShift)), end);
  });
}

void apply_gradients(const Input& x, const Weights& weights, const Activation& a, const float* dp,
                     const GradientAffine& gradient, const Tile& dy_tile, float* dy,
                     Stream stream) {
  const RecomputeCall of(x, weights, stream);
  const int pad = dy_tile.pad, left_over = a.length % a.pool;
  of.with_constants(a.pool == kPair, [&]<bool kSigned, int kPositions>() {
    run("recompute_gradients", of, of.warps_by(a.pooled_length() + 2 * pad, kWindowWarps),
        kApplyTiles, recompute_gradients<kSigned, kPositions>, a, dp, gradient, pad, dy);
  });
  if (left_over != 0) {
    of.with_constants(false, [&]<bool kSigned, int>() {
      run("recompute_left_over", of, of.warps_by(left_over, kWindowWarps), kApplyTiles,
          recompute_left_over<kSigned>, a, gradient, pad, dy);
    });
  }
  // Rows of zeros behind those of the padding.
  const size_t row = static_cast<size_t>(a.channels) * static_cast<size_t>(a.lanes);
  const auto more = static_cast<size_t>(dy_tile.length - a.length);
  set_bytes(dy + row * static_cast<size_t>(a.length + 2 * pad), 0, more * row * sizeof(float),
            stream);
}

}  // namespace fmp::cuda
