// SPDX-License-Identifier: MIT
#pragma once

#include "framework/engine.h"
#include "framework/network.h"
#include "kernels/cuda/libraries.h"

namespace fmp {

// Runs the three passes of a layer on the device with `batch` frames and every kernel that there
// is, and takes the fastest for each. Waits for the libraries' stream.
LayerPlan plan_by_device_timing(const Layer& layer, int batch, cuda::Libraries& libraries);

}  // namespace fmp
