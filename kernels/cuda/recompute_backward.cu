// SPDX-License-Identifier: MIT
// The backward pass of a hidden layer where neither y nor dy is in memory. The forward pass has
// kept which position won each window, and whether its gradient g passes, so that S_k, the sums of
// g * x_k over the batch (k: tap and channel of a window), need no y; and they tell batch-norm's
//
//   sum of g * y = sum over k of w_k * S_k
//   dw_k = of_g * S_k + of_y * v_k + of_one * X_k        (v_k, X_k: window_products.cu)
//
// Then dy = of_g * g + of_y * y + of_one is formed once, from y as tensor cores compute it again,
// and multiplied at once, for dx. A block has 32 frames and walks along the rows of its slice.
//
//   S += g * x^T   g is in a lane's registers where A of the product wants it; rows of x, as bf16,
//                  lie in shared memory, where all taps and outputs of the block read them
//   dx = W' * dy   rows of dy, in parts, lie in shared memory; weights come from L1
#include <algorithm>

#include "kernels/cuda/batch_norm.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/winners.h"

namespace fmp::cuda {
namespace {

constexpr int kThreads = kWarpLanes * kWindowWarps;
constexpr int kTaps = 3;

// --- Sums of gradients by elements ---------------------------------------------------------------

// Columns of the product are channels of a window. Column c of the i-th of a group's four tiles is
// channel i of quad c of the group.
constexpr int kGroupQuads = kFragmentColumns, kGroups = 6;
constexpr int kBlockQuads = kGroupQuads * kGroups;
constexpr int kWeightBlocksEach = 2;  // on a multiprocessor: sums take half of their registers

// A row of x: [channel of a quad][quad][member], frames 8 member + i and + 4 + i in word i.
__device__ __forceinline__ int place_in_row(int channel, int quad, int member, int quads) {
  return (channel * quads + quad) * kMembers + member;
}

// Rows of x that a block holds: those of a step, and of the next one.
constexpr int rows_of_x(int positions) { return kTaps - 1 + 2 * positions; }
size_t bytes_of_x(int positions, int quads) {
  return static_cast<size_t>(rows_of_x(positions)) * static_cast<size_t>(quads) * kQuad * kMembers *
         sizeof(uint4);
}

// Eight frames of a quad.
struct EightFrames {
  uint32_t lower[kFrameTiles], upper[kFrameTiles];
};
__device__ __forceinline__ void read_eight(const uint32_t* x, int row, int quad, int frame,
                                           const Windows& s, EightFrames& to) {
  const uint32_t* from = x + place(row, quad, frame, s.row_step, s.lanes);
  load_frames<uint4>(from, true, to.lower);
  load_frames<uint4>(from + kFrameTiles, true, to.upper);
}
__device__ __forceinline__ void store_eight(const EightFrames& from, uint4* row, int quad,
                                            int member, int quads) {
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    const auto pair = [&](int i) { return code_pair<false>(from.lower[i], from.upper[i], c); };
    row[place_in_row(c, quad, member, quads)] = uint4{pair(0), pair(1), pair(2), pair(3)};
  }
}

// of_blocks[block_x()][O][T][C]: S. partial[block_x()][channel][2]: sums of g and of dp * code.
template <int kPositions>
__global__ void __launch_bounds__(kThreads, kWeightBlocksEach)
    sum_products_of_gradients(Recompute r, Activation a, const float* dp, const WindowBits* winners,
                              OutputCodes out, int in_channels, float* of_blocks, double* partial) {
  constexpr int kRows = rows_of_x(kPositions);
  uint4* const rows_in_block = dynamic_shared<uint4>();
  const int tile = block_y() * kWindowWarps + thread_y();
  const int first_quad = block_z() * kBlockQuads;
  const int quads = r.s.row_step, row_size = quads * kQuad * kMembers;
  const int first_frame = r.grid.first_lane(), frame = first_frame_of_lane(first_frame);
  const RowSlice rows(a.pooled_length(), r.grid.row(), r.grid.rows);
  // Which part of a row a thread converts, if it is no more than one.
  const int thread = thread_y() * kWarpLanes + thread_x();
  const int items = kPositions * quads * kMembers;
  const auto slot_of = [&](int row) { return rows_in_block + row % kRows * row_size; };
  const auto read = [&](int first_row, int item, EightFrames& to) {
    const int member = item % kMembers, quad = item / kMembers % quads;
    read_eight(r.x, first_row + item / kMembers / quads, quad, first_frame + 8 * member, r.s, to);
  };
  const auto store = [&](const EightFrames& from, int first_row, int item) {
    const int member = item % kMembers, quad = item / kMembers % quads;
    store_eight(from, slot_of(first_row + item / kMembers / quads), quad, member, quads);
  };
  const int first_items = (kTaps - 1 + kPositions) * quads * kMembers;
  for (int item = thread; item < first_items; item += kThreads) {
    EightFrames eight;
    read(rows.begin * kPositions, item, eight);
    store(eight, rows.begin * kPositions, item);
  }
  __syncthreads();

  // This lane's column of each group: its tap, and its place in the tap's row.
  int tap[kGroups], place_of_quad[kGroups];
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const int quad = min(first_quad + n * kGroupQuads + group_of_lane(), kTaps * quads - 1);
    tap[n] = quad / quads;
    place_of_quad[n] = place_in_row(0, quad % quads, member_of_lane(), quads);
  }
  float sums[kGroups][kQuad][4] = {};
  WindowGradientSums of_lane;
#pragma unroll 1
  for (int row = rows.begin; row < rows.end; ++row) {
    const bool more = row + 1 < rows.end;
    const int next = (row + 1) * kPositions + kTaps - 1;  // first row to read for the next step
    EightFrames eight{};
    if (more) {
      if (thread < items) read(next, thread, eight);
      prefetch_row(a, dp, winners, row + 1, tile, first_frame);
      out.prefetch(row + 1, tile / 2 * kFragmentColumns + thread_x(), first_frame);
    }

    uint32_t g[kPositions][kFrameTiles / 2][kFloatParts][4];
    {
      const TileBits bits = read_bits(winners, a, row, tile, frame);
      float gradient[4][kFrameTiles];  // by e
      load_tile_gradients(a, dp, row, tile, frame, gradient);
      of_lane.add(bits, gradient, out, row, tile, frame);
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
#pragma unroll
        for (int half = 0; half < kFrameTiles / 2; ++half) {  // a product takes half of the frames
          split_gradients(bits, p, half, gradient, g[p][half]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      if (first_quad + n * kGroupQuads >= kTaps * quads) break;  // the same for the whole block
      const uint4* of_position[kPositions];
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        of_position[p] = slot_of(row * kPositions + p + tap[n]) + place_of_quad[n];
      }
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        float of_step[4] = {};
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          const uint4 codes = of_position[p][c * quads * kMembers];
          const uint32_t b[2][2] = {{codes.x, codes.y}, {codes.z, codes.w}};
#pragma unroll
          for (int part = kFloatParts - 1; part >= 0; --part) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
              mma_m16n8k16_bf16(of_step, g[p][half][part], b[half]);
          }
        }
        add_step(of_step, sums[n][c]);
      }
    }
    // The rows that these replace were last read a step ago.
    if (more && thread < items) store(eight, next, thread);
    for (int item = thread + kThreads; more && item < items; item += kThreads) {
      read(next, item, eight);
      store(eight, next, item);
    }
    __syncthreads();
  }

  of_lane.end();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int channel = output_of(tile, group_of_lane(), half);
    if (member_of_lane() == 0 && channel < a.channels && block_z() == 0) {
      double* to = place_of_sums(partial, a.channels, channel);
      to[0] = of_lane.all[half][0];
      to[1] = of_lane.all[half][1];
    }
  }
  const size_t weights = place(a.channels, 0, 0, kTaps, in_channels);
  float* of_block = of_blocks + static_cast<size_t>(block_x()) * weights;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int channel = output_of(tile, group_of_lane(), e / 2);
      const int quad = first_quad + n * kGroupQuads + 2 * member_of_lane() + e % 2;
      const int of_tap = quad / quads, in_channel = quad % quads * kQuad;
      if (channel >= a.channels || of_tap >= kTaps) continue;
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        if (in_channel + c < in_channels) {
          of_block[place(channel, of_tap, in_channel + c, kTaps, in_channels)] = sums[n][c][e];
        }
      }
    }
  }
}

