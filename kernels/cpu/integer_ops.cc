// SPDX-License-Identifier: MIT
// What integer inference does once per network: packing weights, and finding the multiplications
// that stand for lists of thresholds.
#include "kernels/cpu/integer_ops.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>

#include "kernels/cpu/hidden_pass.h"
#include "kernels/cpu/integer_simd.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/quad_weights.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weights.h"
#include "kernels/cpu/winograd.h"

namespace fmp::cpu {
namespace {

// Bits of a multiplier: as many as leave room for the product with a sum in 64 bits.
constexpr int kMultiplierBits = 31;
// Largest shift with which 256 codes, and products that come to as much, fit into 62 bits.
constexpr int kMaxShift = 53;

// Share of quads with a nonzero below which walking over them is faster than multiplying all: a
// dense step loads an operand once for four outputs, a sparse one loads it for each.
constexpr double kSparseBelow = 0.7;
// The same where the dense kernel is Winograd's algorithm.
constexpr double kSparseBelowPoints = 0.35;
// Groups of four rows whose data and sums stay in the second-level cache.
constexpr int kChunkGroups = 4;

// The offset with which `multiplier` and `shift` give the codes first .. last at the sums where the
// thresholds are or, if there is none, the largest that gives none too early. steps: thresholds
// less base, those that count. False if even that does not exist.
bool find_offset(std::span<const int64_t> steps, int64_t first, Requantizer& r) {
  const int64_t one = int64_t{1} << r.shift;
  const int64_t multiplier = r.multiplier;
  const int64_t last = first + static_cast<int64_t>(steps.size());
  int64_t low = first * one, high = (last + 1) * one - steps.back() * multiplier - 1;
  for (size_t i = 0; i < steps.size(); ++i) {
    const int64_t code = (first + 1 + static_cast<int64_t>(i)) * one;
    low = std::max(low, code - steps[i] * multiplier);
    high = std::min(high, code - (steps[i] - 1) * multiplier - 1);
  }
  r.exact = low <= high;
  if (r.exact) {
    r.offset = static_cast<uint64_t>(low + (high - low) / 2);
    return true;
  }
  r.offset = static_cast<uint64_t>(std::max<int64_t>(high, 0));
  r.slack = static_cast<uint64_t>(low - high);
  return high >= 0 && low - high < one;
}

// As many bits of the slope as the multiplier holds, and no larger shift; false if it fits badly.
bool set_slope(double slope, int64_t largest_step, int max_shift, Requantizer& r) {
  if (!(slope > 0) || !std::isfinite(slope)) return false;
  r.shift = std::min(max_shift, kMultiplierBits - 1 - std::ilogb(slope));
  if (r.shift < 0 || slope * static_cast<double>(largest_step) > 257.0) return false;
  r.multiplier = static_cast<uint32_t>(std::ldexp(slope, r.shift));
  return r.multiplier != 0;
}

int32_t pair(int8_t low, int8_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) |
                              static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
}

}  // namespace

Requantizer fit_requantizer(std::span<const int32_t> thresholds, const SumRange& range,
                            double slope) {
  const auto begin = std::upper_bound(thresholds.begin(), thresholds.end(), range.low);
  const auto end = std::upper_bound(begin, thresholds.end(), range.high);
  const int64_t first = begin - thresholds.begin();  // the code of the smallest sum
  Requantizer r;
  if (begin == end) {
    r.base = r.top = range.low;
    r.offset = static_cast<uint64_t>(first);
    r.shift = 0;
    r.exact = r.fits_32_bits = true;
    return r;
  }
  r.base = *begin - 1;
  r.top = *(end - 1);
  std::vector<int64_t> steps;
  for (auto t = begin; t != end; ++t) steps.push_back(static_cast<int64_t>(*t) - r.base);

  // The function's own slope, then that of the line through its ends, and their neighbours.
  const double secant = static_cast<double>(end - begin) / static_cast<double>(steps.back());
  std::optional<Requantizer> nearly;
  // Every product is below (the last code + 1) << shift.
  const int last_bits = std::bit_width(static_cast<uint64_t>(first + (end - begin)));
  for (const int max_shift : {32 - last_bits, kMaxShift}) {
    for (const double candidate : {slope, secant}) {
      if (!set_slope(candidate, steps.back(), max_shift, r)) continue;
      for (const int nudge : {0, 1, -1}) {
        Requantizer nudged = r;
        nudged.multiplier += static_cast<uint32_t>(nudge);
        if (!find_offset(steps, first, nudged)) continue;
        nudged.fits_32_bits = nudged.exact && nudged.shift + last_bits <= 32;
        if (nudged.exact) return nudged;
        if (max_shift == kMaxShift && !nearly) nearly = nudged;
      }
    }
  }
  r.shift = -1;
  return nearly.value_or(r);
}

