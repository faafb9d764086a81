// SPDX-License-Identifier: MIT
// tools/profile as it is run, with an nsys that writes down what it is asked for.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace fmp {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class CudaProfileTest : public testing::Test {
 protected:
  CudaProfileTest()
      : root_(fs::temp_directory_path() / ("fmp_cuda_profile_" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
  }
  ~CudaProfileTest() override { fs::remove_all(root_); }

  // Exit code; what it prints is in log_.
  int run(const std::string& command) {
    const std::string file = (root_ / "log").string();
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the test has one thread
    const int status = std::system((command + " >" + file + " 2>&1").c_str());
    log_ = read(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  fs::path root_;
  std::string log_;
};

TEST_F(CudaProfileTest, ProfileRunsNsysAroundIt) {
  const fs::path bin = root_ / "bin", calls = root_ / "calls";
  fs::create_directories(bin);
  std::ofstream(bin / "nsys") << "#!/bin/sh\necho \"graph=$FMP_CUDA_GRAPH $*\" >> "
                              << calls.string() << "\n";
  fs::permissions(bin / "nsys", fs::perms::owner_all);
  const std::string profile = FMP_SOURCE_DIR "/tools/profile";
  const std::string environment = "FMP_RADIOML=" FMP_PROGRAM " PATH=" + bin.string() + ":$PATH ";
  ASSERT_EQ(run(environment + profile + " --data F.h5 --bits 4"), 0) << log_;
  const std::string text = read(calls);
  for (const char* part :
       {"graph=off profile", "--trace cuda,nvtx", "--device cuda --data F.h5 --bits 4", "stats",
        "cuda_gpu_kern_sum", "profile.nsys-rep"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in\n" << text;
  }
  fs::remove(calls);
  ASSERT_EQ(run(environment + profile + " --graph --data F.h5"), 0) << log_;
  EXPECT_NE(read(calls).find("graph=on profile"), std::string::npos);
  EXPECT_NE(read(calls).find("--cuda-graph-trace=node"), std::string::npos);
  EXPECT_EQ(run(environment + profile), 2);
  EXPECT_NE(log_.find("usage: tools/profile"), std::string::npos) << log_;
  EXPECT_EQ(run("FMP_RADIOML=/nowhere PATH=" + bin.string() + ":$PATH " + profile + " --data F"),
            1);
  EXPECT_NE(log_.find("/nowhere"), std::string::npos) << log_;
}

}  // namespace
}  // namespace fmp