// A block for each channel adds up what blocks have summed up: elements side by side in its
// threads, groups of frames in rows of them. That is less to read than the block's multiprocessor
// gets from L2 in the time of a launch.
constexpr int kColumnsAtOnce = 128, kFinishThreads = kColumnsAtOnce * kFrameGroups;

// T: float, or double for sums of groups that devices have exchanged; of [row][row_size], and
// partial of [row][partial_size].
template <typename T, typename Windows>
__global__ void __launch_bounds__(kFinishThreads, 1)
    add_up_gradients(Activation a, BackwardNorm norm, Windows windows, PartialSums blocks,
                     int stride, const T* of_blocks, size_t row_size, const double* partial,
                     size_t partial_size, const float* codes, const float* x_scale,
                     double* of_scale, float* grad) {
  constexpr int kWarps = kFinishThreads / kWarpLanes;
  __shared__ double of_group[kFrameGroups][kColumnsAtOnce];
  float* const sums = dynamic_shared<float>();  // of g * x_k
  const int c = block_x(), elements = windows.elements;
  const int group = thread_x() / kColumnsAtOnce, column = thread_x() % kColumnsAtOnce;
  codes += static_cast<size_t>(c) * static_cast<size_t>(elements);
  of_blocks += static_cast<size_t>(c) * static_cast<size_t>(stride);
  double of_y = 0;
  for (int first = 0; first < elements; first += kColumnsAtOnce) {
    const int k = first + column;
    double sum = 0;
    if (k < elements) sum = sum_in_order(of_blocks + k, row_size, blocks.of(group));
    of_group[group][column] = sum;
    __syncthreads();
    if (group == 0 && k < elements) {
      for (int other = 1; other < kFrameGroups; ++other) sum += of_group[other][column];
      sums[k] = static_cast<float>(sum);
      of_y += static_cast<double>(codes[k]) * static_cast<double>(sums[k]);
    }
    __syncthreads();
  }
  // A warp has a group of frames; block_sum() adds them in their order.
  const auto of_groups = [&](int which) {
    const double sum = sum_of_group<kWarpLanes>(blocks, thread_x() / kWarpLanes, [&](int block) {
      return partial[static_cast<size_t>(block) * partial_size +
                     static_cast<size_t>(c * 2 + which)];
    });
    return block_sum<kWarps>(thread_x() % kWarpLanes == 0 ? sum : 0.0);
  };
  const double of_g = of_groups(0), of_codes = of_groups(1);
  of_y = block_sum<kWarps>(of_y);
  if (thread_x() == 0) {
    const auto affine = [&](float gain, float shift) {
      return static_cast<double>(gain) * of_y + static_cast<double>(shift) * of_g;
    };
    norm.set(c, of_g, affine(norm.xhat_gain[c], norm.xhat_shift[c]));
    of_scale[c] = of_codes - affine(a.gain[c], a.shift[c]);
  }
  __syncthreads();
  for (int k = thread_x(); k < elements; k += kFinishThreads) {
    const double dw =
        static_cast<double>(norm.of_g[c]) * static_cast<double>(sums[k]) +
        static_cast<double>(norm.of_y[c]) * static_cast<double>(windows.by_weights(c, k)) +
        static_cast<double>(norm.of_one[c]) * static_cast<double>(windows.of_element(k));
    grad[static_cast<size_t>(c) * static_cast<size_t>(elements) + static_cast<size_t>(k)] =
        static_cast<float>(dw * static_cast<double>(*x_scale));
  }
  if (!is_last_block(norm.arrived, all_blocks())) return;
  double of_all = 0;
  for (int i = thread_x(); i < a.channels; i += kFinishThreads) of_all += of_scale[i];
  of_all = block_sum<kWarps>(of_all);
  if (thread_x() == 0) norm.set_threshold_gradient(a, of_all);
}

