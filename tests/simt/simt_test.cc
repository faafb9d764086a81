// SPDX-License-Identifier: MIT
// The host runtime computes what a device does, and catches what a device may let pass: each fault
// is made on purpose and must be reported with its kernel, block and thread.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/error.h"
#include "tests/simt/nvtx3/nvToolsExt.h"
#include "tests/simt/runtime_fixture.h"
#include "tests/simt/simt_kernels.h"

namespace {

using fmp::cuda::CudaError;

class SimtTest : public RuntimeTest {
 protected:
  // Runs what must fail, and expects all of `parts` in the message.
  static void expect_fault(const std::function<void()>& run,
                           const std::vector<std::string>& parts) {
    try {
      run();
      FAIL() << "no fault, expected: " << parts[0];
    } catch (const CudaError& error) {
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << error.what() << "\nlacks: " << part;
      }
    }
  }
};

TEST_F(SimtTest, GridsCoverOddSizes) {
  constexpr size_t kCount = 257;
  std::vector<float> a(kCount), b(kCount, 1.0F);
  std::iota(a.begin(), a.end(), 0.0F);
  float* device_b = upload(b);
  simt_test::run_scale_add(upload(a), device_b, static_cast<int>(kCount));
  b = download(device_b, kCount);
  for (size_t i = 0; i < kCount; ++i) EXPECT_EQ(b[i], 2.0F * static_cast<float>(i) + 1.0F);
}

TEST_F(SimtTest, BarriersAndShufflesReduce) {
  std::vector<int> values(700);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i * i % 101) - 50;
  int* sums = uninitialised<int>(3);
  simt_test::run_block_sums(upload(values), sums, 700, 3, 256);
  const std::vector<int> result = download(sums, 3);
  for (size_t b = 0; b < 3; ++b) {
    const auto begin = values.begin() + static_cast<ptrdiff_t>(256 * b);
    const auto end = std::min(begin + 256, values.end());
    EXPECT_EQ(result[b], std::accumulate(begin, end, 0));
  }
}

TEST_F(SimtTest, DynamicSharedMemoryIsTheBlocks) {
  std::vector<int> values(1000);
  std::iota(values.begin(), values.end(), 0);
  int* device = upload(values);
  simt_test::run_reverse(device, 1000);
  std::reverse(values.begin(), values.end());
  EXPECT_EQ(download(device, 1000), values);
}

TEST_F(SimtTest, VotesAtomicsAndPermutedBytes) {
  std::vector<int> values(32);
  for (int i = 0; i < 32; ++i) values[static_cast<size_t>(i)] = (i % 3 == 0 ? 1 : -1) * (i + 1);
  values[31] = static_cast<int>(0x807f0102);
  unsigned* ballots = uninitialised<unsigned>(2);
  unsigned* count = upload(std::vector<unsigned>{100});
  unsigned* permuted = uninitialised<unsigned>(32);
  simt_test::run_vote(upload(values), ballots, count, permuted);
  unsigned expected = 0, positive = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if (values[i] <= 0) continue;
    expected |= 1U << i;
    ++positive;
  }
  EXPECT_EQ(download(ballots, 2), (std::vector<unsigned>{expected, 5}));
  EXPECT_EQ(download(count, 1)[0], 100 + positive);
  EXPECT_EQ(download(permuted, 32)[31], 0x80017702U);  // bytes 3, 1, 7 and 0
}

TEST_F(SimtTest, WarpsOrderTheirAccesses) {
  int* out = uninitialised<int>(32);
  simt_test::run_ordered_in_warp(out);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(download(out, 32)[static_cast<size_t>(i)], (i + 1) % 32);
}

TEST_F(SimtTest, HostPointerInAKernel) {
  std::vector<int> host(4);
  expect_fault([&] { simt_test::run_write_at(host.data(), 2); },
               {"write_at", "simt_kernels.cu:", "write of 4 bytes", "pointer to host memory",
                "block (0, 0, 0), thread (0, 0, 0)"});
}

TEST_F(SimtTest, OutOfBounds) {
  int* memory = upload(std::vector<int>(5));
  for (const int index : {-1, 5}) {
    expect_fault([&] { simt_test::run_write_at(memory, index); },
                 {"write_at", "outside every allocation"});
    cudaDeviceReset();
    memory = upload(std::vector<int>(5));
  }
  EXPECT_NO_THROW(simt_test::run_write_at(memory, 4));
}

