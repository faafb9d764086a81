// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>

#include "framework/training/engine.h"
#include "kernels/communicator.h"

namespace fmp {

enum class DeviceChoice : uint8_t { kAuto, kCpu, kCuda };

// The engine that `device` asks for; auto: CUDA where this build has it and there is a device. Sets
// `device` to what it is. threads: of the CPU, 0 = all cores. Throws UsageError that says why there
// is no CUDA. ranks: as of make_cpu_engine(); on devices where each of them has one.
std::unique_ptr<Engine> choose_engine(DeviceChoice& device, int threads,
                                      Communicator* ranks = nullptr);

}  // namespace fmp
