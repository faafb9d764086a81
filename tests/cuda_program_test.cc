// SPDX-License-Identifier: MIT
// The whole program on the host runtime, as a user runs it: the files it leaves, a kill and the way
// on, exit codes; beside the same run on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "framework/inference/model_file.h"
#include "tests/program_fixture.h"

namespace fmp {
namespace {

class CudaProgramTest : public testing::Test {
 protected:
  CudaProgramTest()
      : root_(fs::temp_directory_path() / ("fmp_cuda_program_" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
  }
  ~CudaProgramTest() override { fs::remove_all(root_); }

  // One step an epoch, and sparse wherever a weight is zero: a frame has 1,024 samples, and a step
  // takes a second.
  Arguments flags(const std::string& device) const {
    return {"--data=" + (root_ / "data.h5").string(),
            "--out=" + (root_ / device).string(),
            "--device=" + device,
            "--threads=1",
            "--bits=4",
            "--filters=3,3",
            "--dense=5",
            "--accuracy=0.9x",
            "--p=0.7",
            "--p-threshold=0.4",
            "--validation-fraction=0.4",
            "--epochs=1",
            "--lr=0.05",
            "--batch=32",
            "--sparse-threshold=1",
            "--seed=3"};
  }
  Process start(const Arguments& arguments) const {
    return {FMP_PROGRAM, arguments, root_ / "log"};
  }
  std::string log() const { return read(root_ / "log"); }

  fs::path root_;
};

// Of a round, what is the same on a device: sums of floats are not, to the last bits.
nlohmann::json decisions(const fs::path& run) {
  nlohmann::json rounds = nlohmann::json::array();
  for (const nlohmann::json& round : rounds_of(run)) {
    nlohmann::json decided = {{"plan", round.at("timing").at("plan")}};
    for (const char* key : {"method", "p", "outcome", "validation_accuracy", "weights_removed",
                            "channels", "network"})
      decided[key] = round.at(key);
    rounds.push_back(std::move(decided));
  }
  return rounds;
}

TEST_F(CudaProgramTest, KilledAndResumedItEndsAsTheCpuDoes) {
  constexpr int kFramesPerBlock = 10;
  write_data(root_ / "data.h5", kFramesPerBlock, 1);
  ASSERT_EQ(start(flags("cpu")).wait(), 0) << log();
  const fs::path expected = root_ / "cpu", actual = root_ / "cuda";

  Process process = start(flags("cuda"));
  while (!fs::exists(actual / "checkpoint.fmp") &&
         !process.wait_for(std::chrono::milliseconds(10))) {
  }
  process.finish_with(SIGKILL);
  ASSERT_EQ(start({"--resume=" + actual.string()}).wait(), 0) << log();

  for (const fs::directory_entry& file : fs::directory_iterator(expected))
    EXPECT_TRUE(fs::exists(actual / file.path().filename())) << file.path();
  int accepted = 0, rejected = 0;
  for (const nlohmann::json& round : rounds_of(expected))
    ++(round.at("accepted").get<bool>() ? accepted : rejected);
  EXPECT_GE(accepted, 2) << log();
  EXPECT_GE(rejected, 1) << log();
  EXPECT_EQ(decisions(actual).dump(1), decisions(expected).dump(1));
  for (const char* name : {"baseline.fmp", "result.fmp"}) {
    const Network a = load_model(actual / name), b = load_model(expected / name);
    ASSERT_EQ(a.layers().size(), b.layers().size());
    for (size_t i = 0; i < a.layers().size(); ++i)
      EXPECT_EQ(a.layers()[i].weight.mask, b.layers()[i].weight.mask) << name << " layer " << i;
  }
  const auto summary_of = [](const fs::path& run) {
    return nlohmann::json::parse(read(run / "summary.json"));
  };
  const nlohmann::json on_device = summary_of(actual), on_cpu = summary_of(expected);
  EXPECT_EQ(on_device.at("status"), on_cpu.at("status"));
  for (const char* network : {"baseline", "result"})
    EXPECT_EQ(on_device.at(network).at("network"), on_cpu.at(network).at("network"));
  EXPECT_EQ(on_device.at("timing").at("sessions"), 2) << "it was killed in the middle";
}

TEST_F(CudaProgramTest, ExitCodesTellDataFromFlags) {
  Arguments arguments = flags("cuda");
  EXPECT_EQ(start(arguments).wait(), 1) << "there is no data";
  EXPECT_EQ(std::ranges::count(log(), '\n'), 1) << log();
  arguments.push_back("--bits=1");
  EXPECT_EQ(start(arguments).wait(), 2);
}

}  // namespace
}  // namespace fmp