TEST_F(SimtTest, UseAfterFree) {
  int* memory = upload(std::vector<int>(5));
  ASSERT_EQ(cudaFree(memory), cudaSuccess);
  expect_fault([&] { simt_test::run_write_at(memory, 0); }, {"outside every allocation"});
}

TEST_F(SimtTest, NullPointer) {
  expect_fault([] { simt_test::run_write_at(nullptr, 0); }, {"host memory or to nothing"});
}

TEST_F(SimtTest, ReadOfMemoryThatWasNeverWritten) {
  int* memory = uninitialised<int>(5);
  simt_test::run_write_at(memory, 2);
  int* out = uninitialised<int>(1);
  EXPECT_NO_THROW(simt_test::run_read_at(memory, 2, out));
  expect_fault([&] { simt_test::run_read_at(memory, 3, out); }, {"read_at", "never written"});
}

TEST_F(SimtTest, RaceInSharedMemory) {
  expect_fault([] { simt_test::run_race_in_shared(uninitialised<int>(64)); },
               {"race_in_shared", "race on shared memory", "no barrier between"});
}

TEST_F(SimtTest, RaceBetweenBlocks) {
  expect_fault([] { simt_test::run_race_between_blocks(uninitialised<int>(1)); },
               {"race on device memory", "of another block", "block (1, 0, 0)"});
}

// The last block to count itself may read what the others wrote, with fences on both sides alone.
TEST_F(SimtTest, TheLastBlockNeedsFences) {
  using simt_test::Fence;
  unsigned* arrived = upload(std::vector<unsigned>{0});
  int *parts = uninitialised<int>(3), *sum = uninitialised<int>(1);
  for (int run = 0; run < 2; ++run) {
    simt_test::run_last_block(Fence::kBoth, parts, arrived, sum);
    EXPECT_EQ(download(sum, 1), std::vector<int>{6});
    EXPECT_EQ(download(arrived, 1), std::vector<unsigned>{0});
  }
  expect_fault([&] { simt_test::run_last_block(Fence::kOfWriters, parts, arrived, sum); },
               {"race on device memory", "of another block", "block (2, 0, 0)"});
}
TEST_F(SimtTest, TheOtherBlocksNeedFences) {
  expect_fault(
      [&] {
        simt_test::run_last_block(simt_test::Fence::kNone, uninitialised<int>(3),
                                  upload(std::vector<unsigned>{0}), uninitialised<int>(1));
      },
      {"race on device memory", "of another block", "block (2, 0, 0)"});
}

TEST_F(SimtTest, BarrierInDivergentCode) {
  expect_fault([] { simt_test::run_divergent_barrier(uninitialised<int>(32)); },
               {"divergent_barrier", "barrier in divergent code", "thread (16, 0, 0)"});
}

TEST_F(SimtTest, ThreadThatLeavesBeforeABarrier) {
  expect_fault([] { simt_test::run_left_before_barrier(uninitialised<int>(32)); },
               {"barrier in divergent code", "leaves the kernel"});
}

TEST_F(SimtTest, ShuffleInDivergentCode) {
  expect_fault([] { simt_test::run_divergent_shuffle(uninitialised<int>(32)); },
               {"divergent_shuffle", "wait for each other at different places"});
}

// Fragments as the PTX ISA gives them, element by element: row and column of element i of a lane.
struct MatrixPlace {
  size_t row, column;
};
MatrixPlace place_in_d(size_t lane, size_t i) {
  return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)};
}
// per: elements of a register.
MatrixPlace place_in_a(size_t lane, size_t i, size_t per) {
  return {lane / 4 + (i / per % 2 == 0 ? 0 : 8),
          lane % 4 * per + i % per + (i < 2 * per ? 0 : 4 * per)};
}
MatrixPlace place_in_b(size_t lane, size_t i, size_t per) {
  return {lane % 4 * per + i % per + (i < per ? 0 : 4 * per), lane / 4};
}

