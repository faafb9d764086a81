// SPDX-License-Identifier: MIT
// Ranks (kernels/communicator.h) with a device each, connected by NCCL. What they exchange stays in
// device memory: calls are put on a stream like kernels, can be captured with them, and need no
// host. Every rank makes the same calls in the same order. Needs no CUDA header.
//
// A rank that is lost leaves the others waiting on their devices. Whoever watches over the job
// (framework/ranks/watch.h) ends the processes, and with them what their devices do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/communicator.h"
#include "kernels/cuda/ops.h"

namespace fmp::cuda {

// Empty, or why this build, or this machine, has no NCCL.
std::string why_no_nccl();

// How ranks share a batch on devices: whole groups of frames, and a batch with too few of them is
// computed by all.
inline constexpr ShareUnits kDeviceShareUnits{kWarpLanes, kFrameGroups, true};

class DeviceRanks {
 public:
  // All ranks together, each on the device that it uses from now on. Throws LibraryError, also
  // where two ranks use one device, and std::invalid_argument for more than kFrameGroups ranks.
  explicit DeviceRanks(Communicator& ranks);
  // After all that was put on streams is over.
  ~DeviceRanks();
  DeviceRanks(const DeviceRanks&) = delete;
  DeviceRanks& operator=(const DeviceRanks&) = delete;

  int ranks() const { return ranks_; }
  int rank() const { return rank_; }

  // values[i] = the sum of all ranks' values[i]: exact.
  void sum(unsigned long long* values, size_t count, Stream stream);
  void sum(unsigned* values, size_t count, Stream stream);
  // Memory for rows of groups, shared by all passes on a stream. It moves when more is asked for.
  double* rows(size_t doubles) { return rows_.reserve(doubles); }
  // rows: [group of the batch][row_size]. Every rank gives those of its groups.
  void gather_rows(double* rows, const FrameGroups& groups, size_t row_size, Stream stream);
  // words: [rank][row][its lanes], of 4 bytes, for each lane of a batch of so many frames. Every
  // rank gives its part, which begins at rows * lane.
  void gather_lanes(uint32_t* words, size_t rows, int64_t batch_frames, Stream stream);

  // Throws LibraryError when the connection has failed since.
  void check();

 private:
  struct Connection;
  // part r: words from begins[r] to begins[r + 1].
  void gather(uint32_t* words, std::span<const size_t> begins, Stream stream);

  int ranks_, rank_;
  std::unique_ptr<Connection> connection_;
  DeviceBuffer<double> rows_;
};

// First lanes of the ranks' parts of a batch, and its end.
struct LaneCuts {
  int count = 0;
  int begin[kFrameGroups + 1] = {};
  LaneCuts() = default;
  LaneCuts(int64_t batch_frames, int ranks);
};

// parts: as gather_lanes() leaves them -> whole[row][lane].
void join_lanes(const uint32_t* parts, const LaneCuts& cuts, size_t rows, uint32_t* whole,
                Stream stream);
// whole[row][lane] -> part[row][lane], `lanes` of the `of_lanes` from `first` on.
void take_lanes(const float* whole, size_t rows, int of_lanes, int first, int lanes, float* part,
                Stream stream);

}  // namespace fmp::cuda
