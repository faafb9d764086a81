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
// The math is that of elementwise.cu. A lane holds a quad of channels (conv1d_tensor.h), i.e. whole
// words of codes, and eight frames side by side.
#include "kernels/cuda/activation.h"
#include "kernels/cuda/conv1d_tensor.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;
using Total = unsigned long long;

constexpr int kThreads = kWarpLanes * kWindowWarps;
constexpr int kBlockOutputs = kOutTiles * kFragmentRows;
constexpr int kRun = 8;  // positions of a warp that adds up y
// Sums of a block must fit 64 bits: 4 warps of 32 frames and kRun positions, |y| < 2^26.
constexpr int64_t kLargestSum = int64_t{1} << 26;
static_assert(kWindowWarps * kWarpLanes * kRun <= 1 << 10);

template <typename Window>
__device__ __forceinline__ const uint32_t* window_at(const uint32_t* x, const Windows& s,
                                                     int position, int first_lane) {
  return x + place(position, 0, first_lane + kFrameTiles * group_of_lane(), s.row_step, s.lanes);
}

// --- Sums of y and y^2 ---------------------------------------------------------------------------

// totals[copy][channel]: sum of y, and of the lower and upper 32 bits of sums of y^2.
template <bool kSigned>
__global__ void __launch_bounds__(kThreads)
    recompute_sums(const uint32_t* x, Windows s, WarpsByRows grid, const uint4* weights,
                   IntegerSums totals) {
  using Window = CodeWindow<kSigned>;
  __shared__ Total of_warp[kWindowWarps][kBlockOutputs][2];
  const int first_tile = block_y() * kOutTiles;
  int64_t sum[kOutTiles][2] = {};
  Total squares[kOutTiles][2] = {};
#pragma unroll 1
  for (int i = 0; i < kRun; ++i) {
    const int position = (grid.row() * kRun + i) * kWindowWarps + thread_y();
    if (position >= s.out_length) break;
    int y[kOutTiles][kFrameTiles][4];
    multiply_window<Window>(window_at<Window>(x, s, position, grid.first_lane()), s, weights,
                            first_tile, y);
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int t = 0; t < kFrameTiles; ++t) {
          const int64_t value = y[m][t][e];
          sum[m][e / 2] += value;
          squares[m][e / 2] += static_cast<Total>(value * value);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) {
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
  static_assert(kThreads == kBlockOutputs * 2);
  const int output = thread / 2, which = thread % 2;
  const int channel = first_tile * kFragmentRows + output;
  if (channel >= s.out_channels) return;
  Total total = 0;
  for (int w = 0; w < kWindowWarps; ++w) total += of_warp[w][output][which];
  Total* to = totals.of(block_x() % IntegerSums::kCopies, channel);
  if (which == 0) {
    atomicAdd(to, total);
  } else {
    atomicAdd(to + 1, total & 0xffffffffU);
    atomicAdd(to + 2, total >> 32);
  }
}

// --- Codes ---------------------------------------------------------------------------------------

// Every row of `out`, padding included.
template <bool kSigned, typename Affine>
__global__ void __launch_bounds__(kThreads)
    recompute_codes(const uint32_t* x, Windows s, WarpsByRows grid, const uint4* weights,
                    Activation a, const Scalars* scalars, Tile out, uint32_t* words) {
  using Window = CodeWindow<kSigned>;
  constexpr int kPairs = kOutTiles / 2;
  const int row = grid.row() * kWindowWarps + thread_y() - out.pad;
  if (row >= out.length + out.pad) return;
  const int first_tile = block_y() * kOutTiles;
  uint32_t largest[kPairs][2][kFrameTiles] = {};
  const bool inside = row >= 0 && row < out.length;
#pragma unroll 1
  for (int j = 0; inside && j < a.pool; ++j) {
    int y[kOutTiles][kFrameTiles][4];
    multiply_window<Window>(window_at<Window>(x, s, row * a.pool + j, grid.first_lane()), s,
                            weights, first_tile, y);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      uint32_t of_position[2][kFrameTiles] = {};
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const int tile = 2 * p + k / 2, half = k % 2;
        const int channel = output_of(first_tile + tile, group_of_lane(), half);
        if (channel < a.channels) {
          const Affine affine(a, channel, scalars);
#pragma unroll
          for (int column = 0; column < 2; ++column) {
#pragma unroll
            for (int i = 0; i < kFrameTiles; ++i) {
              const float sum = static_cast<float>(y[tile][i][2 * half + column]);
              const float t = affine.in_codes(affine(sum));
              const float code = rintf(fminf(fmaxf(t, 0.0F), a.max_code));
              of_position[column][i] |= static_cast<uint32_t>(code) << (8 * k);
            }
          }
        }
      }
      // A code rises with its value: the largest one is that of the largest value.
#pragma unroll
      for (int column = 0; column < 2; ++column) {
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          largest[p][column][i] = __vmaxu4(largest[p][column][i], of_position[column][i]);
        }
      }
    }
  }
  const int frame = first_frame_of_lane(grid.first_lane());
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int quad = (first_tile / 2 + p) * kFragmentColumns + group_of_lane();
    if (quad >= out.quads()) continue;
    uint4* to =
        reinterpret_cast<uint4*>(words + place(row + out.pad, quad, frame, out.quads(), s.lanes));
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      uint32_t of_frame[kFrameTiles];
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) {
        of_frame[i] = frame + 4 * column + i < a.frames ? largest[p][column][i] : 0U;
      }
      to[column] = uint4{of_frame[0], of_frame[1], of_frame[2], of_frame[3]};
    }
  }
}

