// SPDX-License-Identifier: MIT
#include "framework/data/shared_reader.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "framework/data/frame_loader.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

std::span<const std::byte> bytes_of(const FrameBatch& batch) {
  return batch.codes.empty() ? std::as_bytes(std::span(batch.values))
                             : std::as_bytes(std::span(batch.codes));
}
std::span<std::byte> writable_bytes_of(FrameBatch& batch, bool as_codes) {
  return as_codes ? std::as_writable_bytes(std::span(batch.codes))
                  : std::as_writable_bytes(std::span(batch.values));
}

void resize(FrameBatch& batch, size_t frames, size_t values, bool as_codes) {
  batch.count = static_cast<int64_t>(frames);
  batch.codes.resize(as_codes ? frames * values : 0);
  batch.values.resize(as_codes ? 0 : frames * values);
}

}  // namespace

std::vector<int64_t> held_part(std::span<const int64_t> frames, int64_t size,
                               const Communicator* ranks) {
  std::vector<int64_t> held(frames.begin(), frames.end());
  if (ranks == nullptr) return held;
  const int64_t first = first_held(size, ranks->rank(), ranks->ranks());
  const int64_t end = first_held(size, ranks->rank() + 1, ranks->ranks());
  std::erase_if(held, [&](int64_t frame) { return frame < first || frame >= end; });
  return held;
}

SharedReader::SharedReader(const Dataset& dataset, std::vector<int64_t> frames, int batch_size,
                           int input_bits, Give give, Communicator* ranks, int64_t smallest,
                           ShareUnits units)
    : dataset_(dataset),
      frames_(std::move(frames)),
      batch_size_(static_cast<size_t>(batch_size)),
      frame_bytes_(stored_frame_bytes(2 * static_cast<int64_t>(dataset.length()), input_bits)),
      as_codes_(input_bits != kFloatBits),
      give_(give),
      ranks_(ranks),
      units_(units) {
  const size_t ranks_count = ranks != nullptr ? static_cast<size_t>(ranks->ranks()) : 1;
  const size_t step = give == Give::kBatches ? batch_size_ * ranks_count : batch_size_;
  // What is left out is at the end, as only the last batch may be smaller.
  if (batch_size_ < static_cast<size_t>(smallest)) frames_.clear();
  if (frames_.size() % batch_size_ < static_cast<size_t>(smallest))
    frames_.resize(frames_.size() - frames_.size() % batch_size_);
  for (size_t first = 0; first < frames_.size(); first += step) starts_.push_back(first);
  starts_.push_back(frames_.size());

  std::vector<int64_t> held;
  std::vector<size_t> sizes;
  for (size_t i = 0; i + 1 < starts_.size(); ++i) {
    const std::vector<int64_t> part = held_part(
        std::span(frames_).subspan(starts_[i], starts_[i + 1] - starts_[i]), dataset.size(), ranks);
    held.insert(held.end(), part.begin(), part.end());
    sizes.push_back(part.size());
  }
  reader_ = std::make_unique<BatchReader>(dataset, std::move(held), std::move(sizes));
}

SharedReader::~SharedReader() = default;

SharedReader::Part SharedReader::part_of(int rank, size_t first, size_t count) const {
  if (ranks_ == nullptr) return {first, first + count};
  if (give_ == Give::kShares) {
    const BatchShare share = BatchShare::of(static_cast<int64_t>(count), rank, *ranks_, units_);
    const size_t begin = first + static_cast<size_t>(share.first_frame());
    return {begin, begin + static_cast<size_t>(share.frames)};
  }
  const size_t batches = batch_size_ * static_cast<size_t>(rank);
  return {first + std::min(batches, count), first + std::min(batches + batch_size_, count)};
}

int SharedReader::holder(int64_t frame) const {
  const int64_t size = dataset_.size();
  auto rank = static_cast<int>(frame * ranks_->ranks() / size);
  while (first_held(size, rank + 1, ranks_->ranks()) <= frame) ++rank;
  while (first_held(size, rank, ranks_->ranks()) > frame) --rank;
  return rank;
}

const FrameBatch* SharedReader::next() {
  const FrameBatch* held = reader_->next();
  if (held == nullptr) return nullptr;
  const size_t first = starts_[call_], count = starts_[call_ + 1] - first;
  ++call_;
  parts_.clear();
  cuts_ = {first};
  for (int rank = 0; rank < (ranks_ != nullptr ? ranks_->ranks() : 1); ++rank) {
    parts_.push_back(part_of(rank, first, count));
    cuts_.push_back(parts_.back().end);
  }
  if (ranks_ == nullptr) return held;
  take_frames(*held);
  const auto rank = static_cast<size_t>(ranks_->rank());
  const bool whole = give_ == Give::kShares;
  const Part given = whole ? Part{first, first + count} : parts_[rank];
  const std::span<const int64_t> told =
      std::span(frames_).subspan(given.begin, given.end - given.begin);
  batch_.labels.clear();
  batch_.snr_db.clear();
  for (const int64_t frame : told) {
    batch_.labels.push_back(dataset_.label(frame));
    batch_.snr_db.push_back(dataset_.snr_db(frame));
  }
  if (whole && dataset_.soft_targets() > 0) take_soft_targets(*held, given);
  return &batch_;
}

