// SPDX-License-Identifier: MIT
// What integer inference does once per network: packing weights, and finding the multiplications
// that stand for lists of thresholds.
#include "kernels/integer_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/cpu/integer_simd.h"
#include "kernels/cpu/simd.h"

namespace fmp::ops {
namespace {

// Bits of a multiplier: as many as leave room for the product with a sum in 64 bits.
constexpr int kMultiplierBits = 31;
// Largest shift with which 256 codes, and products that come to as much, fit into 62 bits.
constexpr int kMaxShift = 53;

// Share of quads with a nonzero below which walking over them is faster than multiplying all: a
// dense step loads an operand once for four outputs, a sparse one loads it for each.
constexpr double kSparseBelow = 0.7;

// The offset with which `multiplier` and `shift` give the codes first .. last at the sums where the
// thresholds are; none if there is no such offset. steps: thresholds less base, those that count.
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
  if (low > high) return false;
  r.offset = static_cast<uint64_t>(low + (high - low) / 2);
  return true;
}

// As many bits of the slope as the multiplier holds; false if it fits badly.
bool set_slope(double slope, int64_t largest_step, Requantizer& r) {
  if (!(slope > 0) || !std::isfinite(slope)) return false;
  r.shift = std::min(kMaxShift, kMultiplierBits - 1 - std::ilogb(slope));
  if (r.shift < 0 || slope * static_cast<double>(largest_step) > 257.0) return false;
  r.multiplier = static_cast<uint32_t>(std::ldexp(slope, r.shift));
  return true;
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
    return r;
  }
  r.base = *begin - 1;
  r.top = *(end - 1);
  std::vector<int64_t> steps;
  for (auto t = begin; t != end; ++t) steps.push_back(static_cast<int64_t>(*t) - r.base);

  // The function's own slope, then that of the line through its ends, and their neighbours.
  const double secant = static_cast<double>(end - begin) / static_cast<double>(steps.back());
  for (const double candidate : {slope, secant}) {
    if (!set_slope(candidate, steps.back(), r)) continue;
    for (const int nudge : {0, 1, -1}) {
      Requantizer nudged = r;
      nudged.multiplier += static_cast<uint32_t>(nudge);
      if (find_offset(steps, first, nudged)) return nudged;
    }
  }
  r.shift = -1;
  return r;
}

Requantizer shifted(const Requantizer& requantizer, int32_t offset) {
  Requantizer r = requantizer;
  r.base += offset;
  r.top += offset;
  return r;
}

void activation_codes(float gain, float shift, int act_bits, const int32_t* sums, uint8_t* codes) {
  alignas(64) std::array<float, kLanes> y{};
  for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(sums[i]);
  const cpu::ActivationSpec spec{1, true, static_cast<float>((1 << act_bits) - 1)};
  cpu::simd().quantize_pool(y.data(), kLanes, 1, 1, {&gain, &shift}, spec, codes);
}

const char* name_of(DotProduct dot) {
  switch (dot) {
    case DotProduct::kVnni:
      return "vnni";
    case DotProduct::kNarrow:
      return "16-bit";
    default:
      return "32-bit";
  }
}

DotProduct best_dot_product(bool narrow_fits) {
  const cpu::IntegerSimd& simd = cpu::simd().integer;
  if (simd.has_vnni) return DotProduct::kVnni;
  return narrow_fits && simd.has_narrow ? DotProduct::kNarrow : DotProduct::kWide;
}

IntegerLayer::IntegerLayer(const IntegerShape& shape, std::span<const int8_t> codes,
                           int largest_input, std::vector<Requantizer> requantizers,
                           std::vector<int32_t> thresholds, int levels)
    : shape_(shape),
      levels_(levels),
      requantizers_(std::move(requantizers)),
      thresholds_(std::move(thresholds)) {
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
  thresholds_.resize(outputs * static_cast<size_t>(levels), std::numeric_limits<int32_t>::max());

  dense_[0].assign(outputs * row_quads, 0);
  dense_[1].assign(outputs * row_quads * 2, 0);
  row_begin_.assign(1, 0);
  narrow_fits_ = true;
  const int8_t* code = codes.data();
  std::vector<int8_t> row;
  for (size_t o = 0; o < outputs; ++o) {
    row.assign(row_quads * kQuad, 0);
    int64_t positive = 0, negative = 0;
    for (int t = 0; o < static_cast<size_t>(shape.out_channels) && t < shape.taps; ++t) {
      for (int i = 0; i < shape.in_channels; ++i, ++code) {
        const int position = i / position_channels, channel = i % position_channels;
        const int quad = t * in_quads_ + position * quads(position_channels) + channel / kQuad;
        row[static_cast<size_t>(quad * kQuad + channel % kQuad)] = *code;
        (*code > 0 ? positive : negative) += std::abs(static_cast<int>(*code));
      }
    }
    narrow_fits_ = narrow_fits_ && std::max(positive, negative) * largest_input <=
                                       std::numeric_limits<int16_t>::max();
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
  sparse = quad_density() < kSparseBelow;
  dot = best_dot_product(narrow_fits_);
}

double IntegerLayer::quad_density() const {
  return static_cast<double>(offset_.size()) / static_cast<double>(dense_[0].size());
}

cpu::IntegerLayerView IntegerLayer::view() const {
  cpu::IntegerLayerView v;
  v.out_quads = out_quads();
  v.taps = shape_.taps;
  v.in_quads = in_quads_;
  v.pool = shape_.pool;
  v.dot = dot;
  v.sparse = sparse;
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
  cpu::simd().integer.hidden(view(), x, rows, out);
}

void IntegerLayer::output(const uint8_t* x, int32_t* sums) const {
  cpu::simd().integer.output(view(), x, sums);
}

void pack_quads(const int8_t* frames, int count, int length, int channels, int offset,
                uint8_t* out) {
  const ptrdiff_t row = static_cast<ptrdiff_t>(quads(channels)) * kQuadRow;
  std::memset(out, offset, static_cast<size_t>(length * row));
  for (int lane = 0; lane < count; ++lane) {
    uint8_t* to = out + lane * kQuad;
    for (int l = 0; l < length; ++l, to += row) {
      for (int c = 0; c < channels; ++c) {
        to[c / kQuad * kQuadRow + c % kQuad] = static_cast<uint8_t>(*frames++ + offset);
      }
    }
  }
}

}  // namespace fmp::ops
