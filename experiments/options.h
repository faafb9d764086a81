// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/network/network.h"
#include "framework/training/engine_choice.h"

namespace fmp {

inline constexpr const char* kProgramVersion = "0.1.0";

// The accuracy that a network must hold: a fraction of all frames, or ("0.97x") that share of what
// the trained baseline reaches.
struct AccuracyGoal {
  double value = 0.56;  // in (0, 1]
  bool relative = false;

  bool operator==(const AccuracyGoal&) const = default;
};

enum class CriterionSplit : uint8_t { kValidation, kTest };

// What synthesized training frames are in an epoch: new ones, or those of the epoch before.
enum class SynthFrames : uint8_t { kFresh, kFixed };

// How the learning rate falls within a round (lr_schedule.h).
enum class LrSchedule : uint8_t { kPlateau, kCosine };

const char* to_string(CriterionSplit split);
const char* to_string(LrSchedule schedule);
const char* to_string(SynthFrames frames);
const char* to_string(DeviceChoice device);
std::string to_string(const AccuracyGoal& goal);

// Which pruning method comes next: the same one until it is done, or each in turn.
enum class MethodsOrder : uint8_t { kSerial, kAlternate };

const char* to_string(MethodsOrder order);

// --distill: pruned networks learn from the run's own baseline.
inline constexpr const char* kDistillBaseline = "baseline";

// Everything that a run of fmp_radioml depends on: filled by the command line, checked by
// validate(), printed and stored with the results.
struct Options {
  // Data.
  std::string data;                         // an HDF5 file in the RadioML layout, or "synth:SEED"
  std::optional<SynthFrames> synth_frames;  // unset = fresh; only with synthesized frames
  std::optional<int> snr_min;
  std::vector<std::string> classes;         // empty = all
  std::optional<int64_t> frames_per_block;  // of each class and SNR; unset = all of the file's
  double validation_fraction = 0.1;         // of the training frames, in [0, 1)
  int64_t memory_limit = 0;                 // bytes for frames; 0 = half of the machine's memory

  // Network.
  int bits = 8;  // what the next three are where they are not given
  std::optional<int> input_bits;
  float input_scale = 0;         // of the file of --init; 0: the usual one, see InputQuantizer
  std::vector<int> weight_bits;  // empty = bits; one, or one per layer
  std::vector<int> act_bits;     // empty = bits; one, or one per hidden layer
  // The layers as JSON text (description.h), which hold instead of what stands above and below:
  // those of --network or --init. Empty: a chain of the next seven.
  std::string network;
  std::vector<int> filters = {64, 64, 64, 64, 64, 64, 64};
  // One value for all convolutions, or one for each; no padding = (kernel - 1) / 2.
  std::vector<int> kernel = {3}, stride = {1}, padding, groups = {1}, pool = {2};
  std::vector<int> dense = {128, 128};
  // ONNX file with the network to start from, whose settings then replace those above; its zero
  // weights stay pruned. Empty = random weights.
  std::string init;
  std::optional<int> init_bits;  // --bits beside it: of quantizers that the file does not have

  // Pruning.
  // What a network must hold. Unset (--until-cost alone): every round trains to its end, and the
  // best epoch is taken.
  std::optional<AccuracyGoal> accuracy = AccuracyGoal{};
  std::optional<double> until_cost;  // the run ends when a network costs at most that, > 0
  CriterionSplit criterion_split = CriterionSplit::kValidation;
  bool feedback = true;
  std::vector<std::string> p_methods = {"unstructured-l1"};
  MethodsOrder p_methods_order = MethodsOrder::kSerial;
  double p = 0.2;                   // first fraction, in (0, 1)
  double n = 2;                     // what a failure divides it by, > 1
  std::vector<double> p_threshold;  // floors; empty = 0.05, of channels and bits 0.01; one, or
                                    // one per method

  // Training.
  int epochs = 50;  // at most, per round
  int patience = 15;
  double learning_rate = 1e-3;
  LrSchedule lr_schedule = LrSchedule::kPlateau;
  int lr_patience = 5;  // of the plateau's schedule
  int batch = 1024;
  int64_t epoch_frames = 0;          // at most, of an epoch; 0 = all
  int batch_norm_steps = 0;          // after an epoch, of batch-norm's statistics alone
  double label_smoothing = 0;        // in [0, 1)
  std::vector<std::string> augment;  // of training frames, see augmentation_of(); empty = none
  // Teacher: a file with a quantized network, or kDistillBaseline; empty = none.
  std::string distill;
  double distill_weight = 0.9;                // of the teacher in the loss, in (0, 1]
  double distill_temperature = 2;             // above 0
  ElementType gradients = ElementType::kF32;  // between layers: that, or kBF16
  uint64_t seed = 1;

  // Machine.
  int threads = 0;  // 0 = all cores
  DeviceChoice device = DeviceChoice::kAuto;
  std::optional<double> sparse_threshold;  // unset = measured
  double time_limit = 0;                   // seconds of this invocation; 0 = none

  // Output.
  std::string out;     // directory of the results
  std::string resume;  // directory of an earlier run that goes on; then out is the same

  bool operator==(const Options&) const = default;
};

// Parses a command line (without the program's name). Empty when --help or --version was asked for
// and printed. With --resume the stored command line of that run (see run_file.h) is completed by
// the flags of this one: only flags that leave the results unchanged may be given anew.
// Throws UsageError.
std::optional<Options> parse_options(std::span<const std::string> arguments);

// Checks every value and what they mean together. Throws UsageError that names the flag.
void validate(const Options& options);

// The command line that gives these options, defaults included, "--name=value" each.
std::vector<std::string> to_arguments(const Options& options);
// The options by their long names, typed.
nlohmann::json to_json(const Options& options);

// The layers that the options describe; samples and classes are not the data's yet.
NetworkConfig layers_of(const Options& options);
// The network that the options describe, for frames of this length and number of classes.
NetworkConfig network_config(const Options& options, int length, int classes);

}  // namespace fmp