Requantizer shifted(const Requantizer& requantizer, int32_t offset) {
  Requantizer r = requantizer;
  r.base += offset;
  r.top += offset;
  return r;
}

void activation_codes(const EvaluationState& state, int channel, const LayerShape& shape,
                      const int32_t* sums, uint8_t* codes) {
  alignas(64) std::array<float, kLanes> y{};
  for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(sums[i]);
  const size_t c = static_cast<size_t>(channel);
  const EvaluationSteps steps{state.sum_scale, &state.gain[c], &state.shift[c], state.act_scale};
  ActivationSpec spec = activation_spec(shape);
  spec.pool = 1;
  simd().evaluate_codes({y.data(), kLanes, 1, 1}, steps, spec, codes, kLanes);
}

void join_bytes(const LayerShape& shape, const ByteRows& a, const ByteRows& b, int window,
                float act_scale, int zero, int row_bytes, uint8_t* out, ptrdiff_t out_stride) {
  const auto operand = [](const ByteRows& x) {
    return JoinOperand{x.rows, x.stride, 0, x.zero, x.scale};
  };
  simd().join_codes({operand(a), operand(b), window, shape.length, row_bytes / kLanes, zero},
                    activation_spec(shape), act_scale, out, out_stride);
}

const char* name_of(DotProduct dot) {
  switch (dot) {
    case DotProduct::kVnni:
      return "vnni";
    case DotProduct::kNarrow:
      return "16-bit";
    case DotProduct::kPoints:
      return "winograd";
    case DotProduct::kTiles:
      return "amx";
    default:
      return "32-bit";
  }
}

DotProduct best_dot_product(bool narrow_fits, bool points_fit) {
  const IntegerSimd& simd = cpu::simd().integer;
  if (simd.has_vnni) return DotProduct::kVnni;
  if (narrow_fits && simd.has_narrow) return DotProduct::kNarrow;
  return points_fit ? DotProduct::kPoints : DotProduct::kWide;
}

