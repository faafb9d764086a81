// SPDX-License-Identifier: MIT
// Every operation of the CUDA backend against the CPU's at odd sizes. Integer results are equal,
// code by code; sums of floats agree to 1e-5 of the largest. The same tests run on the host runtime
// (tests/simt) and, where there is one, on a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "framework/network/tensor.h"
#include "framework/random.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

using Floats = std::vector<float>;
template <typename T>
using Buffer = cuda::DeviceBuffer<T>;

constexpr uint64_t kSeed = 20251;
constexpr double kTolerance = 1e-5;
// Of the gradient of a threshold: a sum of differences between codes and what was rounded to them,
// as a difference of two sums that are some hundred times as large.
constexpr double kThresholdTolerance = 1e-4;
constexpr cuda::Stream kStream = nullptr;

template <typename T>
Buffer<T> upload(const std::vector<T>& values) {
  return Buffer<T>(std::span<const T>(values), kStream);
}

// Of the largest expected magnitude, or of `magnitude` if sums cancel below it.
void expect_close(const Floats& actual, const Floats& expected, const std::string& what,
                  double magnitude = 1e-3) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = magnitude;
  for (const float value : expected) {
    largest = std::max(largest, std::fabs(static_cast<double>(value)));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], kTolerance * largest) << what << " at " << i;
  }
}

// --- Activations as [N][L][C] on the host, and as tiles of either backend ------------------------

struct Dims {
  int64_t frames;
  int length, channels;
  size_t count() const { return static_cast<size_t>(frames * length * channels); }
  template <typename Body>
  void for_each(const Body& body) const {
    size_t i = 0;
    for (int64_t n = 0; n < frames; ++n) {
      for (int l = 0; l < length; ++l) {
        for (int c = 0; c < channels; ++c) body(i++, n, l, c);
      }
    }
  }
};

size_t cpu_place(const TileShape& tile, int64_t n, int l, int c) {
  return static_cast<size_t>(n / kLanes * tile.tile_elements() +
                             (l + tile.pad) * tile.row_elements() + c * kLanes + n % kLanes);
}

size_t cuda_place(const cuda::Tile& tile, bool codes, int64_t n, int l, int c) {
  const size_t row = static_cast<size_t>(l + tile.pad), lanes = static_cast<size_t>(tile.lanes());
  const size_t channel = static_cast<size_t>(c), lane = static_cast<size_t>(n);
  if (!codes) return (row * static_cast<size_t>(tile.channels) + channel) * lanes + lane;
  const size_t quad = row * static_cast<size_t>(tile.quads()) + channel / cuda::kQuad;
  return (quad * lanes + lane) * cuda::kQuad + channel % cuda::kQuad;
}

template <typename T>
Tensor cpu_tile(const std::vector<T>& values, const Dims& dims, int pad, ElementType type) {
  Tensor tile = Tensor::tile({dims.frames, dims.length, dims.channels, pad}, type);
  tile.fill_zero();
  dims.for_each([&](size_t i, int64_t n, int l, int c) {
    tile.data<T>()[cpu_place(tile.tile_shape(), n, l, c)] = values[i];
  });
  return tile;
}

template <typename T>
Buffer<T> cuda_tile(const std::vector<T>& values, const Dims& dims, int pad) {
  const cuda::Tile tile{dims.frames, dims.length, dims.channels, pad};
  constexpr bool kCodes = sizeof(T) == 1;
  std::vector<T> elements(kCodes ? tile.code_bytes() : tile.floats(), T{0});
  dims.for_each([&](size_t i, int64_t n, int l, int c) {
    elements[cuda_place(tile, kCodes, n, l, c)] = values[i];
  });
  return upload(elements);
}

template <typename T>
std::vector<T> from_cpu(const Tensor& tile, const Dims& dims) {
  std::vector<T> values(dims.count());
  dims.for_each([&](size_t i, int64_t n, int l, int c) {
    values[i] = tile.data<T>()[cpu_place(tile.tile_shape(), n, l, c)];
  });
  return values;
}

// Also expects zeros wherever there is no element.
template <typename T>
std::vector<T> from_cuda(const Buffer<T>& buffer, const Dims& dims, int pad) {
  const cuda::Tile tile{dims.frames, dims.length, dims.channels, pad};
  constexpr bool kCodes = sizeof(T) == 1;
  std::vector<T> elements = buffer.to_host(kStream);
  EXPECT_EQ(elements.size(), kCodes ? tile.code_bytes() : tile.floats());
  std::vector<T> values(dims.count());
  dims.for_each([&](size_t i, int64_t n, int l, int c) {
    values[i] = std::exchange(elements[cuda_place(tile, kCodes, n, l, c)], T{0});
  });
  EXPECT_TRUE(std::ranges::all_of(elements, [](T e) { return e == T{0}; }))
      << "padding or unused lanes are not zero";
  return values;
}

// --- Layers --------------------------------------------------------------------------------------

struct Case {
  const char* name;
  LayerShape shape;
  int64_t frames;
  ElementType input;  // kU8, kS8 or kF32
  bool masked = false;
  bool collect = false;
  float threshold = 2.0F;
  int rows = 1;  // > 1: a dense layer behind a convolution; in_channels = rows * channels
  int more = 0;  // positions that are read than written
};
std::ostream& operator<<(std::ostream& stream, const Case& c) { return stream << c.name; }

