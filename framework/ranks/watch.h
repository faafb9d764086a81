// SPDX-License-Identifier: MIT
// Signs of life between the ranks of a job, over TCP connections of its own: rank 0 is connected to
// every other rank, and each end says once a second that it is there. A process that is killed
// closes its connection; one that hangs, or whose network is down, is silent. Either ends the whole
// job with one line that names the rank and its host.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fmp {

class Watch {
 public:
  // A silent rank is lost after this time: $FMP_RANK_SILENCE, at least 2, or 15, as busy machines
  // delay a sign of life by seconds.
  static std::chrono::seconds silence();

  // Rank 0: waits for the others. names[rank]: how messages call each rank. Throws Error.
  static std::unique_ptr<Watch> host(std::vector<std::string> names);
  // What the others need to connect, for rank 0 to tell them.
  std::string invitation() const;
  // Another rank: connects to rank 0. speaks: whether it is for this rank to tell that rank 0 is
  // lost, so that not all do. Throws Error when rank 0 cannot be reached.
  static std::unique_ptr<Watch> join(const std::string& invitation, int rank,
                                     std::vector<std::string> names, bool speaks);
  ~Watch();  // tells the others that this end is orderly
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // See Job::end().
  [[noreturn]] void end(int exit_code, const std::string& message);

 private:
  struct State;
  explicit Watch(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fmp
