// SPDX-License-Identifier: MIT
#include "tests/simt/cusparse.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/simt/library.h"

struct cusparseContext {
  bool has_stream = false;
  cudaStream_t stream = nullptr;
};

struct cusparseDnMatDescr {
  int64_t rows, columns, ld;
  float* values;
  cusparseOrder_t order;
  int batches = 1;
  int64_t stride = 0;

  bool by_row() const { return order == CUSPARSE_ORDER_ROW; }
  simt::Extent extent(const char* name) const {
    return {name,    values, by_row() ? columns : rows, by_row() ? rows : columns, ld,
            batches, stride};
  }
  float* at(int batch, int64_t row, int64_t column) const {
    return values + batch * stride + (by_row() ? row * ld + column : column * ld + row);
  }
};

// By rows (CSR) or by entries (COO).
struct cusparseSpMatDescr {
  int64_t rows, columns, nonzeros;
  int* offsets;      // of rows; CSR
  int* row_indices;  // COO
  int* indices;
  float* values;
  int base;
  int batches = 1;
  int64_t offsets_stride = 0, columns_values_stride = 0;

  bool is_csr() const { return offsets != nullptr; }
  simt::Extent offsets_extent() const {
    return {"row offsets", offsets, rows + 1, 1, 0, batches, offsets_stride};
  }
  simt::Extent row_indices_extent() const {
    return {"row indices", row_indices, nonzeros, 1, 0, batches, columns_values_stride};
  }
  simt::Extent indices_extent() const {
    return {"column indices", indices, nonzeros, 1, 0, batches, columns_values_stride};
  }
  simt::Extent values_extent() const {
    return {"values", values, nonzeros, 1, 0, batches, columns_values_stride};
  }
  int offset(int batch, int64_t row) const { return offsets[batch * offsets_stride + row] - base; }
  int row(int batch, int64_t entry) const {
    return row_indices[batch * columns_values_stride + entry] - base;
  }
  int column(int batch, int64_t entry) const {
    return indices[batch * columns_values_stride + entry] - base;
  }
  float* value(int batch, int64_t entry) const {
    return values + batch * columns_values_stride + entry;
  }
  // Calls body(entry) for the entries of a row, whose pattern was checked.
  template <typename Body>
  void for_each_of_row(int batch, int64_t of_row, const Body& body) const {
    if (is_csr()) {
      for (int i = offset(batch, of_row); i < offset(batch, of_row + 1); ++i) body(i);
      return;
    }
    for (int64_t i = 0; i < nonzeros; ++i) {
      if (row(batch, i) == of_row) body(i);
    }
  }
};

