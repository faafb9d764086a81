// SPDX-License-Identifier: MIT
// Weight fake-quantization and the forms in which the kernels read weights.
//
// code = round_half_even(w / scale), scale = max|w| / (2^(b-1) - 1): narrow range, so no code is
// clipped. The gradient passes straight through to every weight; that of the scale, the sum of
// G * (code - w / scale), goes to the weights of largest magnitude.
#include "kernels/cpu/weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "kernels/cpu/packing.h"

namespace fmp::cpu {
namespace {

float largest_code(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

void quantize(Weights::Compiled& w, std::span<const float> weight, std::span<const uint8_t> mask) {
  w.codes.assign(weight.begin(), weight.end());
  w.alive.assign(mask.begin(), mask.end());
  for (size_t i = 0; i < mask.size(); ++i) w.codes[i] = mask[i] != 0 ? w.codes[i] : 0.0F;
  // As integers, the bits of positive floats are in the order of the floats, infinity and what is
  // no number above them.
  uint32_t largest_bits = 0;
  for (const float value : w.codes) {
    largest_bits = std::max(largest_bits, std::bit_cast<uint32_t>(std::fabs(value)));
  }
  const float largest = std::bit_cast<float>(largest_bits);
  if (!std::isfinite(largest)) throw std::domain_error("a weight is not finite");
  w.largest = largest;
  w.scale = 1;
  if (w.shape.weight_bits != kFloatBits) {
    w.scale = std::max(largest, kMinQuantizerRange) / largest_code(w.shape.weight_bits);
    // Rounds to nearest, ties to even, as nearbyint() does, but in vectors.
    constexpr float kRounder = 0x1.8p23F;
    for (float& code : w.codes) code = (code / w.scale + kRounder) - kRounder;
  }
  w.nonzeros = 0;
  for (const float code : w.codes) w.nonzeros += code != 0.0F;
}

// The weights' codes in quads, how to multiply them, and what makes up for signed input.
template <typename Code>
void pack_quads(Weights::Compiled& w, const Code& code) {
  const LayerShape& s = w.shape;
  // With few channels a tile would be mostly empty.
  constexpr int kEnoughQuads = 4;
  const bool sparse = w.plan.forward == Kernel::kSparse;
  const bool tiles = !sparse && simd().has_tiles && quads(s.in_channels) >= kEnoughQuads;
  w.forward_quads.pack(s.out_channels, s.taps, s.in_channels, window_rows(s), sparse, tiles, code);
  const bool narrow_fits =
      w.forward_quads.largest() * ((1 << s.input_bits) - 1) <= std::numeric_limits<int16_t>::max();
  w.dot = best_dot_product(narrow_fits, false);
  w.no_offsets.assign(static_cast<size_t>(w.forward_quads.out_quads() * kQuad), 0);
  w.signed_offsets = w.no_offsets;
  auto of_output = w.codes.begin();
  for (int o = 0; o < s.out_channels; ++o, of_output += s.fan_in()) {
    const int32_t sum = std::accumulate(
        of_output, of_output + s.fan_in(), int32_t{0},
        [](int32_t total, float w_code) { return total + static_cast<int32_t>(w_code); });
    w.signed_offsets[static_cast<size_t>(o)] = -sum * signed_offset(s);
  }
}

// See packing.h; in the order of DenseWeights.
template <typename T, typename Value>
void pack_dense(int out, int taps, int channels, const Value& value, std::vector<T>& packed) {
  for (int block = 0; block < out; block += kOutBlock) {
    const int end = std::min(out, block + kOutBlock);
    for (int t = 0; t < taps; ++t) {
      for (int c = 0; c < channels; ++c) {
        for (int o = block; o < end; ++o) packed.push_back(static_cast<T>(value(o, t, c)));
      }
    }
  }
}

template <typename Value>
void pack_sparse(int out, int taps, int channels, const ChunkLayout& operand, const Value& value,
                 OwnedSparse& sparse) {
  sparse.row_begin.assign(1, 0);
  sparse.offset.clear();
  sparse.values.clear();
  for (int o = 0; o < out; ++o) {
    for (int t = 0; t < taps; ++t) {
      for (int c = 0; c < channels; ++c) {
        const float w = value(o, t, c);
        if (w == 0.0F) continue;
        sparse.offset.push_back(static_cast<int32_t>(t * operand.row + c * operand.channel));
        sparse.values.push_back(w);
      }
    }
    sparse.row_begin.push_back(static_cast<int32_t>(sparse.offset.size()));
  }
}

// The same for the transposed weights, taps flipped, from codes [O][T][C] that lie in memory in
// another order: those of a channel are put into its row as they come.
void pack_sparse_transposed(const Weights::Compiled& w, OwnedSparse& sparse) {
  const LayerShape& s = w.shape;
  const ChunkLayout operand = w.gradient_layout();
  const auto for_each_weight = [&](const auto& body) {
    for (int t = s.taps - 1; t >= 0; --t) {
      for (int o = 0; o < s.out_channels; ++o) {
        const float* codes =
            w.codes.data() + (static_cast<ptrdiff_t>(o) * s.taps + t) * s.in_channels;
        for (int c = 0; c < s.in_channels; ++c) {
          if (codes[c] != 0.0F) body(o, t, static_cast<size_t>(c), codes[c]);
        }
      }
    }
  };
  sparse.row_begin.assign(static_cast<size_t>(s.in_channels) + 1, 0);
  for_each_weight([&](int, int, size_t c, float) { ++sparse.row_begin[c + 1]; });
  std::partial_sum(sparse.row_begin.begin(), sparse.row_begin.end(), sparse.row_begin.begin());
  std::vector<int32_t> next = sparse.row_begin;
  sparse.offset.resize(static_cast<size_t>(sparse.row_begin.back()));
  sparse.values.resize(sparse.offset.size());
  for_each_weight([&](int o, int t, size_t c, float code) {
    const size_t i = static_cast<size_t>(next[c]++);
    sparse.offset[i] = static_cast<int32_t>((s.taps - 1 - t) * operand.row + o * operand.channel);
    sparse.values[i] = code * w.scale;
  });
}

// Where gradients are wanted. Only a prune changes it, so it is kept from step to step.
void list_survivors(Weights::Compiled& w) {
  const ptrdiff_t stride = w.gradient_layout().channel;
  const bool known =
      !w.gradient_index.empty() && w.gradient_mask == w.alive && w.gradient_stride == stride;
  if (known) return;
  w.gradient_mask = w.alive;
  w.gradient_stride = stride;
  w.gradient_begin.assign(1, 0);
  w.gradient_offset.clear();
  w.gradient_index.clear();
  const LayerShape& s = w.shape;
  for (int c = 0; c < s.in_channels; ++c) {
    for (int t = 0; t < s.taps; ++t) {
      for (int o = 0; o < s.out_channels; ++o) {
        const int64_t i = (static_cast<int64_t>(o) * s.taps + t) * s.in_channels + c;
        if (!w.alive.empty() && w.alive[static_cast<size_t>(i)] == 0) continue;
        w.gradient_offset.push_back(static_cast<int32_t>(o * stride));
        w.gradient_index.push_back(i);
      }
      w.gradient_begin.push_back(static_cast<int32_t>(w.gradient_index.size()));
    }
  }
}

// The share of surviving weights from which Winograd's algorithm and matrix products are faster
// than skipping the others.
constexpr double kDenseEnough = 0.35;

// The kernels of this backend that stand for those of a plan.
PassPlan own_kernels(const PassPlan& plan) {
  const auto own = [](Kernel kernel) {
    return skips_zeros(kernel) ? Kernel::kSparse : Kernel::kDense;
  };
  return {own(plan.forward), own(plan.backward_data), own(plan.backward_weight)};
}

bool three_taps(const LayerShape& shape) { return shape.taps == winograd::kTaps; }

// Output channels that have a weight left, input channels that are read, and the weights left.
struct LiveWeights {
  int64_t out_channels, in_channels, weights;
};

LiveWeights live_weights(const LayerShape& shape, std::span<const uint8_t> mask) {
  if (mask.empty()) return {shape.out_channels, shape.in_channels, shape.weights()};
  const size_t channels = static_cast<size_t>(shape.in_channels);
  const size_t fan_in = static_cast<size_t>(shape.fan_in());
  std::vector<uint8_t> read(channels, 0), emitted(static_cast<size_t>(shape.out_channels), 0);
  int64_t alive = 0;
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == 0) continue;
    ++alive;
    read[i % channels] = 1;
    emitted[i / fan_in] = 1;
  }
  const auto count = [](const std::vector<uint8_t>& v) {
    return static_cast<int64_t>(std::count(v.begin(), v.end(), 1));
  };
  return {count(emitted), count(read), alive};
}

bool same_geometry(const LayerShape& a, const LayerShape& b) {
  return a.in_channels == b.in_channels && a.out_channels == b.out_channels && a.taps == b.taps;
}

void choose_backward_algorithms(Weights::Compiled& w, bool fast) {
  const LayerShape& shape = w.shape;
  if (fast && w.integers && simd().has_gradient_tiles) {
    w.backward_data_algorithm = w.backward_weight_algorithm = DenseAlgorithm::kTiles;
    return;
  }
  w.backward_data_algorithm =
      fast && three_taps(shape) ? DenseAlgorithm::kWinograd : DenseAlgorithm::kDirect;
  // Winograd's weight gradient wants whole groups of positions in each chunk.
  const bool whole_groups =
      shape.length % winograd::kOutputs == 0 && chunk_rows(shape.pool) % winograd::kOutputs == 0;
  w.backward_weight_algorithm = !fast                               ? DenseAlgorithm::kDirect
                                : three_taps(shape) && whole_groups ? DenseAlgorithm::kWinograd
                                                                    : DenseAlgorithm::kProduct;
}

}  // namespace

