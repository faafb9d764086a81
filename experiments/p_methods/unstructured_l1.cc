// SPDX-License-Identifier: MIT
// Global magnitude pruning: the weights of all layers compete with each other, and the fraction of
// them with the smallest absolute values goes. Counts as torch.nn.utils.prune.global_unstructured
// does with L1Unstructured.
#include "framework/network/pruning.h"

namespace fmp {
namespace {

class UnstructuredL1 final : public PruningMethod {
 public:
  void prune(PruneRequest& request) const override { prune_smallest(request); }
};

FMP_REGISTER_PRUNING_METHOD(UnstructuredL1, "unstructured-l1",
                            "The smallest weights of the whole network.");

}  // namespace
}  // namespace fmp
