// SPDX-License-Identifier: MIT
// First-order Taylor pruning: removes the weights whose removal changes the loss least, to first
// order. A weight w with the gradient g changes the loss by w g when it becomes 0; its importance
// is the average of (w g)^2 over the last batches. Molchanov, Mallya, Tyree, Frosio, Kautz,
// "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8, for single weights.
//
// The same score is w^2 times the diagonal of the empirical Fisher information, up to a factor that
// is the same for all weights: the second-order estimate of the loss (Theis et al., "Faster gaze
// prediction with dense networks and Fisher pruning", 2018). So scores of different layers compare.
#include "framework/network/pruning.h"

namespace fmp {
namespace {

class Taylor final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    prune_lowest(request.layers, request.fraction, [](const PrunableLayer& layer, int64_t index) {
      return layer.trained_weights.squared_taylor(static_cast<size_t>(index));
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(Taylor, "taylor",
                            "The weights with the smallest (weight x gradient)^2 (first order).");

}  // namespace
}  // namespace fmp