bool prefers_dense_backward(const LayerShape& shape, std::span<const uint8_t> mask) {
  const LiveWeights live = live_weights(shape, mask);
  const int64_t all = live.out_channels * shape.taps * live.in_channels;
  return winograd::many_channels(live.out_channels, live.in_channels) &&
         static_cast<double>(live.weights) >= kDenseEnough * static_cast<double>(all);
}

Weights::Weights() : compiled_(std::make_unique<Compiled>()) {}
Weights::~Weights() = default;
Weights::Weights(Weights&&) noexcept = default;
Weights& Weights::operator=(Weights&&) noexcept = default;

void Weights::compile(const LayerShape& shape, std::span<const float> weight,
                      std::span<const uint8_t> mask, const PassPlan& plan, bool backward) {
  Compiled& w = *compiled_;
  if (!same_geometry(shape, w.shape)) w.gradient_index.clear();
  w.shape = shape;
  w.plan = own_kernels(plan);
  quantize(w, weight, mask);

  const auto code = [&](int o, int t, int c) {
    return w
        .codes[(static_cast<size_t>(o) * static_cast<size_t>(shape.taps) + static_cast<size_t>(t)) *
                   static_cast<size_t>(shape.in_channels) +
               static_cast<size_t>(c)];
  };
  w.integers = shape.weight_bits != kFloatBits && shape.input_bits != kFloatBits;
  w.forward_on_quads = w.integers && (w.plan.forward == Kernel::kSparse ||
                                      best_dot_product(false, false) == DotProduct::kVnni);
  w.forward_on_pairs = w.integers && !w.forward_on_quads;
  w.forward_algorithm = w.forward_on_pairs && three_taps(shape) &&
                                winograd::many_channels(shape.out_channels, shape.in_channels)
                            ? DenseAlgorithm::kWinograd
                            : DenseAlgorithm::kDirect;
  w.forward_pairs.clear();
  w.forward_dense.clear();
  if (w.forward_on_quads) {
    pack_quads(w, code);
  } else if (w.plan.forward == Kernel::kSparse) {
    pack_sparse(shape.out_channels, shape.taps, shape.in_channels, by_row(shape.in_channels), code,
                w.forward_sparse);
  } else if (w.forward_algorithm == DenseAlgorithm::kWinograd) {
    pack_points(code, [&](const auto& at_point) {
      pack_pairs(shape.out_channels, 1, shape.in_channels, at_point, w.forward_pairs);
    });
  } else if (w.integers) {
    pack_pairs(shape.out_channels, shape.taps, shape.in_channels, code, w.forward_pairs);
  } else {
    pack_dense(shape.out_channels, shape.taps, shape.in_channels, code, w.forward_dense);
  }
  if (!backward) return;

  choose_backward_algorithms(w, prefers_dense_backward(shape, mask));
  const auto transposed = [&](int c, int t, int o) {
    return code(o, shape.taps - 1 - t, c) * w.scale;
  };
  w.backward_dense.clear();
  if (w.plan.backward_data == Kernel::kSparse) {
    pack_sparse_transposed(w, w.backward_sparse);
  } else if (w.backward_data_algorithm == DenseAlgorithm::kTiles) {
    const auto transposed_code = [&](int c, int t, int o) {
      return code(o, shape.taps - 1 - t, c);
    };
    gradient_tiles::pack_weights(w.tile_chunk(0), transposed_code, w.backward_tiles);
  } else if (w.backward_data_algorithm == DenseAlgorithm::kWinograd) {
    const auto part = [&](int c, int t, int o) {
      return transposed(c, t, o) / winograd::kWeightDenominator;
    };
    pack_points(part, [&](const auto& at_point) {
      pack_dense(shape.in_channels, 1, shape.out_channels, at_point, w.backward_dense);
    });
  } else {
    pack_dense(shape.in_channels, shape.taps, shape.out_channels, transposed, w.backward_dense);
  }
  if (w.plan.backward_weight == Kernel::kSparse) list_survivors(w);
}

