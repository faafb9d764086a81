// SPDX-License-Identifier: MIT
#include "experiments/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <string_view>

#include "experiments/run_file.h"
#include "framework/command_line.h"
#include "framework/data/augmented_frames.h"
#include "framework/error.h"
#include "framework/network/description.h"
#include "framework/network/pruning.h"
#include "framework/onnx/import.h"

namespace fmp {
namespace {

// Flags that may be given with --resume: they change how fast a run is and where its data lies, not
// what it is. Results stay the same bits but for the gradients' rounding where a device is
// involved.
constexpr std::string_view kResumeFlags[] = {"data",         "threads",    "device",
                                             "memory-limit", "time-limit", "sparse-threshold"};
// Flags that describe the network.
constexpr const char* kNetworkFlags[] = {"bits",     "network", "input-bits", "weight-bits",
                                         "act-bits", "filters", "dense",      "kernel",
                                         "stride",   "padding", "groups",     "pool"};
constexpr int64_t kMaximumFilters = 65536;
constexpr int kMaximumThreads = 4096;
constexpr int kMaximumBatchNormSteps = 1000000;

template <typename... Args>
[[noreturn]] void usage(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

void require(bool condition, const char* flag, std::string_view expected, const auto& found) {
  if (!condition) usage("--{}: expected {}, found {}", flag, expected, found);
}

void validate_bits(const char* flag, int bits) {
  require((bits >= 2 && bits <= 8) || bits == kFloatBits, flag, "2..8, or 32 for float", bits);
}

double parse_number(std::string_view text, const std::string& flag, std::string_view expected) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    usage("--{}: expected {}, found '{}'", flag, expected, text);
  return value;
}

// "0.56" or "0.97x".
AccuracyGoal parse_goal(std::string_view text) {
  const bool relative = text.ends_with('x');
  if (relative) text.remove_suffix(1);
  return {parse_number(text, "accuracy", "a fraction such as 0.56, or 0.97x of the baseline's"),
          relative};
}

// A number with an optional unit, one of `units` = {suffix, factor}.
double parse_with_unit(std::string_view text, const std::string& flag, std::string_view expected,
                       std::initializer_list<std::pair<char, double>> units) {
  double factor = 1;
  for (const auto& [suffix, value] : units) {
    if (!text.empty() && text.back() == suffix) {
      factor = value;
      text.remove_suffix(1);
      break;
    }
  }
  return factor * parse_number(text, flag, expected);
}

int64_t parse_bytes(std::string_view text) {
  constexpr const char* kExpected = "bytes such as 512M or 8G";
  if (text.ends_with('B')) text.remove_suffix(1);
  const double bytes =
      parse_with_unit(text, "memory-limit", kExpected,
                      {{'K', 1 << 10}, {'M', 1 << 20}, {'G', 1 << 30}, {'T', 1024.0 * (1 << 30)}});
  if (bytes < 0 || bytes > 9e18) usage("--memory-limit: expected {}, found '{}'", kExpected, text);
  return static_cast<int64_t>(bytes);
}

double parse_seconds(std::string_view text) {
  return parse_with_unit(text, "time-limit", "seconds, or a time such as 90s, 15m or 2h",
                         {{'s', 1}, {'m', 60}, {'h', 3600}});
}

std::optional<double> parse_threshold(std::string_view text) {
  if (text == "auto") return std::nullopt;
  return parse_number(text, "sparse-threshold", "auto or a density between 0 and 1");
}

template <typename T>
T parse_choice(const std::string& text, const std::string& flag,
               std::initializer_list<std::pair<const char*, T>> choices) {
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names.emplace_back(name);
  }
  usage("--{}: expected {}, found '{}'", flag, fmt::join(names, " or "), text);
}

uint64_t parse_seed(std::string_view text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size())
    usage("--seed: expected a whole number of at least 0, found '{}'", text);
  return seed;
}

// --- Declaration of the flags, a group each ---

// Declares flags of one group of --help. Defaults stand in brackets at the end of the help text.
class FlagGroup {
 public:
  FlagGroup(CLI::App& app, const char* name) : app_(app), name_(name) {}

