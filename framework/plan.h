// SPDX-License-Identifier: MIT
#pragma once

#include "framework/network.h"
#include "framework/trainer.h"
#include "kernels/ops.h"

namespace fmp {

// Dense or sparse for each pass of a layer. Both give the same bits, so this decides speed alone.

inline ops::PassPlan pass_plan(const LayerPlan& plan) {
  return {plan.sparse_forward, plan.sparse_backward_data, plan.sparse_backward_weight};
}

// Sparse for every pass where the layer's density is below the threshold.
LayerPlan plan_by_density(const Layer& layer, double threshold);

// Runs forward and backward on random frames with the layer's weights, dense and sparse, and takes
// the faster kernel for each pass. batch: frames of a step; a fraction of them is enough to time.
LayerPlan plan_by_timing(const Layer& layer, int batch, int threads);

}  // namespace fmp