namespace {

std::set<cusparseHandle_t> handles;
std::set<cusparseConstDnMatDescr_t> dense_matrices;
std::set<cusparseConstSpMatDescr_t> sparse_matrices;
std::string detail;  // of the last refusal

using simt::require;

constexpr int kMaxBatches = 65535;
constexpr size_t kBufferAlignment = 16;

void require_valid(bool holds, const std::string& why) {
  require(holds, CUSPARSE_STATUS_INVALID_VALUE, why);
}
void require_none(const std::string& wrong) {
  require(wrong.empty(), CUSPARSE_STATUS_EXECUTION_FAILED, wrong);
}

void require_aligned(const void* array) {
  require_valid(reinterpret_cast<uintptr_t>(array) % sizeof(float) == 0,
                "an array that is not aligned to its elements");
}

template <typename Call>
cusparseStatus_t answer(const Call& call) {
  return simt::answer(CUSPARSE_STATUS_SUCCESS, detail, call);
}

void check_handle(cusparseHandle_t handle) {
  require(handles.contains(handle), CUSPARSE_STATUS_NOT_INITIALIZED, "no such handle");
}
void check_matrix(cusparseConstDnMatDescr_t matrix) {
  require_valid(dense_matrices.contains(matrix), "no such dense matrix");
}
void check_matrix(cusparseConstSpMatDescr_t matrix) {
  require_valid(sparse_matrices.contains(matrix), "no such sparse matrix");
}

// What both products check before they look at their operands.
void check_call(const char* call, cusparseHandle_t handle, const void* alpha, const void* beta,
                cudaDataType compute) {
  check_handle(handle);
  require(!simt::is_to_be_refused(call), CUSPARSE_STATUS_NOT_SUPPORTED,
          std::string(call) + " is refused as SIMT_REFUSE asks");
  require(!simt::device_failed(), CUSPARSE_STATUS_EXECUTION_FAILED, "a kernel failed before");
  require(handle->has_stream, CUSPARSE_STATUS_NOT_INITIALIZED, "the handle has no stream");
  require_valid(simt::stream_exists(handle->stream), "the handle's stream is destroyed");
  for (const void* scalar : {alpha, beta}) {
    require_valid(scalar != nullptr && !simt::is_device_address(scalar),
                  "alpha or beta: host memory expected");
  }
  require(compute == CUDA_R_32F, CUSPARSE_STATUS_NOT_SUPPORTED, "compute type: not fp32");
}

void check_batches(int of_sparse, int of_first, int of_second) {
  require_valid(of_sparse == of_first && of_first == of_second,
                "numbers of batches differ: " + std::to_string(of_sparse) + ", " +
                    std::to_string(of_first) + ", " + std::to_string(of_second));
  require(of_sparse <= kMaxBatches, CUSPARSE_STATUS_NOT_SUPPORTED, "more than 65535 batches");
}

void check_buffer(const void* buffer, size_t bytes) {
  require_valid(simt::is_device_address(buffer) && simt::in_one_allocation(buffer, bytes),
                "buffer: " + std::to_string(bytes) + " bytes of device memory expected");
  require_valid(reinterpret_cast<uintptr_t>(buffer) % kBufferAlignment == 0,
                "buffer: not aligned to 16 bytes");
}

// The pattern is a matrix of its format and index base. Device memory must be open.
void check_pattern(const cusparseSpMatDescr& m) {
  require_none((m.is_csr() ? m.offsets_extent() : m.row_indices_extent()).unreadable());
  require_none(m.indices_extent().unreadable());
  const simt::OpenDeviceMemory open;
  for (int b = 0; b < m.batches; ++b) {
    if (m.is_csr()) {
      require_none(m.offset(b, 0) == 0 ? "" : "row offsets do not begin with the index base");
      require_none(m.offset(b, m.rows) == m.nonzeros
                       ? ""
                       : "row offsets do not end with the number of nonzeros");
      for (int64_t row = 0; row < m.rows; ++row) {
        require_none(m.offset(b, row) <= m.offset(b, row + 1) ? "" : "row offsets decrease");
      }
    } else {
      for (int64_t i = 0; i < m.nonzeros; ++i) {
        const int row = m.row(b, i);
        require_none(row >= 0 && row < m.rows ? "" : "a row index is out of range");
        require_none(i == 0 || m.row(b, i - 1) <= row ? "" : "entries are not sorted by row");
      }
    }
    for (int64_t row = 0; row < m.rows; ++row) {
      int before = -1;
      m.for_each_of_row(b, row, [&](int64_t i) {
        const int column = m.column(b, i);
        require_none(column >= 0 && column < m.columns ? "" : "a column index is out of range");
        require_none(before < column ? "" : "column indices of a row do not ascend");
        before = column;
      });
    }
  }
}

// Of a call: more with more work, so that a buffer of another call is found too small.
size_t buffer_bytes(const cusparseSpMatDescr& m, int64_t columns) {
  return static_cast<size_t>(16 * (1 + m.rows + m.nonzeros + columns));
}

bool transposed(cusparseOperation_t operation) { return operation == CUSPARSE_OPERATION_TRANSPOSE; }

// op(matrix), element by element.
struct Operand {
  const cusparseDnMatDescr* matrix;
  bool flipped;
  int64_t rows() const { return flipped ? matrix->columns : matrix->rows; }
  int64_t columns() const { return flipped ? matrix->rows : matrix->columns; }
  float at(int batch, int64_t row, int64_t column) const {
    return flipped ? *matrix->at(batch, column, row) : *matrix->at(batch, row, column);
  }
};

struct Spmm {
  cusparseHandle_t handle;
  cusparseOperation_t op_a, op_b;
  const void* alpha;
  cusparseConstSpMatDescr_t a;
  cusparseConstDnMatDescr_t b;
  const void* beta;
  cusparseDnMatDescr_t c;
  cudaDataType compute_type;
  cusparseSpMMAlg_t algorithm;