// A[16][depth], B[depth][8] and D[16][8] by one warp. Element: how an element is stored; to_bits:
// its bits.
template <typename Sum, typename Element, typename ToBits, typename Run>
std::vector<Sum> multiply(size_t per, const std::vector<Element>& a, const std::vector<Element>& b,
                          const std::vector<Sum>& d, const ToBits& to_bits, const Run& run) {
  const size_t depth = 8 * per, bits = 32 / per;
  std::vector<uint32_t> of_a(32 * 4), of_b(32 * 2);
  std::vector<Sum> of_d(32 * 4);
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t i = 0; i < 4 * per; ++i) {
      const MatrixPlace at = place_in_a(lane, i, per);
      of_a[lane * 4 + i / per] |= to_bits(a[at.row * depth + at.column]) << i % per * bits;
    }
    for (size_t i = 0; i < 2 * per; ++i) {
      const MatrixPlace at = place_in_b(lane, i, per);
      of_b[lane * 2 + i / per] |= to_bits(b[at.row * 8 + at.column]) << i % per * bits;
    }
    for (size_t i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_d(lane, i);
      of_d[lane * 4 + i] = d[at.row * 8 + at.column];
    }
  }
  of_d = run(of_a, of_b, of_d);
  std::vector<Sum> result(d.size());
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_d(lane, i);
      result[at.row * 8 + at.column] = of_d[lane * 4 + i];
    }
  }
  return result;
}

uint32_t bf16_of(float value) { return std::bit_cast<uint32_t>(value) >> 16; }

class TensorCoreTest : public SimtTest {
 protected:
  static std::vector<float> multiply_floats(const std::vector<float>& a,
                                            const std::vector<float>& b,
                                            const std::vector<float>& d) {
    return multiply(2, a, b, d, bf16_of, [](const auto& of_a, const auto& of_b, const auto& of_d) {
      float* sums = upload(of_d);
      simt_test::run_multiply_bf16(upload(of_a), upload(of_b), sums);
      return download(sums, of_d.size());
    });
  }
  static std::vector<int> multiply_bytes(simt_test::Signs signs, const std::vector<int>& a,
                                         const std::vector<int>& b, const std::vector<int>& d) {
    return multiply(
        4, a, b, d, [](int v) { return static_cast<uint32_t>(v) & 0xffU; },
        [&](const auto& of_a, const auto& of_b, const auto& of_d) {
          int* sums = upload(of_d);
          simt_test::run_multiply_bytes(signs, upload(of_a), upload(of_b), sums);
          return download(sums, of_d.size());
        });
  }
  // Multiplies exactly.
  template <typename T>
  static std::vector<T> expected(size_t depth, const std::vector<T>& a, const std::vector<T>& b,
                                 std::vector<T> d) {
    for (size_t row = 0; row < 16; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        for (size_t k = 0; k < depth; ++k) {
          d[row * 8 + column] += a[row * depth + k] * b[k * 8 + column];
        }
      }
    }
    return d;
  }
  // Numbers that are all different in each matrix's neighbourhood.
  static int number(size_t i, int modulus) {
    return static_cast<int>(i * 37 % static_cast<size_t>(modulus));
  }
};

TEST_F(TensorCoreTest, FragmentsOfFloatsAreThoseOfThePtxIsa) {
  std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(number(i, 251) - 125) / 64;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(number(i, 113) - 50);
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i);
  EXPECT_EQ(multiply_floats(a, b, d), expected(16, a, b, d));
}

TEST_F(TensorCoreTest, FragmentsOfBytesAreThoseOfThePtxIsa) {
  using Signs = simt_test::Signs;
  for (const Signs signs : {Signs::kNone, Signs::kOfA, Signs::kBoth}) {
    std::vector<int> a(16 * 32), b(32 * 8), d(16 * 8);
    for (size_t i = 0; i < a.size(); ++i) a[i] = number(i, 256) - (signs == Signs::kNone ? 0 : 128);
    for (size_t i = 0; i < b.size(); ++i) b[i] = number(i, 256) - (signs == Signs::kBoth ? 128 : 0);
    for (size_t i = 0; i < d.size(); ++i) d[i] = 1000 * static_cast<int>(i);
    EXPECT_EQ(multiply_bytes(signs, a, b, d), expected(32, a, b, d)) << static_cast<int>(signs);
  }
}

