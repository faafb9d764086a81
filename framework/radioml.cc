// SPDX-License-Identifier: MIT
#include "framework/radioml.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <string_view>
#include <thread>
#include <utility>

#include "framework/error.h"
#include "framework/hdf5_file.h"
#include "framework/network.h"

namespace fmp {
namespace {

constexpr int64_t kMaxClasses = 256;     // a label is one byte
constexpr int64_t kMaxLength = 1 << 20;  // samples of a frame: bounds what one row takes in memory
constexpr int64_t kReadBytes = 8 << 20;  // read at a time: long enough for full disk speed
constexpr int64_t kMaxChunkBytes = 256 << 20;  // larger chunks are read, and decompressed, in parts
constexpr int64_t kBufferBytes = 512 << 20;    // all read buffers together
constexpr int64_t kMaxThreads = 8;             // one reads, the others convert: no disk needs more
// Contiguous data: unwanted rows between wanted ones that are read along rather than skipped.
constexpr int64_t kMaxGapRows = 8;

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

// Half of the machine's memory, or of what this process group may use of it.
int64_t default_memory_limit() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::ifstream group("/sys/fs/cgroup/memory.max");
  int64_t group_bytes = 0;
  if (group >> group_bytes) bytes = std::min(bytes, group_bytes);  // "max" is no number: no limit
  return bytes / 2;
}

std::string default_cache_dir() {
  const char* directory = std::getenv("TMPDIR");
  return directory != nullptr && *directory != '\0' ? directory : "/var/tmp";  // /tmp may be memory
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
  const int64_t block = set.rows_per_read<double>(kReadBytes, kMaxChunkBytes);
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

void check_shapes(const Hdf5DataSet& x, const Hdf5DataSet& y, const Hdf5DataSet& z) {
  const auto& xs = x.shape();
  if (xs.size() != 3 || xs[2] != 2 || xs[1] < 1 || xs[1] > kMaxLength) {
    fail("{} is {}, expected frames x length x 2 (length 1 to {})", x.where(), shape_text(xs),
         kMaxLength);
  }
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

std::vector<std::string> file_class_names(int64_t classes) {
  if (classes == static_cast<int64_t>(radioml_class_names().size())) return radioml_class_names();
  std::vector<std::string> names;
  for (int64_t i = 0; i < classes; ++i) names.push_back(fmt::format("class{}", i));
  return names;
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

// Converts one frame to what the store holds. Throws when a sample is not finite.
void convert_frame(const Hdf5DataSet& x, int64_t row, std::span<const float> samples,
                   int input_bits, std::byte* out) {
  constexpr uint32_t kExponent = 0x7F800000;  // all ones in infinities and NaN
  uint32_t not_finite = 0;
  for (const float value : samples) {
    not_finite |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1U : 0U;
  }
  if (not_finite != 0) {
    const auto bad = std::find_if_not(samples.begin(), samples.end(),
                                      [](float value) { return std::isfinite(value); });
    const int64_t index = bad - samples.begin();
    fail("{}, row {}: {} of sample {} is {}, expected a finite value", x.where(), row,
         index % 2 == 0 ? "I" : "Q", index / 2, *bad);
  }
  if (input_bits == kFloatBits) {
    std::copy(samples.begin(), samples.end(), reinterpret_cast<float*>(out));
  } else {
    quantize_input(samples, input_bits, reinterpret_cast<int8_t*>(out));
  }
}

// Moves the wanted rows of X into a store. Each worker takes the next range of rows, reads it (one
// worker at a time: the HDF5 library allows no more) and converts it while others read.
class FrameLoader {
 public:
  FrameLoader(const Hdf5DataSet& x, std::span<const int64_t> rows, int input_bits,
              int64_t frame_bytes, int64_t memory_limit, FrameStore& store,
              const LoadProgress& progress)
      : x_(x),
        rows_(rows),
        input_bits_(input_bits),
        frame_bytes_(frame_bytes),
        range_rows_(std::min(x.rows(), x.rows_per_read<float>(kReadBytes, kMaxChunkBytes))),
        store_(store),
        progress_(progress),
        max_workers_(std::clamp<int64_t>(
            std::min(kBufferBytes, memory_limit / 4) / (range_rows_ * (row_bytes() + frame_bytes)),
            1, kMaxThreads)) {}

  void run(int threads) {
    if (threads < 1) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    std::vector<std::thread> workers;
    for (int64_t i = 0; i < std::min<int64_t>(threads, max_workers_); ++i) {
      workers.emplace_back(&FrameLoader::work, this);
    }
    for (std::thread& worker : workers) worker.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Range {
    size_t begin = 0, end = 0;  // of rows_
  };

  int64_t row_bytes() const { return x_.row_elements() * static_cast<int64_t>(sizeof(float)); }

  // The wanted rows of the next range_rows_ rows of the file that hold any; empty at the end.
  Range take() {
    const std::lock_guard lock(mutex_);
    Range range{next_, next_};
    if (next_ == rows_.size() || error_) return range;
    const int64_t end_row = (rows_[next_] / range_rows_ + 1) * range_rows_;
    const auto end =
        std::lower_bound(rows_.begin() + static_cast<std::ptrdiff_t>(next_), rows_.end(), end_row);
    range.end = next_ = static_cast<size_t>(end - rows_.begin());
    return range;
  }

  void work() {
    size_t begin = rows_.size();
    try {
      std::vector<float> samples(static_cast<size_t>(range_rows_ * x_.row_elements()));
      std::vector<std::byte> frames;
      for (Range range = take(); range.begin != range.end; range = take()) {
        begin = range.begin;
        load(range, samples, frames);
        report(range);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      // Ranges before the first bad one have been taken by then, so the lowest error always wins.
      if (!error_ || begin < error_begin_) {
        error_ = std::current_exception();
        error_begin_ = begin;
      }
    }
  }

  void load(const Range& range, std::span<float> samples, std::vector<std::byte>& frames) {
    frames.resize((range.end - range.begin) * static_cast<size_t>(frame_bytes_));
    std::byte* out = frames.data();
    for (Range run = first_run(range); run.begin != run.end;
         run = first_run({run.end, range.end})) {
      const int64_t first = rows_[run.begin];
      x_.read_rows(first, rows_[run.end - 1] - first + 1, samples.data());
      for (size_t i = run.begin; i < run.end; ++i, out += frame_bytes_) {
        const int64_t offset = (rows_[i] - first) * x_.row_elements();
        convert_frame(
            x_, rows_[i],
            samples.subspan(static_cast<size_t>(offset), static_cast<size_t>(x_.row_elements())),
            input_bits_, out);
      }
    }
    store_.write(static_cast<int64_t>(range.begin), frames);
  }

  // The part at the beginning of a range that is read in one go: chunked data as a whole, since
  // chunks are decompressed as a whole; contiguous data up to the first large gap.
  Range first_run(const Range& range) const {
    if (x_.chunk_rows() > 0) return range;
    size_t end = std::min(range.begin + 1, range.end);
    while (end < range.end && rows_[end] - rows_[end - 1] - 1 <= kMaxGapRows) ++end;
    return {range.begin, end};
  }

  void report(const Range& range) {
    if (!progress_) return;
    const std::lock_guard lock(progress_mutex_);
    done_ += static_cast<int64_t>(range.end - range.begin);
    progress_(done_, static_cast<int64_t>(rows_.size()));
  }

  const Hdf5DataSet& x_;
  const std::span<const int64_t> rows_;
  const int input_bits_;
  const int64_t frame_bytes_;
  const int64_t range_rows_;
  FrameStore& store_;
  const LoadProgress& progress_;
  const int64_t max_workers_;

  std::mutex mutex_;  // of the next three
  size_t next_ = 0;
  std::exception_ptr error_;
  size_t error_begin_ = 0;
  std::mutex progress_mutex_;  // of the next one, and held while progress_ runs
  int64_t done_ = 0;
};

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

void RadioMlDataset::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  const size_t count = frames.size();
  const size_t frame_values = 2 * static_cast<size_t>(length_);
  batch.count = static_cast<int64_t>(count);
  batch.labels.resize(count);
  batch.snr_db.resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (frames[i] < 0 || frames[i] >= size()) {
      fail("frame {} is asked for, expected 0 to {}", frames[i], size() - 1);
    }
    batch.labels[i] = label(frames[i]);
    batch.snr_db[i] = snr_db(frames[i]);
  }
  if (input_bits_ == kFloatBits) {
    batch.codes.clear();
    batch.values.resize(count * frame_values);
    store_->read(frames, reinterpret_cast<std::byte*>(batch.values.data()));
  } else {
    batch.values.clear();
    batch.codes.resize(count * frame_values);
    store_->read(frames, reinterpret_cast<std::byte*>(batch.codes.data()));
  }
}

// Builds a RadioMlDataset step by step.
class RadioMlLoader {
 public:
  explicit RadioMlLoader(const RadioMlOptions& options)
      : options_(options), file_(options.path), x_(file_.dataset("X")) {}

  std::unique_ptr<RadioMlDataset> load(const LoadProgress& progress) {
    const Hdf5DataSet y = file_.dataset("Y"), z = file_.dataset("Z");
    check_shapes(x_, y, z);
    const std::vector<std::string> names = file_class_names(y.shape()[1]);
    const std::vector<bool> wanted = wanted_classes(options_, names);
    const FrameTable table = read_table(y, z);
    select(table, names, wanted);
    describe(table, names, wanted);
    load_frames(progress);
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
    result_->length_ = static_cast<int>(x_.shape()[1]);
    result_->input_bits_ = options_.input_bits;
    const int64_t value_bytes = options_.input_bits == kFloatBits ? sizeof(float) : sizeof(int8_t);
    result_->frame_bytes_ = x_.row_elements() * value_bytes;
  }

  void load_frames(const LoadProgress& progress) {
    const int64_t limit =
        options_.memory_limit > 0 ? options_.memory_limit : default_memory_limit();
    const int64_t frames = static_cast<int64_t>(rows_.size());
    const int64_t frame_bytes = result_->frame_bytes_;
    result_->streamed_ = frames * frame_bytes > limit;
    result_->store_ =
        result_->streamed_
            ? make_file_store(options_.cache_dir.empty() ? default_cache_dir() : options_.cache_dir,
                              frames, frame_bytes)
            : make_memory_store(frames, frame_bytes);
    FrameLoader(x_, rows_, options_.input_bits, frame_bytes, limit, *result_->store_, progress)
        .run(options_.threads);
  }

  const RadioMlOptions& options_;
  const Hdf5File file_;
  const Hdf5DataSet x_;
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