IntegerLayer::IntegerLayer(const IntegerShape& shape, std::span<const int8_t> codes,
                           int largest_input, std::vector<Requantizer> requantizers,
                           std::span<const int32_t> thresholds, int levels)
    : shape_(shape), levels_(levels), requantizers_(std::move(requantizers)) {
  const int position_channels = shape.in_channels / shape.in_positions;
  in_quads_ = quads(position_channels) * shape.in_positions;
  const size_t outputs = static_cast<size_t>(out_quads()) * kQuad;
  const size_t row_quads = static_cast<size_t>(shape.taps) * static_cast<size_t>(in_quads_);
  if (codes.size() != static_cast<size_t>(shape.out_channels) * static_cast<size_t>(shape.taps) *
                          static_cast<size_t>(shape.in_channels)) {
    throw std::invalid_argument("IntegerLayer: the weights do not fill the shape");
  }
  // Outputs that only fill the last quad have no weights, no thresholds to reach and the code 0.
  const Requantizer none = fit_requantizer({}, {}, 0);
  requantizers_.resize(outputs, none);
  // A last threshold that no sum reaches ends each list.
  const size_t listed = static_cast<size_t>(levels), stride = listed + 1;
  thresholds_.assign(outputs * stride, std::numeric_limits<int32_t>::max());
  for (size_t i = 0; i < thresholds.size(); ++i) {
    thresholds_[i / listed * stride + i % listed] = thresholds[i];
  }

  dense_[0].assign(outputs * row_quads, 0);
  dense_[1].assign(outputs * row_quads * 2, 0);
  row_begin_.assign(1, 0);
  int64_t largest_sum = 0;
  const int8_t* code = codes.data();
  std::vector<int8_t> row;
  for (size_t o = 0; o < outputs; ++o) {
    row.assign(row_quads * kQuad, 0);
    int64_t positive = 0, negative = 0;
    for (int t = 0; o < static_cast<size_t>(shape.out_channels) && t < shape.taps; ++t) {
      for (int i = 0; i < shape.in_channels; ++i, ++code) {
        const int position = i / position_channels, channel = i % position_channels;
        const int quad = t * in_quads_ + position * quads(position_channels) + channel / kQuad;
        row[static_cast<size_t>(quad * kQuad + byte_of_channel(channel))] = *code;
        (*code > 0 ? positive : negative) += std::abs(static_cast<int>(*code));
      }
    }
    largest_sum = std::max(largest_sum, std::max(positive, negative) * largest_input);
    for (size_t i = 0; i < row_quads; ++i) {
      const int8_t* w = row.data() + i * kQuad;
      int32_t quad = 0;
      std::memcpy(&quad, w, sizeof quad);
      const std::array<int32_t, 2> pairs = {pair(w[0], w[2]), pair(w[1], w[3])};
      const size_t at = ((o / kQuad) * row_quads + i) * kQuad + o % kQuad;
      dense_[0][at] = quad;
      std::ranges::copy(pairs, dense_[1].begin() + static_cast<ptrdiff_t>(2 * at));
      if (quad == 0) continue;
      offset_.push_back(static_cast<int32_t>(i * kQuadRow));
      values_[0].push_back(quad);
      values_[1].insert(values_[1].end(), pairs.begin(), pairs.end());
    }
    row_begin_.push_back(static_cast<int32_t>(offset_.size()));
  }
  narrow_fits_ = largest_sum <= std::numeric_limits<int16_t>::max();
  pack_points(codes, largest_sum);
  dot = best_dot_product(narrow_fits_, points_fit());
  sparse = quad_density() < (dot == DotProduct::kPoints ? kSparseBelowPoints : kSparseBelow);
  if (sparse) dot = best_dot_product(narrow_fits_, false);
  if (levels == 0 || !simd().has_tiles) return;
  // Multiplying tiles takes less time than what follows, zeros or not.
  pack_tiles(largest_sum);
  dot = DotProduct::kTiles;
  sparse = false;
}

// Leaves points_ empty where they cannot be used.
void IntegerLayer::pack_points(std::span<const int8_t> codes, int64_t largest_sum) {
  namespace winograd = winograd;
  const bool fits =
      shape_.taps == winograd::kTaps && shape_.in_positions == 1 &&
      (shape_.pool == 1 || shape_.pool == 2 || shape_.pool == 4) &&
      winograd::many_channels(shape_.out_channels, shape_.in_channels) &&
      largest_sum * winograd::kWeightDenominator <= std::numeric_limits<int32_t>::max();
  if (!fits) return;
  const auto value = [&](int o, int t, int c) {
    if (o >= shape_.out_channels || c >= shape_.in_channels) return 0;
    return static_cast<int>(
        codes[static_cast<size_t>((o * shape_.taps + t) * shape_.in_channels + c)]);
  };
  cpu::pack_points(value, [&](const auto& at_point) {
    pack_pairs(out_quads() * kQuad, 1, in_quads_ * kQuad, at_point, points_);
  });
}

