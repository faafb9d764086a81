// SPDX-License-Identifier: MIT
// cuBLAS, cuSPARSE and NCCL, loaded when the first of their functions is called: linked in the
// ordinary way they cost every program of a CUDA build 240 MB and a tenth of a second, also where
// it computes on the CPU. The functions of them that kernels/cuda calls are defined here under
// their own names and pass the call on, so that nothing else knows. A function that is missing here
// is undefined to the linker.
//
// A library is looked for where the system looks (LD_LIBRARY_PATH, the cache of ldconfig), then
// where it was when this was built. If that fails, the call throws LibraryError.
#include <cublas_v2.h>
#include <cusparse.h>
#include <dlfcn.h>
#ifdef FMP_WITH_NCCL
#include <nccl.h>
#endif

#include <string>

#include "kernels/cuda/libraries.h"

namespace {

using fmp::cuda::LibraryError;

#define FMP_TEXT_OF(x) #x
#define FMP_TEXT(x) FMP_TEXT_OF(x)

class Library {
 public:
  explicit Library(const std::string& file) : handle_(dlopen(file.c_str(), kFlags)) {
    if (handle_ != nullptr) return;
    const std::string why = dlerror();  // NOLINT(concurrency-mt-unsafe): each thread has its own
    handle_ = dlopen((FMP_CUDA_LIBRARY_DIR "/" + file).c_str(), kFlags);
    if (handle_ == nullptr) throw LibraryError("cannot load " + file + ": " + why);
  }

  // Never closed: what it registered with the CUDA runtime is in use until the program ends.
  template <typename Function>
  Function function(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) throw LibraryError(dlerror());  // NOLINT(concurrency-mt-unsafe)
    return reinterpret_cast<Function>(found);
  }

 private:
  static constexpr int kFlags = RTLD_NOW | RTLD_LOCAL;
  void* handle_;
};

// The files' numbers are the major versions of the interfaces, which the headers state.
const Library& cublas() {
  static const Library library("libcublas.so." FMP_TEXT(CUBLAS_VER_MAJOR));
  return library;
}
const Library& cusparse() {
  static const Library library("libcusparse.so." FMP_TEXT(CUSPARSE_VER_MAJOR));
  return library;
}
#ifdef FMP_WITH_NCCL
const Library& nccl() {
  static const Library library("libnccl.so." FMP_TEXT(NCCL_MAJOR));
  return library;
}
#endif

}  // namespace

// The headers declare each function, so that parameters which are not the library's do not compile.
// NOLINTBEGIN(bugprone-macro-parentheses): parameters and arguments bring their own.
#define FMP_FORWARD(library, result, name, parameters, arguments)                 \
  result name parameters {                                                        \
    static const auto function = library().function<result(*) parameters>(#name); \
    return function arguments;                                                    \
  }
// NOLINTEND(bugprone-macro-parentheses)

extern "C" {

FMP_FORWARD(cublas, cublasStatus_t, cublasCreate_v2, (cublasHandle_t * handle), (handle))
FMP_FORWARD(cublas, cublasStatus_t, cublasDestroy_v2, (cublasHandle_t handle), (handle))
FMP_FORWARD(cublas, cublasStatus_t, cublasSetStream_v2,
            (cublasHandle_t handle, cudaStream_t stream), (handle, stream))
FMP_FORWARD(cublas, cublasStatus_t, cublasSetWorkspace_v2,
            (cublasHandle_t handle, void* workspace, size_t bytes), (handle, workspace, bytes))
FMP_FORWARD(cublas, const char*, cublasGetStatusName, (cublasStatus_t status), (status))
FMP_FORWARD(cublas, const char*, cublasGetStatusString, (cublasStatus_t status), (status))
FMP_FORWARD(cublas, cublasStatus_t, cublasGemmStridedBatchedEx,
            (cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
             int n, int k, const void* alpha, const void* A, cudaDataType type_a, int lda,
             long long stride_a, const void* B, cudaDataType type_b, int ldb, long long stride_b,
             const void* beta, void* C, cudaDataType type_c, int ldc, long long stride_c,
             int batches, cublasComputeType_t compute, cublasGemmAlgo_t algorithm),
            (handle, transa, transb, m, n, k, alpha, A, type_a, lda, stride_a, B, type_b, ldb,
             stride_b, beta, C, type_c, ldc, stride_c, batches, compute, algorithm))

FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCreate, (cusparseHandle_t * handle), (handle))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseDestroy, (cusparseHandle_t handle), (handle))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseSetStream,
            (cusparseHandle_t handle, cudaStream_t stream), (handle, stream))
