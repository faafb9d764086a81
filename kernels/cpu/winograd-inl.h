// SPDX-License-Identifier: MIT
// The transforms of kernels/cpu/winograd.h on vectors of any type.

#if defined(FMP_KERNELS_CPU_WINOGRAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FMP_KERNELS_CPU_WINOGRAD_INL_H_
#undef FMP_KERNELS_CPU_WINOGRAD_INL_H_
#else
#define FMP_KERNELS_CPU_WINOGRAD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/winograd.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

// The data of a group at each point: store(point, value). row(r): rows 0 .. 5 of the group.
template <class Row, class StorePoint>
HWY_INLINE void points_of_rows(const Row& row, const StorePoint& store) {
  const auto x0 = row(0), x1 = row(1), x2 = row(2), x3 = row(3), x4 = row(4), x5 = row(5);
  const auto even = hn::Sub(x4, four_times(x2)), odd = hn::Sub(x3, four_times(x1));
  const auto half_even = hn::Sub(x4, x2), half_odd = twice(hn::Sub(x3, x1));
  store(0, hn::Add(four_times(x0), hn::Sub(x4, five_times(x2))));
  store(1, hn::Add(even, odd));
  store(2, hn::Sub(even, odd));
  store(3, hn::Add(half_even, half_odd));
  store(4, hn::Sub(half_even, half_odd));
  store(5, hn::Add(four_times(x1), hn::Sub(x5, five_times(x3))));
}

// The four outputs of a group from the products at its points: store(output, value).
template <class Point, class StoreOutput>
HWY_INLINE void outputs_of_points(const Point& point, const StoreOutput& store) {
  const auto p1 = point(1), p2 = point(2), p3 = point(3), p4 = point(4);
  const auto sum = hn::Add(p1, p2), difference = hn::Sub(p1, p2);
  const auto sum_at_2 = hn::Add(p3, p4), difference_at_2 = hn::Sub(p3, p4);
  store(0, hn::Add(point(0), hn::Add(sum, sum_at_2)));
  store(1, hn::Add(difference, twice(difference_at_2)));
  store(2, hn::Add(sum, four_times(sum_at_2)));
  store(3, hn::Add(hn::Add(difference, twice(four_times(difference_at_2))), point(5)));
}

// From 24 y, as weights_at_points() makes it of integers, to y.
template <class VI32>
HWY_INLINE VI32 without_denominator(VI32 value) {
  static_assert(winograd::kWeightDenominator == 8 * 3);
  // 3 * kInverseOf3 = 1 modulo 2^32.
  constexpr int32_t kInverseOf3 = static_cast<int32_t>(0xAAAAAAABU);
  return hn::Mul(hn::ShiftRight<3>(value), hn::Set(hn::DFromV<VI32>(), kInverseOf3));
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