// 1 has its last bit at 2^-23.
TEST_F(TensorCoreTest, AddendsAreCutOffWhereTheLargestOneEnds) {
  std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8);
  const auto first_sum = [&](float before, const std::vector<float>& products) {
    d[0] = before;
    for (size_t k = 0; k < 16; ++k) {
      a[k] = k < products.size() ? products[k] : 0.0F;
      b[k * 8] = 1.0F;
    }
    return multiply_floats(a, b, d)[0];
  };
  for (const float sign : {1.0F, -1.0F}) {
    const float half_bit = sign * 0x1p-24F, bit = sign * 0x1p-23F;
    EXPECT_EQ(first_sum(sign, {half_bit, half_bit}), sign) << "each one is lost";
    EXPECT_EQ(first_sum(sign, {bit}), sign + bit);
    EXPECT_EQ(first_sum(sign, {bit + half_bit}), sign + bit);
    EXPECT_EQ(first_sum(0, {half_bit, half_bit}), bit) << "among themselves they count";
    EXPECT_EQ(first_sum(0, {sign, half_bit, half_bit}), sign);
    // The second eight come after the sum of the first.
    std::vector<float> late(16);
    late[0] = -sign;
    late[8] = late[9] = half_bit;
    EXPECT_EQ(first_sum(sign, late), bit);
    EXPECT_EQ(first_sum(0, {sign, -sign, half_bit}), 0.0F) << "the largest one cancels";
  }
}

TEST_F(TensorCoreTest, SumsOfBytesMustFit) {
  const std::vector<int> a(16 * 32, 127), b(32 * 8, 127), zero(16 * 8);
  std::vector<int> d(16 * 8, std::numeric_limits<int>::max() - 32 * 127 * 127);
  EXPECT_EQ(multiply_bytes(simt_test::Signs::kBoth, a, b, d)[77], std::numeric_limits<int>::max());
  ++d[77];
  expect_fault([&] { multiply_bytes(simt_test::Signs::kBoth, a, b, d); },
               {"multiply", "does not fit into 32 bits"});
}

TEST_F(TensorCoreTest, AllLanesMustCome) {
  const std::vector<uint32_t> a(32 * 4), b(32 * 2);
  expect_fault(
      [&] {
        simt_test::run_multiply_bf16(upload(a), upload(b), upload(std::vector<float>(32 * 4)), 16);
      },
      {"multiply", "wait for each other at different places"});
  cudaDeviceReset();
  expect_fault([] { simt_test::run_mma_after_exit(uninitialised<int>(32)); },
               {"mma_after_exit", "lane 9 of the mask has left the kernel"});
}

TEST_F(TensorCoreTest, PartsOfAFloatHaveSixteenOfItsBits) {
  std::vector<float> values = {0.0F,          -0.0F,       1.0F,  -1.0F,
                               0x1.fffffep0F, 0x1.8080p3F, 1e38F, -1e-30F};
  for (unsigned i = 0; values.size() < 600; ++i) {
    const float value = std::bit_cast<float>(i * 2654435761U);
    if (std::fabs(value) > 1e-30F && std::fabs(value) < 3e38F) values.push_back(value);
  }
  constexpr size_t kParts = 2;
  uint32_t* parts = uninitialised<uint32_t>(values.size() / 2 * kParts);
  simt_test::run_split_floats(upload(values), parts, static_cast<unsigned>(values.size() / 2));
  const std::vector<uint32_t> of_pairs = download(parts, values.size() / 2 * kParts);
  double worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    double sum = 0;
    for (size_t p = 0; p < kParts; ++p) {
      const uint32_t bits = of_pairs[i / 2 * kParts + p] >> (i % 2 * 16) << 16;
      sum += static_cast<double>(std::bit_cast<float>(bits));
    }
    const double value = static_cast<double>(values[i]);
    EXPECT_NEAR(sum, value, std::fabs(value) * 0x1p-17) << i;
    if (value != 0) worst = std::max(worst, std::fabs(sum - value) / std::fabs(value));
  }
  EXPECT_GT(worst, 0x1p-18);
}

TEST_F(SimtTest, SharedMemoryIsNotInitialised) {
  expect_fault([] { simt_test::run_read_unwritten_shared(uninitialised<int>(1)); },
               {"shared memory that this block never wrote"});
}

TEST_F(SimtTest, SharedMemoryEnds) {
  expect_fault([] { simt_test::run_write_past_shared(); }, {"outside the block's shared memory"});
}

TEST_F(SimtTest, LocalMemoryIsTheThreadsOwn) {
  expect_fault([] { simt_test::run_read_foreign_stack(uninitialised<int>(33)); },
               {"read_foreign_stack", "host memory or to nothing", "thread (1, 0, 0)"});
}

