// SPDX-License-Identifier: MIT
// radioml_synth: writes a synthetic RadioML 2018.01A data set.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>

#include "framework/command_line.h"
#include "framework/error.h"
#include "framework/synth/hdf5_writer.h"
#include "framework/synth/synth.h"
#include "framework/threads.h"
#include "kernels/cpu/parallel.h"

namespace {

using fmp::synth::Config;
using fmp::synth::Fading;

constexpr int kFramesAtOnce = 1024;  // 8 MiB in memory, whatever the size of the set
constexpr int64_t kMaxFramesPerBlock = 1 << 24;

const std::map<std::string, Fading> kFadingNames = {
    {"none", Fading::kNone}, {"rayleigh", Fading::kRayleigh}, {"rician", Fading::kRician}};

struct Options {
  std::string out;
  int64_t frames_per_block = 4096;
  uint64_t seed = 2018;
  std::string snr = "-20:30:2";
  std::vector<std::string> classes;
  int threads = fmp::threads_or_all_cores(0);
  int compress = 0;
  bool quiet = false;
  std::string fading = "none";
  Config config;
};

// "30" or "first:last:step" in whole dB.
std::vector<int> parse_snrs(const std::string& text) {
  int first = 0, last = 0, step = 1, end = 0;
  const int fields = std::sscanf(text.c_str(), "%d%n:%d:%d%n", &first, &end, &last, &step, &end);
  if (fields == 1) last = first;
  const bool complete = (fields == 1 || fields == 3) && text.size() == static_cast<size_t>(end);
  if (!complete || step < 1 || last < first || first < -200 || last > 200) {
    throw fmp::UsageError("--snr takes dB or FIRST:LAST:STEP within -200..200, not '" + text + "'");
  }
  std::vector<int> snrs;
  for (int snr = first; snr <= last; snr += step) snrs.push_back(snr);
  return snrs;
}

std::vector<int> parse_classes(const std::vector<std::string>& names) {
  std::vector<int> classes;
  for (const auto& name : names) classes.push_back(fmp::synth::class_index(name));
  if (classes.empty()) {
    for (size_t c = 0; c < fmp::synth::modulations().size(); ++c)
      classes.push_back(static_cast<int>(c));
  }
  std::sort(classes.begin(), classes.end());
  if (std::adjacent_find(classes.begin(), classes.end()) != classes.end()) {
    throw fmp::UsageError("--classes names a class twice");
  }
  return classes;
}

void add_flags(CLI::App& app, Options& o) {
  app.add_option("--out", o.out, "HDF5 file to write; - = standard output")
      ->type_name("FILE")
      ->required();
  app.add_option("--frames-per-block", o.frames_per_block, "frames per class and SNR")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, kMaxFramesPerBlock));
  app.add_option("--seed", o.seed, "selects the set: same seed, same frames")
      ->capture_default_str();
  app.add_option("--snr", o.snr, "dB, or FIRST:LAST:STEP")->capture_default_str();
  app.add_option("--classes", o.classes, "names, separated by commas (default: all)")
      ->delimiter(',')
      ->transform(fmp::list_element());
  app.add_option("--threads", o.threads, "the frames do not depend on it")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--compress", o.compress, "zlib level, 0 (none) to 9")
      ->capture_default_str()
      ->check(CLI::Range(0, 9));
  app.add_flag("--quiet", o.quiet, "no progress bar");

  Config& c = o.config;
  const char* kSignal = "Signal (the defaults are RadioML 2018.01A's)";
  const auto signal = [&](const char* flag, auto& value, const char* help) {
    app.add_option(flag, value, help)->capture_default_str()->group(kSignal);
  };
  signal("--sps", c.sps, "samples per symbol");
  signal("--alpha-min", c.alpha_min, "smallest roll-off");
  signal("--alpha-max", c.alpha_max, "largest roll-off");
  signal("--span", c.span, "length of transmit and receive filter, symbols");
  signal("--cfo", c.channel.cfo, "deviation of the carrier offset, cycles per sample");
  signal("--sro", c.channel.sro, "deviation of the relative sample-rate offset");
  signal("--snr-slope", c.snr_slope,
         "dB of signal over noise per dB of the label; the real set's labels count amplitudes");
  signal("--noise-offset", c.noise_offset_db, "noise power over what the label then says, dB");

  const char* kImpairments = "Channel effects beyond the real set (for robustness studies)";
  const auto impairment = [&](const char* flag, auto& value, const char* help) {
    return app.add_option(flag, value, help)->capture_default_str()->group(kImpairments);
  };
  impairment("--fading", o.fading, "none, rayleigh or rician")
      ->check(CLI::IsMember({"none", "rayleigh", "rician"}));
  impairment("--rician-k", c.channel.rician_k_db, "direct over scattered power, dB");
  impairment("--delay-spread", c.channel.delay_spread, "of the echoes, samples");
  impairment("--doppler", c.channel.doppler, "largest Doppler shift, cycles per sample");
  impairment("--iq-gain", c.channel.iq_gain_db, "gain mismatch of the receiver's branches, dB");
  impairment("--iq-phase", c.channel.iq_phase_degrees, "phase mismatch, degrees");
  impairment("--phase-noise", c.channel.phase_noise, "phase walk, radians per sample");
}