// --- Gradient of the input -----------------------------------------------------------------------

constexpr int kInputBlocksEach = 3;
// A row of dy: [part][pair of outputs][frame], with what keeps lanes of a warp on banks of their
// own.
constexpr int kPairStride = kWarpLanes + 8;
constexpr int kHalves = 2;  // of the frames; a warp multiplies one of them by 32 inputs

// Rows of dy that a block holds.
constexpr int rows_of_dy(int positions) { return kTaps - 1 + positions; }
constexpr int row_of_dy(int out_tiles) { return kFloatParts * out_tiles * 8 * kPairStride; }
size_t bytes_of_dy(int positions, int out_tiles) {
  return static_cast<size_t>(rows_of_dy(positions) * row_of_dy(out_tiles)) * sizeof(uint32_t);
}

// Frames in the order in which they lie in a row of dy: columns c of the two tiles of half h are
// frames 16 h + 4 (c / 2) + c % 2 and the one two further. So a lane's elements of D are four
// frames side by side, and what it reads for B are two words. Four frames side by side come to the
// places of 0, 2, 1, 3.
template <int kPositions>
__global__ void __launch_bounds__(kThreads, kInputBlocksEach)
    recompute_input_gradient(Recompute r, Activation a, const float* dp, const WindowBits* winners,
                             GradientAffine k, const uint4* weights, const float* scale,
                             int in_channels, float* dx) {
  constexpr int kRows = rows_of_dy(kPositions), kPad = kTaps / 2;
  uint32_t* const rows_in_block = dynamic_shared<uint32_t>();
  const int row_size = row_of_dy(r.s.out_tiles), part_size = row_size / kFloatParts;
  const auto slot_of = [&](int row) { return rows_in_block + (row + kRows) % kRows * row_size; };
  const int first_frame = r.grid.first_lane(), frame = first_frame_of_lane(first_frame);
  const RowSlice rows(a.pooled_length(), r.grid.row(), r.grid.rows);
  const int begin = rows.begin * kPositions, end = rows.end * kPositions;  // of dx
  const int steps = r.s.out_tiles;                                         // of a tap
  const int in_tiles = tiles_for(in_channels);
  const float factor = *scale;

  // Step `row` forms dy of its windows, and with it dx up to kPad before the last of them.
  const int last = (end - 1 + kPad) / kPositions;
#pragma unroll 1
  for (int row = (begin - kPad - (kPositions - 1)) / kPositions; row <= last; ++row) {
    const bool inside = row >= 0 && row < a.pooled_length();
    if (row + 1 < a.pooled_length()) {
      prefetch_row(a, dp, winners, row + 1, thread_y(), first_frame);
      // Rows of x that the next windows add.
      const int item = thread_y() * kWarpLanes + thread_x();
      if (item < kPositions * r.s.row_step) {
        const int next = (row + 1) * kPositions + kTaps - 1 + item / r.s.row_step;
        prefetch(r.x + place(next, item % r.s.row_step, first_frame, r.s.row_step, r.s.lanes));
      }
    }
#pragma unroll 1
    for (int tile = thread_y(); tile < r.s.out_tiles; tile += kWindowWarps) {
      float values[kPositions][kFrameTiles][4] = {};
      if (inside) {
        const TileBits bits = read_bits(winners, a, row, tile, frame);
        float gradient[4][kFrameTiles];
        load_tile_gradients(a, dp, row, tile, frame, gradient);
        LaneSums<1> y[kPositions];
        multiply_positions<false, kPositions, 1>(r, row * kPositions, tile, y);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int channel = min(output_of(tile, group_of_lane(), e / 2), a.channels - 1);
          const float of_g = k.of_g[channel], of_y = k.of_y[channel], of_one = k.of_one[channel];
#pragma unroll
          for (int i = 0; i < kFrameTiles; ++i) {
            const bool exists = frame + 4 * (e % 2) + i < a.frames;
#pragma unroll
            for (int p = 0; p < kPositions; ++p) {
              const float g = gradient_at(bits, p, e, i, gradient[e][i]);
              const float sum = static_cast<float>(y[p][0][i][e]);
              const float value = __fmaf_rn(of_g, g, __fmaf_rn(of_y, sum, of_one));
              values[p][i][e] = exists ? value : 0.0F;
            }
          }
        }
      }
      const int pair = output_of(tile, group_of_lane(), 0) / 2;
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        uint32_t* to = slot_of(row * kPositions + p) + pair * kPairStride + (frame - first_frame);
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          uint32_t parts[kFrameTiles][kFloatParts];
#pragma unroll
          for (int i = 0; i < kFrameTiles; ++i) {
            split(values[p][i][column], values[p][i][2 + column], parts[i]);
          }
#pragma unroll
          for (int part = 0; part < kFloatParts; ++part) {
            *reinterpret_cast<uint4*>(to + part * part_size + 4 * column) =
                uint4{parts[0][part], parts[2][part], parts[1][part], parts[3][part]};
          }
        }
      }
    }
    __syncthreads();
    const int position = row * kPositions - kPad;  // of dx
