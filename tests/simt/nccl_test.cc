// SPDX-License-Identifier: MIT
// The stand-in for NCCL moves and adds up what the documentation says, in graphs, too, and refuses
// each wrong call: also those that ranks make differently, for which NCCL waits for ever.
#include "tests/simt/nccl.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/process_ranks.h"
#include "tests/simt/runtime_fixture.h"

namespace {

using fmp::ProcessRanks;
using Words = std::vector<uint32_t>;

ncclUniqueId id_of_first(fmp::Communicator& all) {
  ncclUniqueId id{};
  if (all.rank() == 0) ncclGetUniqueId(&id);
  const std::string text = fmp::text_of_first(&all, std::string(id.internal, sizeof id.internal));
  std::memcpy(id.internal, text.data(), sizeof id.internal);
  return id;
}

Words download(const uint32_t* memory, size_t count, cudaStream_t stream = nullptr) {
  Words values(count);
  cudaMemcpyAsync(values.data(), memory, count * 4, cudaMemcpyDeviceToHost, stream);
  return values;
}
uint32_t* upload(const Words& values) {
  void* memory = nullptr;
  cudaMalloc(&memory, values.size() * 4);
  cudaMemcpyAsync(memory, values.data(), values.size() * 4, cudaMemcpyHostToDevice, nullptr);
  return static_cast<uint32_t*>(memory);
}

void require(ncclResult_t result) {
  if (result != ncclSuccess) throw std::runtime_error(ncclGetLastError(nullptr));
}

// What body(communicator, rank) gives on each of several ranks with a device each.
std::vector<Words> on_ranks(int ranks, const std::function<Words(ncclComm_t, int)>& body) {
  ::setenv("SIMT_DEVICES", "4", 1);  // NOLINT(concurrency-mt-unsafe): one thread
  return ProcessRanks::run(ranks, [&](fmp::Communicator& all) {
    cudaSetDevice(all.rank());
    ncclComm_t communicator = nullptr;
    require(ncclCommInitRank(&communicator, all.ranks(), id_of_first(all), all.rank()));
    Words words = body(communicator, all.rank());
    require(ncclCommDestroy(communicator));
    return words;
  });
}

TEST(Nccl, AddsUpAndHandsRound) {
  constexpr size_t kMany = 40'000;  // several pieces
  const auto results = on_ranks(3, [](ncclComm_t c, int rank) {
    Words mine(kMany);
    for (size_t i = 0; i < kMany; ++i) mine[i] = static_cast<uint32_t>(i) << rank;
    uint32_t* const sums = upload(mine);
    require(ncclAllReduce(sums, sums, kMany, ncclUint32, ncclSum, c, nullptr));
    // Parts of 1, 2 and 3 words, each from its rank.
    Words parts(6);
    for (uint32_t& word : parts) word = static_cast<uint32_t>(10 + rank);
    uint32_t* const gathered = upload(parts);
    require(ncclGroupStart());
    for (size_t root = 0, first = 0; root < 3; first += ++root) {
      require(ncclBroadcast(gathered + first, gathered + first, root + 1, ncclUint32,
                            static_cast<int>(root), c, nullptr));
    }
    if (rank == 1 && download(gathered, 6) != parts) throw std::runtime_error("too early");
    require(ncclGroupEnd());
    Words all = download(sums, kMany);
    const Words words = download(gathered, 6);
    all.insert(all.end(), words.begin(), words.end());
    return all;
  });
  Words expected(kMany);
  for (size_t i = 0; i < kMany; ++i) expected[i] = static_cast<uint32_t>(7 * i);
  expected.insert(expected.end(), {10, 11, 11, 12, 12, 12});
  for (const Words& result : results) EXPECT_EQ(result, expected);
}

TEST(Nccl, IsPartOfGraphs) {
  const auto results = on_ranks(2, [](ncclComm_t c, int rank) {
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamDefault);
    uint32_t* const sum = upload({static_cast<uint32_t>(1 + rank)});
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    require(ncclAllReduce(sum, sum, 1, ncclUint32, ncclSum, c, stream));
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream, &graph);
    if (download(sum, 1) != Words{static_cast<uint32_t>(1 + rank)})
      throw std::runtime_error("it ran when it was captured");
    cudaGraphExec_t executable = nullptr;
    cudaGraphInstantiate(&executable, graph, 0);
    for (int i = 0; i < 3; ++i) cudaGraphLaunch(executable, stream);
    cudaStreamSynchronize(stream);
    return download(sum, 1, stream);
  });
  for (const Words& result : results) EXPECT_EQ(result, Words{3 * 2 * 2});
}

