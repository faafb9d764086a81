// SPDX-License-Identifier: MIT
// Several processes, called ranks, that train one network: each computes a share of every batch.
//
// A result has the same bits for any number of ranks, and with no ranks at all, because what is
// added up across frames is added up in one of two ways:
//   - integers (sums of codes, counts): exact, in any order;
//   - floats: partial sums of groups of tiles, which depend on the batch alone, are added from the
//     first group to the last. One process does the same with the groups that it keeps in memory;
//     across ranks a sum travels from rank to rank, each of which adds its groups, and comes back.
// This order costs nothing in one process and has the rounding error that one process has. Between
// ranks it moves each sum twice, once along the chain and once back, as the usual ring algorithms
// do. Fixed point would need an exponent before the first group is added, hence one more exchange,
// and 8 bytes a sum instead of 4. The price is that a rank needs at least one group.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/tile.h"

namespace fmp {

// Partial sums of a batch: as many as can be of use, few enough to add up quickly. So many ranks
// can share a batch.
inline constexpr int64_t kMaxGradientGroups = 64;

// What ranks do together. Every rank makes the same calls in the same order, with sizes that fit
// together. A call returns when this rank's part is done; if a rank is lost the program ends.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  // Of them on this rank's machine, itself included, and how many of those come before it.
  virtual int ranks_on_host() const = 0;
  virtual int rank_on_host() const = 0;
  // How messages call a rank: "rank 3 on node17".
  virtual std::string name(int rank) const = 0;

  // values[i] = the sum of all ranks' values[i].
  virtual void sum(std::span<int64_t> values) = 0;
  // rows: [n][total.size()], n >= 0 differs between ranks. total = 0, then all rows of rank 0 are
  // added one after the other, then those of rank 1, and so on.
  virtual void sum_in_order(std::span<const float> rows, std::span<float> total) = 0;
  virtual void sum_in_order(std::span<const double> rows, std::span<double> total) = 0;
  // Puts the parts of all ranks one behind the other into `all`; that of rank r has sizes[r] bytes.
  virtual void gather(std::span<const std::byte> mine, std::span<const int64_t> sizes,
                      std::span<std::byte> all) = 0;
  // send: what rank 0 gets, then what rank 1 gets, ...; send_sizes and receive_sizes in bytes.
  virtual void exchange(std::span<const std::byte> send, std::span<const int64_t> send_sizes,
                        std::span<std::byte> receive, std::span<const int64_t> receive_sizes) = 0;
};

// total = the sum of the rows, in their order and that of the ranks; ranks: null = this process.
template <typename T>
void sum_rows(Communicator* ranks, std::span<const T> rows, std::span<T> total) {
  if (ranks != nullptr) return ranks->sum_in_order(rows, total);
  std::fill(total.begin(), total.end(), T{0});
  for (size_t first = 0; first < rows.size(); first += total.size()) {
    for (size_t i = 0; i < total.size(); ++i) total[i] += rows[first + i];
  }
}

// Whether any rank says so; ranks: null = this process alone.
inline bool any_rank(Communicator* ranks, bool says) {
  if (ranks == nullptr) return says;
  int64_t count = says ? 1 : 0;
  ranks->sum({&count, 1});
  return count > 0;
}
// What rank 0 says; the others' text is not read.
inline std::string text_of_first(Communicator* ranks, std::string text) {
  if (ranks == nullptr) return text;
  if (ranks->rank() != 0) text.clear();
  std::vector<int64_t> sizes(static_cast<size_t>(ranks->ranks()), 0);
  sizes[0] = std::ssize(text);
  ranks->sum(sizes);
  std::string all(static_cast<size_t>(sizes[0]), '\0');
  ranks->gather(std::as_bytes(std::span(text)), sizes, std::as_writable_bytes(std::span(all)));
  return all;
}

// How ranks share a batch: frames of a tile, into how many groups of tiles a batch is cut at most,
// and what becomes of a batch with fewer groups than ranks: all ranks compute all of it, or some
// have nothing to do.
struct ShareUnits {
  int64_t tile_frames = kLanes, most_groups = kMaxGradientGroups;
  bool repeats_small = false;
};

// A rank's part of a batch: consecutive groups of consecutive tiles (kernels/tile.h). It may be
// empty.
struct BatchShare {
  Communicator* ranks = nullptr;
  ShareUnits units = {};
  int64_t batch_frames = 0;
  int64_t first_group = 0, groups = 0;  // of the rank
  int64_t first_tile = 0;
  int64_t frames = 0;

  int64_t tiles_of(int64_t some) const {
    return (some + units.tile_frames - 1) / units.tile_frames;
  }
  int64_t batch_groups() const { return std::min(tiles_of(batch_frames), units.most_groups); }
  // Of the batch.
  int64_t first_tile_of(int64_t group) const {
    return group * tiles_of(batch_frames) / batch_groups();
  }

  // The share of `rank`.
  static BatchShare of(int64_t batch_frames, int rank, Communicator& ranks,
                       const ShareUnits& units = {}) {
    BatchShare share;
    share.ranks = &ranks;
    share.units = units;
    share.batch_frames = batch_frames;
    const int64_t groups = share.batch_groups();
    const bool whole = units.repeats_small && groups < ranks.ranks();
    share.first_group = whole ? 0 : rank * groups / ranks.ranks();
    share.groups = (whole ? groups : (rank + 1) * groups / ranks.ranks()) - share.first_group;
    share.first_tile = share.first_tile_of(share.first_group);
    const int64_t end = share.first_tile_of(share.first_group + share.groups);
    share.frames = std::min(batch_frames, end * units.tile_frames) - share.first_frame();
    return share;
  }
  int64_t first_frame() const { return first_tile * units.tile_frames; }
};

}  // namespace fmp
