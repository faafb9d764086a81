// SPDX-License-Identifier: MIT
// The stand-ins for cuBLAS and cuSPARSE compute what the documentation says, and refuse each wrong
// call that a device might let pass: calls that are right but for one thing.
#include <gtest/gtest.h>
#include <thrust/copy.h>
#include <thrust/sort.h>
#include <thrust/system/cuda/execution_policy.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/simt/cublas_v2.h"
#include "tests/simt/cusparse.h"
#include "tests/simt/runtime_fixture.h"

namespace {

using Floats = std::vector<float>;

// A wrong call: what is changed, and what the refusal must say.
template <typename Call>
struct Wrong {
  const char* name;
  std::function<void(Call&)> change;
  const char* says;
};

// --- cuBLAS --------------------------------------------------------------------------------------

constexpr size_t kWorkspace = 1024;

// Three products of a 2 x 3 and a 3 x 2 matrix. The matrices of A overlap: the next begins one
// column on.
struct Gemm {
  cublasHandle_t handle = nullptr;
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  int m = 2, n = 2, k = 3, lda = 2, ldb = 3, ldc = 2, batches = 3;
  long long stride_a = 2, stride_b = 0, stride_c = 4;
  float one = 1, zero = 0;
  const void *alpha = &one, *beta = &zero, *a = nullptr, *b = nullptr;
  void* c = nullptr;
  cudaDataType type = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F_PEDANTIC;

  cublasStatus_t run() const {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type, lda, stride_a, b,
                                      type, ldb, stride_b, beta, c, type, ldc, stride_c, batches,
                                      compute, CUBLAS_GEMM_DEFAULT);
  }
};

class CublasTest : public RuntimeTest {
 protected:
  CublasTest() {
    EXPECT_EQ(cublasCreate(&call.handle), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasSetStream(call.handle, nullptr), CUBLAS_STATUS_SUCCESS);
    workspace = uninitialised<char>(kWorkspace);
    EXPECT_EQ(cublasSetWorkspace(call.handle, workspace, kWorkspace), CUBLAS_STATUS_SUCCESS);
    call.a = upload(Floats{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});  // columns (1 2) (3 4) ... (9 10)
    call.b = upload(Floats{1, 0, 2, 0, 1, 1});
    call.c = uninitialised<float>(12);
  }
  ~CublasTest() override { cublasDestroy(call.handle); }
  Gemm call;
  char* workspace;
};

TEST_F(CublasTest, MultipliesOverlappingMatricesByColumns) {
  ASSERT_EQ(call.run(), CUBLAS_STATUS_SUCCESS) << cublasGetStatusString(call.run());
  const Floats expected{11, 14, 8, 10, 17, 20, 12, 14, 23, 26, 16, 18};
  EXPECT_EQ(download(static_cast<float*>(call.c), 12), expected);
  float two = 2, half = 0.5F;
  call.alpha = &two;
  call.beta = &half;
  ASSERT_EQ(call.run(), CUBLAS_STATUS_SUCCESS);
  const Floats again = download(static_cast<float*>(call.c), 12);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(again[i], 2.5F * expected[i]);
}

TEST_F(CublasTest, TransposesEitherOperand) {
  // A^T: rows of 3 become its columns; B^T likewise.
  call.op_a = call.op_b = CUBLAS_OP_T;
  call.batches = 1;
  call.lda = 3;
  call.ldb = 2;
  ASSERT_EQ(call.run(), CUBLAS_STATUS_SUCCESS);
  // A^T = (1 2 3; 4 5 6), B^T = (1 0; 2 0; 1 1).
  EXPECT_EQ(download(static_cast<float*>(call.c), 4), (Floats{8, 20, 3, 6}));
}