  // A value with a default, or an optional one whose help text says what holds without it.
  template <typename T>
  void value(const char* flag, T& target, const char* type, std::string help) {
    if constexpr (fmt::is_formattable<T>::value) help += fmt::format(" [{}]", target);
    app_.add_option(flag, target, help)->type_name(type)->group(name_);
  }
  // Values separated by commas.
  template <typename T>
  void list(const char* flag, std::vector<T>& target, const char* type, std::string help) {
    if (!target.empty()) help += fmt::format(" [{}]", fmt::join(target, ","));
    app_.add_option(flag, target, help)
        ->delimiter(',')
        ->expected(1, kMaximumList)
        ->take_all()
        ->transform(list_element())
        ->type_name(type)
        ->group(name_);
  }
  // A value that `parse` understands and stores.
  void text(const char* flag, const char* type, const std::string& help,
            const std::function<void(const std::string&)>& parse) {
    app_.add_option_function<std::string>(flag, parse, help)->type_name(type)->group(name_);
  }

 private:
  static constexpr int kMaximumList = 1024;

  CLI::App& app_;
  const char* name_;
};

void add_data_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Data");
  group.text("--data", "FILE",
             "RadioML file (HDF5 with X, Y, Z), or synth:SEED for synthesized frames",
             [&o](const std::string& text) { o.data = text; });
  group.text(
      "--synth-frames", "WHICH",
      "Synthesized training frames: fresh = new ones in every epoch, fixed = the same [fresh]",
      [&o](const std::string& text) {
        o.synth_frames = parse_choice<SynthFrames>(
            text, "synth-frames", {{"fresh", SynthFrames::kFresh}, {"fixed", SynthFrames::kFixed}});
      });
  group.value("--snr-min", o.snr_min, "DB", "Use only frames of at least this SNR");
  group.list("--classes", o.classes, "NAME,..", "Use only these modulations, e.g. BPSK,QPSK");
  group.value("--frames-per-block", o.frames_per_block, "N",
              "Use only N frames of each modulation and SNR");
  group.value("--validation-fraction", o.validation_fraction, "F",
              "Share of the training frames held out for validation");
  group.text("--memory-limit", "BYTES",
             "Memory for frames; more are kept in a file [half of the machine's]",
             [&o](const std::string& text) { o.memory_limit = parse_bytes(text); });
}

void add_network_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Network");
  group.value("--bits", o.bits, "B", "Bits of input, weights and activations: 2..8, or 32 = float");
  group.value("--input-bits", o.input_bits, "B", "Bits of the network's input [--bits]");
  group.list("--weight-bits", o.weight_bits, "B,..",
             "Bits of the weights, one for all or one per layer [--bits]");
  group.list("--act-bits", o.act_bits, "B,..",
             "Bits of the activations, one for all or one per hidden layer [--bits]");
  group.text("--network", "FILE",
             fmt::format("{}, or a JSON file with the layers, instead of the flags below",
                         fmt::join(network_presets(), ", ")),
             [&o](const std::string& text) { o.network = text; });
  group.list("--filters", o.filters, "C,..", "Output channels of the convolutions");
  group.list("--kernel", o.kernel, "K,..",
             "Taps of the convolutions: one for all, or one for each");
  group.list("--stride", o.stride, "S,..", "Strides, likewise");
  group.list("--padding", o.padding, "P,..",
             "Zeros before the first sample, likewise [(kernel - 1) / 2]");
  group.list("--groups", o.groups, "G,..",
             "Groups of channels, likewise; as many as channels = depthwise");
  group.list("--pool", o.pool, "W,..", "Windows of the maximum behind them, likewise; 1 = none");
  group.list("--dense", o.dense, "C,..", "Outputs of the hidden dense layers, 0 = none");
  group.text(
      "--init", "FILE",
      "Start from the network in this ONNX file, instead of the flags above; zeros stay. With "
      "--bits, layers without a quantizer get one of so many bits",
      [&o](const std::string& text) { o.init = text; });
}

