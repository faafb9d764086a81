// SPDX-License-Identifier: MIT
#include "framework/data/radioml.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <random>
#include <string_view>
#include <type_traits>
#include <utility>

#include "framework/data/hdf5_file.h"
#include "framework/data/shared_reader.h"
#include "framework/error.h"
#include "framework/hash.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

constexpr int64_t kMaxClasses = 256;     // a label is one byte
constexpr int64_t kMaxLength = 1 << 20;  // samples of a frame: bounds what one row takes in memory

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string text;
  for (const std::string& part : parts) {
    if (!text.empty()) text += separator;
    text += part;
  }
  return text;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return join(sizes, " x ");
}

// Labels and SNRs of all frames of the file.
struct FrameTable {
  std::vector<uint8_t> labels;
  std::vector<int16_t> snr_db;
};

uint8_t one_hot_class(const Hdf5DataSet& y, int64_t row, std::span<const double> values) {
  size_t ones = 0, hot = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] != 0 && values[i] != 1) {
      fail("{}, row {}: is not one-hot (column {} holds {})", y.where(), row, i, values[i]);
    }
    if (values[i] == 1) {
      ++ones;
      hot = i;
    }
  }
  if (ones != 1) fail("{}, row {}: is not one-hot (it holds {} ones)", y.where(), row, ones);
  return static_cast<uint8_t>(hot);
}

int16_t whole_snr(const Hdf5DataSet& z, int64_t row, double value) {
  const double lowest = std::numeric_limits<int16_t>::min();
  const double highest = std::numeric_limits<int16_t>::max();
  if (!(value >= lowest && value <= highest) || value != std::trunc(value)) {
    fail("{}, row {}: the SNR is {}, expected a whole number of dB", z.where(), row, value);
  }
  return static_cast<int16_t>(value);
}

// Calls visit(row, values of the row) for every row of `set`, a block of rows at a time.
template <typename Visit>
void for_each_row(const Hdf5DataSet& set, const Visit& visit) {
  const int64_t block = set.rows_per_read<double>();
  const size_t row_elements = static_cast<size_t>(set.row_elements());
  std::vector<double> buffer(static_cast<size_t>(std::min(block, set.rows())) * row_elements);
  for (int64_t first = 0; first < set.rows(); first += block) {
    const int64_t count = std::min(block, set.rows() - first);
    set.read_rows(first, count, buffer.data());
    for (int64_t i = 0; i < count; ++i) {
      visit(first + i,
            std::span(buffer).subspan(static_cast<size_t>(i) * row_elements, row_elements));
    }
  }
}

// The tables grow with what was really read, not by what the file says it holds.
FrameTable read_table(const Hdf5DataSet& y, const Hdf5DataSet& z) {
  FrameTable table;
  for_each_row(y, [&](int64_t row, std::span<const double> values) {
    table.labels.push_back(one_hot_class(y, row, values));
  });
  for_each_row(z, [&](int64_t row, std::span<const double> values) {
    table.snr_db.push_back(whole_snr(z, row, values[0]));
  });
  return table;
}

// The layout of frames of this shape: length x 2 as RadioML's, or 2 x length, each also with
// dimensions of 1, as frameworks for images want them.
FrameLayout layout_of(const Hdf5DataSet& x) {
  const auto& xs = x.shape();
  std::vector<int64_t> sizes;
  for (size_t i = 1; i < xs.size(); ++i)
    if (xs[i] != 1) sizes.push_back(xs[i]);
  if (sizes.size() == 1 && sizes[0] == 2) sizes.insert(sizes.begin(), 1);  // of one sample
  const bool pairs = sizes.size() == 2 && sizes[1] == 2;
  const bool rows = !pairs && sizes.size() == 2 && sizes[0] == 2;
  const int64_t length = pairs ? sizes[0] : rows ? sizes[1] : 0;
  if (length < 1 || length > kMaxLength) {
    fail("{} is {}, expected frames x length x 2 or frames x 2 x length (length 1 to {})",
         x.where(), shape_text(xs), kMaxLength);
  }
  return {length, rows};
}

