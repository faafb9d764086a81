// SPDX-License-Identifier: MIT
// Magnitude pruning with the same fraction in every layer, so that no layer is emptied because its
// weights happen to be small. Counts as torch.nn.utils.prune.l1_unstructured does per layer.
#include <cmath>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class UnstructuredL1Layerwise final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    for (PrunableLayer& layer : request.layers) {
      prune_lowest({&layer, 1}, request.fraction, [](const PrunableLayer& l, int64_t index) {
        return std::abs(l.weights[static_cast<size_t>(index)]);
      });
    }
  }
};

FMP_REGISTER_PRUNING_METHOD(UnstructuredL1Layerwise, "unstructured-l1-layerwise",
                            "The smallest weights of each layer, the same fraction in all.");

}  // namespace
}  // namespace fmp
