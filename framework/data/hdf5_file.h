// SPDX-License-Identifier: MIT
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fmp {

class ChunkReader;

// Held around every use of the HDF5 library, which is not thread-safe everywhere; also keeps the
// library from printing its error stack. May be nested.
class Hdf5Lock {
 public:
  Hdf5Lock();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

// Owns an identifier of the HDF5 library: a file, data set, data space, type or property list.
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  explicit Hdf5Handle(hid_t id) : id_(id) {}
  ~Hdf5Handle() { reset(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }

  bool valid() const { return id_ >= 0; }
  hid_t get() const { return id_; }
  void reset();

 private:
  hid_t id_ = H5I_INVALID_HID;
};

// A numeric data set of at least one dimension, opened for reading. Its first dimension counts
// rows.
class Hdf5DataSet {
 public:
  const std::string& where() const { return where_; }  // "FILE: data set NAME", for error messages
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t rows() const { return shape_[0]; }
  int64_t row_elements() const { return row_elements_; }
  int64_t chunk_rows() const { return chunk_rows_; }  // rows of a chunk, 0 when not chunked

  // The lowest and highest value of the file's type, where that is an integer of more than one bit.
  const std::optional<std::pair<float, float>>& integer_limits() const { return integer_limits_; }

  // Rows to read at a time into a buffer of T: 8 MB, enough for full disk speed, rounded up to
  // whole chunks, so that no chunk is decompressed twice; chunks of over 256 MB, which are then not
  // compressed, are read in parts. At least one row.
  template <typename T>
  int64_t rows_per_read() const {
    return rows_per_read(static_cast<int64_t>(sizeof(T)));
  }

  // Rows first .. first + count - 1 into out[count][row_elements()], converted from the file's type
  // to T (float or double). Throws Error naming the rows. Thread-safe; only chunks are decompressed
  // side by side.
  template <typename T>
  void read_rows(int64_t first, int64_t count, T* out) const;

 private:
  friend class Hdf5File;
  friend class VirtualSources;
  Hdf5DataSet() = default;
  void check_type();
  void read_shape();
  int64_t bytes() const;
  void check_filters() const;
  void check_contiguous() const;
  void check_chunks();
  // Of a data set that the library reads by itself.
  void check_all_sizes() const;
  int64_t rows_per_read(int64_t element_bytes) const;

  std::string where_;
  Hdf5Handle id_;
  std::vector<int64_t> shape_;
  int64_t row_elements_ = 1;
  int64_t chunk_rows_ = 0;
  std::optional<std::pair<float, float>> integer_limits_;
  std::shared_ptr<const ChunkReader> chunks_;  // where chunks have filters; reads from id_
};

// An HDF5 file opened for reading. Files are not trusted: what does not fit together, is too short
// or was never written is an Error of one line. The HDF5 library itself reads what is not there as
// zeros, and crashes or hangs on some damaged files, so that files are opened in another process
// first; here every value that is read was stored: in the file, in files that its links lead to, in
// external files, or in the data sets that a virtual one is made of.
class Hdf5File {
 public:
  explicit Hdf5File(const std::string& path);

  const std::string& path() const { return path_; }

  // Follows links of all kinds. Throws Error when there is no such data set, it holds no numbers,
  // part of it is missing, a filter of it is not installed or hides the size of a chunk, or it is
  // compressed in chunks of over 256 MB, which take that much memory each. A chunk that turns out
  // to be larger or smaller than it should be is an error where it is read.
  Hdf5DataSet dataset(const std::string& name) const;

 private:
  friend class VirtualSources;
  Hdf5DataSet open(const std::string& name, class VirtualSources& sources) const;

  std::string path_;
  Hdf5Handle file_;
};

}  // namespace fmp