constexpr int kFloat = kFloatBits;
constexpr ElementType kU8 = ElementType::kU8, kS8 = ElementType::kS8, kF32 = ElementType::kF32;
// shape: in, out, taps, length, pool, input bits, weight bits, act bits.
const Case kCases[] = {
    {"Float", {3, 5, 3, 8, 2, kFloat, kFloat, kFloat}, 19, kF32},
    {"FloatMasked", {3, 9, 5, 6, 3, kFloat, kFloat, kFloat}, 9, kF32, true},
    {"EightBits", {3, 7, 3, 8, 2, 8, 8, 8}, 35, kU8},
    {"EightBitsMasked", {9, 7, 3, 6, 2, 8, 8, 8}, 33, kU8, true},
    {"FirstLayer", {2, 17, 3, 16, 2, 8, 8, 8}, 7, kS8},
    {"FirstLayerMasked", {2, 9, 7, 10, 2, 4, 4, 4}, 40, kS8, true},
    {"FirstLayerOneTap", {2, 5, 1, 6, 3, 8, 8, 8}, 33, kS8},
    {"FirstLayerFiveTaps", {2, 34, 5, 130, 1, 8, 4, 8}, 3, kU8},
    {"FourBits", {4, 6, 3, 8, 4, 4, 4, 4}, 16, kU8},
    {"TwoBitsMasked", {5, 8, 3, 4, 1, 2, 2, 2}, 64, kU8, true},
    {"NegativeThreshold", {3, 5, 3, 8, 2, 8, 4, 4}, 11, kU8, false, false, -1.5F},
    {"Percentile", {3, 5, 3, 8, 2, 8, 8, 8}, 19, kU8, false, true},
    {"PercentileMasked", {3, 4, 5, 4, 2, 4, 4, 4}, 21, kU8, true, true},
    // Few values, so that many elements equal the percentile.
    {"PercentileTies", {1, 2, 3, 9, 3, 2, 2, 2}, 50, kU8, false, true},
    {"PercentileNearOne", {2, 3, 3, 32, 2, 8, 8, 8}, 130, kU8, false, true},
    {"FloatWeights", {4, 5, 3, 8, 2, 8, kFloat, 4}, 10, kU8},
    {"FloatActivations", {4, 5, 3, 8, 2, 8, 4, kFloat}, 10, kU8},
    {"Dense", {13, 9, 1, 1, 1, 8, 8, 8}, 37, kU8},
    {"DenseBehindConvolution", {15, 9, 1, 1, 1, 8, 8, 8}, 37, kU8, false, false, 2.0F, 3},
    {"DenseBehindConvolutionMasked", {28, 33, 1, 1, 1, 4, 4, 4}, 5, kU8, true, true, 2.0F, 4},
    {"DenseFloat", {10, 6, 1, 1, 1, kFloat, kFloat, kFloat}, 12, kF32, true, false, 2.0F, 2},
    {"ManyChannels", {70, 66, 3, 4, 2, 8, 8, 8}, 33, kU8},
    {"ManyChannelsMasked", {66, 70, 3, 5, 1, 8, 8, 8}, 3, kU8, true},
    {"ManyFrames", {3, 4, 3, 4, 2, 8, 8, 8}, 530, kU8},
    // A few more than the 16 outputs, 32 k or 8 quads of a fragment.
    {"FiveTaps", {20, 34, 5, 3, 1, 8, 8, 8}, 32, kU8},
    {"Unpooled", {33, 40, 3, 5, 1, 8, 8, 8}, 40, kU8},
    {"UnpooledMasked", {34, 21, 3, 6, 1, 8, 8, 8}, 70, kU8, true},
    {"SignedChannels", {35, 18, 3, 2, 1, 8, 8, 8}, 34, kS8},
    // Signed quantizers, of full and of narrow range.
    {"Signed", {9, 7, 3, 8, 2, 8, 8, 8, -128}, 35, kS8, false, false, 1.0F},
    {"SignedMasked", {34, 21, 3, 6, 1, 4, 4, 4, -7}, 33, kS8, true, false, 1.0F},
    {"SignedOfUnsigned", {20, 18, 3, 8, 2, 8, 8, 3, -3}, 33, kU8, false, false, -0.9F},
    {"SignedFirstLayer", {2, 17, 3, 16, 2, 8, 8, 8, -128}, 7, kS8, false, false, 1.0F},
    {"SignedFiveTaps", {4, 5, 5, 8, 2, 8, 8, 3, -3}, 10, kS8, true, false, 0.5F},
    {"SignedDense", {28, 33, 1, 1, 1, 8, 8, 8, -128}, 5, kS8, false, false, 1.0F, 4},
    {"SignedFloatWeights", {4, 5, 3, 8, 2, 8, kFloat, 4, -8}, 10, kS8, false, false, 1.0F},
    {"SignedPercentile", {4, 6, 3, 8, 2, 8, 8, 4, -8}, 19, kS8, false, true},
    {"SignedPercentileTies", {2, 5, 3, 9, 1, 2, 2, 2, -2}, 50, kU8, false, true, 0.4F},
    {"FloatInput", {6, 17, 3, 2, 2, kFloat, 8, 8}, 20, kF32},
    // Pools that leave positions over.
    {"LeftOver", {9, 7, 3, 9, 2, 4, 4, 4}, 33, kU8},
    {"LeftOverMasked", {20, 34, 3, 11, 3, 8, 8, 8}, 40, kU8, true},
    {"LeftOverFirstLayer", {2, 17, 3, 15, 2, 8, 8, 8}, 7, kS8},
    {"LeftOverFiveTaps", {4, 5, 5, 11, 2, 8, 8, 3, -3}, 10, kS8, true, false, 0.5F},
    {"LeftOverPercentile", {3, 5, 3, 7, 4, 8, 8, 8}, 19, kU8, false, true},
    {"LeftOverPercentileMasked", {3, 4, 5, 3, 2, 4, 4, 4}, 21, kU8, true, true},
    {"LeftOverFloat", {3, 5, 3, 8, 3, kFloat, kFloat, kFloat}, 19, kF32},
    {"LeftOverOfManyPositions", {4, 5, 3, 301, 299, 4, 4, 4}, 3, kU8},
    // More positions read than written.
    {"More", {9, 7, 3, 8, 2, 4, 4, 4}, 33, kU8, false, false, 2.0F, 1, 1},
    {"MoreMasked", {20, 34, 5, 7, 2, 8, 8, 8}, 40, kU8, true, false, 2.0F, 1, 2},
    {"MoreUnpooled", {33, 40, 3, 5, 1, 8, 8, 8}, 40, kU8, false, false, 2.0F, 1, 1},
    {"MoreFirstLayer", {2, 17, 5, 15, 2, 8, 8, 8}, 7, kS8, false, false, 2.0F, 1, 2},
    {"MoreSigned", {34, 21, 3, 7, 2, 4, 4, 4, -7}, 33, kS8, true, false, 1.0F, 1, 1},
    {"MorePercentile", {3, 4, 7, 4, 3, 4, 4, 4}, 21, kU8, false, true, 2.0F, 1, 3},
    {"MoreFloat", {3, 9, 5, 6, 3, kFloat, kFloat, kFloat}, 9, kF32, true, false, 2.0F, 1, 2},
    {"MoreFloatWeights", {4, 5, 3, 3, 1, 8, kFloat, 4}, 10, kU8, false, false, 2.0F, 1, 1},
// Layers of VGG10, three warps of frames; on the host runtime with fewer positions.
#ifdef FMP_SIMT
    {"RealConv2", {64, 64, 3, 4, 2, 8, 8, 8}, 96, kU8},
#else
    {"RealConv1", {2, 64, 3, 1024, 2, 8, 8, 8}, 96, kS8},
    {"RealConv2", {64, 64, 3, 512, 2, 8, 8, 8}, 96, kU8},
    {"RealConv2Masked", {64, 64, 3, 512, 2, 8, 8, 8}, 96, kU8, true},
    {"RealConv7", {64, 64, 3, 16, 2, 8, 8, 8}, 4096, kU8},
    {"RealDense1", {512, 128, 1, 1, 1, 8, 8, 8}, 96, kU8, false, false, 2.0F, 8},
#endif
};

class CudaOpsTest : public testing::TestWithParam<Case> {
 public:
  // Of all tests, as each has memory of its own.
  static inline std::unique_ptr<cuda::Libraries> libraries;