void IntegerLayer::pack_tiles(int64_t largest_sum) {
  const int window = shape_.taps * in_quads_, outputs = out_quads() * kQuad;
  const int tile_rows = std::min(window, kTileQuads);
  for (int first = 0; first < outputs; first += kTileOutputs) {
    for (int from = 0; from < window; from += kTileQuads) {
      const size_t at = tiles_.size();
      tiles_.resize(at + kTileBytes);
      const int start = std::min(from, window - tile_rows);
      for (int o = first; o < std::min(first + kTileOutputs, outputs); ++o) {
        for (int quad = from; quad < std::min(from + kTileQuads, window); ++quad) {
          const int32_t weights =
              dense_[0][static_cast<size_t>((o / kQuad * window + quad) * kQuad + o % kQuad)];
          int8_t* row = tiles_.data() + at + (o - first) * kTileQuads * kQuad;
          std::memcpy(row + (quad - start) * kQuad, &weights, sizeof weights);
        }
      }
    }
  }
  for (int o = 0; o < outputs; ++o) {
    const size_t channel = static_cast<size_t>(o), levels = static_cast<size_t>(levels_);
    const Requantizer& r = requantizers_[channel];
    const CodeLine line = fit_code_line(
        std::span(thresholds_).subspan(channel * (levels + 1), levels), r.base, r.top, largest_sum);
    if (o % kQuad == 0) lines_.emplace_back();
    QuadLines& quad = lines_.back();
    const int j = o % kQuad, shift = 8 * byte_of_channel(j);
    quad.multiplier[j] = line.multiplier;
    quad.low[j] = line.low;
    quad.high[j] = line.high;
    quad.smallest |= static_cast<uint32_t>(line.smallest) << shift;
    quad.largest |= static_cast<uint32_t>(line.largest) << shift;
    quad.kind = std::max(quad.kind, line.kind);
  }
}

TileLayerView IntegerLayer::tile_view() const {
  TileLayerView v;
  v.out_quads = out_quads();
  v.window_quads = shape_.taps * in_quads_;
  v.pool = shape_.pool;
  v.row_bytes = static_cast<ptrdiff_t>(in_quads_) * kQuadRow;
  v.weights = tiles_.data();
  v.quads = lines_.data();
  v.thresholds = thresholds_.data();
  v.levels = levels_;
  return v;
}

double IntegerLayer::quad_density() const {
  return static_cast<double>(offset_.size()) / static_cast<double>(dense_[0].size());
}

IntegerLayerView IntegerLayer::view() const {
  IntegerLayerView v;
  v.out_quads = out_quads();
  v.taps = shape_.taps;
  v.in_quads = in_quads_;
  v.pool = shape_.pool;
  v.dot = dot;
  v.sparse = sparse;
  v.two_channels = shape_.in_channels <= 2;
  v.row_begin = row_begin_.data();
  v.offset = offset_.data();
  for (size_t i = 0; i < 2; ++i) {
    v.dense[i] = dense_[i].data();
    v.values[i] = values_[i].data();
  }
  v.requantizers = requantizers_.data();
  v.thresholds = thresholds_.data();
  v.levels = levels_;
  return v;
}

void IntegerLayer::hidden(const uint8_t* x, int rows, uint8_t* out) const {
  if (dot == DotProduct::kTiles && tiles_fit() && !sparse) {
    hidden_on_tiles(tile_view(), x, rows, out);
    return;
  }
  if (dot == DotProduct::kPoints && !sparse) {
    const int groups = rows / winograd::kOutputs, done = groups * winograd::kOutputs;
    hidden_at_points(x, groups, out);
    x += static_cast<ptrdiff_t>(done) * in_quads_ * kQuadRow;
    out += static_cast<ptrdiff_t>(done / shape_.pool) * out_quads() * kQuadRow;
    rows -= done;
  }
  simd().integer.hidden(view(), x, rows, out);
}

