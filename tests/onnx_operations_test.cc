// SPDX-License-Identifier: MIT
// Every ONNX operation in the forms of operator sets 7 to 22, against ONNX Runtime and qonnx
// (fixtures/make_operation_fixtures.py): the same values and costs, or a refusal with its reason.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "framework/error.h"
#include "framework/onnx/evaluate.h"
#include "framework/onnx/graph_cost.h"
#include "tests/base64.h"

namespace fmp::onnx {
namespace {

namespace fs = std::filesystem;

std::vector<float> flat(const nlohmann::json& rows) {
  std::vector<float> values;
  for (const nlohmann::json& row : rows) {
    for (const nlohmann::json& value : row) values.push_back(value.get<float>());
  }
  return values;
}

class OnnxOperations : public testing::Test {
 protected:
  void SetUp() override {
    std::ifstream file(fs::path(FMP_FIXTURES_DIR) / "operations.json");
    fixture_ = nlohmann::json::parse(file);
    model_ = fs::path(testing::TempDir()) / (std::to_string(getpid()) + "operation.onnx");
  }
  void TearDown() override { fs::remove(model_); }

  Graph graph_of(const nlohmann::json& entry, Reading reading) const {
    const std::string bytes = from_base64(entry.at("model").get<std::string>());
    std::ofstream(model_, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return load(model_, reading);
  }

  nlohmann::json fixture_;
  fs::path model_;
};

TEST_F(OnnxOperations, GiveWhatOnnxRuntimeAndQonnxGive) {
  const std::vector<float> x = flat(fixture_.at("x"));
  int compared = 0;
  for (const nlohmann::json& entry : fixture_.at("cases")) {
    if (!entry.contains("y")) continue;
    const std::string name = entry.at("name").get<std::string>();
    try {
      const std::vector<float> found = GraphEvaluator(graph_of(entry, Reading::kValues)).run(x, 1);
      const std::vector<float> expected = flat(entry.at("y"));
      ASSERT_EQ(found.size(), expected.size()) << name;
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], 2e-6F + 2e-6F * std::abs(expected[i]))
            << name << ", value " << i;
      }
    } catch (const Error& error) {
      ADD_FAILURE() << name << ": " << error.what();
    }
    ++compared;
  }
  EXPECT_GT(compared, 400);
}

TEST_F(OnnxOperations, CostWhatQonnxCounts) {
  int compared = 0;
  for (const nlohmann::json& entry : fixture_.at("cases")) {
    if (!entry.contains("bit_ops")) continue;
    const std::string name = entry.at("name").get<std::string>();
    const NetworkCost cost = inference_cost(graph_of(entry, Reading::kShapes));
    EXPECT_EQ(static_cast<double>(cost.bit_ops()), entry.at("bit_ops").get<double>()) << name;
    EXPECT_EQ(static_cast<double>(cost.bit_mem()), entry.at("bit_mem").get<double>()) << name;
    EXPECT_EQ(cost.unsupported, entry.at("unsupported").get<std::vector<std::string>>()) << name;
    ++compared;
  }
  EXPECT_GT(compared, 15);
}

TEST_F(OnnxOperations, AreRefusedByTheRightName) {
  int refused = 0;
  for (const nlohmann::json& entry : fixture_.at("cases")) {
    if (!entry.contains("refused")) continue;
    const std::string name = entry.at("name").get<std::string>();
    try {
      graph_of(entry, Reading::kValues);
      ADD_FAILURE() << name << " was read";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(entry.at("refused").get<std::string>()), std::string::npos)
          << name << ": " << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
    ++refused;
  }
  EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace fmp::onnx