#pragma unroll 1
    for (int unit = thread_y(); unit < in_tiles / 2 * kHalves; unit += kWindowWarps) {
      if (position + kPositions <= begin) break;  // the same for the whole block
      const int half = unit % kHalves, first_tile = unit / kHalves * 2;
      const int in_row = half * kWarpLanes / kHalves + 2 * group_of_lane();
      float sums[kPositions][2][2][4] = {};
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        float of_step[kPositions][2][2][4] = {};
        uint4 w[2][kTaps];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int t = 0; t < kTaps; ++t) {
            w[m][t] = __ldg(weights +
                            static_cast<size_t>(((first_tile + m) * kTaps + t) * steps + step) *
                                kWarpLanes +
                            static_cast<size_t>(thread_x()));
          }
        }
        // The smallest parts first.
#pragma unroll
        for (int part = kFloatParts - 1; part >= 0; --part) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const uint32_t* from = slot_of(position - kPad + i) + part * part_size + in_row +
                                   (step * 2 * kMembers + member_of_lane()) * kPairStride;
            const uint2 lower = *reinterpret_cast<const uint2*>(from);
            const uint2 upper = *reinterpret_cast<const uint2*>(from + kMembers * kPairStride);
            const uint32_t b[2][2] = {{lower.x, upper.x}, {lower.y, upper.y}};
