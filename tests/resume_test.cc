// SPDX-License-Identifier: MIT
// Runs the program itself on a small file: the same flags must give the same results, bit for bit,
// for any number of threads and however often a run is killed and resumed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "framework/network/cost.h"
#include "framework/onnx/export.h"
#include "framework/onnx/import.h"
#include "tests/chain_of.h"
#include "tests/program_fixture.h"

namespace fmp {
namespace {

constexpr int kFramesPerBlock = 40;
constexpr const char* kProgram = FMP_BINARY_DIR "/experiments/fmp_radioml";

void expect_same_results(const fs::path& a, const fs::path& b) {
  EXPECT_EQ(reproducible(nlohmann::json::parse(read(a / "summary.json"))),
            reproducible(nlohmann::json::parse(read(b / "summary.json"))));
  EXPECT_EQ(reproducible(rounds_of(a)), reproducible(rounds_of(b)));
  for (const char* name : {"result.fmp", "baseline.fmp", "model.onnx", "model_cost.json"})
    EXPECT_TRUE(read(a / name) == read(b / name)) << name << " differs";
}

class ResumeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    root_ = fs::temp_directory_path() / ("fmp_resume_" + std::to_string(::getpid()));
    fs::create_directories(root_);
    write_data(root_ / "data.h5", kFramesPerBlock, 1);
    const Clock::time_point begin = Clock::now();
    Process process(kProgram, flags("reference", 1), root_ / "reference.log");
    ASSERT_EQ(process.wait(), 0) << read(root_ / "reference.log");
    reference_time_ = Clock::now() - begin;
  }
  static void TearDownTestSuite() { fs::remove_all(root_); }

  static Arguments flags(const std::string& out, int threads) {
    return {"--data=" + (root_ / "data.h5").string(),
            "--out=" + (root_ / out).string(),
            "--threads=" + std::to_string(threads),
            "--device=cpu",
            "--bits=4",
            "--filters=8,8,8,8,8",
            "--dense=16",
            "--accuracy=0.9x",
            "--p-methods=structured-l1,unstructured-l1",
            "--p=0.4",
            "--p-threshold=0.15",
            "--validation-fraction=0.25",
            "--epochs=6",
            "--lr=0.01",
            "--lr-patience=0",
            "--batch=16",
            "--seed=3"};
  }
  // The same from a network in a file, without these flags, too.
  static Arguments flags_from(const fs::path& file, const std::string& out,
                              std::vector<std::string> without) {
    without.insert(without.end(), {"--bits", "--filters", "--dense"});
    Arguments arguments = flags(out, 2);
    std::erase_if(arguments, [&](const std::string& flag) {
      return std::ranges::any_of(without,
                                 [&](const std::string& name) { return flag.starts_with(name); });
    });
    arguments.push_back("--init=" + file.string());
    return arguments;
  }
  static Arguments resume(const std::string& out) { return {"--resume=" + (root_ / out).string()}; }
  static Process start(const Arguments& arguments, const std::string& name) {
    return Process(kProgram, arguments, root_ / (name + ".log"));
  }
  static int run(const Arguments& arguments, const std::string& name) {
    return start(arguments, name).wait();
  }
  // Stops at once and goes on.
  static void run_in_pieces(Arguments arguments, const std::string& name) {
    arguments.emplace_back("--time-limit=0.001");
    ASSERT_EQ(run(arguments, name), 0) << log(name);
    arguments = resume(name);
    arguments.emplace_back("--time-limit=0");
    ASSERT_EQ(run(arguments, name), 0) << log(name);
  }
  static std::string log(const std::string& name) { return read(root_ / (name + ".log")); }

  static fs::path root_;
  static Clock::duration reference_time_;
};

fs::path ResumeTest::root_;
Clock::duration ResumeTest::reference_time_;

TEST_F(ResumeTest, TheReferenceExercisesTheFeedback) {
  int accepted = 0, rejected = 0;
  for (const nlohmann::json& round : rounds_of(root_ / "reference"))
    ++(round.at("accepted").get<bool>() ? accepted : rejected);
  EXPECT_GE(accepted, 3) << log("reference");
  EXPECT_GE(rejected, 2) << log("reference");
}

