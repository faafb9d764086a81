// SPDX-License-Identifier: MIT
// The vector code of every instruction set that this machine has, at sizes that are multiples of
// nothing, against plain loops in double precision or integers.
#include "kernels/cpu/simd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "framework/random.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/gradient_tiles.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quad_weights.h"
#include "kernels/cpu/weights.h"
#include "kernels/cpu/winograd.h"

namespace fmp {
namespace {

constexpr uint64_t kSeed = 77;

// Memory as the kernels expect it, aligned; what lies past the last element is another's.
template <typename T>
struct Aligned {
  explicit Aligned(size_t count, T value = T{}) : size(count) {
    std::fill_n(buffer.reserve(count), count, value);
  }
  T* data() { return buffer.data(); }
  const T* data() const { return buffer.data(); }
  T& operator[](size_t i) { return buffer.data()[i]; }
  const T& operator[](size_t i) const { return buffer.data()[i]; }

  AlignedBuffer<T> buffer;
  size_t size;
};

struct ConvSize {
  int out, taps, channels, rows;
};

std::ostream& operator<<(std::ostream& stream, const ConvSize& size) {
  return stream << size.out << " outputs, " << size.taps << " taps, " << size.channels
                << " channels, " << size.rows << " rows";
}

const ConvSize kSizes[] = {{1, 1, 1, 1},  {2, 3, 1, 4},   {5, 3, 2, 7},  {6, 5, 3, 2},
                           {7, 3, 9, 13}, {13, 7, 17, 3}, {24, 1, 5, 1}, {3, 9, 4, 30}};

// Operands of a convolution: rows of x with the stride that the layers use, weights [out][taps]
// [channels] with zeros among them.
class ConvCase {
 public:
  ConvCase(const ConvSize& size, bool integers)
      : size_(size),
        x_stride_(cpu::operand_stride(size.channels)),
        x(static_cast<size_t>((size.rows + size.taps - 1) * x_stride_)),
        dy(static_cast<size_t>(size.rows * y_stride())),
        w(static_cast<size_t>(size.out * size.taps * size.channels)) {
    Random random(kSeed, "convolution");
    const auto draw = [&](float range) {
      const float value = random.uniform(-range, range);
      return integers ? std::nearbyint(value) : value;
    };
    for (size_t i = 0; i < x.size; ++i) x[i] = integers ? std::fabs(draw(255)) : draw(1);
    for (size_t i = 0; i < dy.size; ++i) dy[i] = draw(1);
    for (float& value : w) value = random.below(3) == 0 ? 0.0F : draw(integers ? 127 : 1);
    pack();
  }

  ptrdiff_t x_stride() const { return x_stride_; }
  ptrdiff_t y_stride() const { return static_cast<ptrdiff_t>(size_.out) * kLanes; }
  size_t index(int o, int t, int c) const {
    return static_cast<size_t>((o * size_.taps + t) * size_.channels + c);
  }
  float x_at(int row, int c, int lane) const {
    return x[static_cast<size_t>(row * x_stride_ + c * kLanes + lane)];
  }
  // The rows of x, those of a channel behind one another, and the surviving weights for them.
  Aligned<float> x_by_channel() const {
    const int rows = size_.rows + size_.taps - 1;
    Aligned<float> result(static_cast<size_t>(rows * size_.channels * kLanes));
    for (size_t i = 0; i < result.size; ++i) {
      const int row = static_cast<int>(i) / kLanes % rows, c = static_cast<int>(i) / kLanes / rows;
      result[i] = x_at(row, c, static_cast<int>(i) % kLanes);
    }
    return result;
  }
  cpu::OwnedSparse sparse_by_channel() const {
    cpu::OwnedSparse result = sparse;
    for (int32_t& offset : result.offset) {
      const int32_t stride = static_cast<int32_t>(x_stride_);
      const int32_t tap = offset / stride, channel = offset % stride / kLanes;
      offset = (channel * (size_.rows + size_.taps - 1) + tap) * kLanes;
    }
    return result;
  }
  float dy_at(int row, int o, int lane) const {
    return dy[static_cast<size_t>(row * y_stride() + o * kLanes + lane)];
  }

  cpu::DenseWeights dense_view() const {
    return {size_.out, size_.taps, size_.channels, dense.data()};
  }

 private:
  void pack() {
    for (int block = 0; block < size_.out; block += cpu::kOutBlock) {
      const int end = std::min(size_.out, block + cpu::kOutBlock);
      for (int t = 0; t < size_.taps; ++t) {
        for (int c = 0; c < size_.channels; ++c) {
          for (int o = block; o < end; ++o) dense.push_back(w[index(o, t, c)]);
        }
        for (int c = 0; c < size_.channels; c += 2) {
          for (int o = block; o < end; ++o) {
            pairs.push_back(static_cast<int16_t>(w[index(o, t, c)]));
            pairs.push_back(c + 1 < size_.channels ? static_cast<int16_t>(w[index(o, t, c + 1)])
                                                   : int16_t{0});
          }
        }
      }
    }
    sparse.row_begin.push_back(0);
    for (int o = 0; o < size_.out; ++o) {
      for (int t = 0; t < size_.taps; ++t) {
        for (int c = 0; c < size_.channels; ++c) {
          if (w[index(o, t, c)] == 0.0F) continue;
          sparse.offset.push_back(static_cast<int32_t>(t * x_stride_ + c * kLanes));
          sparse.values.push_back(w[index(o, t, c)]);
        }
      }
      sparse.row_begin.push_back(static_cast<int32_t>(sparse.offset.size()));
    }
  }

  ConvSize size_;
  ptrdiff_t x_stride_;

