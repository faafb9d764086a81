// SPDX-License-Identifier: MIT
// cuBLAS and cuSPARSE, as far as the convolutions use them. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "kernels/cuda/device_memory.h"

namespace fmp::cuda {

// C[i] = A[i] * B[i] for i < batches, all row-major floats in device memory: A m x k, B k x n,
// C m x n. Strides are elements from one matrix of the batch to the next: 0 = one matrix for all,
// and those of A and B may be smaller than a matrix, so that matrices overlap.
struct BatchedGemm {
  int m = 0, n = 0, k = 0, batches = 0;
  struct Operand {
    const float* data;
    int row_stride;  // elements from one row to the next as the matrix lies in memory
    int64_t stride;
    bool transposed = false;  // in memory it is k x m (A), n x k (B)
  };
  Operand a{}, b{};
  float* c = nullptr;  // row stride n
  int64_t c_stride = 0;
};

// Where a sparse matrix in device memory has entries: row by row, indices from 0, columns ascending
// in a row.
struct SparsePattern {
  int rows = 0, columns = 0, nonzeros = 0;
  const int* row_begin = nullptr;  // [rows + 1]
  const int* row = nullptr;        // [nonzeros]
  const int* column = nullptr;     // [nonzeros]
};

// C[i] = A * B[i], or += if `add`: A sparse m x k, the same for all; B[i] k x n and C[i] m x n
// row-major without gaps. A matrix may not overlap the next of its batch, which cuSPARSE refuses.
struct BatchedSpmm {
  SparsePattern a{};
  const float* values = nullptr;  // of A
  int n = 0, batches = 0;
  const float* b = nullptr;
  float* c = nullptr;
  bool add = false;
  // The sums' order is the same from run to run.
  bool deterministic = true;
};

// values[i] = the elements of A[i] * B[i]^T in the places of a pattern: A[i] rows x k, B[i]
// columns x k row-major without gaps.
struct BatchedSddmm {
  SparsePattern c{};
  // [batches][nonzeros]; cuSPARSE reads the columns of each matrix of a batch apart.
  const int* columns = nullptr;
  float* values = nullptr;  // [batches][nonzeros]
  int k = 0, batches = 0;
  const float *a = nullptr, *b = nullptr;
};

// A call that a library refused, or that failed: file, line, call and status. Whether a library
// takes a call is known only when it is asked: callers that have another kernel go on with that
// one.
class LibraryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Handles of both libraries for the work of one stream; each is loaded and made by its first run,
// which therefore must not be one that is being captured. Every failure throws LibraryError. Sums
// are of fp32 throughout, never of TF32 or emulated: sums of integers are exact below 2^24. Calls
// are not thread-safe.
class Libraries {
 public:
  explicit Libraries(Stream stream);
  ~Libraries();
  Libraries(const Libraries&) = delete;
  Libraries& operator=(const Libraries&) = delete;

  Stream stream() const;
  void run(const BatchedGemm& gemm);
  void run(const BatchedSpmm& spmm);
  void run(const BatchedSddmm& sddmm);

  // Memory for what lies between kernels of one pass of one layer, shared by all passes on this
  // stream. It moves when more is asked for.
  float* scratch(size_t floats);

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace fmp::cuda