#pragma unroll
            for (int p = 0; p < kPositions; ++p) {
              const int t = i - p;
              if (t < 0 || t >= kTaps) continue;
#pragma unroll
              for (int m = 0; m < 2; ++m) {
                const uint32_t of_tap[4] = {w[m][t].x, w[m][t].y, w[m][t].z, w[m][t].w};
#pragma unroll
                for (int n = 0; n < 2; ++n) mma_m16n8k16_bf16(of_step[p][m][n], of_tap, b[n]);
              }
            }
          }
        }
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 2; ++n) add_step(of_step[p][m][n], sums[p][m][n]);
          }
        }
      }
      const int to_frame = first_frame + half * kWarpLanes / kHalves + 4 * member_of_lane();
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        if (position + p < begin || position + p >= end) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            const int channel = output_of(first_tile + m, group_of_lane(), lower);
            if (channel >= in_channels) continue;
            const float(&of_first)[4] = sums[p][m][0];
            const float(&of_second)[4] = sums[p][m][1];
            *reinterpret_cast<float4*>(
                dx + place(position + p, channel, to_frame, in_channels, r.s.lanes)) =
                float4{of_first[2 * lower] * factor, of_first[2 * lower + 1] * factor,
                       of_second[2 * lower] * factor, of_second[2 * lower + 1] * factor};
          }
        }
      }
    }
    __syncthreads();
  }
}

// --- Launches ------------------------------------------------------------------------------------

// As many slices of a whole batch as fill the device.
WarpsByRows slices_for_blocks(const Activation& a, int blocks) {
  return warps_by_rows(a.lanes, std::clamp(blocks / a.groups.batch_warps, 1, a.pooled_length()));
}
constexpr int kMultiprocessors = 132;

WarpsByRows weight_slices(const Activation& a) {
  return slices_for_blocks(a, kMultiprocessors * kWeightBlocksEach);
}

}  // namespace

bool forms_dy_on_chip(const Input& x, const Weights& weights) {
  const LayerShape& layer = weights.layer();
  const ConvShape& s = weights.conv();
  return can_recompute(weights) && weights.tap_fragments() != nullptr &&
         weights.plan().backward_weight == Kernel::kDense && x.type == ElementType::kU8 &&
         s.same_padding && s.taps == kTaps && s.out_length > 1 && s.in_length == s.out_length &&
         (layer.pool == 1 || (layer.pool == kPair && s.out_length % kPair == 0)) &&
         bytes_of_x(layer.pool, x.tile.quads()) <= kUsualSharedBytes &&
         bytes_of_dy(layer.pool, tiles_for(s.out_channels)) <= kUsualSharedBytes;
}