// What this rank holds lies in the order of the list, hence in that of the ranks that get it.
void SharedReader::take_frames(const FrameBatch& held) {
  const auto ranks = static_cast<size_t>(ranks_->ranks());
  const auto rank = static_cast<size_t>(ranks_->rank());
  std::vector<int64_t> send(ranks, 0), receive(ranks, 0);
  std::vector<int> holders;  // of what this rank gets
  for (size_t to = 0; to < ranks; ++to) {
    for (size_t i = parts_[to].begin; i < parts_[to].end; ++i) {
      const int from = holder(frames_[i]);
      if (static_cast<size_t>(from) == rank) send[to] += frame_bytes_;
      if (to != rank) continue;
      receive[static_cast<size_t>(from)] += frame_bytes_;
      holders.push_back(from);
    }
  }
  received_.resize(holders.size() * static_cast<size_t>(frame_bytes_));
  const std::span<const std::byte> once = bytes_of(held);
  sent_.clear();
  const bool repeated = give_ == Give::kShares && ranks > 1 && parts_[0].end == parts_[1].end &&
                        parts_[0].begin == parts_[1].begin && parts_[0].end > parts_[0].begin;
  for (size_t to = 0; repeated && to < ranks; ++to)
    sent_.insert(sent_.end(), once.begin(), once.end());
  ranks_->exchange(repeated ? std::span<const std::byte>(sent_) : once, send, received_, receive);

  resize(batch_, holders.size(), 2 * static_cast<size_t>(dataset_.length()), as_codes_);
  std::byte* to = writable_bytes_of(batch_, as_codes_).data();
  std::vector<int64_t> place(ranks, 0);  // of the next frame from each rank in received_
  std::exclusive_scan(receive.begin(), receive.end(), place.begin(), int64_t{0});
  for (const int from : holders) {
    int64_t& at = place[static_cast<size_t>(from)];
    std::memcpy(to, received_.data() + at, static_cast<size_t>(frame_bytes_));
    at += frame_bytes_;
    to += frame_bytes_;
  }
}

void SharedReader::take_soft_targets(const FrameBatch& held, Part batch) {
  const auto width = static_cast<size_t>(dataset_.soft_targets());
  std::vector<int64_t> sizes(static_cast<size_t>(ranks_->ranks()), 0);
  std::vector<int> holders;
  for (size_t i = batch.begin; i < batch.end; ++i) {
    holders.push_back(holder(frames_[i]));
    sizes[static_cast<size_t>(holders.back())] += static_cast<int64_t>(width * sizeof(float));
  }
  std::vector<float> all(holders.size() * width);
  ranks_->gather(std::as_bytes(std::span(held.soft_targets)), sizes,
                 std::as_writable_bytes(std::span(all)));
  std::vector<int64_t> place(sizes.size(), 0);
  std::exclusive_scan(sizes.begin(), sizes.end(), place.begin(), int64_t{0});
  batch_.soft_targets.resize(all.size());
  auto to = batch_.soft_targets.begin();
  for (const int from : holders) {
    int64_t& at = place[static_cast<size_t>(from)];
    to = std::copy_n(all.begin() + at / static_cast<int64_t>(sizeof(float)), width, to);
    at += static_cast<int64_t>(width * sizeof(float));
  }
}

FrameBatch read_on_all(const Dataset& dataset, std::span<const int64_t> frames, int input_bits,
                       Communicator* ranks) {
  FrameBatch batch;
  if (ranks == nullptr) {
    dataset.read(frames, batch);
    return batch;
  }
  const int64_t frame_bytes =
      stored_frame_bytes(2 * static_cast<int64_t>(dataset.length()), input_bits);
  const std::vector<int64_t> mine = held_part(frames, dataset.size(), ranks);
  FrameBatch held;
  if (!mine.empty()) dataset.read(mine, held);
  std::vector<int64_t> sizes(static_cast<size_t>(ranks->ranks()), 0);
  sizes[static_cast<size_t>(ranks->rank())] = std::ssize(mine) * frame_bytes;
  ranks->sum(sizes);
  const bool as_codes = input_bits != kFloatBits;
  resize(batch, frames.size(), 2 * static_cast<size_t>(dataset.length()), as_codes);
  std::vector<std::byte> all(frames.size() * static_cast<size_t>(frame_bytes));
  ranks->gather(bytes_of(held), sizes, all);
  std::vector<int64_t> place(sizes.size(), 0);
  std::exclusive_scan(sizes.begin(), sizes.end(), place.begin(), int64_t{0});
  std::byte* to = writable_bytes_of(batch, as_codes).data();
  for (const int64_t frame : frames) {
    batch.labels.push_back(dataset.label(frame));
    batch.snr_db.push_back(dataset.snr_db(frame));
    int from = 0;
    while (first_held(dataset.size(), from + 1, ranks->ranks()) <= frame) ++from;
    int64_t& at = place[static_cast<size_t>(from)];
    std::memcpy(to, all.data() + at, static_cast<size_t>(frame_bytes));
    at += frame_bytes;
    to += frame_bytes;
  }
  return batch;
}

}  // namespace fmp
