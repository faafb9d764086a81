// SPDX-License-Identifier: MIT
// A complete pruning method, as the README shows it: put such a file into experiments/p_methods/,
// build, and `--p-methods cost-weighted-l1` works.
//
// It is magnitude pruning that minds what a weight costs: a weight of the first convolution is
// multiplied at every position of a frame, one of a dense layer once. What counts is therefore the
// magnitude per bit operation; where weights of equal size compete, the dearer one goes.
#include <cmath>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class CostWeightedL1 final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    prune_lowest(request.layers, request.fraction, [](const PrunableLayer& layer, int64_t index) {
      const double magnitude = std::abs(layer.weights[static_cast<size_t>(index)]);
      return magnitude / static_cast<double>(layer.bit_ops_per_weight());
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(CostWeightedL1, "cost-weighted-l1",
                            "The weights that are smallest for the bit operations they cause.");

}  // namespace
}  // namespace fmp