size_t memory_for_gradients(const Weights& weights, const Activation& a) {
  return static_cast<size_t>(weight_slices(a).blocks()) *
         static_cast<size_t>(weights.layer().weights());
}
PartialSums sums_of_products(const Activation& a) {
  return PartialSums::blocks(a.groups, weight_slices(a).rows);
}

void sum_gradient_products(const Input& x, const Weights& weights, const Activation& a,
                           const ForwardPass& forward, const float* dp, const SumsOfBlocks& sums,
                           Stream stream) {
  const RecomputeCall of(x, weights, stream);
  const WarpsByRows grid = weight_slices(a);
  const auto run = [&]<int kPositions>() {
    launch(Where("sum_products_of_gradients", of.on),
           Shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(of.s.out_tiles), kWindowWarps),
                      blocks_for(static_cast<size_t>(kTaps * of.s.row_step), kBlockQuads)),
                 dim3(kWarpLanes, kWindowWarps), bytes_of_x(kPositions, of.s.row_step)},
           sum_products_of_gradients<kPositions>, of.at(grid), a, dp, forward.winners, forward.out,
           weights.conv().in_channels, sums.of_blocks, sums.partial);
  };
  a.pool == kPair ? run.template operator()<kPair>() : run.template operator()<1>();
}

template <typename Windows>
void finish_gradients(const Input& x, const Weights& weights, const Activation& a,
                      const Windows& windows, const SumsOfBlocks& sums, const BackwardNorm& norm,
                      double* of_scale, float* grad, Stream stream) {
  const auto finish = [&]<typename T>(const PartialSums& blocks, const T* of_blocks,
                                      size_t row_size, const double* partial, size_t partial_size) {
    launch(Where("add_up_gradients", native(stream)),
           Shape{dim3(static_cast<unsigned>(a.channels)), dim3(kFinishThreads),
                 static_cast<size_t>(windows.elements) * sizeof(float)},
           add_up_gradients<T, Windows>, a, norm, windows, blocks, sums.stride, of_blocks, row_size,
           partial, partial_size, weights.codes(), x.scale, of_scale, grad);
  };
  const auto channels = static_cast<size_t>(a.channels);
  const size_t products = channels * static_cast<size_t>(sums.stride), of_channels = 2 * channels;
  if (a.groups.are_all_here()) {
    finish(sums.blocks, static_cast<const float*>(sums.of_blocks), products,
           static_cast<const double*>(sums.partial), of_channels);
    return;
  }
  RowsOfGroups rows(*weights.ranks(), a.groups, products + of_channels, stream);
  rows.put(sums.of_blocks, products, sums.blocks);
  rows.put<kWarpLanes>(sums.partial, of_channels, sums.blocks);
  rows.exchange();
  const double* const of_groups = rows.rows();
  finish(rows.sums(), of_groups, rows.row_size(), of_groups + products, rows.row_size());
}
template void finish_gradients(const Input&, const Weights&, const Activation&, const ProductSums&,
                               const SumsOfBlocks&, const BackwardNorm&, double*, float*, Stream);
template void finish_gradients(const Input&, const Weights&, const Activation&, const WindowSums&,
                               const SumsOfBlocks&, const BackwardNorm&, double*, float*, Stream);

void input_gradient(const Input& x, const Weights& weights, const Activation& a,
                    const ForwardPass& forward, const float* dp, const GradientAffine& gradient,
                    float* dx, Stream stream) {
  const RecomputeCall of(x, weights, stream);
  const WarpsByRows grid = slices_for_blocks(a, kMultiprocessors * kInputBlocksEach);
  const auto run = [&]<int kPositions>() {
    launch(Where("recompute_input_gradient", of.on),
           Shape{dim3(grid.blocks()), dim3(kWarpLanes, kWindowWarps),
                 bytes_of_dy(kPositions, of.s.out_tiles)},
           recompute_input_gradient<kPositions>, of.at(grid), a, dp, forward.winners, gradient,
           reinterpret_cast<const uint4*>(weights.tap_fragments()), weights.scale(),
           weights.conv().in_channels, dx);
  };
  a.pool == kPair ? run.template operator()<kPair>() : run.template operator()<1>();
}

}  // namespace fmp::cuda