// --- The way back --------------------------------------------------------------------------------

// Tiles of a warp, as many as the registers hold beside the winners.
constexpr int kSumTiles = 1, kApplyTiles = 2;
// Blocks on a multiprocessor, at least. For more, the compiler would spill registers.
constexpr int kSumBlocksEach = 3;

// The winners of a pooled row for a lane's elements, [tile][frame tile][element].
template <int kTiles>
struct Winners {
  int y[kTiles][kFrameTiles][4];
  // Which position it is, a byte for each frame tile.
  uint32_t position[kTiles][4];
};

__device__ __forceinline__ float code_of(float t, float max_code) {
  return fminf(rintf(fmaxf(t, 0.0F)), max_code);
}

template <bool kSigned, int kTiles>
__device__ __forceinline__ void find_winners(const uint32_t* x, const Windows& s,
                                             const WarpsByRows& grid, const uint4* weights,
                                             const Activation& a, int first_tile, int row,
                                             Winners<kTiles>& w) {
  using Window = CodeWindow<kSigned>;
#pragma unroll 1
  for (int j = 0; j < a.pool; ++j) {
    int y[kTiles][kFrameTiles][4];
    multiply_window<Window>(window_at<Window>(x, s, row * a.pool + j, grid.first_lane()), s,
                            weights, first_tile, y);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int channel = min(output_of(first_tile + m, group_of_lane(), e / 2), a.channels - 1);
        const float gain = a.gain[channel], shift = a.shift[channel];
        if (j == 0) w.position[m][e] = 0;
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          const auto code = [&](int sum) {
            return code_of(__fmaf_rn(static_cast<float>(sum), gain, shift), a.max_code);
          };
          if (j == 0 || code(y[m][i][e]) > code(w.y[m][i][e])) {
            w.y[m][i][e] = y[m][i][e];
            const uint32_t byte = 0xffU << (8 * i);
            w.position[m][e] = (w.position[m][e] & ~byte) | static_cast<uint32_t>(j) << (8 * i);
          }
        }
      }
    }
  }
}

// A lane's four frames of a channel, zeros past the last frame.
__device__ __forceinline__ void load_gradients(const Activation& a, const float* dp, int row,
                                               int channel, int frame, float (&of_frame)[4]) {
  load_frames<float4>(dp + a.place(row, channel, frame), channel < a.channels, of_frame);
#pragma unroll
  for (int i = 0; i < kFrameTiles; ++i) of_frame[i] = frame + i < a.frames ? of_frame[i] : 0.0F;
}

