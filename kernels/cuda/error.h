// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <stdexcept>
#include <string>

namespace fmp::cuda {

// A call of the CUDA runtime that failed: what, where, and CUDA's own words.
class CudaError : public std::runtime_error {
 public:
  CudaError(cudaError_t status, const std::string& call, const std::source_location& where)
      : std::runtime_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                           ": " + call + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status)),
        status_(status) {}
  cudaError_t status() const { return status_; }

 private:
  cudaError_t status_;
};

// call: the function or kernel that returned `status`.
inline void check(cudaError_t status, const char* call,
                  const std::source_location& where = std::source_location::current()) {
  if (status != cudaSuccess) throw CudaError(status, call, where);
}

}  // namespace fmp::cuda
