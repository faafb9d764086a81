// SPDX-License-Identifier: MIT
// Every backward pass against central differences of a plain double-precision forward pass. A
// quantizer's derivative is 0 almost everywhere; what training follows instead is its
// straight-through surrogate: rounding as the addition of a constant, clipping and the choice of
// the pooled element held fixed. The plain forward pass computes just that.
#include "kernels/cpu/ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "framework/network/tensor.h"
#include "framework/random.h"
#include "kernels/cpu/simd.h"

namespace fmp {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

// Of the largest difference quotient: float32 sums of a few hundred terms.
constexpr double kTolerance = 2e-5;

// d(loss)/d(values[i]) for every i.
Doubles differences(Doubles& values, const std::function<double()>& loss) {
  constexpr double kStep = 1e-6;
  Doubles result;
  for (double& value : values) {
    const double before = value;
    value = before + kStep;
    const double up = loss();
    value = before - kStep;
    const double down = loss();
    value = before;
    result.push_back((up - down) / (2 * kStep));
  }
  return result;
}

// magnitude: of the terms that a gradient sums, where they cancel.
void expect_gradient(std::span<const float> actual, const Doubles& expected, const char* what,
                     double magnitude = 1e-3) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = magnitude;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], kTolerance * largest) << what << " at " << i;
  }
}

Doubles as_doubles(std::span<const float> values) { return {values.begin(), values.end()}; }

// Element (n, l, c) of a tile.
size_t place(const TileShape& shape, int64_t n, int l, int c) {
  return static_cast<size_t>(n / kLanes * shape.tile_elements() +
                             (l + shape.pad) * shape.row_elements() + c * kLanes + n % kLanes);
}

struct Case {
  const char* name;
  LayerShape shape;
  int64_t frames;
  bool masked = false;
  bool collect = false;
  float threshold = 2.0F;
  bool first_layer = false;  // reads signed codes, and nobody wants their gradient
  bool gains = false;        // of an output layer
  bool signed_input = false;
};

std::ostream& operator<<(std::ostream& stream, const Case& c) { return stream << c.name; }

// shape: in, out, taps, length, pool, input bits, weight bits, act bits.
constexpr int kFloat = kFloatBits;
const Case kCases[] = {
    {"Float", {3, 5, 3, 8, 2, kFloat, kFloat, kFloat}, 19},
    {"FloatMasked", {3, 5, 5, 6, 3, kFloat, kFloat, kFloat}, 9, true},
    {"EightBits", {3, 7, 3, 8, 2, 8, 8, 8}, 19},
    {"EightBitsMasked", {9, 7, 3, 6, 2, 8, 8, 8}, 17, true},
    {"FourBits", {4, 6, 3, 8, 4, 4, 4, 4}, 16},
    {"TwoBitsMasked", {5, 8, 3, 4, 1, 2, 2, 2}, 33, true},
    {"NegativeThreshold", {3, 5, 3, 8, 2, 8, 4, 4}, 11, false, false, -1.5F},
    {"Percentile", {3, 5, 3, 8, 2, 8, 8, 8}, 19, false, true},
    {"PercentileMasked", {3, 4, 5, 4, 2, 4, 4, 4}, 21, true, true},
    {"FloatWeights", {4, 5, 3, 8, 2, 8, kFloat, 4}, 10},
    {"FloatActivations", {4, 5, 3, 8, 2, 8, 4, kFloat}, 10},
    {"Dense", {13, 9, 1, 1, 1, 8, 8, 8}, 37},
    {"SeveralTaps", {2, 3, 7, 16, 2, 8, 8, 8}, 6},
    // Channels enough for Winograd's algorithm, and for matrix products where it does not fit.
    {"Winograd", {9, 10, 3, 8, 2, 8, 8, 8}, 18},
    {"WinogradMasked", {17, 8, 3, 12, 1, 4, 4, 4}, 17, true},
    {"WinogradFloat", {8, 9, 3, 32, 4, kFloat, kFloat, kFloat}, 5},
    {"OddPositions", {8, 9, 3, 6, 3, 8, 8, 8}, 18},
    {"OddChunks", {9, 17, 3, 18, 3, 8, 8, 8}, 3},
    {"FiveTaps", {9, 8, 5, 8, 2, 8, 8, 8}, 10},
    {"Long", {8, 8, 3, 68, 2, 8, 8, 8}, 3},
    // Its sums are computed again in the backward pass.
    {"FewInputs", {2, 5, 3, 16, 2, 8, 8, 8}, 18},
    // Sums of its inputs are all that these need.
    {"FirstLayer", {2, 5, 3, 16, 2, 8, 8, 8}, 18, false, false, 2.0F, true},
    {"FirstLayerMasked", {2, 9, 3, 34, 2, 8, 4, 4}, 5, true, false, 2.0F, true},
    {"FirstLayerPercentile", {3, 5, 5, 16, 4, 6, 8, 8}, 18, false, true, 2.0F, true},
    // Too many inputs for that.
    {"FirstLayerOfMany", {6, 5, 3, 8, 2, 8, 8, 8}, 18, false, false, 2.0F, true},
    // Signed quantizers, of full and of narrow range.
    {"Signed", {3, 7, 3, 8, 2, 8, 8, 8, -128}, 19, false, false, 1.0F, false, false, true},
    {"SignedMasked", {9, 10, 3, 12, 3, 4, 4, 4, -7}, 17, true, false, 1.0F, false, false, true},
    {"SignedTwoBits", {5, 8, 5, 4, 1, 2, 2, 2, -2}, 33, true, false, 0.7F, false, false, true},
    {"SignedWinograd", {17, 9, 3, 8, 2, 8, 8, 8, -128}, 18, false, false, 1.0F, false, false, true},
    {"SignedDense", {13, 9, 1, 1, 1, 8, 8, 4, -8}, 37, false, false, 1.0F, false, false, true},
    {"SignedOfUnsigned", {4, 6, 3, 8, 4, 4, 4, 3, -3}, 16, false, false, -1.0F},
    {"SignedFirstLayer", {2, 5, 3, 16, 2, 8, 8, 8, -128}, 18, false, false, 1.0F, true},
    {"SignedFloatWeights", {4, 5, 3, 8, 2, 8, kFloat, 4, -8}, 10, false, false, 1.0F},
    {"SignedPercentile", {4, 6, 3, 8, 2, 8, 8, 4, -8}, 18, false, true},
    {"SignedPercentileMasked", {9, 5, 3, 4, 1, 4, 4, 4, -7}, 21, true, true},
    {"UnsignedOfSigned", {9, 8, 3, 8, 2, 8, 8, 8}, 18, true, false, 2.0F, false, false, true},
};

