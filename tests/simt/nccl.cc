// SPDX-License-Identifier: MIT
// NCCL between processes of one machine, each of which is a rank with a device of its own: what
// they exchange goes through memory that they share. As with every library here, a call runs when
// it is put on its stream, so that it waits for the same call of all other ranks. Each says what it
// calls, and a call that is not that of the others is refused by all of them; NCCL would hang, or
// mix up what it moves.
#include "tests/simt/nccl.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/simt/library.h"

namespace {

using simt::require;

constexpr int kMostRanks = 16;
constexpr size_t kPiece = 1 << 16;  // bytes that a rank shows at a time

// What a rank calls.
struct Call {
  char name[16];
  uint64_t count;
  int type, operation, root;
  bool captured;

  std::string text() const {
    return std::string(name) + " of " + std::to_string(count) + " elements of type " +
           std::to_string(type) + ", operation " + std::to_string(operation) + ", root " +
           std::to_string(root) + (captured ? ", in a graph" : "");
  }
  bool operator==(const Call& other) const { return text() == other.text(); }
};

struct Shared {
  std::atomic<int> ranks;          // of the first that joined
  std::atomic<int> arrived;        // at a meeting
  std::atomic<unsigned> meetings;  // that are over
  std::atomic<int> joined[kMostRanks];
  int device[kMostRanks];
  Call call[kMostRanks];
  std::byte data[kMostRanks][kPiece];
};

std::string detail;  // of the last refusal

template <typename F>
ncclResult_t answer(const F& call) {
  return simt::answer(ncclSuccess, detail, call);
}

Shared* attach(const char* name, int flags) {
  const int file = ::shm_open(name, O_RDWR | flags, 0600);
  require(file >= 0, ncclSystemError, std::string("no memory to share: ") + name);
  const bool sized = (flags & O_CREAT) == 0 || ::ftruncate(file, sizeof(Shared)) == 0;
  void* memory = sized
                     ? ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                     : MAP_FAILED;
  ::close(file);
  require(memory != MAP_FAILED, ncclSystemError, "no memory to share");
  return static_cast<Shared*>(memory);
}

}  // namespace

struct ncclComm {
  Shared* shared;
  int ranks, rank, device;

  // Waits for all ranks.
  void meet() const {
    const unsigned meeting = shared->meetings;
    if (++shared->arrived == ranks) {
      shared->arrived = 0;
      ++shared->meetings;
      return;
    }
    for (int looks = 0; shared->meetings == meeting; ++looks) {
      if (looks < 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }
  // All ranks show what they call, and refuse what differs.
  void agree(const Call& mine) const {
    shared->call[rank] = mine;
    meet();
    std::string differs;
    for (int other = 1; other < ranks && differs.empty(); ++other) {
      if (shared->call[other] == shared->call[0]) continue;
      differs = "rank 0 calls " + shared->call[0].text() + "; rank " + std::to_string(other) + " " +
                shared->call[other].text();
    }
    meet();
    require(differs.empty(), ncclInvalidUsage, differs);
  }
  // read(places of the ranks' pieces, bytes): of all, or of those that `shows` names.
  template <typename Read>
  void exchange(const std::byte* mine, size_t bytes, bool shows, const Read& read) const {
    for (size_t first = 0; first < bytes; first += kPiece) {
      const size_t size = std::min(kPiece, bytes - first);
      const simt::OpenDeviceMemory open;
      if (shows) std::memcpy(shared->data[rank], mine + first, size);
      meet();
      read(first, size);
      meet();
    }
  }
};

namespace {

std::set<ncclComm_t> communicators;
int group_depth = 0;
std::vector<std::function<ncclResult_t()>> grouped;

void check_communicator(ncclComm_t c) {
  require(communicators.contains(c), ncclInvalidArgument, "no such communicator");
}

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint32:
      return 4;
    case ncclUint64:
      return 8;
    default:
      return 0;
  }
}

template <typename T>
void add_pieces(const Shared& shared, int ranks, size_t size, std::byte* to) {
  for (size_t i = 0; i < size; i += sizeof(T)) {
    T total = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      T value;
      std::memcpy(&value, shared.data[rank] + i, sizeof value);
      total += value;
    }
    std::memcpy(to + i, &total, sizeof total);
  }
}

// What both collective operations check and do before they move anything.
void begin(const char* name, const void* send, void* receive, size_t count, ncclDataType_t type,
           int operation, int root, bool reads, ncclComm_t c, cudaStream_t stream, bool captured) {
  require(!simt::device_failed(), ncclUnhandledCudaError, "a kernel failed before");
  check_communicator(c);
  int device = 0;
  cudaGetDevice(&device);
  require(device == c->device, ncclInvalidUsage, "another device than the communicator's is used");
  require(simt::stream_exists(stream), ncclInvalidArgument, "no such stream");
  const size_t size = size_of(type);
  require(size != 0, ncclInvalidArgument, "type: ncclUint32 or ncclUint64 expected");
  require(count > 0, ncclInvalidArgument, "nothing is sent");
  require(root >= 0 && root < c->ranks, ncclInvalidArgument, "no such root");
  const auto extent = [&](const char* what, const void* data) {
    require(reinterpret_cast<uintptr_t>(data) % size == 0, ncclInvalidArgument,
            std::string(what) + ": not aligned to its elements");
    return simt::Extent{what, data, static_cast<int64_t>(count * size / 4), 1, 0, 1, 0};
  };
  const simt::Extent from = extent("what is sent", send), to = extent("what is received", receive);
  const auto require_none = [](const std::string& wrong) {
    require(wrong.empty(), ncclInvalidArgument, wrong);
  };
  if (reads) require_none(from.unreadable());
  require_none(to.unwritable());
  require(send == receive || !from.overlaps(to), ncclInvalidArgument,
          "what is received overlaps what is sent");
  Call call{};
  std::strncpy(call.name, name, sizeof call.name - 1);
  call.count = count;
  call.type = type;
  call.operation = operation;
  call.root = root;
  call.captured = captured;
  c->agree(call);
  to.mark_written();
}

