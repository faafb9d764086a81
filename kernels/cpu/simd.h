// SPDX-License-Identifier: MIT
// The vector code of the CPU backend: one table of functions per instruction set, chosen at run
// time. All functions work on a chunk: `rows` consecutive positions of one tile, small enough to
// stay in the second-level cache. A row is [channels][kLanes]; strides are in elements between
// rows.
//
// Every sum runs in one fixed order (taps, then channels, for a convolution; positions, then a
// fixed tree over the lanes, for a weight gradient), and multiply-adds are fused where written. A
// kernel that skips zeros therefore gives the same bits as one that multiplies by them, and so do
// all instruction sets with fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/integer_simd.h"
#include "kernels/tile.h"

namespace fmp::cpu {

// Output channels that a dense kernel computes together: 6 x 16 lanes of accumulators leave
// registers for operands on AVX2.
inline constexpr int kOutBlock = 6;

// Dense weights as the kernels read them: [ceil(out/kOutBlock)][taps][channels][block], the last
// block being as narrow as what is left.
struct DenseWeights {
  int out = 0, taps = 0, channels = 0;
  const float* values = nullptr;
};

// The same as signed 16-bit pairs of neighbouring channels: [..][taps][ceil(channels/2)][block][2],
// the second of a last odd channel being zero.
struct DensePairWeights {
  int out = 0, taps = 0, channels = 0;
  const int16_t* values = nullptr;
};

// Compressed rows: output channel o has the entries row_begin[o] .. row_begin[o+1]-1, ordered by
// tap, then channel. offset = tap * row stride + channel * channel stride of the operand it meets
// (ChunkLayout).
struct SparseWeights {
  int out = 0;
  const int32_t* row_begin = nullptr;
  const int32_t* offset = nullptr;
  const float* values = nullptr;
};

// y = gain * x + shift per channel, then what becomes of it (see quantize_pool and its backward).
struct ChannelAffine {
  const float* gain = nullptr;
  const float* shift = nullptr;
};

// The affine step of evaluation; see EvaluationState.
struct EvaluationSteps {
  float sum_scale = 1;
  const float* gain = nullptr;
  const float* shift = nullptr;
  float act_scale = 1;
};

// What a hidden layer's activation does after the affine step.
struct ActivationSpec {
  int pool = 1;           // window and stride of MaxPool1d
  bool quantized = true;  // false: plain ReLU
  float max_code = 255;   // odd
  float min_code = 0;     // or below: codes of a signed quantizer, stored as two's complement
};

// Convolution sums of a few consecutive channels at consecutive positions, as floats: y[row *
// stride + channel * kLanes + lane].
struct Sums {
  const float* y = nullptr;
  ptrdiff_t stride = 0;
  int rows = 0, channels = 0;
};

// Exact sums of a channel's y and y^2, the latter in two parts: high * 2^32 + low.
struct IntegerTotals {
  int64_t sum = 0, low = 0, high = 0;

