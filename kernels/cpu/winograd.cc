// SPDX-License-Identifier: MIT
// The transforms of kernels/cpu/winograd.h: the same few operations on every element of a row.
#include "kernels/cpu/winograd.h"

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/winograd.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/cpu/winograd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

using namespace winograd;  // NOLINT: kPoints, kOutputs, kTaps

using IntTag = hn::CappedTag<int32_t, kLanes>;
constexpr IntTag kInts;
using ShortTag = hn::Repartition<int16_t, IntTag>;
constexpr ShortTag kShorts;

template <class D, typename T>
HWY_INLINE void data_at_points(D d, const T* HWY_RESTRICT x, ptrdiff_t x_stride, int groups,
                               int count, T* HWY_RESTRICT points, ptrdiff_t group_stride,
                               ptrdiff_t point_stride) {
  for (int g = 0; g < groups; ++g, x += kOutputs * x_stride, points += group_stride) {
    for (int i = 0; i < count; i += static_cast<int>(hn::MaxLanes(d))) {
      const auto row = [&](int r) { return hn::Load(d, x + r * x_stride + i); };
      points_of_rows(row, [&](int point, auto value) {
        hn::Store(value, d, points + point * point_stride + i);
      });
    }
  }
}

void winograd_data(const float* x, ptrdiff_t x_stride, int groups, int count, float* points,
                   ptrdiff_t group_stride, ptrdiff_t point_stride) {
  data_at_points(kFloats, x, x_stride, groups, count, points, group_stride, point_stride);
}

void winograd_data_pairs(const int16_t* x, ptrdiff_t x_stride, int groups, int count,
                         int16_t* points, ptrdiff_t group_stride, ptrdiff_t point_stride) {
  data_at_points(kShorts, x, x_stride, groups, count, points, group_stride, point_stride);
}

// dy as the filter of the weight gradient, without denominators.
void winograd_gradient(const float* dy, ptrdiff_t dy_stride, int groups, int count, float* points,
                       ptrdiff_t group_stride, ptrdiff_t point_stride) {
  for (int g = 0; g < groups; ++g, dy += kOutputs * dy_stride, points += group_stride) {
    for (int i = 0; i < count; i += kWidth) {
      const auto row = [&](int r) { return hn::Load(kFloats, dy + r * dy_stride + i); };
      const V g0 = row(0), g1 = row(1), g2 = row(2), g3 = row(3);
      const auto store = [&](int point, V value) {
        hn::Store(value, kFloats, points + point * point_stride + i);
      };
      const V even = hn::Add(g0, g2), odd = hn::Add(g1, g3);
      const V even_at_2 = hn::Add(g0, four_times(g2));
      const V odd_at_2 = twice(hn::Add(g1, four_times(g3)));
      store(0, g0);
      store(1, hn::Add(even, odd));
      store(2, hn::Sub(even, odd));
      store(3, hn::Add(even_at_2, odd_at_2));
      store(4, hn::Sub(even_at_2, odd_at_2));
      store(5, g3);
    }
  }
}

// The four outputs of a group, each handed to store(position, value); `rows` may end within the
// last group.
template <class D, typename T, class StoreRow>
HWY_INLINE void outputs(D d, const T* HWY_RESTRICT points, ptrdiff_t group_stride,
                        ptrdiff_t point_stride, int rows, int count, const StoreRow& store) {
  for (int l = 0; l < rows; l += kOutputs, points += group_stride) {
    for (int i = 0; i < count; i += static_cast<int>(hn::MaxLanes(d))) {
      const auto point = [&](int p) { return hn::Load(d, points + p * point_stride + i); };
      outputs_of_points(point, [&](int output, auto value) {
        if (l + output < rows) store(l + output, i, value);
      });
    }
  }
}

void winograd_outputs(const float* points, ptrdiff_t group_stride, ptrdiff_t point_stride, int rows,
                      int count, float* y, ptrdiff_t y_stride) {
  outputs(kFloats, points, group_stride, point_stride, rows, count,
          [&](int l, int i, V value) { hn::Store(value, kFloats, y + l * y_stride + i); });
}

void winograd_outputs_exact(const int32_t* points, ptrdiff_t group_stride, ptrdiff_t point_stride,
                            int rows, int count, float* y, ptrdiff_t y_stride) {
  outputs(kInts, points, group_stride, point_stride, rows, count, [&](int l, int i, auto value) {
    const auto sum = hn::ConvertTo(kFloats, without_denominator(value));
    hn::Store(sum, kFloats, y + l * y_stride + i);
  });
}

}  // namespace

void fill_winograd(Simd& table) {
  table.winograd_data = winograd_data;
  table.winograd_data_pairs = winograd_data_pairs;
  table.winograd_gradient = winograd_gradient;
  table.winograd_outputs = winograd_outputs;
  table.winograd_outputs_exact = winograd_outputs_exact;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fmp::cpu {
HWY_EXPORT(fill_winograd);
void fill_winograd_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_winograd)(table); }
}  // namespace fmp::cpu
#endif