void check_shapes(const Hdf5DataSet& x, const Hdf5DataSet& y, const Hdf5DataSet& z) {
  const auto& xs = x.shape();
  if (xs[0] < 1) fail("{} holds no frames", x.where());
  const auto& ys = y.shape();
  if (ys.size() != 2 || ys[0] != xs[0] || ys[1] < 2 || ys[1] > kMaxClasses) {
    fail("{} is {}, expected {} x classes (2 to {})", y.where(), shape_text(ys), xs[0],
         kMaxClasses);
  }
  const auto& zs = z.shape();
  if (zs[0] != xs[0] || zs.size() > 2 || z.row_elements() != 1) {
    fail("{} is {}, expected {} or {} x 1", z.where(), shape_text(zs), xs[0], xs[0]);
  }
}

// For each class of the file whether it is wanted.
std::vector<bool> wanted_classes(const RadioMlOptions& options,
                                 const std::vector<std::string>& names) {
  if (options.classes.empty()) return std::vector<bool>(names.size(), true);
  std::vector<bool> wanted(names.size(), false);
  for (const std::string& choice : options.classes) {
    const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
      return lower(name) == lower(choice);
    });
    if (found == names.end()) {
      throw UsageError(fmt::format("{}: has no class \"{}\", expected some of {}", options.path,
                                   choice, join(names, ", ")));
    }
    wanted[static_cast<size_t>(found - names.begin())] = true;
  }
  return wanted;
}

using BlockKey = std::pair<uint8_t, int16_t>;  // class, SNR

// The file's rows by (class, SNR), ascending, each block shuffled as published.
std::map<BlockKey, Block> shuffled_blocks(const FrameTable& table) {
  std::map<BlockKey, Block> blocks;
  for (size_t row = 0; row < table.labels.size(); ++row) {
    blocks[{table.labels[row], table.snr_db[row]}].push_back(static_cast<int64_t>(row));
  }
  std::mt19937 engine(kSplitSeed);
  for (auto& [key, block] : blocks) numpy_shuffle(block, engine);
  return blocks;
}

void check_options(const RadioMlOptions& options) {
  const int bits = options.input_bits;
  if (bits != kFloatBits && (bits < 2 || bits > 8)) {
    throw UsageError(fmt::format("input bits are {}, expected 2 to 8 or {}", bits, kFloatBits));
  }
  if (options.frames_per_block < 0 || options.memory_limit < 0 || options.threads < 0) {
    throw UsageError(
        fmt::format("frames per block {}, memory limit {} and threads {} must not be negative",
                    options.frames_per_block, options.memory_limit, options.threads));
  }
}

}  // namespace

const std::vector<std::string>& radioml_class_names() {
  static const std::vector<std::string> names = {
      "OOK",    "4ASK",      "8ASK",      "BPSK",      "QPSK",      "8PSK",  "16PSK", "32PSK",
      "16APSK", "32APSK",    "64APSK",    "128APSK",   "16QAM",     "32QAM", "64QAM", "128QAM",
      "256QAM", "AM-SSB-WC", "AM-SSB-SC", "AM-DSB-WC", "AM-DSB-SC", "FM",    "GMSK",  "OQPSK"};
  return names;
}

std::vector<std::string> default_class_names(size_t classes) {
  if (classes == radioml_class_names().size()) return radioml_class_names();
  std::vector<std::string> names;
  for (size_t i = 0; i < classes; ++i) names.push_back(fmt::format("class{}", i));
  return names;
}

ClassMatch match_classes(const std::string& path, const std::vector<std::string>& network_names) {
  const Hdf5DataSet y = Hdf5File(path).dataset("Y");
  if (y.shape().size() != 2 || y.shape()[1] < 2 || y.shape()[1] > kMaxClasses) {
    fail("{} is {}, expected frames x classes (2 to {})", y.where(), shape_text(y.shape()),
         kMaxClasses);
  }
  const std::vector<std::string> names = default_class_names(static_cast<size_t>(y.shape()[1]));
  ClassMatch match;
  for (const std::string& name : names) {
    const auto found = std::ranges::find(network_names, lower(name), lower);
    if (found == network_names.end()) continue;
    match.classes.push_back(name);
    match.network_class.push_back(static_cast<uint8_t>(found - network_names.begin()));
  }
  if (match.classes.size() == network_names.size()) return match;
  if (names.size() != network_names.size()) {
    fail("{}: {} classes ({}), but the network tells {} apart ({}); --classes says what these are",
         path, names.size(), join(names, ","), network_names.size(), join(network_names, ","));
  }
  match = {};
  for (size_t i = 0; i < names.size(); ++i) match.network_class.push_back(static_cast<uint8_t>(i));
  return match;
}