// Operands of a layer with random values.
struct Operands {
  Operands(const Case& test, uint64_t seed)
      : shape(test.shape),
        weight(static_cast<size_t>(shape.weights())),
        gamma(static_cast<size_t>(shape.out_channels)),
        beta(gamma.size()),
        bias(gamma.size()),
        threshold(test.threshold),
        collect(test.collect),
        first_layer(test.first_layer) {
    const bool signed_input = first_layer || test.signed_input;
    Random random(seed, test.name);
    const float range = 1.0F / std::sqrt(static_cast<float>(shape.fan_in()));
    for (float& w : weight) w = random.uniform(-range, range);
    if (test.masked) {
      for (size_t i = 0; i < weight.size(); ++i) {
        mask.push_back(random.below(3) == 0 ? 0 : 1);
        if (mask[i] == 0) weight[i] = 0;
      }
    }
    for (size_t c = 0; c < gamma.size(); ++c) {
      gamma[c] = random.uniform(0.5F, 1.5F) * (random.below(4) == 0 ? -1.0F : 1.0F);
      beta[c] = random.uniform(-0.3F, 0.7F);
      bias[c] = random.uniform(-0.5F, 0.5F);
    }
    const int pad = (shape.taps - 1) / 2;
    const bool codes = shape.input_bits != kFloatBits;
    x = Tensor::tile({test.frames, shape.length, shape.in_channels, pad},
                     signed_input ? ElementType::kS8
                     : codes      ? ElementType::kU8
                                  : ElementType::kF32);
    x.fill_zero();
    x_scale = codes ? 1.5F / static_cast<float>(1 << shape.input_bits) : 1.0F;
    for_each_input([&](size_t at) {
      if (signed_input) {
        const int half = 1 << (shape.input_bits - 1);
        x.data<int8_t>()[at] = static_cast<int8_t>(
            static_cast<int>(random.below(2 * static_cast<uint64_t>(half))) - half);
      } else if (codes) {
        x.data<uint8_t>()[at] = static_cast<uint8_t>(random.below(uint64_t{1} << shape.input_bits));
      } else {
        x.data<float>()[at] = random.uniform(-1.0F, 1.0F);
      }
    });
    const TileShape out{test.frames, shape.length / shape.pool, shape.out_channels, 0};
    dp = Tensor::tile(out, ElementType::kF32);
    dp.fill_zero();
    for (int64_t n = 0; n < out.frames; ++n) {
      for (int l = 0; l < out.length; ++l) {
        for (int c = 0; c < out.channels; ++c) {
          dp.data<float>()[place(out, n, l, c)] = random.uniform(-1.0F, 1.0F);
        }
      }
    }
  }

  template <typename Body>
  void for_each_input(const Body& body) const {
    const TileShape& tile = x.tile_shape();
    for (int64_t n = 0; n < tile.frames; ++n) {
      for (int l = 0; l < tile.length; ++l) {
        for (int c = 0; c < tile.channels; ++c) body(place(tile, n, l, c));
      }
    }
  }
  // Real values of x, [N][L][C].
  Doubles inputs() const {
    Doubles values;
    for_each_input([&](size_t at) {
      const auto scale = static_cast<double>(x_scale);
      values.push_back(x.type() == ElementType::kS8   ? scale * x.data<int8_t>()[at]
                       : x.type() == ElementType::kU8 ? scale * x.data<uint8_t>()[at]
                                                      : static_cast<double>(x.data<float>()[at]));
    });
    return values;
  }

  LayerShape shape;
  Floats weight, gamma, beta, bias;
  std::vector<uint8_t> mask;
  float threshold;
  bool collect, first_layer = false;
  Tensor x, dp;
  float x_scale = 1;
};

