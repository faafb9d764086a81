// SPDX-License-Identifier: MIT
// The dense products of the convolution on tensor cores, where one operand is codes. A window of
// `taps` rows is one block of memory, so that the products are plain matrix products:
//
//   y[l] (O x frames) = W (O x TC) * x[l ..]     bytes by bytes: exact
//   dx[l] (C x frames) = W' (C x TO) * dy[l ..]  codes by floats in three parts (tensor_core.h)
//   dw (O x TC) = sum over l of dy[l] * x[l ..]^T (frames x TC)
//
// A warp has its operands in registers: it reads four frames with each load, whole lines of memory
// in all, and the order of frames and of k within a product is what fits that. Weights come in the
// order in which lanes hold them. Where rows of windows overlap, or warps of a block read the same
// rows, they come from L1.
#include <algorithm>

#include "kernels/cuda/conv1d_tensor.h"

namespace fmp::cuda {
namespace {

// --- Weights by windows --------------------------------------------------------------------------

struct GradientWindow {
  using Row = float;
  using Sum = float;
  static constexpr int kDepth = kBf16Depth, kParts = kFloatParts;
  static constexpr int kBlocksEach = 3;

  struct Frames {
    float lower[2][kFrameTiles], upper[2][kFrameTiles];  // of two neighbours in k
  };

  static __device__ __forceinline__ void read(const Row* frames, int rows, int lanes, Frames& to) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 2 * member_of_lane() + kDepth / 2 * half;
      load_frames<float4>(frames + row * lanes, row < rows, to.lower[half]);
      load_frames<float4>(frames + (row + 1) * lanes, row + 1 < rows, to.upper[half]);
    }
  }
  static __device__ __forceinline__ void convert(const Frames& from,
                                                 uint32_t (&b)[kFrameTiles][kParts][2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) {
        uint32_t parts[kParts];
        split(from.lower[half][i], from.upper[half][i], parts);
#pragma unroll
        for (int p = 0; p < kParts; ++p) b[i][p][half] = parts[p];
      }
    }
  }
  static __device__ __forceinline__ void add_product(Sum (&sums)[kFrameTiles][4],
                                                     const uint32_t (&a)[4],
                                                     const uint32_t (&b)[kFrameTiles][kParts][2]) {
    Sum of_step[kFrameTiles][4] = {};
#pragma unroll
    for (int p = kParts - 1; p >= 0; --p) {
#pragma unroll
      for (int i = 0; i < kFrameTiles; ++i) mma_m16n8k16_bf16(of_step[i], a, b[i][p]);
    }
#pragma unroll
    for (int i = 0; i < kFrameTiles; ++i) add_step(of_step[i], sums[i]);
  }
};

// weights: [tile of outputs][step][lane][4]. y[l][out][lane] = scale * sum, scale null = 1.
template <typename Window>
__global__ void __launch_bounds__(kWarpLanes* kWindowWarps, Window::kBlocksEach)
    conv_tensor(const typename Window::Row* x, Windows s, WarpsByRows grid, const uint4* weights,
                const float* scale, float* y) {
  const int position = grid.row() * kWindowWarps + thread_y();
  if (position >= s.out_length) return;
  const int first_frame = grid.first_lane(), first_tile = block_y() * kOutTiles;
  const typename Window::Row* frames =
      x + place(position, 0, first_frame + kFrameTiles * group_of_lane(), s.row_step, s.lanes);

  typename Window::Sum sums[kOutTiles][kFrameTiles][4];
  multiply_window<Window>(frames, s, weights, first_tile, sums);

  const float factor = scale != nullptr ? *scale : 1.0F;
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int out = output_of(first_tile + m, group_of_lane(), half);
      if (out < s.out_channels) {
        // Two columns of each tile: eight frames side by side.
        const int frame = first_frame_of_lane(first_frame);
        float4* to =
            reinterpret_cast<float4*>(y + place(position, out, frame, s.out_channels, s.lanes));
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const auto of_tile = [&](int i) {
            return static_cast<float>(sums[m][i][2 * half + column]) * factor;
          };
          to[column] = float4{of_tile(0), of_tile(1), of_tile(2), of_tile(3)};
        }
      }
    }
  }
}