// What one rank does otherwise than the others.
struct Odd {
  const char* name;
  std::function<void(ncclComm_t, uint32_t*, int rank)> call;
  const char* says;
};
TEST(Nccl, RefusesWhatRanksCallDifferently) {
  const std::vector<Odd> odds = {
      {"size",
       [](ncclComm_t c, uint32_t* x, int rank) {
         require(ncclAllReduce(x, x, rank == 0 ? 4 : 3, ncclUint32, ncclSum, c, nullptr));
       },
       "of 4 elements"},
      {"type",
       [](ncclComm_t c, uint32_t* x, int rank) {
         require(ncclAllReduce(x, x, 2, rank == 0 ? ncclUint32 : ncclUint64, ncclSum, c, nullptr));
       },
       "of type 5"},
      {"root",
       [](ncclComm_t c, uint32_t* x, int rank) {
         require(ncclBroadcast(x, x, 2, ncclUint32, rank, c, nullptr));
       },
       "root 1"},
      {"call",
       [](ncclComm_t c, uint32_t* x, int rank) {
         if (rank == 0) require(ncclAllReduce(x, x, 2, ncclUint32, ncclSum, c, nullptr));
         if (rank == 1) require(ncclBroadcast(x, x, 2, ncclUint32, 0, c, nullptr));
       },
       "rank 1 ncclBroadcast"},
      {"graph",
       [](ncclComm_t c, uint32_t* x, int rank) {
         cudaStream_t stream = nullptr;
         cudaStreamCreateWithFlags(&stream, cudaStreamDefault);
         if (rank == 0) cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
         static_cast<void>(ncclAllReduce(x, x, 2, ncclUint32, ncclSum, c, stream));
         if (rank == 0) {
           cudaGraph_t graph = nullptr;
           cudaStreamEndCapture(stream, &graph);
           cudaGraphExec_t executable = nullptr;
           cudaGraphInstantiate(&executable, graph, 0);
           cudaGraphLaunch(executable, stream);
         }
         require(ncclInvalidUsage);  // with what the call has said
       },
       "in a graph"}};
  for (const Odd& odd : odds) {
    try {
      on_ranks(2, [&](ncclComm_t c, int rank) {
        odd.call(c, upload({1, 2, 3, 4}), rank);
        return Words{};
      });
      ADD_FAILURE() << odd.name << " was not refused";
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find(odd.says), std::string::npos)
          << odd.name << ": " << error.what();
    }
  }
}