void add_pruning_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Pruning");
  group.text("--accuracy", "A",
             "Accuracy to hold: a fraction, or 0.97x = that share of the baseline's [0.56]",
             [&o](const std::string& text) { o.accuracy = parse_goal(text); });
  group.value("--until-cost", o.until_cost, "C",
              "End when a network costs at most C; without --accuracy, whatever it reaches then");
  group.text("--criterion-split", "SPLIT",
             "Frames that decide: validation, or test as published [validation]",
             [&o](const std::string& text) {
               o.criterion_split = parse_choice<CriterionSplit>(
                   text, "criterion-split",
                   {{"validation", CriterionSplit::kValidation}, {"test", CriterionSplit::kTest}});
             });
  group.text("--feedback", "on|off",
             "After a failure: on = smaller steps (FMP), off = stop (IMP) [on]",
             [&o](const std::string& text) {
               o.feedback = parse_choice<bool>(text, "feedback", {{"on", true}, {"off", false}});
             });
  group.list("--p-methods", o.p_methods, "NAME,..", "Pruning methods");
  group.text("--p-methods-order", "ORDER",
             "serial = one after the other, alternate = in turn, a step each [serial]",
             [&o](const std::string& text) {
               o.p_methods_order = parse_choice<MethodsOrder>(
                   text, "p-methods-order",
                   {{"serial", MethodsOrder::kSerial}, {"alternate", MethodsOrder::kAlternate}});
             });
  group.value("--p", o.p, "F",
              "First share of the remaining weights to prune; structured, bits: p/n");
  group.value("--n", o.n, "X", "What a failure divides the share by");
  group.list(
      "--p-threshold", o.p_threshold, "F,..",
      "Smallest share to try, one for all or one per method [0.05, structured and bits 0.01]");
}

void add_training_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Training");
  group.value("--epochs", o.epochs, "N", "Most epochs of a round");
  group.value("--patience", o.patience, "N", "Epochs without a better accuracy that end a round");
  group.value("--lr", o.learning_rate, "R", "Learning rate (Adam) at the start of each round");
  group.text(
      "--lr-schedule", "NAME",
      "plateau = a tenth of the rate where accuracy stops rising, cosine = to 0 over --epochs "
      "[plateau]",
      [&o](const std::string& text) {
        o.lr_schedule = parse_choice<LrSchedule>(
            text, "lr-schedule",
            {{"plateau", LrSchedule::kPlateau}, {"cosine", LrSchedule::kCosine}});
      });
  group.value("--lr-patience", o.lr_patience, "N",
              "More epochs than this without a better accuracy cut the rate (plateau)");
  group.value("--batch", o.batch, "N", "Frames per optimizer step");
  group.value("--epoch-frames", o.epoch_frames, "N",
              "Most training frames of an epoch, after which the criterion is looked at; 0 = all");
  group.value("--batch-norm-steps", o.batch_norm_steps, "N",
              "Batches after each epoch in which batch-norm's running statistics alone follow");
  group.value("--label-smoothing", o.label_smoothing, "F",
              "Share of a label that is spread over all classes");
  group.list(
      "--augment", o.augment, "KIND,..",
      "Vary training frames: rotate = by a random phase, shift = in time, circularly, swap = "
      "I and Q in half of them, which turns AM-SSB's sideband round");
  group.text("--distill", "FILE",
             "Learn from this network, too (.onnx or .fmp), or from the run's own baseline",
             [&o](const std::string& text) { o.distill = text; });
  group.value("--distill-weight", o.distill_weight, "F", "Share of the teacher in the loss");
  group.value("--distill-temperature", o.distill_temperature, "T",
              "What the logits are divided by for it");
  group.text(
      "--gradients", "TYPE", "Between layers: float32, or bf16, of half as many bytes [float32]",
      [&o](const std::string& text) {
        o.gradients = parse_choice<ElementType>(
            text, "gradients", {{"float32", ElementType::kF32}, {"bf16", ElementType::kBF16}});
      });
  group.text("--seed", "S",
             fmt::format("Seed of weights, shuffling and random methods [{}]", o.seed),
             [&o](const std::string& text) { o.seed = parse_seed(text); });
}

