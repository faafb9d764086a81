// SPDX-License-Identifier: MIT
// The synthesizer's signals, each property measured from samples or compared with a textbook's
// closed form, not with the code that made it.
#include "framework/synth/synth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <numbers>
#include <numeric>
#include <string>
#include <thread>
// liquid.h takes std::complex for its complex numbers where <complex> came before it.
#include <liquid/liquid.h>

#include "framework/error.h"
#include "framework/synth/audio.h"
#include "framework/synth/channel.h"
#include "framework/synth/linear.h"
#include "framework/synth/pulse.h"
#include "framework/synth/rng.h"

namespace fmp::synth {
namespace {

using Complex = std::complex<double>;
using Frame = std::vector<float>;

constexpr double kNoNoiseDb = -60;  // noise offset: 60 dB less than the label says
constexpr uint64_t kSeed = 7;

Frame make(const Config& config, int class_index, int snr_db, uint64_t index) {
  Frame frame(kFrameValues);
  Generator(config).frame(kSeed, class_index, snr_db, index,
                          std::span<float, kFrameValues>(frame.data(), kFrameValues));
  return frame;
}

// Without noise, carrier or clock offset.
Config clean_config() {
  Config config;
  config.noise_offset_db = kNoNoiseDb;
  config.channel.cfo = config.channel.sro = 0;
  return config;
}

const Modulation& modulation(const std::string& name) {
  return *modulations().at(static_cast<size_t>(class_index(name)));
}

const Constellation& points_of(const std::string& name) {
  return dynamic_cast<const LinearModulation&>(modulation(name)).points();
}

// A long stretch of what a transmitter sends.
std::vector<std::complex<float>> sent(const std::string& name, int length, double rolloff = 0.35) {
  Signal signal(length);
  Rng rng({kSeed, 0, 0, 0, Purpose::kSource});
  modulation(name).modulate({8, rolloff, 16, 0}, rng, signal);
  std::vector<std::complex<float>> samples(static_cast<size_t>(length));
  for (int n = 0; n < length; ++n) samples[static_cast<size_t>(n)] = {signal.i[n], signal.q[n]};
  return samples;
}

// Power per bin, mean over Hann-windowed pieces of `bins` samples; bin k holds the frequency
// (k - bins / 2) / bins.
std::vector<double> spectrum(std::vector<std::complex<float>> samples, size_t bins) {
  std::vector<std::complex<float>> in(bins), out(bins);
  const fftplan plan =
      fft_create_plan(static_cast<unsigned>(bins), in.data(), out.data(), LIQUID_FFT_FORWARD, 0);
  std::vector<double> power(bins);
  for (size_t first = 0; first + bins <= samples.size(); first += bins / 2) {
    for (size_t n = 0; n < bins; ++n) {
      const double turn = static_cast<double>(n) / static_cast<double>(bins);
      in[n] = samples[first + n] *
              static_cast<float>(0.5 - 0.5 * std::cos(2 * std::numbers::pi * turn));
    }
    fft_execute(plan);
    for (size_t k = 0; k < bins; ++k) power[(k + bins / 2) % bins] += std::norm(out[k]);
  }
  fft_destroy_plan(plan);
  return power;
}

// The band around 0 that holds `share` of the power, in cycles per sample.
double occupied_bandwidth(const std::vector<double>& power, double share) {
  const double total = std::accumulate(power.begin(), power.end(), 0.0);
  const size_t middle = power.size() / 2;
  double sum = power[middle];
  size_t half = 0;
  while (sum < share * total && half + 1 < middle) {
    ++half;
    sum += power[middle + half] + power[middle - half];
  }
  return static_cast<double>(2 * half + 1) / static_cast<double>(power.size());
}

TEST(SynthConstellationTest, CountsAndMeanPowers) {
  // Mean power over the square of the smallest distance, from textbooks: (M-1)/6 for a square of M
  // points, 5 and 20.5 for the crosses of 32 and 128, (2m-1)(m-1)/6 for levels 0..m-1.
  const std::map<std::string, std::pair<size_t, double>> expected = {
      {"OOK", {2, 0.5}},    {"4ASK", {4, 3.5}},    {"8ASK", {8, 17.5}},     {"16QAM", {16, 2.5}},
      {"32QAM", {32, 5.0}}, {"64QAM", {64, 10.5}}, {"128QAM", {128, 20.5}}, {"256QAM", {256, 42.5}},
      {"BPSK", {2, 0.25}},  {"QPSK", {4, 0.5}},    {"OQPSK", {4, 0.5}}};
  for (const auto& [name, value] : expected) {
    const Constellation& points = points_of(name);
    ASSERT_EQ(points.size(), value.first) << name;
    double power = 0, nearest = 1e300;
    for (size_t i = 0; i < points.size(); ++i) {
      power += std::norm(points[i]);
      for (size_t j = 0; j < i; ++j) nearest = std::min(nearest, std::norm(points[i] - points[j]));
    }
    EXPECT_NEAR(power / static_cast<double>(points.size()) / nearest, value.second, 1e-9) << name;
  }
}

TEST(SynthConstellationTest, PhaseKeyingIsOneEvenRing) {
  for (int count : {2, 4, 8, 16, 32}) {
    const std::string name = count == 2   ? "BPSK"
                             : count == 4 ? "QPSK"
                                          : std::to_string(count) + "PSK";
    // The points of an even ring are the roots of z^count = const: their powers agree.
    for (const Complex& point : points_of(name)) {
      EXPECT_NEAR(std::abs(std::pow(point, count) - std::pow(points_of(name)[0], count)), 0, 1e-9);
      EXPECT_NEAR(std::abs(point), 1, 1e-12);
    }
    EXPECT_EQ(points_of(name).size(), static_cast<size_t>(count));
  }
}

TEST(SynthConstellationTest, AmplitudePhaseKeyingHasItsRings) {
  const auto rings_of = [](const std::string& name) {
    std::map<int64_t, int> counts;  // radius over the innermost, in hundredths
    double inner = 1e300;
    for (const Complex& point : points_of(name)) inner = std::min(inner, std::abs(point));
    for (const Complex& point : points_of(name))
      ++counts[static_cast<int64_t>(std::llround(100 * std::abs(point) / inner))];
    return counts;
  };
  // DVB-S2 at code rate 3/4 (EN 302 307-1, tables 9 and 10).
  EXPECT_EQ(rings_of("16APSK"), (std::map<int64_t, int>{{100, 4}, {285, 12}}));
  EXPECT_EQ(rings_of("32APSK"), (std::map<int64_t, int>{{100, 4}, {284, 12}, {527, 16}}));
  for (const auto& [name, count] : {std::pair("64APSK", 64), std::pair("128APSK", 128)}) {
    int total = 0;
    for (const auto& [radius, points] : rings_of(name)) total += points;
    EXPECT_EQ(total, count);
    for (size_t i = 0; i < points_of(name).size(); ++i) {
      for (size_t j = 0; j < i; ++j)
        EXPECT_GT(std::abs(points_of(name)[i] - points_of(name)[j]), 0.1) << name;
    }
  }
}

TEST(SynthPulseTest, LongFiltersMakeTheRaisedCosine) {
  for (double rolloff : {0.25, 0.35, 0.8}) {
    const FilterPair pair(rolloff, 16);
    for (int step = -64; step <= 64; ++step) {
      const double t = step / 16.0;
      // Away from the zero of the denominator the textbook's form needs no limit.
      const double x = 2 * rolloff * t;
      if (std::abs(1 - x * x) < 1e-3) continue;
      const double sinc = t == 0 ? 1 : std::sin(std::numbers::pi * t) / (std::numbers::pi * t);
      EXPECT_NEAR(pair.at(t), sinc * std::cos(std::numbers::pi * rolloff * t) / (1 - x * x), 0.02)
          << "rolloff " << rolloff << " t " << t;  // 0.02: what the window takes off
    }
  }
}

TEST(SynthPulseTest, InterferenceBetweenSymbols) {
  const auto interference = [](double rolloff, int span) {
    const Pulse pulse(FilterPair(rolloff, span), 8, 0);
    double sum = 0;
    for (int symbol = -span; symbol <= span; ++symbol) {
      const double tap = pulse.taps()[static_cast<size_t>(pulse.reach() + 8 * symbol)];
      if (symbol != 0) sum += tap * tap;
    }
    EXPECT_EQ(pulse.taps()[static_cast<size_t>(pulse.reach())], 1);
    return 10 * std::log10(sum);
  };
  EXPECT_LT(interference(0.35, 16), -35);  // hardly any with long filters
  EXPECT_LT(interference(0.35, 8), -22);   // the real set's are short
}

TEST(SynthPulseTest, FractionDelays) {
  const FilterPair pair(0.42, 4);
  const Pulse pulse(pair, 8, 0.3);
  for (int n = -32; n <= 32; ++n)
    EXPECT_NEAR(pulse.taps()[static_cast<size_t>(pulse.reach() + n)], pair.at((n - 0.3) / 8), 1e-6);
}

// The spectrum of linear modulation is that of its pulse: a raised cosine, squared.
TEST(SynthPulseTest, OccupiedBandwidth) {
  constexpr double kShare = 0.99;
  for (double rolloff : {0.2, 0.42, 0.8}) {
    const auto level = [rolloff](double f) {  // f in symbol rates
      if (f <= (1 - rolloff) / 2) return 1.0;
      if (f >= (1 + rolloff) / 2) return 0.0;
      return 0.5 * (1 + std::cos(std::numbers::pi / rolloff * (f - (1 - rolloff) / 2)));
    };
    constexpr int kSteps = 20000;
    double total = 0, sum = 0, f = 0;
    for (int k = 0; k < kSteps; ++k) total += std::pow(level(1.0 * k / kSteps), 2);
    while (sum < kShare * total) {
      sum += std::pow(level(f), 2);
      f += 1.0 / kSteps;
    }
    const auto power = spectrum(sent("QPSK", 1 << 17, rolloff), 1024);
    EXPECT_NEAR(occupied_bandwidth(power, kShare), 2 * f / 8, 0.004) << "rolloff " << rolloff;
  }
}

// The same frames with noise and without: what is left after the best scaling is noise.
double measured_snr_db(const Config& config, int class_index, int snr_db) {
  Config quiet = config;
  quiet.noise_offset_db = kNoNoiseDb;
  double signal_power = 0, noise_power = 0;
  for (uint64_t index = 0; index < 600; ++index) {
    const Frame clean = make(quiet, class_index, snr_db, index);
    const Frame noisy = make(config, class_index, snr_db, index);
    const double energy = std::inner_product(clean.begin(), clean.end(), clean.begin(), 0.0);
    const double scale =
        std::inner_product(clean.begin(), clean.end(), noisy.begin(), 0.0) / energy;
    signal_power += scale * scale * energy;
    for (size_t n = 0; n < clean.size(); ++n)
      noise_power += std::pow(noisy[n] - scale * clean[n], 2);
  }
  return 10 * std::log10(signal_power / noise_power);
}

TEST(SynthNoiseTest, MeasuredSnrIsTheLabelsAmplitudeRatio) {
  Config config;
  config.noise_offset_db = 0;
  // RadioML's labels count the amplitude of the noise: 10 log10(signal / noise amplitude).
  for (const auto& m : modulations())
    EXPECT_NEAR(measured_snr_db(config, class_index(m->name()), 4), 8, 0.1) << m->name();
}

TEST(SynthNoiseTest, WithSlopeOneTheLabelIsTheSnr) {
  Config config;
  config.snr_slope = 1;
  config.noise_offset_db = 0;
  for (const auto& m : modulations())
    EXPECT_NEAR(measured_snr_db(config, class_index(m->name()), 10), 10, 0.1) << m->name();
}

TEST(SynthNoiseTest, NoiseAloneHasDeviationOne) {
  // At -60 dB a frame is noise, which the receiver scales to deviation 1.
  double power = 0;
  constexpr int kFrames = 200;
  for (uint64_t index = 0; index < kFrames; ++index)
    for (float value : make(Config{}, class_index("16QAM"), -30, index)) power += value * value;
  EXPECT_NEAR(power / kFrames / kFrameLength, 1, 0.01);
}

TEST(SynthChannelTest, CarrierOffsetIsNormal) {
  Config config = clean_config();
  config.channel.cfo = 1e-3;
  const int c = class_index("AM-SSB-WC");  // little but a carrier
  std::vector<double> offsets;
  for (uint64_t index = 0; index < 3000; ++index) {
    const Frame frame = make(config, c, 30, index);
    double turns = 0;
    for (int n = 1; n < kFrameLength; ++n) {
      const Complex a(frame[2 * n - 2], frame[2 * n - 1]), b(frame[2 * n], frame[2 * n + 1]);
      turns += std::arg(b * std::conj(a)) / (2 * std::numbers::pi);
    }
    offsets.push_back(turns / (kFrameLength - 1));
  }
  const double count = static_cast<double>(offsets.size());
  const double mean = std::accumulate(offsets.begin(), offsets.end(), 0.0) / count;
  double variance = 0, beyond = 0;
  for (double offset : offsets) {
    variance += (offset - mean) * (offset - mean) / count;
    beyond += std::abs(offset) > 1.96e-3 ? 1 / count : 0;
  }
  EXPECT_NEAR(mean, 0, 1e-4);
  EXPECT_NEAR(std::sqrt(variance), 1e-3, 5e-5);
  EXPECT_NEAR(beyond, 0.05, 0.02);
}

// A tone of `frequency` cycles per sample through the channel.
Signal received_tone(const ChannelConfig& config, double frequency, uint64_t index) {
  Signal in(kFrameLength + 2 * kMargin), out(kFrameLength);
  for (int n = 0; n < in.length(); ++n) {
    const double angle = 2 * std::numbers::pi * frequency * n;
    in.i[static_cast<size_t>(n)] = static_cast<float>(std::cos(angle));
    in.q[static_cast<size_t>(n)] = static_cast<float>(std::sin(angle));
  }
  Rng rng({kSeed, index, 0, 0, Purpose::kChannel});
  propagate(config, rng, in, out);
  return out;
}

Complex sample(const Signal& signal, int n) {
  return {static_cast<double>(signal.i[static_cast<size_t>(n)]),
          static_cast<double>(signal.q[static_cast<size_t>(n)])};
}

TEST(SynthChannelTest, ClockOffsetStretchesAToneByItsDeviation) {
  ChannelConfig config;
  config.cfo = 0;
  config.sro = 1e-3;
  constexpr double kTone = 0.05;
  constexpr int kFrames = 2000;
  double mean = 0, square = 0;
  for (uint64_t index = 0; index < kFrames; ++index) {
    const Signal out = received_tone(config, kTone, index);
    double turns = 0;
    for (int n = 1; n < kFrameLength; ++n) {
      turns += std::arg(sample(out, n) * std::conj(sample(out, n - 1))) / (2 * std::numbers::pi);
    }
    const double offset = turns / (kFrameLength - 1) / kTone - 1;
    mean += offset / kFrames;
    square += offset * offset / kFrames;
  }
  EXPECT_NEAR(mean, 0, 1e-4);
  EXPECT_NEAR(std::sqrt(square), 1e-3, 6e-5);
}

// Moments of the power of a path that does not change within a frame: mean 1 and, K being the
// direct path's power over that of the scattered ones, E p^2 = 1 + (1 + 2 K) / (1 + K)^2. Eight
// waves instead of infinitely many take an eighth off the scattered part's variance.
TEST(SynthChannelTest, FadingHasTheMomentsOfItsDistribution) {
  for (const auto& [fading, k] : {std::pair(Fading::kRayleigh, 0.0), {Fading::kRician, 4.0}}) {
    ChannelConfig config;
    config.cfo = config.sro = config.doppler = config.delay_spread = 0;
    config.fading = fading;
    config.rician_k_db = 10 * std::log10(4.0);
    constexpr int kFrames = 8000;
    double mean = 0, square = 0;
    for (uint64_t index = 0; index < kFrames; ++index) {
      const double power = std::norm(sample(received_tone(config, 0, index), kFrameLength / 2));
      mean += power / kFrames;
      square += power * power / kFrames;
    }
    EXPECT_NEAR(mean, 1, 0.04) << "K " << k;
    EXPECT_NEAR(square, 1 + (1 + 2 * k - 1.0 / 8) / ((1 + k) * (1 + k)), 0.15) << "K " << k;
  }
}

TEST(SynthAnalogTest, FmHasConstantEnvelopeAndItsDeviation) {
  const auto samples = sent("FM", 1 << 18);
  double square = 0;
  for (size_t n = 1; n < samples.size(); ++n) {
    ASSERT_NEAR(std::abs(samples[n]), 1, 1e-5);
    const double step =
        std::arg(Complex(samples[n]) * std::conj(Complex(samples[n - 1]))) / (2 * std::numbers::pi);
    square += step * step;
  }
  // A tone's root mean square lies a factor of sqrt(2) below its peak, a quarter of a symbol rate.
  EXPECT_NEAR(std::sqrt(square / static_cast<double>(samples.size())),
              0.25 / 8 / std::numbers::sqrt2, 0.0002);
}

TEST(SynthAnalogTest, SingleSidebandHasOneSideband) {
  for (const char* name : {"AM-SSB-WC", "AM-SSB-SC"}) {
    auto samples = sent(name, 1 << 17);
    std::complex<double> mean = 0;
    for (const auto& sample : samples) mean += Complex(sample);
    mean /= static_cast<double>(samples.size());
    for (auto& sample : samples) sample -= std::complex<float>(mean);
    constexpr size_t kBins = 1 << 14;
    const auto power = spectrum(samples, kBins);
    double upper = 0, lower = 0;
    for (size_t k = 8; k < kBins / 2; ++k) {  // past what the window spreads from the carrier
      upper += power[kBins / 2 + k];
      lower += power[kBins / 2 - k];
    }
    EXPECT_GT(10 * std::log10(upper / lower), 50) << name;
    EXPECT_NEAR(std::abs(mean), 1, 1e-3) << name;  // the carrier that the class is known by
  }
}

TEST(SynthAnalogTest, DoubleSidebandIsReal) {
  for (const char* name : {"AM-DSB-WC", "AM-DSB-SC"})
    for (const auto& sample : sent(name, 4096)) ASSERT_EQ(sample.imag(), 0) << name;
}

TEST(SynthGmskTest, TurnsAQuarterPerBit) {
  // A modulation index of 1/2: after many bits the phases at symbol instants lie near four angles,
  // so their fourth powers agree, but for the pulse's memory of the neighbouring bits.
  const auto samples = sent("GMSK", 8 * 4096);
  double steps = 0;
  for (size_t n = 8; n < samples.size(); n += 8) {
    ASSERT_NEAR(std::abs(samples[n]), 1, 1e-5);
    const double step = std::arg(Complex(samples[n]) * std::conj(Complex(samples[n - 8])));
    ASSERT_LE(std::abs(step), std::numbers::pi / 2 + 1e-3);
    steps = std::max(steps, std::abs(step));
  }
  EXPECT_NEAR(steps, std::numbers::pi / 2, 0.02);  // three equal bits in a row
}

TEST(SynthDeterminismTest, FramesDependOnNothingElse) {
  const Generator generator{Config{}};
  std::vector<Frame> alone(modulations().size(), Frame(kFrameValues));
  std::vector<Frame> together = alone;
  const auto fill = [&](std::vector<Frame>& frames, size_t c) {
    generator.frame(kSeed, static_cast<int>(c), 4, 12,
                    std::span<float, kFrameValues>(frames[c].data(), kFrameValues));
  };
  for (size_t c = 0; c < alone.size(); ++c) fill(alone, c);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (size_t c = alone.size(); c-- > 0;)
        if (c % 3 == t) fill(together, c);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(alone, together);
}

TEST(SynthDeterminismTest, SetsShareTheirFirstFrames) {
  SynthDataset::Options small, large;
  small.frames_per_block = 2;
  large.frames_per_block = 5;
  small.seed = large.seed = kSeed;
  small.classes = large.classes = {3, 21};
  small.snrs_db = large.snrs_db = {0, 10};
  small.input_bits = large.input_bits = 32;
  FrameBatch few, many;
  // Frame 1 of block (class 21, 10 dB), the fourth of both sets.
  SynthDataset(small).read(std::vector<int64_t>{3 * 2 + 1}, few);
  SynthDataset(large).read(std::vector<int64_t>{3 * 5 + 1}, many);
  EXPECT_EQ(few.values, many.values);
  EXPECT_EQ(few.labels, many.labels);
  EXPECT_EQ(few.snr_db, (std::vector<int16_t>{10}));
}

TEST(SynthDeterminismTest, SetsAreTheSameForAnyNumberOfThreads) {
  const auto batch = [](int threads, int input_bits) {
    SynthDataset::Options options;
    options.frames_per_block = 2;
    options.snrs_db = {-4, 12};
    options.seed = kSeed;
    options.input_bits = input_bits;
    options.threads = threads;
    SynthDataset set(options);
    std::vector<int64_t> frames(static_cast<size_t>(set.size()));
    std::iota(frames.rbegin(), frames.rend(), 0);
    set.refresh_each_epoch(std::vector<int64_t>{3, 50});
    set.set_epoch(2);
    FrameBatch result;
    set.read(frames, result);
    return result;
  };
  for (int input_bits : {4, 32}) {
    const FrameBatch one = batch(1, input_bits);
    EXPECT_EQ(one.count, 24 * 2 * 2);
    for (int threads : {2, 7}) {
      const FrameBatch several = batch(threads, input_bits);
      EXPECT_EQ(one.codes, several.codes) << threads;
      EXPECT_EQ(one.values, several.values) << threads;
      EXPECT_EQ(one.labels, several.labels) << threads;
      EXPECT_EQ(one.snr_db, several.snr_db) << threads;
    }
  }
}

TEST(SynthDeterminismTest, FramesThatAreNotThereAreErrorsOnAnyThread) {
  SynthDataset::Options options;
  options.frames_per_block = 1;
  options.threads = 3;
  const SynthDataset set(options);
  std::vector<int64_t> frames(40);
  std::iota(frames.begin(), frames.end(), set.size() - 39);
  FrameBatch batch;
  EXPECT_THROW(set.read(frames, batch), Error);
}

// Results that were published name a seed: the frames of a seed stay what they were.
TEST(SynthDeterminismTest, FramesOfASeedStayWhatTheyWere) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a over the values' bits
  for (int c = 0; c < static_cast<int>(modulations().size()); ++c) {
    for (uint64_t index : {0, 1, 70000}) {
      for (float value : make(Config{}, c, index == 0 ? -8 : 18, index))
        hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001B3;
    }
  }
  EXPECT_EQ(hash, 2788715592127031207U);
}

TEST(SynthDeterminismTest, FilesAreTheSameForAnyNumberOfThreads) {
  const std::filesystem::path dir = ::testing::TempDir();
  const auto file = [&](int threads, const char* compression) {
    const std::filesystem::path path =
        dir / ("fmp_synth_threads_" + std::to_string(threads) + compression + ".h5");
    const std::string command =
        std::string(FMP_BINARY_DIR) + "/tools/radioml_synth --out '" + path.string() +
        "' --frames-per-block 40 --snr 0:10:10 --classes BPSK,FM --quiet" + " --compress " +
        compression + " --threads " + std::to_string(threads);
    EXPECT_EQ(std::system(command.c_str()), 0) << command;  // NOLINT(concurrency-mt-unsafe)
    std::ifstream stream(path, std::ios::binary);
    std::string bytes(std::istreambuf_iterator<char>(stream), {});
    std::filesystem::remove(path);
    return bytes;
  };
  for (const char* compression : {"0", "4"}) {
    const std::string one = file(1, compression);
    // Times that a file notes count whole seconds.
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));
    EXPECT_GT(one.size(), 1000U);
    EXPECT_TRUE(one == file(3, compression)) << "compression " << compression;
  }
}

TEST(SynthOptionsTest, BadValuesNameTheirFlag) {
  const auto message = [](auto change) {
    Config config;
    change(config);
    try {
      validate(config);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(message([](Config& c) { c.sps = 1; }).find("--sps"), std::string::npos);
  EXPECT_NE(message([](Config& c) { c.alpha_max = 0.2; }).find("--alpha-max"), std::string::npos);
  EXPECT_NE(message([](Config& c) { c.snr_slope = -1; }).find("--snr-slope"), std::string::npos);
  EXPECT_NE(message([](Config& c) { c.channel.cfo = std::nan(""); }).find("--cfo"),
            std::string::npos);
  EXPECT_EQ(message([](Config&) {}), "");
}

}  // namespace
}  // namespace fmp::synth
