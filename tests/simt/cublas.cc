// SPDX-License-Identifier: MIT
#include <algorithm>
#include <set>
#include <string>

#include "tests/simt/cublas_v2.h"
#include "tests/simt/library.h"

struct cublasContext {
  bool has_stream = false;
  cudaStream_t stream = nullptr;
  bool has_workspace = false;
};

namespace {

std::set<cublasHandle_t> handles;
std::string detail;  // of the last refusal

using simt::require;

constexpr size_t kWorkspaceAlignment = 256;

void require_none(const std::string& wrong, cublasStatus_t status) {
  require(wrong.empty(), status, wrong);
}

template <typename Call>
cublasStatus_t answer(const Call& call) {
  return simt::answer(CUBLAS_STATUS_SUCCESS, detail, call);
}

void check_handle(cublasHandle_t handle) {
  require(handles.contains(handle), CUBLAS_STATUS_NOT_INITIALIZED, "no such handle");
}

// A matrix of each batch in memory: `rows` contiguous elements in each column.
struct Matrix {
  const char* name;
  const float* data;
  int rows, columns, ld;
  long long stride;
  bool transposed;

  simt::Extent extent(int batches) const {
    return {name, data, rows, columns, ld, batches, stride};
  }
  void check(int batches) const {
    require(ld >= std::max(1, rows), CUBLAS_STATUS_INVALID_VALUE,
            std::string(name) + ": leading dimension " + std::to_string(ld) + " of a matrix of " +
                std::to_string(rows) + " rows");
    require(reinterpret_cast<uintptr_t>(data) % sizeof(float) == 0, CUBLAS_STATUS_INVALID_VALUE,
            std::string(name) + ": not aligned to its elements");
    require(stride >= 0 || batches < 2, CUBLAS_STATUS_INVALID_VALUE,
            std::string(name) + ": a negative stride");
  }
  float at(int batch, int row, int column) const {
    if (transposed) std::swap(row, column);
    return data[batch * stride + static_cast<long long>(column) * ld + row];
  }
};

}  // namespace

const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown status";
}
const char* cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : detail.c_str();
}

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new cublasContext;
  handles.insert(*handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  return answer([&] {
    check_handle(handle);
    handles.erase(handle);
    delete handle;
  });
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  return answer([&] {
    check_handle(handle);
    require(simt::stream_exists(stream), CUBLAS_STATUS_INVALID_VALUE, "no such stream");
    *handle = {true, stream, false};
  });
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, size_t bytes) {
  return answer([&] {
    check_handle(handle);
    require(bytes > 0 && simt::is_device_address(workspace) &&
                simt::in_one_allocation(workspace, bytes),
            CUBLAS_STATUS_INVALID_VALUE, "workspace: not inside one allocation of device memory");
    require(reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment == 0,
            CUBLAS_STATUS_INVALID_VALUE, "workspace: not aligned to 256 bytes");
    handle->has_workspace = true;
  });
}

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
    const void* alpha, const void* a, cudaDataType a_type, int lda, long long stride_a,
    const void* b, cudaDataType b_type, int ldb, long long stride_b, const void* beta, void* c,
    cudaDataType c_type, int ldc, long long stride_c, int batches, cublasComputeType_t compute_type,
    cublasGemmAlgo_t algorithm) {
  const auto multiply = [=] {
    check_handle(handle);
    require(!simt::device_failed(), CUBLAS_STATUS_EXECUTION_FAILED, "a kernel failed before");
    require(!simt::is_to_be_refused("cublasGemmStridedBatchedEx"), CUBLAS_STATUS_NOT_SUPPORTED,
            "cublasGemmStridedBatchedEx is refused as SIMT_REFUSE asks");
    require(handle->has_stream, CUBLAS_STATUS_NOT_INITIALIZED, "the handle has no stream");
    require(simt::stream_exists(handle->stream), CUBLAS_STATUS_INVALID_VALUE,
            "the handle's stream is destroyed");
    require(handle->has_workspace, CUBLAS_STATUS_NOT_INITIALIZED, "the handle has no workspace");
    for (const cublasOperation_t operation : {transa, transb}) {
      require(operation == CUBLAS_OP_N || operation == CUBLAS_OP_T, CUBLAS_STATUS_INVALID_VALUE,
              "operation: N or T expected");
    }
    require(m > 0 && n > 0 && k > 0 && batches > 0, CUBLAS_STATUS_INVALID_VALUE,
            "m, n, k and the number of batches must be positive");
    for (const cudaDataType type : {a_type, b_type, c_type}) {
      require(type == CUDA_R_32F, CUBLAS_STATUS_NOT_SUPPORTED, "type: CUDA_R_32F expected");
    }
    require(compute_type == CUBLAS_COMPUTE_32F_PEDANTIC && algorithm == CUBLAS_GEMM_DEFAULT,
            CUBLAS_STATUS_NOT_SUPPORTED, "compute type: not fp32 throughout");
    for (const void* scalar : {alpha, beta}) {
      require(scalar != nullptr && !simt::is_device_address(scalar), CUBLAS_STATUS_INVALID_VALUE,
              "alpha or beta: host memory expected");
    }
    const bool ta = transa == CUBLAS_OP_T, tb = transb == CUBLAS_OP_T;
    const Matrix ma{"A", static_cast<const float*>(a), ta ? k : m, ta ? m : k, lda, stride_a, ta};
    const Matrix mb{"B", static_cast<const float*>(b), tb ? n : k, tb ? k : n, ldb, stride_b, tb};
    const Matrix mc{"C", static_cast<const float*>(c), m, n, ldc, stride_c, false};
    for (const Matrix* matrix : {&ma, &mb, &mc}) matrix->check(batches);
    require(batches == 1 || stride_c >= static_cast<long long>(ldc) * (n - 1) + m,
            CUBLAS_STATUS_INVALID_VALUE, "C: matrices of the batch overlap");
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    const simt::Extent written = mc.extent(batches);
    for (const Matrix* matrix : {&ma, &mb}) {
      require_none(matrix->extent(batches).unreadable(), CUBLAS_STATUS_EXECUTION_FAILED);
      require(!matrix->extent(batches).overlaps(written), CUBLAS_STATUS_INVALID_VALUE,
              std::string("C overlaps ") + matrix->name);
    }
    if (keep != 0) require_none(written.unreadable(), CUBLAS_STATUS_EXECUTION_FAILED);
    require_none(written.unwritable(), CUBLAS_STATUS_EXECUTION_FAILED);

    const simt::OpenDeviceMemory open;
    for (int i = 0; i < batches; ++i) {
      for (int column = 0; column < n; ++column) {
        float* out = static_cast<float*>(c) + i * stride_c + static_cast<long long>(column) * ldc;
        for (int row = 0; row < m; ++row) {
          float sum = 0;
          for (int j = 0; j < k; ++j) sum += ma.at(i, row, j) * mb.at(i, j, column);
          out[row] = scale * sum + (keep == 0 ? 0.0F : keep * out[row]);
        }
      }
    }
    written.mark_written();
  };
  if (!handles.contains(handle) || !handle->has_stream || !simt::stream_exists(handle->stream)) {
    return answer(multiply);  // which says so
  }
  return simt::put_on_stream(handle->stream, CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_EXECUTION_FAILED,
                             [=] { return answer(multiply); });
}