  void add_square(int64_t value) {
    low += value & 0xffffffff;
    high += value >> 32;
  }
  void add(const IntegerTotals& other) {
    sum += other.sum;
    low += other.low;
    high += other.high;
  }
  double squares() const {
    constexpr double kHigh = 4294967296.0;  // 2^32
    return static_cast<double>(high) * kHigh + static_cast<double>(low);
  }
};

// Parts in which code_totals() keeps a sum.
inline constexpr int kTotalParts = kLanes / 2;

// What the backward pass reads of an activation, from the first channel of a Sums on: the gradient
// dp of the pooled output, its codes (null if it has none), and the bits that quantize_pool wrote.
// Strides are in elements, per position of each.
struct PooledGradient {
  const float* dp = nullptr;
  ptrdiff_t dp_stride = 0;
  const uint8_t* codes = nullptr;
  bool signed_codes = false;  // two's complement
  ptrdiff_t code_stride = 0;
  const uint16_t* passes = nullptr;
  ptrdiff_t passes_stride = 0;
};

// Sums that the backward pass takes of a channel, lane by lane: of g, of g * y, of dp * code.
inline constexpr int kGradientSums = 3;

// dy = of_g * g + of_y * y + of_one per channel: the backward pass of batch-norm.
struct GradientAffine {
  const float* of_g = nullptr;
  const float* of_y = nullptr;
  const float* of_one = nullptr;
};

// Codes that an operation without weights reads: code = (byte ^ flip) - zero, both being 0x80 for
// two's complement and 0 without a sign; or `flip` 0 and `zero` what was added. stride: elements
// between positions.
struct JoinOperand {
  const uint8_t* codes = nullptr;  // null: there is none
  ptrdiff_t stride = 0;
  uint8_t flip = 0, zero = 0;
  float scale = 1;
};

// Consecutive positions of some channels of an operation without weights. Its real values are
// a * a_scale, or a * a_scale + b * b_scale, or, with a `window` that is not 0, (sum of a over the
// window) / window * a_scale. Each operation is rounded to float; the sum is exact.
struct JoinRows {
  JoinOperand a, b;
  int window = 0;
  int positions = 0;  // of real values
  int channels = 0;
  int zero_written = 0;  // added to the codes that are written
};

// Where an operand's gradient goes: values null = nowhere; add = it is added to what is there.
struct JoinGradientRows {
  float* values = nullptr;
  ptrdiff_t stride = 0;
  bool add = false;
};

struct CodeChunk;    // quad_weights.h
struct CodeWeights;  // likewise

struct Simd {
  const char* target;
  bool has_tiles;           // code_tiles.h can be used
  bool has_gradient_tiles;  // gradient_tiles.h likewise

  // y[l][o] = sum over taps t, channels c of w[o][t][c] * x[l + t][c].
  void (*conv1d_dense)(const float* x, ptrdiff_t x_stride, int rows, const DenseWeights& w,
                       float* y, ptrdiff_t y_stride);
  void (*conv1d_sparse)(const float* x, ptrdiff_t x_stride, int rows, const SparseWeights& w,
                        float* y, ptrdiff_t y_stride);
  // The same in exact 32-bit integers; x as written by unpack_pairs; y rounded to float once.
  void (*conv1d_dense_pairs)(const int16_t* x, ptrdiff_t x_stride, int rows,
                             const DensePairWeights& w, float* y, ptrdiff_t y_stride);

  // The integers themselves, modulo 2^32.
  void (*conv1d_dense_pairs_wrapping)(const int16_t* x, ptrdiff_t x_stride, int rows,
                                      const DensePairWeights& w, int32_t* y, ptrdiff_t y_stride);

  // dw[o][t][c][lane] += sum over positions l of dy[l][o][lane] * x[l + t][c][lane].
  void (*conv1d_backward_weight_dense)(const float* x, ptrdiff_t x_stride, const float* dy,
                                       ptrdiff_t dy_stride, int rows, int out, int taps,
                                       int channels, float* dw);
  // The same for single weights of one input channel, whose rows of x lie behind one another: those
  // of tap t are i = begin[t] .. begin[t + 1] - 1; dw[i][lane] += ..., offset[i] being that of the
  // output in a row of dy.
  void (*conv1d_backward_weight_sparse)(const float* x, const float* dy, ptrdiff_t dy_stride,
                                        int rows, int taps, const int32_t* begin,
                                        const int32_t* offset, float* dw);

  // A matrix product, for dense gradients: dw[o * channels + c] += sum over rows and lanes of
  // dy[row][o][lane] * x[row][lane][c], in this order. channels is a multiple of kLanes.
  void (*backward_weight_product)(const float* x, ptrdiff_t x_stride, const float* dy,
                                  ptrdiff_t dy_stride, int rows, int out, int channels, float* dw);