void add_machine_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Machine");
  group.value("--threads", o.threads, "N",
              "Threads, 0 = all cores; the results do not depend on it");
  group.text("--device", "NAME", "cpu, cuda, or auto = cuda if there is a device [auto]",
             [&o](const std::string& text) {
               o.device = parse_choice<DeviceChoice>(text, "device",
                                                     {{"auto", DeviceChoice::kAuto},
                                                      {"cpu", DeviceChoice::kCpu},
                                                      {"cuda", DeviceChoice::kCuda}});
             });
  group.text("--sparse-threshold", "D",
             "Density below which layers run sparse, or auto = by timing [auto]",
             [&o](const std::string& text) { o.sparse_threshold = parse_threshold(text); });
  group.text(
      "--time-limit", "TIME",
      "Stop after the epoch that reaches it, e.g. 90s, 15m, 2h, with exit code 0; 0 = none [0]",
      [&o](const std::string& text) { o.time_limit = parse_seconds(text); });
}

void add_output_flags(CLI::App& app, Options& o) {
  FlagGroup group(app, "Output");
  group.text("--out", "DIR", "Directory for the results, made if it is not there",
             [&o](const std::string& text) { o.out = text; });
  group.text("--resume", "DIR", "Continue the run in DIR with its own flags",
             [&o](const std::string& text) { o.resume = text; });
}

std::string footer() {
  std::string text = "Pruning methods:\n";
  for (const PruningMethodInfo& method : pruning_methods())
    text += fmt::format("  {:<32}{}\n", method.name, method.description);
  text += fmt::format(
      "\nWith --resume only flags that leave the results unchanged may be given: --{}.\n\n"
      "Example:\n  fmp_radioml --data GOLD_XYZ_OSC.0001_1024.hdf5 --bits 4 --accuracy 0.56 --out "
      "run",
      fmt::join(kResumeFlags, ", --"));
  return text;
}

void declare(CLI::App& app, Options& options) {
  app.set_version_flag("--version", std::string("fmp_radioml ") + kProgramVersion);
  app.get_formatter()->column_width(34);
  add_data_flags(app, options);
  add_network_flags(app, options);
  add_pruning_flags(app, options);
  add_training_flags(app, options);
  add_machine_flags(app, options);
  add_output_flags(app, options);
  app.footer(footer());
}

// False after --help, --version.
bool run_parser(CLI::App& app, std::span<const std::string> arguments) {
  return parse_command_line(app, {arguments.begin(), arguments.end()});
}

// Flags that were given though another flag leaves them without a meaning.
void refuse_idle_flags(const CLI::App& app, const Options& o) {
  if (o.lr_schedule == LrSchedule::kCosine && app.count("--lr-patience") != 0)
    usage("--lr-patience has no meaning with --lr-schedule cosine");
  for (const char* flag : {"--distill-weight", "--distill-temperature"})
    if (o.distill.empty() && app.count(flag) != 0)
      usage("{} has no meaning without --distill", flag);
}

// "--name=value" or "--name" -> "name".
std::string_view flag_name(std::string_view argument) {
  argument.remove_prefix(std::min<size_t>(2, argument.size()));
  return argument.substr(0, argument.find('='));
}

// The stored command line of the run in `given.resume`, with the flags that were given anew.
std::vector<std::string> resumed_arguments(const CLI::App& app, const Options& given) {
  std::vector<std::string> overriding;
  for (const std::string& argument : to_arguments(given)) {
    const std::string flag = "--" + std::string(flag_name(argument));
    if (flag == "--resume" || app.count(flag) == 0) continue;
    if (std::ranges::find(kResumeFlags, flag_name(argument)) == std::end(kResumeFlags))
      usage("{} cannot be given with --resume: it would change the results of the run in '{}'",
            flag, given.resume);
    overriding.push_back(argument);
  }
  std::vector<std::string> arguments = stored_arguments(given.resume);
  std::erase_if(arguments, [&](const std::string& stored) {
    return std::ranges::any_of(overriding, [&](const std::string& argument) {
      return flag_name(argument) == flag_name(stored);
    });
  });
  arguments.insert(arguments.end(), overriding.begin(), overriding.end());
  return arguments;
}

void take_network(const NetworkConfig& config, Options& options) {
  options.input_bits = config.input_bits;
  options.input_scale = config.input_scale;
  options.network = describe_network(config).dump();
}