TEST_F(ResumeTest, TheOnnxFileIsTheResult) {
  const Network network = onnx::import_network(root_ / "reference" / "model.onnx");
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "reference" / "summary.json"));
  EXPECT_EQ(network.weights_total(), summary.at("result").at("network").at("weights"));
  EXPECT_EQ(network.weights_alive(), summary.at("result").at("network").at("weights_alive"));
  EXPECT_EQ(to_finn_json(inference_cost(network)),
            nlohmann::json::parse(read(root_ / "reference" / "model_cost.json")));
  EXPECT_FALSE(fs::exists(root_ / "reference" / "model.onnx.unverified"));
}

// The result of one run as the start of another: it is there at once, and zeros stay zero.
TEST_F(ResumeTest, GoesOnFromAnOnnxFile) {
  const fs::path file = root_ / "reference" / "model.onnx";
  ASSERT_EQ(run(flags_from(file, "init", {"--p-methods"}), "init"), 0) << log("init");
  const Network start = onnx::import_network(file),
                result = onnx::import_network(root_ / "init" / "model.onnx");
  const nlohmann::json first = rounds_of(root_ / "init").front();
  EXPECT_EQ(first.at("network").at("weights_alive"), start.weights_alive());
  EXPECT_EQ(first.at("network").at("weights"), start.weights_total());
  EXPECT_LT(result.weights_alive(), start.weights_alive());
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "init" / "summary.json"));
  EXPECT_EQ(summary.at("options").at("init"), file.string());
}

// Where it holds the accuracy, it is pruned at once.
TEST_F(ResumeTest, GoesOnAtOnceFromAnOnnxFileThatHoldsTheAccuracy) {
  const double reached = nlohmann::json::parse(read(root_ / "reference" / "summary.json"))
                             .at("result")
                             .at("accuracy")
                             .at("validation");
  const auto with_init = [&](const std::string& out) {
    Arguments arguments = flags_from(root_ / "reference" / "model.onnx", out, {"--accuracy"});
    arguments.push_back(fmt::format("--accuracy={}", reached));
    return arguments;
  };
  ASSERT_EQ(run(with_init("holds"), "holds"), 0) << log("holds");
  const std::vector<nlohmann::json> rounds = rounds_of(root_ / "holds");
  EXPECT_EQ(rounds.front().at("accepted"), true);
  EXPECT_EQ(rounds.front().at("epochs"), 0);
  EXPECT_EQ(rounds.front().at("as_given").at("validation_accuracy"), reached);
  EXPECT_EQ(rounds.front().at("criterion_accuracy"), reached);
  ASSERT_GE(rounds.size(), 2U);
  EXPECT_TRUE(rounds.at(1).at("as_given").is_null());
  const nlohmann::json baseline =
      nlohmann::json::parse(read(root_ / "holds" / "summary.json")).at("baseline");
  EXPECT_EQ(baseline.at("accuracy").at("validation"), reached);
  EXPECT_TRUE(baseline.at("accuracy").at("train").is_null());

  run_in_pieces(with_init("holds_parts"), "holds_parts");
  expect_same_results(root_ / "holds", root_ / "holds_parts");
  // Also where that is the end.
  Arguments cheap = with_init("holds_cheap");
  cheap.emplace_back("--until-cost=100");
  ASSERT_EQ(run(cheap, "holds_cheap"), 0) << log("holds_cheap");
  EXPECT_EQ(rounds_of(root_ / "holds_cheap").size(), 1U);
  EXPECT_EQ(run(resume("holds_cheap"), "holds_cheap"), 0) << log("holds_cheap");
}