  // The transforms of winograd.h on rows of `count` elements, a multiple of kLanes (of 2 * kLanes
  // for pairs): values at point p of group g go to, or come from, points + p * point_stride + g *
  // group_stride. x has data_rows(groups) rows; dy 4 a group; y `rows` rows.
  void (*winograd_data)(const float* x, ptrdiff_t x_stride, int groups, int count, float* points,
                        ptrdiff_t group_stride, ptrdiff_t point_stride);
  void (*winograd_data_pairs)(const int16_t* x, ptrdiff_t x_stride, int groups, int count,
                              int16_t* points, ptrdiff_t group_stride, ptrdiff_t point_stride);
  void (*winograd_gradient)(const float* dy, ptrdiff_t dy_stride, int groups, int count,
                            float* points, ptrdiff_t group_stride, ptrdiff_t point_stride);
  void (*winograd_outputs)(const float* points, ptrdiff_t group_stride, ptrdiff_t point_stride,
                           int rows, int count, float* y, ptrdiff_t y_stride);
  // From 24 y in 32-bit integers to y.
  void (*winograd_outputs_exact)(const int32_t* points, ptrdiff_t group_stride,
                                 ptrdiff_t point_stride, int rows, int count, float* y,
                                 ptrdiff_t y_stride);

  // Rows of codes of a channel, `stride` apart, to floats behind one another.
  void (*unpack_rows_u8)(const uint8_t* codes, ptrdiff_t stride, int rows, float* out);
  void (*unpack_rows_s8)(const int8_t* codes, ptrdiff_t stride, int rows, float* out);
  // Codes to operands. count: bytes of one row, channels * kLanes.
  void (*unpack_u8)(const uint8_t* codes, int64_t count, float* out);
  void (*unpack_s8)(const int8_t* codes, int64_t count, float* out);
  // [channels][kLanes] codes to [ceil(channels/2)][kLanes][2] 16-bit pairs.
  void (*unpack_pairs_u8)(const uint8_t* codes, int channels, int16_t* out);
  void (*unpack_pairs_s8)(const int8_t* codes, int channels, int16_t* out);

  // [row][channel][kLanes] codes to [ceil(channels/4)] quads, quad_stride apart, of
  // [row][kLanes][4] bytes in the order of byte_of_channel(), `offset` added to each; bytes without
  // a channel are anything. `prefetch` bytes further on are the codes of a later call, which need
  // not exist.
  void (*pack_quads)(const uint8_t* codes, int rows, int channels, uint8_t offset,
                     ptrdiff_t prefetch, uint8_t* out, ptrdiff_t quad_stride);
  // Sums of outputs first .. first + outputs - 1 (`first` a multiple of 4) at `rows` positions from
  // the first row of x on, offsets[output] added, exact in 32 bits, then rounded to float:
  // y[row * y_stride + (output - first) * kLanes + lane].
  void (*code_sums)(const CodeWeights& w, int first, int outputs, const uint8_t* x, int rows,
                    const int32_t* offsets, float* y, ptrdiff_t y_stride);
  // Exact sums of the y of each output, and of their squares, in parts whose sum is meant: totals
  // [output][2][kTotalParts] += ...
  void (*code_totals)(const CodeWeights& w, int outputs, const uint8_t* x, int rows,
                      const int32_t* offsets, int64_t* totals);

  // [channels][kLanes] bytes to [kLanes][channels rounded up to a multiple of kLanes], zeros where
  // there is no channel.
  void (*transpose_codes)(const uint8_t* codes, int channels, uint8_t* out);

  // sum[c] += sum of y, sum_squares[c] += sum of y^2 over the rows and lanes.
  void (*channel_sums)(const float* y, ptrdiff_t y_stride, int rows, int channels, double* sum,
                       double* sum_squares);

  // The same for integers, exactly, in the sums of a few channels.
  void (*integer_sums)(const Sums& sums, IntegerTotals* totals);

  // t = gain[c] * y + shift[c]; code = clamp(round_half_even(t), min_code, max_code), then the
  // maximum of each window of `pool` rows; rows left over take part in none. u8: codes
  // [window][channel] [kLanes]; relu_pool (not quantized): max(t, 0). passes [row][channel]: in bit
  // `lane`, whether the gradient of the window passes to this y: it is the first with the largest
  // code, and 0 < t, or above where min_code begins, and round(t) <= max_code (straight-through).
  void (*quantize_pool)(const Sums& sums, const ChannelAffine& affine, const ActivationSpec& spec,
                        uint8_t* out, ptrdiff_t out_stride, uint16_t* passes,
                        ptrdiff_t passes_stride);
  void (*relu_pool)(const Sums& sums, const ChannelAffine& affine, const ActivationSpec& spec,
                    float* out, ptrdiff_t out_stride, uint16_t* passes, ptrdiff_t passes_stride);