 public:
  Aligned<float> x, dy;
  std::vector<float> w, dense;
  std::vector<int16_t> pairs;
  cpu::OwnedSparse sparse;
};

// Runs `check` with each instruction set, and with the best one again at the end.
template <typename Check>
void for_each_target(const Check& check) {
  for (const std::string& target : cpu::target_names()) {
    SCOPED_TRACE(target);
    cpu::use_target(target);
    ASSERT_EQ(cpu::target_name(), target);
    check();
  }
  cpu::use_target(cpu::target_names().front());
}

// Sizes around those of tiles.
const ConvSize kTileSizes[] = {{8, 1, 8, 1},    {9, 3, 10, 4},  {16, 3, 16, 16}, {17, 5, 33, 15},
                               {33, 2, 15, 18}, {40, 7, 24, 9}, {64, 3, 64, 16}, {32, 4, 17, 7}};

// Nearer than this to the exact sums: of the largest of them.
constexpr double kDataTolerance = 1e-6, kWeightTolerance = 1e-5;

template <typename Values>
void expect_near(const Values& actual, const std::vector<double>& expected, double tolerance) {
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance * largest) << "at " << i;
  }
}

TEST(SimdTest, GradientTilesAreNearTheExactSums) {
  namespace gt = cpu::gradient_tiles;
  if (!gt::available()) GTEST_SKIP() << "no AMX on bf16 here";
  for (const ConvSize& size : kTileSizes) {
    SCOPED_TRACE(size);
    const gt::Chunk chunk{size.out, size.channels, size.taps, size.rows};
    const ptrdiff_t window = size.rows + size.taps - 1;
    const ptrdiff_t out_row = static_cast<ptrdiff_t>(size.out) * kLanes;
    const ptrdiff_t in_row = static_cast<ptrdiff_t>(size.channels) * kLanes;
    Random random(kSeed, "gradient tiles");
    std::vector<float> w(static_cast<size_t>(size.out * size.taps * size.channels));
    for (float& value : w) value = std::nearbyint(random.uniform(-127.0F, 127.0F));
    Aligned<float> dy(static_cast<size_t>(window * out_row));
    // Gradients of very different sizes.
    for (size_t i = 0; i < dy.size; ++i)
      dy[i] = random.uniform(-1.0F, 1.0F) * std::ldexp(1.0F, -20 - static_cast<int>(i % 12));
    const auto w_at = [&](int o, int t, int c) {
      return w[static_cast<size_t>((o * size.taps + t) * size.channels + c)];
    };
    const auto dy_at = [&](ptrdiff_t row, int o, int lane) {
      return static_cast<double>(dy[static_cast<size_t>(row * out_row + o * kLanes + lane)]);
    };

    AlignedBuffer<uint16_t> packed;
    gt::pack_weights(
        chunk, [&](int c, int t, int o) { return w_at(o, size.taps - 1 - t, c); }, packed);
    Aligned<uint16_t> operand(gt::data_operand_size(chunk), 0xffff);  // NaN
    constexpr float kScale = 0.0123F, kUntouched = 7;
    Aligned<float> dx(static_cast<size_t>(size.rows * in_row) + 1, kUntouched);
    gt::backward_data(chunk, packed.data(), kScale, dy.data(), out_row, operand.data(), dx.data(),
                      in_row);
    std::vector<double> expected;
    for (int l = 0; l < size.rows; ++l) {
      for (int c = 0; c < size.channels; ++c) {
        for (int lane = 0; lane < kLanes; ++lane) {
          double& sum = expected.emplace_back(0);
          for (int t = 0; t < size.taps; ++t) {
            for (int o = 0; o < size.out; ++o) {
              sum += static_cast<double>(kScale) *
                     static_cast<double>(w_at(o, size.taps - 1 - t, c)) * dy_at(l + t, o, lane);
            }
          }
        }
      }
    }
    expect_near(dx, expected, kDataTolerance);
    EXPECT_EQ(dx[dx.size - 1], kUntouched);

    for (const bool are_signed : {false, true}) {
      const int padded = (size.channels + kLanes - 1) / kLanes * kLanes;
      std::vector<uint8_t> codes(static_cast<size_t>(window * padded * kLanes), 0);
      const auto code = [&](ptrdiff_t row, int c, int lane) -> uint8_t& {
        return codes[static_cast<size_t>((row * kLanes + lane) * padded + c)];
      };
      for (ptrdiff_t row = 0; row < window; ++row) {
        for (int c = 0; c < size.channels; ++c) {
          for (int lane = 0; lane < kLanes; ++lane) {
            code(row, c, lane) = static_cast<uint8_t>(random.below(256));
          }
        }
      }
      Aligned<uint16_t> x(gt::x_operand_size(chunk), 0xffff);
      const std::vector<uint8_t> zeros(static_cast<size_t>(padded * kLanes), 0);
      for (ptrdiff_t row = 0; row < window + size.rows % 2; ++row) {
        gt::pack_x(chunk, row < window ? &code(row, 0, 0) : zeros.data(), are_signed,
                   static_cast<int>(row), x.data());
      }
      Aligned<uint16_t> gradient(gt::gradient_operand_size(chunk), 0xffff);
      Aligned<float> dw(gt::dw_size(chunk), 0.0F);
      const int repeats = 2;  // sums go on
      for (int i = 0; i < repeats; ++i) {
        gt::backward_weight(chunk, x.data(), dy.data(), out_row, gradient.data(), dw.data());
      }
      std::vector<double> sums;
      std::vector<float> actual;
      for (int o = 0; o < size.out; ++o) {
        for (int t = 0; t < size.taps; ++t) {
          for (int c = 0; c < size.channels; ++c) {
            double& sum = sums.emplace_back(0);
            for (int l = 0; l < size.rows; ++l) {
              for (int lane = 0; lane < kLanes; ++lane) {
                const uint8_t byte = code(l + t, c, lane);
                sum += repeats * dy_at(l, o, lane) *
                       (are_signed ? static_cast<int8_t>(byte) : static_cast<int>(byte));
              }
            }
            actual.push_back(dw[gt::dw_place(chunk, o, t, c)]);
          }
        }
      }
      expect_near(actual, sums, kWeightTolerance);
    }
  }
}

TEST(SimdTest, UnknownTargetsAreRefused) {
  EXPECT_THROW(cpu::use_target("MMX"), std::invalid_argument);
}

