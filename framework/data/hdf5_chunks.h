// SPDX-License-Identifier: MIT
// Chunks of HDF5 data sets whose filters are undone here. The HDF5 library believes what a
// compressed chunk says of its size: one that inflates to more takes memory and time without a
// bound, and one that inflates to less is read beyond its end.
#pragma once

#include <hdf5.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fmp {

// Reads rows of a chunked data set. Every chunk must hold exactly the bytes that the data set says.
class ChunkReader {
 public:
  // Throws Error when the data set's filters, which must be installed, are in a combination whose
  // sizes cannot be checked. `where` names the data set in messages; `shape` is its shape.
  // data_set stays the caller's and must outlive this.
  ChunkReader(std::string where, hid_t data_set, std::vector<int64_t> shape);

  // Whether read() is to be used: the filters are gzip, shuffle and Fletcher's checksum. Otherwise
  // the library reads, after check_sizes().
  bool undoes_filters() const { return undone_here_; }

  // Rows first .. first + count - 1 into out[count][elements of a row], converted to `type`
  // (H5T_NATIVE_FLOAT or H5T_NATIVE_DOUBLE). Throws Error naming what is wrong with a chunk. A
  // chunk takes its own size in memory, and what is stored of it.
  void read(int64_t first, int64_t count, hid_t type, std::byte* out) const;

  // Throws Error unless the chunks of these rows hold the bytes that they should, as far as that
  // can be known: of gzip and szip.
  void check_sizes(int64_t first, int64_t count) const;

 private:
  enum class Kind : uint8_t { kGzip, kShuffle, kChecksum, kSzip, kOther };

  void read_filters();
  void check_parameters(H5Z_filter_t filter, const std::vector<unsigned>& parameters) const;
  // Calls visit(first element of the chunk in every dimension).
  void for_each_chunk(int64_t first, int64_t count,
                      const std::function<void(const std::vector<hsize_t>&)>& visit) const;
  [[noreturn]] void fail_at(const std::vector<hsize_t>& offset, const std::string& message) const;
  // As it is stored; `left_out`: a bit for each filter that was not applied.
  std::vector<std::byte> stored(const std::vector<hsize_t>& offset, uint32_t& left_out) const;
  // As it was written.
  std::vector<std::byte> chunk(const std::vector<hsize_t>& offset) const;
  void check_szip(const std::vector<hsize_t>& offset) const;
  void copy(const std::vector<std::byte>& chunk, const std::vector<hsize_t>& offset, int64_t first,
            int64_t count, hid_t type, std::byte* out) const;

  std::string where_;
  hid_t data_set_;
  std::vector<int64_t> shape_;
  std::vector<int64_t> chunk_shape_;
  std::vector<Kind> filters_;  // in the order in which they were applied
  size_t value_bytes_ = 0, chunk_bytes_ = 0, shuffled_bytes_ = 0;
  bool undone_here_ = false;
};

}  // namespace fmp
