// SPDX-License-Identifier: MIT
#include "framework/data/hdf5_chunks.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "framework/data/hdf5_file.h"
#include "framework/data/hdf5_sources.h"
#include "framework/error.h"

namespace fmp {
namespace {

constexpr size_t kChecksumBytes = 4;
// Values that are converted at a time.
constexpr size_t kPieceValues = 1 << 14;

// What a chunk of `bytes` may take in the file. Gzip adds a byte in some 3,000 to what it cannot
// compress, and plugins add headers.
size_t most_stored_bytes(size_t bytes) { return bytes + bytes / 64 + 4096; }

uint32_t little_endian(std::span<const std::byte> bytes) {
  uint32_t number = 0;
  for (size_t i = 4; i-- > 0;) number = number << 8 | static_cast<uint32_t>(bytes[i]);
  return number;
}

// Fletcher's sums of 16-bit words, big-endian, modulo 65,535; a last odd byte is a word's upper
// half.
std::pair<uint32_t, uint32_t> fletcher_sums(std::span<const std::byte> bytes) {
  constexpr uint64_t kModulus = 65535;
  constexpr size_t kBlock = 4096;  // words; so many fit into 64 bits
  uint64_t sum = 0, sum_of_sums = 0;
  for (size_t i = 0, words = 0; i < bytes.size(); i += 2) {
    const auto high = static_cast<uint64_t>(bytes[i]);
    const auto low = i + 1 < bytes.size() ? static_cast<uint64_t>(bytes[i + 1]) : 0;
    sum += high << 8 | low;
    sum_of_sums += sum;
    if (++words % kBlock == 0) {
      sum %= kModulus;
      sum_of_sums %= kModulus;
    }
  }
  return {static_cast<uint32_t>(sum % kModulus), static_cast<uint32_t>(sum_of_sums % kModulus)};
}

// Takes the checksum off the end. Returns whether it was right.
bool take_checksum(std::vector<std::byte>& bytes) {
  if (bytes.size() < kChecksumBytes) return false;
  const uint32_t stored = little_endian(std::span(bytes).last(kChecksumBytes));
  bytes.resize(bytes.size() - kChecksumBytes);
  const auto [sum, sum_of_sums] = fletcher_sums(bytes);
  return (stored & 0xFFFF) % 65535 == sum && (stored >> 16) % 65535 == sum_of_sums;
}

// zlib's stream, ended when this goes.
class Inflater {
 public:
  Inflater() {
    if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Returns the error, empty if there is none. `to` is what comes out, at most its size before.
  std::string run(std::span<const std::byte> from, std::vector<std::byte>& to) {
    stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(from.data()));
    stream_.avail_in = static_cast<uInt>(from.size());
    stream_.next_out = reinterpret_cast<Bytef*>(to.data());
    stream_.avail_out = static_cast<uInt>(to.size());
    const int status = inflate(&stream_, Z_FINISH);
    const size_t left = stream_.avail_out;
    if (status == Z_STREAM_END) {
      to.resize(to.size() - left);
      return {};
    }
    if (left == 0 && (status == Z_BUF_ERROR || status == Z_OK)) {
      return fmt::format("inflates to more than {} bytes", to.size());
    }
    return stream_.msg != nullptr ? fmt::format("cannot be inflated: {}", stream_.msg)
                                  : std::string("cannot be inflated: it is cut short");
  }