const LayerShape& Weights::shape() const { return compiled_->shape; }
float Weights::scale() const { return compiled_->scale; }
std::span<const float> Weights::codes() const { return compiled_->codes; }
int64_t Weights::nonzeros() const { return compiled_->nonzeros; }

void Weights::backward(std::span<const float> weight, double scale_gradient,
                       std::span<float> grad) const {
  const Compiled& w = *compiled_;
  const auto alive = [&](size_t i) { return w.alive.empty() || w.alive[i] != 0; };
  for (size_t i = 0; i < w.alive.size(); ++i) grad[i] = w.alive[i] != 0 ? grad[i] : 0.0F;
  if (w.shape.weight_bits == kFloatBits) return;
  const double scale = static_cast<double>(w.scale);
  int64_t ties = 0;
  for (size_t i = 0; i < grad.size(); ++i) {
    if (!alive(i)) continue;
    scale_gradient += static_cast<double>(grad[i]) *
                      (static_cast<double>(w.codes[i]) - static_cast<double>(weight[i]) / scale);
    ties += std::fabs(weight[i]) == w.largest;
  }
  if (ties == 0) return;
  const double share = scale_gradient / static_cast<double>(largest_code(w.shape.weight_bits)) /
                       static_cast<double>(ties);
  for (size_t i = 0; i < grad.size(); ++i) {
    if (!alive(i) || std::fabs(weight[i]) != w.largest || weight[i] == 0.0F) continue;
    grad[i] += static_cast<float>(weight[i] > 0.0F ? share : -share);
  }
}

}  // namespace fmp::cpu