TEST(SimdTest, IntegerConvolutionsAreExact) {
  for (const ConvSize& size : kSizes) {
    SCOPED_TRACE(testing::PrintToString(size));
    const ConvCase test(size, true);
    // The codes in pairs of channels, made by the kernel that is tested here too.
    Aligned<uint8_t> codes(static_cast<size_t>(size.channels) * kLanes);
    const ptrdiff_t pair_stride = cpu::pair_stride(size.channels);
    const int x_rows = size.rows + size.taps - 1;
    for_each_target([&] {
      Aligned<int16_t> x_pairs(static_cast<size_t>(x_rows * pair_stride));
      for (int r = 0; r < x_rows; ++r) {
        for (size_t i = 0; i < codes.size; ++i) {
          codes[i] = static_cast<uint8_t>(
              test.x_at(r, static_cast<int>(i) / kLanes, static_cast<int>(i) % kLanes));
        }
        cpu::simd().unpack_pairs_u8(codes.data(), size.channels, x_pairs.data() + r * pair_stride);
      }
      const size_t count = test.dy.size;
      Aligned<float> dense(count), sparse(count), pairs(count);
      cpu::simd().conv1d_dense(test.x.data(), test.x_stride(), size.rows, test.dense_view(),
                               dense.data(), test.y_stride());
      cpu::simd().conv1d_sparse(test.x.data(), test.x_stride(), size.rows, test.sparse.view(),
                                sparse.data(), test.y_stride());
      cpu::simd().conv1d_dense_pairs(x_pairs.data(), pair_stride, size.rows,
                                     {size.out, size.taps, size.channels, test.pairs.data()},
                                     pairs.data(), test.y_stride());
      for (int r = 0; r < size.rows; ++r) {
        for (int o = 0; o < size.out; ++o) {
          for (int lane = 0; lane < kLanes; ++lane) {
            int64_t expected = 0;
            for (int t = 0; t < size.taps; ++t) {
              for (int c = 0; c < size.channels; ++c) {
                expected += static_cast<int64_t>(test.w[test.index(o, t, c)]) *
                            static_cast<int64_t>(test.x_at(r + t, c, lane));
              }
            }
            const size_t at = static_cast<size_t>(r * test.y_stride() + o * kLanes + lane);
            ASSERT_EQ(static_cast<int64_t>(dense[at]), expected) << r << ' ' << o << ' ' << lane;
            ASSERT_EQ(static_cast<int64_t>(sparse[at]), expected) << r << ' ' << o << ' ' << lane;
            ASSERT_EQ(static_cast<int64_t>(pairs[at]), expected) << r << ' ' << o << ' ' << lane;
          }
        }
      }
    });
  }
}

// Rounding errors of a float sum of products are below this times the sum of the magnitudes, for
// the few hundred terms of these sizes.
constexpr double kSumTolerance = 1e-6;

TEST(SimdTest, FloatConvolutions) {
  for (const ConvSize& size : kSizes) {
    SCOPED_TRACE(testing::PrintToString(size));
    const ConvCase test(size, false);
    for_each_target([&] {
      Aligned<float> dense(test.dy.size), sparse(test.dy.size);
      cpu::simd().conv1d_dense(test.x.data(), test.x_stride(), size.rows, test.dense_view(),
                               dense.data(), test.y_stride());
      cpu::simd().conv1d_sparse(test.x.data(), test.x_stride(), size.rows, test.sparse.view(),
                                sparse.data(), test.y_stride());
      EXPECT_EQ(std::memcmp(dense.data(), sparse.data(), dense.size * sizeof(float)), 0)
          << "dense and sparse differ";
      const Aligned<float> by_channel = test.x_by_channel();
      const cpu::OwnedSparse weights = test.sparse_by_channel();
      cpu::simd().conv1d_sparse(by_channel.data(), kLanes, size.rows, weights.view(), sparse.data(),
                                test.y_stride());
      EXPECT_EQ(std::memcmp(dense.data(), sparse.data(), dense.size * sizeof(float)), 0)
          << "another layout, another result";
      for (int r = 0; r < size.rows; ++r) {
        for (int o = 0; o < size.out; ++o) {
          for (int lane = 0; lane < kLanes; ++lane) {
            double expected = 0, magnitude = 0;
            for (int t = 0; t < size.taps; ++t) {
              for (int c = 0; c < size.channels; ++c) {
                const double product = static_cast<double>(test.w[test.index(o, t, c)]) *
                                       static_cast<double>(test.x_at(r + t, c, lane));
                expected += product;
                magnitude += std::fabs(product);
              }
            }
            const size_t at = static_cast<size_t>(r * test.y_stride() + o * kLanes + lane);
            ASSERT_NEAR(dense[at], expected, kSumTolerance * magnitude);
          }
        }
      }
    });
  }
}

TEST(SimdTest, WeightGradients) {
  for (const ConvSize& size : kSizes) {
    SCOPED_TRACE(testing::PrintToString(size));
    const ConvCase test(size, false);
    for_each_target([&] {
      // Both add to what is there, lane by lane.
      constexpr float kBefore = 0.25F;
      Aligned<float> dense(test.w.size() * kLanes, kBefore);
      Aligned<float> sparse(test.sparse.offset.size() * kLanes, kBefore);
      cpu::simd().conv1d_backward_weight_dense(test.x.data(), test.x_stride(), test.dy.data(),
                                               test.y_stride(), size.rows, size.out, size.taps,
                                               size.channels, dense.data());
      const Aligned<float> by_channel = test.x_by_channel();
      std::vector<size_t> entry_of(test.w.size());
      std::vector<int32_t> offset;
      for (int c = 0; c < size.channels; ++c) {
        std::vector<int32_t> begin;
        for (int t = 0; t <= size.taps; ++t) {
          begin.push_back(static_cast<int32_t>(offset.size()));
          for (int o = 0; o < size.out && t < size.taps; ++o) {
            if (test.w[test.index(o, t, c)] == 0.0F) continue;
            entry_of[test.index(o, t, c)] = offset.size();
            offset.push_back(o * kLanes);
          }
        }
        cpu::simd().conv1d_backward_weight_sparse(
            by_channel.data() + c * (size.rows + size.taps - 1) * kLanes, test.dy.data(),
            test.y_stride(), size.rows, size.taps, begin.data(), offset.data(), sparse.data());
      }
      for (int o = 0; o < size.out; ++o) {
        for (int t = 0; t < size.taps; ++t) {
          for (int c = 0; c < size.channels; ++c) {
            const size_t i = test.index(o, t, c);
            for (int lane = 0; lane < kLanes; ++lane) {
              double expected = static_cast<double>(kBefore), magnitude = expected;
              for (int r = 0; r < size.rows; ++r) {
                const double product = static_cast<double>(test.dy_at(r, o, lane)) *
                                       static_cast<double>(test.x_at(r + t, c, lane));
                expected += product;
                magnitude += std::fabs(product);
              }
              const size_t at = i * kLanes + static_cast<size_t>(lane);
              ASSERT_NEAR(dense[at], expected, kSumTolerance * magnitude);
              if (test.w[i] == 0.0F) continue;
              ASSERT_EQ(sparse[entry_of[i] * kLanes + static_cast<size_t>(lane)], dense[at])
                  << "dense and sparse differ at " << o << ' ' << t << ' ' << c;
            }
          }
        }
      }
    });
  }
}