 protected:
  static void SetUpTestSuite() {
    if (cuda::device_available()) libraries = std::make_unique<cuda::Libraries>(kStream);
  }
  static void TearDownTestSuite() { libraries.reset(); }
  void SetUp() override {
    const char* why = "";
    if (!cuda::device_available(&why)) GTEST_SKIP() << "no CUDA device: " << why;
  }
};

// Operands of a layer with random values.
struct Operands {
  explicit Operands(const Case& t)
      : test(t),
        shape(t.shape),
        in{t.frames, t.rows > 1 ? t.rows : shape.length + t.more, shape.in_channels / t.rows},
        out{t.frames, shape.length / shape.pool, shape.out_channels},
        pad((shape.taps - 1) / 2) {
    Random random(kSeed, test.name);
    const float range = 1.0F / std::sqrt(static_cast<float>(shape.fan_in()));
    weight.resize(static_cast<size_t>(shape.weights()));
    for (float& w : weight) w = random.uniform(-range, range);
    for (size_t i = 0; test.masked && i < weight.size(); ++i) {
      mask.push_back(random.below(3) == 0 ? 1 : 0);
    }
    const size_t channels = static_cast<size_t>(shape.out_channels);
    for (size_t c = 0; c < channels; ++c) {
      gamma.push_back(random.uniform(0.5F, 1.5F) * (random.below(4) == 0 ? -1.0F : 1.0F));
      beta.push_back(random.uniform(-0.3F, 0.7F));
      bias.push_back(random.uniform(-0.5F, 0.5F));
      mean.push_back(random.uniform(-0.1F, 0.1F));
      var.push_back(random.uniform(0.05F, 0.3F));
    }
    const bool is_codes = test.input != kF32;
    x_scale = is_codes ? 1.5F / static_cast<float>(1 << shape.input_bits) : 1.0F;
    for (size_t i = 0; i < in.count(); ++i) {
      const int code = static_cast<int>(random.below(uint64_t{1} << std::min(shape.input_bits, 8)));
      codes.push_back(
          static_cast<uint8_t>(test.input == kS8 ? code - (1 << (shape.input_bits - 1)) : code));
      values.push_back(random.uniform(-1.0F, 1.0F));
    }
    for (size_t i = 0; i < out.count(); ++i) dp.push_back(random.uniform(-1.0F, 1.0F));

    // The CPU reads rows of a tile as channels of one position.
    const Dims seen{in.frames, test.rows > 1 ? 1 : in.length,
                    test.rows > 1 ? shape.in_channels : in.channels};
    const int cuda_pad = test.rows > 1 ? 0 : pad;
    cuda_tile_shape = {in.frames, in.length, in.channels, cuda_pad};
    if (is_codes) {
      cpu_x = cpu_tile<uint8_t>(codes, seen, pad, kU8);
      if (test.input == kS8) {
        cpu_x = cpu_tile<int8_t>({codes.begin(), codes.end()}, seen, pad, kS8);
      }
      device_codes = cuda_tile(codes, in, cuda_pad);
    } else {
      cpu_x = cpu_tile(values, seen, pad, kF32);
      device_values = cuda_tile(values, in, cuda_pad);
    }
    device_scale = upload(Floats{x_scale});
  }

  cuda::Input input() const {
    const bool is_codes = test.input != kF32;
    return {cuda_tile_shape, test.input,
            is_codes ? static_cast<const void*>(device_codes.data()) : device_values.data(),
            is_codes ? device_scale.data() : nullptr};
  }
  bool integers() const { return test.input != kF32; }
  // What bytes of the output stand for.
  std::vector<int> written_codes(const std::vector<uint8_t>& bytes) const {
    std::vector<int> result;
    for (const uint8_t byte : bytes) {
      result.push_back(shape.smallest_code < 0 ? int{static_cast<int8_t>(byte)} : int{byte});
    }
    return result;
  }

  const Case& test;
  LayerShape shape;
  Dims in, out;
  int pad;
  Floats weight, gamma, beta, bias, mean, var, values, dp;
  std::vector<uint8_t> mask, codes;
  float x_scale = 1;
  Tensor cpu_x{};
  cuda::Tile cuda_tile_shape;
  Buffer<uint8_t> device_codes;
  Buffer<float> device_values, device_scale;
};

struct DeviceWeights {
  DeviceWeights(const Operands& o, Kernel kernel)
      : shape(cuda::conv_shape(o.shape, o.cuda_tile_shape)), value(upload(o.weight)) {
    weights.use_libraries(CudaOpsTest::libraries.get());
    weights.set_mask(shape, o.mask, kStream);
    weights.compile(o.shape, shape, value.data(), o.integers(), PassPlan::all(kernel), true,
                    kStream);
  }
  cuda::ConvShape shape;
  Buffer<float> value;
  cuda::Weights weights;
};

// Codes differ only where the CPU's value before rounding lies this close to a boundary: the two
// backends' sums for the batch's mean and variance differ in their last bits.
constexpr double kRoundingSlack = 2e-4;