  // The same with the roundings of evaluation.
  void (*evaluate_codes)(const Sums& sums, const EvaluationSteps& steps, const ActivationSpec& spec,
                         uint8_t* out, ptrdiff_t out_stride);
  void (*evaluate_values)(const Sums& sums, const EvaluationSteps& steps,
                          const ActivationSpec& spec, float* out, ptrdiff_t out_stride);

  // The backward pass of affine + QuantReLU + pool, g being dp where it passes.
  // totals [channels][kGradientSums][kLanes]: lane by lane, += g, += g * y, += dp * code.
  void (*backward_sums)(const Sums& sums, int pool, const PooledGradient& gradient, float* totals);
  // dy of each position, at dy[row * row stride + channel * channel stride + lane].
  void (*backward_apply)(const Sums& sums, int pool, const PooledGradient& gradient,
                         const GradientAffine& step, float* dy, ptrdiff_t row_stride,
                         ptrdiff_t channel_stride);
  // quantize_pool, backward_sums and backward_apply of outputs 0 .. outputs - 1 of a sparse layer,
  // whose sums are made and used in registers. The pool is 1 or 2, and rows are a multiple of it.
  void (*sparse_codes)(const CodeChunk& chunk, int outputs, const ChannelAffine& affine,
                       const ActivationSpec& spec, uint8_t* out, ptrdiff_t out_stride,
                       uint16_t* passes, ptrdiff_t passes_stride);
  void (*sparse_gradient_sums)(const CodeChunk& chunk, int outputs, int pool,
                               const PooledGradient& gradient, float* totals);
  void (*sparse_gradient)(const CodeChunk& chunk, int outputs, int pool,
                          const PooledGradient& gradient, const GradientAffine& step, float* dy,
                          ptrdiff_t row_stride, ptrdiff_t channel_stride);
  // g of each position, likewise, and the sums that need no y.
  void (*spread_gradient)(int rows, int channels, int pool, const PooledGradient& gradient,
                          float* g, ptrdiff_t row_stride, ptrdiff_t channel_stride, float* totals);
  // values[i] rounded to bf16, to nearest, ties to even, in place and to `out`; what is no number
  // stays so. count: a multiple of kLanes.
  void (*round_to_bf16)(float* values, int64_t count, uint16_t* out);
  // And back. What lies as much further on will be wanted next; it need not exist.
  void (*widen_bf16)(const uint16_t* from, int64_t count, float* out);
  // totals[i] += sum of the kLanes sums[i].
  void (*add_lane_sums)(const float* sums, int count, double* totals);

  // The elements with t >= threshold (magnitudes: |t|) among the first `lanes` lanes: their t to
  // `values` and their places (row * channels + channel) * kLanes + lane to `places`, in that
  // order. Both have room for all. Returns how many.
  int (*collect_at_least)(const Sums& sums, const ChannelAffine& affine, bool magnitudes,
                          float threshold, int lanes, float* values, int32_t* places);

  // Rows of codes to what an operation without weights writes (join.cc). Codes of each window of
  // spec.pool positions, as quantize_pool has them; act_scale is s_out.
  void (*join_codes)(const JoinRows& rows, const ActivationSpec& spec, float act_scale,
                     uint8_t* out, ptrdiff_t out_stride);
  // The real values, [position][channel][kLanes], before they are quantized.
  void (*join_values)(const JoinRows& rows, float* out);
  // From dp, the gradient of the windows, to that of each operand's real values, and in
  // totals[lane], added, the sum of dp * code - g * t.
  void (*join_gradient)(const JoinRows& rows, const ActivationSpec& spec, float act_scale,
                        const float* dp, ptrdiff_t dp_stride, const JoinGradientRows& a,
                        const JoinGradientRows& b, double* totals);
  // to += from.
  void (*add_values)(const float* from, int64_t count, float* to);

  IntegerSimd integer;
};

// The table in use: that of the best instruction set that this machine has, until use_target says
// otherwise.
const Simd& simd();

}  // namespace fmp::cpu