  // Bytes of the buffer.
  size_t check() const {
    check_call("cusparseSpMM", handle, alpha, beta, compute_type);
    check_matrix(a);
    check_matrix(b);
    check_matrix(c);
    require(!transposed(op_a), CUSPARSE_STATUS_NOT_SUPPORTED, "a plain A expected");
    const bool of_csr = algorithm == CUSPARSE_SPMM_CSR_ALG2 || algorithm == CUSPARSE_SPMM_CSR_ALG3;
    require(of_csr || algorithm == CUSPARSE_SPMM_COO_ALG1 || algorithm == CUSPARSE_SPMM_COO_ALG2,
            CUSPARSE_STATUS_NOT_SUPPORTED, "algorithm");
    require(of_csr == a->is_csr(), CUSPARSE_STATUS_NOT_SUPPORTED,
            "the algorithm is for another format");
    const Operand right{b, transposed(op_b)};
    require_valid(a->columns == right.rows() && a->rows == c->rows && right.columns() == c->columns,
                  "shapes do not fit");
    require(b->order == c->order, CUSPARSE_STATUS_NOT_SUPPORTED, "orders of B and C differ");
    check_batches(a->batches, b->batches, c->batches);
    require(algorithm != CUSPARSE_SPMM_CSR_ALG3 || a->batches == 1, CUSPARSE_STATUS_NOT_SUPPORTED,
            "SPMM_CSR_ALG3 takes one batch");
    require_valid(c->batches == 1 || c->stride != 0, "matrices C of the batch overlap");
    return buffer_bytes(*a, c->columns);
  }
  void run() const {
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    check_pattern(*a);
    require_none(a->values_extent().unreadable());
    require_none(b->extent("B").unreadable());
    const simt::Extent written = c->extent("C");
    if (keep != 0) require_none(written.unreadable());
    require_none(written.unwritable());
    require_valid(!written.overlaps(b->extent("B")), "C overlaps B");
    const simt::OpenDeviceMemory open;
    const Operand right{b, transposed(op_b)};
    std::vector<float> sums(static_cast<size_t>(c->columns));
    for (int batch = 0; batch < c->batches; ++batch) {
      for (int64_t row = 0; row < c->rows; ++row) {
        std::fill(sums.begin(), sums.end(), 0.0F);
        a->for_each_of_row(batch, row, [&](int64_t i) {
          for (int64_t column = 0; column < c->columns; ++column) {
            sums[static_cast<size_t>(column)] +=
                *a->value(batch, i) * right.at(batch, a->column(batch, i), column);
          }
        });
        for (int64_t column = 0; column < c->columns; ++column) {
          float* out = c->at(batch, row, column);
          *out = scale * sums[static_cast<size_t>(column)] + (keep == 0 ? 0.0F : keep * *out);
        }
      }
    }
    written.mark_written();
  }
};

struct Sddmm {
  cusparseHandle_t handle;
  cusparseOperation_t op_a, op_b;
  const void* alpha;
  cusparseConstDnMatDescr_t a, b;
  const void* beta;
  cusparseSpMatDescr_t c;
  cudaDataType compute_type;
  cusparseSDDMMAlg_t algorithm;

