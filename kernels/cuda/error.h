// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fmp::cuda {

// A line of source; std::source_location is missing in Clang 14.
struct SourceLine {
  const char* file;
  int line;
  static constexpr SourceLine current(const char* file = __builtin_FILE(),
                                      int line = __builtin_LINE()) {
    return {file, line};
  }
};

// A call of the CUDA runtime that failed: what, where, and CUDA's own words.
class CudaError : public std::runtime_error {
 public:
  CudaError(cudaError_t status, const std::string& call, const SourceLine& where)
      : std::runtime_error(std::string(where.file) + ":" + std::to_string(where.line) + ": " +
                           call + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status)),
        status_(status) {}
  cudaError_t status() const { return status_; }

 private:
  cudaError_t status_;
};

// call: the function or kernel that returned `status`.
inline void check(cudaError_t status, const char* call,
                  const SourceLine& where = SourceLine::current()) {
  if (status != cudaSuccess) throw CudaError(status, call, where);
}

}  // namespace fmp::cuda