// Sums on quads of codes and their totals: every way to multiply, signed and unsigned input.
TEST(SimdTest, SumsOfCodesAreExact) {
  for (const ConvSize& size : kSizes) {
    SCOPED_TRACE(testing::PrintToString(size));
    const ConvCase test(size, true);
    const int window = size.rows + size.taps - 1;
    for (const int input_bits : {8, 2}) {
      const int offset = input_bits == 2 ? 2 : 0;  // 2 bits: signed codes -2 .. 1
      Aligned<uint8_t> codes(static_cast<size_t>(window * size.channels * kLanes));
      const auto code = [&](int row, int c, int lane) {
        const int value = static_cast<int>(test.x_at(row, c, lane));
        return offset == 0 ? value : value % 4 - offset;
      };
      for (size_t i = 0; i < codes.size; ++i) {
        const int element = static_cast<int>(i) / kLanes;
        codes[i] = static_cast<uint8_t>(
            code(element / size.channels, element % size.channels, static_cast<int>(i) % kLanes));
      }
      // Few bits of weights, too, so that 16-bit sums can be used.
      const auto weight = [&](int o, int t, int c) {
        const int w = static_cast<int>(test.w[test.index(o, t, c)]);
        return offset == 0 ? w : w % 4;
      };
      std::vector<int32_t> offsets(static_cast<size_t>(cpu::quads(size.out) * cpu::kQuad), 0);
      for (int o = 0; o < size.out; ++o) {
        for (int t = 0; t < size.taps; ++t) {
          for (int c = 0; c < size.channels; ++c) {
            offsets[static_cast<size_t>(o)] -= weight(o, t, c) * offset;
          }
        }
      }
      for_each_target([&] {
        for (const char* kind : {"dense", "sparse", "tiles"}) {
          SCOPED_TRACE(testing::Message() << kind << ", offset " << offset);
          const bool sparse = kind[0] == 's', tiles = kind[0] == 't';
          if (tiles && !cpu::simd().has_tiles) continue;
          cpu::QuadWeights weights;
          weights.pack(size.out, size.taps, size.channels, window, sparse, tiles, weight);
          const bool narrow_fits = weights.largest() * ((1 << input_bits) - 1) < 32768;
          EXPECT_TRUE(offset == 0 || narrow_fits);
          cpu::CodeWeights view = weights.view(cpu::best_dot_product(narrow_fits, false));
          view.small_sums = weights.largest() << input_bits <= cpu::kLargestSmallSum;
          EXPECT_TRUE(offset == 0 || view.small_sums);
          Aligned<uint8_t> quads(
              static_cast<size_t>(weights.operand_quads() * weights.quad_stride()), uint8_t{77});
          cpu::simd().pack_quads(codes.data(), window, size.channels, static_cast<uint8_t>(offset),
                                 0, quads.data(), weights.quad_stride());
          Aligned<float> y(test.dy.size);
          {
            const cpu::TilesInUse in_use(tiles);
            (tiles ? cpu::tile_sums : cpu::simd().code_sums)(view, 0, size.out, quads.data(),
                                                             size.rows, offsets.data(), y.data(),
                                                             test.y_stride());
          }

          Aligned<int64_t> totals(static_cast<size_t>(size.out * 2 * cpu::kTotalParts), 1);
          (tiles ? cpu::tile_totals : cpu::simd().code_totals)(
              view, size.out, quads.data(), size.rows, offsets.data(), totals.data());
          for (int o = 0; o < size.out; ++o) {
            int64_t sum = cpu::kTotalParts, squares = cpu::kTotalParts;
            for (int r = 0; r < size.rows; ++r) {
              for (int lane = 0; lane < kLanes; ++lane) {
                int64_t expected = 0;
                for (int t = 0; t < size.taps; ++t) {
                  for (int c = 0; c < size.channels; ++c) {
                    expected += weight(o, t, c) * code(r + t, c, lane);
                  }
                }
                ASSERT_EQ(static_cast<int64_t>(
                              y[static_cast<size_t>(r * test.y_stride() + o * kLanes + lane)]),
                          expected);
                sum += expected;
                squares += expected * expected;
              }
            }
            for (int i = 0; i < cpu::kTotalParts; ++i) {
              sum -= totals[static_cast<size_t>(2 * o * cpu::kTotalParts + i)];
              squares -= totals[static_cast<size_t>((2 * o + 1) * cpu::kTotalParts + i)];
            }
            EXPECT_EQ(sum, 0) << o;
            EXPECT_EQ(squares, 0) << o;
          }
        }
      });
    }
  }
}