// partial[block_x()][channel][3]: sums of g, of g * xhat, and of the scale's gradient. A block has
// the rows of its slice, a warp every fourth of them.
template <bool kSigned>
__global__ void __launch_bounds__(kThreads, kSumBlocksEach)
    recompute_gradient_sums(const uint32_t* x, Windows s, WarpsByRows grid, const uint4* weights,
                            Activation a, const float* dp, const float* xhat_gain,
                            const float* xhat_shift, double* partial) {
  constexpr int kSums = 3;
  __shared__ double of_warp[kWindowWarps][kSumTiles][kFragmentRows][kSums];
  const int first_tile = block_y() * kSumTiles;
  double sums[kSumTiles][2][kSums] = {};
  const int frame = first_frame_of_lane(grid.first_lane());
  const int begin =
      static_cast<int>(static_cast<int64_t>(grid.row()) * a.pooled_length() / grid.rows);
  const int end =
      static_cast<int>((static_cast<int64_t>(grid.row()) + 1) * a.pooled_length() / grid.rows);
#pragma unroll 1
  for (int row = begin + thread_y(); row < end; row += kWindowWarps) {
    Winners<kSumTiles> w;
    find_winners<kSigned, kSumTiles>(x, s, grid, weights, a, first_tile, row, w);
#pragma unroll
    for (int m = 0; m < kSumTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int wanted = output_of(first_tile + m, group_of_lane(), e / 2);
        const int channel = min(wanted, a.channels - 1);
        const float gain = a.gain[channel], shift = a.shift[channel];
        const float to_xhat = xhat_gain[channel], offset = xhat_shift[channel];
        __syncwarp();  // loads of all elements at once would take too many registers
        float gradient[4];
        load_gradients(a, dp, row, wanted, frame + 4 * (e % 2), gradient);
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          const float y = static_cast<float>(w.y[m][i][e]);
          const float t = __fmaf_rn(y, gain, shift);
          const float g = passes<true>(a, t) ? gradient[i] : 0.0F;
          double(&total)[kSums] = sums[m][e / 2];
          total[0] += static_cast<double>(g);
          total[1] += static_cast<double>(g) * static_cast<double>(__fmaf_rn(y, to_xhat, offset));
          total[2] +=
              static_cast<double>(gradient[i]) * static_cast<double>(code_of(t, a.max_code)) -
              static_cast<double>(g) * static_cast<double>(t);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kSumTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        double sum = sums[m][half][k];
        for (int step = 1; step < kMembers; step *= 2) {
          sum += __shfl_xor_sync(kWholeWarp, sum, step);
        }
        if (member_of_lane() == 0) {
          of_warp[thread_y()][m][2 * group_of_lane() + half][k] = sum;
        }
      }
    }
  }
  __syncthreads();
  const int thread = thread_y() * kWarpLanes + thread_x();
  static_assert(kThreads >= kSumTiles * kFragmentRows * kSums);
  const int k = thread % kSums, row = thread / kSums % kFragmentRows;
  const int m = thread / kSums / kFragmentRows;
  if (m >= kSumTiles) return;
  const int channel = output_of(first_tile + m, row / 2, row % 2);
  if (channel >= a.channels) return;
  double total = 0;
  for (int warp = 0; warp < kWindowWarps; ++warp) total += of_warp[warp][m][row][k];
  partial[(static_cast<size_t>(block_x()) * static_cast<size_t>(a.channels) +
           static_cast<size_t>(channel)) *
              kSums +
          static_cast<size_t>(k)] = total;
}

// dy of every pooled row; past the last one: a row of padding.
template <bool kSigned>
__global__ void __launch_bounds__(kThreads)
    recompute_gradients(const uint32_t* x, Windows s, WarpsByRows grid, const uint4* weights,
                        Activation a, const float* dp, GradientAffine k, int pad, float* dy) {
  using Window = CodeWindow<kSigned>;
  const int row = grid.row() * kWindowWarps + thread_y();
  if (row >= a.pooled_length() + 2 * pad) return;
  const int first_tile = block_y() * kApplyTiles;
  const int frame = first_frame_of_lane(grid.first_lane());
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
  find_winners<kSigned, kApplyTiles>(x, s, grid, weights, a, first_tile, row, w);
#pragma unroll 1
  for (int j = 0; j < a.pool; ++j) {
    const int position = row * a.pool + j;
    int y[kApplyTiles][kFrameTiles][4];
    multiply_window<Window>(window_at<Window>(x, s, position, grid.first_lane()), s, weights,
                            first_tile, y);
#pragma unroll
    for (int m = 0; m < kApplyTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int wanted = output_of(first_tile + m, group_of_lane(), e / 2);
        const int channel = min(wanted, a.channels - 1);
        const float gain = a.gain[channel], shift = a.shift[channel];
        const float of_g = k.of_g[channel], of_y = k.of_y[channel], of_one = k.of_one[channel];
        const int first = frame + 4 * (e % 2);
        float gradient[4], of_frame[kFrameTiles];
        load_gradients(a, dp, row, wanted, first, gradient);
#pragma unroll
        for (int i = 0; i < kFrameTiles; ++i) {
          const float sum = static_cast<float>(y[m][i][e]);
          const bool wins = (w.position[m][e] >> (8 * i) & 0xffU) == static_cast<uint32_t>(j);
          // The winner's sum is this one.
          const bool passing = wins && passes<true>(a, __fmaf_rn(sum, gain, shift));
          const float value =
              __fmaf_rn(of_g, passing ? gradient[i] : 0.0F, __fmaf_rn(of_y, sum, of_one));
          of_frame[i] = first + i < a.frames ? value : 0.0F;
        }
        store(position + pad, m, e, of_frame);
      }
    }
  }
}

