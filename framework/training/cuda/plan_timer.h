// SPDX-License-Identifier: MIT
#pragma once

#include "framework/network/network.h"
#include "framework/training/engine.h"
#include "kernels/cuda/libraries.h"

namespace fmp {

// Runs the three passes of a layer on the device with `batch` frames and every kernel that there
// is, and takes the fastest for each. What a library refuses is no candidate, and the plan says so.
// shared: devices share batches, see allowed_in_shares(). Waits for the libraries' stream.
LayerPlan plan_by_device_timing(const Layer& layer, int batch, bool shared,
                                cuda::Libraries& libraries);

// Whether a layer may run so where devices share batches: the order in which a library adds up
// floats may depend on how many frames there are.
bool allowed_in_shares(const Layer& layer, const PassPlan& plan);

}  // namespace fmp