// Rounding, as a constant that was found at the starting point.
struct FrozenRounding {
  double offset = 0;
  void freeze(double value) { offset = std::nearbyint(value) - value; }
  double operator()(double value) const { return value + offset; }
};

// The fake-quantized weights as a smooth function of the weights.
class WeightSurrogate {
 public:
  WeightSurrogate(const LayerShape& shape, const Doubles& weight)
      : bits_(shape.weight_bits), rounding_(weight.size()) {
    if (bits_ == kFloatBits) return;
    largest_ = static_cast<size_t>(
        std::max_element(weight.begin(), weight.end(),
                         [](double a, double b) { return std::fabs(a) < std::fabs(b); }) -
        weight.begin());
    for (size_t i = 0; i < weight.size(); ++i) rounding_[i].freeze(weight[i] / scale(weight));
  }
  double scale(const Doubles& weight) const {
    return bits_ == kFloatBits ? 1.0 : std::fabs(weight[largest_]) / ((1 << (bits_ - 1)) - 1);
  }
  Doubles operator()(const Doubles& weight) const {
    if (bits_ == kFloatBits) return weight;
    Doubles result(weight.size());
    const double s = scale(weight);
    for (size_t i = 0; i < weight.size(); ++i) result[i] = s * rounding_[i](weight[i] / s);
    return result;
  }

 private:
  int bits_;
  size_t largest_ = 0;
  std::vector<FrozenRounding> rounding_;
};

// What a hidden layer's loss sum(dp * output) depends on.
struct HiddenVariables {
  Doubles x, weight, gamma, beta, threshold;
};

class HiddenSurrogate {
 public:
  HiddenSurrogate(const Operands& operands, const HiddenVariables& start)
      : o_(operands),
        frames_(operands.x.tile_shape().frames),
        weights_(operands.shape, start.weight) {
    freeze(start);
  }

  double loss(const HiddenVariables& v) const {
    const Doubles z = normalised(v);
    const double scale = activation_scale(v, z);
    double sum = 0;
    for (size_t i = 0; i < winner_.size(); ++i) {
      sum += dp_[i] * activate(z[winner_[i]], scale, winner_[i]);
    }
    return sum;
  }
  // Codes (or values) after pooling, [N][L / pool][O].
  Doubles output(const HiddenVariables& v) const {
    const Doubles z = normalised(v);
    const double scale = activation_scale(v, z);
    Doubles result;
    for (const size_t at : winner_) {
      const double value = activate(z[at], scale, at);
      result.push_back(quantized() ? std::nearbyint(value / scale) : value);
    }
    return result;
  }

 private:
  bool quantized() const { return o_.shape.act_bits != kFloatBits; }
  double max_code() const {
    const bool is_signed = o_.shape.smallest_code < 0;
    return (1 << (is_signed ? o_.shape.act_bits - 1 : o_.shape.act_bits)) - 1;
  }
  double min_code() const { return o_.shape.smallest_code; }

  // Batch-norm of the convolution, [N][L][O].
  Doubles normalised(const HiddenVariables& v) const {
    const LayerShape& s = o_.shape;
    const Doubles w = weights_(v.weight);
    const size_t channels = static_cast<size_t>(s.out_channels);
    Doubles z;
    for (int64_t n = 0; n < frames_; ++n) {
      for (int l = 0; l < s.length; ++l) {
        for (int o = 0; o < s.out_channels; ++o) z.push_back(convolve(v.x, w, n, l, o));
      }
    }
    const size_t elements = z.size() / channels;
    const double count = static_cast<double>(elements);
    for (size_t c = 0; c < channels; ++c) {
      double mean = 0, variance = 0;
      for (size_t i = c; i < z.size(); i += channels) mean += z[i] / count;
      for (size_t i = c; i < z.size(); i += channels) {
        variance += (z[i] - mean) * (z[i] - mean) / count;
      }
      const double gain = v.gamma[c] / std::sqrt(variance + kBatchNormEpsilon);
      for (size_t i = c; i < z.size(); i += channels) z[i] = gain * (z[i] - mean) + v.beta[c];
    }
    return z;
  }
  double convolve(const Doubles& x, const Doubles& w, int64_t n, int l, int o) const {
    const LayerShape& s = o_.shape;
    double sum = 0;
    for (int t = 0; t < s.taps; ++t) {
      const int from = l + t - (s.taps - 1) / 2;
      if (from < 0 || from >= s.length) continue;
      for (int c = 0; c < s.in_channels; ++c) {
        sum += w[static_cast<size_t>((o * s.taps + t) * s.in_channels + c)] *
               x[static_cast<size_t>((n * s.length + from) * s.in_channels + c)];
      }
    }
    return sum;
  }

  double activation_scale(const HiddenVariables& v, const Doubles& z) const {
    if (!quantized()) return 1;
    return std::fabs(o_.collect ? z[percentile_] : v.threshold[0]) / max_code();
  }
  double activate(double z, double scale, size_t at) const {
    if (!quantized()) return region_[at] < 0 ? 0 : z;
    if (region_[at] < 0) return scale * min_code();
    if (region_[at] > 0) return scale * max_code();
    return scale * rounding_[at](z / scale);
  }