template <typename Window>
void launch_windows(const char* name, const void* x, const Windows& s, const uint32_t* weights,
                    const float* scale, float* y, Stream stream) {
  const WarpsByRows grid = warps_by_rows(
      s.lanes, static_cast<int>(blocks_for(static_cast<size_t>(s.out_length), kWindowWarps)));
  const Shape shape{dim3(grid.blocks(), blocks_for(static_cast<size_t>(s.out_tiles), kOutTiles)),
                    dim3(kWarpLanes, kWindowWarps)};
  launch(Where(name, native(stream)), shape, conv_tensor<Window>,
         static_cast<const typename Window::Row*>(x), s, grid,
         reinterpret_cast<const uint4*>(weights), scale, y);
}

// --- Gradient of the weights ---------------------------------------------------------------------

// Of a warp: 32 outputs by 64 columns, i.e. channels of a window. Column c of the i-th tile of
// columns of a group of quads is channel i of quad c.
constexpr int kGradientTiles = 2, kQuadGroups = 2;
constexpr int kGradientOutputs = kGradientTiles * kFragmentRows;
constexpr int kGradientQuads = kQuadGroups * kFragmentColumns;
constexpr int kGradientWarps = 6;  // of a block, at most: what 64 outputs by 3 * 64 columns take
// Blocks on each of about 130 multiprocessors, which their registers fill. More of them in all
// would only leave more sums to add.
constexpr int kGradientBlocksEach = 2, kGradientBlocks = 132 * kGradientBlocksEach;

struct GradientTiles {
  int window_quads, column_tiles, tiles;
};

// partial: [slice][O][T][C]
template <bool kSigned>
__global__ void __launch_bounds__(kWarpLanes* kGradientWarps, kGradientBlocksEach)
    weight_gradient_tensor(Codes<kSigned> x, Values dy, GradientShape s, GradientTiles t,
                           float* partial) {
  const int tile = block_x() * static_cast<int>(blockDim.y) + thread_y();
  if (tile >= t.tiles) return;
  const int first_out = tile / t.column_tiles * kGradientOutputs;
  const int first_quad = tile % t.column_tiles * kGradientQuads;
  // What there is from this lane's first row on.
  const int outs = s.out_channels - first_out - group_of_lane();
  const int quads = t.window_quads - first_quad - group_of_lane();

  float sums[kGradientTiles][kQuadGroups][kQuad][4] = {};
  const Slices::Steps steps = s.slices.of(block_y());
  for (int step = steps.begin; step < steps.end; ++step) {
    const int row = steps.row(step);
    // A product takes half of the frames, four neighbours in each lane. Not unrolled, as that
    // spills.
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int frame = steps.first_frame(step) + half * kBf16Depth + member_of_lane() * 4;
      const float* dy_frames = dy.data + place(row + s.dy_pad, first_out + group_of_lane(), frame,
                                               s.out_channels, s.lanes);
      const uint32_t* x_frames =
          x.words + place(row, first_quad + group_of_lane(), frame, x.quads, s.lanes);
      uint32_t a[kGradientTiles][kFloatParts][4];
#pragma unroll
      for (int m = 0; m < kGradientTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int out = m * kFragmentRows + r * kFragmentRows / 2;
          float v[4];
          load_frames<float4>(dy_frames + out * s.lanes, out < outs, v);
          uint32_t lower[kFloatParts], upper[kFloatParts];
          split(v[0], v[1], lower);
          split(v[2], v[3], upper);
#pragma unroll
          for (int p = 0; p < kFloatParts; ++p) {
            a[m][p][r] = lower[p];
            a[m][p][2 + r] = upper[p];
          }
        }
      }
#pragma unroll
      for (int q = 0; q < kQuadGroups; ++q) {
        const int quad = q * kFragmentColumns;
        uint32_t words[4];
        load_frames<uint4>(x_frames + quad * s.lanes, quad < quads, words);
        for (uint32_t& word : words) word ^= kSigned ? kAdd128 : 0U;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          const uint32_t b[2] = {code_pair<kSigned>(words[0], words[1], i),
                                 code_pair<kSigned>(words[2], words[3], i)};
          float of_step[kGradientTiles][4] = {};
#pragma unroll
          for (int p = kFloatParts - 1; p >= 0; --p) {
#pragma unroll
            for (int m = 0; m < kGradientTiles; ++m) mma_m16n8k16_bf16(of_step[m], a[m][p], b);
          }
#pragma unroll
          for (int m = 0; m < kGradientTiles; ++m) add_step(of_step[m], sums[m][q][i]);
        }
      }
    }
  }

  const size_t weights = place(s.out_channels, 0, 0, s.taps, s.in_channels);
  float* of_slice = partial + static_cast<size_t>(block_y()) * weights;
