// SPDX-License-Identifier: MIT
#pragma once

#include "framework/engine.h"
#include "framework/network.h"
#include "kernels/cuda/device_memory.h"

namespace fmp {

// Runs the three passes of a layer on the device with `batch` frames, dense and sparse, and takes
// the faster kernel for each. Waits for the stream.
LayerPlan plan_by_device_timing(const Layer& layer, int batch, cuda::Stream stream);

}  // namespace fmp