  void freeze(const HiddenVariables& v) {
    const LayerShape& s = o_.shape;
    const Doubles z = normalised(v);
    if (o_.collect) {
      std::vector<size_t> order(z.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      const auto size = [&](size_t i) { return min_code() < 0 ? std::fabs(z[i]) : z[i]; };
      std::ranges::sort(order, [&](size_t a, size_t b) { return size(a) < size(b); });
      const double k =
          std::floor(0.01 * kThresholdPercentile * static_cast<double>(z.size()) + 0.5);
      percentile_ = order[static_cast<size_t>(k) - 1];
    }
    const double scale = activation_scale(v, z);
    rounding_.resize(z.size());
    region_.assign(z.size(), 0);
    Doubles code(z.size());
    for (size_t i = 0; i < z.size(); ++i) {
      rounding_[i].freeze(z[i] / scale);
      code[i] = quantized() ? std::nearbyint(z[i] / scale) : z[i];
      if (min_code() == 0 ? z[i] <= 0 : code[i] < min_code()) region_[i] = -1;
      if (quantized() && code[i] > max_code()) region_[i] = 1;
      code[i] = std::max(code[i], min_code());
      if (quantized()) code[i] = std::min(code[i], max_code());
    }
    const TileShape& out = o_.dp.tile_shape();
    for (int64_t n = 0; n < frames_; ++n) {
      for (int p = 0; p < out.length; ++p) {
        for (int c = 0; c < out.channels; ++c) {
          const auto at = [&](int l) {
            return static_cast<size_t>((n * s.length + l) * s.out_channels + c);
          };
          size_t best = at(p * s.pool);
          for (int l = p * s.pool + 1; l < (p + 1) * s.pool; ++l) {
            if (code[at(l)] > code[best]) best = at(l);
          }
          winner_.push_back(best);
          dp_.push_back(static_cast<double>(o_.dp.data<float>()[place(out, n, p, c)]));
        }
      }
    }
  }

  const Operands& o_;
  int64_t frames_;
  WeightSurrogate weights_;
  std::vector<FrozenRounding> rounding_;
  std::vector<int> region_;     // -1: below 0; 1: clipped; [N][L][O]
  std::vector<size_t> winner_;  // of each pooled element
  Doubles dp_;
  size_t percentile_ = 0;
};

// All that a hidden layer computes in a training step.
struct HiddenResult {
  Floats weight, gamma, beta, running_mean, running_var;
  double threshold = 0;
  float threshold_used = 0;
  Tensor out{}, dx{};
};

HiddenResult run_hidden(const Operands& o, const PassPlan& plan, int threads,
                        ElementType dx_type = ElementType::kF32) {
  const LayerShape& s = o.shape;
  const int64_t frames = o.x.tile_shape().frames;
  HiddenResult r{Floats(o.weight.size()), Floats(o.gamma.size()), Floats(o.gamma.size()),
                 Floats(o.gamma.size(), 0.5F), Floats(o.gamma.size(), 2.0F)};
  r.out = Tensor::tile(o.dp.tile_shape(), s.output_type());
  r.dx = Tensor::tile({frames, s.length, s.in_channels, 0}, dx_type);
  cpu::Weights weights;
  weights.compile(s, o.weight, o.mask, plan, true);
  cpu::HiddenState state;
  state.first_layer = o.first_layer;
  r.dx.fill_zero();
  const cpu::HiddenParameters parameters{o.gamma, o.beta, o.threshold};
  const cpu::Input x{o.x.view(), o.x_scale};
  cpu::hidden_forward_train(x, weights, parameters, o.collect, {r.running_mean, r.running_var},
                            state, r.out.view(), nullptr, {threads});
  cpu::HiddenGradients gradients{r.weight, r.gamma, r.beta};
  cpu::hidden_backward({x, &weights, &state, std::as_const(r.out).view()}, parameters, o.dp.view(),
                       0.0, gradients, o.first_layer ? TileView{} : r.dx.view(), nullptr,
                       {threads});
  weights.backward(o.weight, 0.0, r.weight);
  r.threshold = gradients.threshold;
  r.threshold_used = state.threshold;
  return r;
}

// [N][L][C] of a float tile.
Floats values_of(const Tensor& tile) {
  const TileShape& shape = tile.tile_shape();
  Floats values;
  for (int64_t n = 0; n < shape.frames; ++n) {
    for (int l = 0; l < shape.length; ++l) {
      for (int c = 0; c < shape.channels; ++c) {
        const size_t at = place(shape, n, l, c);
        values.push_back(
            tile.type() == ElementType::kU8   ? static_cast<float>(tile.data<uint8_t>()[at])
            : tile.type() == ElementType::kS8 ? static_cast<float>(tile.data<int8_t>()[at])
                                              : tile.data<float>()[at]);
      }
    }
  }
  return values;
}

constexpr uint64_t kSeed = 11;

class HiddenLayerTest : public testing::TestWithParam<Case> {};

TEST_P(HiddenLayerTest, GradientsAreDifferenceQuotients) {
  const Operands o(GetParam(), kSeed);
  HiddenVariables v{o.inputs(),
                    as_doubles(o.weight),
                    as_doubles(o.gamma),
                    as_doubles(o.beta),
                    {static_cast<double>(o.threshold)}};
  const HiddenSurrogate surrogate(o, v);
  const HiddenResult r = run_hidden(o, {}, 1);

  const Doubles expected = surrogate.output(v);
  const Floats out = values_of(r.out);
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-5) << "output " << i;