// Every kernel for every pass; libraries where they are exact.
template <typename Body>
void for_each_kernel(const Operands& o, const Body& body) {
  const bool integers = o.integers() && o.shape.weight_bits != kFloatBits;
  for (const Kernel kernel :
       {Kernel::kDense, Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse}) {
    if (cuda::is_library(kernel) && integers && !cuda::exact_in_floats(o.shape)) continue;
    SCOPED_TRACE(kernel_name(kernel));
    body(kernel);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(CudaOpsTest, WeightsAreQuantizedAsOnTheCpu) {
  const Operands o(GetParam());
  cpu::Weights expected;
  expected.compile(o.shape, o.weight, o.mask, {}, true);
  DeviceWeights device(o, Kernel::kDense);
  const cuda::Weights::Summary summary = device.weights.summary(kStream);
  EXPECT_EQ(summary.scale, expected.scale());
  EXPECT_EQ(summary.nonzeros, expected.nonzeros());
  Floats codes(o.weight.size());
  cuda::copy_to_host(codes.data(), device.weights.codes(), codes.size() * sizeof(float), kStream);
  cuda::synchronize(kStream);
  EXPECT_EQ(codes, Floats(expected.codes().begin(), expected.codes().end()));

  Floats gradient(o.weight.size());
  Random random(kSeed, "gradient");
  for (float& g : gradient) g = random.uniform(-1.0F, 1.0F);
  const Buffer<float> device_gradient = upload(gradient);
  const Buffer<double> extra = upload(std::vector<double>{0.75});
  expected.backward(o.weight, 0.75, gradient);
  const cuda::WeightGradient of_layer{&device.weights, device_gradient.data(), extra.data()};
  cuda::Weights::backward(std::span(&of_layer, 1), kStream);
  expect_close(device_gradient.to_host(kStream), gradient, "weight gradient");
}

TEST_P(CudaOpsTest, EvaluationGivesTheSameCodes) {
  const Operands o(GetParam());
  cpu::Weights cpu_weights;
  cpu_weights.compile(o.shape, o.weight, o.mask, {}, false);
  const bool codes = o.shape.act_bits != kFloatBits;
  const int out_pad = o.out.length == 1 ? 0 : 2;  // nobody pads a single position
  Tensor expected =
      Tensor::tile({o.out.frames, o.out.length, o.out.channels, out_pad}, o.shape.output_type());
  const float scale = cpu::hidden_forward_eval({o.cpu_x.view(), o.x_scale}, cpu_weights,
                                               {o.gamma, o.beta, o.test.threshold}, o.mean, o.var,
                                               expected.view(), {});
  const Buffer<float> gamma = upload(o.gamma), beta = upload(o.beta), mean = upload(o.mean),
                      var = upload(o.var), threshold = upload(Floats{o.test.threshold});
  const cuda::Tile out{o.out.frames, o.out.length, o.out.channels, out_pad};
  for_each_kernel(o, [&](Kernel kernel) {
    DeviceWeights device(o, kernel);
    cuda::HiddenState state;
    Buffer<uint8_t> out_codes(codes ? out.code_bytes() : 0);
    Buffer<float> out_values(codes ? 0 : out.floats());
    cuda::hidden_forward_eval(
        o.input(), device.weights, {gamma.data(), beta.data(), threshold.data()},
        {mean.data(), var.data()}, state, out,
        codes ? static_cast<void*>(out_codes.data()) : out_values.data(), kStream);
    if (codes) {
      EXPECT_EQ(state.scalars.to_host(kStream)[0].act_scale, scale);
      const auto actual = o.written_codes(from_cuda(out_codes, o.out, out_pad));
      const auto wanted = o.written_codes(from_cpu<uint8_t>(expected, o.out));
      if (o.integers() && o.shape.weight_bits != kFloatBits) {
        EXPECT_EQ(actual, wanted);
      } else {
        // Float sums may round to a neighbouring code.
        for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(actual[i], wanted[i], 1) << i;
      }
      EXPECT_GT(*std::ranges::max_element(wanted), 0);
      EXPECT_EQ(*std::ranges::min_element(wanted) < 0, o.shape.smallest_code < 0);
    } else {
      expect_close(from_cuda(out_values, o.out, out_pad), from_cpu<float>(expected, o.out), "out");
    }
  });
}

// A training step of a hidden layer on both backends.
TEST_P(CudaOpsTest, TrainingStepOfAHiddenLayer) {
  const Operands o(GetParam());
  const LayerShape& s = o.shape;
  const bool codes = s.act_bits != kFloatBits;
  const int out_pad = o.out.length == 1 ? 0 : 1;
  constexpr double kExtra = 0.625;  // gradient of the scale from elsewhere
  const size_t channels = o.gamma.size();

  cpu::Weights cpu_weights;
  cpu_weights.compile(s, o.weight, o.mask, PassPlan::all(Kernel::kSparse), true);
  Tensor out =
      Tensor::tile({o.out.frames, o.out.length, o.out.channels, out_pad}, o.shape.output_type());
  Floats mean = o.mean, var = o.var, dw(o.weight.size()), dgamma(channels), dbeta(channels);
  const cpu::HiddenParameters parameters{o.gamma, o.beta, o.test.threshold};
  cpu::HiddenState cpu_state;
  const cpu::Input cpu_x{o.cpu_x.view(), o.x_scale};
  cpu::hidden_forward_train(cpu_x, cpu_weights, parameters, o.test.collect, {mean, var}, cpu_state,
                            out.view(), nullptr, {});
  const Dims seen{o.in.frames, s.length + o.test.more, s.in_channels};
  Tensor dx = Tensor::tile({seen.frames, seen.length, seen.channels, 0}, kF32);
  cpu::HiddenGradients cpu_gradients{dw, dgamma, dbeta};
  const Tensor dp = cpu_tile(o.dp, o.out, 0, kF32);
  cpu::hidden_backward({cpu_x, &cpu_weights, &cpu_state, std::as_const(out).view()}, parameters,
                       dp.view(), kExtra, cpu_gradients, dx.view(), nullptr, {});
  for (size_t i = 0; i < o.mask.size(); ++i) {
    if (o.mask[i] == 0) dw[i] = 0;
  }

  const Buffer<float> gamma = upload(o.gamma), beta = upload(o.beta),
                      threshold = upload(Floats{o.test.threshold}),
                      device_dp = cuda_tile(o.dp, o.out, 0);
  const Buffer<double> extra = upload(std::vector<double>{kExtra});
  const cuda::Tile out_tile{o.out.frames, o.out.length, o.out.channels, out_pad};
  for_each_kernel(o, [&](Kernel kernel) {
    DeviceWeights device(o, kernel);
    cuda::HiddenState state;
    Buffer<float> running_mean = upload(o.mean), running_var = upload(o.var);
    Buffer<uint8_t> out_codes(codes ? out_tile.code_bytes() : 0);
    Buffer<float> out_values(codes ? 0 : out_tile.floats());
    const cuda::HiddenParameters device_parameters{gamma.data(), beta.data(), threshold.data()};
    cuda::hidden_forward_train(o.input(), device.weights, device_parameters, o.test.collect,
                               {running_mean.data(), running_var.data()}, state, out_tile,
                               codes ? static_cast<void*>(out_codes.data()) : out_values.data(),
                               kStream);
    expect_close(running_mean.to_host(kStream), mean, "running mean");
    expect_close(running_var.to_host(kStream), var, "running variance");
    const cuda::HiddenState::Scalars scalars = state.scalars.to_host(kStream)[0];
    if (codes) {
      ASSERT_NEAR(scalars.threshold, cpu_state.threshold, kTolerance * cpu_state.threshold);
      const auto actual = o.written_codes(from_cuda(out_codes, o.out, out_pad));
      const auto wanted = o.written_codes(from_cpu<uint8_t>(out, o.out));
      int64_t different = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_NEAR(actual[i], wanted[i], 1) << "code " << i;
        different += actual[i] != wanted[i];
      }
      EXPECT_LE(different, std::ceil(kRoundingSlack * static_cast<double>(wanted.size())));
    } else {
      expect_close(from_cuda(out_values, o.out, out_pad), from_cpu<float>(out, o.out), "out");
    }
    ASSERT_EQ(scalars.has_statistic == 1, cpu_state.statistic_row >= 0 && cpu_state.collected);
    if (scalars.has_statistic == 1) {
      EXPECT_EQ(scalars.statistic_place,
                (cpu_state.statistic_row * s.out_channels + cpu_state.statistic_channel) * kLanes +
                    cpu_state.statistic_lane);
      EXPECT_NEAR(scalars.statistic_xhat, cpu_state.statistic_xhat, 1e-4);
    }

    Buffer<float> device_dx(o.in.count() / static_cast<size_t>(o.in.frames) *
                            static_cast<size_t>(out_tile.lanes()));
    for (float* wanted_dx : {device_dx.data(), static_cast<float*>(nullptr)}) {
      SCOPED_TRACE(wanted_dx != nullptr ? "with dx" : "without dx");
      Buffer<float> device_dw(dw.size()), device_dgamma(channels), device_dbeta(channels),
          device_dthreshold(1);
      // Kernels for surviving weights do not write the others.
      cuda::set_bytes(device_dw.data(), 0, dw.size() * sizeof(float), kStream);
      cuda::hidden_backward(
          o.input(), device.weights, device_parameters, state, device_dp.data(), extra.data(),
          {device_dw.data(), device_dgamma.data(), device_dbeta.data(), device_dthreshold.data()},
          wanted_dx, kStream);
      device.weights.add_up_gradients(kStream);
      Floats actual_dw = device_dw.to_host(kStream);
      for (size_t i = 0; i < o.mask.size(); ++i) {
        if (o.mask[i] != 0) continue;
        if (skips_zeros(kernel)) {
          EXPECT_EQ(actual_dw[i], 0.0F) << i;
        }
        actual_dw[i] = 0;
      }
      expect_close(actual_dw, dw, "weight gradient");
      expect_close(device_dgamma.to_host(kStream), dgamma, "gamma gradient");
      expect_close(device_dbeta.to_host(kStream), dbeta, "beta gradient");
      EXPECT_NEAR(device_dthreshold.to_host(kStream)[0], cpu_gradients.threshold,
                  kThresholdTolerance * std::max(1.0, std::fabs(cpu_gradients.threshold)));
    }
    expect_close(from_cuda(device_dx, o.in, 0), from_cpu<float>(dx, seen), "input gradient");
  });
}

// That the test above covers what forms_dy_on_chip(), and that hidden layers of VGG10 do.
TEST_P(CudaOpsTest, LayersOfThreeTapsHaveNoDyInMemory) {
  const Operands o(GetParam());
  const LayerShape& s = o.shape;
  const DeviceWeights device(o, Kernel::kDense);
  const bool fits = s.in_channels <= 64 && s.out_channels <= 64;
  const bool expected = s.taps == 3 && s.length > 1 && s.pool <= 2 && s.length % s.pool == 0 &&
                        o.test.more == 0 && o.integers() && fits && s.weight_bits != kFloatBits &&
                        s.act_bits != kFloatBits && o.input().type == kU8;
  if (fits) {
    EXPECT_EQ(cuda::forms_dy_on_chip(o.input(), device.weights), expected);
  }
  const DeviceWeights sparse(o, Kernel::kSparse);
  EXPECT_FALSE(cuda::forms_dy_on_chip(o.input(), sparse.weights));
}

void check_output_layer(const Operands& o, const Floats& gain) {
  const LayerShape& s = o.shape;
  const Dims logits_dims{o.out.frames, 1, s.out_channels};
  cpu::Weights cpu_weights;
  cpu_weights.compile(s, o.weight, o.mask, PassPlan::all(Kernel::kSparse), true);
  Tensor logits = Tensor::tile({o.out.frames, 1, s.out_channels, 0}, kF32);
  const cpu::Input cpu_x{o.cpu_x.view(), o.x_scale};
  cpu::output_forward(cpu_x, cpu_weights, {o.bias, gain}, logits.view(), {});
  Floats dw(o.weight.size()), dbias(o.bias.size());
  cpu::OutputGradients cpu_gradients{dw, dbias};
  const Dims seen{o.in.frames, 1, s.in_channels};
  Tensor dx = Tensor::tile({seen.frames, 1, seen.channels, 0}, kF32);
  const Tensor dlogits = cpu_tile(o.dp, logits_dims, 0, kF32);
  cpu::output_backward(cpu_x, cpu_weights, {o.bias, gain}, dlogits.view(), cpu_gradients, dx.view(),
                       {});
  for (size_t i = 0; i < o.mask.size(); ++i) {
    if (o.mask[i] == 0) dw[i] = 0;
  }

  const Buffer<float> bias = upload(o.bias), device_gain = upload(gain.empty() ? Floats{1} : gain);
  const cuda::OutputParameters parameters{bias.data(), gain.empty() ? nullptr : device_gain.data()};
  for_each_kernel(o, [&](Kernel kernel) {
    Buffer<float> device_dlogits = cuda_tile(o.dp, logits_dims, 0);
    DeviceWeights device(o, kernel);
    const cuda::Tile out{o.out.frames, 1, s.out_channels, 0};
    Buffer<float> device_logits(out.floats()), device_dw(dw.size()), device_dbias(dbias.size()),
        device_dx(o.in.count() / static_cast<size_t>(o.in.frames) *
                  static_cast<size_t>(out.lanes()));
    Buffer<double> sums(dbias.size()), scales(2);
    cuda::output_forward(o.input(), device.weights, parameters, device_logits.data(), kStream);
    const Floats actual = from_cuda(device_logits, logits_dims, 0);
    if (o.integers() && s.weight_bits != kFloatBits) {
      EXPECT_EQ(actual, from_cpu<float>(logits, logits_dims));
    } else {
      expect_close(actual, from_cpu<float>(logits, logits_dims), "logits");
    }
    cuda::set_bytes(device_dw.data(), 0, dw.size() * sizeof(float), kStream);
    cuda::output_backward(o.input(), device.weights, parameters, device_dlogits.data(),
                          {device_dw.data(), device_dbias.data(), sums.data(), scales.data()},
                          device_dx.data(), kStream);
    device.weights.add_up_gradients(kStream);
    Floats actual_dw = device_dw.to_host(kStream);
    for (size_t i = 0; i < o.mask.size(); ++i) {
      if (o.mask[i] == 0) actual_dw[i] = 0;
    }
    expect_close(actual_dw, dw, "weight gradient");
    expect_close(device_dbias.to_host(kStream), dbias, "bias gradient");
    expect_close(from_cuda(device_dx, o.in, 0), from_cpu<float>(dx, seen), "input gradient");
    const std::vector<double> of_scales = scales.to_host(kStream);
    EXPECT_NEAR(of_scales[0], cpu_gradients.weight_scale, kTolerance);
    EXPECT_NEAR(of_scales[1], cpu_gradients.x_scale, kTolerance);
  });
}

TEST_P(CudaOpsTest, OutputLayer) {
  const Operands o(GetParam());
  if (o.shape.length != 1) return;  // an output layer has one position
  check_output_layer(o, {});
  Floats gain(o.bias.size());
  for (size_t i = 0; i < gain.size(); ++i) gain[i] = 0.2F + 0.8F / static_cast<float>(1 + i);
  check_output_layer(o, gain);
}

TEST_P(CudaOpsTest, ResultsAreTheSameFromRunToRun) {
  const Operands o(GetParam());
  for_each_kernel(o, [&](Kernel kernel) {
    DeviceWeights device(o, kernel);
    const Buffer<float> gamma = upload(o.gamma), beta = upload(o.beta),
                        threshold = upload(Floats{o.test.threshold}),
                        dp = cuda_tile(o.dp, o.out, 0);
    const bool codes = o.shape.act_bits != kFloatBits;
    const cuda::Tile out{o.out.frames, o.out.length, o.out.channels, 0};
    Buffer<float> out_memory(out.floats() + out.code_bytes());
    std::vector<Floats> results;
    for (int run = 0; run < 2; ++run) {
      cuda::HiddenState state;
      Buffer<float> mean = upload(o.mean), var = upload(o.var), dw(o.weight.size()),
                    dgamma(o.gamma.size()), dbeta(o.gamma.size()), dthreshold(1);
      cuda::set_bytes(dw.data(), 0, dw.size() * sizeof(float), kStream);
      const cuda::HiddenParameters parameters{gamma.data(), beta.data(), threshold.data()};
      cuda::hidden_forward_train(o.input(), device.weights, parameters, o.test.collect && codes,
                                 {mean.data(), var.data()}, state, out, out_memory.data(), kStream);
      cuda::hidden_backward(o.input(), device.weights, parameters, state, dp.data(), nullptr,
                            {dw.data(), dgamma.data(), dbeta.data(), dthreshold.data()}, nullptr,
                            kStream);
      device.weights.add_up_gradients(kStream);
      results.push_back(dw.to_host(kStream));
      for (const Buffer<float>* more : {&dgamma, &dbeta, &dthreshold, &mean, &var}) {
        const Floats values = more->to_host(kStream);
        results.back().insert(results.back().end(), values.begin(), values.end());
      }
    }
    EXPECT_EQ(results[0], results[1]);
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaOpsTest, testing::ValuesIn(kCases),
                         [](const auto& c) { return std::string(c.param.name); });

class CudaOpTest : public CudaOpsTest {};

TEST_F(CudaOpTest, FramesArePacked) {
  for (const Dims& dims : {Dims{5, 37, 2}, Dims{70, 16, 7}, Dims{32, 1, 4}}) {
    std::cout << "seed " << kSeed << ", " << dims.frames << " frames\n";
    Random random(kSeed, "pack");
    std::vector<int8_t> codes;
    Floats values;
    for (size_t i = 0; i < dims.count(); ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random.below(256)) - 128));
      values.push_back(random.uniform(-1.0F, 1.0F));
    }
    const cuda::Tile tile{dims.frames, dims.length, dims.channels, 3};
    const Buffer<int8_t> device_codes = upload(codes), out_codes(tile.code_bytes());
    const Buffer<float> device_values = upload(values), out_values(tile.floats());
    cuda::pack_frames(device_codes.data(), tile, out_codes.data(), kStream);
    cuda::pack_frames(device_values.data(), tile, out_values.data(), kStream);
    EXPECT_EQ(from_cuda(out_codes, dims, 3), codes);
    EXPECT_EQ(from_cuda(out_values, dims, 3), values);

    // The same in the opposite order.
    std::vector<uint32_t> which;
    for (int64_t n = dims.frames; n-- > 0;) which.push_back(static_cast<uint32_t>(n));
    const Buffer<uint32_t> device_which = upload(which);
    cuda::pack_frames(device_codes.data(), tile, out_codes.data(), kStream, device_which.data());
    cuda::pack_frames(device_values.data(), tile, out_values.data(), kStream, device_which.data());
    const size_t of_frame = dims.count() / which.size();
    std::vector<int8_t> codes_back;
    Floats values_back;
    for (const uint32_t n : which) {
      const auto begin = static_cast<ptrdiff_t>(n * of_frame);
      const auto end = begin + static_cast<ptrdiff_t>(of_frame);
      codes_back.insert(codes_back.end(), codes.begin() + begin, codes.begin() + end);
      values_back.insert(values_back.end(), values.begin() + begin, values.begin() + end);
    }
    EXPECT_EQ(from_cuda(out_codes, dims, 3), codes_back);
    EXPECT_EQ(from_cuda(out_values, dims, 3), values_back);
  }
}

