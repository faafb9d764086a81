// SPDX-License-Identifier: MIT
#include "framework/data/hdf5_sources.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <optional>
#include <system_error>

#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

// Recordings are joined from files of an hour or a block each.
constexpr size_t kMaxMappings = 1 << 16;
// Data sets that one is made of, all levels together.
constexpr size_t kMaxSources = 1 << 16;
// Pieces of a selection that is no single block: they are combined one by one.
constexpr int64_t kMaxPieces = 4096;

// The text that `get(buffer, size)` writes, which returns its length.
std::string text_of(const std::function<ssize_t(char*, size_t)>& get) {
  const ssize_t length = get(nullptr, 0);
  if (length < 0) return {};
  std::string text(static_cast<size_t>(length), '\0');
  get(text.data(), text.size() + 1);
  return text;
}

fs::path file_of(hid_t data_set) {
  return text_of([&](char* buffer, size_t size) { return H5Fget_name(data_set, buffer, size); });
}

struct ExternalFile {
  fs::path name;
  int64_t offset = 0;
  hsize_t bytes = 0;  // H5F_UNLIMITED: the rest
};

std::vector<ExternalFile> external_files(hid_t data_set) {
  const Hdf5Handle creation(H5Dget_create_plist(data_set));
  std::vector<ExternalFile> files;
  const int count = H5Pget_external_count(creation.get());
  for (int i = 0; i < count; ++i) {
    std::array<char, 4096> name{};
    off_t offset = 0;
    hsize_t bytes = 0;
    if (H5Pget_external(creation.get(), static_cast<unsigned>(i), name.size() - 1, name.data(),
                        &offset, &bytes) < 0) {
      fail("{}: its external files are not known ({})", file_of(data_set).string(), hdf5_error());
    }
    files.push_back({name.data(), offset, bytes});
  }
  return files;
}

// First and last coordinates of a selection.
struct Bounds {
  std::vector<hsize_t> first, last;
};

// Of a block or several. Throws for other selections, and for those without an end, whose extent
// depends on what else is in the directory.
Bounds bounds_of(const std::string& where, hid_t space) {
  const auto rank = static_cast<size_t>(std::max(0, H5Sget_simple_extent_ndims(space)));
  Bounds bounds{std::vector<hsize_t>(rank), std::vector<hsize_t>(rank)};
  if (H5Sget_select_type(space) != H5S_SEL_HYPERSLABS || rank == 0 ||
      H5Sget_select_bounds(space, bounds.first.data(), bounds.last.data()) < 0) {
    fail("{}: a part of it has no end or is no block, expected blocks of fixed sizes", where);
  }
  return bounds;
}

hssize_t points_of(const std::string& where, hid_t space) {
  const hssize_t points = H5Sget_select_npoints(space);
  if (points < 0) fail("{}: a part of it has no size ({})", where, hdf5_error());
  return points;
}

// What parts of a virtual data set cover.
class Coverage {
 public:
  explicit Coverage(const std::vector<int64_t>& shape)
      : dims_(shape.begin(), shape.end()),
        rest_(H5Screate_simple(static_cast<int>(dims_.size()), dims_.data(), nullptr)) {
    H5Sselect_none(rest_.get());
  }

  // Returns the number of values that the part has.
  int64_t add(const std::string& where, hid_t space) {
    if (H5Sget_select_type(space) == H5S_SEL_ALL) {
      rows_.emplace_back(0, dims_[0]);
      return row_values() * static_cast<int64_t>(dims_[0]);
    }
    const Bounds bounds = bounds_of(where, space);
    if (bounds.first.size() != dims_.size()) fail("{}: a part of it has another shape", where);
    const hssize_t points = points_of(where, space);
    hsize_t box = 1;
    bool whole_rows = true;
    for (size_t i = 0; i < dims_.size(); ++i) {
      box *= bounds.last[i] - bounds.first[i] + 1;
      whole_rows = whole_rows && (i == 0 || bounds.last[i] - bounds.first[i] + 1 == dims_[i]);
    }
    if (whole_rows && box == static_cast<hsize_t>(points)) {
      rows_.emplace_back(bounds.first[0], bounds.last[0] + 1);
    } else {
      add_pieces(where, space);
    }
    return points;
  }

  // The first row of which something is missing.
  std::optional<hsize_t> first_gap(const std::string& where) {
    std::ranges::sort(rows_);
    hsize_t covered = 0;
    for (const auto& [begin, end] : rows_) {
      if (begin > covered && !has_pieces(where, covered, begin)) return covered;
      covered = std::max(covered, end);
    }
    if (covered < dims_[0] && !has_pieces(where, covered, dims_[0])) return covered;
    return std::nullopt;
  }

 private:
  int64_t row_values() const {
    int64_t values = 1;
    for (size_t i = 1; i < dims_.size(); ++i) values *= static_cast<int64_t>(dims_[i]);
    return values;
  }

  void add_pieces(const std::string& where, hid_t space) {
    pieces_ += std::max<hssize_t>(1, H5Sget_select_hyper_nblocks(space));
    if (pieces_ > kMaxPieces) {
      fail("{}: is made of more than {} pieces that are no whole rows", where, kMaxPieces);
    }
    std::vector<hsize_t> corners(static_cast<size_t>(H5Sget_select_hyper_nblocks(space)) * 2 *
                                 dims_.size());
    const size_t blocks = corners.size() / (2 * dims_.size());
    if (H5Sget_select_hyper_blocklist(space, 0, blocks, corners.data()) < 0) {
      fail("{}: its parts are not blocks ({})", where, hdf5_error());
    }
    for (size_t b = 0; b < blocks; ++b) {
      const hsize_t* first = corners.data() + b * 2 * dims_.size();
      std::vector<hsize_t> count(dims_.size());
      for (size_t i = 0; i < count.size(); ++i) count[i] = first[dims_.size() + i] - first[i] + 1;
      H5Sselect_hyperslab(rest_.get(), H5S_SELECT_OR, first, nullptr, count.data(), nullptr);
    }
  }

