// SPDX-License-Identifier: MIT
// Inference on integers alone. A layer's sums of products of codes are exact; what follows them
// (batch-norm, quantizer) is a non-decreasing function of a sum, and so is no more than a list of
// thresholds per channel. Pooling takes the largest sum of a window before that.
//
// Activations are unsigned codes in tiles of kLanes frames, [pad + L + pad][quads][kLanes][4]: four
// neighbouring channels of a frame fill 32 bits, so that one instruction multiplies and adds four
// pairs of bytes per lane. Their bytes are channels 0, 2, 1, 3: the even and the odd ones, as
// 16-bit numbers, are then pairs of neighbours. Signed inputs are stored with an offset that makes
// them unsigned; the thresholds contain what it adds to the sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/cpu/code_line.h"
#include "kernels/cpu/ops.h"
#include "kernels/tile.h"

namespace fmp::cpu {

struct IntegerLayerView;
struct TileLayerView;

inline constexpr int kQuad = 4;  // channels that lie side by side
inline int quads(int channels) { return (channels + kQuad - 1) / kQuad; }
inline constexpr int kQuadRow = kQuad * kLanes;  // bytes of a quad in a tile
// The byte of a channel in its quad.
constexpr int byte_of_channel(int channel) { return channel % kQuad % 2 * 2 + channel % kQuad / 2; }

// Sums that a channel can reach.
struct SumRange {
  int32_t low = 0, high = 0;
};

// From a channel's sums to codes: code = how many of its thresholds are <= sum. As a
// multiplication:
//   code = ((clamp(sum, base, top) - base) * multiplier + offset) >> shift     (64 bits)
// exact: that is the code of every reachable sum. Otherwise it is the code or one less, and with
// offset + slack the code or one more: only where the two differ, next to a threshold, a look at
// that one must tell.
struct Requantizer {
  int32_t base = 0, top = 0;
  uint32_t multiplier = 0;
  int32_t shift = -1;  // < 0: there is no such multiplication; the thresholds are searched
  uint64_t offset = 0, slack = 0;
  bool exact = false;
  bool fits_32_bits = false;  // the same with 32 bits, and exact
};

// The multiplication for `thresholds` (ascending, within low .. high + 1) and every sum in `range`.
// Floats round their thresholds a little away from any line, so that not all have an exact one.
// slope: codes per unit of the sum, the function's own.
Requantizer fit_requantizer(std::span<const int32_t> thresholds, const SumRange& range,
                            double slope);

// The requantizer of the same function after `offset` was added to every sum.
Requantizer shifted(const Requantizer& requantizer, int32_t offset);

// The codes that hidden_forward_eval() writes for these sums of a channel: its own vector code with
// its own rounding. sums, codes: [kLanes].
void activation_codes(const EvaluationState& state, int channel, const LayerShape& shape,
                      const int32_t* sums, uint8_t* codes);

// How four products of bytes are summed. One that the instruction set in use lacks runs as kWide;
// all give the same sums.
enum class DotProduct : uint8_t {
  kWide,    // 16-bit operands, 32-bit sums
  kNarrow,  // 8-bit operands, 16-bit sums: only where every partial sum fits
  kVnni,    // 8-bit operands, 32-bit sums in one instruction (AVX-512 VNNI)
  kPoints,  // 16-bit operands at Winograd's points, half as many products: dense convolutions of
            // three taps only (see IntegerLayer::points_fit)
  kTiles,  // 8-bit operands, 32-bit sums of 16 x 16 outputs in one instruction (AMX); hidden layers
};
const char* name_of(DotProduct dot);

// The fastest one here of those that can be used. narrow_fits: see IntegerLayer; points_fit: and
// the layer is dense.
DotProduct best_dot_product(bool narrow_fits, bool points_fit);

struct IntegerShape {
  int in_channels = 0, out_channels = 0;
  int taps = 1;          // odd; same padding, stride 1
  int pool = 1;          // window and stride of the maximum
  int in_positions = 1;  // > 1: the input is this many positions of in_channels / in_positions
                         // channels each, joined by a stride or flattened
};

// A layer compiled for the kernels.
class IntegerLayer {
 public:
  // codes: [O][taps][C], any s8. requantizers: [O]; thresholds: [O][levels], below the largest
  // int32_t, both for sums of unsigned input codes; empty for an output layer. largest_input: of
  // the unsigned codes.
  IntegerLayer(const IntegerShape& shape, std::span<const int8_t> codes, int largest_input,
               std::vector<Requantizer> requantizers, std::span<const int32_t> thresholds,
               int levels);

