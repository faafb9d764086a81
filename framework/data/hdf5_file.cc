// SPDX-License-Identifier: MIT
#include "framework/data/hdf5_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <new>
#include <system_error>
#include <type_traits>

#include "framework/data/hdf5_chunks.h"
#include "framework/data/hdf5_sources.h"
#include "framework/data/trial_process.h"
#include "framework/error.h"

namespace fmp {
namespace {

constexpr int64_t kReadBytes = 8 << 20;
// A chunk is decompressed as a whole. h5py makes chunks of at most 1 MB by itself, and RadioML's
// frames take 8 kB each.
constexpr int64_t kMaxChunkBytes = 256 << 20;
// Of a row that is read for trial.
constexpr int64_t kTrialValues = 1 << 22;
// Of one value: the largest floats and integers that processors have.
constexpr size_t kMaxValueBytes = 16;

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// Whether this is the process that tries.
bool trying = false;

// Calls `body`, which uses the library, in another process first. The lock is held: nobody else is
// in the library when the process is copied. A mutex remembers which thread holds it, and the one
// of the new process is another.
void try_first(const std::string& where, const std::function<void()>& body) {
  if (trying) return;
  try_in_another_process(where, [&] {
    trying = true;
    new (&library_mutex()) std::recursive_mutex;
    body();
  });
}

// Throws unless the file at `path` exists and can be read at any place.
void check_readable(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("{}: {}", path, std::generic_category().message(errno));
  stream.seekg(0, std::ios::end);
  if (!stream || stream.tellg() == std::numeric_limits<std::streamoff>::max()) {
    fail("{}: is not a file that can be read at any place", path);  // e.g. a directory
  }
}

// a * b for a, b >= 0, or -1 where it does not fit.
int64_t product(int64_t a, int64_t b) {
  if (a < 0 || b < 0 || (b > 0 && a > std::numeric_limits<int64_t>::max() / b)) return -1;
  return a * b;
}

// What is to be installed for a filter of HDF5, by its registered number.
std::string_view filter_advice(H5Z_filter_t filter) {
  switch (filter) {
    case 32000:
      return "lzf, which h5py brings along";
    case 32001:
      return "Blosc";
    case 32004:
      return "LZ4";
    case 32008:
      return "Bitshuffle";
    case 32013:
      return "ZFP";
    case 32015:
      return "Zstandard";
    case 32026:
      return "Blosc2";
    case H5Z_FILTER_SZIP:
      return "szip";
    case H5Z_FILTER_DEFLATE:
      return "gzip";
    default:
      return "unknown";
  }
}

}  // namespace

// The innermost message of the library's error stack: what went wrong first, e.g. "inflate()
// failed".
std::string hdf5_error() {
  std::string message;
  const auto take_first = [](unsigned, const H5E_error2_t* error, void* result) -> herr_t {
    if (error->desc != nullptr) *static_cast<std::string*>(result) = error->desc;
    return 1;  // stop
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &message);
  std::replace(message.begin(), message.end(), '\n', ' ');
  return message.empty() ? "no reason given by the HDF5 library" : message;
}

Hdf5Lock::Hdf5Lock() : lock_(library_mutex()) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

void Hdf5Handle::reset() {
  if (!valid()) return;
  const Hdf5Lock lock;
  H5Idec_ref(id_);
  id_ = H5I_INVALID_HID;
}

Hdf5File::Hdf5File(const std::string& path) : path_(path) {
  check_readable(path);
  const Hdf5Lock lock;
  try_first(path, [&] {
    if (H5Fis_hdf5(path.c_str()) > 0)
      Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  });
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  if (is_hdf5 == 0) fail("{}: is not an HDF5 file", path);
  if (is_hdf5 > 0) file_ = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!file_.valid()) fail("{}: cannot be opened ({})", path, hdf5_error());
}

Hdf5DataSet Hdf5File::dataset(const std::string& name) const {
  const Hdf5Lock lock;
  try_first(fmt::format("{}: data set {}", path_, name), [&] {
    VirtualSources sources;
    const Hdf5DataSet set = open(name, sources);
    if (set.rows() == 0 || set.row_elements() > kTrialValues) return;
    std::vector<float> values(static_cast<size_t>(set.row_elements()));
    set.read_rows(0, 1, values.data());
    set.read_rows(set.rows() - 1, 1, values.data());
  });
  VirtualSources sources;
  return open(name, sources);
}