void RadioMlDataset::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  const size_t count = frames.size();
  const size_t frame_values = 2 * static_cast<size_t>(length_);
  batch.count = static_cast<int64_t>(count);
  batch.labels.resize(count);
  batch.snr_db.resize(count);
  std::vector<int64_t> places(count);  // in the store
  for (size_t i = 0; i < count; ++i) {
    if (frames[i] < 0 || frames[i] >= size()) {
      fail("frame {} is asked for, expected 0 to {}", frames[i], size() - 1);
    }
    if (frames[i] < first_ || frames[i] >= first_ + held_)
      fail("frame {} is asked for, which another rank holds", frames[i]);
    batch.labels[i] = label(frames[i]);
    batch.snr_db[i] = snr_db(frames[i]);
    places[i] = frames[i] - first_;
  }
  if (input_bits_ == kFloatBits) {
    batch.codes.clear();
    batch.values.resize(count * frame_values);
    store_->read(places, reinterpret_cast<std::byte*>(batch.values.data()));
  } else {
    batch.values.clear();
    batch.codes.resize(count * frame_values);
    store_->read(places, reinterpret_cast<std::byte*>(batch.codes.data()));
  }
}

// The level of what all ranks have loaded.
InputLevel of_all(Communicator& ranks, const InputLevel& mine) {
  static_assert(std::is_trivially_copyable_v<InputLevel>);
  std::vector<InputLevel> all(static_cast<size_t>(ranks.ranks()));
  const std::vector<int64_t> sizes(all.size(), static_cast<int64_t>(sizeof mine));
  ranks.gather(std::as_bytes(std::span(&mine, 1)), sizes, std::as_writable_bytes(std::span(all)));
  InputLevel level;
  for (const InputLevel& one : all) level.add(one);
  return level;
}

// Builds a RadioMlDataset step by step.
class RadioMlLoader {
 public:
  explicit RadioMlLoader(const RadioMlOptions& options)
      : options_(options), file_(options.path), x_(file_.dataset("X")) {}

  std::unique_ptr<RadioMlDataset> load(const LoadProgress& progress) {
    const Hdf5DataSet y = file_.dataset("Y"), z = file_.dataset("Z");
    layout_ = layout_of(x_);
    check_shapes(x_, y, z);
    const std::vector<std::string> names = default_class_names(static_cast<size_t>(y.shape()[1]));
    const std::vector<bool> wanted = wanted_classes(options_, names);
    const FrameTable table = read_table(y, z);
    if (options_.ranks != nullptr) compare_files(table, *options_.ranks);
    select(table, names, wanted);
    describe(table, names, wanted);
    fill_store(progress);
    return std::move(result_);
  }

 private:
  // Chooses the rows to load and turns the blocks of file rows into blocks of frame indices.
  void select(const FrameTable& table, const std::vector<std::string>& names,
              const std::vector<bool>& wanted) {
    for (auto& [key, block] : shuffled_blocks(table)) {
      const auto [label, snr] = key;
      if (!wanted[label] || (options_.snr_min && snr < *options_.snr_min)) continue;
      const int64_t size = static_cast<int64_t>(block.size());
      const int64_t count = options_.frames_per_block > 0 ? options_.frames_per_block : size;
      if (count > size) {
        throw UsageError(fmt::format("{}: has {} frames of {} at {} dB, {} are asked for",
                                     options_.path, size, names[label], snr, count));
      }
      result_->blocks_.push_back(shortened(block, count));
    }
    if (result_->blocks_.empty()) {
      throw UsageError(fmt::format("{}: has no frames of the classes and SNRs that are asked for",
                                   options_.path));
    }
    for (const Block& block : result_->blocks_)
      rows_.insert(rows_.end(), block.begin(), block.end());
    std::sort(rows_.begin(), rows_.end());
    for (Block& block : result_->blocks_) {
      for (int64_t& row : block) {
        row = std::lower_bound(rows_.begin(), rows_.end(), row) - rows_.begin();
      }
    }
  }