TEST(SimdTest, WeightGradientsAsMatrixProducts) {
  for (const int channels : {16, 32, 48, 80}) {
    for (const int out : {1, 6, 11}) {
      constexpr int kRows = 5;
      const ptrdiff_t x_stride = cpu::operand_stride(channels);
      const ptrdiff_t dy_stride = cpu::operand_stride(out);
      Aligned<float> x(static_cast<size_t>(kRows * x_stride)),
          dy(static_cast<size_t>(kRows * dy_stride));
      Random random(kSeed, "product");
      for (size_t i = 0; i < x.size; ++i) x[i] = random.uniform(-1.0F, 1.0F);
      for (size_t i = 0; i < dy.size; ++i) dy[i] = random.uniform(-1.0F, 1.0F);
      for_each_target([&] {
        constexpr float kBefore = 0.5F;
        Aligned<float> dw(static_cast<size_t>(out * channels), kBefore);
        cpu::simd().backward_weight_product(x.data(), x_stride, dy.data(), dy_stride, kRows, out,
                                            channels, dw.data());
        for (int o = 0; o < out; ++o) {
          for (int c = 0; c < channels; ++c) {
            double expected = static_cast<double>(kBefore), magnitude = expected;
            for (int r = 0; r < kRows; ++r) {
              for (int lane = 0; lane < kLanes; ++lane) {
                const double product =
                    static_cast<double>(
                        dy[static_cast<size_t>(r * dy_stride + o * kLanes + lane)]) *
                    static_cast<double>(x[static_cast<size_t>(r * x_stride + lane * channels + c)]);
                expected += product;
                magnitude += std::fabs(product);
              }
            }
            ASSERT_NEAR(dw[static_cast<size_t>(o * channels + c)], expected,
                        kSumTolerance * magnitude);
          }
        }
      });
    }
  }
}

// The numbers with 8 bits of which a float is nearest: by their distance, not by its bits.
TEST(SimdTest, RoundsToBf16) {
  std::vector<uint32_t> bits = {0,          0x80000000, 1,          0x8000,     0x18000,
                                0x7fffff,   0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001,
                                0xbf817fff, 0x7f7fffff, 0x7f7f7fff, 0x7f7f8000, 0xff7fffff,
                                0x7f800000, 0xff800000};
  Random random(kSeed, "bf16");
  while (bits.size() % kLanes != 0 || bits.size() < 256) {
    const uint32_t some = random.next_u32();
    if (std::isfinite(std::bit_cast<float>(some))) bits.push_back(some);
  }
  const auto value = [](uint32_t half) {
    // What follows the largest number, and rounds to infinity, is 2^128.
    if ((half & 0x7fffU) == 0x7f80U) return std::copysign(0x1p128, (half >> 15) != 0 ? -1.0 : 1.0);
    return static_cast<double>(std::bit_cast<float>(half << 16));
  };
  for_each_target([&] {
    Aligned<float> floats(bits.size() + kLanes), widened(floats.size);
    Aligned<uint16_t> halves(2 * floats.size);
    for (size_t i = 0; i < floats.size; ++i) {
      floats[i] = i < bits.size()
                      ? std::bit_cast<float>(bits[i])
                      : std::bit_cast<float>(0x7f800001U + (i % 2 == 0 ? 0U : 0x7ffffeU));
    }
    cpu::simd().round_to_bf16(floats.data(), static_cast<int64_t>(floats.size), halves.data());
    cpu::simd().widen_bf16(halves.data(), static_cast<int64_t>(floats.size), widened.data());
    for (size_t i = 0; i < floats.size; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(floats[i]), uint32_t{halves[i]} << 16) << i;
      ASSERT_EQ(std::bit_cast<uint32_t>(widened[i]), uint32_t{halves[i]} << 16) << i;
      if (i >= bits.size()) {
        ASSERT_TRUE(std::isnan(floats[i])) << i;
        continue;
      }
      const float exact = std::bit_cast<float>(bits[i]);
      if (std::isinf(exact)) {
        ASSERT_EQ(floats[i], exact);
        continue;
      }
      const auto distance = [&](uint32_t half) {
        return std::fabs(value(half) - static_cast<double>(exact));
      };
      const uint32_t below = bits[i] >> 16, above = below + 1;
      const bool up = distance(above) < distance(below) ||
                      (distance(above) == distance(below) && below % 2 == 1);
      ASSERT_EQ(halves[i], up ? above : below) << exact;
    }
  });
}

TEST(SimdTest, TransposedCodes) {
  for (const int channels : {1, 2, 15, 16, 17, 40}) {
    const int padded = (channels + kLanes - 1) / kLanes * kLanes;
    Aligned<uint8_t> codes(static_cast<size_t>(channels * kLanes));
    for (size_t i = 0; i < codes.size; ++i) codes[i] = static_cast<uint8_t>(7 * i + 3);
    for_each_target([&] {
      Aligned<uint8_t> out(static_cast<size_t>(padded * kLanes), uint8_t{99});
      cpu::simd().transpose_codes(codes.data(), channels, out.data());
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int c = 0; c < padded; ++c) {
          const int expected = c < channels ? codes[static_cast<size_t>(c * kLanes + lane)] : 0;
          ASSERT_EQ(out[static_cast<size_t>(lane * padded + c)], expected) << lane << ' ' << c;
        }
      }
    });
  }
}