void IntegerLayer::hidden_at_points(const uint8_t* x, int groups, uint8_t* out) const {
  namespace winograd = winograd;
  static thread_local AlignedBuffer<int16_t> data_buffer;
  static thread_local AlignedBuffer<int32_t> sum_buffer;
  const Simd& simd = cpu::simd();
  const int in_channels = in_quads_ * kQuad, out_channels = out_quads() * kQuad;
  const ptrdiff_t x_stride = pair_stride(in_channels), x_points = kChunkGroups * x_stride;
  const ptrdiff_t sum_stride = operand_stride(out_channels);
  const ptrdiff_t sum_points = kChunkGroups * sum_stride;
  int16_t* data = data_buffer.reserve(static_cast<size_t>(winograd::kPoints * x_points));
  int32_t* sums = sum_buffer.reserve(static_cast<size_t>(winograd::kPoints * sum_points));
  const size_t matrix = points_.size() / winograd::kPoints;
  for (int begin = 0; begin < groups; begin += kChunkGroups) {
    const int count = std::min(kChunkGroups, groups - begin);
    const ptrdiff_t row = static_cast<ptrdiff_t>(begin) * winograd::kOutputs;
    simd.integer.data_at_points(x + row * in_quads_ * kQuadRow, in_quads_, count, data, x_stride,
                                x_points);
    for (int p = 0; p < winograd::kPoints; ++p) {
      const DensePairWeights weights{out_channels, 1, in_channels,
                                     points_.data() + static_cast<size_t>(p) * matrix};
      simd.conv1d_dense_pairs_wrapping(data + p * x_points, x_stride, count, weights,
                                       sums + p * sum_points, sum_stride);
    }
    simd.integer.codes_of_points(view(), sums, sum_stride, sum_points, count,
                                 out + row / shape_.pool * out_quads() * kQuadRow);
  }
}

void IntegerLayer::output(const uint8_t* x, int32_t* sums) const {
  simd().integer.output(view(), x, sums);
}

namespace {

// Two channels, as radio frames have them: a quad of a frame in one step.
void pack_pairs_of_channels(const int8_t* frames, int count, int length, int offset, uint8_t* out) {
  static_assert(byte_of_channel(0) == 0 && byte_of_channel(1) == 2);
  const uint32_t both = static_cast<uint32_t>(offset) * 0x00010001;
  const uint32_t none = static_cast<uint32_t>(offset) * 0x01000100;
  std::array<const int8_t*, kLanes> from{};
  for (int lane = 0; lane < count; ++lane)
    from[static_cast<size_t>(lane)] = frames + lane * length * 2;
  for (int l = 0; l < length; ++l, out += kQuadRow) {
    for (int lane = 0; lane < count; ++lane) {
      const int8_t* at = from[static_cast<size_t>(lane)] + l * 2;
      const uint32_t pair =
          static_cast<uint8_t>(at[0]) | static_cast<uint32_t>(static_cast<uint8_t>(at[1])) << 16;
      // Carries leave their byte and are masked out.
      const uint32_t quad = ((pair + both) & 0x00ff00ff) | none;
      std::memcpy(out + lane * kQuad, &quad, sizeof quad);
    }
  }
}

}  // namespace

void pack_quads(const int8_t* frames, int count, int length, int channels, int offset,
                uint8_t* out) {
  const ptrdiff_t row = static_cast<ptrdiff_t>(quads(channels)) * kQuadRow;
  std::memset(out, offset, static_cast<size_t>(length * row));
  if (channels == 2) return pack_pairs_of_channels(frames, count, length, offset, out);
  for (int lane = 0; lane < count; ++lane) {
    uint8_t* to = out + lane * kQuad;
    for (int l = 0; l < length; ++l, to += row) {
      for (int c = 0; c < channels; ++c) {
        to[c / kQuad * kQuadRow + byte_of_channel(c)] = static_cast<uint8_t>(*frames++ + offset);
      }
    }
  }
}

}  // namespace fmp::cpu
