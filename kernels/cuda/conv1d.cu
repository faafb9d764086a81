// SPDX-License-Identifier: MIT
// The convolution of a layer, y[l][o] = sum over taps t and channels c of w[o][t][c] * x[l + t][c],
// its two gradients, and the same for surviving weights only. Every thread computes for one frame,
// a warp for 32 frames side by side, so that all reads of activations are coalesced and a weight is
// one address for the whole warp.
//
//   dense:   8 outputs x 4 positions in registers, by fused multiply-adds in the order of the
//            channels
//   sparse:  one output x 8 positions; a nonzero weight is one broadcast
//   weights: dw[o][t][c] = sum over positions and frames of dy[l][o] * x[l + t][c], as a matrix
//            product through shared memory (dense) or as dot products of the survivors (sparse);
//            slices of the batch are summed apart and added up in their order
//
// The dense kernels here are for what tensor cores do not take (conv1d_tensor.cu): forward, where
// an operand is float; backward, where weights or inputs are. What libraries do instead is in
// conv1d_library.cu.
#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/conv1d.h"

namespace fmp::cuda {
namespace {

constexpr int kPositions = 4;  // of a thread
constexpr int kWarps = 4;      // of a block: each has outputs of its own
constexpr int kSparsePositions = 8;

// Shape of one dense product.
struct Dense {
  int in_quads, out_channels, out_stride, taps, in_rows, out_length, lanes;
};

// weights: [tap][quad of in][4][out_stride]
template <typename Reader>
__global__ void __launch_bounds__(kWarpLanes* kWarps)
    conv_dense(Reader x, Dense s, WarpsByRows grid, const float* weights, float* y) {
  const int lane = grid.first_lane() + thread_x();
  const int first = grid.row() * kPositions;
  const int out = (block_y() * kWarps + thread_y()) * kOutBlock;
  if (out >= s.out_channels) return;

  float sums[kPositions][kOutBlock] = {};
  float window[kPositions][kQuad];
  for (int quad = 0; quad < s.in_quads; ++quad) {
    // Rows past the end are read as the last one; their results are not stored.
#pragma unroll
    for (int p = 0; p + 1 < kPositions; ++p) {
      x.quad(min(first + p, s.in_rows - 1), quad, lane, window[p + 1]);
    }
    for (int tap = 0; tap < s.taps; ++tap) {
#pragma unroll
      for (int p = 0; p + 1 < kPositions; ++p) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) window[p][k] = window[p + 1][k];
      }
      x.quad(min(first + tap + kPositions - 1, s.in_rows - 1), quad, lane, window[kPositions - 1]);
      const float* of_quad =
          weights + place(tap, quad * kQuad, out, s.in_quads * kQuad, s.out_stride);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const float4* vectors = reinterpret_cast<const float4*>(of_quad + k * s.out_stride);
        const float4 low = __ldg(vectors), high = __ldg(vectors + 1);
        const float w[kOutBlock] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
#pragma unroll
          for (int o = 0; o < kOutBlock; ++o) {
            sums[p][o] = __fmaf_rn(window[p][k], w[o], sums[p][o]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
#pragma unroll
    for (int o = 0; o < kOutBlock; ++o) {
      if (first + p < s.out_length && out + o < s.out_channels) {
        y[place(first + p, out + o, lane, s.out_channels, s.lanes)] = sums[p][o];
      }
    }
  }
}

// Outputs and taps are those of `packing`.
template <typename Reader>
void launch_dense(const char* name, const Reader& x, const Tile& tile, const Packing& packing,
                  int out_length, const float* weights, float* y, Stream stream) {
  const Dense s{packing.quads(), packing.out, packing.out_stride(), packing.taps,
                tile.rows(),     out_length,  tile.lanes()};
  const WarpsByRows grid = warps_by_rows(
      s.lanes, static_cast<int>(blocks_for(static_cast<size_t>(s.out_length), kPositions)));
  const Shape shape{
      dim3(grid.blocks(), blocks_for(static_cast<size_t>(s.out_stride), kWarps * kOutBlock)),
      dim3(kWarpLanes, kWarps)};
  launch(Where(name, native(stream)), shape, conv_dense<Reader>, x, s, grid, weights, y);
}

struct SparseRows {
  const int *row_begin, *entry;  // entry: tap << 16 | channel
  const float* value;
};

// Sum: int where the products are integers.
template <typename Sum, typename Reader>
__global__ void __launch_bounds__(kWarpLanes* kWarps)
    conv_sparse(Reader x, SparseRows w, int out_channels, int in_rows, int out_length, int lanes,
                WarpsByRows grid, float* y) {
  const int lane = grid.first_lane() + thread_x();
  const int first = grid.row() * kSparsePositions;
  const int out = block_y() * kWarps + thread_y();
  if (out >= out_channels) return;
  Sum sums[kSparsePositions] = {};
  const int end = __ldg(w.row_begin + out + 1);
  for (int i = __ldg(w.row_begin + out); i < end; ++i) {
    const int entry = __ldg(w.entry + i);
    const int row = first + (entry >> 16), channel = entry & 0xffff;
    const Sum weight = static_cast<Sum>(__ldg(w.value + i));
#pragma unroll
    for (int p = 0; p < kSparsePositions; ++p) {
      const Sum value = static_cast<Sum>(x.value(min(row + p, in_rows - 1), channel, lane));
      if constexpr (std::is_same_v<Sum, float>) {
        sums[p] = __fmaf_rn(weight, value, sums[p]);
      } else {
        sums[p] += weight * value;
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kSparsePositions; ++p) {
    if (first + p < out_length) {
      y[place(first + p, out, lane, out_channels, lanes)] = static_cast<float>(sums[p]);
    }
  }
}

template <typename Sum, typename Reader>
void launch_sparse(const char* name, const Reader& x, const SparseRows& rows, int out_channels,
                   int in_rows, int out_length, int lanes, float* y, Stream stream) {
  const WarpsByRows grid = warps_by_rows(
      lanes, static_cast<int>(blocks_for(static_cast<size_t>(out_length), kSparsePositions)));
  const Shape shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(out_channels), kWarps)),
                    dim3(kWarpLanes, kWarps)};
  launch(Where(name, native(stream)), shape, conv_sparse<Sum, Reader>, x, rows, out_channels,
         in_rows, out_length, lanes, grid, y);
}

// --- Gradient of the weights -------------------------------------------------------------------

// A block of the dense product: kTile outputs x kTile channels of one tap, over the frames of one
// warp at a time. 16 x 16 threads have 4 x 4 sums each.
constexpr int kTile = 64;
constexpr int kTileThreads = 16;
constexpr int kPerThread = kTile / kTileThreads;
constexpr int kTileStride = kTile + 4;  // aligned for vectors, and fewer bank conflicts

__global__ void __launch_bounds__(kTileThreads* kTileThreads)
    weight_gradient_dense(Values x, Values dy, GradientShape s, float* partial) {
  __shared__ __align__(16) float of_dy[kWarpLanes][kTileStride];
  __shared__ __align__(16) float of_x[kWarpLanes][kTileStride];
  const int thread = thread_y() * kTileThreads + thread_x();
  const int lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  constexpr int kTileWarps = kTileThreads * kTileThreads / kWarpLanes;
  const int out0 = block_y() * kTile;
  const int channel_tiles = (s.in_channels + kTile - 1) / kTile;
  const int tap = block_x() / channel_tiles, channel0 = block_x() % channel_tiles * kTile;

  float sums[kPerThread][kPerThread] = {};
  const Slices::Steps steps = s.slices.of(block_z());
  for (int step = steps.begin; step < steps.end; ++step) {
    const int row = steps.row(step), frame = steps.first_frame(step) + lane;
    for (int i = warp; i < kTile; i += kTileWarps) {
      of_dy[lane][i] = out0 + i < s.out_channels ? dy.value(row + s.dy_pad, out0 + i, frame) : 0.0F;
      of_x[lane][i] = channel0 + i < s.in_channels ? x.value(row + tap, channel0 + i, frame) : 0.0F;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kWarpLanes; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&of_dy[k][thread_y() * kPerThread]);
      const float4 b = *reinterpret_cast<const float4*>(&of_x[k][thread_x() * kPerThread]);
      const float left[kPerThread] = {a.x, a.y, a.z, a.w};
      const float right[kPerThread] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int o = 0; o < kPerThread; ++o) {
#pragma unroll
        for (int c = 0; c < kPerThread; ++c) {
          sums[o][c] = __fmaf_rn(left[o], right[c], sums[o][c]);
        }
      }
    }
    __syncthreads();
  }
  for (int o = 0; o < kPerThread; ++o) {
    for (int c = 0; c < kPerThread; ++c) {
      const int out = out0 + thread_y() * kPerThread + o;
      const int channel = channel0 + thread_x() * kPerThread + c;
      if (out >= s.out_channels || channel >= s.in_channels) continue;
      const size_t weight = place(out, tap, channel, s.taps, s.in_channels);
      const size_t weights =
          static_cast<size_t>(s.out_channels) * static_cast<size_t>(s.taps * s.in_channels);
      partial[static_cast<size_t>(block_z()) * weights + weight] = sums[o][c];
    }
  }
}

