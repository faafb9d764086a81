// SPDX-License-Identifier: MIT
// The only file that knows MPI. One thread calls it, operations are nonblocking, and whoever waits
// gives way to others on its core.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "framework/error.h"
#include "framework/ranks/job.h"
#include "framework/ranks/launcher.h"
#include "framework/ranks/watch.h"

namespace fmp {
namespace {

// Elements that travel along the chain at a time, so that all ranks add at the same time.
constexpr size_t kPiece = 1 << 12;

int checked_size(int64_t bytes) {
  if (bytes > std::numeric_limits<int>::max())
    fail("{} bytes are to be sent at once, more than MPI can; a smaller --batch needs less", bytes);
  return static_cast<int>(bytes);
}

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  // Another rank is gone, as a rule: that is told by who watches, and ends this process.
  std::this_thread::sleep_for(2 * Watch::silence());
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  fail("MPI: {}: {}", what, std::string(text.data(), static_cast<size_t>(length)));
}

// What is to be sent, to each rank, and where it begins.
struct Parts {
  std::vector<int> sizes, places;

  explicit Parts(std::span<const int64_t> bytes) {
    int64_t place = 0;
    for (const int64_t size : bytes) {
      sizes.push_back(checked_size(size));
      places.push_back(checked_size(place));
      place += size;
    }
    checked_size(place);
  }
};

// NOLINTBEGIN(clang-analyzer-optin.mpi.MPI-Checker): it does not count MPI_Test() as waiting
class MpiJob final : public Job {
 public:
  MpiJob() {
    int threads = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
    if (threads < MPI_THREAD_FUNNELED && ranks_ > 1) fail("this MPI allows no further threads");
  }
  ~MpiJob() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && ranks_ == 1) MPI_Finalize();
  }

  void connect() {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    std::vector<char> hosts(host.size() * static_cast<size_t>(ranks_));
    const int size = static_cast<int>(host.size());
    check(MPI_Allgather(host.data(), size, MPI_BYTE, hosts.data(), size, MPI_BYTE, MPI_COMM_WORLD),
          "names of hosts");
    const auto host_of = [&](int rank) {
      return std::string(hosts.data() + static_cast<size_t>(rank) * host.size());
    };
    int first_here = -1, first_but_zero = -1;
    for (int rank = 0; rank < ranks_; ++rank) {
      names_.push_back(fmt::format("rank {} on {}", rank, host_of(rank)));
      if (host_of(rank) != host.data()) continue;
      if (rank < rank_) ++rank_on_host_;
      ++ranks_on_host_;
      if (first_here < 0) first_here = rank;
      if (rank > 0 && first_but_zero < 0) first_but_zero = rank;
    }
    std::array<char, 4096> invitation{};
    if (rank_ == 0) {
      watch_ = Watch::host(names_);
      const std::string text = watch_->invitation();
      std::copy_n(text.data(), std::min(text.size(), invitation.size() - 1), invitation.data());
    }
    check(MPI_Bcast(invitation.data(), static_cast<int>(invitation.size()), MPI_BYTE, 0,
                    MPI_COMM_WORLD),
          "the invitation");
    if (rank_ != 0) watch_ = Watch::join(invitation.data(), rank_, names_, rank_ == first_but_zero);
  }

  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }
  int ranks_on_host() const override { return ranks_on_host_; }
  int rank_on_host() const override { return rank_on_host_; }
  std::string name(int rank) const override { return names_.at(static_cast<size_t>(rank)); }

  void sum(std::span<int64_t> values) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallreduce(MPI_IN_PLACE, values.data(), checked_size(std::ssize(values)), MPI_INT64_T,
                         MPI_SUM, MPI_COMM_WORLD, &request),
          "a sum");
    wait(request);
  }
  void sum_in_order(std::span<const float> rows, std::span<float> total) override {
    add_along_chain(rows, total, MPI_FLOAT);
  }
  void sum_in_order(std::span<const double> rows, std::span<double> total) override {
    add_along_chain(rows, total, MPI_DOUBLE);
  }
  void gather(std::span<const std::byte> mine, std::span<const int64_t> sizes,
              std::span<std::byte> all) override {
    const Parts parts(sizes);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgatherv(mine.data(), checked_size(std::ssize(mine)), MPI_BYTE, all.data(),
                          parts.sizes.data(), parts.places.data(), MPI_BYTE, MPI_COMM_WORLD,
                          &request),
          "a gathering");
    wait(request);
  }
  void exchange(std::span<const std::byte> send, std::span<const int64_t> send_sizes,
                std::span<std::byte> receive, std::span<const int64_t> receive_sizes) override {
    const Parts out(send_sizes), in(receive_sizes);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ialltoallv(send.data(), out.sizes.data(), out.places.data(), MPI_BYTE, receive.data(),
                         in.sizes.data(), in.places.data(), MPI_BYTE, MPI_COMM_WORLD, &request),
          "an exchange");
    wait(request);
  }

  void leave() override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibarrier(MPI_COMM_WORLD, &request), "the end");
    wait(request);
    watch_.reset();
    MPI_Finalize();
  }
  [[noreturn]] void end(int exit_code, const std::string& message) override {
    if (watch_) watch_->end(exit_code, message);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    ::_exit(exit_code);
  }

 private:
  // If another rank is lost, the watch ends this process.
  static void wait(MPI_Request& request) {
    using std::chrono::microseconds, std::chrono::milliseconds;
    constexpr int kAtOnce = 200;  // looks before others get the core
    constexpr milliseconds kYield{2};
    constexpr microseconds kSleep{50};
    const auto began = std::chrono::steady_clock::now();
    int done = 0;
    for (int looks = 0;; ++looks) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "waiting");
      if (done != 0) return;
      if (looks < kAtOnce) continue;
      if (std::chrono::steady_clock::now() - began < kYield) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kSleep);
      }
    }
  }

  // Piece by piece from rank 0 to the last one, each of which adds its rows, and to all again.
  template <typename T>
  void add_along_chain(std::span<const T> rows, std::span<T> total, MPI_Datatype type) {
    constexpr int kTag = 1;
    std::vector<MPI_Request> sends;
    for (size_t first = 0; first < total.size(); first += kPiece) {
      const std::span<T> piece = total.subspan(first, std::min(kPiece, total.size() - first));
      const int count = checked_size(std::ssize(piece));
      if (rank_ == 0) {
        std::ranges::fill(piece, T{0});
      } else {
        MPI_Request request = MPI_REQUEST_NULL;
        check(MPI_Irecv(piece.data(), count, type, rank_ - 1, kTag, MPI_COMM_WORLD, &request),
              "a sum");
        wait(request);
      }
      for (size_t row = first; row < rows.size(); row += total.size()) {
        for (size_t i = 0; i < piece.size(); ++i) piece[i] += rows[row + i];
      }
      if (rank_ + 1 < ranks_) {
        check(MPI_Isend(piece.data(), count, type, rank_ + 1, kTag, MPI_COMM_WORLD,
                        &sends.emplace_back(MPI_REQUEST_NULL)),
              "a sum");
      }
    }
    for (MPI_Request& request : sends) wait(request);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibcast(total.data(), checked_size(std::ssize(total)), type, ranks_ - 1,
                     MPI_COMM_WORLD, &request),
          "a sum");
    wait(request);
  }

  int rank_ = 0, ranks_ = 1, ranks_on_host_ = 0, rank_on_host_ = 0;
  std::vector<std::string> names_;
  std::unique_ptr<Watch> watch_;
};

// NOLINTEND(clang-analyzer-optin.mpi.MPI-Checker)

}  // namespace

std::unique_ptr<Job> join_job() {
  const int processes = launched_processes();
  if (processes == 1) return nullptr;
  auto job = std::make_unique<MpiJob>();
  if (job->ranks() != processes) {
    throw UsageError(fmt::format(
        "{} processes were started as one job, but this MPI ({}) knows of {}: start them with its "
        "own mpirun, or with srun --mpi=pmix",
        processes, mpi_description(), job->ranks()));
  }
  job->connect();
  return job;
}

std::string mpi_description() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data(), static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace fmp