// Puts the call on its stream now, or when the group ends.
template <typename Work>
ncclResult_t submit(ncclComm_t c, cudaStream_t stream, const Work& work) {
  // What NCCL says at once.
  const ncclResult_t known = answer([&] {
    check_communicator(c);
    require(simt::stream_exists(stream), ncclInvalidArgument, "no such stream");
  });
  if (known != ncclSuccess) return known;
  const auto put = [=] {
    const bool captured = simt::stream_captures(stream);
    return simt::put_on_stream(stream, ncclSuccess, ncclUnhandledCudaError,
                               [=] { return answer([&] { work(captured); }); });
  };
  if (group_depth == 0) return put();
  grouped.push_back(put);
  return ncclSuccess;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return answer([&] {
    std::random_device random;
    *id = {};
    const std::string name = "/fmp_simt_nccl_" + std::to_string(::getpid()) + "_" +
                             std::to_string(random()) + std::to_string(random());
    std::strncpy(id->internal, name.c_str(), sizeof id->internal - 1);
    ::munmap(attach(id->internal, O_CREAT | O_EXCL), sizeof(Shared));  // zeros
  });
}

ncclResult_t ncclCommInitRank(ncclComm_t* communicator, int ranks, ncclUniqueId id, int rank) {
  return answer([&] {
    require(group_depth == 0, ncclInvalidUsage, "ncclCommInitRank in a group");
    require(ranks > 0 && ranks <= kMostRanks && rank >= 0 && rank < ranks, ncclInvalidArgument,
            "no such rank");
    ncclComm c{attach(id.internal, 0), ranks, rank, 0};
    cudaGetDevice(&c.device);
    int none = 0;
    const bool agrees = c.shared->ranks.compare_exchange_strong(none, ranks) || none == ranks;
    const bool is_new = ++c.shared->joined[rank] == 1;
    if (!agrees || !is_new) ::shm_unlink(id.internal);  // nobody else comes
    require(agrees, ncclInvalidUsage, "another number of ranks than those that came before");
    require(is_new, ncclInvalidUsage, "a rank that is there already");
    c.shared->device[rank] = c.device;
    c.meet();
    if (rank == 0) ::shm_unlink(id.internal);
    for (int other = 0; other < ranks; ++other) {
      for (int before = 0; before < other; ++before) {
        require(c.shared->device[before] != c.shared->device[other], ncclInvalidUsage,
                "Duplicate GPU detected: rank " + std::to_string(before) + " and rank " +
                    std::to_string(other) + " both on device " +
                    std::to_string(c.shared->device[other]));
      }
    }
    *communicator = new ncclComm(c);
    communicators.insert(*communicator);
  });
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
  if (c == nullptr) return ncclSuccess;
  return answer([&] {
    check_communicator(c);
    communicators.erase(c);
    ::munmap(c->shared, sizeof(Shared));
    delete c;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t* error) {
  return answer([&] {
    check_communicator(c);
    *error = ncclSuccess;
  });
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}
const char* ncclGetLastError(ncclComm_t /*communicator*/) { return detail.c_str(); }

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  return answer([] {
    require(group_depth > 0, ncclInvalidUsage, "ncclGroupEnd: not in a group call");
    if (--group_depth > 0) return;
    const std::vector<std::function<ncclResult_t()>> calls = std::exchange(grouped, {});
    for (const auto& call : calls) {
      const ncclResult_t result = call();
      require(result == ncclSuccess, result, detail);
    }
  });
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t c, cudaStream_t stream) {
  return submit(c, stream, [=](bool captured) {
    require(operation == ncclSum, ncclInvalidArgument, "operation: ncclSum expected");
    begin("ncclAllReduce", send, receive, count, type, operation, 0, true, c, stream, captured);
    auto* const to = static_cast<std::byte*>(receive);
    c->exchange(static_cast<const std::byte*>(send), count * size_of(type), true,
                [&](size_t first, size_t size) {
                  if (type == ncclUint32) {
                    add_pieces<uint32_t>(*c->shared, c->ranks, size, to + first);
                  } else {
                    add_pieces<uint64_t>(*c->shared, c->ranks, size, to + first);
                  }
                });
  });
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type,
                           int root, ncclComm_t c, cudaStream_t stream) {
  return submit(c, stream, [=](bool captured) {
    check_communicator(c);
    const bool is_root = c->rank == root;
    begin("ncclBroadcast", is_root ? send : receive, receive, count, type, 0, root, is_root, c,
          stream, captured);
    auto* const to = static_cast<std::byte*>(receive);
    c->exchange(
        static_cast<const std::byte*>(send), count * size_of(type), is_root,
        [&](size_t first, size_t size) { std::memcpy(to + first, c->shared->data[root], size); });
  });
}
