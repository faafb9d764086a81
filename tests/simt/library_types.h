// SPDX-License-Identifier: MIT
// Stands in for CUDA's header of the same name; see cuda_runtime.h.
#pragma once

// CUDA's names. The second type exists to be refused.
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_16F = 2 };
