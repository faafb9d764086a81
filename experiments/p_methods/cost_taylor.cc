// SPDX-License-Identifier: MIT
// Taylor pruning that minds the cost: removes the weights that change the loss least for what they
// add to the inference cost. The score of "taylor" estimates the loss that a weight's removal
// costs; divided by what the removal saves, the lowest ratios are the greedy choice of the knapsack
// problem "most cost off for a given loss".
#include "framework/network/pruning.h"

namespace fmp {
namespace {

class CostTaylor final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    prune_lowest(request.layers, request.fraction, [](const PrunableLayer& layer, int64_t index) {
      return score_per_cost(layer.trained_weights.squared_taylor(static_cast<size_t>(index)),
                            layer.cost_per_weight());
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(CostTaylor, "cost-taylor",
                            "As taylor, but (weight x gradient)^2 for the cost that it saves.");

}  // namespace
}  // namespace fmp
