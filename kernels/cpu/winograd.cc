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

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

using namespace winograd;  // NOLINT: kPoints, kOutputs, kTaps

using IntTag = hn::CappedTag<int32_t, kLanes>;
constexpr IntTag kInts;
using ShortTag = hn::Repartition<int16_t, IntTag>;
constexpr ShortTag kShorts;

// Small multiples, one addition apart.
template <class T>
HWY_INLINE T twice(T a) {
  return hn::Add(a, a);
}
template <class T>
HWY_INLINE T four_times(T a) {
  return twice(twice(a));
}
template <class T>
HWY_INLINE T five_times(T a) {
  return hn::Add(four_times(a), a);
}

template <class D, typename T>
HWY_INLINE void data_at_points(D d, const T* HWY_RESTRICT x, ptrdiff_t x_stride, int groups,
                               int count, T* HWY_RESTRICT points, ptrdiff_t group_stride,
                               ptrdiff_t point_stride) {
  for (int g = 0; g < groups; ++g, x += kOutputs * x_stride, points += group_stride) {
    for (int i = 0; i < count; i += static_cast<int>(hn::MaxLanes(d))) {
      const auto row = [&](int r) { return hn::Load(d, x + r * x_stride + i); };
      const auto x0 = row(0), x1 = row(1), x2 = row(2), x3 = row(3), x4 = row(4), x5 = row(5);
      const auto store = [&](int point, auto value) {
        hn::Store(value, d, points + point * point_stride + i);
      };
      const auto even = hn::Sub(x4, four_times(x2)), odd = hn::Sub(x3, four_times(x1));
      const auto half_even = hn::Sub(x4, x2), half_odd = twice(hn::Sub(x3, x1));
      store(0, hn::Add(four_times(x0), hn::Sub(x4, five_times(x2))));
      store(1, hn::Add(even, odd));
      store(2, hn::Sub(even, odd));
      store(3, hn::Add(half_even, half_odd));
      store(4, hn::Sub(half_even, half_odd));
      store(5, hn::Add(four_times(x1), hn::Sub(x5, five_times(x3))));
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
      const auto p1 = point(1), p2 = point(2), p3 = point(3), p4 = point(4);
      const auto sum = hn::Add(p1, p2), difference = hn::Sub(p1, p2);
      const auto sum_at_2 = hn::Add(p3, p4), difference_at_2 = hn::Sub(p3, p4);
      store(l, i, hn::Add(point(0), hn::Add(sum, sum_at_2)));
      if (l + 1 < rows) store(l + 1, i, hn::Add(difference, twice(difference_at_2)));
      if (l + 2 < rows) store(l + 2, i, hn::Add(sum, four_times(sum_at_2)));
      if (l + 3 < rows) {
        const auto eight = twice(four_times(difference_at_2));
        store(l + 3, i, hn::Add(hn::Add(difference, eight), point(5)));
      }
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
  // 3 * kInverseOf3 = 1 modulo 2^32.
  constexpr int32_t kInverseOf3 = static_cast<int32_t>(0xAAAAAAABU);
  const auto inverse = hn::Set(kInts, kInverseOf3);
  outputs(kInts, points, group_stride, point_stride, rows, count, [&](int l, int i, auto value) {
    const auto quotient = hn::Mul(hn::ShiftRight<3>(value), inverse);
    hn::Store(hn::ConvertTo(kFloats, quotient), kFloats, y + l * y_stride + i);
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
