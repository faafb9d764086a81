// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "framework/network/network.h"
#include "framework/training/engine.h"
#include "kernels/cpu/ops.h"

namespace fmp {

// Dense or sparse for each pass of a layer. On the CPU both give the same bits, so this decides
// speed alone; on a device the gradients' last bits depend on it, the forward pass does not.

// The layer's entry in a plan of a whole network; dense if there is none.
LayerPlan plan_of(std::span<const LayerPlan> plan, const Layer& layer);

// A dense plan with the layer's name and density.
LayerPlan dense_plan(const Layer& layer);

// Sparse for every pass where the layer's density is below the threshold, but for backward passes
// that cpu::prefers_dense_backward() keeps dense, or the results would depend on the threshold.
LayerPlan plan_by_density(const Layer& layer, double threshold);

// Runs forward and backward on random frames with the layer's weights, dense and sparse, and takes
// the faster kernel for each pass. batch: frames of a step; a fraction of them is enough to time.
LayerPlan plan_by_cpu_timing(const Layer& layer, int batch, int threads);

}  // namespace fmp