TEST_F(SimtTest, LaunchesBeyondTheLimitsAreRefused) {
  int* memory = upload(std::vector<int>(2048));
  expect_fault([&] { simt_test::run_too_many_threads(memory); },
               {"cudaErrorInvalidConfiguration", "2048 threads"});
  // More than 48 KiB is asked for by launch(); the kernel then runs with it.
  EXPECT_NO_THROW(simt_test::run_too_much_shared(memory));
}

TEST_F(SimtTest, CallsThatCudaMayTakeButNobodyMeansAreRefused) {
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 0), cudaErrorInvalidValue);
  float* one = upload(std::vector<float>{1});
  EXPECT_EQ(cudaMemcpyAsync(one, one, 0, cudaMemcpyDeviceToDevice, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(one, 0, 0, nullptr), cudaErrorInvalidValue);
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, 2), cudaErrorInvalidValue);
  cudaEvent_t event = nullptr;
  EXPECT_EQ(cudaEventCreateWithFlags(&event, 8), cudaErrorInvalidValue);
  EXPECT_EQ(cudaHostAlloc(&memory, 0, cudaHostAllocDefault), cudaErrorInvalidValue);
}

TEST_F(SimtTest, MisalignedVectorsAreFaults) {
  float* values = upload(std::vector<float>(16, 1.0F));
  float* out = uninitialised<float>(4);
  simt_test::run_load_vector(values + 4, out);
  EXPECT_EQ(download(out, 4), std::vector<float>(4, 1.0F));
  expect_fault([&] { simt_test::run_load_vector(values + 1, out); }, {"misaligned", "16 bytes"});
}

TEST_F(SimtTest, AFaultLastsUntilReset) {
  std::vector<int> host(4);
  EXPECT_THROW(simt_test::run_write_at(host.data(), 2), CudaError);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  cudaDeviceReset();
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
}

TEST_F(SimtTest, CopiesKeepTheSidesApart) {
  std::vector<int> host(8);
  int* device = upload(host);
  EXPECT_EQ(cudaMemcpyAsync(host.data(), device, 32, cudaMemcpyHostToDevice, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(device, host.data(), 36, cudaMemcpyHostToDevice, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(device, host.data(), 32, cudaMemcpyDeviceToDevice, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(host.data(), 0, 32, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(device + 1), cudaErrorInvalidValue);
}

TEST_F(SimtTest, StreamsAndEventsMustExist) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  cudaEvent_t start = nullptr, stop = nullptr;
  ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&stop), cudaSuccess);
  float milliseconds = -1;
  EXPECT_EQ(cudaEventRecord(start, stream), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, stop), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(stop, stream), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(stop), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, stop), cudaSuccess);
  EXPECT_GE(milliseconds, 0.0F);
  EXPECT_EQ(cudaEventDestroy(start), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(start, stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventDestroy(stop), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
}

TEST_F(SimtTest, EventsWithoutTimeStampsTellNoTime) {
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event, 0), cudaSuccess);
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event, event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event, 0), cudaErrorInvalidResourceHandle);
}

// Two streams that know nothing of each other.
class SimtStreamsTest : public SimtTest {
 protected:
  SimtStreamsTest() {
    for (cudaStream_t* stream : {&first_, &second_}) {
      EXPECT_EQ(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), cudaSuccess);
    }
    EXPECT_EQ(cudaEventCreate(&event_), cudaSuccess);
    a_ = upload(ones_);
    b_ = upload(ones_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  ~SimtStreamsTest() override {
    EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
    EXPECT_EQ(cudaEventDestroy(event_), cudaSuccess);
    for (const cudaStream_t stream : {first_, second_}) {
      EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    }
  }
  // b += 2 a
  void kernel(cudaStream_t stream) const { simt_test::run_scale_add(a_, b_, kCount, stream); }
  static cudaError_t set(float* memory, cudaStream_t stream) {
    return cudaMemsetAsync(memory, 0, 4, stream);
  }
  static void expect_race(const std::string& accesses) {
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorLaunchFailure);
    const std::string text = cudaGetErrorString(cudaErrorLaunchFailure);
    EXPECT_NE(text.find(accesses + " by work of another stream with no event between"),
              std::string::npos)
        << text;
  }

  static constexpr int kCount = 100;
  const std::vector<float> ones_ = std::vector<float>(kCount, 1.0F);
  cudaStream_t first_ = nullptr, second_ = nullptr;
  cudaEvent_t event_ = nullptr;
  float *a_ = nullptr, *b_ = nullptr;
};