// A line that is redrawn on a terminal, and left out elsewhere.
class Progress {
 public:
  Progress(int64_t total, bool quiet) : total_(total), shown_(!quiet && ::isatty(STDERR_FILENO)) {}
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  void update(int64_t done) {
    if (!shown_) return;
    constexpr int kWidth = 40;
    const double share = static_cast<double>(done) / static_cast<double>(total_);
    const std::string bar(static_cast<size_t>(share * kWidth), '#');
    const double rate = static_cast<double>(done) / std::max(seconds(), 1e-9);
    fmp::write_to_stderr(fmt::format(
        "\r[{:<{}}] {:3.0f}%  {:.0f} frames/s  {:.0f} s left {}", bar, kWidth, 100 * share, rate,
        static_cast<double>(total_ - done) / rate, done == total_ ? "\n" : ""));
  }

 private:
  int64_t total_;
  bool shown_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Frames first, first + 1, ... of a block into `values`, spread over the threads.
void make_frames(const fmp::synth::Generator& generator, const Options& o, int class_index,
                 int snr_db, int64_t first, std::span<float> values) {
  const auto count = static_cast<int64_t>(values.size() / fmp::synth::kFrameValues);
  fmp::cpu::parallel_for(count, o.threads, [&](int64_t k) {
    generator.frame(o.seed, class_index, snr_db, static_cast<uint64_t>(first + k),
                    std::span<float, fmp::synth::kFrameValues>(
                        values.data() + k * fmp::synth::kFrameValues, fmp::synth::kFrameValues));
  });
}

void write_attributes(const Options& o, fmp::synth::RadioMlWriter& file) {
  const Config& c = o.config;
  file.attribute("generator", std::string("radioml_synth"));
  file.attribute("seed", static_cast<int64_t>(o.seed));
  file.attribute("frames_per_block", o.frames_per_block);
  file.attribute("snr", o.snr);
  std::string names;
  for (const auto& m : fmp::synth::modulations()) names += (names.empty() ? "" : ",") + m->name();
  file.attribute("class_names", names);
  file.attribute("sps", static_cast<int64_t>(c.sps));
  file.attribute("alpha_min", c.alpha_min);
  file.attribute("alpha_max", c.alpha_max);
  file.attribute("span", static_cast<int64_t>(c.span));
  file.attribute("snr_slope", c.snr_slope);
  file.attribute("noise_offset_db", c.noise_offset_db);
  file.attribute("cfo", c.channel.cfo);
  file.attribute("sro", c.channel.sro);
  file.attribute("fading", o.fading);
  file.attribute("rician_k_db", c.channel.rician_k_db);
  file.attribute("delay_spread", c.channel.delay_spread);
  file.attribute("doppler", c.channel.doppler);
  file.attribute("iq_gain_db", c.channel.iq_gain_db);
  file.attribute("iq_phase_degrees", c.channel.iq_phase_degrees);
  file.attribute("phase_noise", c.channel.phase_noise);
}

void synthesize(Options& o) {
  o.threads = fmp::threads_or_all_cores(o.threads);
  o.config.channel.fading = kFadingNames.at(o.fading);
  const fmp::synth::Generator generator(o.config);
  const std::vector<int> snrs = parse_snrs(o.snr);
  const std::vector<int> classes = parse_classes(o.classes);
  const int64_t total = static_cast<int64_t>(classes.size() * snrs.size()) * o.frames_per_block;

  fmp::synth::RadioMlWriter file(o.out, total, static_cast<int>(fmp::synth::modulations().size()),
                                 o.compress);
  write_attributes(o, file);
  Progress progress(total, o.quiet);
  std::vector<float> values;
  int64_t done = 0;
  for (int class_index : classes) {
    for (int snr : snrs) {
      for (int64_t first = 0; first < o.frames_per_block; first += kFramesAtOnce) {
        const int64_t count = std::min<int64_t>(kFramesAtOnce, o.frames_per_block - first);
        values.resize(static_cast<size_t>(count) * fmp::synth::kFrameValues);
        make_frames(generator, o, class_index, snr, first, values);
        file.append(values, class_index, snr);
        progress.update(done += count);
      }
    }
  }
  file.finish();
  if (o.out == "-") return;
  fmt::print("{}: {} frames in {:.1f} s ({:.0f} frames/s)\n", o.out, total, progress.seconds(),
             static_cast<double>(total) / progress.seconds());
}

}  // namespace

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    CLI::App app("Writes a synthetic data set in the layout of RadioML 2018.01A.");
    Options options;
    add_flags(app, options);
    if (fmp::parse_command_line(app, argc, argv)) synthesize(options);
    return fmp::kExitSuccess;
  });
}
