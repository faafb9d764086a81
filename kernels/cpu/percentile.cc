// SPDX-License-Identifier: MIT
#include "kernels/cpu/percentile.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/hidden_pass.h"

namespace fmp::cpu {
namespace {

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

void LargestElements::add_row(const Sums& sums, const ChannelAffine& affine, bool magnitudes,
                              int lanes, int64_t row, int first_channel, size_t wanted) {
  thread_local std::vector<float> values;
  thread_local std::vector<int32_t> places;
  const size_t room = static_cast<size_t>(sums.channels) * kLanes;
  values.resize(std::max(values.size(), room));
  places.resize(values.size());
  const int found = simd().collect_at_least(sums, affine, magnitudes, at_least, lanes,
                                            values.data(), places.data());
  for (size_t i = 0; i < static_cast<size_t>(found); ++i) {
    elements.push_back({values[i], row, first_channel * kLanes + places[i]});
  }
  if (elements.size() < 2 * wanted) return;
  const auto last = elements.begin() + static_cast<ptrdiff_t>(wanted - 1);
  std::nth_element(elements.begin(), last, elements.end(), before);
  at_least = last->magnitude();
  elements.resize(wanted);
}

Percentile percentile_of(const std::vector<LargestElements>& items, size_t wanted,
                         Communicator* ranks) {
  std::vector<LargestElements::Element> all;
  for (const LargestElements& item : items) {
    all.insert(all.end(), item.elements.begin(), item.elements.end());
  }
  if (ranks != nullptr) gather_largest(*ranks, wanted, all);
  if (all.size() < wanted) return {};
  const auto kth = all.begin() + static_cast<ptrdiff_t>(wanted - 1);
  std::nth_element(all.begin(), kth, all.end(), LargestElements::before);
  return {std::max(kth->magnitude(), kMinQuantizerRange), kth->value, kth->row,
          kth->channel_lane / kLanes, kth->channel_lane % kLanes};
}

void collect_threshold(const HiddenPass& pass, HiddenState& state, const RunContext& context) {
  const LayerShape& shape = pass.shape();
  const size_t wanted = elements_from_percentile(pass.count(context) * shape.out_channels);
  const int64_t before = pass.rows_before(context);
  std::vector<LargestElements> largest(static_cast<size_t>(pass.items().count()));
  const auto collect = [&](int64_t item, int r0, int first, const Sums& sums) {
    const ChannelAffine affine{state.gain.data() + first, state.shift.data() + first};
    for (int r = 0; r < sums.rows; ++r) {
      largest[static_cast<size_t>(item)].add_row(
          {sums.y + r * sums.stride, sums.stride, 1, sums.channels}, affine,
          shape.smallest_code < 0, pass.items().lanes_used(item, r0 + r),
          before + pass.items().row(item, r0 + r, shape.length, 0), first, wanted);
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
  const Percentile found = percentile_of(largest, wanted, ranks_of(context));
  state.statistic_row = found.row;
  state.statistic_sign = found.value < 0 ? -1.0F : 1.0F;
  if (found.row >= 0) {
    state.statistic_channel = found.channel;
    state.statistic_lane = found.lane;
    const size_t c = static_cast<size_t>(found.channel);
    const float y = state.gain[c] != 0 ? (found.value - state.shift[c]) / state.gain[c] : 0.0F;
    state.statistic_xhat = state.xhat_gain[c] * y + state.xhat_shift[c];
  }
  set_threshold(shape, found.threshold, state);
}

}  // namespace fmp::cpu