// Takes over what --network says: a run keeps the layers, not the file.
void adopt_described_network(const CLI::App& app, Options& options) {
  if (options.network.empty()) return;
  for (const char* flag : kNetworkFlags) {
    if (flag != std::string_view("bits") && flag != std::string_view("network") &&
        app.count(fmt::format("--{}", flag)) != 0)
      usage("--{} cannot be given with --network, which says what the layers are", flag);
  }
  validate_bits("bits", options.bits);
  try {
    take_network(read_network(options.network, options.bits), options);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    usage("--network: {}", error.what());
  }
}

// Takes over what the file of --init says of the network. `app` has parsed the command line.
void adopt_initial_network(const CLI::App& app, Options& options) {
  if (options.init.empty()) return;
  for (const char* flag : kNetworkFlags) {
    if (flag != std::string_view("bits") && app.count(fmt::format("--{}", flag)) != 0)
      usage("--{} cannot be given with --init: the file says what the network is", flag);
  }
  if (app.count("--bits") != 0) {
    require(options.bits >= 2 && options.bits <= 8, "bits", "2..8 with --init", options.bits);
    options.init_bits = options.bits;
  }
  take_network(onnx::import_network(options.init, options.init_bits).config(), options);
}

// --dense 0 stands for no hidden dense layer. The default accuracy holds unless --until-cost is the
// only goal that was given.
void normalise(const CLI::App& app, Options& options) {
  if (options.dense == std::vector<int>{0}) options.dense.clear();
  if (options.until_cost && app.count("--accuracy") == 0) options.accuracy.reset();
}

// --- Checks ---

void validate_data(const Options& o) {
  if (o.data.empty()) usage("--data is missing: an HDF5 file in the RadioML layout, or synth:SEED");
  if (o.out.empty()) usage("--out is missing: the directory for the results");
  if (o.synth_frames && !o.data.starts_with("synth:"))
    usage("--synth-frames: only for --data synth:SEED, not for {}", o.data);
  require(!o.frames_per_block || *o.frames_per_block >= 1, "frames-per-block", "at least 1",
          o.frames_per_block.value_or(0));
  require(o.validation_fraction >= 0 && o.validation_fraction < 1, "validation-fraction",
          "a fraction in [0, 1)", o.validation_fraction);
  if (o.validation_fraction == 0 && o.criterion_split == CriterionSplit::kValidation)
    usage("--validation-fraction 0 leaves no frames for --criterion-split validation");
}

void validate_network(const Options& o) {
  validate_bits("bits", o.bits);
  if (!o.network.empty()) return;  // its text was read, and its shapes fit the data or do not
  if (o.input_bits) validate_bits("input-bits", *o.input_bits);
  for (int bits : o.weight_bits) validate_bits("weight-bits", bits);
  for (int bits : o.act_bits) validate_bits("act-bits", bits);
  require(!o.filters.empty(), "filters", "at least one convolution", "none");
  for (int channels : o.filters)
    require(channels >= 1 && channels <= kMaximumFilters, "filters", "1..65536 channels", channels);
  for (int channels : o.dense)
    require(channels >= 1 && channels <= kMaximumFilters, "dense", "1..65536 outputs", channels);
  const size_t hidden = o.filters.size() + o.dense.size();
  require(o.weight_bits.size() <= 1 || o.weight_bits.size() == hidden + 1, "weight-bits",
          fmt::format("one value or one for each of the {} layers", hidden + 1),
          fmt::format("{} values", o.weight_bits.size()));
  require(o.act_bits.size() <= 1 || o.act_bits.size() == hidden, "act-bits",
          fmt::format("one value or one for each of the {} hidden layers", hidden),
          fmt::format("{} values", o.act_bits.size()));
}

void validate_pruning(const Options& o) {
  if (o.accuracy) {
    require(o.accuracy->value > 0 && o.accuracy->value <= 1, "accuracy", "a fraction in (0, 1]",
            o.accuracy->value);
  }
  if (o.until_cost) {
    require(*o.until_cost > 0 && std::isfinite(*o.until_cost), "until-cost", "a cost above 0",
            *o.until_cost);
  }
  require(!o.p_methods.empty(), "p-methods", "at least one method", "none");
  require(o.p > 0 && o.p < 1, "p", "a fraction in (0, 1)", o.p);
  require(o.n > 1 && std::isfinite(o.n), "n", "a number above 1", o.n);
  for (double floor : o.p_threshold)
    require(floor > 0 && floor < 1, "p-threshold", "a fraction in (0, 1)", floor);
  require(o.p_threshold.size() <= 1 || o.p_threshold.size() == o.p_methods.size(), "p-threshold",
          fmt::format("one value or one for each of the {} methods", o.p_methods.size()),
          fmt::format("{} values", o.p_threshold.size()));
}

