// SPDX-License-Identifier: MIT
// Ranks that are processes of their own, so that each has a device of the host runtime.
#pragma once

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/thread_ranks.h"

namespace fmp {

class ProcessRanks {
 public:
  using Bits = std::vector<uint32_t>;

  // What body(communicator) returns on each of the ranks, which run at the same time. Throws what
  // the first of them threw, as std::runtime_error, and ends the others then.
  static std::vector<Bits> run(int ranks, const std::function<Bits(Communicator&)>& body) {
    ProcessRanks all(ranks);
    std::vector<pid_t> processes;
    for (int rank = 0; rank < ranks; ++rank) {
      const pid_t child = ::fork();
      if (child < 0) throw std::runtime_error("cannot fork");
      if (child == 0) ::_exit(all.work(rank, body));
      processes.push_back(child);
    }
    bool failed = false;
    for (size_t left = processes.size(); left > 0; --left) {
      int status = 0;
      const pid_t ended = ::wait(&status);
      std::erase(processes, ended);
      failed = failed || status != 0;
      if (!failed) continue;
      // The others may wait for it for ever; one that fails for the same reason may say so first.
      if (left == static_cast<size_t>(ranks)) std::this_thread::sleep_for(kGrace);
      for (const pid_t other : processes) ::kill(other, SIGKILL);
    }
    std::vector<Bits> results;
    for (int rank = 0; rank < ranks; ++rank) {
      const Area& area = all.shared_->of[rank];
      if (failed && area.failed) {
        throw std::runtime_error(std::string(reinterpret_cast<const char*>(area.data), area.bytes));
      }
      results.emplace_back(area.bytes / sizeof(uint32_t));
      if (area.bytes > 0) std::memcpy(results.back().data(), area.data, area.bytes);
    }
    if (failed) throw std::runtime_error("a rank crashed");
    return results;
  }

 private:
  static constexpr int kMostRanks = 8;
  static constexpr size_t kBytes = size_t{4} << 20;
  static constexpr std::chrono::milliseconds kGrace{200};
  // What a rank shows, at last its result.
  struct Area {
    size_t bytes, sizes;
    bool failed;
    int64_t size[kMostRanks];
    std::byte data[kBytes];
  };
  struct Shared {
    std::atomic<int> arrived;
    std::atomic<unsigned> meetings;
    Area of[kMostRanks];
  };

  class Member final : public ShowingRanks {
   public:
    Member(const ProcessRanks& all, int rank) : all_(all), rank_(rank) {}
    int rank() const override { return rank_; }
    int ranks() const override { return all_.ranks_; }

   private:
    void show(const Shown& mine, const std::function<void(size_t, const Shown&)>& read) override {
      Area& area = all_.shared_->of[rank_];
      if (mine.bytes.size() > kBytes) throw std::logic_error("more than ranks can show");
      area.bytes = mine.bytes.size();
      area.sizes = mine.sizes.size();
      std::ranges::copy(mine.bytes, area.data);
      std::ranges::copy(mine.sizes, area.size);
      meet();
      for (size_t rank = 0; rank < static_cast<size_t>(all_.ranks_); ++rank) {
        const Area& of = all_.shared_->of[rank];
        read(rank, {{of.data, of.bytes}, {of.size, of.sizes}});
      }
      meet();
    }
    void meet() {
      Shared& shared = *all_.shared_;
      const unsigned meeting = shared.meetings;
      if (++shared.arrived == all_.ranks_) {
        shared.arrived = 0;
        ++shared.meetings;
        return;
      }
      while (shared.meetings == meeting) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }

    const ProcessRanks& all_;
    int rank_;
  };

  explicit ProcessRanks(int ranks) : ranks_(ranks) {
    if (ranks > kMostRanks) throw std::logic_error("more ranks than there may be");
    void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    shared_ = static_cast<Shared*>(memory);  // zeros
  }
  ~ProcessRanks() { ::munmap(shared_, sizeof(Shared)); }

  int work(int rank, const std::function<Bits(Communicator&)>& body) const {
    Area& area = shared_->of[rank];
    const auto tell = [&](const void* data, size_t bytes) {
      area.bytes = std::min(bytes, kBytes);
      if (area.bytes > 0) std::memcpy(area.data, data, area.bytes);
    };
    try {
      Member member(*this, rank);
      const Bits bits = body(member);
      tell(bits.data(), bits.size() * sizeof(uint32_t));
      return 0;
    } catch (const std::exception& error) {
      tell(error.what(), std::strlen(error.what()));
      area.failed = true;
      return 1;
    }
  }

  int ranks_;
  Shared* shared_;
};

}  // namespace fmp