  // Whether the pieces that are no whole rows fill rows begin .. end - 1.
  bool has_pieces(const std::string& where, hsize_t begin, hsize_t end) const {
    if (pieces_ == 0) return false;
    const Hdf5Handle part(H5Scopy(rest_.get()));
    std::vector<hsize_t> start(dims_.size(), 0), count = dims_;
    start[0] = begin;
    count[0] = end - begin;
    H5Sselect_hyperslab(part.get(), H5S_SELECT_AND, start.data(), nullptr, count.data(), nullptr);
    hsize_t wanted = 1;
    for (const hsize_t size : count) wanted *= size;
    return static_cast<hsize_t>(points_of(where, part.get())) == wanted;
  }

  std::vector<hsize_t> dims_;
  std::vector<std::pair<hsize_t, hsize_t>> rows_;  // [begin, end) of parts that are whole rows
  Hdf5Handle rest_;                                // the other parts
  int64_t pieces_ = 0;                             // of these
};

}  // namespace

bool external_files_are_beside(hid_t data_set) {
  const fs::path folder = file_of(data_set).parent_path();
  return std::ranges::any_of(external_files(data_set), [&](const ExternalFile& file) {
    std::error_code ignored;
    return fs::exists(folder / file.name, ignored);
  });
}

void check_external_files(const std::string& where, hid_t data_set, int64_t bytes) {
  const fs::path folder =
      external_files_are_beside(data_set) ? file_of(data_set).parent_path() : fs::path();
  auto left = static_cast<hsize_t>(bytes);
  for (const ExternalFile& file : external_files(data_set)) {
    if (left == 0) return;
    const hsize_t here = std::min(left, file.bytes);
    std::error_code error;
    const fs::path path = folder / file.name;
    const uintmax_t size = fs::file_size(path, error);
    if (error) fail("{}: its external file '{}': {}", where, path.string(), error.message());
    if (file.offset < 0 || size < static_cast<uintmax_t>(file.offset) ||
        size - static_cast<uintmax_t>(file.offset) < here) {
      fail("{} is incomplete: its external file '{}' holds {} bytes, {} from byte {} expected",
           where, path.string(), size, here, file.offset);
    }
    left -= here;
  }
  if (left > 0) fail("{} is incomplete: its external files lack {} bytes", where, left);
}

// Throws unless the source has the part of it that is wanted. The library knows the shape of a
// source only where the part is less than the whole of it.
void VirtualSources::check_source(const std::string& where, const Name& name,
                                  const std::vector<int64_t>& shape, hid_t part, int64_t values) {
  bool enough = true;
  if (H5Sget_select_type(part) == H5S_SEL_ALL) {
    int64_t all = 1;  // fits: the source was opened
    for (const int64_t size : shape) all *= size;
    enough = all == values;
  } else {
    const Bounds bounds = bounds_of(where, part);
    enough = bounds.last.size() == shape.size() && points_of(where, part) == values;
    for (size_t d = 0; enough && d < shape.size(); ++d)
      enough = bounds.last[d] < static_cast<hsize_t>(shape[d]);
  }
  if (!enough) {
    fail("{}: holds frames that data set {} of '{}' does not have", where, name.second, name.first);
  }
}

const std::vector<int64_t>& VirtualSources::shape_of(const std::string& where, const Name& name) {
  const auto [entry, added] = checked_.try_emplace(name);
  if (!added) {
    if (entry->second.empty()) fail("{}: is made of itself", where);
    return entry->second;
  }
  if (checked_.size() > kMaxSources) fail("{}: is made of more than {} others", where, kMaxSources);
  std::error_code error;
  if (!fs::exists(name.first, error)) {
    fail("{}: holds frames of '{}', which is not there", where, name.first);
  }
  const Hdf5File file(name.first);
  const Hdf5DataSet source = file.open(name.second, *this);
  source.check_all_sizes();
  return entry->second = source.shape();
}

void VirtualSources::check(const std::string& where, hid_t data_set,
                           const std::vector<int64_t>& shape) {
  const Hdf5Handle creation(H5Dget_create_plist(data_set));
  size_t mappings = 0;
  if (H5Pget_virtual_count(creation.get(), &mappings) < 0 || mappings > kMaxMappings) {
    fail("{}: is made of {} parts, expected at most {}", where, mappings, kMaxMappings);
  }
  const fs::path file = file_of(data_set);
  Coverage coverage(shape);
  for (size_t i = 0; i < mappings; ++i) {
    const Hdf5Handle to(H5Pget_virtual_vspace(creation.get(), i));
    const Hdf5Handle from(H5Pget_virtual_srcspace(creation.get(), i));
    if (!to.valid() || !from.valid()) fail("{}: part {} is damaged", where, i);
    const int64_t values = coverage.add(where, to.get());
    const std::string source_file = text_of([&](char* buffer, size_t size) {
      return H5Pget_virtual_filename(creation.get(), i, buffer, size);
    });
    const std::string source = text_of([&](char* buffer, size_t size) {
      return H5Pget_virtual_dsetname(creation.get(), i, buffer, size);
    });
    const Name name{
        source_file == "." ? file.string() : (file.parent_path() / source_file).string(), source};
    const std::vector<int64_t>& source_shape = shape_of(where, name);
    check_source(where, name, source_shape, from.get(), values);
  }
  if (const auto row = coverage.first_gap(where)) {
    fail("{}: row {} and maybe more come from nowhere", where, *row);
  }
}

}  // namespace fmp