TEST(Nccl, RefusesRanksThatDoNotFitTogether) {
  ::setenv("SIMT_DEVICES", "4", 1);  // NOLINT(concurrency-mt-unsafe)
  const auto says = [](const std::function<void(fmp::Communicator&, ncclUniqueId)>& body) {
    try {
      ProcessRanks::run(2, [&](fmp::Communicator& all) {
        body(all, id_of_first(all));
        return Words{};
      });
      return std::string();
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
  };
  ncclComm_t c = nullptr;
  EXPECT_EQ(says([&](fmp::Communicator& all, ncclUniqueId id) {
              require(ncclCommInitRank(&c, 2, id, all.rank()));
            }),
            "Duplicate GPU detected: rank 0 and rank 1 both on device 0");
  EXPECT_EQ(says([&](fmp::Communicator& all, ncclUniqueId id) {
              cudaSetDevice(all.rank());
              require(ncclCommInitRank(&c, 2, id, 0));
            }),
            "a rank that is there already");
  EXPECT_EQ(says([&](fmp::Communicator& all, ncclUniqueId id) {
              cudaSetDevice(all.rank());
              require(ncclCommInitRank(&c, all.rank() == 0 ? 2 : 3, id, all.rank()));
            }),
            "another number of ranks than those that came before");
}

class NcclTest : public RuntimeTest {
 protected:
  NcclTest() {
    ncclUniqueId id{};
    EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    EXPECT_EQ(ncclCommInitRank(&communicator, 1, id, 0), ncclSuccess);
    words = upload(Words{1, 2, 3, 4});
  }
  ~NcclTest() override {
    if (communicator != nullptr) ncclCommDestroy(communicator);
  }
  // What the call says that all reduces go through.
  std::string sum(const void* send, void* receive, size_t count, ncclDataType_t type = ncclUint32,
                  ncclRedOp_t operation = ncclSum, cudaStream_t stream = nullptr) const {
    const ncclResult_t result =
        ncclAllReduce(send, receive, count, type, operation, communicator, stream);
    return result == ncclSuccess ? "" : ncclGetLastError(communicator);
  }
  ncclComm_t communicator = nullptr;
  uint32_t* words;
};

TEST_F(NcclTest, RefusesEachWrongCall) {
  uint32_t host[4] = {};
  auto* const never_written = uninitialised<uint32_t>(4);
  EXPECT_EQ(sum(words, words, 4), "");
  EXPECT_EQ(sum(words, never_written, 4), "");
  EXPECT_EQ(sum(host, words, 4), "what is sent is not in device memory");
  EXPECT_EQ(sum(words, host, 4), "what is received is not in device memory");
  EXPECT_EQ(sum(words, words, 5), "what is sent: its 20 bytes leave the allocation");
  EXPECT_EQ(sum(words, words + 1, 3), "what is received overlaps what is sent");
  EXPECT_EQ(sum(uninitialised<uint32_t>(4), words, 4),
            "what is sent holds memory that was never written");
  EXPECT_EQ(sum(words + 1, words + 1, 1, ncclUint64), "what is sent: not aligned to its elements");
  EXPECT_EQ(sum(words, words, 0), "nothing is sent");
  EXPECT_EQ(sum(words, words, 4, ncclFloat32), "type: ncclUint32 or ncclUint64 expected");
  EXPECT_EQ(sum(words, words, 4, ncclUint32, ncclMax), "operation: ncclSum expected");
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamDestroy(stream);
  EXPECT_EQ(sum(words, words, 4, ncclUint32, ncclSum, stream), "no such stream");
  EXPECT_NE(ncclBroadcast(words, words, 4, ncclUint32, 1, communicator, nullptr), ncclSuccess);
  EXPECT_STREQ(ncclGetLastError(communicator), "no such root");
  EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
  EXPECT_STREQ(ncclGetLastError(communicator), "ncclGroupEnd: not in a group call");
}

TEST_F(NcclTest, RefusesWorkOfAnotherStreamWithNoEventBetween) {
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaDeviceSynchronize();
  cudaMemsetAsync(words, 1, 16, streams[0]);
  EXPECT_NE(sum(words, words, 4, ncclUint32, ncclSum, streams[1]).find("race"), std::string::npos);
  for (const cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

TEST_F(NcclTest, RefusesCallsAfterTheEnd) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamDefault);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  EXPECT_EQ(sum(words, words, 4, ncclUint32, ncclSum, stream), "");
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphExec_t executable = nullptr;
  cudaGraphInstantiate(&executable, graph, 0);
  EXPECT_EQ(ncclCommDestroy(communicator), ncclSuccess);
  EXPECT_EQ(sum(words, words, 4), "no such communicator");
  EXPECT_NE(cudaGraphLaunch(executable, stream), cudaSuccess);
  EXPECT_EQ(ncclCommDestroy(communicator), ncclInvalidArgument);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  communicator = nullptr;
  EXPECT_EQ(ncclCommDestroy(nullptr), ncclSuccess);
}

}  // namespace