// Signed activations and another scale of the input, in pieces, with bits and weights less.
TEST_F(ResumeTest, ANetworkFromElsewhereStaysWhatItIs) {
  Network network = onnx::import_network(root_ / "reference" / "model.onnx");
  NetworkConfig config = network.config();
  std::vector<Layer> layers = network.layers();
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    config.layers[i].smallest_code = i % 3 == 0 ? -8 : i % 3 == 1 ? -7 : 0;
    layers[i].smallest_code = config.layers[i].smallest_code;
  }
  config.input_scale = 0.21F;
  network.replace(config, std::move(layers));
  const fs::path file = root_ / "elsewhere.onnx";
  onnx::export_network(network, file);
  const auto with_init = [&](const std::string& out) {
    Arguments arguments = flags_from(file, out, {"--p-", "--epochs", "--accuracy"});
    for (const char* flag : {"--p-methods=fewer-bits,lamp", "--p-methods-order=alternate",
                             "--p-threshold=0.2", "--epochs=2", "--accuracy=0.4x"})
      arguments.emplace_back(flag);
    return arguments;
  };
  ASSERT_EQ(run(with_init("whole"), "whole"), 0) << log("whole");
  EXPECT_THAT(log("whole"), testing::HasSubstr("input 4 (scale 0.21)"));
  run_in_pieces(with_init("parts"), "parts");
  expect_same_results(root_ / "whole", root_ / "parts");

  const ChainConfig result =
      chain_of(onnx::import_network(root_ / "whole" / "model.onnx").config());
  EXPECT_EQ(result.input_scale, config.input_scale);
  for (size_t i = 0; i < result.act_bits.size(); ++i) {
    const int half = 1 << (result.act_bits[i] - 1);
    EXPECT_EQ(result.smallest_codes[i], i % 3 == 0 ? -half : i % 3 == 1 ? 1 - half : 0);
  }
  EXPECT_THAT(result.act_bits, testing::Contains(testing::Lt(4)));
  const nlohmann::json described =
      nlohmann::json::parse(read(root_ / "whole" / "summary.json")).at("result").at("network");
  EXPECT_FLOAT_EQ(described.at("input_scale").get<float>(), 0.21F);
  EXPECT_EQ(described.at("layers").at(1).at("signed_inputs"), true);
  EXPECT_EQ(described.at("layers").at(3).at("signed_inputs"), false);
  EXPECT_THAT(read(root_ / "whole" / "report.html"), testing::HasSubstr(" signed"));
}

// The layers of --network FILE are the run's: the file may be gone.
TEST_F(ResumeTest, ANetworkThatBranchesGoesOn) {
  const fs::path file = root_ / "branches.json";
  std::ofstream(file) << R"({"layers": [
      {"type": "conv", "name": "stem", "outputs": 8, "kernel": 5, "stride": 2, "pool": 4},
      {"type": "conv", "name": "left", "outputs": 8, "kernel": 3, "signed": true},
      {"type": "add", "reads": ["left", "stem"], "pool": 2},
      {"type": "conv", "outputs": 4, "kernel": 1, "stride": 2, "reads": ["stem"]},
      {"type": "concat", "reads": ["conv3", "add1"]},
      {"type": "average_pool", "window": 2},
      {"type": "dense", "outputs": 9}]})";
  const auto with_network = [&](const std::string& out) {
    Arguments arguments = flags(out, 2);
    std::erase_if(arguments, [](const std::string& flag) {
      return flag.starts_with("--filters") || flag.starts_with("--dense") ||
             flag.starts_with("--p-methods") || flag.starts_with("--p-threshold") ||
             flag.starts_with("--epochs");
    });
    for (const std::string& flag : {"--network=" + file.string(),
                                    std::string("--p-methods=fewer-bits,structured-l1,cost-taylor"),
                                    std::string("--p-threshold=0.2"), std::string("--epochs=2")})
      arguments.push_back(flag);
    return arguments;
  };
  ASSERT_EQ(run(with_network("branches"), "branches"), 0) << log("branches");
  Arguments arguments = with_network("branches-in-pieces");
  arguments.emplace_back("--time-limit=0.001");  // after an epoch
  ASSERT_EQ(run(arguments, "branches-in-pieces"), 0) << log("branches-in-pieces");
  fs::remove(file);
  arguments = resume("branches-in-pieces");
  arguments.emplace_back("--time-limit=0");
  ASSERT_EQ(run(arguments, "branches-in-pieces"), 0) << log("branches-in-pieces");
  expect_same_results(root_ / "branches", root_ / "branches-in-pieces");
  const Network result = onnx::import_network(root_ / "branches" / "model.onnx");
  EXPECT_FALSE(result.config().is_chain());
  EXPECT_LT(result.weights_alive(), result.weights_total());
  // Steps that took bits were kept; which ones were undone differs among instruction sets.
  double cost = 0;
  int kept = 0, undone = 0;
  for (const nlohmann::json& round : rounds_of(root_ / "branches")) {
    const bool accepted = round.at("accepted");
    if (accepted) cost = round.at("network").at("cost");
    kept += accepted && round.at("method") == "fewer-bits";
    undone += !accepted;
  }
  EXPECT_GE(kept, 1);
  EXPECT_GE(undone, 1);
  EXPECT_EQ(inference_cost(result).normalized(), cost);
}

