// SPDX-License-Identifier: MIT
// Runs the tool inference_cost: what it prints, writes and exits with.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace fmp {
namespace {

namespace fs = std::filesystem;

const std::string kTool = FMP_BINARY_DIR "/tools/inference_cost";
const std::string kBranches = FMP_FIXTURES_DIR "/onnx_branches.onnx";

struct Result {
  int exit_code = -1;
  std::string output;  // both streams
};

Result run(const std::string& arguments) {
  Result result;
  FILE* pipe = ::popen((kTool + " " + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  std::array<char, 4096> buffer;
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    result.output.append(buffer.data(), count);
  }
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

TEST(InferenceCostTool, WritesTheTotalsThatQonnxCounts) {
  const fs::path json = fs::path(testing::TempDir()) / (std::to_string(::getpid()) + "cost.json");
  const Result result =
      run(kBranches + " --brevitas-domain quantized --json '" + json.string() + "'");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  std::ifstream written(json), expected(FMP_FIXTURES_DIR "/onnx.json");
  const nlohmann::json ours = nlohmann::json::parse(written);
  const nlohmann::json qonnx = nlohmann::json::parse(expected).at("branches");
  EXPECT_EQ(ours.at("total_bops").get<double>(), qonnx.at("bit_ops").get<double>());
  EXPECT_EQ(ours.at("total_mem_w_bits").get<double>(), qonnx.at("bit_mem").get<double>());
  EXPECT_NE(result.output.find("normalized cost"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("GlobalMaxPool"), std::string::npos) << result.output;
  fs::remove(json);
}

// As in the published figures: FLOAT32 throughout, nothing discounted, dense weights not counted.
TEST(InferenceCostTool, TakesBrevitasQuantizersForFloatUnlessTold) {
  const Result as_published = run(kBranches),
               quantized = run(kBranches + " --brevitas-domain quantized");
  EXPECT_EQ(as_published.output.find("SCALEDINT"), std::string::npos) << as_published.output;
  EXPECT_NE(as_published.output.find("note: "), std::string::npos) << as_published.output;
  EXPECT_NE(quantized.output.find("SCALEDINT6"), std::string::npos) << quantized.output;
  EXPECT_EQ(quantized.output.find("note: "), std::string::npos) << quantized.output;
}

TEST(InferenceCostTool, FailsInOneLine) {
  for (const auto& [arguments, exit_code] : {std::pair{"", 2},
                                             {"--brevitas-domain=maybe x.onnx", 2},
                                             {"--unknown x.onnx", 2},
                                             {"/nowhere/model.onnx", 1},
                                             {FMP_FIXTURES_DIR "/README.md", 1}}) {
    const Result result = run(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments << ": " << result.output;
    EXPECT_TRUE(result.output.starts_with("error: ")) << result.output;
    EXPECT_EQ(std::ranges::count(result.output, '\n'), 1) << result.output;
  }
}

}  // namespace
}  // namespace fmp