Hdf5DataSet Hdf5File::open(const std::string& name, VirtualSources& sources) const {
  const Hdf5Lock lock;
  Hdf5DataSet result;
  result.where_ = fmt::format("{}: data set {}", path_, name);
  const std::string& where = result.where_;
  if (H5Lexists(file_.get(), name.c_str(), H5P_DEFAULT) <= 0) fail("{} is missing", where);
  result.id_ = Hdf5Handle(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!result.id_.valid()) fail("{} cannot be opened ({})", where, hdf5_error());
  result.check_type();
  result.read_shape();
  const Hdf5Handle creation(H5Dget_create_plist(result.id_.get()));
  const H5D_layout_t layout = H5Pget_layout(creation.get());
  if (layout == H5D_VIRTUAL) {
    // Sources are looked for beside the file.
    result.id_ = reopen_beside(std::move(result.id_), [](hid_t access) {
      return H5Pset_virtual_prefix(access, "${ORIGIN}");
    });
    sources.check(where, result.id_.get(), result.shape_);
  } else if (layout == H5D_CONTIGUOUS && H5Pget_external_count(creation.get()) > 0) {
    if (external_files_are_beside(result.id_.get())) {
      result.id_ = reopen_beside(std::move(result.id_), [](hid_t access) {
        return H5Pset_efile_prefix(access, "${ORIGIN}");
      });
    }
    check_external_files(where, result.id_.get(), result.bytes());
  } else if (layout == H5D_CONTIGUOUS) {
    result.check_contiguous();
  } else if (layout == H5D_CHUNKED) {
    result.check_filters();
    result.check_chunks();
  }
  return result;
}

void Hdf5DataSet::check_type() {
  const Hdf5Handle type(H5Dget_type(id_.get()));
  const H5T_class_t kind = H5Tget_class(type.get());
  // Booleans are stored as an enumeration, which the library converts like an integer.
  if (kind != H5T_INTEGER && kind != H5T_FLOAT && kind != H5T_ENUM) {
    fail("{} holds no integers or floats", where_);
  }
  if (H5Tget_size(type.get()) > kMaxValueBytes) {
    fail("{} holds values of {} bytes, expected at most {}", where_, H5Tget_size(type.get()),
         kMaxValueBytes);
  }
  const auto bits = static_cast<int>(H5Tget_precision(type.get()));
  if (kind == H5T_INTEGER && bits > 1) {
    const bool has_sign = H5Tget_sign(type.get()) == H5T_SGN_2;
    const float half = std::ldexp(1.0F, bits - 1);
    integer_limits_ = has_sign ? std::pair(-half, half - 1) : std::pair(0.0F, 2 * half - 1);
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
  // So that sizes in bytes fit as well.
  if (row_elements_ < 0 || product(product(row_elements_, rows()), kMaxValueBytes) < 0) {
    fail("{} has too many elements", where_);
  }
  const Hdf5Handle creation(H5Dget_create_plist(id_.get()));
  if (H5Pget_layout(creation.get()) == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(dims.size());
    H5Pget_chunk(creation.get(), rank, chunk.data());
    chunk_rows_ = static_cast<int64_t>(chunk[0]);
  }
}

int64_t Hdf5DataSet::bytes() const {
  const Hdf5Handle type(H5Dget_type(id_.get()));
  return rows() * row_elements_ * static_cast<int64_t>(H5Tget_size(type.get()));
}

void Hdf5DataSet::check_contiguous() const {
  const Hdf5Handle file(H5Iget_file_id(id_.get()));  // where links led to
  hsize_t file_bytes = 0;
  H5Fget_filesize(file.get(), &file_bytes);
  const hsize_t stored = H5Dget_storage_size(id_.get());
  const auto expected = static_cast<hsize_t>(bytes());
  if (stored < expected || expected > file_bytes) {
    fail("{} is incomplete: {} bytes are stored, {} expected", where_, std::min(stored, file_bytes),
         expected);
  }
}

void Hdf5DataSet::check_filters() const {
  const Hdf5Handle creation(H5Dget_create_plist(id_.get()));
  const int filters = H5Pget_nfilters(creation.get());
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    std::array<char, 64> name{};
    const H5Z_filter_t filter = H5Pget_filter2(creation.get(), static_cast<unsigned>(i), &flags,
                                               &values, nullptr, name.size(), name.data(), &config);
    if (H5Zfilter_avail(filter) > 0) continue;
    name.back() = '\0';
    fail(
        "{} is compressed by filter {} ({}; the file calls it '{}'), which is not installed: put "
        "its plugin on HDF5_PLUGIN_PATH, or rewrite the file with h5repack -f GZIP=4",
        where_, filter, filter_advice(filter), name.data());
  }
}