// A warp has up to kGroup surviving weights of one output, which share the reads of dy.
template <typename Reader>
__global__ void __launch_bounds__(kBlockThreads)
    weight_gradient_sparse(Reader x, Values dy, GradientShape s, const int* entry,
                           const int* group_begin, const int* group_row, int groups, int survivors,
                           float* partial) {
  const int group = block_x() * kBlockWarps + thread_x() / kWarpLanes;
  const int lane = thread_x() % kWarpLanes, slice = block_y();
  if (group >= groups) return;
  const int begin = __ldg(group_begin + group), out = __ldg(group_row + group);
  const int count = __ldg(group_begin + group + 1) - begin;
  int taps[kGroup], channels[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int e = __ldg(entry + begin + min(i, count - 1));
    taps[i] = e >> 16;
    channels[i] = e & 0xffff;
  }
  float sums[kGroup] = {};
  const Slices::Steps steps = s.slices.of(slice);
  for (int step = steps.begin; step < steps.end; ++step) {
    const int row = steps.row(step), frame = steps.first_frame(step) + lane;
    const float gradient = dy.value(row + s.dy_pad, out, frame);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < count) {
        const float value = static_cast<float>(x.value(row + taps[i], channels[i], frame));
        sums[i] = __fmaf_rn(gradient, value, sums[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && i < count) {
      partial[static_cast<size_t>(slice) * static_cast<size_t>(survivors) +
              static_cast<size_t>(begin + i)] = sum;
    }
  }
}

}  // namespace

