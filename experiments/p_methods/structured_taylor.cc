// SPDX-License-Identifier: MIT
// First-order Taylor pruning of channels: the importance of an output channel is that of a gate
// behind its batch-norm, (scale x its gradient)^2 + (shift x its gradient)^2, averaged over the
// last batches. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
// section 3.2; their gate has the square of the sum, whose mixed term needs gradients that no
// checkpoint keeps. The channels of all hidden layers compete.
#include "framework/network/pruning.h"

namespace fmp {
namespace {

class StructuredTaylor final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kChannels; }

  void prune(PruneRequest& request) const override {
    prune_lowest_channels(request.layers, request.fraction, [&](size_t layer, int channel) {
      return squared_taylor_of_channel(request.layers[layer], channel);
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(
    StructuredTaylor, "structured-taylor",
    "The output channels whose removal changes the loss least (first order).");

}  // namespace
}  // namespace fmp