// Three taps on one channel through the points and back, with the largest codes there are: exact.
TEST(SimdTest, WinogradOnIntegersIsExact) {
  namespace wg = cpu::winograd;
  constexpr int kCount = 2 * kLanes;  // elements of a row of pairs
  for (const int rows : {1, 4, 7, 16}) {
    const int groups = wg::groups(rows), data_rows = wg::data_rows(groups);
    Aligned<int16_t> x(static_cast<size_t>(data_rows * kCount));
    Random random(kSeed, "winograd");
    const auto code = [&](int largest) {
      return static_cast<int>(random.below(2)) * static_cast<int>(random.below(2)) == 0
                 ? largest
                 : static_cast<int>(random.below(static_cast<uint64_t>(largest) + 1));
    };
    for (size_t i = 0; i < x.size; ++i) x[i] = static_cast<int16_t>(code(255));
    const int w[3] = {code(127), -code(127), code(127)};
    const auto w_at = wg::weights_at_points(w[0], w[1], w[2]);
    for_each_target([&] {
      const ptrdiff_t point_stride = groups * kCount;
      Aligned<int16_t> points(static_cast<size_t>(wg::kPoints * point_stride));
      cpu::simd().winograd_data_pairs(x.data(), kCount, groups, kCount, points.data(), kCount,
                                      point_stride);
      Aligned<int32_t> products(points.size);
      for (size_t i = 0; i < points.size; ++i) {
        products[i] = points[i] * w_at[i / static_cast<size_t>(point_stride)];
      }
      Aligned<float> y(static_cast<size_t>(rows * kCount));
      cpu::simd().winograd_outputs_exact(products.data(), kCount, point_stride, rows, kCount,
                                         y.data(), kCount);
      for (int l = 0; l < rows; ++l) {
        for (int i = 0; i < kCount; ++i) {
          const auto x_at = [&](int row) { return x[static_cast<size_t>(row * kCount + i)]; };
          ASSERT_EQ(y[static_cast<size_t>(l * kCount + i)],
                    static_cast<float>(w[0] * x_at(l) + w[1] * x_at(l + 1) + w[2] * x_at(l + 2)));
        }
      }
    });
  }
}

struct ActivationCase {
  int channels, rows, pool;
  bool quantized;
  float max_code;
  float min_code = 0;
};

const ActivationCase kActivations[] = {
    {1, 1, 1, true, 3},         {3, 6, 2, true, 15},    {5, 8, 4, true, 255},  {7, 9, 3, true, 255},
    {2, 5, 1, false, 0},        {9, 4, 2, false, 0},    {3, 22, 2, true, 15},  {4, 11, 1, true, 7},
    {3, 6, 2, true, 127, -128}, {5, 9, 3, true, 7, -7}, {2, 5, 1, true, 1, -2}};

// The sums of a layer and what its affine step makes of them, plainly.
class ActivationData {
 public:
  explicit ActivationData(const ActivationCase& size)
      : size_(size),
        y(static_cast<size_t>(size.rows * size.channels * kLanes)),
        dp(static_cast<size_t>(size.rows / size.pool * size.channels * kLanes)),
        gain(static_cast<size_t>(size.channels)),
        shift(static_cast<size_t>(size.channels)),
        second_gain(gain.size()),
        second_shift(gain.size()) {
    Random random(kSeed, "activation");
    for (size_t i = 0; i < y.size; ++i) y[i] = std::nearbyint(random.uniform(-400.0F, 400.0F));
    for (size_t i = 0; i < dp.size; ++i) dp[i] = random.uniform(-1.0F, 1.0F);
    for (size_t c = 0; c < gain.size(); ++c) {
      gain[c] = random.uniform(-0.5F, 1.5F);
      shift[c] = random.uniform(-20.0F, 20.0F);
      second_gain[c] = random.uniform(-1.0F, 1.0F);
      second_shift[c] = random.uniform(-1.0F, 1.0F);
    }
  }

  ptrdiff_t stride() const { return static_cast<ptrdiff_t>(size_.channels) * kLanes; }
  size_t at(int row, int c, int lane) const {
    return static_cast<size_t>(row * stride() + c * kLanes + lane);
  }
  // With one rounding where fused, two where not: both are right, so ties are told apart by
  // whoever compares.
  float t(int row, int c, int lane) const {
    const size_t channel = static_cast<size_t>(c);
    return std::fma(gain[channel], y[at(row, c, lane)], shift[channel]);
  }
  float code(int row, int c, int lane) const {
    const float value = t(row, c, lane);
    if (!size_.quantized) return std::max(value, 0.0F);
    return std::clamp(std::nearbyint(value), size_.min_code, size_.max_code);
  }
  // Row of the first largest code of a window.
  int winner(int window, int c, int lane) const {
    int best = window * size_.pool;
    for (int r = best + 1; r < (window + 1) * size_.pool; ++r) {
      if (code(r, c, lane) > code(best, c, lane)) best = r;
    }
    return best;
  }
  bool passes(int row, int c, int lane) const {
    const float value = t(row, c, lane);
    const bool is_above = size_.min_code < 0 ? value > size_.min_code - 0.5F : value > 0;
    return is_above && (!size_.quantized || std::nearbyint(value) <= size_.max_code);
  }
  cpu::Sums sums() const { return {y.data(), stride(), size_.rows, size_.channels}; }
  cpu::ChannelAffine affine() const { return {gain.data(), shift.data()}; }
  cpu::ChannelAffine second() const { return {second_gain.data(), second_shift.data()}; }
  cpu::ActivationSpec spec() const {
    return {size_.pool, size_.quantized, size_.max_code, size_.min_code};
  }
  // What a byte stands for.
  float code_of(uint8_t byte) const {
    return size_.min_code < 0 ? static_cast<float>(static_cast<int8_t>(byte))
                              : static_cast<float>(byte);
  }

 private:
  ActivationCase size_;

 public:
  Aligned<float> y, dp;
  std::vector<float> gain, shift, second_gain, second_shift;
};

TEST(SimdTest, QuantizeAndPool) {
  for (const ActivationCase& size : kActivations) {
    const ActivationData data(size);
    for_each_target([&] {
      Aligned<uint8_t> codes(data.dp.size);
      Aligned<float> values(data.dp.size);
      Aligned<uint16_t> passes(data.y.size / kLanes, uint16_t{0xaaaa});
      if (size.quantized) {
        cpu::simd().quantize_pool(data.sums(), data.affine(), data.spec(), codes.data(),
                                  data.stride(), passes.data(), size.channels);
      } else {
        cpu::simd().relu_pool(data.sums(), data.affine(), data.spec(), values.data(), data.stride(),
                              passes.data(), size.channels);
      }
      for (int r = 0; r < size.rows; ++r) {
        for (int c = 0; c < size.channels; ++c) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const bool passed =
                (passes[static_cast<size_t>(r * size.channels + c)] >> lane & 1) != 0;
            ASSERT_EQ(passed, data.winner(r / size.pool, c, lane) == r && data.passes(r, c, lane))
                << r << ' ' << c << ' ' << lane;
          }
        }
      }
      for (int p = 0; p < size.rows / size.pool; ++p) {
        for (int c = 0; c < size.channels; ++c) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const float expected = data.code(data.winner(p, c, lane), c, lane);
            const size_t at = data.at(p, c, lane);
            if (size.quantized) {
              ASSERT_EQ(data.code_of(codes[at]), expected);
            } else {
              ASSERT_NEAR(values[at], expected, 1e-4);
            }
          }
        }
      }
    });
  }
}