  const auto loss = [&] { return surrogate.loss(v); };
  Doubles d_weight = differences(v.weight, loss);
  for (size_t i = 0; i < o.mask.size(); ++i) {
    if (o.mask[i] == 0) d_weight[i] = 0;  // masked weights get no gradient
  }
  expect_gradient(r.weight, d_weight, "weight");
  expect_gradient(r.gamma, differences(v.gamma, loss), "gamma");
  expect_gradient(r.beta, differences(v.beta, loss), "beta");
  if (!o.first_layer) expect_gradient(values_of(r.dx), differences(v.x, loss), "x");
  if (!o.collect && o.shape.act_bits != kFloatBits) {
    expect_gradient(Floats{static_cast<float>(r.threshold)}, differences(v.threshold, loss),
                    "threshold");
  }
}

template <typename T>
void expect_same_bits(std::span<const T> a, std::span<const T> b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin())) << what << " differs";
}

TEST_P(HiddenLayerTest, PlanThreadsAndInstructionSetChangeNoBit) {
  const Operands o(GetParam(), kSeed);
  const HiddenResult dense = run_hidden(o, {}, 1);
  // Where the dense backward kernels sum in an order of their own, the sparse ones must only agree
  // with each other.
  const bool own_order = cpu::prefers_dense_backward(o.shape, o.mask);
  const HiddenResult sparse_result =
      own_order ? run_hidden(o, PassPlan::all(Kernel::kSparse), 1) : dense;
  // So must instruction sets without AMX, where that sums the gradients of the best one.
  const bool best_has_tiles = cpu::simd().has_gradient_tiles;
  const bool integers = o.shape.input_bits != kFloatBits && o.shape.weight_bits != kFloatBits;
  std::optional<HiddenResult> without_tiles;
  const std::string best = cpu::target_name();
  for (const std::string& target : cpu::target_names()) {
    if (target.starts_with("SSE") || target == "SSSE3") continue;  // no fused multiply-add
    cpu::use_target(target);
    const bool as_best = cpu::simd().has_gradient_tiles == best_has_tiles;
    if (own_order && integers && !as_best && !without_tiles) without_tiles = run_hidden(o, {}, 1);
    const HiddenResult& dense_result = without_tiles && !as_best ? *without_tiles : dense;
    for (const Kernel kernel : {Kernel::kDense, Kernel::kSparse}) {
      for (const int threads : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message()
                     << target << ' ' << threads << " threads, " << kernel_name(kernel));
        const HiddenResult r = run_hidden(o, PassPlan::all(kernel), threads);
        const HiddenResult& reference = kernel == Kernel::kSparse ? sparse_result : dense_result;
        expect_same_bits<float>(values_of(r.out), values_of(dense.out), "output");
        expect_same_bits<float>(r.weight, reference.weight, "weight gradient");
        expect_same_bits<float>(r.gamma, reference.gamma, "gamma's gradient");
        expect_same_bits<float>(r.beta, reference.beta, "beta's gradient");
        expect_same_bits<float>(values_of(r.dx), values_of(reference.dx), "x's gradient");
        expect_same_bits<float>(r.running_mean, reference.running_mean, "running mean");
        expect_same_bits<float>(r.running_var, reference.running_var, "running variance");
        EXPECT_EQ(r.threshold, reference.threshold);
        EXPECT_EQ(r.threshold_used, reference.threshold_used);
      }
    }
  }
  cpu::use_target(best);
}

// A float tile as bf16, values being rounded by the arithmetic of floats: what is added leaves them
// 8 bits.
Tensor in_bf16(const Tensor& floats) {
  Tensor halves = Tensor::tile(floats.tile_shape(), ElementType::kBF16);
  for (int64_t i = 0; i < floats.size(); ++i) {
    const float value = floats.data<float>()[i];
    volatile float large = value * 65537.0F;  // Veltkamp's splitting
    const float rounded = large - (large - value);
    halves.data<uint16_t>()[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) >> 16);
  }
  return halves;
}
Tensor as_floats(const Tensor& halves) {
  Tensor floats = Tensor::tile(halves.tile_shape(), ElementType::kF32);
  for (int64_t i = 0; i < halves.size(); ++i) {
    floats.data<float>()[i] =
        std::bit_cast<float>(static_cast<uint32_t>(halves.data<uint16_t>()[i]) << 16);
  }
  return floats;
}

// From gradients that are bf16 numbers come the same bits, however they are kept; those that leave
// are rounded, and no others.
TEST_P(HiddenLayerTest, GradientsInBf16AreRoundedOnce) {
  Operands o(GetParam(), kSeed);
  const Tensor halves = in_bf16(o.dp);
  o.dp = as_floats(halves);
  const HiddenResult expected = run_hidden(o, {}, 1);
  o.dp = halves;
  const HiddenResult r = run_hidden(o, {}, 2, ElementType::kBF16);
  expect_same_bits<float>(r.weight, expected.weight, "weight gradient");
  expect_same_bits<float>(r.gamma, expected.gamma, "gamma's gradient");
  expect_same_bits<float>(r.beta, expected.beta, "beta's gradient");
  EXPECT_EQ(r.threshold, expected.threshold);
  if (o.first_layer) return;
  expect_same_bits<float>(values_of(as_floats(r.dx)), values_of(as_floats(in_bf16(expected.dx))),
                          "x's gradient");
}