void validate_training(const Options& o) {
  require(o.epochs >= 1, "epochs", "at least 1", o.epochs);
  require(o.patience >= 1, "patience", "at least 1", o.patience);
  require(o.learning_rate > 0 && std::isfinite(o.learning_rate), "lr", "a number above 0",
          o.learning_rate);
  require(o.lr_patience >= 0, "lr-patience", "at least 0", o.lr_patience);
  require(o.batch_norm_steps >= 0 && o.batch_norm_steps <= kMaximumBatchNormSteps,
          "batch-norm-steps", "0..1000000", o.batch_norm_steps);
  require(o.label_smoothing >= 0 && o.label_smoothing < 1, "label-smoothing",
          "a fraction in [0, 1)", o.label_smoothing);
  try {
    augmentation_of(o.augment);
  } catch (const UsageError& error) {
    usage("--augment: {}", error.what());
  }
  require(o.distill_weight > 0 && o.distill_weight <= 1, "distill-weight", "a fraction in (0, 1]",
          o.distill_weight);
  require(o.distill_temperature > 0 && std::isfinite(o.distill_temperature), "distill-temperature",
          "a number above 0", o.distill_temperature);
  if (o.distill == kDistillBaseline) {
    const auto is_float = [](int bits) { return bits == kFloatBits; };
    const NetworkConfig config = layers_of(o);
    if (is_float(config.input_bits) || is_float(config.output_bits) ||
        std::ranges::any_of(config.layers, [&](const LayerConfig& layer) {
          return is_float(layer.act_bits) ||
                 (has_weights(layer.kind) && is_float(layer.weight_bits));
        }))
      usage(
          "--distill baseline: a teacher runs on integers, but the network is not quantized "
          "throughout");
  }
  require(o.batch >= 2 && o.batch <= (1 << 20), "batch", "2..1048576", o.batch);
  require(o.epoch_frames == 0 || o.epoch_frames >= o.batch, "epoch-frames", "0 or at least --batch",
          o.epoch_frames);
  if (o.epoch_frames > 0 && o.data.starts_with("synth:") && o.synth_frames != SynthFrames::kFixed)
    usage(
        "--epoch-frames: fresh synthesized frames are made for a whole pass, expected "
        "--synth-frames fixed or fewer --frames-per-block");
}

void validate_machine(const Options& o) {
  require(o.threads >= 0 && o.threads <= kMaximumThreads, "threads", "0..4096", o.threads);
  require(!o.sparse_threshold || (*o.sparse_threshold >= 0 && *o.sparse_threshold <= 1),
          "sparse-threshold", "auto or a density in [0, 1]", o.sparse_threshold.value_or(0));
  require(o.time_limit >= 0, "time-limit", "a time of at least 0", o.time_limit);
}

}  // namespace

const char* to_string(CriterionSplit split) {
  return split == CriterionSplit::kTest ? "test" : "validation";
}

const char* to_string(LrSchedule schedule) {
  return schedule == LrSchedule::kCosine ? "cosine" : "plateau";
}

const char* to_string(SynthFrames frames) {
  return frames == SynthFrames::kFixed ? "fixed" : "fresh";
}

const char* to_string(ElementType gradients) {
  return gradients == ElementType::kBF16 ? "bf16" : "float32";
}

const char* to_string(DeviceChoice device) {
  switch (device) {
    case DeviceChoice::kCpu:
      return "cpu";
    case DeviceChoice::kCuda:
      return "cuda";
    default:
      return "auto";
  }
}

const char* to_string(MethodsOrder order) {
  return order == MethodsOrder::kAlternate ? "alternate" : "serial";
}

std::string to_string(const AccuracyGoal& goal) {
  return fmt::format("{}{}", goal.value, goal.relative ? "x" : "");
}

