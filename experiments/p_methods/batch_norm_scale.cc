// SPDX-License-Identifier: MIT
// Network slimming: removes the output channels whose batch-norm scales are smallest in magnitude,
// over all hidden layers together. Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient
// Convolutional Networks through Network Slimming", ICCV 2017, which trains with an L1 penalty on
// the scales; here they are as training without a penalty leaves them.
#include <cmath>

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class BatchNormScale final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kChannels; }

  void prune(PruneRequest& request) const override {
    prune_lowest_channels(request.layers, request.fraction, [&](size_t layer, int channel) {
      return std::abs(request.layers[layer].gamma.values[static_cast<size_t>(channel)]);
    });
  }
};

FMP_REGISTER_PRUNING_METHOD(BatchNormScale, "batch-norm-scale",
                            "The output channels with the smallest batch-norm scales (slimming).");

}  // namespace
}  // namespace fmp