  size_t check() const {
    check_call("cusparseSDDMM", handle, alpha, beta, compute_type);
    check_matrix(a);
    check_matrix(b);
    check_matrix(c);
    require(algorithm == CUSPARSE_SDDMM_ALG_DEFAULT, CUSPARSE_STATUS_NOT_SUPPORTED, "algorithm");
    require(c->is_csr(), CUSPARSE_STATUS_NOT_SUPPORTED, "format of C: CSR expected");
    const Operand left{a, transposed(op_a)}, right{b, transposed(op_b)};
    require_valid(
        left.columns() == right.rows() && left.rows() == c->rows && right.columns() == c->columns,
        "shapes do not fit");
    check_batches(c->batches, a->batches, b->batches);
    require_valid(c->batches == 1 || c->columns_values_stride >= c->nonzeros,
                  "values of the batch's matrices overlap");
    return buffer_bytes(*c, left.columns());
  }
  void run() const {
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    check_pattern(*c);
    const simt::Extent written = c->values_extent();
    require_none(a->extent("A").unreadable());
    require_none(b->extent("B").unreadable());
    if (keep != 0) require_none(written.unreadable());
    require_none(written.unwritable());
    require_valid(!written.overlaps(a->extent("A")) && !written.overlaps(b->extent("B")),
                  "C overlaps A or B");
    const simt::OpenDeviceMemory open;
    const Operand left{a, transposed(op_a)}, right{b, transposed(op_b)};
    for (int batch = 0; batch < c->batches; ++batch) {
      for (int64_t row = 0; row < c->rows; ++row) {
        c->for_each_of_row(batch, row, [&](int64_t i) {
          float sum = 0;
          for (int64_t k = 0; k < left.columns(); ++k) {
            sum += left.at(batch, row, k) * right.at(batch, k, c->column(batch, i));
          }
          float* out = c->value(batch, i);
          *out = scale * sum + (keep == 0 ? 0.0F : keep * *out);
        });
      }
    }
    written.mark_written();
  }
};

// Runs a product that was checked. What a graph runs later owns copies of what it reads, as it
// outlives descriptors and scalars.
template <typename Product>
void run_on_stream(const Product& product) {
  const cudaStream_t stream = product.handle->stream;
  if (!simt::stream_captures(stream)) {
    simt::begin_operation(stream);
    product.run();
    return;
  }
  struct Copies {
    std::remove_cvref_t<decltype(*product.a)> a;
    std::remove_cvref_t<decltype(*product.b)> b;
    std::remove_cvref_t<decltype(*product.c)> c;
    float alpha, beta;
  };
  const auto copies = std::make_shared<Copies>(Copies{*product.a, *product.b, *product.c,
                                                      *static_cast<const float*>(product.alpha),
                                                      *static_cast<const float*>(product.beta)});
  Product later = product;
  later.a = &copies->a;
  later.b = &copies->b;
  later.c = &copies->c;
  later.alpha = &copies->alpha;
  later.beta = &copies->beta;
  const cusparseStatus_t status =
      simt::put_on_stream(stream, CUSPARSE_STATUS_SUCCESS, CUSPARSE_STATUS_EXECUTION_FAILED,
                          [later, copies] { return answer([&] { later.run(); }); });
  require(status == CUSPARSE_STATUS_SUCCESS, status, "the capture does not take it");
}

}  // namespace

const char* cusparseGetErrorName(cusparseStatus_t status) {
  switch (status) {
    case CUSPARSE_STATUS_SUCCESS:
      return "CUSPARSE_STATUS_SUCCESS";
    case CUSPARSE_STATUS_NOT_INITIALIZED:
      return "CUSPARSE_STATUS_NOT_INITIALIZED";
    case CUSPARSE_STATUS_INVALID_VALUE:
      return "CUSPARSE_STATUS_INVALID_VALUE";
    case CUSPARSE_STATUS_EXECUTION_FAILED:
      return "CUSPARSE_STATUS_EXECUTION_FAILED";
    case CUSPARSE_STATUS_NOT_SUPPORTED:
      return "CUSPARSE_STATUS_NOT_SUPPORTED";
  }
  return "unknown status";
}
const char* cusparseGetErrorString(cusparseStatus_t status) {
  return status == CUSPARSE_STATUS_SUCCESS ? "success" : detail.c_str();
}