  void describe(const FrameTable& table, const std::vector<std::string>& names,
                const std::vector<bool>& wanted) {
    std::array<uint8_t, kMaxClasses> new_label{};
    for (size_t i = 0; i < names.size(); ++i) {
      if (!wanted[i]) continue;
      new_label[i] = static_cast<uint8_t>(result_->class_names_.size());
      result_->class_names_.push_back(names[i]);
    }
    for (const int64_t row : rows_) {
      result_->labels_.push_back(new_label[table.labels[static_cast<size_t>(row)]]);
      result_->snr_db_.push_back(table.snr_db[static_cast<size_t>(row)]);
    }
    result_->length_ = static_cast<int>(layout_.length);
    result_->input_bits_ = options_.input_bits;
    result_->frame_bytes_ = stored_frame_bytes(x_.row_elements(), options_.input_bits);
  }

  // The same file everywhere, as far as its size, labels, first and last frames tell.
  void compare_files(const FrameTable& table, Communicator& ranks) {
    Hash table_hash, first, last;
    table_hash.add(std::span<const uint8_t>(table.labels));
    table_hash.add(std::span<const int16_t>(table.snr_db));
    std::vector<float> row(static_cast<size_t>(x_.row_elements()));
    x_.read_rows(0, 1, row.data());
    first.add(std::span<const float>(row));
    x_.read_rows(x_.rows() - 1, 1, row.data());
    last.add(std::span<const float>(row));
    constexpr std::array<const char*, 4> kWhat = {"size", "labels and SNRs", "first frame",
                                                  "last frame"};
    const std::array<int64_t, 4> mine = {
        static_cast<int64_t>(std::filesystem::file_size(options_.path)),
        static_cast<int64_t>(table_hash.value()), static_cast<int64_t>(first.value()),
        static_cast<int64_t>(last.value())};
    std::vector<int64_t> all(mine.size() * static_cast<size_t>(ranks.ranks()), 0);
    std::ranges::copy(mine, all.begin() + ranks.rank() * std::ssize(mine));
    ranks.sum(all);
    for (size_t i = 0; i < all.size(); ++i) {
      const size_t what = i % mine.size();
      if (all[i] == all[what]) continue;
      const std::string sizes =
          what == 0 ? fmt::format(" ({} and {} bytes)", all[what], all[i]) : std::string();
      fail("{}: {} and {} have files of another {}{}", options_.path, ranks.name(0),
           ranks.name(static_cast<int>(i / mine.size())), kWhat[what], sizes);
    }
  }

  void fill_store(const LoadProgress& progress) {
    const int64_t limit =
        options_.memory_limit > 0 ? options_.memory_limit : default_memory_limit();
    Communicator* ranks = options_.ranks;
    const int64_t all = static_cast<int64_t>(rows_.size());
    const int rank = ranks != nullptr ? ranks->rank() : 0;
    const int count = ranks != nullptr ? ranks->ranks() : 1;
    result_->first_ = first_held(all, rank, count);
    const int64_t frames = result_->held_ = first_held(all, rank + 1, count) - result_->first_;
    const std::span<const int64_t> rows = std::span<const int64_t>(rows_).subspan(
        static_cast<size_t>(result_->first_), static_cast<size_t>(frames));
    const int64_t frame_bytes = result_->frame_bytes_;
    result_->streamed_ = frames * frame_bytes > limit;
    result_->store_ = result_->streamed_
                          ? make_file_store(options_.cache_dir.empty() ? default_cache_directory()
                                                                       : options_.cache_dir,
                                            frames, frame_bytes)
                          : make_memory_store(frames, frame_bytes);
    result_->level_ = load_frames(x_, layout_, rows,
                                  InputQuantizer::of(options_.input_bits, options_.input_scale),
                                  limit, options_.threads, *result_->store_, progress);
    if (ranks != nullptr) result_->level_ = of_all(*ranks, result_->level_);
    result_->warnings_ = result_->level_.warnings(options_.path, all);
  }

  const RadioMlOptions& options_;
  const Hdf5File file_;
  const Hdf5DataSet x_;
  FrameLayout layout_;
  std::vector<int64_t> rows_;  // rows of the file that are loaded, ascending; their order is that
                               // of the frame indices
  std::unique_ptr<RadioMlDataset> result_{new RadioMlDataset};
};

std::unique_ptr<RadioMlDataset> open_radioml(const RadioMlOptions& options,
                                             const LoadProgress& progress) {
  check_options(options);
  return RadioMlLoader(options).load(progress);
}

}  // namespace fmp