 private:
  z_stream stream_{};
};

// Bytes 0 of all values, then bytes 1, ... -> values; what is left over stays at the end.
std::vector<std::byte> unshuffled(const std::vector<std::byte>& bytes, size_t value_bytes) {
  if (value_bytes < 2) return bytes;
  std::vector<std::byte> out = bytes;
  const size_t values = bytes.size() / value_bytes;
  for (size_t b = 0; b < value_bytes; ++b) {
    for (size_t i = 0; i < values; ++i) out[i * value_bytes + b] = bytes[b * values + i];
  }
  return out;
}

}  // namespace

ChunkReader::ChunkReader(std::string where, hid_t data_set, std::vector<int64_t> shape)
    : where_(std::move(where)), data_set_(data_set), shape_(std::move(shape)) {
  const Hdf5Handle creation(H5Dget_create_plist(data_set)), type(H5Dget_type(data_set));
  std::vector<hsize_t> dims(shape_.size());
  H5Pget_chunk(creation.get(), static_cast<int>(dims.size()), dims.data());
  chunk_shape_.assign(dims.begin(), dims.end());
  value_bytes_ = shuffled_bytes_ = H5Tget_size(type.get());
  chunk_bytes_ = value_bytes_;
  for (const hsize_t size : dims) chunk_bytes_ *= static_cast<size_t>(size);
  read_filters();
}

void ChunkReader::read_filters() {
  const Hdf5Handle creation(H5Dget_create_plist(data_set_));
  const int count = H5Pget_nfilters(creation.get());
  const auto refuse = [&](const char* why) {
    fail(
        "{}: its filters {}, so that the size of a chunk is not known; rewrite it with h5repack "
        "-f GZIP=4",
        where_, why);
  };
  for (int i = 0; i < count; ++i) {
    constexpr size_t kMostParameters = 256;  // the library gives out no more
    unsigned flags = 0, config = 0;
    std::vector<unsigned> parameters(kMostParameters);
    size_t given = parameters.size();
    const H5Z_filter_t filter = H5Pget_filter2(creation.get(), static_cast<unsigned>(i), &flags,
                                               &given, parameters.data(), 0, nullptr, &config);
    if (filter < 0) fail("{}: filter {} is not known ({})", where_, i, hdf5_error());
    parameters.resize(std::min(given, parameters.size()));
    check_parameters(filter, parameters);
    if (filter == H5Z_FILTER_SHUFFLE && !parameters.empty()) shuffled_bytes_ = parameters[0];
    filters_.push_back(filter == H5Z_FILTER_DEFLATE      ? Kind::kGzip
                       : filter == H5Z_FILTER_SHUFFLE    ? Kind::kShuffle
                       : filter == H5Z_FILTER_FLETCHER32 ? Kind::kChecksum
                       : filter == H5Z_FILTER_SZIP       ? Kind::kSzip
                                                         : Kind::kOther);
  }
  undone_here_ = !filters_.empty() && std::ranges::all_of(filters_, [](Kind kind) {
    return kind == Kind::kGzip || kind == Kind::kShuffle || kind == Kind::kChecksum;
  });
  const auto of = [&](Kind kind) { return std::ranges::count(filters_, kind); };
  if (of(Kind::kGzip) > 1) refuse("compress twice");
  if (undone_here_) return;
  if (of(Kind::kGzip) > 0) refuse("have gzip beside another one");
  const auto szip = std::ranges::find(filters_, Kind::kSzip);
  if (szip != filters_.end() &&
      std::any_of(szip + 1, filters_.end(), [](Kind kind) { return kind != Kind::kChecksum; })) {
    refuse("have another one after szip");
  }
}

// N-bit and scale-offset keep among their parameters what they make of a chunk.
void ChunkReader::check_parameters(H5Z_filter_t filter,
                                   const std::vector<unsigned>& parameters) const {
  constexpr size_t kValues = 2, kValueBytes = 4;
  if (filter != H5Z_FILTER_NBIT && filter != H5Z_FILTER_SCALEOFFSET) return;
  if (parameters.size() > kValueBytes &&
      uint64_t{parameters[kValues]} * parameters[kValueBytes] == chunk_bytes_) {
    return;
  }
  fail("{} is damaged: filter {} makes something else of a chunk than its {} bytes", where_, filter,
       chunk_bytes_);
}

void ChunkReader::for_each_chunk(
    int64_t first, int64_t count,
    const std::function<void(const std::vector<hsize_t>&)>& visit) const {
  std::vector<int64_t> begin(shape_.size(), 0), end = shape_;
  begin[0] = first / chunk_shape_[0] * chunk_shape_[0];
  end[0] = first + count;
  for (size_t d = 0; d < shape_.size(); ++d) {
    if (begin[d] >= end[d]) return;
  }
  std::vector<int64_t> at = begin;
  for (;;) {
    visit(std::vector<hsize_t>(at.begin(), at.end()));
    size_t d = at.size();
    while (d-- > 0) {
      at[d] += chunk_shape_[d];
      if (at[d] < end[d]) break;
      at[d] = begin[d];
    }
    if (d == static_cast<size_t>(-1)) return;
  }
}

void ChunkReader::fail_at(const std::vector<hsize_t>& offset, const std::string& message) const {
  fail("{}: rows {} to {} cannot be read: their chunk {}", where_, offset[0],
       std::min<int64_t>(shape_[0], static_cast<int64_t>(offset[0]) + chunk_shape_[0]) - 1,
       message);
}

std::vector<std::byte> ChunkReader::stored(const std::vector<hsize_t>& offset,
                                           uint32_t& left_out) const {
  const Hdf5Lock lock;
  unsigned mask = 0;
  haddr_t address = HADDR_UNDEF;
  hsize_t size = 0;
  if (H5Dget_chunk_info_by_coord(data_set_, offset.data(), &mask, &address, &size) < 0 ||
      address == HADDR_UNDEF) {
    fail_at(offset, "is missing");
  }
  if (size > most_stored_bytes(chunk_bytes_)) {
    fail_at(offset,
            fmt::format("takes {} bytes in the file, {} without compression", size, chunk_bytes_));
  }
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  if (H5Dread_chunk(data_set_, H5P_DEFAULT, offset.data(), &left_out, bytes.data()) < 0) {
    fail_at(offset, fmt::format("({})", hdf5_error()));
  }
  return bytes;
}

std::vector<std::byte> ChunkReader::chunk(const std::vector<hsize_t>& offset) const {
  uint32_t left_out = 0;
  std::vector<std::byte> bytes = stored(offset, left_out);
  const size_t most = chunk_bytes_ + kChecksumBytes * filters_.size();
  for (size_t i = filters_.size(); i-- > 0;) {
    if ((left_out >> i & 1) != 0) continue;
    if (filters_[i] == Kind::kChecksum) {
      if (!take_checksum(bytes)) fail_at(offset, "does not fit its checksum");
    } else if (filters_[i] == Kind::kShuffle) {
      bytes = unshuffled(bytes, shuffled_bytes_);
    } else {
      std::vector<std::byte> inflated(most);
      if (const std::string error = Inflater().run(bytes, inflated); !error.empty()) {
        fail_at(offset, error);
      }
      bytes = std::move(inflated);
    }
  }
  if (bytes.size() != chunk_bytes_) {
    fail_at(offset, fmt::format("holds {} bytes, expected {}", bytes.size(), chunk_bytes_));
  }
  return bytes;
}

// Szip's chunks begin with what they decompress to.
void ChunkReader::check_szip(const std::vector<hsize_t>& offset) const {
  uint32_t left_out = 0;
  const std::vector<std::byte> bytes = stored(offset, left_out);
  const auto at = std::ranges::find(filters_, Kind::kSzip) - filters_.begin();
  if ((left_out >> at & 1) != 0) return;
  const size_t size = bytes.size() < 4 ? 0 : little_endian(bytes);
  if (size != chunk_bytes_) {
    fail_at(offset, fmt::format("holds {} bytes, expected {}", size, chunk_bytes_));
  }
}

void ChunkReader::check_sizes(int64_t first, int64_t count) const {
  const bool szip = std::ranges::find(filters_, Kind::kSzip) != filters_.end();
  if (!undone_here_ && !szip) return;
  for_each_chunk(first, count, [&](const std::vector<hsize_t>& offset) {
    if (undone_here_) {
      chunk(offset);
    } else {
      check_szip(offset);
    }
  });
}

void ChunkReader::read(int64_t first, int64_t count, hid_t type, std::byte* out) const {
  for_each_chunk(first, count, [&](const std::vector<hsize_t>& offset) {
    copy(chunk(offset), offset, first, count, type, out);
  });
}

// Copies the rows that a chunk has of those that are asked for: in runs of values that follow each
// other both in the chunk and in `out`. Many runs are converted at a time: h5py by itself makes
// chunks that are one value wide.
void ChunkReader::copy(const std::vector<std::byte>& chunk, const std::vector<hsize_t>& offset,
                       int64_t first, int64_t count, hid_t type, std::byte* out) const {
  const size_t rank = shape_.size();
  std::vector<int64_t> begin(rank), end(rank);  // in the data set
  for (size_t d = 0; d < rank; ++d) {
    const auto start = static_cast<int64_t>(offset[d]);
    begin[d] = d == 0 ? std::max(first, start) : start;
    end[d] = std::min(d == 0 ? first + count : shape_[d], start + chunk_shape_[d]);
  }
  // Dimensions from `joint` on are copied as one: all behind it are whole in both.
  size_t joint = rank - 1;
  while (joint > 0 && chunk_shape_[joint] == shape_[joint]) --joint;
  int64_t run = 1;
  for (size_t d = joint; d < rank; ++d) run *= end[d] - begin[d];

  const Hdf5Handle from_type(H5Dget_type(data_set_));
  const size_t to_bytes = H5Tget_size(type);
  std::vector<std::byte> piece(kPieceValues * std::max(value_bytes_, to_bytes));
  std::vector<std::pair<size_t, size_t>> targets;  // first value in `out`, values
  size_t pending = 0;
  const auto convert = [&] {
    const Hdf5Lock lock;
    if (H5Tconvert(from_type.get(), type, pending, piece.data(), nullptr, H5P_DEFAULT) < 0) {
      fail_at(offset, fmt::format("cannot be converted ({})", hdf5_error()));
    }
    const std::byte* from = piece.data();
    for (const auto& [target, values] : targets) {
      std::memcpy(out + target * to_bytes, from, values * to_bytes);
      from += values * to_bytes;
    }
    targets.clear();
    pending = 0;
  };
  std::vector<int64_t> at = begin;
  for (;;) {
    size_t source = 0, target = 0;  // values
    for (size_t d = 0; d < rank; ++d) {
      source = source * static_cast<size_t>(chunk_shape_[d]) +
               static_cast<size_t>(at[d] - static_cast<int64_t>(offset[d]));
      target = target * static_cast<size_t>(d == 0 ? count : shape_[d]) +
               static_cast<size_t>(d == 0 ? at[d] - first : at[d]);
    }
    for (size_t done = 0; done < static_cast<size_t>(run);) {
      const size_t values = std::min(kPieceValues - pending, static_cast<size_t>(run) - done);
      std::memcpy(piece.data() + pending * value_bytes_,
                  chunk.data() + (source + done) * value_bytes_, values * value_bytes_);
      targets.emplace_back(target + done, values);
      done += values;
      pending += values;
      if (pending == kPieceValues) convert();
    }
    size_t d = joint;
    while (d-- > 0) {
      if (++at[d] < end[d]) break;
      at[d] = begin[d];
    }
    if (d == static_cast<size_t>(-1)) break;
  }
  if (pending > 0) convert();
}

}  // namespace fmp
