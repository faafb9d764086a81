// SPDX-License-Identifier: MIT
// Magnitude pruning that minds the cost. Plain magnitudes of different layers do not compare: every
// layer has a weight scale of its own, and the batch-norm behind it takes any factor out again.
// What counts is the share of the layer's squares that a weight holds, so the score that is divided
// by the cost is that of layer-adaptive magnitude pruning (see lamp.cc): a square, as the loss that
// a removal costs grows with the square, and normalized by the layer. Divided by what the weight
// adds to the inference cost, the lowest ratios take most cost off for a given change of the
// outputs.
#include <vector>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class CostL1 final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    std::vector<std::vector<double>> scores;
    for (const PrunableLayer& layer : request.layers) scores.push_back(lamp_scores(layer));
    prune_lowest(request.layers, request.fraction, [&](const PrunableLayer& layer, int64_t index) {
      return score_per_cost(scores[layer.index][static_cast<size_t>(index)],
                            layer.cost_per_weight());
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(CostL1, "cost-l1",
                            "The smallest weights of each layer for the cost that they add.");

}  // namespace
}  // namespace fmp