TEST_F(SimtStreamsTest, AWriteRacesWithAKernelOfAnotherStream) {
  kernel(first_);
  EXPECT_EQ(set(b_, second_), cudaErrorLaunchFailure);
  expect_race("write and write");
}

TEST_F(SimtStreamsTest, AWriteRacesWithAReadOfAnotherStream) {
  kernel(first_);
  EXPECT_EQ(cudaMemcpyAsync(a_ + 99, ones_.data(), 4, cudaMemcpyHostToDevice, second_),
            cudaErrorLaunchFailure);
  expect_race("write and read");
}

TEST_F(SimtStreamsTest, AKernelRacesWithACopyOfAnotherStream) {
  EXPECT_EQ(cudaMemcpyAsync(a_, ones_.data(), 400, cudaMemcpyHostToDevice, second_), cudaSuccess);
  expect_fault([&] { kernel(first_); }, {"read and write by work of another stream", "thread"});
}

TEST_F(SimtStreamsTest, EveryReaderCounts) {
  float *c = upload(ones_), *d = upload(ones_);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  kernel(first_);
  simt_test::run_scale_add(a_, c, kCount, second_);  // reads a, as the first stream does
  simt_test::run_scale_add(a_, d, kCount, second_);
  EXPECT_EQ(set(a_, second_), cudaErrorLaunchFailure);
  expect_race("write and read");
}

TEST_F(SimtStreamsTest, StreamsMayReadTheSameAndWriteApart) {
  float* c = upload(ones_);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < 3; ++i) {
    kernel(first_);
    simt_test::run_scale_add(a_, c, kCount, second_);
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(set(a_, second_), cudaSuccess);
}

TEST_F(SimtStreamsTest, AnEventOrders) {
  kernel(first_);
  EXPECT_EQ(cudaEventRecord(event_, first_), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(second_, event_, 0), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event_, second_), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(first_, event_, 0), cudaSuccess);
  kernel(first_);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(SimtStreamsTest, AnEventStandsForWhatWasThereWhenItWasRecorded) {
  EXPECT_EQ(cudaEventRecord(event_, first_), cudaSuccess);
  kernel(first_);
  EXPECT_EQ(cudaStreamWaitEvent(second_, event_, 0), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaErrorLaunchFailure);
}

TEST_F(SimtStreamsTest, WhatTheHostHasWaitedForIsOver) {
  kernel(first_);
  EXPECT_EQ(cudaStreamSynchronize(first_), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event_, second_), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event_), cudaSuccess);
  kernel(first_);
  // A copy to memory that is not page-locked comes back when it is over.
  std::vector<float> host(kCount);
  EXPECT_EQ(cudaMemcpyAsync(host.data(), b_, 400, cudaMemcpyDeviceToHost, first_), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaSuccess);
}

TEST_F(SimtStreamsTest, ACopyToPageLockedMemoryIsNotWaitedFor) {
  void* host = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 400, cudaHostAllocDefault), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(host, b_, 400, cudaMemcpyDeviceToHost, first_), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

TEST_F(SimtStreamsTest, TheDefaultStreamWaitsForBlockingStreamsOnly) {
  kernel(first_);
  EXPECT_EQ(set(b_, nullptr), cudaErrorLaunchFailure);
  ASSERT_EQ(cudaDeviceReset(), cudaSuccess);
  float* memory = upload(ones_);
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault), cudaSuccess);
  EXPECT_EQ(set(memory, blocking), cudaSuccess);
  EXPECT_EQ(set(memory, nullptr), cudaSuccess);
  EXPECT_EQ(set(memory, blocking), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
  a_ = b_ = nullptr;
}

TEST_F(SimtStreamsTest, AStreamThatIsDestroyedRunsOn) {
  cudaStream_t third = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&third, cudaStreamNonBlocking), cudaSuccess);
  kernel(third);
  EXPECT_EQ(cudaStreamDestroy(third), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaErrorLaunchFailure);
}

TEST_F(SimtStreamsTest, FreeingMemoryWaitsForTheDevice) {
  float* c = upload(ones_);
  kernel(first_);
  EXPECT_EQ(cudaFree(c), cudaSuccess);
  EXPECT_EQ(set(b_, second_), cudaSuccess);
}