  const IntegerShape& shape() const { return shape_; }
  int in_quads() const { return in_quads_; }  // of a position
  int out_quads() const { return quads(shape_.out_channels); }
  // Whether no partial sum of kNarrow leaves 16 bits.
  bool narrow_fits() const { return narrow_fits_; }
  // Whether kPoints can be used: three taps of a convolution with many channels, a pool that
  // divides four, and sums that leave room for its denominator in 32 bits.
  bool points_fit() const { return !points_.empty(); }
  // Whether kTiles can be used: a hidden layer, compiled where the processor has AMX and the system
  // lets this process use it.
  bool tiles_fit() const { return !tiles_.empty(); }
  // Share of the quads of weights that have a nonzero.
  double quad_density() const;

  // Whether to walk over nonzero quads, and how to multiply; set by the constructor to what is
  // fastest as a rule. kNarrow, kPoints and kTiles only
  // where they fit.
  bool sparse = false;
  DotProduct dot = DotProduct::kWide;

  // x: the first row of the first window. rows: positions, a multiple of the pool; x has rows +
  // taps - 1 of them. out: [rows / pool][out_quads][kLanes][4].
  void hidden(const uint8_t* x, int rows, uint8_t* out) const;
  // x: one window. sums: [out_quads * 4][kLanes].
  void output(const uint8_t* x, int32_t* sums) const;

 private:
  IntegerLayerView view() const;
  void pack_points(std::span<const int8_t> codes, int64_t largest_sum);
  void pack_tiles(int64_t largest_sum);
  TileLayerView tile_view() const;
  void hidden_at_points(const uint8_t* x, int groups, uint8_t* out) const;

  IntegerShape shape_;
  int in_quads_ = 0;
  int levels_ = 0;
  bool narrow_fits_ = false;
  std::vector<Requantizer> requantizers_;  // [out_quads * 4]
  std::vector<int32_t> thresholds_;        // [out_quads * 4][levels + 1]
  std::vector<int16_t> points_;            // weights at Winograd's points
  std::vector<int8_t> tiles_;              // see TileLayerView
  std::vector<QuadLines> lines_;           // [out_quads]
  // See IntegerLayerView.
  std::vector<int32_t> row_begin_, offset_, dense_[2], values_[2];
};

// Rows of bytes that an operation without weights reads: byte = code + zero, value = code * scale.
struct ByteRows {
  const uint8_t* rows = nullptr;  // null: there are none
  ptrdiff_t stride = 0;           // bytes from a position to the next
  uint8_t zero = 0;
  float scale = 1;
};
// Its codes, as join_forward_eval() (kernels/cpu/ops.h) makes them of a, of a + b, or of the mean
// of `window` positions of a (0: not that), with `zero` added. shape: length, pool and codes of the
// operation. row_bytes: a multiple of kLanes, of a position in memory. out: length / pool rows,
// out_stride apart.
void join_bytes(const LayerShape& shape, const ByteRows& a, const ByteRows& b, int window,
                float act_scale, int zero, int row_bytes, uint8_t* out, ptrdiff_t out_stride);

// Frames [count][length][channels] of signed codes to a tile, `offset` added to each; count <=
// kLanes, lanes beyond it are `offset`. out: the first row, [length][quads][kLanes][4].
void pack_quads(const int8_t* frames, int count, int length, int channels, int offset,
                uint8_t* out);

}  // namespace fmp::cpu