// --- Launches ------------------------------------------------------------------------------------

struct Launcher {
  const Input& x;
  const Weights& weights;
  Windows s;
  cudaStream_t on;

  Launcher(const Input& input, const Weights& of_layer, Stream stream)
      : x(input),
        weights(of_layer),
        s(windows<true>(packing_of(of_layer.conv(), false), of_layer.conv().out_length,
                        input.tile.lanes())),
        on(native(stream)) {}

  // kernel_of: one for signed and one for unsigned codes. tiles: of a warp.
  template <typename Kernel, typename... Arguments>
  void run(const char* name, const WarpsByRows& grid, int tiles, Kernel of_signed,
           Kernel of_unsigned, Arguments... arguments) const {
    const Shape shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(s.out_tiles),
                                                     static_cast<size_t>(tiles))),
                      dim3(kWarpLanes, kWindowWarps)};
    launch(Where(name, on), shape, x.type == ElementType::kS8 ? of_signed : of_unsigned,
           static_cast<const uint32_t*>(x.data), s, grid,
           reinterpret_cast<const uint4*>(weights.byte_fragments()), arguments...);
  }
  WarpsByRows warps_by(int rows, int per_block) const {
    return warps_by_rows(s.lanes, static_cast<int>(blocks_for(static_cast<size_t>(rows),
                                                              static_cast<size_t>(per_block))));
  }
};

// Blocks that add up gradients: as many as keep the device busy, but for the frames' share.
WarpsByRows gradient_slices(const Activation& a) {
  const int wanted = std::max(1, kManyBlocks / (a.lanes / kWarpLanes));
  return warps_by_rows(a.lanes, std::min(a.pooled_length(), wanted));
}

}  // namespace

bool can_recompute(const Weights& weights) {
  return weights.byte_fragments() != nullptr && largest_sum(weights.layer()) < kLargestSum &&
         weights.layer().act_bits != kFloatBits;
}

void sum_channels(const Input& x, const Weights& weights, const IntegerSums& totals,
                  Stream stream) {
  const Launcher of(x, weights, stream);
  set_bytes(totals.data, 0,
            IntegerSums::elements(static_cast<size_t>(totals.channels)) * sizeof(*totals.data),
            stream);
  of.run("recompute_sums", of.warps_by(of.s.out_length, kWindowWarps * kRun), kOutTiles,
         recompute_sums<true>, recompute_sums<false>, totals);
}

void activate(const Input& x, const Weights& weights, const Activation& a, Mode mode,
              const HiddenState& state, const Tile& out, void* out_data, Stream stream) {
  const Launcher of(x, weights, stream);
  const auto run = [&](auto of_signed, auto of_unsigned) {
    of.run("recompute_codes", of.warps_by(out.rows(), kWindowWarps), kOutTiles, of_signed,
           of_unsigned, a, static_cast<const Scalars*>(state.scalars.data()), out,
           static_cast<uint32_t*>(out_data));
  };
  if (mode == Mode::kTraining) {
    run(recompute_codes<true, FusedAffine>, recompute_codes<false, FusedAffine>);
  } else {
    run(recompute_codes<true, EvaluationAffine>, recompute_codes<false, EvaluationAffine>);
  }
}

int slices_of_gradients(const Activation& a) {
  return static_cast<int>(gradient_slices(a).blocks());
}

void sum_gradients(const Input& x, const Weights& weights, const Activation& a,
                   const HiddenState& state, const float* dp, double* partial, Stream stream) {
  Launcher(x, weights, stream)
      .run("recompute_gradient_sums", gradient_slices(a), kSumTiles, recompute_gradient_sums<true>,
           recompute_gradient_sums<false>, a, dp,
           static_cast<const float*>(state.constant(HiddenState::kXhatGain)),
           static_cast<const float*>(state.constant(HiddenState::kXhatShift)), partial);
}

void apply_gradients(const Input& x, const Weights& weights, const Activation& a, const float* dp,
                     const GradientAffine& gradient, int pad, float* dy, Stream stream) {
  const Launcher of(x, weights, stream);
  of.run("recompute_gradients", of.warps_by(a.pooled_length() + 2 * pad, kWindowWarps), kApplyTiles,
         recompute_gradients<true>, recompute_gradients<false>, a, dp, gradient, pad, dy);
}

}  // namespace fmp::cuda