#pragma unroll
  for (int m = 0; m < kGradientTiles; ++m) {
#pragma unroll
    for (int q = 0; q < kQuadGroups; ++q) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int out = first_out + m * kFragmentRows + e / 2 * kFragmentRows / 2 + group_of_lane();
        const int quad = first_quad + q * kFragmentColumns + 2 * member_of_lane() + e % 2;
        const int tap = quad / x.quads, channel = quad % x.quads * kQuad;
        if (out < s.out_channels && tap < s.taps) {
#pragma unroll
          for (int i = 0; i < kQuad; ++i) {
            if (channel + i < s.in_channels) {
              of_slice[place(out, tap, channel + i, s.taps, s.in_channels)] = sums[m][q][i][e];
            }
          }
        }
      }
    }
  }
}

}  // namespace

const uint32_t* Weights::tap_fragments() const {
  if (!integers_ || !backward_ || plan_.backward_data != Kernel::kDense) return nullptr;
  return shape_.out_channels % kPairOutputs == 0 ? backward_fragments_.data()
                                                 : tap_fragments_.data();
}

void Weights::forward_tensor(const Input& x, float* y, Stream stream) const {
  const Windows s = windows<true>(packing_of(shape_, false), shape_.out_length, x.tile.lanes());
  const auto run = x.type == ElementType::kS8 ? launch_windows<CodeWindow<true>>
                                              : launch_windows<CodeWindow<false>>;
  run("conv_tensor", x.data, s, forward_fragments_.data(), nullptr, y, stream);
}

void Weights::backward_data_tensor(const Tile& dy_tile, const float* dy, float* dx,
                                   Stream stream) const {
  const Windows s = windows<false>(packing_of(shape_, true), shape_.in_length, dy_tile.lanes());
  launch_windows<GradientWindow>("conv_tensor_backward_data", dy, s, backward_fragments_.data(),
                                 scale(), dx, stream);
}

void Weights::backward_weight_tensor(const Input& x, const Tile& dy_tile, const float* dy,
                                     float* grad, Stream stream) {
  GradientShape s = gradient_shape(shape_, x.tile, dy_tile);
  const int quads = shape_.taps * x.tile.quads();
  const auto tiles_of = [](int count, int size) { return (count + size - 1) / size; };
  GradientTiles t{quads, tiles_of(quads, kGradientQuads), 0};
  t.tiles = tiles_of(s.out_channels, kGradientOutputs) * t.column_tiles;
  const int warps = std::min(t.tiles, kGradientWarps);
  const int blocks = tiles_of(t.tiles, warps);
  s.slices = slices_for(shape_.out_length, x.tile.groups(), walk_, blocks, kGradientBlocks);
  const int weights = s.out_channels * s.taps * s.in_channels;
  partial_.reserve(static_cast<size_t>(s.slices.count()) * static_cast<size_t>(weights));
  const Shape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(s.slices.count())),
                    dim3(kWarpLanes, static_cast<unsigned>(warps))};
  const auto run = [&](const auto& kernel, const auto& codes) {
    launch(Where("weight_gradient_tensor", native(stream)), shape, kernel, codes,
           values_of(dy_tile, dy), s, t, partial_.data());
  };
  if (x.type == ElementType::kS8) {
    run(weight_gradient_tensor<true>, codes_of<true>(x.tile, x.data));
  } else {
    run(weight_gradient_tensor<false>, codes_of<false>(x.tile, x.data));
  }
  add_up(s.slices.groups, s.slices.each, weights, nullptr, x.scale, grad, stream);
}

}  // namespace fmp::cuda
