// SPDX-License-Identifier: MIT
// Operations without weights as tests of both backends call them.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "framework/network/tensor.h"
#include "framework/random.h"
#include "kernels/cpu/ops.h"

namespace fmp {

struct JoinOperand {
  int channels;
  int bits;
  bool is_signed;
  float scale;
  int pad = 0;
};

struct JoinCase {
  const char* name;
  Join::Kind join;
  int length;  // that is written, before the maximum
  std::vector<JoinOperand> inputs;
  int window = 1, pool = 1;  // what is left over of the maximum's window takes part in none
  int bits = 4, smallest_code = 0;
  float threshold = 2.0371F;
  bool collect = false;
  bool add = false;  // gradients to those of other readers
  int64_t frames = 19;
  int left_over = 0;  // positions behind an average's windows

  Join whole_join() const { return {join, join == Join::kAveragePool ? window : 0}; }
};
inline std::ostream& operator<<(std::ostream& stream, const JoinCase& c) {
  return stream << c.name;
}

inline const JoinCase kJoinCases[] = {
    {"Add", Join::kAdd, 6, {{5, 4, true, 0.1113F}, {5, 4, false, 0.1329F, 2}}},
    {"AddPooled",
     Join::kAdd,
     6,
     {{5, 4, true, 0.1113F, 1}, {5, 8, false, 0.00717F}},
     1,
     2,
     4,
     0,
     1.2F},
    {"AddWideWindow",
     Join::kAdd,
     9,
     {{3, 4, true, 0.1037F}, {3, 4, true, 0.1707F}},
     1,
     3,
     4,
     -8,
     0.9173F},
    {"AddSigned",
     Join::kAdd,
     4,
     {{7, 8, true, 0.01071F}, {7, 8, true, 0.01339F}},
     1,
     1,
     8,
     -128,
     1.1F},
    {"AddNarrow",
     Join::kAdd,
     4,
     {{7, 4, true, 0.1037F}, {7, 4, true, 0.1329F}},
     1,
     1,
     4,
     -7,
     -0.8F},
    {"AddPercentile",
     Join::kAdd,
     4,
     {{3, 4, true, 0.1037F}, {3, 4, false, 0.1329F}},
     1,
     2,
     4,
     0,
     0,
     true},
    {"AddSignedPercentile",
     Join::kAdd,
     4,
     {{3, 4, true, 0.1037F}, {3, 4, true, 0.1329F}},
     1,
     1,
     4,
     -8,
     0,
     true,
     true},
    {"AddToGradients",
     Join::kAdd,
     4,
     {{3, 4, true, 0.1037F}, {3, 4, true, 0.1329F}},
     1,
     1,
     4,
     0,
     1,
     false,
     true},
    {"Concat",
     Join::kConcat,
     6,
     {{5, 4, true, 0.1113F}, {2, 8, false, 0.01339F, 3}, {9, 2, false, 0.9173F}},
     1,
     2,
     4,
     0,
     1.3F},
    // Channels of an input begin and end within a quad, or are all in one.
    {"ConcatWithinQuads",
     Join::kConcat,
     4,
     {{5, 4, true, 0.1113F},
      {1, 4, false, 0.2071F, 3},
      {1, 4, true, 0.3137F},
      {9, 4, false, 0.1329F}},
     1,
     2,
     4,
     0,
     1.3F,
     false,
     true},
    {"ConcatSigned",
     Join::kConcat,
     3,
     {{4, 8, true, 0.01071F}, {4, 4, false, 0.1037F}},
     1,
     1,
     6,
     -32,
     0.9173F},
    {"ConcatPercentile",
     Join::kConcat,
     4,
     {{4, 8, true, 0.01071F}, {4, 4, false, 0.1037F}},
     1,
     1,
     4,
     0,
     0,
     true,
     true},
    {"AddLeftOver", Join::kAdd, 11, {{5, 4, true, 0.1113F}, {5, 4, false, 0.1329F, 2}}, 1, 4},
    {"AddLeftOverToGradients",
     Join::kAdd,
     5,
     {{5, 4, true, 0.1113F}, {5, 4, false, 0.1329F, 2}},
     1,
     2,
     4,
     0,
     1.2F,
     false,
     true},
    {"AddLeftOverPercentile",
     Join::kAdd,
     3,
     {{3, 8, true, 0.01037F}, {3, 8, false, 0.01329F}},
     1,
     2,
     4,
     0,
     0,
     true},
    {"ConcatLeftOver",
     Join::kConcat,
     7,
     {{5, 4, true, 0.1113F}, {2, 8, false, 0.01339F, 3}, {9, 2, false, 0.9173F}},
     1,
     3,
     4,
     0,
     1.3F},
    {"Average", Join::kAveragePool, 3, {{5, 4, false, 0.1113F, 1}}, 4, 1, 4, 0, 1.0183F},
    {"AverageOfAll",
     Join::kAveragePool,
     1,
     {{5, 8, false, 0.01339F}},
     37,
     1,
     8,
     0,
     1.9F,
     false,
     true},
    {"AverageSigned", Join::kAveragePool, 4, {{5, 4, true, 0.1113F}}, 3, 2, 4, -8, 0.3F},
    {"AverageLeftOver",
     Join::kAveragePool,
     3,
     {{5, 4, false, 0.1113F, 1}},
     4,
     1,
     4,
     0,
     1.0183F,
     false,
     false,
     19,
     3},
    {"AverageLeftOverToGradients",
     Join::kAveragePool,
     5,
     {{5, 4, true, 0.1113F}},
     3,
     2,
     4,
     -8,
     0.3F,
     false,
     true,
     19,
     2},
    {"AverageLeftOverPercentile",
     Join::kAveragePool,
     1,
     {{5, 4, true, 0.1113F}},
     2,
     1,
     4,
     -8,
     0,
     true,
     false,
     19,
     1},
    {"AveragePercentile", Join::kAveragePool, 4, {{5, 4, true, 0.1113F}}, 2, 1, 4, -8, 0, true},
};

// Element (n, l, c) of a tile.
inline size_t place(const TileShape& shape, int64_t n, int l, int c) {
  return static_cast<size_t>(n / kLanes * shape.tile_elements() +
                             (l + shape.pad) * shape.row_elements() + c * kLanes + n % kLanes);
}
template <typename Body>
void for_each(const TileShape& shape, const Body& body) {
  for (int64_t n = 0; n < shape.frames; ++n) {
    for (int l = 0; l < shape.length; ++l) {
      for (int c = 0; c < shape.channels; ++c) body(n, l, c);
    }
  }
}
inline int code_of(const Tensor& tile, size_t at) {
  return tile.type() == ElementType::kS8 ? tile.data<int8_t>()[at] : tile.data<uint8_t>()[at];
}

inline Tensor random_floats(const TileShape& shape, Random& random) {
  Tensor tile = Tensor::tile(shape, ElementType::kF32);
  tile.fill_zero();
  for_each(shape, [&](int64_t n, int l, int c) {
    tile.data<float>()[place(shape, n, l, c)] = random.uniform(-1.0F, 1.0F);
  });
  return tile;
}

struct JoinOperands {
  explicit JoinOperands(const JoinCase& of) : test(of) {
    Random random(5, test.name);
    int channels = 0;
    for (const JoinOperand& input : test.inputs) {
      const int length = test.length * test.window + test.left_over;
      const TileShape tile{test.frames, length, input.channels, input.pad};
      Tensor& x = codes.emplace_back(
          Tensor::tile(tile, input.is_signed ? ElementType::kS8 : ElementType::kU8));
      x.fill_zero();
      for_each(tile, [&](int64_t n, int l, int c) {
        const int lowest = input.is_signed ? -(1 << (input.bits - 1)) : 0;
        x.data<int8_t>()[place(tile, n, l, c)] =
            static_cast<int8_t>(lowest + static_cast<int>(random.below(1U << input.bits)));
      });
      channels = test.join == Join::kConcat ? channels + input.channels : input.channels;
      before.push_back(random_floats({tile.frames, tile.length, tile.channels, 0}, random));
    }
    shape.out_channels = channels;
    shape.length = test.length;
    shape.pool = test.pool;
    shape.act_bits = test.bits;
    shape.smallest_code = test.smallest_code;
    dp = random_floats({test.frames, test.length / test.pool, channels, 0}, random);
  }
  std::vector<cpu::Input> inputs() const {
    std::vector<cpu::Input> views;
    for (size_t i = 0; i < codes.size(); ++i)
      views.push_back({codes[i].view(), test.inputs[i].scale});
    return views;
  }

  const JoinCase& test;
  LayerShape shape;
  std::vector<Tensor> codes;
  std::vector<Tensor> before;  // gradients of the inputs by others
  Tensor dp;
};

}  // namespace fmp
