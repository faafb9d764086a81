// SPDX-License-Identifier: MIT
// The convolution of a layer on chunks of rows: the three passes with whatever kernels the layer's
// weights were compiled for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/chunks.h"
#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weights.h"
#include "kernels/cpu/winograd.h"

namespace fmp::cpu {

// One layer's convolution on chunks: operands unpacked from the input tile, any of the three
// passes.
class ChunkConv {
 public:
  ChunkConv(const ConstTileView& x, const Weights& weights)
      : shape_(weights.shape()), x_(x), w_(weights.compiled()), items_(shape_, x.shape.frames) {}

  const Items& items() const { return items_; }
  const LayerShape& shape() const { return shape_; }
  const float* codes() const { return w_.codes.data(); }  // of the weights, [O][T][C]
  int half() const { return shape_.padding(); }
  int chunk_rows() const { return cpu::chunk_rows(shape_.pool); }

  // Sums of rows r0 .. r0 + rows - 1 to y.
  void forward(int64_t item, int r0, int rows, float* y, ptrdiff_t y_stride, Scratch& scratch,
               LapTimer& timer, Profile& profile) const;

  // The same, a few channels at a time while their sums are in the first-level cache: body(first
  // channel, sums).
  template <typename Body>
  void for_each_run(int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer,
                    Profile& profile, const Body& body) const {
    if (!w_.forward_on_quads) {
      const ptrdiff_t stride = static_cast<ptrdiff_t>(shape_.out_channels) * kLanes;
      float* y = scratch.y.reserve(static_cast<size_t>(rows * stride));
      forward(item, r0, rows, y, stride, scratch, timer, profile);
      body(0, Sums{y, stride, rows, shape_.out_channels});
      return;
    }
    const uint8_t* operand = pack_quads(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    const CodeWeights weights = w_.forward_quads.view(w_.dot);
    const int run = weights.tiles != nullptr ? kTileOutputs : kRunChannels;
    const ptrdiff_t stride = run * kLanes;
    float* y = scratch.run.reserve(static_cast<size_t>(rows * stride));
    const TilesInUse in_use(weights.tiles != nullptr);
    for (int c = 0; c < shape_.out_channels; c += run) {
      const int channels = std::min(run, shape_.out_channels - c);
      code_sums(weights, c, channels, operand, rows, y, stride);
      timer.lap(profile.conv_forward);
      body(c, Sums{y, stride, rows, channels});
    }
  }
  // Where sums are best used in registers, as they are made (see sparse_sums.cc): use(chunk).
  bool uses_sums_in_registers() const {
    return w_.forward_on_quads && w_.plan.forward == Kernel::kSparse && shape_.pool <= 2 &&
           shape_.length % shape_.pool == 0 && shape_.act_bits != kFloatBits;
  }
  template <typename Use>
  void with_code_chunk(int64_t item, int r0, int rows, Scratch& scratch, LapTimer& timer,
                       Profile& profile, const Use& use) const {
    const uint8_t* operand = pack_quads(item, r0, rows, scratch);
    timer.lap(profile.unpack);
    use(CodeChunk{w_.forward_quads.view(w_.dot), operand, rows, sum_offsets()});
  }
  // Where sums are made in runs: adds to totals [O][2][kTotalParts], see code_totals().
  void add_totals(int64_t item, int r0, int rows, int64_t* totals, Scratch& scratch,
                  LapTimer& timer, Profile& profile) const;
  bool sums_are_integers() const { return w_.integers; }
  // Whether sums are made a few channels at a time, and so best computed again.
  bool makes_runs() const { return w_.forward_on_quads; }

  // Where backward_data and backward_weight expect dy.
  ChunkLayout gradient_layout() const { return w_.gradient_layout(); }
  // Rows of dy that backward_data may read beyond those it needs; they must be zero.
  int backward_data_slack() const {
    return w_.backward_data_algorithm == DenseAlgorithm::kWinograd ? winograd::kOutputs - 1 : 0;
  }
  // dx rows from dy rows; dy points to the row `half` before the first dx row.
  void backward_data(const float* dy, int rows, float* dx, Scratch& scratch) const;

  // Adds to dw, which has room for gradient_sums(), the part of the weight gradient that comes from
  // dy of rows r0 .. r0 + rows - 1.
  void backward_weight(int64_t item, int r0, int rows, const float* dy, float* dw, Scratch& scratch,
                       LapTimer& timer, Profile& profile) const;
  // Sums that backward_weight keeps: the lanes of each weight that has a gradient, in the order of
  // gradient_place(), or [taps or points][O][channels padded].
  size_t gradient_sums() const;
  // Adds what the sums amount to, to gradient (see gradient_size()).
  void add_gradient(const float* sums, float* gradient) const;
  // Weights that have a gradient: all, or the surviving ones in the order of the sparse list.
  size_t gradient_size() const;
  size_t gradient_place(size_t i) const {
    return w_.plan.backward_weight == Kernel::kSparse ? static_cast<size_t>(w_.gradient_index[i])
                                                      : i;
  }

  // The window rows of rows r0 .. r0 + rows - 1 as floats.
  const float* unpack_floats(int64_t item, int r0, int rows, Scratch& scratch) const;

 private:
  // Row r of the window that starts `half` rows before position 0.
  const void* input_row(int64_t item, int r) const;

  // With the kernel that the weights are for.
  void code_sums(const CodeWeights& weights, int first, int outputs, const uint8_t* operand,
                 int rows, float* y, ptrdiff_t y_stride) const;
  // The window as code_sums() reads it.
  const uint8_t* pack_quads(int64_t item, int r0, int rows, Scratch& scratch) const;
  const int32_t* sum_offsets() const {
    return (x_.type == ElementType::kS8 ? w_.signed_offsets : w_.no_offsets).data();
  }

  // The window, and rows of zeros up to what Winograd's algorithm reads.
  const int16_t* unpack_pairs(int64_t item, int r0, int rows, Scratch& scratch) const;

  void forward_at_points(const int16_t* x, int rows, float* y, ptrdiff_t y_stride,
                         Scratch& scratch) const;

  void backward_data_at_points(const float* dy, int rows, float* dx, ptrdiff_t dx_stride,
                               Scratch& scratch) const;

  void backward_weight_at_points(const float* x, const float* dy, int rows, float* dw,
                                 Scratch& scratch) const;

  // The same for surviving weights alone: the rows of an input channel as floats, then all weights
  // that meet them.
  void backward_weight_by_channel(int64_t item, int r0, int rows, const float* dy, float* dw,
                                  Scratch& scratch) const;

  // Window rows for gradient_tiles.h.
  void pack_tiles(int64_t item, int r0, int rows, Scratch& scratch) const;

  // Window rows as [kLanes][channels padded].
  const float* unpack_transposed(int64_t item, int r0, int rows, Scratch& scratch) const;

  bool sums_directly() const {
    return w_.plan.backward_weight == Kernel::kSparse ||
           w_.backward_weight_algorithm == DenseAlgorithm::kDirect;
  }
  int padded_channels() const { return (shape_.in_channels + kLanes - 1) / kLanes * kLanes; }
  ptrdiff_t transposed_stride() const { return operand_stride(padded_channels()); }
  ptrdiff_t product_size() const {
    return static_cast<ptrdiff_t>(shape_.out_channels) * padded_channels();
  }

  LayerShape shape_;
  ConstTileView x_;
  const Weights::Compiled& w_;
  Items items_;
};

}  // namespace fmp::cpu
