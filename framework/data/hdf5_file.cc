// SPDX-License-Identifier: MIT
#include "framework/data/hdf5_file.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <system_error>
#include <type_traits>

#include "framework/error.h"

namespace fmp {
namespace {

constexpr int64_t kReadBytes = 8 << 20;
constexpr int64_t kMaxChunkBytes = 256 << 20;

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// The innermost message of the library's error stack: what went wrong first, e.g. "inflate()
// failed".
std::string library_error() {
  std::string message;
  const auto take_first = [](unsigned, const H5E_error2_t* error, void* result) -> herr_t {
    if (error->desc != nullptr) *static_cast<std::string*>(result) = error->desc;
    return 1;  // stop
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &message);
  std::replace(message.begin(), message.end(), '\n', ' ');
  return message.empty() ? "no reason given by the HDF5 library" : message;
}

// Bytes of the file at `path`, which must exist and be readable.
int64_t readable_bytes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("{}: {}", path, std::generic_category().message(errno));
  stream.seekg(0, std::ios::end);
  const std::streamoff bytes = stream.tellg();
  if (!stream || bytes == std::numeric_limits<std::streamoff>::max()) {
    fail("{}: is not a file that can be read at any place", path);  // e.g. a directory
  }
  return bytes;
}

// a * b for a, b >= 0, or -1 where it does not fit.
int64_t product(int64_t a, int64_t b) {
  if (a < 0 || b < 0 || (b > 0 && a > std::numeric_limits<int64_t>::max() / b)) return -1;
  return a * b;
}

}  // namespace

Hdf5Lock::Hdf5Lock() : lock_(library_mutex()) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

void Hdf5Handle::reset() {
  if (!valid()) return;
  const Hdf5Lock lock;
  H5Idec_ref(id_);
  id_ = H5I_INVALID_HID;
}

Hdf5File::Hdf5File(const std::string& path) : path_(path), bytes_(readable_bytes(path)) {
  const Hdf5Lock lock;
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  if (is_hdf5 == 0) fail("{}: is not an HDF5 file", path);
  if (is_hdf5 > 0) file_ = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!file_.valid()) fail("{}: cannot be opened ({})", path, library_error());
}

Hdf5DataSet Hdf5File::dataset(const std::string& name) const {
  const Hdf5Lock lock;
  Hdf5DataSet result;
  result.where_ = fmt::format("{}: data set {}", path_, name);
  if (H5Lexists(file_.get(), name.c_str(), H5P_DEFAULT) <= 0) fail("{} is missing", result.where_);
  result.id_ = Hdf5Handle(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!result.id_.valid()) fail("{} cannot be opened ({})", result.where_, library_error());
  result.check_type();
  result.read_shape();
  result.check_complete(bytes_);
  return result;
}

void Hdf5DataSet::check_type() const {
  const Hdf5Handle type(H5Dget_type(id_.get()));
  const H5T_class_t kind = H5Tget_class(type.get());
  // Booleans are stored as an enumeration, which the library converts like an integer.
  if (kind != H5T_INTEGER && kind != H5T_FLOAT && kind != H5T_ENUM) {
    fail("{} holds no integers or floats", where_);
  }
}

void Hdf5DataSet::read_shape() {
  const Hdf5Handle space(H5Dget_space(id_.get()));
  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (rank < 1) fail("{} has no dimensions, expected at least one", where_);
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] > static_cast<hsize_t>(std::numeric_limits<int64_t>::max())) {
      fail("{}: dimension {} is {}, which is too large", where_, i, dims[i]);
    }
    shape_.push_back(static_cast<int64_t>(dims[i]));
    if (i > 0) row_elements_ = product(row_elements_, shape_[i]);
  }
  // 16: more than the bytes of any element, so that sizes in bytes fit as well.
  if (row_elements_ < 0 || product(product(row_elements_, rows()), 16) < 0) {
    fail("{} has too many elements", where_);
  }
  const Hdf5Handle creation(H5Dget_create_plist(id_.get()));
  if (H5Pget_layout(creation.get()) == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(dims.size());
    H5Pget_chunk(creation.get(), rank, chunk.data());
    chunk_rows_ = static_cast<int64_t>(chunk[0]);
  }
}

// The library reads what was never written as zeros. Data that are not there are an error here.
void Hdf5DataSet::check_complete(int64_t file_bytes) const {
  const Hdf5Handle creation(H5Dget_create_plist(id_.get()));
  const H5D_layout_t layout = H5Pget_layout(creation.get());
  const Hdf5Handle type(H5Dget_type(id_.get()));
  const int64_t bytes = rows() * row_elements_ * static_cast<int64_t>(H5Tget_size(type.get()));
  if (layout == H5D_CONTIGUOUS && H5Pget_external_count(creation.get()) == 0) {
    const int64_t stored = static_cast<int64_t>(H5Dget_storage_size(id_.get()));
    if (stored < bytes || bytes > file_bytes) {
      fail("{} is incomplete: {} bytes are stored, {} expected", where_,
           std::min(stored, file_bytes), bytes);
    }
  }
  if (layout == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(shape_.size());
    H5Pget_chunk(creation.get(), static_cast<int>(chunk.size()), chunk.data());
    hsize_t expected = 1, stored = 0;
    for (size_t i = 0; i < chunk.size(); ++i) {
      const hsize_t size = static_cast<hsize_t>(shape_[i]);
      expected *= size / chunk[i] + (size % chunk[i] != 0 ? 1 : 0);
    }
    const Hdf5Handle space(H5Dget_space(id_.get()));
    if (H5Dget_num_chunks(id_.get(), space.get(), &stored) < 0) {
      fail("{}: its chunks cannot be found ({})", where_, library_error());
    }
    if (stored < expected) {
      fail("{} is incomplete: {} of {} chunks are stored", where_, stored, expected);
    }
  }
}

int64_t Hdf5DataSet::rows_per_read(int64_t element_bytes) const {
  const int64_t row_bytes = std::max<int64_t>(row_elements_ * element_bytes, 1);
  const int64_t rows_wanted = std::max<int64_t>(kReadBytes / row_bytes, 1);
  if (chunk_rows_ == 0 || chunk_rows_ > kMaxChunkBytes / row_bytes) return rows_wanted;
  return (rows_wanted + chunk_rows_ - 1) / chunk_rows_ * chunk_rows_;
}

template <typename T>
void Hdf5DataSet::read_rows(int64_t first, int64_t count, T* out) const {
  if (first < 0 || count < 0 || count > rows() - first) {
    fail("{} has {} rows, rows {} to {} are asked for", where_, rows(), first, first + count - 1);
  }
  if (count == 0) return;
  const Hdf5Lock lock;
  std::vector<hsize_t> start(shape_.size(), 0), extent(shape_.begin(), shape_.end());
  start[0] = static_cast<hsize_t>(first);
  extent[0] = static_cast<hsize_t>(count);
  const Hdf5Handle file_space(H5Dget_space(id_.get()));
  const Hdf5Handle memory_space(
      H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
  const hid_t type = std::is_same_v<T, float> ? H5T_NATIVE_FLOAT : H5T_NATIVE_DOUBLE;
  if (H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                          nullptr) < 0 ||
      H5Dread(id_.get(), type, memory_space.get(), file_space.get(), H5P_DEFAULT, out) < 0) {
    fail("{}: rows {} to {} cannot be read ({})", where_, first, first + count - 1,
         library_error());
  }
}

template void Hdf5DataSet::read_rows<float>(int64_t, int64_t, float*) const;
template void Hdf5DataSet::read_rows<double>(int64_t, int64_t, double*) const;

}  // namespace fmp
