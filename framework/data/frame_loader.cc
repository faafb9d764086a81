// SPDX-License-Identifier: MIT
#include "framework/data/frame_loader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/error.h"
#include "framework/threads.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

constexpr int64_t kBufferBytes = 512 << 20;  // all read buffers together
constexpr int64_t kMaxThreads = 8;           // one reads, the others convert: no disk needs more
// Contiguous data: unwanted rows between wanted ones that are read along rather than skipped.
constexpr int64_t kMaxGapRows = 8;

// Sets of more rows are looked at here and there: every kLevelStep-th row says enough of a level.
constexpr size_t kLevelRows = 1 << 16;
constexpr int64_t kLevelStep = 16;

// Converts one frame to what the store holds. Throws when a sample is not finite. Returns whether
// all samples are 0.
bool convert_frame(const Hdf5DataSet& x, int64_t row, std::span<const float> samples,
                   const InputQuantizer& input, std::byte* out) {
  constexpr uint32_t kExponent = 0x7F800000;  // all ones in infinities and NaN
  constexpr uint32_t kMagnitude = 0x7FFFFFFF;
  uint32_t not_finite = 0, magnitudes = 0;
  for (const float value : samples) {
    const auto bits = std::bit_cast<uint32_t>(value);
    not_finite |= (bits & kExponent) == kExponent ? 1U : 0U;
    magnitudes |= bits & kMagnitude;
  }
  if (not_finite != 0) {
    const auto bad = std::find_if_not(samples.begin(), samples.end(),
                                      [](float value) { return std::isfinite(value); });
    const int64_t index = bad - samples.begin();
    fail("{}, row {}: {} of sample {} is {}, expected a finite value", x.where(), row,
         index % 2 == 0 ? "I" : "Q", index / 2, *bad);
  }
  if (input.bits == kFloatBits) {
    std::copy(samples.begin(), samples.end(), reinterpret_cast<float*>(out));
  } else {
    quantize_input(samples, input, reinterpret_cast<int8_t*>(out));
  }
  return magnitudes == 0;
}

// Moves the wanted rows of X into a store. Each worker takes the next range of rows, reads it (one
// worker at a time: the HDF5 library allows no more) and converts it while others read.
class FrameLoader {
 public:
  FrameLoader(const Hdf5DataSet& x, const FrameLayout& layout, std::span<const int64_t> rows,
              const InputQuantizer& input, int64_t memory_limit, FrameStore& store,
              const LoadProgress& progress)
      : x_(x),
        layout_(layout),
        rows_(rows),
        input_(input),
        frame_bytes_(stored_frame_bytes(x.row_elements(), input.bits)),
        range_rows_(std::min(x.rows(), x.rows_per_read<float>())),
        store_(store),
        progress_(progress),
        max_workers_(std::clamp<int64_t>(
            std::min(kBufferBytes, memory_limit / 4) / (range_rows_ * (row_bytes() + frame_bytes_)),
            1, kMaxThreads)) {}

  InputLevel run(int threads) {
    std::vector<std::jthread> workers;
    for (int64_t i = 0; i < std::min<int64_t>(threads_or_all_cores(threads), max_workers_); ++i) {
      workers.emplace_back(&FrameLoader::work, this);
    }
    workers.clear();  // joins them
    if (error_) std::rethrow_exception(error_);
    return level_;
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
      std::vector<float> turned(layout_.i_before_q ? static_cast<size_t>(x_.row_elements()) : 0);
      InputLevel level;
      for (Range range = take(); range.begin != range.end; range = take()) {
        begin = range.begin;
        load(range, samples, turned, frames, level);
        report(range);
      }
      const std::lock_guard lock(mutex_);
      level_.add(level);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      // Ranges before the first bad one have been taken by then, so the lowest error always wins.
      if (!error_ || begin < error_begin_) {
        error_ = std::current_exception();
        error_begin_ = begin;
      }
    }
  }

  void load(const Range& range, std::span<float> samples, std::span<float> turned,
            std::vector<std::byte>& frames, InputLevel& level) {
    frames.resize((range.end - range.begin) * static_cast<size_t>(frame_bytes_));
    std::byte* out = frames.data();
    for (Range run = first_run(range); run.begin != run.end;
         run = first_run({run.end, range.end})) {
      const int64_t first = rows_[run.begin];
      x_.read_rows(first, rows_[run.end - 1] - first + 1, samples.data());
      for (size_t i = run.begin; i < run.end; ++i, out += frame_bytes_) {
        const int64_t offset = (rows_[i] - first) * x_.row_elements();
        std::span<const float> frame =
            samples.subspan(static_cast<size_t>(offset), static_cast<size_t>(x_.row_elements()));
        if (layout_.i_before_q) frame = interleaved(frame, turned);
        if (convert_frame(x_, rows_[i], frame, input_, out)) level.add_silent_frames(1);
        if (rows_.size() <= kLevelRows || rows_[i] % kLevelStep == 0) look_at(frame, level);
      }
    }
    store_.write(static_cast<int64_t>(range.begin), frames);
  }

  std::span<const float> interleaved(std::span<const float> frame, std::span<float> turned) const {
    const auto length = static_cast<size_t>(layout_.length);
    for (size_t l = 0; l < length; ++l) {
      turned[2 * l] = frame[l];
      turned[2 * l + 1] = frame[length + l];
    }
    return turned;
  }

  void look_at(std::span<const float> frame, InputLevel& level) const {
    level.add(frame, input_);
    if (const auto& limits = x_.integer_limits()) {
      level.add_clipped_values(std::ranges::count_if(
          frame, [&](float v) { return v <= limits->first || v >= limits->second; }));
    }
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
  const FrameLayout layout_;
  const std::span<const int64_t> rows_;
  const InputQuantizer input_;
  const int64_t frame_bytes_;
  const int64_t range_rows_;
  FrameStore& store_;
  const LoadProgress& progress_;
  const int64_t max_workers_;

  std::mutex mutex_;  // of the next four
  InputLevel level_;
  size_t next_ = 0;
  std::exception_ptr error_;
  size_t error_begin_ = 0;
  std::mutex progress_mutex_;  // of the next one, and held while progress_ runs
  int64_t done_ = 0;
};

}  // namespace

int64_t stored_frame_bytes(int64_t row_elements, int input_bits) {
  return row_elements *
         static_cast<int64_t>(input_bits == kFloatBits ? sizeof(float) : sizeof(int8_t));
}

InputLevel load_frames(const Hdf5DataSet& x, const FrameLayout& layout,
                       std::span<const int64_t> rows, const InputQuantizer& input,
                       int64_t memory_limit, int threads, FrameStore& store,
                       const LoadProgress& progress) {
  return FrameLoader(x, layout, rows, input, memory_limit, store, progress).run(threads);
}

}  // namespace fmp
