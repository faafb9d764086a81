// SPDX-License-Identifier: MIT
// The percentile of a batch's activations, which a QuantReLU's threshold follows in the first
// training steps.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/hidden_pass.h"

namespace fmp::cpu {
namespace {

// The largest elements of one item with their places, at least the `wanted` largest.
struct LargestElements {
  struct Element {
    float value;
    int64_t row;
    int32_t channel_lane;
  };
  // Descending value, then place: among equals the first one is taken, whatever was collected when.
  static bool before(const Element& a, const Element& b) {
    if (a.value != b.value) return a.value > b.value;
    if (a.row != b.row) return a.row < b.row;
    return a.channel_lane < b.channel_lane;
  }
  std::vector<Element> elements;
  float at_least = std::numeric_limits<float>::min();  // only positive values matter after a ReLU

  void trim(size_t wanted) {
    if (elements.size() < 2 * wanted) return;
    const auto last = elements.begin() + static_cast<ptrdiff_t>(wanted - 1);
    std::nth_element(elements.begin(), last, elements.end(), before);
    at_least = last->value;
    elements.resize(wanted);
  }
};

// Adds the largest elements of all other ranks.
void gather_largest(Communicator& ranks, size_t wanted,
                    std::vector<LargestElements::Element>& elements) {
  if (elements.size() > wanted) {
    std::nth_element(elements.begin(), elements.begin() + static_cast<ptrdiff_t>(wanted),
                     elements.end(), LargestElements::before);
    elements.resize(wanted);
  }
  std::vector<int64_t> sizes(static_cast<size_t>(ranks.ranks()), 0);
  sizes[static_cast<size_t>(ranks.rank())] =
      static_cast<int64_t>(std::as_bytes(std::span(elements)).size());
  ranks.sum(sizes);
  const int64_t bytes = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  std::vector<LargestElements::Element> all(static_cast<size_t>(bytes) /
                                            sizeof(LargestElements::Element));
  ranks.gather(std::as_bytes(std::span(elements)), sizes, std::as_writable_bytes(std::span(all)));
  elements = std::move(all);
}

}  // namespace

// The k-th smallest, k = floor(0.01 q n + 0.5), is one of the few largest: those are collected.
void collect_threshold(const HiddenPass& pass, HiddenState& state, const RunContext& context) {
  const LayerShape& shape = pass.shape();
  const double n = pass.count(context) * shape.out_channels;
  const double k = std::floor(0.01 * kThresholdPercentile * n + 0.5);
  const size_t wanted = static_cast<size_t>(n - k) + 1;
  const int64_t before = pass.rows_before(context);
  std::vector<LargestElements> largest(static_cast<size_t>(pass.items().count()));
  const auto collect = [&](int64_t item, int r0, int first, const Sums& sums) {
    LargestElements& mine = largest[static_cast<size_t>(item)];
    const ChannelAffine affine{state.gain.data() + first, state.shift.data() + first};
    std::vector<float> values(static_cast<size_t>(sums.channels * kLanes));
    std::vector<int32_t> places(values.size());
    for (int r = 0; r < sums.rows; ++r) {
      const int found = simd().collect_at_least(
          {sums.y + r * sums.stride, sums.stride, 1, sums.channels}, affine, mine.at_least,
          pass.items().lanes_used(item, r0 + r), values.data(), places.data());
      for (size_t i = 0; i < static_cast<size_t>(found); ++i) {
        mine.elements.push_back({values[i],
                                 before + pass.items().row(item, r0 + r, shape.length, 0),
                                 first * kLanes + places[i]});
      }
      mine.trim(wanted);
    }
  };
  for_each_item(pass.items().count(), context,
                [&](int64_t item, Scratch& scratch, LapTimer& timer, Profile& mine) {
                  pass.for_each_chunk(item, [&](int r0, int rows) {
                    pass.for_each_sums(&state, item, r0, rows, scratch, timer, mine,
                                       [&](int c, const Sums& sums) {
                                         collect(item, r0, c, sums);
                                         timer.lap(mine.activation_forward);
                                       });
                  });
                });

  std::vector<LargestElements::Element> all;
  for (const LargestElements& item : largest) {
    all.insert(all.end(), item.elements.begin(), item.elements.end());
  }
  if (Communicator* ranks = ranks_of(context)) gather_largest(*ranks, wanted, all);
  state.statistic_row = -1;
  float threshold = kMinQuantizerRange;
  if (all.size() >= wanted) {
    const auto kth = all.begin() + static_cast<ptrdiff_t>(wanted - 1);
    std::nth_element(all.begin(), kth, all.end(), LargestElements::before);
    threshold = std::max(kth->value, kMinQuantizerRange);
    state.statistic_row = kth->row;
    state.statistic_channel = kth->channel_lane / kLanes;
    state.statistic_lane = kth->channel_lane % kLanes;
    const size_t c = static_cast<size_t>(state.statistic_channel);
    const float y = state.gain[c] != 0 ? (kth->value - state.shift[c]) / state.gain[c] : 0.0F;
    state.statistic_xhat = state.xhat_gain[c] * y + state.xhat_shift[c];
  }
  set_threshold(shape, threshold, state);
}

}  // namespace fmp::cpu