#ifndef FMP_SIMT  // which would take minutes
// More blocks of positions than a grid has in y.
TEST_F(CudaOpTest, FramesMayBeLong) {
  const Dims dims{1, 17 * 65536, 2};
  Random random(kSeed, "long");
  std::vector<int8_t> codes(dims.count());
  for (int8_t& code : codes) code = static_cast<int8_t>(random.below(256) - 128);
  const cuda::Tile tile{dims.frames, dims.length, dims.channels, 1};
  const Buffer<int8_t> device_codes = upload(codes), out(tile.code_bytes());
  cuda::pack_frames(device_codes.data(), tile, out.data(), kStream);
  EXPECT_EQ(from_cuda(out, dims, 1), codes);
}
#endif

// Gradients that are multiplied by codes are rounded to two bf16, with an error of 2^-17 at
// most; sums are rounded as in fp32. Magnitudes span 2^20, so that a part of a gradient that is
// missing anywhere is seen.
TEST_F(CudaOpTest, GradientsByCodesHaveSixteenBits) {
  constexpr double kBound = 0x1.6a09e6p-18;  // 2^-17.5
  const LayerShape layer{21, 35, 3, 11, 1, 8, 8, 8};
  const cuda::Tile x_tile{70, layer.length, layer.in_channels, 1},
      dy_tile{70, layer.length, layer.out_channels, 1};
  const Dims in{70, layer.length, layer.in_channels}, out{70, layer.length, layer.out_channels};
  Random random(kSeed, "exact");
  std::vector<uint8_t> codes(in.count());
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(256));
  Floats dy(out.count()), weight(static_cast<size_t>(layer.weights()));
  for (float& g : dy) {
    g = std::ldexp(random.uniform(-1.0F, 1.0F), static_cast<int>(random.below(20)) - 30);
  }
  for (float& w : weight) w = random.uniform(-0.1F, 0.1F);

  const cuda::ConvShape shape = cuda::conv_shape(layer, x_tile);
  const Buffer<float> device_weight = upload(weight), device_dy = cuda_tile(dy, out, 1),
                      scale = upload(Floats{1.0F}),
                      dx(cuda::Tile{70, layer.length, layer.in_channels, 0}.floats()),
                      dw(weight.size());
  const Buffer<uint8_t> device_codes = cuda_tile(codes, in, 1);
  cuda::Weights weights;
  weights.set_mask(shape, {}, kStream);
  weights.compile(layer, shape, device_weight.data(), true, {}, true, kStream);
  weights.backward_data(dy_tile, device_dy.data(), dx.data(), kStream);
  weights.backward_weight({x_tile, kU8, device_codes.data(), scale.data()}, dy_tile,
                          device_dy.data(), dw.data(), kStream);
  weights.add_up_gradients(kStream);
  const double weight_scale = static_cast<double>(weights.summary(kStream).scale);

  std::vector<double> exact_dx(in.count()), size_dx(in.count()), exact_dw(weight.size()),
      size_dw(weight.size());
  out.for_each([&](size_t i, int64_t n, int l, int o) {
    for (int t = 0; t < layer.taps; ++t) {
      const int row = l + t - 1;
      if (row < 0 || row >= layer.length) continue;
      for (int c = 0; c < layer.in_channels; ++c) {
        const size_t x = static_cast<size_t>((n * layer.length + row) * layer.in_channels + c);
        const size_t w = static_cast<size_t>((o * layer.taps + t) * layer.in_channels + c);
        const double code = std::nearbyint(static_cast<double>(weight[w]) / weight_scale);
        const double by_weight = static_cast<double>(dy[i]) * code * weight_scale;
        const double by_code = static_cast<double>(dy[i]) * codes[x];
        exact_dx[x] += by_weight;
        size_dx[x] += std::fabs(by_weight);
        exact_dw[w] += by_code;
        size_dw[w] += std::fabs(by_code);
      }
    }
  });
  const auto expect_exact = [&](const Floats& actual, const std::vector<double>& exact,
                                const std::vector<double>& size, const char* what) {
    double worst = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(actual[i]) - exact[i]) / size[i]);
    }
    EXPECT_LE(worst, kBound) << what << ": 2^" << std::log2(worst);
    EXPECT_GT(worst, 0) << what;
  };
  expect_exact(from_cuda(dx, in, 0), exact_dx, size_dx, "input gradient");
  expect_exact(dw.to_host(kStream), exact_dw, size_dw, "weight gradient");
}

