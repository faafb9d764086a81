// SPDX-License-Identifier: MIT
// The calls of cuBLAS and cuSPARSE. cuBLAS is column-major: it is given the transposed product,
// C^T = B^T * A^T, whose matrices lie in memory as the row-major ones do. Both libraries work on
// memory that is theirs for good, which cuBLAS asks for where results shall be the same from run to
// run and where calls are captured into graphs.
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusparse.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/cuda/error.h"
#include "kernels/cuda/libraries.h"

namespace fmp::cuda {
namespace {

// What cuBLAS' documentation recommends for sm_90.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

[[noreturn]] void fail(const char* call, const char* name, const char* text,
                       const SourceLine& where) {
  throw LibraryError(std::string(where.file) + ":" + std::to_string(where.line) + ": " + call +
                     ": " + name + ": " + text);
}

void check(cublasStatus_t status, const char* call,
           const SourceLine& where = SourceLine::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(call, cublasGetStatusName(status), cublasGetStatusString(status), where);
}
void check(cusparseStatus_t status, const char* call,
           const SourceLine& where = SourceLine::current()) {
  if (status == CUSPARSE_STATUS_SUCCESS) return;
  fail(call, cusparseGetErrorName(status), cusparseGetErrorString(status), where);
}

// Owns a handle or descriptor of one of the libraries.
template <typename Descriptor, auto kDestroy>
class Owned {
 public:
  Owned() = default;
  ~Owned() {
    if (descriptor_ != nullptr) static_cast<void>(kDestroy(descriptor_));
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Descriptor* address() { return &descriptor_; }
  Descriptor get() const { return descriptor_; }

 private:
  Descriptor descriptor_ = nullptr;
};

// Row-major matrices without gaps, one after the other.
class DenseBatch {
 public:
  // cuSPARSE takes what it only reads without const here, too.
  DenseBatch(int rows, int columns, const float* data, int batches) {
    check(cusparseCreateDnMat(matrix_.address(), rows, columns, columns, const_cast<float*>(data),
                              CUDA_R_32F, CUSPARSE_ORDER_ROW),
          "cusparseCreateDnMat");
    check(cusparseDnMatSetStridedBatch(get(), batches, int64_t{rows} * columns),
          "cusparseDnMatSetStridedBatch");
  }
  cusparseDnMatDescr_t get() const { return matrix_.get(); }

 private:
  Owned<cusparseDnMatDescr_t, cusparseDestroyDnMat> matrix_;
};

// One matrix for a whole batch, by rows (CSR) ...
enum class Format { kCsr, kCoo };
class SparseBatch {
 public:
  SparseBatch(Format format, const SparsePattern& p, const float* values, int batches) {
    if (format == Format::kCsr) {
      create_csr(p, p.column, values, batches, 0);
      return;
    }
    check(
        cusparseCreateCoo(matrix_.address(), p.rows, p.columns, p.nonzeros, const_cast<int*>(p.row),
                          const_cast<int*>(p.column), const_cast<float*>(values),
                          CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, CUDA_R_32F),
        "cusparseCreateCoo");
    check(cusparseCooSetStridedBatch(get(), batches, 0), "cusparseCooSetStridedBatch");
  }
  // ... or one pattern for values that differ: columns [batches][nonzeros], values likewise.
  SparseBatch(const SparsePattern& p, const int* columns, const float* values, int batches) {
    create_csr(p, columns, values, batches, p.nonzeros);
  }
  cusparseSpMatDescr_t get() const { return matrix_.get(); }

 private:
  void create_csr(const SparsePattern& p, const int* columns, const float* values, int batches,
                  int64_t stride) {
    check(cusparseCreateCsr(matrix_.address(), p.rows, p.columns, p.nonzeros,
                            const_cast<int*>(p.row_begin), const_cast<int*>(columns),
                            const_cast<float*>(values), CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I,
                            CUSPARSE_INDEX_BASE_ZERO, CUDA_R_32F),
          "cusparseCreateCsr");
    check(cusparseCsrSetStridedBatch(get(), batches, 0, stride), "cusparseCsrSetStridedBatch");
  }
  Owned<cusparseSpMatDescr_t, cusparseDestroySpMat> matrix_;
};

constexpr float kOne = 1, kZero = 0;
constexpr cusparseOperation_t kPlain = CUSPARSE_OPERATION_NON_TRANSPOSE;
constexpr cusparseOperation_t kTransposed = CUSPARSE_OPERATION_TRANSPOSE;

// cuBLAS on a stream.
class Blas {
 public:
  explicit Blas(cudaStream_t stream) : workspace_(kWorkspaceBytes) {
    check(cublasCreate(handle_.address()), "cublasCreate");
    check(cublasSetStream(handle_.get(), stream), "cublasSetStream");
    // After the stream, which takes the memory away.
    check(cublasSetWorkspace(handle_.get(), workspace_.data(), kWorkspaceBytes),
          "cublasSetWorkspace");
  }
  cublasHandle_t handle() const { return handle_.get(); }