ConvShape conv_shape(const LayerShape& shape, const Tile& input) {
  ConvShape conv{input.channels, shape.out_channels, shape.taps, shape.length, true, input.length};
  const bool rows_as_channels =
      shape.taps == 1 && shape.length == 1 && input.pad == 0 && input.length > 1;
  if (rows_as_channels) {
    conv.taps = input.length;
    conv.out_length = conv.in_length = 1;
    conv.same_padding = false;
  }
  const int more = input.length - shape.length;  // positions than are written
  const bool fits = rows_as_channels
                        ? shape.in_channels == input.channels * input.length
                        : shape.in_channels == input.channels && input.pad == shape.padding() &&
                              more >= 0 && more <= shape.padding();
  constexpr int kLimit = 1 << 15;  // what an entry of the sparse kernels holds
  if (!fits || conv.taps >= kLimit || conv.in_channels >= kLimit || conv.out_channels >= kLimit) {
    throw std::invalid_argument("CUDA: a tile is not what its layer reads");
  }
  return conv;
}

void Weights::forward(const Input& x, float* y, Stream stream) const {
  if (is_library(plan_.forward)) {
    forward_library(x, y, stream);
    return;
  }
  if (plan_.forward == Kernel::kDense && integers_) {
    forward_tensor(x, y, stream);
    return;
  }
  with_reader(x, [&](const auto& reader) {
    using Reader = std::decay_t<decltype(reader)>;
    constexpr bool kIsCodes = !std::is_same_v<Reader, Values>;
    if (plan_.forward == Kernel::kDense) {
      launch_dense("conv_dense", reader, x.tile, packing_of(shape_, false), shape_.out_length,
                   forward_values_.data(), y, stream);
      return;
    }
    const SparseRows rows{forward_sparse_.row_begin.data(), forward_sparse_.entry.data(),
                          forward_sparse_.value.data()};
    const auto run = [&](const char* name, auto launch_of) {
      launch_of(name, reader, rows, shape_.out_channels, x.tile.rows(), shape_.out_length,
                x.tile.lanes(), y, stream);
    };
    if constexpr (kIsCodes) {
      if (integers_) {
        run("conv_sparse_codes", launch_sparse<int, Reader>);
        return;
      }
    }
    run("conv_sparse", launch_sparse<float, Reader>);
  });
}