// The sums that a layer takes for the one before are of what that one will read.
TEST(Bf16GradientTest, SumsOnTheWayAreOfRoundedGradients) {
  Operands first({"Bf16Producer", {8, 8, 3, 64, 2, 8, 8, 8}, 20}, kSeed);
  Operands second({"Bf16Reader", {8, 8, 3, 32, 2, 8, 8, 8}, 20}, kSeed);
  for (const Kernel kernel : {Kernel::kDense, Kernel::kSparse}) {
    const auto backward = [&](bool on_the_way) {
      const auto state_of = [&](const Operands& o, cpu::Weights& weights, cpu::HiddenState& state,
                                const cpu::Input& x, Tensor& out) {
        weights.compile(o.shape, o.weight, {}, PassPlan::all(kernel), true);
        Floats mean(o.gamma.size()), var(o.gamma.size());
        cpu::hidden_forward_train(x, weights, {o.gamma, o.beta, o.threshold}, false, {mean, var},
                                  state, out.view(), nullptr, {});
      };
      cpu::Weights weights, reader_weights;
      cpu::HiddenState state, reader_state;
      Tensor between = Tensor::tile(second.x.tile_shape(), ElementType::kU8);
      Tensor out = Tensor::tile(second.dp.tile_shape(), ElementType::kU8);
      const cpu::Input x{first.x.view(), first.x_scale};
      state_of(first, weights, state, x, between);
      const cpu::Input reader_x{std::as_const(between).view(), state.act_scale};
      state_of(second, reader_weights, reader_state, reader_x, out);
      Tensor dx = Tensor::tile(first.dp.tile_shape(), ElementType::kBF16);
      Floats weight(first.weight.size()), gamma(first.gamma.size()), beta(gamma.size());
      cpu::HiddenGradients gradients{weight, gamma, beta};
      const cpu::HiddenOperands producer{x, &weights, &state, std::as_const(between).view()};
      cpu::hidden_backward({reader_x, &reader_weights, &reader_state, std::as_const(out).view()},
                           {second.gamma, second.beta, second.threshold}, second.dp.view(), 0.0,
                           gradients, dx.view(), on_the_way ? &producer : nullptr, {});
      EXPECT_EQ(state.gradient_summed, on_the_way);
      cpu::hidden_backward(producer, {first.gamma, first.beta, first.threshold},
                           std::as_const(dx).view(), 0.0, gradients, {}, nullptr, {});
      return beta;
    };
    const Floats on_the_way = backward(true), afterwards = backward(false);
    double largest = 0, difference = 0;
    for (size_t c = 0; c < afterwards.size(); ++c) {
      largest = std::max(largest, std::fabs(static_cast<double>(afterwards[c])));
      difference = std::max(difference, std::fabs(static_cast<double>(on_the_way[c]) -
                                                  static_cast<double>(afterwards[c])));
    }
    EXPECT_GT(largest, 0);
    EXPECT_LE(difference, 1e-6 * largest) << kernel_name(kernel);
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, HiddenLayerTest, testing::ValuesIn(kCases),
                         [](const auto& tested) { return std::string(tested.param.name); });

class OutputLayerTest : public testing::TestWithParam<Case> {};

TEST_P(OutputLayerTest, GradientsAreDifferenceQuotients) {
  const Operands o(GetParam(), kSeed);
  const LayerShape& s = o.shape;
  const int64_t frames = o.x.tile_shape().frames;
  Floats gain;
  for (int c = 0; GetParam().gains && c < s.out_channels; ++c)
    gain.push_back(0.3F + 0.7F / static_cast<float>(1 + c));
  const bool quantized = s.weight_bits != kFloatBits && s.input_bits != kFloatBits && gain.empty();
  Doubles x = o.inputs(), weight = as_doubles(o.weight), bias = as_doubles(o.bias);
  Doubles x_scale = {static_cast<double>(o.x_scale)};
  const WeightSurrogate weights(s, weight);
  std::vector<FrozenRounding> rounding(bias.size());
  const auto bias_scale = [&] { return x_scale[0] * weights.scale(weight); };
  for (size_t c = 0; c < bias.size(); ++c) rounding[c].freeze(bias[c] / bias_scale());
  const auto logit = [&](const Doubles& w, int64_t n, int c) {
    const size_t channel = static_cast<size_t>(c);
    double sum =
        quantized ? bias_scale() * rounding[channel](bias[channel] / bias_scale()) : bias[channel];
    for (int i = 0; i < s.in_channels; ++i) {
      sum += w[static_cast<size_t>(c * s.in_channels + i)] *
             x[static_cast<size_t>(n * s.in_channels + i)] *
             (gain.empty() ? 1.0 : static_cast<double>(gain[channel]));
    }
    return sum;
  };
  const auto loss = [&] {
    const Doubles w = weights(weight);
    double sum = 0;
    for (int64_t n = 0; n < frames; ++n) {
      for (int c = 0; c < s.out_channels; ++c) {
        sum += static_cast<double>(o.dp.data<float>()[place(o.dp.tile_shape(), n, 0, c)]) *
               logit(w, n, c);
      }
    }
    return sum;
  };

  cpu::Weights compiled;
  compiled.compile(s, o.weight, o.mask, {}, true);
  Tensor logits = Tensor::tile(o.dp.tile_shape(), ElementType::kF32);
  const cpu::Input input{o.x.view(), o.x_scale};
  cpu::output_forward(input, compiled, {o.bias, gain}, logits.view(), {2});
  const Doubles w = weights(weight);
  for (int64_t n = 0; n < frames; ++n) {
    for (int c = 0; c < s.out_channels; ++c) {
      EXPECT_NEAR(logits.data<float>()[place(logits.tile_shape(), n, 0, c)], logit(w, n, c), 1e-5);
    }
  }

  Floats d_weight(o.weight.size()), d_bias(o.bias.size());
  cpu::OutputGradients gradients{d_weight, d_bias};
  Tensor dx = Tensor::tile({frames, 1, s.in_channels, 0}, ElementType::kF32);
  cpu::output_backward(input, compiled, {o.bias, gain}, o.dp.view(), gradients, dx.view(), {2});
  compiled.backward(o.weight, gradients.weight_scale, d_weight);
  Doubles expected_weight = differences(weight, loss);
  for (size_t i = 0; i < o.mask.size(); ++i) {
    if (o.mask[i] == 0) expected_weight[i] = 0;
  }
  expect_gradient(d_weight, expected_weight, "weight");
  expect_gradient(d_bias, differences(bias, loss), "bias");
  expect_gradient(values_of(dx), differences(x, loss), "x");
  expect_gradient(Floats{static_cast<float>(gradients.x_scale)}, differences(x_scale, loss),
                  "x's scale", 1.0);
}

const Case kOutputCases[] = {
    {"EightBits", {17, 5, 1, 1, 1, 8, 8, kFloat}, 19},
    {"FourBitsMasked", {9, 24, 1, 1, 1, 4, 4, kFloat}, 16, true},
    {"TwoBits", {6, 3, 1, 1, 1, 2, 2, kFloat}, 35},
    {"ClassScales", {9, 5, 1, 1, 1, 4, 8, kFloat}, 19, false, false, 2.0F, false, true},
    {"Float", {7, 4, 1, 1, 1, kFloat, kFloat, kFloat}, 5},
};
INSTANTIATE_TEST_SUITE_P(Ops, OutputLayerTest, testing::ValuesIn(kOutputCases),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(LossTest, CrossEntropyAndItsGradient) {
  constexpr int kClasses = 5;
  const TileShape shape{18, 1, kClasses, 0};
  const size_t frames = static_cast<size_t>(shape.frames);
  Random random(kSeed, "loss");
  Tensor logits = Tensor::tile(shape, ElementType::kF32);
  Tensor gradient = Tensor::tile(shape, ElementType::kF32);
  Doubles values;
  std::vector<uint8_t> labels, predicted(frames);
  for (int64_t n = 0; n < shape.frames; ++n) {
    labels.push_back(static_cast<uint8_t>(random.below(kClasses)));
    for (int c = 0; c < kClasses; ++c) {
      // Some far from 0, where exp overflows unless the largest is subtracted first.
      const float value = random.uniform(-3.0F, 3.0F) + (n == 3 ? 200.0F : 0.0F);
      logits.data<float>()[place(shape, n, 0, c)] = value;
      values.push_back(static_cast<double>(value));
    }
  }
  const auto total = [&] {
    double sum = 0;
    for (size_t n = 0; n < frames; ++n) {
      double normaliser = 0;
      const double shift = values[n * kClasses];
      for (size_t c = 0; c < kClasses; ++c)
        normaliser += std::exp(values[n * kClasses + c] - shift);
      sum += std::log(normaliser) + shift - values[n * kClasses + labels[n]];
    }
    return sum;
  };
  const cpu::LossResult result =
      cpu::softmax_cross_entropy(logits.view(), {labels, {}, {}}, gradient.view(), predicted);
  EXPECT_NEAR(result.loss_sum, total(), 1e-5 * total());
  const double n = static_cast<double>(frames);
  expect_gradient(values_of(gradient), differences(values, [&] { return total() / n; }), "logits");
  int64_t correct = 0;
  for (size_t i = 0; i < frames; ++i) {
    const auto row = values.begin() + static_cast<ptrdiff_t>(i * kClasses);
    EXPECT_EQ(predicted[i], std::max_element(row, row + kClasses) - row);
    correct += predicted[i] == labels[i];
  }
  EXPECT_EQ(result.correct, correct);
}

// The formula of LossOptions, written down once more.
TEST(LossTest, SmoothedLabelsAndATeacherAndTheirGradient) {
  constexpr size_t kClasses = 6;
  const TileShape shape{19, 1, kClasses, 0};
  const size_t frames = static_cast<size_t>(shape.frames);
  Random random(kSeed, "distillation");
  Tensor logits = Tensor::tile(shape, ElementType::kF32);
  Doubles values, teacher;
  std::vector<uint8_t> labels;
  for (size_t n = 0; n < frames; ++n) {
    labels.push_back(static_cast<uint8_t>(random.below(kClasses)));
    for (size_t c = 0; c < kClasses; ++c) {
      const float value = random.uniform(-3.0F, 3.0F) + (n == 3 ? 200.0F : 0.0F);
      logits.data<float>()[place(shape, static_cast<int64_t>(n), 0, static_cast<int>(c))] = value;
      values.push_back(static_cast<double>(value));
      teacher.push_back(static_cast<double>(random.uniform(-4.0F, 4.0F)));
    }
  }
  // ln(softmax(z / t)[c]) of a frame.
  const auto log_share = [](const Doubles& of, size_t frame, size_t c, double t) {
    double sum = 0;
    const double shift = of[frame * kClasses];
    for (size_t k = 0; k < kClasses; ++k) sum += std::exp((of[frame * kClasses + k] - shift) / t);
    return (of[frame * kClasses + c] - shift) / t - std::log(sum);
  };
  for (const LossOptions& options :
       {LossOptions{0.1, 0, 1}, {0, 1, 1}, {0, 0.7, 4}, {0.2, 0.5, 2.5}}) {
    SCOPED_TRACE(testing::Message() << options.label_smoothing << ' ' << options.soft_weight << ' '
                                    << options.temperature);
    const double s = options.label_smoothing, w = options.soft_weight, t = options.temperature;
    Floats soft;
    for (size_t n = 0; n < frames; ++n) {
      for (size_t c = 0; c < kClasses; ++c)
        soft.push_back(static_cast<float>(std::exp(log_share(teacher, n, c, t))));
    }
    const auto total = [&] {
      double sum = 0;
      for (size_t n = 0; n < frames; ++n) {
        for (size_t c = 0; c < kClasses; ++c) {
          const double y = (c == labels[n] ? 1 - s : 0) + s / kClasses;
          sum -= (1 - w) * y * log_share(values, n, c, 1);
          sum -= w * t * t * std::exp(log_share(teacher, n, c, t)) * log_share(values, n, c, t);
        }
      }
      return sum;
    };
    Tensor gradient = Tensor::tile(shape, ElementType::kF32);
    std::vector<uint8_t> predicted(frames);
    const cpu::LossResult result = cpu::softmax_cross_entropy(
        logits.view(), {labels, soft, options}, gradient.view(), predicted);
    EXPECT_NEAR(result.loss_sum, total(), 1e-6 * total());
    const double n = static_cast<double>(frames);
    expect_gradient(values_of(gradient), differences(values, [&] { return total() / n; }),
                    "logits");
    // A teacher that agrees leaves nothing to learn from it.
    if (w != 1) continue;
    Floats own;
    for (size_t i = 0; i < frames; ++i) {
      for (size_t c = 0; c < kClasses; ++c)
        own.push_back(static_cast<float>(std::exp(log_share(values, i, c, t))));
    }
    cpu::softmax_cross_entropy(logits.view(), {labels, own, options}, gradient.view(), predicted);
    for (const float g : values_of(gradient)) EXPECT_NEAR(g, 0, 1e-8);
  }
}

TEST(AdamTest, FollowsTheFormulaAndLeavesMaskedValuesAlone) {
  const AdamOptions options{0.01, 0.9, 0.999, 1e-8};
  Random random(kSeed, "adam");
  constexpr size_t kCount = 37;
  Floats value(kCount), gradient(kCount), m(kCount), v(kCount);
  std::vector<uint8_t> mask(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    value[i] = random.uniform(-1.0F, 1.0F);
    mask[i] = i % 3 == 0 ? 0 : 1;
  }
  const Floats before = value;
  Doubles expected = as_doubles(value), em(kCount), ev(kCount);
  for (int step = 1; step <= 5; ++step) {
    for (float& g : gradient) g = random.uniform(-1.0F, 1.0F);
    cpu::adam_step(options, step, gradient, mask, value, m, v);
    for (size_t i = 0; i < kCount; ++i) {
      const double g = static_cast<double>(gradient[i]);
      em[i] = 0.9 * em[i] + 0.1 * g;
      ev[i] = 0.999 * ev[i] + 0.001 * g * g;
      const double mean = em[i] / (1 - std::pow(0.9, step));
      const double variance = ev[i] / (1 - std::pow(0.999, step));
      expected[i] -= 0.01 * mean / (std::sqrt(variance) + 1e-8);
    }
  }
  for (size_t i = 0; i < kCount; ++i) {
    if (mask[i] == 0) {
      EXPECT_EQ(value[i], before[i]);
      EXPECT_EQ(m[i], 0.0F);
    } else {
      EXPECT_NEAR(value[i], expected[i], 1e-6);
    }
  }
}

TEST(WeightsTest, NonFiniteWeightsAreRefused) {
  const LayerShape shape{3, 2, 1, 1, 1, 8, 8, 8};
  Floats weight(6, 0.5F);
  weight[4] = std::numeric_limits<float>::quiet_NaN();
  cpu::Weights compiled;
  EXPECT_THROW(compiled.compile(shape, weight, {}, {}, true), std::domain_error);
  const std::vector<uint8_t> mask = {1, 1, 1, 1, 0, 1};  // a masked weight is not looked at
  EXPECT_NO_THROW(compiled.compile(shape, weight, mask, {}, true));
}

}  // namespace
}  // namespace fmp