FMP_FORWARD(cusparse, const char*, cusparseGetErrorName, (cusparseStatus_t status), (status))
FMP_FORWARD(cusparse, const char*, cusparseGetErrorString, (cusparseStatus_t status), (status))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCreateDnMat,
            (cusparseDnMatDescr_t * matrix, int64_t rows, int64_t columns, int64_t ld, void* values,
             cudaDataType type, cusparseOrder_t order),
            (matrix, rows, columns, ld, values, type, order))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseDnMatSetStridedBatch,
            (cusparseDnMatDescr_t matrix, int batches, int64_t stride), (matrix, batches, stride))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseDestroyDnMat, (cusparseConstDnMatDescr_t matrix),
            (matrix))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCreateCsr,
            (cusparseSpMatDescr_t * matrix, int64_t rows, int64_t columns, int64_t nonzeros,
             void* row_begin, void* column, void* values, cusparseIndexType_t row_type,
             cusparseIndexType_t column_type, cusparseIndexBase_t base, cudaDataType type),
            (matrix, rows, columns, nonzeros, row_begin, column, values, row_type, column_type,
             base, type))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCsrSetStridedBatch,
            (cusparseSpMatDescr_t matrix, int batches, int64_t row_stride, int64_t value_stride),
            (matrix, batches, row_stride, value_stride))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCreateCoo,
            (cusparseSpMatDescr_t * matrix, int64_t rows, int64_t columns, int64_t nonzeros,
             void* row, void* column, void* values, cusparseIndexType_t index_type,
             cusparseIndexBase_t base, cudaDataType type),
            (matrix, rows, columns, nonzeros, row, column, values, index_type, base, type))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseCooSetStridedBatch,
            (cusparseSpMatDescr_t matrix, int batches, int64_t stride), (matrix, batches, stride))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseDestroySpMat, (cusparseConstSpMatDescr_t matrix),
            (matrix))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseSpMM_bufferSize,
            (cusparseHandle_t handle, cusparseOperation_t a_operation,
             cusparseOperation_t b_operation, const void* alpha, cusparseConstSpMatDescr_t a,
             cusparseConstDnMatDescr_t b, const void* beta, cusparseDnMatDescr_t c,
             cudaDataType type, cusparseSpMMAlg_t algorithm, size_t* bytes),
            (handle, a_operation, b_operation, alpha, a, b, beta, c, type, algorithm, bytes))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseSpMM,
            (cusparseHandle_t handle, cusparseOperation_t a_operation,
             cusparseOperation_t b_operation, const void* alpha, cusparseConstSpMatDescr_t a,
             cusparseConstDnMatDescr_t b, const void* beta, cusparseDnMatDescr_t c,
             cudaDataType type, cusparseSpMMAlg_t algorithm, void* buffer),
            (handle, a_operation, b_operation, alpha, a, b, beta, c, type, algorithm, buffer))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseSDDMM_bufferSize,
            (cusparseHandle_t handle, cusparseOperation_t a_operation,
             cusparseOperation_t b_operation, const void* alpha, cusparseConstDnMatDescr_t a,
             cusparseConstDnMatDescr_t b, const void* beta, cusparseSpMatDescr_t c,
             cudaDataType type, cusparseSDDMMAlg_t algorithm, size_t* bytes),
            (handle, a_operation, b_operation, alpha, a, b, beta, c, type, algorithm, bytes))
FMP_FORWARD(cusparse, cusparseStatus_t, cusparseSDDMM,
            (cusparseHandle_t handle, cusparseOperation_t a_operation,
             cusparseOperation_t b_operation, const void* alpha, cusparseConstDnMatDescr_t a,
             cusparseConstDnMatDescr_t b, const void* beta, cusparseSpMatDescr_t c,
             cudaDataType type, cusparseSDDMMAlg_t algorithm, void* buffer),
            (handle, a_operation, b_operation, alpha, a, b, beta, c, type, algorithm, buffer))

#ifdef FMP_WITH_NCCL
FMP_FORWARD(nccl, ncclResult_t, ncclGetVersion, (int* version), (version))
FMP_FORWARD(nccl, ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id), (id))
FMP_FORWARD(nccl, ncclResult_t, ncclCommInitRank,
            (ncclComm_t * communicator, int ranks, ncclUniqueId id, int rank),
            (communicator, ranks, id, rank))
FMP_FORWARD(nccl, ncclResult_t, ncclCommDestroy, (ncclComm_t communicator), (communicator))
FMP_FORWARD(nccl, ncclResult_t, ncclCommGetAsyncError,
            (ncclComm_t communicator, ncclResult_t* error), (communicator, error))
FMP_FORWARD(nccl, const char*, ncclGetErrorString, (ncclResult_t result), (result))
FMP_FORWARD(nccl, const char*, ncclGetLastError, (ncclComm_t communicator), (communicator))
FMP_FORWARD(nccl, ncclResult_t, ncclGroupStart, (), ())
FMP_FORWARD(nccl, ncclResult_t, ncclGroupEnd, (), ())
FMP_FORWARD(nccl, ncclResult_t, ncclAllReduce,
            (const void* send, void* receive, size_t count, ncclDataType_t type,
             ncclRedOp_t operation, ncclComm_t communicator, cudaStream_t stream),
            (send, receive, count, type, operation, communicator, stream))
FMP_FORWARD(nccl, ncclResult_t, ncclBroadcast,
            (const void* send, void* receive, size_t count, ncclDataType_t type, int root,
             ncclComm_t communicator, cudaStream_t stream),
            (send, receive, count, type, root, communicator, stream))
#endif

}  // extern "C"