std::optional<Options> parse_options(std::span<const std::string> arguments) {
  const char* description =
      "Trains a quantized 1-D CNN on RadioML frames and prunes it with feedback (FMP).";
  Options options;
  CLI::App app(description, "fmp_radioml");
  declare(app, options);
  if (!run_parser(app, arguments)) return std::nullopt;
  if (options.resume.empty()) {
    refuse_idle_flags(app, options);
    adopt_described_network(app, options);
    adopt_initial_network(app, options);
    normalise(app, options);
  } else {
    const std::string resume = options.resume;
    const std::vector<std::string> resumed = resumed_arguments(app, options);
    options = Options();
    CLI::App again(description, "fmp_radioml");
    declare(again, options);
    run_parser(again, resumed);
    adopt_described_network(again, options);
    adopt_initial_network(again, options);
    normalise(again, options);
    options.resume = options.out = resume;
  }
  validate(options);
  return options;
}

void validate(const Options& options) {
  validate_data(options);
  validate_network(options);
  validate_pruning(options);
  validate_training(options);
  validate_machine(options);
}

std::vector<std::string> to_arguments(const Options& o) {
  std::vector<std::string> arguments;
  const auto add = [&](const char* name, auto&& value) {
    arguments.push_back(fmt::format("--{}={}", name, std::forward<decltype(value)>(value)));
  };
  const auto add_list = [&](const char* name, const auto& values) {
    if (!values.empty()) add(name, fmt::join(values, ","));
  };
  if (!o.data.empty()) add("data", o.data);
  if (o.synth_frames) add("synth-frames", to_string(*o.synth_frames));
  if (o.snr_min) add("snr-min", *o.snr_min);
  add_list("classes", o.classes);
  if (o.frames_per_block) add("frames-per-block", *o.frames_per_block);
  add("validation-fraction", o.validation_fraction);
  add("memory-limit", o.memory_limit);
  if (o.init.empty()) {
    add("bits", o.bits);
    if (!o.network.empty()) {
      add("network", o.network);
    } else {
      if (o.input_bits) add("input-bits", *o.input_bits);
      add_list("weight-bits", o.weight_bits);
      add_list("act-bits", o.act_bits);
      add_list("filters", o.filters);
      add_list("kernel", o.kernel);
      add_list("stride", o.stride);
      add_list("padding", o.padding);
      add_list("groups", o.groups);
      add_list("pool", o.pool);
      add_list("dense", o.dense.empty() ? std::vector<int>{0} : o.dense);
    }
  } else {
    add("init", o.init);
    if (o.init_bits) add("bits", *o.init_bits);
  }
  if (o.accuracy) add("accuracy", to_string(*o.accuracy));
  if (o.until_cost) add("until-cost", *o.until_cost);
  add("criterion-split", to_string(o.criterion_split));
  add("feedback", o.feedback ? "on" : "off");
  add_list("p-methods", o.p_methods);
  add("p-methods-order", to_string(o.p_methods_order));
  add("p", o.p);
  add("n", o.n);
  add_list("p-threshold", o.p_threshold);
  add("epochs", o.epochs);
  add("patience", o.patience);
  add("lr", o.learning_rate);
  add("lr-schedule", to_string(o.lr_schedule));
  if (o.lr_schedule == LrSchedule::kPlateau) add("lr-patience", o.lr_patience);
  add("batch", o.batch);
  add("epoch-frames", o.epoch_frames);
  add("batch-norm-steps", o.batch_norm_steps);
  add("label-smoothing", o.label_smoothing);
  add_list("augment", o.augment);
  if (!o.distill.empty()) {
    add("distill", o.distill);
    add("distill-weight", o.distill_weight);
    add("distill-temperature", o.distill_temperature);
  }
  add("gradients", to_string(o.gradients));
  add("seed", o.seed);
  add("threads", o.threads);
  add("device", to_string(o.device));
  add("sparse-threshold", o.sparse_threshold ? fmt::format("{}", *o.sparse_threshold) : "auto");
  add("time-limit", o.time_limit);
  if (!o.out.empty()) add("out", o.out);
  if (!o.resume.empty()) add("resume", o.resume);
  return arguments;
}

