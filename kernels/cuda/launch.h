// SPDX-License-Identifier: MIT
// How kernels are launched, and how every status of the CUDA runtime is checked.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/cuda/error.h"

namespace fmp::cuda {

// The dynamic shared memory of a kernel. One array for all: its type is each kernel's own.
extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

// Threads of a grid.
struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// What is launched on which stream, and from which line: what errors show.
struct Where {
  Where(const char* kernel_name, cudaStream_t on_stream,
        const SourceLine& from = SourceLine::current())
      : name(kernel_name), stream(on_stream), place(from) {}
  const char* name;
  cudaStream_t stream;
  SourceLine place;
};

// Dynamic shared memory that a kernel may use without asking.
inline constexpr size_t kUsualSharedBytes = 48 * 1024;

// Launches `kernel`. Throws CudaError when that is refused; what fails while the kernel runs is
// reported by a later call.
template <typename... Parameters, typename... Arguments>
void launch(const Where& where, const Shape& shape, void (*kernel)(Parameters...),
            Arguments... arguments) {
  if (shape.shared_bytes > kUsualSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          where.name, where.place);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = where.stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), where.name,
        where.place);
}

}  // namespace fmp::cuda
