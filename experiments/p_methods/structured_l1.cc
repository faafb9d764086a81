// SPDX-License-Identifier: MIT
// Structured magnitude pruning: in every hidden layer, the fraction of the output channels still
// alive whose weights have the smallest L1 norms. Counts as torch.nn.utils.prune.ln_structured does
// with n = 1 and dim = 0. The output layer's channels are the classes and stay, and a layer's last
// channel stays as well. Of equal norms the channel with the lower index goes first. Channels that
// go together have the sum of their norms, in the first of their layers.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

double l1_norm(std::span<const float> weights) {
  double sum = 0;
  for (const float weight : weights) sum += std::abs(weight);
  return sum;
}

// Of the channels whose group begins in this layer, each with all that go with it.
void prune_channels(std::span<const PrunableLayer> layers, std::span<const ChannelGroup> groups,
                    double fraction) {
  std::vector<std::pair<double, size_t>> alive;  // norm, group
  for (size_t i = 0; i < groups.size(); ++i) {
    double norm = 0;
    for (const auto& [layer, channel] : groups[i])
      norm += l1_norm(layers[layer].channel_weights(channel));
    alive.emplace_back(norm, i);
  }
  std::ranges::sort(alive);
  const auto remaining = static_cast<int64_t>(alive.size());
  const int64_t removed = std::min(prune_count(fraction, remaining), remaining - 1);
  for (int64_t i = 0; i < removed; ++i) {
    for (const auto& [layer, channel] : groups[alive[static_cast<size_t>(i)].second])
      std::ranges::fill(layers[layer].channel_mask(channel), uint8_t{0});
  }
}

class StructuredL1 final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kChannels; }

  void prune(PruneRequest& request) const override {
    const std::vector<ChannelGroup> groups = alive_channel_groups(request.layers);
    const auto first_layer = [](const ChannelGroup& group) { return group.front().first; };
    for (auto begin = groups.begin(); begin != groups.end();) {
      const auto end = std::find_if(begin, groups.end(), [&](const ChannelGroup& group) {
        return first_layer(group) != first_layer(*begin);
      });
      prune_channels(request.layers, {begin, end}, request.fraction);
      begin = end;
    }
  }
};

FMP_REGISTER_PRUNING_METHOD(StructuredL1, "structured-l1",
                            "The output channels with the smallest L1 norms of each hidden layer.");

}  // namespace
}  // namespace fmp