void Hdf5DataSet::check_chunks() {
  const Hdf5Handle creation(H5Dget_create_plist(id_.get()));
  const Hdf5Handle type(H5Dget_type(id_.get()));
  std::vector<hsize_t> chunk(shape_.size());
  H5Pget_chunk(creation.get(), static_cast<int>(chunk.size()), chunk.data());
  hsize_t expected = 1, stored = 0;
  int64_t chunk_bytes = static_cast<int64_t>(H5Tget_size(type.get()));
  for (size_t i = 0; i < chunk.size(); ++i) {
    const hsize_t size = static_cast<hsize_t>(shape_[i]);
    expected *= size / chunk[i] + (size % chunk[i] != 0 ? 1 : 0);
    chunk_bytes = product(chunk_bytes, static_cast<int64_t>(chunk[i]));
  }
  if (H5Pget_nfilters(creation.get()) > 0 && (chunk_bytes < 0 || chunk_bytes > kMaxChunkBytes)) {
    fail(
        "{}: its compressed chunks take {} bytes of memory each, expected at most {}; rewrite it "
        "with smaller ones, as by h5repack -l CHUNK=...",
        where_, chunk_bytes < 0 ? "over 2^63" : std::to_string(chunk_bytes), kMaxChunkBytes);
  }
  if (H5Pget_nfilters(creation.get()) > 0) {
    chunks_ = std::make_shared<const ChunkReader>(where_, id_.get(), shape_);
  }
  const Hdf5Handle space(H5Dget_space(id_.get()));
  if (H5Dget_num_chunks(id_.get(), space.get(), &stored) < 0) {
    fail("{}: its chunks cannot be found ({})", where_, hdf5_error());
  }
  if (stored < expected) {
    fail("{} is incomplete: {} of {} chunks are stored", where_, stored, expected);
  }
}

// Where the library is tried there is no time for that.
void Hdf5DataSet::check_all_sizes() const {
  if (chunks_ && !trying) chunks_->check_sizes(0, rows());
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
  const hid_t type = std::is_same_v<T, float> ? H5T_NATIVE_FLOAT : H5T_NATIVE_DOUBLE;
  if (chunks_ && chunks_->undoes_filters()) {
    return chunks_->read(first, count, type, reinterpret_cast<std::byte*>(out));
  }
  if (chunks_) chunks_->check_sizes(first, count);
  const Hdf5Lock lock;
  std::vector<hsize_t> start(shape_.size(), 0), extent(shape_.begin(), shape_.end());
  start[0] = static_cast<hsize_t>(first);
  extent[0] = static_cast<hsize_t>(count);
  const Hdf5Handle file_space(H5Dget_space(id_.get()));
  const Hdf5Handle memory_space(
      H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
  if (H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                          nullptr) < 0 ||
      H5Dread(id_.get(), type, memory_space.get(), file_space.get(), H5P_DEFAULT, out) < 0) {
    fail("{}: rows {} to {} cannot be read ({})", where_, first, first + count - 1, hdf5_error());
  }
}

template void Hdf5DataSet::read_rows<float>(int64_t, int64_t, float*) const;
template void Hdf5DataSet::read_rows<double>(int64_t, int64_t, double*) const;

}  // namespace fmp
