// SPDX-License-Identifier: MIT
// As structured-taylor, but the importance of a channel is divided by what its removal takes off
// the inference cost: its own weights and those of the next layer that read it.
#include "framework/network/pruning.h"

namespace fmp {
namespace {

class CostStructuredTaylor final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kChannels; }

  void prune(PruneRequest& request) const override {
    prune_lowest_channels(request.layers, request.fraction, [&](size_t layer, int channel) {
      return score_per_cost(squared_taylor_of_channel(request.layers[layer], channel),
                            cost_of_channel(request.layers, layer, channel));
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(CostStructuredTaylor, "cost-structured-taylor",
                            "As structured-taylor, but the change of the loss for the cost saved.");

}  // namespace
}  // namespace fmp
