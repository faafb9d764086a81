// SPDX-License-Identifier: MIT
// Layer-adaptive magnitude pruning: each weight's square, divided by the sum of the squares of the
// weights of its layer that are not smaller. Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for
// the Magnitude-based Pruning", ICLR 2021, equation 4. The scores of all layers compete. The
// largest weight of each layer scores 1, more than any other, so no layer is emptied while others
// have more than one weight.
#include <vector>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class Lamp final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    std::vector<std::vector<double>> scores;
    for (const PrunableLayer& layer : request.layers) scores.push_back(lamp_scores(layer));
    prune_lowest(request.layers, request.fraction, [&](const PrunableLayer& layer, int64_t index) {
      return scores[layer.index][static_cast<size_t>(index)];
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(Lamp, "lamp",
                            "The smallest weights by the layer-adaptive magnitude (LAMP).");

}  // namespace
}  // namespace fmp