TEST_F(ResumeTest, AnyNumberOfThreadsGivesTheSameBits) {
  for (const int threads : {2, 3}) {
    const std::string name = "threads" + std::to_string(threads);
    ASSERT_EQ(run(flags(name, threads), name), 0) << log(name);
    expect_same_results(root_ / "reference", root_ / name);
  }
}

TEST_F(ResumeTest, KilledAtRandomTimes) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::cout << "seed " << seed << '\n';
  std::mt19937 engine(seed);
  constexpr int kKills = 12;
  const double seconds = std::chrono::duration<double>(reference_time_).count();
  std::uniform_real_distribution<double> time_of_death(0, seconds / 3);
  for (int attempt = 0;; ++attempt) {
    const bool begun = fs::exists(root_ / "killed" / "run.json");
    Process process = start(begun ? resume("killed") : flags("killed", 1 + attempt % 3), "killed");
    const auto patience = std::chrono::duration<double>(attempt < kKills ? time_of_death(engine)
                                                                         : 100 * seconds + 100);
    if (process.wait_for(std::chrono::duration_cast<Clock::duration>(patience))) {
      ASSERT_EQ(process.exit_code(), 0) << log("killed");
      break;
    }
    process.finish_with(SIGKILL);
    ASSERT_LE(attempt, kKills) << log("killed");
  }
  expect_same_results(root_ / "reference", root_ / "killed");
}

TEST_F(ResumeTest, StopsAtTheTimeLimitAndGoesOn) {
  Arguments arguments = flags("limited", 2);
  arguments.push_back("--time-limit=0.001");
  run(arguments, "limited");
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "limited" / "summary.json"));
  EXPECT_EQ(summary.at("status"), "time_limit");
  EXPECT_EQ(summary.at("rounds").at("epochs"), 1);
  EXPECT_FALSE(summary.at("result").is_null());
  arguments = resume("limited");
  arguments.push_back("--time-limit=0");
  ASSERT_EQ(run(arguments, "limited"), 0) << log("limited");
  expect_same_results(root_ / "reference", root_ / "limited");
}

// The gradients that the methods choose by are in the checkpoint, and so are whose turn it is and
// the bits of each layer.
TEST_F(ResumeTest, MethodsInTurnEndAtTheCost) {
  const auto with_cost = [](const std::string& out) {
    Arguments arguments = flags(out, 2);
    std::erase_if(arguments, [](const std::string& flag) {
      return flag.starts_with("--accuracy") || flag.starts_with("--epochs") ||
             flag.starts_with("--p-methods");
    });
    for (const char* flag :
         {"--until-cost=0.0012", "--epochs=2", "--p-methods-order=alternate", "--gradients=bf16",
          "--p-methods=cost-taylor,fewer-bits,cost-structured-taylor"})
      arguments.emplace_back(flag);
    return arguments;
  };
  ASSERT_EQ(run(with_cost("cost"), "cost"), 0) << log("cost");
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "cost" / "summary.json"));
  EXPECT_EQ(summary.at("status"), "finished");
  EXPECT_TRUE(summary.at("criterion").at("accuracy").is_null());
  EXPECT_EQ(summary.at("criterion").at("cost"), 0.0012);
  EXPECT_LE(summary.at("result").at("network").at("cost"), 0.0012);
  EXPECT_NE(summary.at("message").get<std::string>().find("at most the 0.0012"), std::string::npos)
      << summary.at("message");
  std::vector<std::string> methods;
  for (const nlohmann::json& round : rounds_of(root_ / "cost")) {
    EXPECT_TRUE(round.at("accepted")) << round;
    EXPECT_EQ(round.at("epochs"), 2);
    if (round.at("round") != 0) methods.push_back(round.at("method"));
  }
  ASSERT_GE(methods.size(), 3U);
  const std::array<std::string, 3> turns = {"cost-taylor", "fewer-bits", "cost-structured-taylor"};
  for (size_t i = 0; i < methods.size(); ++i) EXPECT_EQ(methods[i], turns[i % 3]);
  const Network network = onnx::import_network(root_ / "cost" / "model.onnx");
  EXPECT_THAT(chain_of(network.config()).weight_bits, testing::Contains(testing::Lt(4)));
  EXPECT_EQ(inference_cost(network).normalized(), summary.at("result").at("network").at("cost"));

  Arguments arguments = with_cost("pieces");
  for (std::string status = "time_limit"; status == "time_limit";) {
    arguments.emplace_back("--time-limit=0.001");  // ends after every epoch
    ASSERT_EQ(run(arguments, "pieces"), 0) << log("pieces");
    const nlohmann::json piece = nlohmann::json::parse(read(root_ / "pieces" / "summary.json"));
    status = piece.at("status");
    arguments = resume("pieces");
  }
  expect_same_results(root_ / "cost", root_ / "pieces");
}

