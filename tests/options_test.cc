// SPDX-License-Identifier: MIT
#include "experiments/options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/run_directory.h"
#include "framework/error.h"
#include "framework/onnx/export.h"
#include "tests/chain_of.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

const Arguments kMinimum = {"--data", "F.h5", "--out", "run"};

Options parse(const Arguments& more) {
  Arguments arguments = kMinimum;
  if (!more.empty() && more[0].starts_with("--data="))
    arguments.erase(arguments.begin(), arguments.begin() + 2);
  arguments.insert(arguments.end(), more.begin(), more.end());
  return parse_options(arguments).value();
}

std::string error_of(const Arguments& more) {
  try {
    parse(more);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

// A directory that is removed at the end.
class ResumedOptions : public testing::Test {
 protected:
  void SetUp() override {
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = fs::temp_directory_path() / ("fmp_options_" + name + std::to_string(::getpid()));
  }
  void TearDown() override { fs::remove_all(path_); }

  fs::path path_;
};

TEST(Options, DefaultsAreThePublishedExperiment) {
  const Options o = parse({});
  EXPECT_EQ(o.accuracy, (AccuracyGoal{0.56, false}));
  EXPECT_EQ(o.until_cost, std::nullopt);
  EXPECT_EQ(o.p_methods_order, MethodsOrder::kSerial);
  EXPECT_EQ(o.p, 0.2);
  EXPECT_EQ(o.n, 2);
  EXPECT_EQ(o.epochs, 50);
  EXPECT_EQ(o.patience, 15);
  EXPECT_EQ(o.batch, 1024);
  EXPECT_TRUE(o.feedback);
  EXPECT_EQ(o.criterion_split, CriterionSplit::kValidation);
  EXPECT_EQ(network_config(o, 1024, 24), NetworkConfig(ChainConfig()));
}

TEST(Options, ReadsEveryFlag) {
  const Options o = parse({"--snr-min=-4",
                           "--classes=BPSK,8PSK",
                           "--frames-per-block=32",
                           "--validation-fraction=0.25",
                           "--memory-limit=1.5G",
                           "--bits=4",
                           "--input-bits=6",
                           "--weight-bits=3",
                           "--act-bits=5,6,7",
                           "--filters=8,16",
                           "--dense=32",
                           "--accuracy=0.97x",
                           "--until-cost=0.008",
                           "--p-methods-order=alternate",
                           "--criterion-split=test",
                           "--feedback=off",
                           "--p-methods=structured-l1,unstructured-l1",
                           "--p=0.3",
                           "--n=3",
                           "--p-threshold=0.02,0.1",
                           "--epochs=7",
                           "--patience=3",
                           "--lr=0.01",
                           "--lr-patience=1",
                           "--batch=64",
                           "--seed=18446744073709551615",
                           "--threads=2",
                           "--device=cpu",
                           "--sparse-threshold=0.3",
                           "--time-limit=1.5h"});
  EXPECT_EQ(o.snr_min, -4);
  EXPECT_EQ(o.classes, (Arguments{"BPSK", "8PSK"}));
  EXPECT_EQ(o.frames_per_block, 32);
  EXPECT_EQ(o.validation_fraction, 0.25);
  EXPECT_EQ(o.memory_limit, 1536 * (int64_t{1} << 20));
  EXPECT_EQ(o.accuracy, (AccuracyGoal{0.97, true}));
  EXPECT_EQ(o.until_cost, 0.008);
  EXPECT_EQ(o.p_methods_order, MethodsOrder::kAlternate);
  EXPECT_EQ(o.criterion_split, CriterionSplit::kTest);
  EXPECT_FALSE(o.feedback);
  EXPECT_EQ(o.p_methods, (Arguments{"structured-l1", "unstructured-l1"}));
  EXPECT_EQ(o.p, 0.3);
  EXPECT_EQ(o.n, 3);
  EXPECT_EQ(o.p_threshold, (std::vector<double>{0.02, 0.1}));
  EXPECT_EQ(o.epochs, 7);
  EXPECT_EQ(o.patience, 3);
  EXPECT_EQ(o.learning_rate, 0.01);
  EXPECT_EQ(o.lr_patience, 1);
  EXPECT_EQ(o.batch, 64);
  EXPECT_EQ(o.seed, UINT64_MAX);
  EXPECT_EQ(o.threads, 2);
  EXPECT_EQ(o.device, DeviceChoice::kCpu);
  EXPECT_EQ(o.sparse_threshold, 0.3);
  EXPECT_EQ(o.time_limit, 5400);
  const ChainConfig config = chain_of(network_config(o, 64, 2));
  EXPECT_EQ(config.filters, (std::vector<int>{8, 16}));
  EXPECT_EQ(config.dense, (std::vector<int>{32}));
  EXPECT_EQ(config.input_bits, 6);
  EXPECT_EQ(config.weight_bits, (std::vector<int>{3, 3, 3, 3}));
  EXPECT_EQ(config.act_bits, (std::vector<int>{5, 6, 7}));
}

TEST(Options, TheWrittenCommandLineGivesTheSameOptions) {
  const std::vector<Arguments> cases = {
      {},
      {"--data=synth:1", "--synth-frames=fixed"},
      {"--lr-schedule=cosine", "--gradients=bf16", "--batch-norm-steps=40"},
      {"--network=depthwise", "--bits=4"},
      {"--until-cost=0.0123", "--p-methods=taylor,lamp", "--p-methods-order=alternate"},
      {"--until-cost=0.0123", "--accuracy=0.56"},
      {"--distill=teacher.onnx", "--distill-weight=0.3", "--distill-temperature=4",
       "--label-smoothing=0.1", "--epoch-frames=5000"},
      {"--augment=swap,rotate", "--augment=shift"},
      {"--bits=32", "--accuracy=0.97x", "--dense=0", "--filters=8", "--lr=0.0003"},
      {"--weight-bits=4,8,8", "--filters=8", "--dense=5", "--snr-min=-20", "--classes=A,B",
       "--p=0.1234567890123", "--sparse-threshold=0.1", "--time-limit=90s", "--memory-limit=8G"}};
  for (const Arguments& given : cases) {
    const Options options = parse(given);
    EXPECT_EQ(parse_options(to_arguments(options)).value(), options);
  }
}

TEST(Options, TheCostAloneLeavesTheAccuracyFree) {
  EXPECT_EQ(parse({"--until-cost=0.01"}).accuracy, std::nullopt);
  EXPECT_EQ(parse({"--until-cost=0.01", "--accuracy=0.56"}).accuracy, (AccuracyGoal{0.56, false}));
}

TEST(Options, AugmentationIsOffUnlessItIsAskedFor) {
  EXPECT_TRUE(parse({}).augment.empty());
  for (const std::string& argument : to_arguments(parse({})))
    EXPECT_FALSE(argument.starts_with("--augment")) << "as a run of before has it";
  EXPECT_EQ(parse({"--augment=rotate, shift"}).augment, (Arguments{"rotate", "shift"}));
  EXPECT_EQ(to_json(parse({"--augment=swap"})).at("augment"), nlohmann::json({"swap"}));
}

TEST(Options, NoDenseLayersAreZero) { EXPECT_TRUE(parse({"--dense", "0"}).dense.empty()); }

TEST(Options, InitTakesTheNetworkFromTheFile) {
  const std::string file = std::string(FMP_FIXTURES_DIR) + "/onnx_brevitas_chain.onnx";
  const Options options = parse({"--init", file, "--seed=7"});
  EXPECT_EQ(options.init, file);
  const ChainConfig chain = chain_of(layers_of(options));
  EXPECT_EQ(chain.filters, (std::vector{4, 5}));
  EXPECT_EQ(chain.dense, std::vector{8});
  EXPECT_EQ(options.input_bits, 6);
  EXPECT_EQ(chain.weight_bits, (std::vector{4, 4, 4, 4}));
  EXPECT_EQ(parse_options(to_arguments(options)).value(), options);
  const std::string message = error_of({"--init", file, "--filters=4,5"});
  EXPECT_NE(message.find("--filters"), std::string::npos) << message;
  EXPECT_NE(message.find("--init"), std::string::npos) << message;
  EXPECT_THROW(parse({"--init=/nowhere/model.onnx"}), Error);
}

// Bits for the layers that the file leaves without a quantizer are kept with the run.
TEST(Options, BitsBesideInitAreOfQuantizersThatTheFileDoesNotHave) {
  const std::string file = std::string(FMP_FIXTURES_DIR) + "/onnx_brevitas_chain.onnx";
  const std::string message = error_of({"--init", file, "--bits=5"});
  EXPECT_NE(message.find("every layer has a quantizer"), std::string::npos) << message;
  EXPECT_NE(error_of({"--init", file, "--bits=32"}).find("2..8 with --init"), std::string::npos);
  NetworkConfig config = layers_of(parse({"--filters=3", "--dense=0", "--bits=4"}));
  config.layers[0].act_bits = kFloatBits;
  const std::string without =
      fs::temp_directory_path() / ("fmp_options_float" + std::to_string(::getpid()) + ".onnx");
  onnx::export_network(Network(config, 1), without);
  const Options options = parse({"--init", without, "--bits=5"});
  EXPECT_EQ(layers_of(options).layers[0].act_bits, 5);
  EXPECT_EQ(parse_options(to_arguments(options)).value(), options);
  fs::remove(without);
}

TEST(Options, WrongValuesNameTheFlagAndWhatIsExpected) {
  const std::vector<std::pair<Arguments, std::vector<std::string>>> cases = {
      {{"--bits=9"}, {"--bits", "2..8", "9"}},
      {{"--bits=eight"}, {"--bits", "eight"}},
      {{"--weight-bits=4,4"}, {"--weight-bits", "10 layers", "2 values"}},
      {{"--act-bits=1"}, {"--act-bits", "2..8"}},
      {{"--filters=0"}, {"--filters", "0"}},
      {{"--accuracy=56"}, {"--accuracy", "(0, 1]", "56"}},
      {{"--accuracy=0.56%"}, {"--accuracy", "0.56%"}},
      {{"--accuracy=nan"}, {"--accuracy", "nan"}},
      {{"--until-cost=0"}, {"--until-cost", "above 0", "0"}},
      {{"--until-cost=cheap"}, {"--until-cost", "cheap"}},
      {{"--p-methods-order=random"}, {"--p-methods-order", "serial or alternate", "random"}},
      {{"--criterion-split=train"}, {"--criterion-split", "validation or test", "train"}},
      {{"--feedback=yes"}, {"--feedback", "on or off", "yes"}},
      {{"--p=1"}, {"--p", "(0, 1)", "1"}},
      {{"--n=1"}, {"--n", "above 1"}},
      {{"--p-threshold=0.1,0.1"}, {"--p-threshold", "1 methods", "2 values"}},
      {{"--epochs=0"}, {"--epochs", "at least 1"}},
      {{"--patience=0"}, {"--patience", "at least 1"}},
      {{"--lr=0"}, {"--lr", "above 0"}},
      {{"--lr=inf"}, {"--lr", "inf"}},
      {{"--lr-schedule=step"}, {"--lr-schedule", "plateau or cosine", "step"}},
      {{"--lr-schedule=cosine", "--lr-patience=2"}, {"--lr-patience", "cosine"}},
      {{"--epoch-frames=100", "--batch=200"}, {"--epoch-frames", "100", "at least --batch"}},
      {{"--data=synth:1", "--epoch-frames=100000"}, {"--epoch-frames", "--synth-frames fixed"}},
      {{"--batch-norm-steps=-1"}, {"--batch-norm-steps", "0..1000000"}},
      {{"--label-smoothing=1"}, {"--label-smoothing", "[0, 1)"}},
      {{"--augment=rotate,flip"}, {"--augment", "rotate, shift or swap", "flip"}},
      {{"--augment=swap,shift,swap"}, {"--augment", "swap", "twice"}},
      {{"--augment="}, {"--augment", "empty"}},
      {{"--gradients=half"}, {"--gradients", "float32 or bf16", "half"}},
      {{"--distill=baseline", "--distill-weight=0"}, {"--distill-weight", "(0, 1]"}},
      {{"--distill=baseline", "--distill-temperature=0"}, {"--distill-temperature", "above 0"}},
      {{"--distill-weight=0.5"}, {"--distill-weight", "without --distill"}},
      {{"--distill=baseline", "--act-bits=32"}, {"--distill baseline", "quantized"}},
      {{"--batch=1"}, {"--batch", "2..1048576"}},
      {{"--seed=-1"}, {"--seed", "-1"}},
      {{"--classes", "BPSK", " "}, {"--classes", "empty"}},
      {{"--p-methods="}, {"--p-methods", "empty"}},
      {{"--threads=-1"}, {"--threads", "-1"}},
      {{"--device=gpu"}, {"--device", "auto or cpu or cuda", "gpu"}},
      {{"--sparse-threshold=2"}, {"--sparse-threshold", "2"}},
      {{"--time-limit=1d"}, {"--time-limit", "15m", "1d"}},
      {{"--memory-limit=lots"}, {"--memory-limit", "512M", "lots"}},
      {{"--synth-frames=fixed"}, {"--synth-frames", "synth:SEED", "F.h5"}},
      {{"--data=synth:1", "--synth-frames=new"}, {"--synth-frames", "fresh or fixed", "new"}},
      {{"--validation-fraction=1"}, {"--validation-fraction", "[0, 1)"}},
      {{"--validation-fraction=0"}, {"--validation-fraction 0", "--criterion-split validation"}},
      {{"--frames-per-block=0"}, {"--frames-per-block", "at least 1"}},
      {{"--frobnicate"}, {"--frobnicate"}},
      {{"extra"}, {"extra"}}};
  for (const auto& [arguments, expected] : cases) {
    const std::string error = error_of(arguments);
    EXPECT_FALSE(error.empty()) << arguments[0];
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    for (const std::string& part : expected)
      EXPECT_NE(error.find(part), std::string::npos)
          << arguments[0] << ": '" << error << "' does not say '" << part << "'";
  }
}

TEST(Options, DataAndOutAreNeeded) {
  EXPECT_THROW(parse_options(Arguments{"--out", "run"}), UsageError);
  EXPECT_THROW(parse_options(Arguments{"--data", "F.h5"}), UsageError);
}

TEST(Options, HelpListsEveryFlagInGroups) {
  testing::internal::CaptureStdout();
  EXPECT_FALSE(parse_options(Arguments{"--help"}));
  const std::string help = testing::internal::GetCapturedStdout();
  for (const char* group : {"Data", "Network", "Pruning", "Training", "Machine", "Output"})
    EXPECT_NE(help.find(std::string(group) + ":"), std::string::npos) << group;
  for (const std::string& argument : to_arguments(parse({}))) {
    const std::string flag = argument.substr(0, argument.find('='));
    EXPECT_NE(help.find(flag + " "), std::string::npos) << flag;
  }
}

TEST_F(ResumedOptions, TakesTheStoredFlags) {
  const Options first = parse({"--bits=4", "--epochs=3", "--threads=1", "--seed=5"});
  { const RunDirectory directory = RunDirectory::create(path_, to_arguments(first)); }
  const Options resumed = parse_options(Arguments{"--resume", path_.string()}).value();
  Options expected = first;
  expected.out = expected.resume = path_.string();
  EXPECT_EQ(resumed, expected);
}

TEST_F(ResumedOptions, MayChangeWhatDoesNotChangeResults) {
  { const RunDirectory directory = RunDirectory::create(path_, to_arguments(parse({"--bits=4"}))); }
  const Options o = parse_options(Arguments{"--resume", path_.string(), "--threads=3",
                                            "--time-limit", "5m", "--data=moved.h5"})
                        .value();
  EXPECT_EQ(o.threads, 3);
  EXPECT_EQ(o.time_limit, 300);
  EXPECT_EQ(o.data, "moved.h5");
  EXPECT_EQ(o.bits, 4);
}

TEST_F(ResumedOptions, RefusesWhatWould) {
  { const RunDirectory directory = RunDirectory::create(path_, to_arguments(parse({}))); }
  for (const char* flag : {"--bits=4", "--seed=2", "--out=elsewhere", "--p-methods=random",
                           "--until-cost=0.1", "--p-methods-order=alternate", "--augment=shift"})
    EXPECT_THROW(parse_options(Arguments{"--resume", path_.string(), flag}), UsageError) << flag;
}

TEST_F(ResumedOptions, SaysThatThereIsNoRun) {
  try {
    parse_options(Arguments{"--resume", path_.string()});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no run to resume"), std::string::npos);
  }
}

TEST_F(ResumedOptions, OneProcessAtATime) {
  const RunDirectory directory = RunDirectory::create(path_, to_arguments(parse({})));
  EXPECT_THROW(RunDirectory::open(path_), Error);
}

}  // namespace
}  // namespace fmp
