// SPDX-License-Identifier: MIT
// Operations without weights on the CUDA backend against the CPU's, which join_test.cc compares
// with plain code: codes, scales and gradients are equal to the bit, sums over the batch agree.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "framework/network/tensor.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "tests/join_cases.h"

namespace fmp {
namespace {

constexpr cuda::Stream kStream = nullptr;
constexpr int64_t kFrames = 37;
constexpr int kOutPad = 2;
constexpr double kScaleGradient = 0.37;

// Where an element of [N][L][C] lies in a tile of the device.
size_t code_place(const cuda::Tile& tile, int64_t n, int l, int c) {
  return static_cast<size_t>(
      (((l + tile.pad) * tile.quads() + c / cuda::kQuad) * tile.lanes() + n) * cuda::kQuad +
      c % cuda::kQuad);
}
size_t value_place(const cuda::Tile& tile, int64_t n, int l, int c) {
  return static_cast<size_t>(((l + tile.pad) * tile.channels + c) * tile.lanes() + n);
}
cuda::Tile tile_of(const TileShape& shape) {
  return {shape.frames, shape.length, shape.channels, shape.pad};
}

cuda::DeviceBuffer<float> upload_floats(const Tensor& from) {
  const TileShape& shape = from.tile_shape();
  std::vector<float> values(tile_of(shape).floats(), 0.0F);
  for_each(shape, [&](int64_t n, int l, int c) {
    values[value_place(tile_of(shape), n, l, c)] = from.data<float>()[place(shape, n, l, c)];
  });
  return {std::span<const float>(values), kStream};
}
cuda::DeviceBuffer<uint8_t> upload_codes(const Tensor& from) {
  const TileShape& shape = from.tile_shape();
  std::vector<uint8_t> codes(tile_of(shape).code_bytes(), 0);
  for_each(shape, [&](int64_t n, int l, int c) {
    codes[code_place(tile_of(shape), n, l, c)] = from.data<uint8_t>()[place(shape, n, l, c)];
  });
  return {std::span<const uint8_t>(codes), kStream};
}
template <typename T>
T download(const T* value) {
  T result{};
  cuda::copy_to_host(&result, value, sizeof(T), kStream);
  cuda::synchronize(kStream);
  return result;
}

class CudaJoinTest : public testing::TestWithParam<JoinCase> {
 protected:
  void SetUp() override {
    const char* why = "";
    if (!cuda::device_available(&why)) GTEST_SKIP() << why;
  }
};

TEST_P(CudaJoinTest, EqualsTheCpu) {
  JoinCase test = GetParam();
  test.frames = kFrames;
  JoinOperands o(test);
  const LayerShape& shape = o.shape;
  const std::vector<cpu::Input> cpu_inputs = o.inputs();
  std::vector<Tensor>& on_cpu = o.before;
  std::vector<cuda::DeviceBuffer<uint8_t>> device_codes;
  std::vector<cuda::DeviceBuffer<float>> scales, on_device;
  std::vector<cuda::Input> inputs;
  for (size_t i = 0; i < o.codes.size(); ++i) {
    const Tensor& x = o.codes[i];
    device_codes.push_back(upload_codes(x));
    scales.emplace_back(std::span<const float>(&test.inputs[i].scale, 1), kStream);
    inputs.push_back(
        {tile_of(x.tile_shape()), x.type(), device_codes.back().data(), scales.back().data()});
    on_device.push_back(upload_floats(on_cpu[i]));
  }

  const TileShape out_shape{kFrames, test.length / test.pool, shape.out_channels, kOutPad};
  const cuda::Tile out_tile = tile_of(out_shape);
  Tensor expected = Tensor::tile(out_shape, shape.output_type());
  expected.fill_zero();
  cpu::JoinState cpu_state;
  cpu::join_forward_train(test.whole_join(), shape, cpu_inputs, test.threshold, test.collect,
                          cpu_state, expected.view(), {});
  const cuda::DeviceBuffer<float> threshold(std::span<const float>(&test.threshold, 1), kStream);
  cuda::HiddenState state;
  cuda::DeviceBuffer<uint8_t> out(out_tile.code_bytes());
  const auto expect_codes = [&] {
    std::vector<uint8_t> wanted(out_tile.code_bytes(), 0);  // also outside of the frames
    for_each(out_shape, [&](int64_t n, int l, int c) {
      wanted[code_place(out_tile, n, l, c)] = expected.data<uint8_t>()[place(out_shape, n, l, c)];
    });
    EXPECT_GT(std::ranges::count_if(wanted, [](uint8_t code) { return code != 0; }), 20);
    EXPECT_EQ(out.to_host(kStream), wanted);
    EXPECT_EQ(download(state.act_scale()), cpu_state.act_scale);
  };
  cuda::join_forward_train(test.whole_join(), shape, inputs, threshold.data(), test.collect, state,
                           nullptr, out_tile, out.data(), kStream);
  expect_codes();
  EXPECT_EQ(state.collected, test.collect);
  cuda::HiddenState evaluated;
  cuda::set_bytes(out.data(), 0xff, out.size(), kStream);
  cuda::join_forward_eval(test.whole_join(), shape, inputs, &state.scalars.data()->threshold,
                          evaluated, out_tile, out.data(), kStream);
  expect_codes();

  std::vector<cpu::JoinGradient> cpu_gradients;
  std::vector<cuda::JoinGradient> gradients;
  for (size_t i = 0; i < on_cpu.size(); ++i) {
    cpu_gradients.push_back({on_cpu[i].view(), test.add});
    gradients.push_back({on_device[i].data(), test.add});
  }
  const double of_threshold =
      cpu::join_backward(test.whole_join(), shape, cpu_inputs, test.threshold, cpu_state,
                         o.dp.view(), kScaleGradient, cpu_gradients, {});
  const cuda::DeviceBuffer<float> device_dp = upload_floats(o.dp);
  const cuda::DeviceBuffer<double> of_scale(std::span<const double>(&kScaleGradient, 1), kStream);
  cuda::DeviceBuffer<float> threshold_gradient(1);
  cuda::join_backward(test.whole_join(), shape, inputs, threshold.data(), state, device_dp.data(),
                      of_scale.data(), gradients, threshold_gradient.data(), nullptr, kStream);
  EXPECT_NEAR(threshold_gradient.to_host(kStream)[0], of_threshold, 1e-4);
  int inexact = 0;
  for (size_t i = 0; i < on_cpu.size(); ++i) {
    const std::vector<float> actual = on_device[i].to_host(kStream);
    const TileShape& tile = on_cpu[i].tile_shape();
    for_each(tile, [&](int64_t n, int l, int c) {
      const float mine = actual[value_place(tile_of(tile), n, l, c)];
      const float cpus = on_cpu[i].data<float>()[place(tile, n, l, c)];
      EXPECT_NEAR(mine, cpus, 1e-4F) << "input " << i << ": " << n << ' ' << l << ' ' << c;
      if (mine != cpus) ++inexact;
    });
  }
  // The percentile's gradient has the rounding of sums over the batch.
  EXPECT_LE(inexact, test.collect ? 2 : 0);
}

INSTANTIATE_TEST_SUITE_P(Joins, CudaJoinTest, testing::ValuesIn(kJoinCases),
                         [](const auto& parameter) { return std::string(parameter.param.name); });

}  // namespace
}  // namespace fmp