nlohmann::json to_json(const Options& o) {
  const auto optional = [](const auto& value) {
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  };
  const auto of_teacher = [&o](double value) {
    return o.distill.empty() ? nlohmann::json(nullptr) : nlohmann::json(value);
  };
  const auto list_or = [](const std::vector<int>& values, int otherwise) {
    return values.empty() ? std::vector<int>{otherwise} : values;
  };
  const bool is_chain = o.network.empty();
  const auto of_chain = [&](const std::vector<int>& values) {
    return is_chain ? nlohmann::json(values) : nlohmann::json(nullptr);
  };
  const nlohmann::json goal = o.accuracy ? nlohmann::json(to_string(*o.accuracy)) : nullptr;
  return {{"data", o.data},
          {"synth-frames", o.synth_frames ? nlohmann::json(to_string(*o.synth_frames)) : nullptr},
          {"snr-min", optional(o.snr_min)},
          {"classes", o.classes},
          {"frames-per-block", optional(o.frames_per_block)},
          {"validation-fraction", o.validation_fraction},
          {"memory-limit", o.memory_limit},
          {"bits", o.bits},
          {"network", is_chain ? nullptr : nlohmann::json::parse(o.network)},
          {"input-bits", o.input_bits.value_or(o.bits)},
          {"weight-bits", of_chain(list_or(o.weight_bits, o.bits))},
          {"act-bits", of_chain(list_or(o.act_bits, o.bits))},
          {"filters", of_chain(o.filters)},
          {"kernel", of_chain(o.kernel)},
          {"stride", of_chain(o.stride)},
          {"padding", of_chain(o.padding)},
          {"groups", of_chain(o.groups)},
          {"pool", of_chain(o.pool)},
          {"dense", of_chain(o.dense)},
          {"init", o.init.empty() ? nlohmann::json(nullptr) : nlohmann::json(o.init)},
          {"accuracy", goal},
          {"until-cost", optional(o.until_cost)},
          {"criterion-split", to_string(o.criterion_split)},
          {"feedback", o.feedback ? "on" : "off"},
          {"p-methods", o.p_methods},
          {"p-methods-order", to_string(o.p_methods_order)},
          {"p", o.p},
          {"n", o.n},
          {"p-threshold", o.p_threshold},
          {"epochs", o.epochs},
          {"patience", o.patience},
          {"lr", o.learning_rate},
          {"lr-schedule", to_string(o.lr_schedule)},
          {"lr-patience", o.lr_schedule == LrSchedule::kPlateau ? nlohmann::json(o.lr_patience)
                                                                : nlohmann::json(nullptr)},
          {"batch", o.batch},
          {"epoch-frames", o.epoch_frames},
          {"batch-norm-steps", o.batch_norm_steps},
          {"label-smoothing", o.label_smoothing},
          {"augment", o.augment},
          {"distill", o.distill.empty() ? nlohmann::json(nullptr) : nlohmann::json(o.distill)},
          {"distill-weight", of_teacher(o.distill_weight)},
          {"distill-temperature", of_teacher(o.distill_temperature)},
          {"gradients", to_string(o.gradients)},
          {"seed", o.seed},
          {"threads", o.threads},
          {"device", to_string(o.device)},
          {"sparse-threshold", optional(o.sparse_threshold)},
          {"time-limit", o.time_limit},
          {"out", o.out}};
}

NetworkConfig layers_of(const Options& options) {
  if (!options.network.empty()) return parse_network(options.network, "--network", options.bits);
  ChainConfig chain;
  chain.filters = options.filters;
  chain.dense = options.dense;
  chain.kernel = options.kernel;
  chain.stride = options.stride;
  chain.padding = options.padding;
  chain.groups = options.groups;
  chain.pool = options.pool;
  chain.input_bits = options.input_bits.value_or(options.bits);
  chain.weight_bits =
      options.weight_bits.empty() ? std::vector<int>{options.bits} : options.weight_bits;
  chain.act_bits = options.act_bits.empty() ? std::vector<int>{options.bits} : options.act_bits;
  return chain;
}

NetworkConfig network_config(const Options& options, int length, int classes) {
  NetworkConfig config = layers_of(options);
  config.length = length;
  config.classes = classes;
  config.validate();
  return config;
}

}  // namespace fmp
