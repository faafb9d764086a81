// SPDX-License-Identifier: MIT
// Ranks that are threads of one process, so that sanitizers see what all of them do.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kernels/communicator.h"

namespace fmp {

// Ranks that show each other what they have, in place of messages.
class ShowingRanks : public Communicator {
 public:
  // What a rank shows the others during a call.
  struct Shown {
    std::span<const std::byte> bytes;
    std::span<const int64_t> sizes;
  };

  int ranks_on_host() const override { return ranks(); }
  int rank_on_host() const override { return rank(); }
  std::string name(int rank) const override { return fmt::format("rank {}", rank); }

  void sum(std::span<int64_t> values) override {
    const std::vector<int64_t> mine(values.begin(), values.end());
    std::ranges::fill(values, 0);
    show({std::as_bytes(std::span(mine)), {}}, [&](size_t, const Shown& shown) {
      const auto* from = reinterpret_cast<const int64_t*>(shown.bytes.data());
      for (size_t i = 0; i < values.size(); ++i) values[i] += from[i];
    });
  }
  void sum_in_order(std::span<const float> rows, std::span<float> total) override {
    add_rows(rows, total);
  }
  void sum_in_order(std::span<const double> rows, std::span<double> total) override {
    add_rows(rows, total);
  }
  void gather(std::span<const std::byte> mine, std::span<const int64_t> sizes,
              std::span<std::byte> all) override {
    auto to = all.begin();
    show({mine, sizes}, [&](size_t rank, const Shown& shown) {
      if (static_cast<int64_t>(shown.bytes.size()) != sizes[rank])
        throw std::logic_error("gather: a part is not of the size that was said");
      to = std::ranges::copy(shown.bytes, to).out;
    });
    if (to != all.end()) throw std::logic_error("gather: the parts do not fill the result");
  }
  void exchange(std::span<const std::byte> send, std::span<const int64_t> send_sizes,
                std::span<std::byte> receive, std::span<const int64_t> receive_sizes) override {
    auto to = receive.begin();
    const auto me = static_cast<size_t>(rank());
    show({send, send_sizes}, [&](size_t rank, const Shown& shown) {
      const auto before = static_cast<std::ptrdiff_t>(me);
      const int64_t first =
          std::accumulate(shown.sizes.begin(), shown.sizes.begin() + before, int64_t{0});
      if (shown.sizes[me] != receive_sizes[rank])
        throw std::logic_error("exchange: another size was sent than is expected");
      to = std::ranges::copy(shown.bytes.subspan(static_cast<size_t>(first),
                                                 static_cast<size_t>(shown.sizes[me])),
                             to)
               .out;
    });
    if (to != receive.end()) throw std::logic_error("exchange: less came than is expected");
  }

 protected:
  // Calls read(rank, what it shows) for all ranks in their order.
  virtual void show(const Shown& mine, const std::function<void(size_t, const Shown&)>& read) = 0;

 private:
  template <typename T>
  void add_rows(std::span<const T> rows, std::span<T> total) {
    std::ranges::fill(total, T{0});
    show({std::as_bytes(rows), {}}, [&](size_t, const Shown& shown) {
      const auto* from = reinterpret_cast<const T*>(shown.bytes.data());
      for (size_t i = 0; i < shown.bytes.size() / sizeof(T); ++i)
        total[i % total.size()] += from[i];
    });
  }
};

class ThreadRanks {
 public:
  // Calls body(communicator) on every rank at the same time. Throws again what the first of them
  // threw; all ranks must throw, or none.
  static void run(int ranks, const std::function<void(Communicator&)>& body) {
    ThreadRanks all(ranks);
    std::vector<std::exception_ptr> errors(static_cast<size_t>(ranks));
    {
      std::vector<std::jthread> threads;
      for (int rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank] {
          Member member(all, rank);
          try {
            body(member);
          } catch (...) {
            errors[static_cast<size_t>(rank)] = std::current_exception();
          }
        });
      }
    }
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  }

 private:
  class Member final : public ShowingRanks {
   public:
    Member(ThreadRanks& all, int rank) : all_(all), rank_(rank) {}
    int rank() const override { return rank_; }
    int ranks() const override { return static_cast<int>(all_.shown_.size()); }

   private:
    void show(const Shown& mine, const std::function<void(size_t, const Shown&)>& read) override {
      all_.shown_[static_cast<size_t>(rank_)] = mine;
      all_.barrier_.arrive_and_wait();
      for (size_t rank = 0; rank < all_.shown_.size(); ++rank) read(rank, all_.shown_[rank]);
      all_.barrier_.arrive_and_wait();
    }

    ThreadRanks& all_;
    int rank_;
  };

  explicit ThreadRanks(int ranks) : shown_(static_cast<size_t>(ranks)), barrier_(ranks) {}

  std::vector<ShowingRanks::Shown> shown_;
  std::barrier<> barrier_;
};

}  // namespace fmp
