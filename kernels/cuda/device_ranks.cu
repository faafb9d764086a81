// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/device_ranks.h"
#include "kernels/cuda/libraries.h"

#ifdef FMP_WITH_NCCL
#include <nccl.h>
#endif

namespace fmp::cuda {

#ifdef FMP_WITH_NCCL

namespace {

[[noreturn]] void fail(ncclResult_t result, ncclComm_t communicator, const char* call,
                       const SourceLine& where) {
  throw LibraryError(std::string(where.file) + ":" + std::to_string(where.line) + ": " + call +
                     ": " + ncclGetErrorString(result) + ": " + ncclGetLastError(communicator));
}
void require(ncclResult_t result, ncclComm_t communicator, const char* call,
             const SourceLine& where = SourceLine::current()) {
  if (result != ncclSuccess) fail(result, communicator, call, where);
}

}  // namespace

struct DeviceRanks::Connection {
  ncclComm_t communicator = nullptr;
  ~Connection() {
    // What it waits for has been waited for, and whoever is lost has been told.
    if (communicator != nullptr) static_cast<void>(ncclCommDestroy(communicator));
  }
};

std::string why_no_nccl() {
  try {
    int version = 0;
    require(ncclGetVersion(&version), nullptr, "ncclGetVersion");
    return "";
  } catch (const LibraryError& error) {
    return error.what();
  }
}

DeviceRanks::DeviceRanks(Communicator& ranks)
    : ranks_(ranks.ranks()), rank_(ranks.rank()), connection_(std::make_unique<Connection>()) {
  if (ranks_ > kFrameGroups) {
    throw std::invalid_argument(std::to_string(ranks_) + " ranks with a device each; at most " +
                                std::to_string(kFrameGroups) + " share a batch");
  }
  ncclUniqueId id{};
  if (rank_ == 0) require(ncclGetUniqueId(&id), nullptr, "ncclGetUniqueId");
  const std::span<const std::byte> mine = std::as_bytes(std::span(&id, 1));
  std::vector<int64_t> sizes(static_cast<size_t>(ranks_), 0);
  sizes[0] = std::ssize(mine);
  ncclUniqueId of_first{};
  ranks.gather(mine.first(rank_ == 0 ? mine.size() : 0), sizes,
               std::as_writable_bytes(std::span(&of_first, 1)));
  require(ncclCommInitRank(&connection_->communicator, ranks_, of_first, rank_), nullptr,
          "ncclCommInitRank");
}

DeviceRanks::~DeviceRanks() = default;

void DeviceRanks::sum(unsigned long long* values, size_t count, Stream stream) {
  const ncclComm_t c = connection_->communicator;
  require(ncclAllReduce(values, values, count, ncclUint64, ncclSum, c, native(stream)), c,
          "ncclAllReduce");
}
void DeviceRanks::sum(unsigned* values, size_t count, Stream stream) {
  const ncclComm_t c = connection_->communicator;
  require(ncclAllReduce(values, values, count, ncclUint32, ncclSum, c, native(stream)), c,
          "ncclAllReduce");
}

// Parts differ in size, which ncclAllGather does not allow; broadcasts of a group are one launch.
void DeviceRanks::gather(uint32_t* words, std::span<const size_t> begins, Stream stream) {
  const ncclComm_t c = connection_->communicator;
  require(ncclGroupStart(), c, "ncclGroupStart");
  for (size_t root = 0; root + 1 < begins.size(); ++root) {
    uint32_t* const part = words + begins[root];
    require(ncclBroadcast(part, part, begins[root + 1] - begins[root], ncclUint32,
                          static_cast<int>(root), c, native(stream)),
            c, "ncclBroadcast");
  }
  require(ncclGroupEnd(), c, "ncclGroupEnd");
}

void DeviceRanks::check() {
  const ncclComm_t c = connection_->communicator;
  ncclResult_t state = ncclSuccess;
  require(ncclCommGetAsyncError(c, &state), c, "ncclCommGetAsyncError");
  require(state, c, "the connection of the devices");
}

#else

struct DeviceRanks::Connection {};

std::string why_no_nccl() { return "built without NCCL: configure with -DFMP_NCCL=ON"; }

DeviceRanks::DeviceRanks(Communicator& ranks) : ranks_(ranks.ranks()), rank_(ranks.rank()) {
  throw LibraryError(why_no_nccl());
}
DeviceRanks::~DeviceRanks() = default;
void DeviceRanks::sum(unsigned long long* /*values*/, size_t /*count*/, Stream /*stream*/) {}
void DeviceRanks::sum(unsigned* /*values*/, size_t /*count*/, Stream /*stream*/) {}
void DeviceRanks::gather(uint32_t* /*words*/, std::span<const size_t> /*begins*/,
                         Stream /*stream*/) {}
void DeviceRanks::check() {}

#endif

namespace {

constexpr int kLaneRows = 8;  // of a block

__global__ void __launch_bounds__(kBlockThreads)
    join(const uint32_t* parts, LaneCuts cuts, int rows, uint32_t* whole) {
  const int lane = block_x() * kWarpLanes + thread_x(), row = block_y() * kLaneRows + thread_y();
  if (row >= rows) return;
  // Constant indices: an index that is computed would copy the cuts to local memory.
  int begin = cuts.begin[0], end = cuts.begin[1];
#pragma unroll
  for (int part = 1; part < kFrameGroups; ++part)
    if (part < cuts.count && lane >= cuts.begin[part]) {  // parts are of whole warps
      begin = cuts.begin[part];
      end = cuts.begin[part + 1];
    }
  const int lanes = end - begin;
  const size_t from = static_cast<size_t>(rows) * static_cast<size_t>(begin) +
                      static_cast<size_t>(row) * static_cast<size_t>(lanes) +
                      static_cast<size_t>(lane - begin);
  whole[static_cast<size_t>(row) * static_cast<size_t>(cuts.begin[cuts.count]) +
        static_cast<size_t>(lane)] = parts[from];
}

__global__ void __launch_bounds__(kBlockThreads)
    take(const float* whole, int rows, int of_lanes, int first, int lanes, float* part) {
  const int lane = block_x() * kWarpLanes + thread_x(), row = block_y() * kLaneRows + thread_y();
  if (row >= rows) return;
  part[static_cast<size_t>(row) * static_cast<size_t>(lanes) + static_cast<size_t>(lane)] =
      whole[static_cast<size_t>(row) * static_cast<size_t>(of_lanes) +
            static_cast<size_t>(first + lane)];
}

Shape over_lanes(int lanes, size_t rows) {
  return {dim3(static_cast<unsigned>(lanes / kWarpLanes), blocks_for(rows, kLaneRows)),
          dim3(kWarpLanes, kLaneRows)};
}

}  // namespace

void DeviceRanks::gather_rows(double* rows, const FrameGroups& groups, size_t row_size,
                              Stream stream) {
  std::vector<size_t> begins;
  constexpr size_t kWords = sizeof(double) / sizeof(uint32_t);
  for (int rank = 0; rank <= ranks_; ++rank) {
    const auto group = static_cast<size_t>(rank * groups.of_batch() / ranks_);
    begins.push_back(group * row_size * kWords);
  }
  gather(reinterpret_cast<uint32_t*>(rows), begins, stream);
}

void DeviceRanks::gather_lanes(uint32_t* words, size_t rows, int64_t batch_frames, Stream stream) {
  const LaneCuts cuts(batch_frames, ranks_);
  std::vector<size_t> begins;
  for (int rank = 0; rank <= ranks_; ++rank)
    begins.push_back(rows * static_cast<size_t>(cuts.begin[rank]));
  gather(words, begins, stream);
}

LaneCuts::LaneCuts(int64_t batch_frames, int ranks) : count(ranks) {
  const FrameGroups groups(batch_frames, 0, batch_frames);
  for (int rank = 0; rank <= ranks; ++rank)
    begin[rank] = groups.first_warp_of(rank * groups.of_batch() / ranks) * kWarpLanes;
}

void join_lanes(const uint32_t* parts, const LaneCuts& cuts, size_t rows, uint32_t* whole,
                Stream stream) {
  launch(Where("join_lanes", native(stream)), over_lanes(cuts.begin[cuts.count], rows), join, parts,
         cuts, static_cast<int>(rows), whole);
}
void take_lanes(const float* whole, size_t rows, int of_lanes, int first, int lanes, float* part,
                Stream stream) {
  launch(Where("take_lanes", native(stream)), over_lanes(lanes, rows), take, whole,
         static_cast<int>(rows), of_lanes, first, lanes, part);
}

}  // namespace fmp::cuda