void expect_loss_of_the_cpu(int64_t frames, const LossOptions& options, bool with_teacher) {
  constexpr int kClasses = 7;
  const Dims dims{frames, 1, kClasses};
  Random random(kSeed, "softmax");
  Floats values, soft;
  std::vector<uint8_t> labels, predicted(static_cast<size_t>(frames));
  for (size_t i = 0; i < dims.count(); ++i) {
    values.push_back(random.uniform(-8.0F, 8.0F));
    if (with_teacher) soft.push_back(random.uniform(0.0F, 2.0F / kClasses));
  }
  for (int64_t n = 0; n < frames; ++n) labels.push_back(static_cast<uint8_t>(random.below(7)));
  const Tensor logits = cpu_tile(values, dims, 0, kF32);
  Tensor gradient = Tensor::tile({frames, 1, kClasses, 0}, kF32);
  gradient.fill_zero();
  const cpu::LossResult expected = cpu::softmax_cross_entropy(
      logits.view(), {labels, soft, options}, gradient.view(), predicted);

  const Buffer<float> device_logits = cuda_tile(values, dims, 0),
                      device_gradient(device_logits.size());
  const Buffer<uint8_t> device_labels = upload(labels), device_predicted(labels.size());
  const Buffer<float> device_soft = upload(with_teacher ? soft : Floats(1));
  const Buffer<cuda::LossResult> partial(cuda::loss_partials(frames));
  cuda::softmax_cross_entropy(
      frames, kClasses, device_logits.data(),
      {device_labels.data(), with_teacher ? device_soft.data() : nullptr, options},
      device_gradient.data(), device_predicted.data(), partial.data(), kStream);
  const cuda::LossResult result = partial.to_host(kStream)[0];
  EXPECT_NEAR(result.loss_sum, expected.loss_sum, 1e-12 * std::fabs(expected.loss_sum));
  EXPECT_EQ(result.correct, expected.correct);
  EXPECT_EQ(device_predicted.to_host(kStream), predicted);
  expect_close(from_cuda(device_gradient, dims, 0), from_cpu<float>(gradient, dims), "logits",
               1e-6);
}