void Weights::backward_data(const Tile& dy_tile, const float* dy, float* dx, Stream stream) const {
  if (is_library(plan_.backward_data)) {
    backward_data_library(dy_tile, dy, dx, stream);
    return;
  }
  const Packing packing = packing_of(shape_, true);
  const Values reader = values_of(dy_tile, dy);
  if (plan_.backward_data == Kernel::kSparse) {
    const SparseRows rows{backward_sparse_.row_begin.data(), backward_sparse_.entry.data(),
                          backward_sparse_.value.data()};
    launch_sparse<float>("conv_sparse_backward_data", reader, rows, packing.out, dy_tile.rows(),
                         shape_.in_length, dy_tile.lanes(), dx, stream);
  } else if (quantized_) {
    backward_data_tensor(dy_tile, dy, dx, stream);
  } else {
    launch_dense("conv_dense_backward_data", reader, dy_tile, packing, shape_.in_length,
                 backward_values_.data(), dx, stream);
  }
}

void Weights::backward_weight(const Input& x, const Tile& dy_tile, const float* dy, float* grad,
                              Stream stream) {
  if (is_library(plan_.backward_weight)) {
    backward_weight_library(x, dy_tile, dy, grad, stream);
    return;
  }
  if (plan_.backward_weight == Kernel::kDense && x.type != ElementType::kF32) {
    backward_weight_tensor(x, dy_tile, dy, grad, stream);
    return;
  }
  GradientShape s = gradient_shape(shape_, x.tile, dy_tile);
  const Values reader = values_of(dy_tile, dy);
  const int weights = s.out_channels * s.taps * s.in_channels;
  const auto add_up_slices = [&](int count, const int* places) {
    add_up(s.slices.groups, s.slices.each, count, places, x.scale, grad, stream);
  };
  if (plan_.backward_weight == Kernel::kSparse) {
    const int survivors = static_cast<int>(forward_sparse_.entry.size());
    const int groups = static_cast<int>(group_row_.size());
    if (groups == 0) return;
    const unsigned blocks = blocks_for(static_cast<size_t>(groups), kBlockWarps);
    s.slices = slices_for(shape_.out_length, x.tile.groups(), walk_, static_cast<int>(blocks),
                          kManyBlocks);
    partial_.reserve(static_cast<size_t>(s.slices.count()) * static_cast<size_t>(survivors));
    const Shape shape{dim3(blocks, static_cast<unsigned>(s.slices.count())), dim3(kBlockThreads)};
    with_reader(x, [&](const auto& input) {
      launch(Where("weight_gradient_sparse", native(stream)), shape,
             weight_gradient_sparse<std::decay_t<decltype(input)>>, input, reader, s,
             forward_sparse_.entry.data(), group_begin_.data(), group_row_.data(), groups,
             survivors, partial_.data());
    });
    add_up_slices(survivors, forward_sparse_.place.data());
    return;
  }
  const unsigned columns =
      static_cast<unsigned>(s.taps) * blocks_for(static_cast<size_t>(s.in_channels), kTile);
  const unsigned rows = blocks_for(static_cast<size_t>(s.out_channels), kTile);
  s.slices = slices_for(shape_.out_length, x.tile.groups(), walk_, static_cast<int>(columns * rows),
                        kManyBlocks);
  partial_.reserve(static_cast<size_t>(s.slices.count()) * static_cast<size_t>(weights));
  const Shape shape{dim3(columns, rows, static_cast<unsigned>(s.slices.count())),
                    dim3(kTileThreads, kTileThreads)};
  launch(Where("weight_gradient_dense", native(stream)), shape, weight_gradient_dense,
         values_of(x.tile, x.data), reader, s, partial_.data());
  add_up_slices(weights, nullptr);
}

void Weights::add_up(const FrameGroups& groups, int each, int count, const int* places,
                     const float* scale, float* grad, Stream stream) {
  unfinished_ = {groups, each, count, places, scale, grad};
  if (groups.are_all_here()) return;  // all layers at once, later
  // Ranks have memory for one exchange.
  add_slices(*ranks_,
             {partial_.data(), static_cast<size_t>(count), PartialSums::slices(groups, each), count,
              places, scale, grad},
             stream);
  unfinished_ = {};
}

void Weights::add_up_gradients(std::span<Weights* const> layers, Stream stream) {
  std::vector<SliceSums<float>> sums;
  for (Weights* layer : layers) {
    const Unfinished u = std::exchange(layer->unfinished_, {});
    if (u.count == 0) continue;
    sums.push_back({layer->partial_.data(), static_cast<size_t>(u.count),
                    PartialSums::slices(u.groups, u.each), u.count, u.places, u.scale, u.grad});
    if (sums.size() < kLayersAtOnce) continue;
    add_slices(sums, stream);
    sums.clear();
  }
  add_slices(sums, stream);
}

}  // namespace fmp::cuda