// Sums of sparse layers that are used in registers, against the same in memory: to the bit.
TEST(SimdTest, SparseSumsInRegisters) {
  constexpr int kTaps = 3, kInputs = 9, kOutputs = 5, kOffset = 2, kWeightRange = 15;
  for (const ActivationCase& size :
       {ActivationCase{kOutputs, 1, 1, true, 255}, ActivationCase{kOutputs, 27, 1, true, 255},
        ActivationCase{kOutputs, 2, 2, true, 255}, ActivationCase{kOutputs, 30, 2, true, 255},
        ActivationCase{kOutputs, 27, 1, true, 127, -127},
        ActivationCase{kOutputs, 30, 2, true, 127, -128}}) {
    SCOPED_TRACE(testing::Message()
                 << size.rows << " rows, pool " << size.pool << ", codes from " << size.min_code);
    ActivationData data(size);
    const size_t elements = data.y.size, pooled = data.dp.size;
    const int window = size.rows + kTaps - 1;
    Random random(kSeed, "sparse sums");
    std::vector<int> w(kOutputs * kTaps * kInputs, 0);
    // A fifth of the weights, and an output without any.
    for (size_t i = kTaps * kInputs; i < w.size(); ++i) {
      if (random.below(5) == 0)
        w[i] = static_cast<int>(random.below(2 * kWeightRange)) - kWeightRange;
    }
    Aligned<uint8_t> x(static_cast<size_t>(window * kInputs * kLanes));
    for (size_t i = 0; i < x.size; ++i) x[i] = static_cast<uint8_t>(random.below(200));
    std::vector<int32_t> offsets(8, 0);
    for (size_t i = 0; i < w.size(); ++i) offsets[i / (kTaps * kInputs)] -= w[i] * kOffset;
    for_each_target([&] {
      cpu::QuadWeights weights;
      weights.pack(kOutputs, kTaps, kInputs, window, true, false, [&](int o, int t, int c) {
        return w[static_cast<size_t>((o * kTaps + t) * kInputs + c)];
      });
      const cpu::CodeWeights view = weights.view(cpu::best_dot_product(false, false));
      Aligned<uint8_t> quads(static_cast<size_t>(weights.in_quads() * weights.quad_stride()));
      cpu::simd().pack_quads(x.data(), window, kInputs, kOffset, 0, quads.data(),
                             weights.quad_stride());
      const cpu::CodeChunk chunk{view, quads.data(), size.rows, offsets.data()};
      cpu::simd().code_sums(view, 0, kOutputs, quads.data(), size.rows, offsets.data(),
                            data.y.data(), data.stride());

      Aligned<uint8_t> codes(pooled), expected_codes(pooled);
      Aligned<uint16_t> passes(elements / kLanes), expected_passes(elements / kLanes);
      cpu::simd().quantize_pool(data.sums(), data.affine(), data.spec(), expected_codes.data(),
                                data.stride(), expected_passes.data(), kOutputs);
      cpu::simd().sparse_codes(chunk, kOutputs, data.affine(), data.spec(), codes.data(),
                               data.stride(), passes.data(), kOutputs);
      for (size_t i = 0; i < pooled; ++i) ASSERT_EQ(codes[i], expected_codes[i]) << i;
      for (size_t i = 0; i < passes.size; ++i) ASSERT_EQ(passes[i], expected_passes[i]) << i;

      const cpu::PooledGradient gradient{data.dp.data(),    data.stride(), codes.data(),
                                         size.min_code < 0, data.stride(), passes.data(),
                                         kOutputs};
      Aligned<float> sums(kOutputs * cpu::kGradientSums * kLanes, 1.5F);
      Aligned<float> expected_sums(sums.size, 1.5F);
      cpu::simd().backward_sums(data.sums(), size.pool, gradient, expected_sums.data());
      cpu::simd().sparse_gradient_sums(chunk, kOutputs, size.pool, gradient, sums.data());
      for (size_t i = 0; i < sums.size; ++i) ASSERT_EQ(sums[i], expected_sums[i]) << i;

      const cpu::GradientAffine step{data.second_gain.data(), data.second_shift.data(),
                                     data.shift.data()};
      Aligned<float> dy(elements), expected_dy(elements);
      const ptrdiff_t channel_stride = static_cast<ptrdiff_t>(size.rows) * kLanes;
      cpu::simd().backward_apply(data.sums(), size.pool, gradient, step, expected_dy.data(), kLanes,
                                 channel_stride);
      cpu::simd().sparse_gradient(chunk, kOutputs, size.pool, gradient, step, dy.data(), kLanes,
                                  channel_stride);
      for (size_t i = 0; i < elements; ++i) ASSERT_EQ(dy[i], expected_dy[i]) << i;
    });
  }
}