TEST_F(CudaOpTest, SoftmaxCrossEntropy) {
  for (const int64_t frames : {1, 33, 300}) {
    for (const LossOptions& options : {LossOptions{}, {0.1, 0, 1}, {0, 1, 2}, {0.05, 0.5, 3}}) {
      SCOPED_TRACE(testing::Message() << frames << " frames, smoothing " << options.label_smoothing
                                      << ", weight " << options.soft_weight);
      expect_loss_of_the_cpu(frames, options, false);
      if (options.soft_weight != 0) expect_loss_of_the_cpu(frames, options, true);
    }
  }
}

TEST_F(CudaOpTest, AdamFollowsTheCpuBitByBit) {
  const AdamOptions options{0.01, 0.9, 0.999, 1e-8};
  constexpr size_t kCount = 1037;
  Random random(kSeed, "adam");
  Floats value(kCount), m(kCount), v(kCount), gradient(kCount);
  std::vector<uint8_t> mask(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    value[i] = random.uniform(-1.0F, 1.0F);
    mask[i] = i % 3 == 0 ? 0 : 1;
  }
  const Buffer<float> device_value = upload(value), device_m = upload(m), device_v = upload(v);
  const Buffer<uint8_t> device_mask = upload(mask);
  const Buffer<unsigned> not_finite = upload(std::vector<unsigned>{0});
  for (int step = 1; step <= 5; ++step) {
    for (float& g : gradient) g = random.uniform(-1.0F, 1.0F);
    cpu::adam_step(options, step, gradient, mask, value, m, v);
    const Buffer<float> device_gradient = upload(gradient);
    const Buffer<cuda::AdamFactors> factors =
        upload(std::vector<cuda::AdamFactors>{cuda::adam_factors(options, step)});
    cuda::adam_step(factors.data(), kCount, device_gradient.data(), device_mask.data(),
                    device_value.data(), device_m.data(), device_v.data(), not_finite.data(),
                    kStream);
  }
  EXPECT_EQ(not_finite.to_host(kStream)[0], 0U);
  EXPECT_EQ(device_value.to_host(kStream), value);
  EXPECT_EQ(device_m.to_host(kStream), m);
  EXPECT_EQ(device_v.to_host(kStream), v);
}

TEST_F(CudaOpTest, AdamTellsOfValuesThatAreNotFinite) {
  const Buffer<cuda::AdamFactors> factors =
      upload(std::vector<cuda::AdamFactors>{cuda::adam_factors({}, 1)});
  const std::vector<uint8_t> mask = {1, 0, 1};
  for (const size_t bad : {0, 1, 2}) {
    for (const float g :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F}) {
      Floats gradient(3, 0.5F);
      gradient[bad] = g;
      const Buffer<float> device_gradient = upload(gradient), value = upload(Floats(3, 1.0F)),
                          m = upload(Floats(3)), v = upload(Floats(3));
      const Buffer<uint8_t> device_mask = upload(mask);
      const Buffer<unsigned> not_finite = upload(std::vector<unsigned>{0});
      cuda::adam_step(factors.data(), 3, device_gradient.data(), device_mask.data(), value.data(),
                      m.data(), v.data(), not_finite.data(), kStream);
      const bool expected = mask[bad] != 0 && std::isnan(value.to_host(kStream)[bad]);
      EXPECT_EQ(not_finite.to_host(kStream)[0], expected ? 1U : 0U) << bad << " " << g;
      if (std::isnan(g)) {
        EXPECT_EQ(expected, mask[bad] != 0);
      }
    }
  }
}