TEST_F(CublasTest, RefusesEachWrongCall) {
  float host[16] = {};
  float* device_scalar = upload(Floats{1});
  float* never_written = uninitialised<float>(16);
  const std::vector<Wrong<Gemm>> wrongs = {
      {"no handle", [](Gemm& g) { g.handle = nullptr; }, "no such handle"},
      {"operation", [](Gemm& g) { g.op_a = CUBLAS_OP_C; }, "operation"},
      {"no rows", [](Gemm& g) { g.m = 0; }, "must be positive"},
      {"no batches", [](Gemm& g) { g.batches = 0; }, "must be positive"},
      {"lda", [](Gemm& g) { g.lda = 1; }, "A: leading dimension 1"},
      {"lda of a transposed A", [](Gemm& g) { g.op_a = CUBLAS_OP_T; }, "A: leading dimension 2"},
      {"ldb", [](Gemm& g) { g.ldb = 2; }, "B: leading dimension 2"},
      {"ldc", [](Gemm& g) { g.ldc = 1; }, "C: leading dimension 1"},
      {"results overlap", [](Gemm& g) { g.stride_c = 3; }, "matrices of the batch overlap"},
      {"negative stride", [](Gemm& g) { g.stride_a = -2; }, "negative stride"},
      {"A not aligned", [](Gemm& g) { g.a = static_cast<const char*>(g.a) + 2; }, "A: not aligned"},
      {"A too short", [](Gemm& g) { g.stride_a = 3; }, "A: its 48 bytes leave"},
      {"B too short", [](Gemm& g) { g.stride_b = 6; }, "B: its 72 bytes leave"},
      {"C too short", [](Gemm& g) { g.stride_c = 5; }, "C: its 56 bytes leave"},
      {"A on the host", [&](Gemm& g) { g.a = host; }, "A is not in device memory"},
      {"C on the host", [&](Gemm& g) { g.c = host; }, "C is not in device memory"},
      {"A never written", [&](Gemm& g) { g.a = never_written; }, "A holds memory that was never"},
      {"C kept but never written", [](Gemm& g) { g.beta = g.alpha; }, "C holds memory"},
      {"C is A",
       [](Gemm& g) {
         g.c = const_cast<void*>(g.a);
         g.batches = 1;
       },
       "C overlaps A"},
      {"alpha on the device", [&](Gemm& g) { g.alpha = device_scalar; }, "host memory expected"},
      {"no beta", [](Gemm& g) { g.beta = nullptr; }, "host memory expected"},
      {"half precision", [](Gemm& g) { g.type = CUDA_R_16F; }, "CUDA_R_32F expected"},
      {"TF32", [](Gemm& g) { g.compute = CUBLAS_COMPUTE_32F_FAST_TF32; }, "not fp32 throughout"},
      {"not pedantic", [](Gemm& g) { g.compute = CUBLAS_COMPUTE_32F; }, "not fp32 throughout"},
  };
  for (const Wrong<Gemm>& wrong : wrongs) {
    SCOPED_TRACE(wrong.name);
    Gemm changed = call;
    changed.alpha = &changed.one;
    changed.beta = &changed.zero;
    wrong.change(changed);
    const cublasStatus_t status = changed.run();
    EXPECT_NE(status, CUBLAS_STATUS_SUCCESS);
    EXPECT_NE(std::string(cublasGetStatusString(status)).find(wrong.says), std::string::npos)
        << cublasGetStatusString(status);
  }
  EXPECT_EQ(call.run(), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasTest, RefusesHandlesWithoutStreamOrWorkspace) {
  cublasHandle_t fresh = nullptr;
  ASSERT_EQ(cublasCreate(&fresh), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasDestroy(call.handle), CUBLAS_STATUS_SUCCESS);
  call.handle = fresh;
  EXPECT_EQ(call.run(), CUBLAS_STATUS_NOT_INITIALIZED);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // the operands come by the default stream
  ASSERT_EQ(cublasSetStream(fresh, stream), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(call.run(), CUBLAS_STATUS_NOT_INITIALIZED);
  EXPECT_EQ(std::string(cublasGetStatusString(CUBLAS_STATUS_NOT_INITIALIZED)),
            "the handle has no workspace");
  EXPECT_EQ(cublasSetWorkspace(fresh, workspace, kWorkspace + 1), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasSetWorkspace(fresh, workspace + 16, kWorkspace / 2), CUBLAS_STATUS_INVALID_VALUE);
  std::vector<char> host(kWorkspace);
  EXPECT_EQ(cublasSetWorkspace(fresh, host.data(), kWorkspace), CUBLAS_STATUS_INVALID_VALUE);
  ASSERT_EQ(cublasSetWorkspace(fresh, workspace, kWorkspace), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(call.run(), CUBLAS_STATUS_SUCCESS);
  // A new stream takes the workspace away.
  ASSERT_EQ(cublasSetStream(fresh, stream), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(call.run(), CUBLAS_STATUS_NOT_INITIALIZED);
  ASSERT_EQ(cublasSetWorkspace(fresh, workspace, kWorkspace), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(call.run(), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasSetStream(fresh, stream), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasDestroy(fresh), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cublasDestroy(fresh), CUBLAS_STATUS_NOT_INITIALIZED);
}

// --- cuSPARSE ------------------------------------------------------------------------------------

// A (2 x 3) = (1 0 2; 0 3 0), two matrices B (3 x 2) and C (2 x 2), row-major.
struct Matrices {
  int a_rows = 2, a_columns = 3, nonzeros = 3, b_rows = 3, b_columns = 2, ldb = 2, ldc = 2;
  int a_batches = 2, b_batches = 2, c_batches = 2;
  int64_t offsets_stride = 0, values_stride = 0, b_stride = 6, c_stride = 4;
  void *offsets = nullptr, *indices = nullptr, *values = nullptr, *b = nullptr, *c = nullptr;
  cusparseIndexType_t index_type = CUSPARSE_INDEX_32I;
  cusparseIndexBase_t base = CUSPARSE_INDEX_BASE_ZERO;
  cusparseOrder_t b_order = CUSPARSE_ORDER_ROW, c_order = CUSPARSE_ORDER_ROW;
  cudaDataType type = CUDA_R_32F, compute = CUDA_R_32F;
  cusparseOperation_t op_a = CUSPARSE_OPERATION_NON_TRANSPOSE,
                      op_b = CUSPARSE_OPERATION_NON_TRANSPOSE;
  cusparseSpMMAlg_t algorithm = CUSPARSE_SPMM_CSR_ALG2;
  bool coo = false, coo_batches = false;  // row indices in `offsets`
  float one = 1, zero = 0;
  const float *alpha = nullptr, *beta = nullptr;  // null: one and zero
  void* buffer = nullptr;                         // null: as large as the call asks
  cusparseHandle_t handle = nullptr;

  // The first status that is no success.
  cusparseStatus_t run() const {
    cusparseSpMatDescr_t ma = nullptr;
    cusparseDnMatDescr_t mb = nullptr, mc = nullptr;
    cusparseStatus_t status = CUSPARSE_STATUS_SUCCESS;
    const auto then = [&](const auto& call) {
      if (status == CUSPARSE_STATUS_SUCCESS) status = call();
    };
    then([&] {
      return coo ? cusparseCreateCoo(&ma, a_rows, a_columns, nonzeros, offsets, indices, values,
                                     index_type, base, type)
                 : cusparseCreateCsr(&ma, a_rows, a_columns, nonzeros, offsets, indices, values,
                                     index_type, index_type, base, type);
    });
    then([&] {
      return coo_batches ? cusparseCooSetStridedBatch(ma, a_batches, values_stride)
                         : cusparseCsrSetStridedBatch(ma, a_batches, offsets_stride, values_stride);
    });
    then([&] { return cusparseCreateDnMat(&mb, b_rows, b_columns, ldb, b, type, b_order); });
    then([&] { return cusparseDnMatSetStridedBatch(mb, b_batches, b_stride); });
    then([&] { return cusparseCreateDnMat(&mc, 2, 2, ldc, c, type, c_order); });
    then([&] { return cusparseDnMatSetStridedBatch(mc, c_batches, c_stride); });
    then([&] { return product(ma, mb, mc); });
    if (ma != nullptr) cusparseDestroySpMat(ma);
    if (mb != nullptr) cusparseDestroyDnMat(mb);
    if (mc != nullptr) cusparseDestroyDnMat(mc);
    return status;
  }
  virtual ~Matrices() = default;

 protected:
  virtual cusparseStatus_t product(cusparseSpMatDescr_t ma, cusparseDnMatDescr_t mb,
                                   cusparseDnMatDescr_t mc) const {
    size_t bytes = 0;
    const float *x = alpha != nullptr ? alpha : &one, *y = beta != nullptr ? beta : &zero;
    const cusparseStatus_t status =
        cusparseSpMM_bufferSize(handle, op_a, op_b, x, ma, mb, y, mc, compute, algorithm, &bytes);
    if (status != CUSPARSE_STATUS_SUCCESS) return status;
    void* memory = buffer;
    if (memory == nullptr && cudaMalloc(&memory, bytes) != cudaSuccess) {
      return CUSPARSE_STATUS_EXECUTION_FAILED;
    }
    return cusparseSpMM(handle, op_a, op_b, x, ma, mb, y, mc, compute, algorithm, memory);
  }
};

// values of the pattern = B (as 2 x 2 of each batch, left) * C: see the test.
struct Sampled : Matrices {
 protected:
  cusparseStatus_t product(cusparseSpMatDescr_t ma, cusparseDnMatDescr_t mb,
                           cusparseDnMatDescr_t mc) const override {
    size_t bytes = 0;
    const float *x = alpha != nullptr ? alpha : &one, *y = beta != nullptr ? beta : &zero;
    // C (2 x 2) * B^T (2 x 3).
    cusparseStatus_t status = cusparseSDDMM_bufferSize(handle, op_a, op_b, x, mc, mb, y, ma,
                                                       compute, CUSPARSE_SDDMM_ALG_DEFAULT, &bytes);
    if (status != CUSPARSE_STATUS_SUCCESS) return status;
    void* memory = buffer;
    if (memory == nullptr && cudaMalloc(&memory, bytes) != cudaSuccess) {
      return CUSPARSE_STATUS_EXECUTION_FAILED;
    }
    return cusparseSDDMM(handle, op_a, op_b, x, mc, mb, y, ma, compute, CUSPARSE_SDDMM_ALG_DEFAULT,
                         memory);
  }
};

template <typename Call>
void expect_refusals(const Call& call, const std::vector<Wrong<Call>>& wrongs) {
  for (const Wrong<Call>& wrong : wrongs) {
    SCOPED_TRACE(wrong.name);
    Call changed = call;
    wrong.change(changed);
    const cusparseStatus_t status = changed.run();
    EXPECT_NE(status, CUSPARSE_STATUS_SUCCESS);
    EXPECT_NE(std::string(cusparseGetErrorString(status)).find(wrong.says), std::string::npos)
        << cusparseGetErrorString(status);
  }
  EXPECT_EQ(call.run(), CUSPARSE_STATUS_SUCCESS);
}

class CusparseTest : public RuntimeTest {
 protected:
  CusparseTest() {
    EXPECT_EQ(cusparseCreate(&handle), CUSPARSE_STATUS_SUCCESS);
    EXPECT_EQ(cusparseSetStream(handle, nullptr), CUSPARSE_STATUS_SUCCESS);
  }
  ~CusparseTest() override { cusparseDestroy(handle); }
  void fill(Matrices& m) const {
    m.handle = handle;
    m.offsets = upload(std::vector<int>{0, 2, 3});
    m.indices = upload(std::vector<int>{0, 2, 1});
    m.values = upload(Floats{1, 2, 3});
    m.b = upload(Floats{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
    m.c = uninitialised<float>(8);
  }
  cusparseHandle_t handle = nullptr;
};

TEST_F(CusparseTest, MultipliesOneSparseMatrixWithABatch) {
  Matrices csr;
  fill(csr);
  Matrices coo = csr;
  coo.coo = coo.coo_batches = true;
  coo.offsets = upload(std::vector<int>{0, 0, 1});
  coo.algorithm = CUSPARSE_SPMM_COO_ALG2;
  for (Matrices* m : {&csr, &coo}) {
    const Floats expected{11, 14, 9, 12, 29, 32, 27, 30};
    ASSERT_EQ(m->run(), CUSPARSE_STATUS_SUCCESS) << cusparseGetErrorString(m->run());
    EXPECT_EQ(download(static_cast<float*>(m->c), 8), expected);
    m->beta = &m->one;
    ASSERT_EQ(m->run(), CUSPARSE_STATUS_SUCCESS);
    const Floats twice = download(static_cast<float*>(m->c), 8);
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(twice[i], 2 * expected[i]);
  }
  // One B for both.
  csr.beta = nullptr;
  csr.b_stride = 0;
  ASSERT_EQ(csr.run(), CUSPARSE_STATUS_SUCCESS) << cusparseGetErrorString(csr.run());
  EXPECT_EQ(download(static_cast<float*>(csr.c), 8), (Floats{11, 14, 9, 12, 11, 14, 9, 12}));
}

// As cuSPARSE does ("SPMM_CSR_ALG3 does not supported numBatches != 1").
TEST_F(CusparseTest, TheThirdAlgorithmTakesOneBatch) {
  Matrices m;
  fill(m);
  m.algorithm = CUSPARSE_SPMM_CSR_ALG3;
  EXPECT_EQ(m.run(), CUSPARSE_STATUS_NOT_SUPPORTED);
  m.a_batches = m.b_batches = m.c_batches = 1;
  EXPECT_EQ(m.run(), CUSPARSE_STATUS_SUCCESS) << cusparseGetErrorString(m.run());
}

TEST_F(CusparseTest, RefusesEachWrongListOfEntries) {
  Matrices m;
  fill(m);
  m.coo = m.coo_batches = true;
  m.offsets = upload(std::vector<int>{0, 0, 1});
  m.algorithm = CUSPARSE_SPMM_COO_ALG2;
  void* unsorted = upload(std::vector<int>{0, 1, 0});
  void* far_row = upload(std::vector<int>{0, 0, 2});
  void* short_rows = upload(std::vector<int>{0, 0});
  const std::vector<Wrong<Matrices>> wrongs = {
      {"algorithm of CSR", [](Matrices& x) { x.algorithm = CUSPARSE_SPMM_CSR_ALG2; },
       "another format"},
      {"batches of CSR", [](Matrices& x) { x.coo_batches = false; }, "another format"},
      {"entries overlap", [](Matrices& x) { x.values_stride = 2; }, "entries that overlap"},
      {"not sorted", [&](Matrices& x) { x.offsets = unsorted; }, "not sorted by row"},
      {"row out of range", [&](Matrices& x) { x.offsets = far_row; }, "row index is out of range"},
      {"rows too short", [&](Matrices& x) { x.offsets = short_rows; }, "row indices: its 12"},
      {"rows not aligned", [](Matrices& x) { x.offsets = static_cast<char*>(x.offsets) + 2; },
       "not aligned"},
      {"too many batches", [](Matrices& x) { x.a_batches = x.b_batches = x.c_batches = 65536; },
       "more than 65535"},
  };
  expect_refusals(m, wrongs);
}

TEST_F(CusparseTest, ReadsColumnMajorMatricesAndIndicesFromOne) {
  Matrices m;
  fill(m);
  m.offsets = upload(std::vector<int>{1, 3, 4});
  m.indices = upload(std::vector<int>{1, 3, 2});
  m.base = CUSPARSE_INDEX_BASE_ONE;
  m.b_order = m.c_order = CUSPARSE_ORDER_COL;
  m.ldb = 3;
  ASSERT_EQ(m.run(), CUSPARSE_STATUS_SUCCESS) << cusparseGetErrorString(m.run());
  // B = (1 4; 2 5; 3 6), then (7 10; 8 11; 9 12).
  EXPECT_EQ(download(static_cast<float*>(m.c), 8), (Floats{7, 6, 16, 15, 25, 24, 34, 33}));
}

TEST_F(CusparseTest, RefusesEachWrongProduct) {
  Matrices m;
  fill(m);
  float host[16] = {};
  float* device_scalar = upload(Floats{1});
  float* never_written = uninitialised<float>(16);
  char* small = uninitialised<char>(32);
  char* large = uninitialised<char>(1024);
  void* decreasing = upload(std::vector<int>{0, -1, 3});
  void* other_end = upload(std::vector<int>{0, 1, 2});
  void* far_column = upload(std::vector<int>{0, 3, 1});
  void* descending = upload(std::vector<int>{2, 0, 1});
  const std::vector<Wrong<Matrices>> wrongs = {
      {"no handle", [](Matrices& x) { x.handle = nullptr; }, "no such handle"},
      {"ld of B", [](Matrices& x) { x.ldb = 1; }, "leading dimension 1 of a 3 x 2"},
      {"order of B", [](Matrices& x) { x.b_order = CUSPARSE_ORDER_COL; },
       "leading dimension 2 of a 3 x 2"},
      {"orders differ", [](Matrices& x) { x.c_order = CUSPARSE_ORDER_COL; }, "orders of B and C"},
      {"B overlaps", [](Matrices& x) { x.b_stride = 2; }, "batch stride 2 of matrices of 6"},
      {"C overlaps", [](Matrices& x) { x.c_stride = 3; }, "batch stride 3 of matrices of 4"},
      {"one C for all", [](Matrices& x) { x.c_stride = 0; }, "matrices C of the batch overlap"},
      {"algorithm of COO", [](Matrices& x) { x.algorithm = CUSPARSE_SPMM_COO_ALG2; },
       "another format"},
      {"offsets overlap", [](Matrices& x) { x.offsets_stride = 2; }, "row offsets that overlap"},
      {"values overlap", [](Matrices& x) { x.values_stride = 2; }, "columns and values that"},
      {"no batches", [](Matrices& x) { x.b_batches = 0; }, "no batches"},
      {"batches differ", [](Matrices& x) { x.a_batches = 1; }, "numbers of batches differ"},
      {"too many batches", [](Matrices& x) { x.a_batches = x.b_batches = x.c_batches = 65536; },
       "more than 65535"},
      {"shapes", [](Matrices& x) { x.a_columns = 4; }, "shapes do not fit"},
      {"B transposed", [](Matrices& x) { x.op_b = CUSPARSE_OPERATION_TRANSPOSE; }, "shapes do not"},
      {"A transposed", [](Matrices& x) { x.op_a = CUSPARSE_OPERATION_TRANSPOSE; }, "a plain A"},
      {"index base", [](Matrices& x) { x.base = CUSPARSE_INDEX_BASE_ONE; }, "begin with the index"},
      {"index type", [](Matrices& x) { x.index_type = CUSPARSE_INDEX_64I; }, "32-bit indices"},
      {"type", [](Matrices& x) { x.type = CUDA_R_16F; }, "CUDA_R_32F expected"},
      {"compute type", [](Matrices& x) { x.compute = CUDA_R_16F; }, "not fp32"},
      {"nonzeros", [](Matrices& x) { x.nonzeros = 2; }, "end with the number of nonzeros"},
      {"too many nonzeros", [](Matrices& x) { x.nonzeros = 7; }, "more nonzeros than"},
      {"decreasing offsets", [&](Matrices& x) { x.offsets = decreasing; }, "row offsets decrease"},
      {"end of offsets", [&](Matrices& x) { x.offsets = other_end; }, "end with the number"},
      {"column out of range", [&](Matrices& x) { x.indices = far_column; }, "out of range"},
      {"columns descend", [&](Matrices& x) { x.indices = descending; }, "do not ascend"},
      {"B on the host", [&](Matrices& x) { x.b = host; }, "not in device memory"},
      {"values on the host", [&](Matrices& x) { x.values = host; }, "not in device memory"},
      {"B never written", [&](Matrices& x) { x.b = never_written; }, "B holds memory"},
      {"values never written", [&](Matrices& x) { x.values = never_written; }, "values holds"},
      {"C kept but never written", [](Matrices& x) { x.beta = &x.one; }, "C holds memory"},
      {"C is B", [](Matrices& x) { x.c = x.b; }, "C overlaps B"},
      {"B too short", [](Matrices& x) { x.b_stride = 7; }, "B: its 52 bytes leave"},
      {"C too short", [](Matrices& x) { x.c_stride = 5; }, "C: its 36 bytes leave"},
      {"alpha on the device", [&](Matrices& x) { x.alpha = device_scalar; }, "host memory"},
      {"buffer too small", [&](Matrices& x) { x.buffer = small; }, "bytes of device memory"},
      {"buffer on the host", [&](Matrices& x) { x.buffer = host; }, "bytes of device memory"},
      {"buffer not aligned", [&](Matrices& x) { x.buffer = large + 4; }, "not aligned"},
  };
  expect_refusals(m, wrongs);
}

TEST_F(CusparseTest, SamplesDenseProducts) {
  Sampled m;
  fill(m);
  m.op_b = CUSPARSE_OPERATION_TRANSPOSE;
  m.c = upload(Floats{1, 2, 3, 4, 5, 6, 7, 8});
  m.indices = upload(std::vector<int>{0, 2, 1, 0, 2, 1});
  m.values = uninitialised<float>(6);
  m.values_stride = 3;
  ASSERT_EQ(m.run(), CUSPARSE_STATUS_SUCCESS) << cusparseGetErrorString(m.run());
  // (1 2; 3 4) * (1 3 5; 2 4 6) at (0, 0), (0, 2), (1, 1), and the same of the second matrices.
  EXPECT_EQ(download(static_cast<float*>(m.values), 6), (Floats{5, 17, 25, 83, 127, 143}));

  float host[16] = {};
  const std::vector<Wrong<Sampled>> wrongs = {
      {"values overlap", [](Sampled& x) { x.values_stride = 0; }, "matrices overlap"},
      {"B not transposed", [](Sampled& x) { x.op_b = CUSPARSE_OPERATION_NON_TRANSPOSE; },
       "shapes do not fit"},
      {"columns of one matrix only",
       [](Sampled& x) {
         x.indices = upload(std::vector<int>{0, 2, 1});
       },
       "column indices: its 24"},
      {"batches differ", [](Sampled& x) { x.c_batches = 1; }, "numbers of batches differ"},
      {"values on the host", [&](Sampled& x) { x.values = host; }, "not in device memory"},
      {"kept but never written",
       [](Sampled& x) {
         x.values = uninitialised<float>(6);
         x.beta = &x.one;
       },
       "values holds memory"},
      {"compute type", [](Sampled& x) { x.compute = CUDA_R_16F; }, "not fp32"},
      {"buffer on the host", [&](Sampled& x) { x.buffer = host; }, "bytes of device memory"},
  };
  expect_refusals(m, wrongs);
}

TEST_F(CusparseTest, RefusesHandlesWithoutStream) {
  Matrices m;
  fill(m);
  cusparseHandle_t fresh = nullptr;
  ASSERT_EQ(cusparseCreate(&fresh), CUSPARSE_STATUS_SUCCESS);
  m.handle = fresh;
  EXPECT_EQ(m.run(), CUSPARSE_STATUS_NOT_INITIALIZED);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // the operands come by the default stream
  ASSERT_EQ(cusparseSetStream(fresh, stream), CUSPARSE_STATUS_SUCCESS);
  EXPECT_EQ(m.run(), CUSPARSE_STATUS_SUCCESS);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(m.run(), CUSPARSE_STATUS_INVALID_VALUE);
  EXPECT_EQ(cusparseSetStream(fresh, stream), CUSPARSE_STATUS_INVALID_VALUE);
  EXPECT_EQ(cusparseDestroy(fresh), CUSPARSE_STATUS_SUCCESS);
  EXPECT_EQ(cusparseDestroy(fresh), CUSPARSE_STATUS_NOT_INITIALIZED);
}

// --- Thrust --------------------------------------------------------------------------------------

struct IsOdd {
  bool operator()(unsigned char value) const { return value % 2 == 1; }
};

class ThrustTest : public RuntimeTest {
 protected:
  static void expect_refusal(const std::function<void()>& call, const std::string& says) {
    try {
      call();
      FAIL() << "not refused, expected: " << says;
    } catch (const thrust::system_error& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
  }
  using Counter = thrust::counting_iterator<unsigned>;
};

TEST_F(ThrustTest, SortsAndKeepsTheOrderOfEqualKeys) {
  unsigned* keys = upload(std::vector<unsigned>{3, 1, 0xffffffff, 1});
  unsigned* values = upload(std::vector<unsigned>{0, 1, 2, 3});
  thrust::stable_sort_by_key(thrust::cuda::par.on(nullptr), keys, keys + 4, values);
  EXPECT_EQ(download(keys, 4), (std::vector<unsigned>{1, 1, 3, 0xffffffff}));
  EXPECT_EQ(download(values, 4), (std::vector<unsigned>{1, 3, 0, 2}));
}

TEST_F(ThrustTest, RefusesToSortWhatIsNotThere) {
  const auto policy = thrust::cuda::par.on(nullptr);
  unsigned host[4] = {};
  unsigned* keys = upload(std::vector<unsigned>{3, 1, 2, 1});
  unsigned* never_written = uninitialised<unsigned>(4);
  const auto sort = [&](unsigned* k, size_t count, unsigned* v) {
    return [=] { thrust::stable_sort_by_key(policy, k, k + count, v); };
  };
  expect_refusal(sort(host, 4, keys), "keys: 16 bytes");
  expect_refusal(sort(keys, 4, host), "values: 16 bytes");
  expect_refusal(sort(keys, 5, keys), "keys: 20 bytes");
  expect_refusal(sort(never_written, 4, keys), "keys: memory that was never written");
  expect_refusal(sort(keys, 4, never_written), "values: memory that was never written");
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  expect_refusal(
      [&] { thrust::stable_sort_by_key(thrust::cuda::par.on(stream), keys, keys + 4, keys); },
      "no such stream");
}

TEST_F(ThrustTest, CopiesWhatTheStencilChooses) {
  const auto policy = thrust::cuda::par.on(nullptr);
  auto* stencil = upload(std::vector<unsigned char>{1, 0, 1, 1});
  unsigned* result = uninitialised<unsigned>(3);
  EXPECT_EQ(thrust::copy_if(policy, Counter(10), Counter(14), stencil, result, IsOdd{}),
            result + 3);
  EXPECT_EQ(download(result, 3), (std::vector<unsigned>{10, 12, 13}));

  unsigned host[4] = {};
  unsigned char on_host[4] = {};
  auto* never_written = uninitialised<unsigned char>(4);
  const auto copy = [&](unsigned char* s, unsigned* to) {
    return [=] { thrust::copy_if(policy, Counter(0), Counter(4), s, to, IsOdd{}); };
  };
  expect_refusal(copy(on_host, result), "stencil: 4 bytes");
  expect_refusal(copy(never_written, result), "stencil: memory that was never written");
  expect_refusal(copy(stencil, host), "result: 12 bytes");
  expect_refusal(copy(stencil, uninitialised<unsigned>(2)), "result: 12 bytes");
}

}  // namespace