// Layers with eight channels or more have dense kernels that sum in an order of their own: neither
// a threshold nor one that is changed on the way may choose between them and others.
TEST_F(ResumeTest, AnotherSparseThresholdGivesTheSameBits) {
  const auto with = [](const std::string& out, const std::string& threshold) {
    Arguments arguments = flags(out, 2);
    std::erase_if(arguments, [](const std::string& flag) {
      return flag.starts_with("--filters") || flag.starts_with("--epochs") ||
             flag.starts_with("--p-threshold") || flag.starts_with("--p-methods");
    });
    for (const char* flag : {"--filters=16,16", "--epochs=2", "--p-threshold=0.35"})
      arguments.emplace_back(flag);
    arguments.push_back("--sparse-threshold=" + threshold);
    return arguments;
  };
  ASSERT_EQ(run(with("dense", "0"), "dense"), 0) << log("dense");
  ASSERT_EQ(run(with("sparse", "1"), "sparse"), 0) << log("sparse");
  expect_same_results(root_ / "dense", root_ / "sparse");
  Arguments arguments = with("changed", "0");
  arguments.emplace_back("--time-limit=0.001");
  ASSERT_EQ(run(arguments, "changed"), 0) << log("changed");
  for (const char* threshold : {"1", "auto"}) {
    arguments = resume("changed");
    arguments.push_back(std::string("--sparse-threshold=") + threshold);
    arguments.push_back(threshold == std::string("1") ? "--time-limit=0.001" : "--time-limit=0");
    ASSERT_EQ(run(arguments, "changed"), 0) << log("changed");
  }
  expect_same_results(root_ / "dense", root_ / "changed");
}

// A rate that makes weights infinite ends the round, not the program, and leaves nothing behind.
TEST_F(ResumeTest, DivergenceIsReportedAndCanBeResumed) {
  Arguments arguments = flags("diverged", 2);
  std::erase(arguments, "--lr=0.01");
  arguments.emplace_back("--lr=1e38");
  EXPECT_EQ(run(arguments, "diverged"), 1);
  EXPECT_NE(log("diverged")
                .find("error: the baseline did not meet the criterion: epoch 1: training "
                      "diverged"),
            std::string::npos)
      << log("diverged");
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "diverged" / "summary.json"));
  EXPECT_EQ(summary.at("status"), "baseline_failed");
  EXPECT_TRUE(fs::exists(root_ / "diverged" / "report.html"));
  EXPECT_FALSE(fs::exists(root_ / "diverged" / "model.onnx.unverified"));
  EXPECT_EQ(run(resume("diverged"), "diverged"), 1) << "and says the same again";
  EXPECT_NE(log("diverged").find("training diverged"), std::string::npos);
}

TEST_F(ResumeTest, AnInterruptSaysHowToGoOn) {
  Process process = start(flags("interrupted", 2), "interrupted");
  while (!fs::exists(root_ / "interrupted" / "checkpoint.fmp") &&
         !process.wait_for(std::chrono::milliseconds(1))) {
  }
  EXPECT_EQ(process.finish_with(SIGTERM), 130);
  EXPECT_NE(log("interrupted").find("--resume"), std::string::npos) << log("interrupted");
  ASSERT_EQ(run(resume("interrupted"), "interrupted"), 0) << log("interrupted");
  expect_same_results(root_ / "reference", root_ / "interrupted");
}