// Every operation of evaluation is rounded by itself, on every instruction set.
TEST(SimdTest, EvaluateAndPool) {
  constexpr float kSumScale = 0.37F, kActScale = 0.11F;
  for (const ActivationCase& size : kActivations) {
    const ActivationData data(size);
    const cpu::EvaluationSteps steps{kSumScale, data.gain.data(), data.shift.data(), kActScale};
    const auto value = [&](int row, int c, int lane) {
      const size_t channel = static_cast<size_t>(c);
      const float scaled = data.y[data.at(row, c, lane)] * kSumScale;
      const float product = scaled * data.gain[channel];
      return product + data.shift[channel];
    };
    for_each_target([&] {
      Aligned<uint8_t> codes(data.dp.size);
      Aligned<float> values(data.dp.size);
      if (size.quantized) {
        cpu::simd().evaluate_codes(data.sums(), steps, data.spec(), codes.data(), data.stride());
      } else {
        cpu::simd().evaluate_values(data.sums(), steps, data.spec(), values.data(), data.stride());
      }
      for (int p = 0; p < size.rows / size.pool; ++p) {
        for (int c = 0; c < size.channels; ++c) {
          for (int lane = 0; lane < kLanes; ++lane) {
            float largest = value(p * size.pool, c, lane);
            for (int j = 1; j < size.pool; ++j) {
              largest = std::max(largest, value(p * size.pool + j, c, lane));
            }
            const size_t at = data.at(p, c, lane);
            if (size.quantized) {
              const float code = std::nearbyint(largest / kActScale);
              ASSERT_EQ(data.code_of(codes[at]), std::clamp(code, size.min_code, size.max_code));
            } else {
              ASSERT_EQ(values[at], std::max(largest, 0.0F));
            }
          }
        }
      }
    });
  }
}

TEST(SimdTest, ChannelSums) {
  for (const ActivationCase& size : kActivations) {
    const ActivationData data(size);
    for_each_target([&] {
      std::vector<double> sum(data.gain.size(), 1.0), squares(data.gain.size(), 2.0);
      cpu::simd().channel_sums(data.y.data(), data.stride(), size.rows, size.channels, sum.data(),
                               squares.data());
      std::vector<cpu::IntegerTotals> totals(data.gain.size());
      cpu::simd().integer_sums(data.sums(), totals.data());
      for (int c = 0; c < size.channels; ++c) {
        double expected = 1, expected_squares = 2;
        for (int r = 0; r < size.rows; ++r) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const double value = static_cast<double>(data.y[data.at(r, c, lane)]);
            expected += value;
            expected_squares += value * value;
          }
        }
        // Integers of this size have exact float sums.
        EXPECT_EQ(sum[static_cast<size_t>(c)], expected);
        EXPECT_NEAR(squares[static_cast<size_t>(c)], expected_squares, 1e-6 * expected_squares);
        EXPECT_EQ(static_cast<double>(totals[static_cast<size_t>(c)].sum), expected - 1);
        EXPECT_EQ(totals[static_cast<size_t>(c)].squares(), expected_squares - 2);
      }
    });
  }
}

TEST(SimdTest, ActivationBackward) {
  for (const ActivationCase& size : kActivations) {
    const ActivationData data(size);
    const size_t channels = data.gain.size();
    Random random(kSeed, "passes");
    Aligned<uint16_t> passes(data.y.size / kLanes);
    for (size_t i = 0; i < passes.size; ++i) passes[i] = static_cast<uint16_t>(random.next_u32());
    Aligned<uint8_t> codes(data.dp.size);
    for (size_t i = 0; i < codes.size; ++i) codes[i] = static_cast<uint8_t>(random.next_u32());
    const auto g = [&](int r, int c, int lane) {
      const bool passed = (passes[static_cast<size_t>(r * size.channels + c)] >> lane & 1) != 0;
      return passed ? data.dp[data.at(r / size.pool, c, lane)] : 0.0F;
    };
    const cpu::PooledGradient gradient{
        data.dp.data(),    data.stride(), size.quantized ? codes.data() : nullptr,
        size.min_code < 0, data.stride(), passes.data(),
        size.channels};
    for_each_target([&] {
      const size_t lanes = channels * cpu::kGradientSums * kLanes;
      Aligned<float> sums(lanes), spread_sums(lanes), dy(data.y.size), spread(data.y.size);
      cpu::simd().backward_sums(data.sums(), size.pool, gradient, sums.data());
      const std::vector<float>&of_g = data.second_gain, &of_y = data.second_shift;
      cpu::simd().backward_apply(data.sums(), size.pool, gradient,
                                 {of_g.data(), of_y.data(), data.shift.data()}, dy.data(),
                                 data.stride(), kLanes);
      // Another layout: the rows of a channel behind one another.
      cpu::simd().spread_gradient(size.rows, size.channels, size.pool, gradient, spread.data(),
                                  kLanes, static_cast<ptrdiff_t>(size.rows) * kLanes,
                                  spread_sums.data());
      std::vector<double> totals(channels * cpu::kGradientSums, 0.0);
      cpu::simd().add_lane_sums(sums.data(), static_cast<int>(totals.size()), totals.data());
      for (int c = 0; c < size.channels; ++c) {
        const size_t channel = static_cast<size_t>(c);
        double sum_g = 0, sum_g_y = 0, sum_code = 0;
        for (int r = 0; r < size.rows; ++r) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const size_t at = data.at(r, c, lane);
            const double passed = static_cast<double>(g(r, c, lane));
            sum_g += passed;
            sum_g_y += passed * static_cast<double>(data.y[at]);
            ASSERT_NEAR(
                dy[at],
                of_g[channel] * g(r, c, lane) + of_y[channel] * data.y[at] + data.shift[channel],
                1e-3);
            ASSERT_EQ(spread[static_cast<size_t>((c * size.rows + r) * kLanes + lane)],
                      g(r, c, lane));
          }
        }
        for (int p = 0; size.quantized && p < size.rows / size.pool; ++p) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const size_t at = data.at(p, c, lane);
            sum_code += static_cast<double>(data.dp[at]) * double{data.code_of(codes[at])};
          }
        }
        const double* total = totals.data() + channel * cpu::kGradientSums;
        EXPECT_NEAR(total[0], sum_g, 1e-4);
        EXPECT_NEAR(total[1], sum_g_y, 0.05);
        EXPECT_NEAR(total[2], sum_code, 0.05);
        for (size_t i = 0; i < kLanes; ++i) {
          const size_t at = channel * cpu::kGradientSums * kLanes + i;
          EXPECT_EQ(spread_sums[at], sums[at]);
          EXPECT_EQ(spread_sums[at + 2 * kLanes], sums[at + 2 * kLanes]);
        }
      }
    });
  }
}

}  // namespace
}  // namespace fmp
