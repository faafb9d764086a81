// SPDX-License-Identifier: MIT
#include "framework/data/held_frames.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <utility>

#include "framework/error.h"
#include "kernels/cpu/parallel.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

constexpr size_t kFramesOfItem = 64;      // that a thread copies at a time: some 20 us
constexpr size_t kFramesOfFilling = 256;  // that it asks the set for at a time

// The bytes of a batch's frames, whatever their form.
std::span<std::byte> bytes_of(FrameBatch& batch) {
  return batch.codes.empty() ? std::as_writable_bytes(std::span(batch.values))
                             : std::as_writable_bytes(std::span(batch.codes));
}

size_t items_of(size_t count, size_t size) { return (count + size - 1) / size; }

}  // namespace

HeldFrames::HeldFrames(std::unique_ptr<Dataset> source, std::span<const int64_t> held,
                       int input_bits, std::unique_ptr<FrameStore> store, int threads,
                       const LoadProgress& progress)
    : source_(std::move(source)),
      store_(std::move(store)),
      as_codes_(input_bits != kFloatBits),
      frame_bytes_(static_cast<size_t>(stored_frame_bytes(2L * source_->length(), input_bits))),
      threads_(threads),
      place_(static_cast<size_t>(source_->size()), kNotHeld) {
  fill(held, progress);
  for (size_t i = 0; i < held.size(); ++i)
    place_.at(static_cast<size_t>(held[i])) = static_cast<int64_t>(i);
}

void HeldFrames::fill(std::span<const int64_t> held, const LoadProgress& progress) {
  std::mutex mutex;  // of `done`, and held while progress runs
  int64_t done = 0;
  const auto items = static_cast<int64_t>(items_of(held.size(), kFramesOfFilling));
  cpu::parallel_for(items, threads_, [&](int64_t item) {
    const size_t first = static_cast<size_t>(item) * kFramesOfFilling;
    const size_t count = std::min(kFramesOfFilling, held.size() - first);
    FrameBatch batch;
    source_->read(held.subspan(first, count), batch);
    const std::span<const std::byte> bytes = bytes_of(batch);
    if (bytes.size() != count * frame_bytes_)
      fail("{} frames take {} bytes, expected {}", count, bytes.size(), count * frame_bytes_);
    store_->write(static_cast<int64_t>(first), bytes);
    if (!progress) return;
    const std::lock_guard lock(mutex);
    done += static_cast<int64_t>(count);
    progress(done, static_cast<int64_t>(held.size()));
  });
}

void HeldFrames::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  const size_t count = frames.size();
  bool all_held = true;
  for (const int64_t frame : frames) {
    if (frame < 0 || frame >= size()) fail("no frame {} in a set of {}", frame, size());
    all_held = all_held && place_[static_cast<size_t>(frame)] != kNotHeld;
  }
  if (!all_held) return read_others(frames, batch);
  const size_t values = 2 * static_cast<size_t>(length());
  batch.count = static_cast<int64_t>(count);
  batch.labels.resize(count);
  batch.snr_db.resize(count);
  batch.codes.resize(as_codes_ ? count * values : 0);
  batch.values.resize(as_codes_ ? 0 : count * values);
  const std::span<std::byte> out = bytes_of(batch);
  const auto items = static_cast<int64_t>(items_of(count, kFramesOfItem));
  cpu::parallel_for(items, threads_, [&](int64_t item) {
    const size_t first = static_cast<size_t>(item) * kFramesOfItem;
    const size_t end = std::min(count, first + kFramesOfItem);
    std::array<int64_t, kFramesOfItem> places{};
    for (size_t k = first; k < end; ++k) {
      places[k - first] = place_[static_cast<size_t>(frames[k])];
      batch.labels[k] = label(frames[k]);
      batch.snr_db[k] = snr_db(frames[k]);
    }
    store_->read(std::span(places).first(end - first), out.data() + first * frame_bytes_);
  });
}

// Some frames are not held: these come from the set, one read for all of them.
void HeldFrames::read_others(std::span<const int64_t> frames, FrameBatch& batch) const {
  std::vector<int64_t> others, held;
  std::vector<size_t> other_at, held_at;
  for (size_t k = 0; k < frames.size(); ++k) {
    const bool is_held = place_[static_cast<size_t>(frames[k])] != kNotHeld;
    (is_held ? held : others).push_back(frames[k]);
    (is_held ? held_at : other_at).push_back(k);
  }
  if (held.empty()) return source_->read(frames, batch);
  FrameBatch from_set, from_store;
  source_->read(others, from_set);
  read(held, from_store);
  const auto merge = [&](FrameBatch& part, const std::vector<size_t>& at) {
    for (size_t i = 0; i < at.size(); ++i) {
      batch.labels[at[i]] = part.labels[i];
      batch.snr_db[at[i]] = part.snr_db[i];
      std::memcpy(bytes_of(batch).data() + at[i] * frame_bytes_,
                  bytes_of(part).data() + i * frame_bytes_, frame_bytes_);
    }
  };
  const size_t values = frames.size() * 2 * static_cast<size_t>(length());
  batch.count = static_cast<int64_t>(frames.size());
  batch.labels.resize(frames.size());
  batch.snr_db.resize(frames.size());
  batch.codes.resize(as_codes_ ? values : 0);
  batch.values.resize(as_codes_ ? 0 : values);
  merge(from_set, other_at);
  merge(from_store, held_at);
}

}  // namespace fmp
