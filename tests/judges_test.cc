// SPDX-License-Identifier: MIT
// What networks that were trained on the real RadioML 2018.01A answer on synthesized frames, where
// these networks are at hand. The goals leave room for the few frames that are asked.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <string>

#include "framework/onnx/graph.h"
#include "framework/onnx/import.h"
#include "framework/synth/synth.h"
#include "framework/training/trainer.h"

namespace fmp {
namespace {

constexpr int kFramesPerBlock = 6;

std::filesystem::path judge(const std::string& name) {
  const std::filesystem::path fixtures(FMP_FIXTURES_DIR);
  return fixtures.parent_path().parent_path().parent_path() / "shared" / "judges" / name;
}

Evaluation ask(const std::filesystem::path& file) {
  const Network network = onnx::import_network(onnx::load(file));
  synth::SynthDataset::Options options;
  options.seed = 4711;
  options.frames_per_block = kFramesPerBlock;
  options.input_bits = network.config().input_bits;
  const synth::SynthDataset data(options);
  std::vector<int64_t> frames(static_cast<size_t>(data.size()));
  std::iota(frames.begin(), frames.end(), int64_t{0});
  return Trainer(TrainerOptions{}).evaluate(network, data, frames);
}

double accuracy_from(const Evaluation& evaluation, int snr_db) {
  double frames = 0, correct = 0;
  for (const Evaluation::Snr& snr : evaluation.by_snr) {
    if (snr.snr_db < snr_db) continue;
    frames += static_cast<double>(snr.frames);
    correct += static_cast<double>(snr.correct);
  }
  return correct / frames;
}

TEST(JudgesTest, EightBitNetworkTakesTheFramesForRealOnes) {
  const std::filesystem::path file = judge("xilinx_vgg10.onnx");
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "skipped: there is no " << file;
  const Evaluation evaluation = ask(file);
  EXPECT_GT(evaluation.accuracy(), 0.55);          // 0.595 on real frames
  EXPECT_GT(accuracy_from(evaluation, 20), 0.87);  // 0.93

  // Read off the published curve, to 0.01.
  const std::map<int, double> real = {{-20, .043}, {-16, .053}, {-12, .09}, {-10, .14}, {-8, .20},
                                      {-6, .27},   {-4, .34},   {-2, .43},  {0, .53},   {2, .62},
                                      {4, .73},    {6, .825},   {8, .89},   {10, .91},  {12, .92},
                                      {14, .925},  {20, .93},   {30, .931}};
  for (const Evaluation::Snr& snr : evaluation.by_snr) {
    const auto published = real.find(snr.snr_db);
    if (published == real.end()) continue;
    const double frames = static_cast<double>(snr.frames), p = published->second;
    const double here = static_cast<double>(snr.correct) / frames;
    EXPECT_NEAR(here, p, 0.05 + 3 * std::sqrt(p * (1 - p) / frames)) << snr.snr_db << " dB";
  }
}

TEST(JudgesTest, FourBitNetworkTakesTheFramesForRealOnes) {
  const std::filesystem::path file = judge("amc_fmp_w4a4.onnx");
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "skipped: there is no " << file;
  const Evaluation evaluation = ask(file);
  EXPECT_GT(evaluation.accuracy(), 0.52);  // 0.563 on real frames
  EXPECT_GT(accuracy_from(evaluation, 20), 0.80);
}

}  // namespace
}  // namespace fmp
