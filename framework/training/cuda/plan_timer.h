// SPDX-License-Identifier: MIT
#pragma once

#include "framework/network/network.h"
#include "framework/training/engine.h"
#include "kernels/cuda/libraries.h"

namespace fmp {

// Runs the three passes of a layer on the device with `batch` frames and every kernel that there
// is, and takes the fastest for each. What a library refuses is no candidate, and the plan says so.
// Waits for the libraries' stream.
LayerPlan plan_by_device_timing(const Layer& layer, int batch, cuda::Libraries& libraries);

}  // namespace fmp