cusparseStatus_t cusparseCreate(cusparseHandle_t* handle) {
  *handle = new cusparseContext;
  handles.insert(*handle);
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseDestroy(cusparseHandle_t handle) {
  return answer([&] {
    check_handle(handle);
    handles.erase(handle);
    delete handle;
  });
}
cusparseStatus_t cusparseSetStream(cusparseHandle_t handle, cudaStream_t stream) {
  return answer([&] {
    check_handle(handle);
    require_valid(simt::stream_exists(stream), "no such stream");
    *handle = {true, stream};
  });
}

cusparseStatus_t cusparseCreateDnMat(cusparseDnMatDescr_t* matrix, int64_t rows, int64_t columns,
                                     int64_t ld, void* values, cudaDataType type,
                                     cusparseOrder_t order) {
  return answer([&] {
    require_valid(rows > 0 && columns > 0, "a dense matrix without elements");
    require_valid(order == CUSPARSE_ORDER_ROW || order == CUSPARSE_ORDER_COL, "order");
    require_valid(ld >= (order == CUSPARSE_ORDER_ROW ? columns : rows),
                  "leading dimension " + std::to_string(ld) + " of a " + std::to_string(rows) +
                      " x " + std::to_string(columns) + " matrix");
    require(type == CUDA_R_32F, CUSPARSE_STATUS_NOT_SUPPORTED, "type: CUDA_R_32F expected");
    require_valid(simt::is_device_address(values), "dense values are not in device memory");
    require_aligned(values);
    *matrix = new cusparseDnMatDescr{rows, columns, ld, static_cast<float*>(values), order};
    dense_matrices.insert(*matrix);
  });
}
cusparseStatus_t cusparseDnMatSetStridedBatch(cusparseDnMatDescr_t matrix, int batches,
                                              int64_t stride) {
  return answer([&] {
    check_matrix(matrix);
    require_valid(batches > 0, "no batches");
    const int64_t least = matrix->ld * (matrix->by_row() ? matrix->rows : matrix->columns);
    require_valid(stride == 0 || stride >= least, "batch stride " + std::to_string(stride) +
                                                      " of matrices of " + std::to_string(least) +
                                                      " elements");
    matrix->batches = batches;
    matrix->stride = stride;
  });
}
cusparseStatus_t cusparseDestroyDnMat(cusparseConstDnMatDescr_t matrix) {
  return answer([&] {
    check_matrix(matrix);
    dense_matrices.erase(matrix);
    delete matrix;
  });
}

namespace {

// Keeps what both formats check of a new matrix.
void create_sparse(cusparseSpMatDescr_t* matrix, const cusparseSpMatDescr& of,
                   bool types_are_good) {
  require_valid(of.rows > 0 && of.columns > 0 && of.nonzeros > 0,
                "a sparse matrix without elements");
  require_valid(of.nonzeros <= of.rows * of.columns, "more nonzeros than elements");
  require(types_are_good, CUSPARSE_STATUS_NOT_SUPPORTED,
          "types: 32-bit indices and CUDA_R_32F expected");
  const int* rows = of.is_csr() ? of.offsets : of.row_indices;
  for (const void* array : {static_cast<const void*>(rows), static_cast<const void*>(of.indices),
                            static_cast<const void*>(of.values)}) {
    require_valid(simt::is_device_address(array), "a sparse matrix is not in device memory");
    require_aligned(array);
  }
  *matrix = new cusparseSpMatDescr(of);
  sparse_matrices.insert(*matrix);
}

}  // namespace

cusparseStatus_t cusparseCreateCsr(cusparseSpMatDescr_t* matrix, int64_t rows, int64_t columns,
                                   int64_t nonzeros, void* row_offsets, void* column_indices,
                                   void* values, cusparseIndexType_t offset_type,
                                   cusparseIndexType_t index_type, cusparseIndexBase_t base,
                                   cudaDataType type) {
  return answer([&] {
    create_sparse(matrix,
                  {rows, columns, nonzeros, static_cast<int*>(row_offsets), nullptr,
                   static_cast<int*>(column_indices), static_cast<float*>(values),
                   base == CUSPARSE_INDEX_BASE_ONE ? 1 : 0},
                  offset_type == CUSPARSE_INDEX_32I && index_type == CUSPARSE_INDEX_32I &&
                      type == CUDA_R_32F);
  });
}
cusparseStatus_t cusparseCsrSetStridedBatch(cusparseSpMatDescr_t matrix, int batches,
                                            int64_t offsets_stride, int64_t columns_values_stride) {
  return answer([&] {
    check_matrix(matrix);
    require_valid(matrix->is_csr(), "a matrix of another format");
    require_valid(batches > 0, "no batches");
    require_valid(offsets_stride == 0 || offsets_stride >= matrix->rows + 1,
                  "batch stride of row offsets that overlap");
    require_valid(columns_values_stride == 0 || columns_values_stride >= matrix->nonzeros,
                  "batch stride of columns and values that overlap");
    matrix->batches = batches;
    matrix->offsets_stride = offsets_stride;
    matrix->columns_values_stride = columns_values_stride;
  });
}

cusparseStatus_t cusparseCreateCoo(cusparseSpMatDescr_t* matrix, int64_t rows, int64_t columns,
                                   int64_t nonzeros, void* row_indices, void* column_indices,
                                   void* values, cusparseIndexType_t index_type,
                                   cusparseIndexBase_t base, cudaDataType type) {
  return answer([&] {
    create_sparse(matrix,
                  {rows, columns, nonzeros, nullptr, static_cast<int*>(row_indices),
                   static_cast<int*>(column_indices), static_cast<float*>(values),
                   base == CUSPARSE_INDEX_BASE_ONE ? 1 : 0},
                  index_type == CUSPARSE_INDEX_32I && type == CUDA_R_32F);
  });
}
cusparseStatus_t cusparseCooSetStridedBatch(cusparseSpMatDescr_t matrix, int batches,
                                            int64_t stride) {
  return answer([&] {
    check_matrix(matrix);
    require_valid(!matrix->is_csr(), "a matrix of another format");
    require_valid(batches > 0, "no batches");
    require_valid(stride == 0 || stride >= matrix->nonzeros,
                  "batch stride of entries that overlap");
    matrix->batches = batches;
    matrix->columns_values_stride = stride;
  });
}
cusparseStatus_t cusparseDestroySpMat(cusparseConstSpMatDescr_t matrix) {
  return answer([&] {
    check_matrix(matrix);
    sparse_matrices.erase(matrix);
    delete matrix;
  });
}

cusparseStatus_t cusparseSpMM_bufferSize(cusparseHandle_t handle, cusparseOperation_t op_a,
                                         cusparseOperation_t op_b, const void* alpha,
                                         cusparseConstSpMatDescr_t a, cusparseConstDnMatDescr_t b,
                                         const void* beta, cusparseDnMatDescr_t c,
                                         cudaDataType compute_type, cusparseSpMMAlg_t algorithm,
                                         size_t* bytes) {
  return answer([&] {
    *bytes = Spmm{handle, op_a, op_b, alpha, a, b, beta, c, compute_type, algorithm}.check();
  });
}
cusparseStatus_t cusparseSpMM(cusparseHandle_t handle, cusparseOperation_t op_a,
                              cusparseOperation_t op_b, const void* alpha,
                              cusparseConstSpMatDescr_t a, cusparseConstDnMatDescr_t b,
                              const void* beta, cusparseDnMatDescr_t c, cudaDataType compute_type,
                              cusparseSpMMAlg_t algorithm, void* buffer) {
  return answer([&] {
    const Spmm spmm{handle, op_a, op_b, alpha, a, b, beta, c, compute_type, algorithm};
    check_buffer(buffer, spmm.check());
    run_on_stream(spmm);
  });
}

cusparseStatus_t cusparseSDDMM_bufferSize(cusparseHandle_t handle, cusparseOperation_t op_a,
                                          cusparseOperation_t op_b, const void* alpha,
                                          cusparseConstDnMatDescr_t a, cusparseConstDnMatDescr_t b,
                                          const void* beta, cusparseSpMatDescr_t c,
                                          cudaDataType compute_type, cusparseSDDMMAlg_t algorithm,
                                          size_t* bytes) {
  return answer([&] {
    *bytes = Sddmm{handle, op_a, op_b, alpha, a, b, beta, c, compute_type, algorithm}.check();
  });
}
cusparseStatus_t cusparseSDDMM(cusparseHandle_t handle, cusparseOperation_t op_a,
                               cusparseOperation_t op_b, const void* alpha,
                               cusparseConstDnMatDescr_t a, cusparseConstDnMatDescr_t b,
                               const void* beta, cusparseSpMatDescr_t c, cudaDataType compute_type,
                               cusparseSDDMMAlg_t algorithm, void* buffer) {
  return answer([&] {
    const Sddmm sddmm{handle, op_a, op_b, alpha, a, b, beta, c, compute_type, algorithm};
    check_buffer(buffer, sddmm.check());
    run_on_stream(sddmm);
  });
}