TEST_F(SimtStreamsTest, TimesAreThoseOfEventsThatAreOver) {
  kernel(first_);
  EXPECT_EQ(cudaEventRecord(event_, first_), cudaSuccess);
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event_, event_), cudaErrorNotReady);
  EXPECT_EQ(cudaEventSynchronize(event_), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event_, event_), cudaSuccess);
}

class SimtGraphTest : public SimtTest {
 protected:
  SimtGraphTest() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~SimtGraphTest() override { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }

  void begin() {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  }
  // Of a capture in which something was refused.
  void expect_invalidated() {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess) << "the stream can be used again";
  }
  cudaStream_t stream_ = nullptr;
};

TEST_F(SimtGraphTest, RecordsAndReplays) {
  const std::vector<float> ones(100, 1.0F);
  float *a = upload(ones), *b = upload(ones);
  void* host = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 400, cudaHostAllocDefault), cudaSuccess);
  auto* result = static_cast<float*>(host);
  result[7] = 0;
  begin();
  simt_test::run_scale_add(a, b, 100, stream_);
  EXPECT_EQ(cudaMemsetAsync(a, 0, 40, stream_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(result, b, 400, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  EXPECT_EQ(download(b, 100), ones) << "nothing has run yet";
  EXPECT_EQ(result[7], 0.0F);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(result[7], 3.0F);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(result[7], 3.0F) << "the first ten were set to 0";
  EXPECT_EQ(result[70], 5.0F);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(host), cudaErrorInvalidValue);
}

TEST_F(SimtGraphTest, CapturesAllowNeitherAllocationNorWaiting) {
  int* memory = upload(std::vector<int>(8));
  void* more = nullptr;
  std::vector<int> host(8);
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  const std::vector<std::function<cudaError_t()>> forbidden = {
      [&] { return cudaMalloc(&more, 4); },
      [&] { return cudaFree(memory); },
      [&] { return cudaHostAlloc(&more, 4, cudaHostAllocDefault); },
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaEventSynchronize(event); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaEventRecord(event, stream_); },
      [&] { return cudaStreamWaitEvent(stream_, event, 0); },
      [&] { return cudaStreamDestroy(stream_); },
      [&] { return cudaMemsetAsync(memory, 0, 4, nullptr); },
      [&] { return cudaMemcpyAsync(host.data(), memory, 4, cudaMemcpyDeviceToHost, stream_); }};
  for (size_t i = 0; i < forbidden.size(); ++i) {
    SCOPED_TRACE(i);
    begin();
    EXPECT_EQ(forbidden[i](), cudaErrorStreamCaptureUnsupported);
    EXPECT_NE(std::string(cudaGetErrorString(cudaErrorStreamCaptureUnsupported)).find("capture"),
              std::string::npos);
    expect_invalidated();
  }
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(SimtGraphTest, FaultsInAGraphAreReported) {
  const std::vector<float> ones(100, 1.0F);
  float *a = upload(ones), *b = upload(ones);
  begin();
  simt_test::run_scale_add(a, b, 100, stream_);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaFree(b), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaErrorLaunchFailure);
  EXPECT_NE(
      std::string(cudaGetErrorString(cudaErrorLaunchFailure)).find("outside every allocation"),
      std::string::npos);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(SimtGraphTest, TheDefaultStreamIsNotCaptured) {
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal),
            cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorInvalidValue);
}

using SimtDeathTest = SimtTest;

TEST_F(SimtDeathTest, RangesAreClosedInTheOrderOfOpening) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  simt::take_ranges();
  EXPECT_EQ(nvtxRangePushA("a"), 0);
  EXPECT_EQ(nvtxRangePushA("b"), 1);
  EXPECT_EQ(simt::open_ranges(), (std::vector<std::string>{"a", "b"}));
  EXPECT_DEATH(simt::take_ranges(), "'b' was not popped");
  EXPECT_EQ(nvtxRangePop(), 1);
  EXPECT_EQ(nvtxRangePop(), 0);
  EXPECT_EQ(simt::take_ranges(), (std::vector<std::string>{"a", "b"}));
  EXPECT_DEATH(nvtxRangePop(), "not pushed");
}

TEST_F(SimtDeathTest, DeviceMemoryIsNotTheHosts) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const volatile int* device = upload(std::vector<int>(8));
  EXPECT_DEATH(static_cast<void>(device[0]), "");
}

}  // namespace