TEST_F(ResumeTest, AFinishedRunStaysAsItIs) {
  ASSERT_EQ(run(flags("again", 2), "again"), 0);
  ASSERT_EQ(run(resume("again"), "again"), 0);
  expect_same_results(root_ / "reference", root_ / "again");
  EXPECT_EQ(run(flags("again", 2), "refused"), 1);
  EXPECT_NE(log("refused").find("already holds a run"), std::string::npos) << log("refused");
}

TEST_F(ResumeTest, OtherDataIsRefused) {
  ASSERT_EQ(run(flags("moved", 2), "moved"), 0);
  write_data(root_ / "other.h5", kFramesPerBlock, 2);
  Arguments arguments = resume("moved");
  arguments.push_back("--data=" + (root_ / "other.h5").string());
  EXPECT_EQ(run(arguments, "moved"), 1);
  EXPECT_NE(log("moved").find("not those that the run"), std::string::npos) << log("moved");
  arguments.back() = "--data=" + (root_ / "data.h5").string();
  EXPECT_EQ(run(arguments, "moved"), 0);
}

TEST_F(ResumeTest, ABaselineThatFailsIsReported) {
  Arguments arguments = flags("failed", 2);
  arguments.push_back("--epochs=1");
  std::erase(arguments, "--epochs=6");
  std::erase(arguments, "--accuracy=0.9x");
  arguments.push_back("--accuracy=1");
  EXPECT_EQ(run(arguments, "failed"), 1);
  const nlohmann::json summary = nlohmann::json::parse(read(root_ / "failed" / "summary.json"));
  EXPECT_EQ(summary.at("status"), "baseline_failed");
  EXPECT_NE(log("failed").find("baseline did not meet the criterion: reached"), std::string::npos)
      << log("failed");
  EXPECT_TRUE(fs::exists(root_ / "failed" / "report.html"));
}

TEST_F(ResumeTest, WrongFlagsExitWith2AndOneLine) {
  EXPECT_EQ(run({"--data=x", "--out=" + (root_ / "x").string(), "--bits=1"}, "wrong"), 2);
  const std::string text = log("wrong");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_TRUE(text.starts_with("error: --bits")) << text;
  EXPECT_EQ(run({"--data=x", "--out=" + (root_ / "x").string(), "--p-methods=no-such"}, "method"),
            2);
  EXPECT_NE(log("method").find("unstructured-l1"), std::string::npos) << log("method");
}

TEST_F(ResumeTest, CudaWithoutADeviceExitsWith2AndOneLine) {
  ::setenv("CUDA_VISIBLE_DEVICES", "", 1);  // NOLINT(concurrency-mt-unsafe): one thread
  Arguments arguments = flags("cuda", 1);
  std::erase(arguments, "--device=cpu");
  arguments.push_back("--device=cuda");
  EXPECT_EQ(run(arguments, "cuda"), 2);
  EXPECT_TRUE(log("cuda").starts_with("error: --device cuda: ")) << log("cuda");
  EXPECT_NE(log("cuda").find("--device cpu"), std::string::npos) << log("cuda");
  EXPECT_EQ(std::ranges::count(log("cuda"), '\n'), 1) << log("cuda");
  EXPECT_FALSE(fs::exists(root_ / "cuda")) << "nothing was begun";
  arguments.push_back("--gradients=bf16");
  EXPECT_EQ(run(arguments, "cuda_bf16"), 2);
  EXPECT_EQ(log("cuda_bf16"),
            "error: --device cuda: gradients are float32 there; use --device cpu\n");
  ::unsetenv("CUDA_VISIBLE_DEVICES");  // NOLINT(concurrency-mt-unsafe): likewise
}

TEST_F(ResumeTest, MissingDataExitsWith1AndLeavesTheDirectoryUsable) {
  Arguments arguments = flags("missing", 1);
  arguments[0] = "--data=/no/such/file.h5";
  EXPECT_EQ(run(arguments, "missing"), 1);
  EXPECT_NE(log("missing").find("error: "), std::string::npos);
  EXPECT_FALSE(fs::exists(root_ / "missing")) << "what was made for it is gone";
  arguments = flags("deep/missing", 1);
  arguments.emplace_back("--classes=BPSK, no such");
  EXPECT_EQ(run(arguments, "missing"), 2);
  EXPECT_FALSE(fs::exists(root_ / "deep"));
  EXPECT_EQ(run(flags("missing", 1), "missing"), 0) << log("missing");
}

}  // namespace
}  // namespace fmp