 private:
  DeviceBuffer<std::byte> workspace_;
  Owned<cublasHandle_t, cublasDestroy> handle_;  // destroyed before its memory
};

// cuSPARSE on a stream.
class Sparse {
 public:
  explicit Sparse(cudaStream_t stream) {
    check(cusparseCreate(handle_.address()), "cusparseCreate");
    check(cusparseSetStream(handle_.get(), stream), "cusparseSetStream");
  }
  cusparseHandle_t handle() const { return handle_.get(); }
  // Memory that a product asks for. One that asks for more than there is counts as refused.
  void* buffer(size_t bytes) {
    try {
      return buffer_.reserve(bytes);
    } catch (const CudaError& error) {
      if (error.status() != cudaErrorMemoryAllocation) throw;
      throw LibraryError(std::string("the buffer of cuSPARSE: ") + error.what());
    }
  }

 private:
  DeviceBuffer<std::byte> buffer_;
  Owned<cusparseHandle_t, cusparseDestroy> handle_;
};

}  // namespace

struct Libraries::Handles {
  explicit Handles(Stream on_stream) : stream(on_stream) {}
  Stream stream;
  DeviceBuffer<float> scratch;
  // Made when they are first asked for: a run without kernels of a library does not load it, and
  // one that is not there refuses everything.
  std::unique_ptr<Blas> blas;
  std::unique_ptr<Sparse> sparse;

  cublasHandle_t use_blas() {
    if (!blas) blas = std::make_unique<Blas>(static_cast<cudaStream_t>(stream));
    return blas->handle();
  }
  Sparse& use_sparse() {
    if (!sparse) sparse = std::make_unique<Sparse>(static_cast<cudaStream_t>(stream));
    return *sparse;
  }
};

Libraries::Libraries(Stream stream) : handles_(std::make_unique<Handles>(stream)) {}

Libraries::~Libraries() = default;

Stream Libraries::stream() const { return handles_->stream; }

float* Libraries::scratch(size_t floats) { return handles_->scratch.reserve(floats); }

void Libraries::run(const BatchedGemm& g) {
  const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  check(cublasGemmStridedBatchedEx(
            handles_->use_blas(), operation(g.b.transposed), operation(g.a.transposed), g.n, g.m,
            g.k, &kOne, g.b.data, CUDA_R_32F, g.b.row_stride, g.b.stride, g.a.data, CUDA_R_32F,
            g.a.row_stride, g.a.stride, &kZero, g.c, CUDA_R_32F, g.n, g.c_stride, g.batches,
            CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT),
        "cublasGemmStridedBatchedEx");
}

void Libraries::run(const BatchedSpmm& s) {
  // The documentation promises the same bits from run to run for COO_ALG2 and CSR_ALG3 alone, of
  // which the latter takes no batches; and the most speed with row-major matrices for CSR_ALG2.
  const SparseBatch a(s.deterministic ? Format::kCoo : Format::kCsr, s.a, s.values, s.batches);
  const DenseBatch b(s.a.columns, s.n, s.b, s.batches), c(s.a.rows, s.n, s.c, s.batches);
  const float* beta = s.add ? &kOne : &kZero;
  const cusparseSpMMAlg_t algorithm =
      s.deterministic ? CUSPARSE_SPMM_COO_ALG2 : CUSPARSE_SPMM_CSR_ALG2;
  Sparse& sparse = handles_->use_sparse();
  size_t bytes = 0;
  check(cusparseSpMM_bufferSize(sparse.handle(), kPlain, kPlain, &kOne, a.get(), b.get(), beta,
                                c.get(), CUDA_R_32F, algorithm, &bytes),
        "cusparseSpMM_bufferSize");
  check(cusparseSpMM(sparse.handle(), kPlain, kPlain, &kOne, a.get(), b.get(), beta, c.get(),
                     CUDA_R_32F, algorithm, sparse.buffer(bytes)),
        "cusparseSpMM");
}

void Libraries::run(const BatchedSddmm& s) {
  const DenseBatch a(s.c.rows, s.k, s.a, s.batches), b(s.c.columns, s.k, s.b, s.batches);
  const SparseBatch c(s.c, s.columns, s.values, s.batches);
  Sparse& sparse = handles_->use_sparse();
  size_t bytes = 0;
  check(cusparseSDDMM_bufferSize(sparse.handle(), kPlain, kTransposed, &kOne, a.get(), b.get(),
                                 &kZero, c.get(), CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT, &bytes),
        "cusparseSDDMM_bufferSize");
  check(cusparseSDDMM(sparse.handle(), kPlain, kTransposed, &kOne, a.get(), b.get(), &kZero,
                      c.get(), CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT, sparse.buffer(bytes)),
        "cusparseSDDMM");
}

}  // namespace fmp::cuda
