// SPDX-License-Identifier: MIT
// The control: removes weights of the whole network with no regard to their values. What a method
// gains over this one is what its choice is worth.
#include "framework/random.h"

#include "framework/network/pruning.h"

namespace fmp {
namespace {

class RandomPruning final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override {
    Random random(request.seed, "random-pruning", request.round);
    prune_lowest(request.layers, request.fraction,
                 [&](const PrunableLayer&, int64_t) { return random.uniform_double(); });
  }
};

FMP_REGISTER_PRUNING_METHOD(RandomPruning, "random",
                            "Weights of the whole network, drawn at random (the control).");

}  // namespace
}  // namespace fmp
