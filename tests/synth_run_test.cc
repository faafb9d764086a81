// SPDX-License-Identifier: MIT
// Runs on synthesized frames, as a user starts them: where frames are held changes no bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "experiments/options.h"
#include "framework/data/augmented_frames.h"
#include "framework/data/split.h"
#include "framework/inference/model_file.h"
#include "framework/synth/modulation.h"
#include "framework/synth/synth.h"
#include "framework/training/trainer.h"
#include "tests/program_fixture.h"

namespace fmp {
namespace {

constexpr const char* kProgram = FMP_BINARY_DIR "/experiments/fmp_radioml";

class SynthRunTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("fmp_synth_run_" + std::to_string(::getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  // The rounds of a small run with these flags more.
  nlohmann::json run(const std::string& name, const Arguments& more) {
    Arguments arguments = {"--data=synth:5",
                           "--out=" + (root_ / name).string(),
                           "--device=cpu",
                           "--classes=BPSK,FM,AM-SSB-WC",
                           "--snr-min=28",
                           "--frames-per-block=20",
                           "--bits=4",
                           "--validation-fraction=0.3",
                           "--filters=4,4,4,4",
                           "--dense=0",
                           "--epochs=2",
                           "--batch=16",
                           "--sparse-threshold=0.5",
                           "--accuracy=0.9x",
                           "--p=0.97",
                           "--p-threshold=0.96",
                           "--lr=0.01"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return rounds_after(arguments, name);
  }
  nlohmann::json rounds_after(const Arguments& arguments, const std::string& name) {
    Process process(kProgram, arguments, root_ / (name + ".log"));
    EXPECT_EQ(process.wait(), 0) << log(name);
    return reproducible(rounds_of(root_ / name));
  }
  std::string log(const std::string& name) const { return read(root_ / (name + ".log")); }
  std::string result(const std::string& name) const { return read(root_ / name / "result.fmp"); }

  fs::path root_;
};

TEST_F(SynthRunTest, MemoryAndThreadsChangeNoBit) {
  const Arguments fixed = {"--synth-frames=fixed"};
  const auto with = [](Arguments flags, const Arguments& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  };
  const Arguments little = {"--threads=3", "--memory-limit=1000"};
  const nlohmann::json fresh_rounds = run("fresh", {"--threads=1"});
  const nlohmann::json fixed_rounds = run("fixed", with(fixed, {"--threads=1"}));
  EXPECT_NE(fresh_rounds, fixed_rounds);
  EXPECT_NE(log("fresh").find("36 in memory"), std::string::npos) << log("fresh");
  EXPECT_NE(log("fixed").find("108 in memory"), std::string::npos) << log("fixed");

  EXPECT_EQ(fresh_rounds, run("fresh2", with({"--synth-frames=fresh"}, little)));
  EXPECT_EQ(log("fresh2").find("in memory"), std::string::npos);
  EXPECT_EQ(fixed_rounds, run("fixed2", with(fixed, little)));
  EXPECT_NE(log("fixed2").find("108 in a temporary file"), std::string::npos) << log("fixed2");

  run("stopped", with(fixed, {"--time-limit=0.001"}));
  EXPECT_EQ(
      fixed_rounds,
      rounds_after({"--resume=" + (root_ / "stopped").string(), "--time-limit=0"}, "stopped"));
}

TEST_F(SynthRunTest, ATeacherIsHeardTheSameWithAnyThreadsAndAfterAStop) {
  const nlohmann::json alone = run("alone", {});
  const nlohmann::json taught = run("taught", {"--distill=baseline", "--threads=1"});
  EXPECT_EQ(alone.at(0).at("history"), taught.at(0).at("history")) << "the baseline has no teacher";
  EXPECT_NE(alone.at(1).at("history"), taught.at(1).at("history"));

  const fs::path file = root_ / "teacher.fmp";
  fs::copy_file(root_ / "taught" / "baseline.fmp", file);
  const Arguments by_file = {"--distill=" + file.string(), "--input-bits=6", "--threads=1"};
  const nlohmann::json whole = run("whole", by_file);
  // One epoch at a time; the teacher is in the checkpoint.
  Arguments stopped = by_file;
  stopped.back() = "--threads=3";
  stopped.emplace_back("--time-limit=0.001");
  run("stopped", stopped);
  fs::remove(file);
  EXPECT_EQ(whole, rounds_after({"--resume=" + (root_ / "stopped").string(), "--time-limit=0"},
                                "stopped"));
  EXPECT_NE(whole.at(0).at("history"), alone.at(0).at("history"));
}

TEST_F(SynthRunTest, AugmentedFramesAreTheSameWithAnyThreadsAndAfterAStop) {
  const auto with = [](const Arguments& more) {
    Arguments flags = {"--synth-frames=fixed", "--batch-norm-steps=2"};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  };
  std::set<std::string> histories;  // each kind changes something
  for (const char* kinds : {"", "rotate", "shift", "swap"}) {
    const Arguments flags =
        *kinds == 0 ? Arguments{} : Arguments{std::string("--augment=") + kinds};
    const nlohmann::json rounds = run(std::string("kind-") + kinds, with(flags));
    histories.insert(rounds.at(0).at("history").dump());
  }
  EXPECT_EQ(histories.size(), 4U);

  const Arguments augmented = with({"--augment=rotate,shift,swap", "--threads=1"});
  const nlohmann::json one = run("one", augmented);
  Arguments other_threads = augmented;
  other_threads.back() = "--threads=2";
  EXPECT_EQ(one, run("two", other_threads));
  EXPECT_EQ(result("one"), result("two"));

  // What a teacher says of a frame is not kept: it is another one in the next epoch.
  const fs::path file = root_ / "teacher.fmp";
  fs::copy_file(root_ / "one" / "baseline.fmp", file);
  const Arguments taught = with({"--distill=" + file.string(), "--augment=shift,rotate"});
  const nlohmann::json whole = run("whole", taught);
  Arguments stopped = taught;
  stopped.emplace_back("--time-limit=0.001");  // after an epoch
  run("stopped", stopped);
  EXPECT_EQ(whole, rounds_after({"--resume=" + (root_ / "stopped").string(), "--time-limit=0"},
                                "stopped"));
  EXPECT_EQ(result("whole"), result("stopped"));
  EXPECT_GE(whole.at(0).at("epochs"), 2) << "or nothing could have been kept";
  EXPECT_NE(run("unchanged", with({"--distill=" + file.string()})).at(0).at("history"),
            whole.at(0).at("history"));
}

// What run() trains on, made here.
synth::SynthDataset frames_of_a_run() {
  synth::SynthDataset::Options set;
  set.seed = 5;
  set.frames_per_block = 20;
  for (const char* name : {"BPSK", "FM", "AM-SSB-WC"})
    set.classes.push_back(synth::class_index(name));
  set.snrs_db = {28, 30};
  set.input_bits = 4;
  return synth::SynthDataset(set);
}

Split split_of_a_run(const Dataset& data) {
  std::vector<Block> blocks(static_cast<size_t>(data.size() / 20), Block(20));
  for (size_t i = 0; i < blocks.size(); ++i)
    std::iota(blocks[i].begin(), blocks[i].end(), static_cast<int64_t>(20 * i));
  return make_split(blocks, 0.3);
}

TEST_F(SynthRunTest, EveryEpochTrainsOnFramesOfItsOwnAndEvaluatesThoseOfTheSet) {
  constexpr Augmentation kAll{true, true, true};
  const nlohmann::json history =
      run("augmented", {"--synth-frames=fixed", "--augment=rotate,shift,swap", "--seed=3"})
          .at(0)
          .at("history");
  const synth::SynthDataset data = frames_of_a_run();
  const Split split = split_of_a_run(data);
  const Options flags =
      parse_options(Arguments{"--resume=" + (root_ / "augmented").string()}).value();
  Network network(network_config(flags, data.length(), static_cast<int>(data.class_names().size())),
                  3);
  AugmentedFrames augmented(data, network.config().input_quantizer(), kAll, 3, 1);
  TrainerOptions options;
  options.batch = 16;
  Trainer trainer(options);
  ASSERT_EQ(history.size(), 2U);
  for (const uint64_t epoch : {1, 2}) {
    augmented.set_epoch(epoch);
    const EpochResult trained =
        trainer.train_epoch(network, augmented, split.train, 3, epoch, 0.01);
    EXPECT_EQ(trained.loss, history.at(epoch - 1).at("train_loss")) << epoch;
  }

  const nlohmann::json loss =
      nlohmann::json::parse(read(root_ / "augmented" / "summary.json")).at("result").at("loss");
  const Network best = load_model(root_ / "augmented" / "result.fmp");
  const auto loss_on = [&](const Dataset& frames, const std::vector<int64_t>& part) {
    return trainer.evaluate(best, frames, part).loss;
  };
  EXPECT_NEAR(loss_on(data, split.validation), loss.at("validation"), 1e-9);
  EXPECT_NEAR(loss_on(data, split.test), loss.at("test"), 1e-9);
  const double changed = loss_on(augmented, split.validation);
  EXPECT_GT(std::abs(changed - loss.at("validation").get<double>()), 1e-6);
}

}  // namespace
}  // namespace fmp
