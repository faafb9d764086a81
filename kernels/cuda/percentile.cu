// SPDX-License-Identifier: MIT
// The percentile of a batch's activations, which a quantizer's threshold follows in the first
// training steps. It is found by radix selection, eight bits a pass: the value first, then, among
// equal ones, the element that comes first in the CPU's order.
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/cuda/activation.h"
#include "kernels/cuda/device_ranks.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;

constexpr int kRadixBits = 8, kBins = 1 << kRadixBits;
constexpr float kSmallestPositive = std::numeric_limits<float>::min();

__global__ void __launch_bounds__(kBlockThreads) start_search(unsigned rank, Scalars* s) {
  s->selected = 0;
  if (rank != 0) s->rank = rank;
  for (int b = 0; b < kBins; ++b) s->histogram[b] = 0;
}

// Counts the next eight bits of every element's key that agrees with what is selected above them.
// kByNumber: the key is the element's number, of elements with the value found before.
template <bool kByNumber>
__global__ void __launch_bounds__(kBlockThreads)
    count_keys(Activation a, const float* y, int shift, Scalars* s) {
  __shared__ unsigned bins[kBins];
  bins[thread_x()] = 0;
  static_assert(kBins == kBlockThreads);
  __syncthreads();
  const unsigned selected = s->selected, value_bits = s->value_bits;
  const unsigned above = shift + kRadixBits < 32 ? ~0U << (shift + kRadixBits) : 0U;
  const int channel = block_x();
  const float gain = a.gain[channel], offset = a.shift[channel];
  const RowSlice rows(a.length);
  for (int row = rows.begin; row < rows.end; ++row) {
    for (int lane = thread_x(); lane < a.frames; lane += kBlockThreads) {
      const float t = __fmaf_rn(y[a.place(row, channel, lane)], gain, offset);
      // Only positive values matter after a ReLU, magnitudes where codes are signed; their bits are
      // ordered as they are. Numbers are below 2^31 and leave room for the sign.
      const float size = a.min_code < 0 ? fabsf(t) : t;
      const unsigned bits = size >= kSmallestPositive ? __float_as_uint(size) : 0U;
      const unsigned key = kByNumber ? a.number(row, channel, lane) << 1 | (t < 0 ? 1U : 0U) : bits;
      if ((!kByNumber || bits == value_bits) && (key & above) == selected) {
        atomicAdd(&bins[key >> shift & (kBins - 1)], 1U);
      }
    }
  }
  __syncthreads();
  if (bins[thread_x()] != 0) atomicAdd(&s->histogram[thread_x()], bins[thread_x()]);
}

// The bin that holds the element of the wanted rank: values count from the largest, numbers from
// the smallest.
__global__ void __launch_bounds__(kBlockThreads)
    choose_bin(int shift, bool descending, Scalars* s) {
  unsigned rank = s->rank;
  for (int i = 0; i < kBins; ++i) {
    const int bin = descending ? kBins - 1 - i : i;
    const unsigned count = s->histogram[bin];
    if (rank <= count) {
      s->selected |= static_cast<unsigned>(bin) << shift;
      break;
    }
    rank -= count;
  }
  s->rank = rank;
  for (int b = 0; b < kBins; ++b) s->histogram[b] = 0;
}

__global__ void __launch_bounds__(kBlockThreads) keep_value(Scalars* s) {
  s->value_bits = s->selected;
}

__global__ void __launch_bounds__(kBlockThreads)
    keep_statistic(Activation a, const float* xhat_gain, const float* xhat_shift, Scalars* s) {
  s->has_statistic = s->value_bits != 0 ? 1 : 0;
  s->statistic_place = s->selected >> 1;
  s->statistic_sign = (s->selected & 1U) != 0 ? -1.0F : 1.0F;
  s->threshold = kMinQuantizerRange;
  if (s->has_statistic == 0) return;
  const float magnitude = __uint_as_float(s->value_bits), value = s->statistic_sign * magnitude;
  s->threshold = fmaxf(magnitude, kMinQuantizerRange);
  const int c = a.channel_of_number(s->statistic_place);
  const float y = a.gain[c] != 0 ? (value - a.shift[c]) / a.gain[c] : 0.0F;
  s->statistic_xhat = xhat_gain[c] * y + xhat_shift[c];
}

}  // namespace

void find_percentile(const Activation& a, const HiddenState& state, DeviceRanks* ranks,
                     Stream stream) {
  const double n = static_cast<double>(a.batch_frames) * a.length * a.channels;
  if (n >= 4294967296.0 / 2) {
    throw std::invalid_argument("CUDA: too many activations for the percentile; lower the batch");
  }
  const double k = std::floor(0.01 * kThresholdPercentile * n + 0.5);
  const unsigned wanted = static_cast<unsigned>(n - k) + 1;
  const cudaStream_t on = native(stream);
  Scalars* s = state.scalars.data();
  const Shape one{dim3(1), dim3(1)}, all = channel_slices(a.channels, a.length);
  // The ranks' counts add up to those of the batch.
  const auto add_up = [&] {
    if (!a.groups.are_all_here()) ranks->sum(s->histogram, kBins, stream);
  };
  launch(Where("start_search", on), one, start_search, wanted, s);
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    launch(Where("count_keys", on), all, count_keys<false>, a, state.y.data(), shift, s);
    add_up();
    launch(Where("choose_bin", on), one, choose_bin, shift, true, s);
  }
  launch(Where("keep_value", on), one, keep_value, s);
  launch(Where("start_search", on), one, start_search, 0U, s);
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    launch(Where("count_keys", on), all, count_keys<true>, a, state.y.data(), shift, s);
    add_up();
    launch(Where("choose_bin", on), one, choose_bin, shift, false, s);
  }
  launch(Where("keep_statistic", on), one, keep_statistic, a,
         state.constant(HiddenState::kXhatGain), state.constant(HiddenState::kXhatShift), s);
}

}  // namespace fmp::cuda
