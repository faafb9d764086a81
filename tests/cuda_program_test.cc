// SPDX-License-Identifier: MIT
// fmp_radioml itself on the CUDA backend, linked with the host runtime of tests/simt: that --device
// picks it, a whole run writes what it should, --resume goes on, and tools/profile runs it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/synth/hdf5_writer.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

constexpr int kClasses = 2, kLength = 1024, kFramesPerClass = 10;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class CudaProgramTest : public testing::Test {
 protected:
  CudaProgramTest()
      : root_(fs::temp_directory_path() / ("fmp_cuda_program_" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
    synth::RadioMlWriter writer(root_ / "data.h5", kClasses * kFramesPerClass, kClasses, 0);
    for (int label = 0; label < kClasses; ++label) {
      for (int i = 0; i < kFramesPerClass; ++i) {
        std::vector<float> frame;
        for (int t = 0; t < kLength; ++t) {
          const float turn = 0.3F * static_cast<float>((label + 1) * t) + static_cast<float>(i);
          frame.push_back(std::cos(turn));
          frame.push_back(std::sin(turn));
        }
        writer.append(frame, label, 10);
      }
    }
    writer.finish();
  }
  ~CudaProgramTest() override { fs::remove_all(root_); }

  // Exit code; what it prints is in log_.
  int run(const std::string& command) {
    const std::string file = (root_ / "log").string();
    const int status = std::system((command + " >" + file + " 2>&1").c_str());
    log_ = read(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string flags(const std::string& out) const {
    return " --data " + (root_ / "data.h5").string() + " --out " + (root_ / out).string() +
           " --bits 4 --filters 2,2,2,2,2 --dense 4 --accuracy 0.5x --p 0.6 --p-threshold 0.5"
           " --epochs 1 --batch 6 --lr 0.01 --validation-fraction 0.3 --sparse-threshold 0.5"
           " --threads 1";
  }
  nlohmann::json summary(const std::string& out) const {
    return nlohmann::json::parse(read(root_ / out / "summary.json"));
  }

  fs::path root_;
  std::string log_;
};

TEST_F(CudaProgramTest, RunsAndGoesOnOnTheDevice) {
  const std::string program = FMP_PROGRAM;
  ASSERT_EQ(run(program + flags("whole")), 0) << log_;  // --device auto
  EXPECT_NE(log_.find("device    CUDA, host runtime"), std::string::npos) << log_;
  EXPECT_NE(log_.find("device memory: at most"), std::string::npos) << log_;
  const nlohmann::json whole = summary("whole");
  EXPECT_EQ(whole.at("options").at("device"), "cuda");
  EXPECT_GT(whole.at("timing").at("peak_device_memory_mb").get<double>(), 0.0);
  EXPECT_GE(whole.at("rounds").at("accepted").get<int>(), 1) << log_;

  ASSERT_NE(run(program + flags("parts") + " --time-limit 0.001"), 2) << log_;
  EXPECT_EQ(summary("parts").at("status"), "time_limit");
  ASSERT_EQ(run(program + " --time-limit 0 --resume " + (root_ / "parts").string()), 0) << log_;
  for (const char* name : {"baseline.fmp", "result.fmp", "model.onnx"}) {
    EXPECT_TRUE(read(root_ / "whole" / name) == read(root_ / "parts" / name)) << name;
  }

  ASSERT_EQ(run(program + flags("cpu") + " --device cpu"), 0) << log_;
  EXPECT_NE(log_.find("device    CPU, "), std::string::npos) << log_;
  EXPECT_TRUE(summary("cpu").at("timing").at("peak_device_memory_mb").is_null());
}

TEST_F(CudaProgramTest, ProfileRunsNsysAroundIt) {
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