TEST_F(CudaOpTest, ReleasedMemoryIsUsedAgain) {
  const cuda::MemoryFigures before = cuda::memory_figures();
  {
    const cuda::MemoryCache cache;
    const void* first = Buffer<float>(1000).data();  // released at once
    EXPECT_EQ(cuda::memory_figures().now, before.now);
    EXPECT_EQ(cuda::memory_figures().held, before.held + 4000);
    const Buffer<float> smaller(950), other(1000);
    EXPECT_EQ(smaller.data(), first);
    EXPECT_NE(other.data(), first);
    EXPECT_EQ(cuda::memory_figures().held, before.held + 8000);
    const Buffer<float> much_smaller(100);
    EXPECT_EQ(cuda::memory_figures().held, before.held + 8400);
  }
  EXPECT_EQ(cuda::memory_figures().held, before.held);
  EXPECT_GE(cuda::memory_figures().held_peak, before.held + 8400);
}

// Work of the stream that had the memory may still be under way.
TEST_F(CudaOpTest, ReleasedMemoryStaysWithItsStream) {
  const cuda::MemoryCache cache;
  const cuda::OwnedStream first, second;
  const void* released = nullptr;
  {
    const cuda::MemoryStream memory(first);
    const Buffer<float> buffer(1000);
    cuda::set_bytes(buffer.data(), 1, 4000, first);
    released = buffer.data();
  }
  {
    const cuda::MemoryStream memory(second);
    const Buffer<float> buffer(1000);
    EXPECT_NE(buffer.data(), released);
    cuda::set_bytes(buffer.data(), 2, 4000, second);
    const cuda::MemoryStream inner(first);
    const Buffer<float> again(1000);
    EXPECT_EQ(again.data(), released);
    cuda::set_bytes(again.data(), 3, 4000, first);
  }
  const Buffer<float> of_neither(1000);  // for the default stream
  EXPECT_NE(of_neither.data(), released);
  cuda::set_bytes(of_neither.data(), 4, 4000, nullptr);
  for (const cuda::Stream stream : {cuda::Stream{first}, cuda::Stream{second}, kStream}) {
    EXPECT_NO_THROW(cuda::synchronize(stream));
  }
}

TEST_F(CudaOpTest, CopiesOfNothingNeedNoMemory) {
  EXPECT_NO_THROW(cuda::copy_to_device(nullptr, nullptr, 0, kStream));
  EXPECT_NO_THROW(cuda::copy_to_host(nullptr, nullptr, 0, kStream));
  EXPECT_NO_THROW(cuda::copy_on_device(nullptr, nullptr, 0, kStream));
  EXPECT_NO_THROW(cuda::set_bytes(nullptr, 0, 0, kStream));
  EXPECT_TRUE(upload(Floats()).empty());
}

TEST_F(CudaOpTest, NonFiniteWeightsAreRefused) {
  const LayerShape layer{3, 2, 1, 1, 1, 8, 8, 8};
  const cuda::ConvShape shape = cuda::conv_shape(layer, {1, 1, 3, 0});
  Floats weight(6, 0.5F);
  weight[4] = std::numeric_limits<float>::quiet_NaN();
  const Buffer<float> device = upload(weight);
  cuda::Weights weights;
  weights.set_mask(shape, {}, kStream);
  weights.compile(layer, shape, device.data(), true, {}, true, kStream);
  EXPECT_THROW(weights.summary(kStream), std::domain_error);
  const std::vector<uint8_t> mask = {1, 1, 1, 1, 0, 1};  // a masked weight is not looked at
  weights.set_mask(shape, mask, kStream);
  weights.compile(layer, shape, device.data(), true, {}, true, kStream);
  EXPECT_NO_THROW(weights.summary(kStream));
}

TEST_F(CudaOpTest, LibrariesRunOnlyWhatIsExactOnTheirStream) {
  const LayerShape layer{3, 2, 1, 1, 1, 8, 8, 8}, wide{600, 2, 1, 1, 1, 8, 8, 8};
  EXPECT_TRUE(cuda::exact_in_floats(layer));
  EXPECT_TRUE(cuda::exact_in_floats({518, 2, 1, 1, 1, 8, 8, 8}));
  EXPECT_FALSE(cuda::exact_in_floats({519, 2, 1, 1, 1, 8, 8, 8}));
  EXPECT_TRUE(cuda::exact_in_floats({519, 2, 1, 1, 1, 8, 7, 8}));
  const auto compile = [](const LayerShape& of, cuda::Libraries* handles, const PassPlan& plan) {
    const cuda::ConvShape shape = cuda::conv_shape(of, {1, 1, of.in_channels, 0});
    const Buffer<float> device = upload(Floats(static_cast<size_t>(of.weights()), 0.5F));
    cuda::Weights weights;
    weights.use_libraries(handles);
    weights.set_mask(shape, {}, kStream);
    weights.compile(of, shape, device.data(), true, plan, true, kStream);
    cuda::synchronize(kStream);
  };
  for (const Kernel kernel : {Kernel::kCublas, Kernel::kCusparse}) {
    EXPECT_NO_THROW(compile(layer, libraries.get(), PassPlan::all(kernel)));
    EXPECT_THROW(compile(layer, nullptr, PassPlan::all(kernel)), std::invalid_argument);
    EXPECT_THROW(compile(wide, libraries.get(), PassPlan::all(kernel)), std::invalid_argument);
    EXPECT_NO_THROW(compile(wide, libraries.get(), {Kernel::kDense, kernel, kernel}));
  }
}

TEST_F(CudaOpTest, TilesThatALayerDoesNotReadAreRefused) {
  const LayerShape layer{3, 2, 3, 8, 1, 8, 8, 8};
  EXPECT_NO_THROW(cuda::conv_shape(layer, {5, 8, 3, 1}));
  EXPECT_NO_THROW(cuda::conv_shape(layer, {5, 9, 3, 1}));  // which the last position reads
  for (const cuda::Tile& tile :
       {cuda::Tile{5, 8, 4, 1}, {5, 7, 3, 1}, {5, 10, 3, 1}, {5, 8, 3, 0}}) {
    EXPECT_THROW(cuda::conv_shape(layer, tile), std::invalid_argument);
  }
}

TEST_F(CudaOpTest, MemoryIsCounted) {
  const cuda::MemoryFigures before = cuda::memory_figures();
  {
    const Buffer<float> buffer(1000);
    EXPECT_EQ(cuda::memory_figures().now, before.now + 4000);
  }
  EXPECT_EQ(cuda::memory_figures().now, before.now);
  EXPECT_GE(cuda::memory_figures().peak, before.now + 4000);
}

TEST_F(CudaOpTest, OutOfMemorySaysWhatWasAskedAndWhatIsFree) {
  try {
    const Buffer<char> buffer(size_t{1} << 50);
    FAIL() << "a pebibyte was allocated";
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("1073741824 MiB with "), std::string::npos) << message;
    EXPECT_NE(message.find(" free; a smaller batch needs less"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace fmp
