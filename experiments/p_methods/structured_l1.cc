// SPDX-License-Identifier: MIT
// Structured magnitude pruning: in every hidden layer, the fraction of the output channels still
// alive whose weights have the smallest L1 norms. Counts as torch.nn.utils.prune.ln_structured does
// with n = 1 and dim = 0. The output layer's channels are the classes and stay, and a layer's last
// channel stays as well. Of equal norms the channel with the lower index goes first.
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

void prune_channels(const PrunableLayer& layer, double fraction) {
  std::vector<std::pair<double, int>> alive;  // norm, channel
  for (int channel = 0; channel < layer.out_channels; ++channel) {
    if (!layer.channel_alive(channel)) continue;
    alive.emplace_back(l1_norm(layer.channel_weights(channel)), channel);
  }
  if (alive.empty()) return;
  std::ranges::sort(alive);
  const auto remaining = static_cast<int64_t>(alive.size());
  const int64_t removed = std::min(prune_count(fraction, remaining), remaining - 1);
  for (int64_t i = 0; i < removed; ++i) {
    std::ranges::fill(layer.channel_mask(alive[static_cast<size_t>(i)].second), uint8_t{0});
  }
}

class StructuredL1 final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kChannels; }

  void prune(PruneRequest& request) const override {
    for (const PrunableLayer& layer : request.layers) {
      if (layer.kind != Layer::Kind::kOutput) prune_channels(layer, request.fraction);
    }
  }
};

FMP_REGISTER_PRUNING_METHOD(StructuredL1, "structured-l1",
                            "The output channels with the smallest L1 norms of each hidden layer.");

}  // namespace
}  // namespace fmp
