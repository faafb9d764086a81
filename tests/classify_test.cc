// SPDX-License-Identifier: MIT
// The streams that `classify` reads, and the program itself: what it prints against what the
// integer network says, and one line of error for each kind of damage.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "framework/data/radioml.h"
#include "framework/data/sample_stream.h"
#include "framework/data/sha512.h"
#include "framework/data/split.h"
#include "framework/error.h"
#include "framework/inference/integer_network.h"
#include "framework/network/checkpoint.h"
#include "framework/onnx/export.h"
#include "framework/synth/hdf5_writer.h"
#include "framework/training/trainer.h"
#include "tests/integer_fixture.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<float> tone(int samples, float amplitude, float offset) {
  std::vector<float> iq;
  for (int n = 0; n < samples; ++n) {
    iq.push_back(amplitude * std::cos(0.7F * static_cast<float>(n)) + offset);
    iq.push_back(amplitude * std::sin(0.7F * static_cast<float>(n)));
  }
  return iq;
}

SampleStream::Options options_of(const char* format, Normalization normalization, int length,
                                 int stretch = 256) {
  return {parse_sample_format(format), normalization, length, stretch};
}

TEST(SampleStream, ReadsEveryFormat) {
  std::istringstream floats(bytes_of<float>({0.5F, -2, 3, 4, 5, 6}));
  SampleStream stream(floats, "x", options_of("cf32", Normalization::kNone, 2));
  std::vector<float> values;
  EXPECT_EQ(stream.read(8, values), 1);
  EXPECT_THAT(values, testing::ElementsAre(0.5F, -2, 3, 4));
  EXPECT_EQ(stream.left_over(), 1);

  std::istringstream shorts(bytes_of<int16_t>({-32768, 16384, 0, 1}));
  SampleStream of_shorts(shorts, "x", options_of("ci16", Normalization::kNone, 1));
  EXPECT_EQ(of_shorts.read(1, values), 1);
  EXPECT_THAT(values, testing::ElementsAre(-1, 0.5F));
  EXPECT_EQ(of_shorts.read(5, values), 1);
  EXPECT_THAT(values, testing::ElementsAre(0, 1.0F / 32768));
  EXPECT_EQ(of_shorts.left_over(), 0);

  std::istringstream signed_bytes(bytes_of<int8_t>({-128, 64}));
  SampleStream of_bytes(signed_bytes, "x", options_of("ci8", Normalization::kNone, 1));
  EXPECT_EQ(of_bytes.read(1, values), 1);
  EXPECT_THAT(values, testing::ElementsAre(-1, 0.5F));
}

// Complex deviation of values, in double precision.
double deviation(const std::vector<float>& iq) {
  double i = 0, q = 0, power = 0;
  for (size_t n = 0; n < iq.size(); n += 2) {
    i += static_cast<double>(iq[n]);
    q += static_cast<double>(iq[n + 1]);
    power += static_cast<double>(iq[n] * iq[n] + iq[n + 1] * iq[n + 1]);
  }
  const double count = static_cast<double>(iq.size()) / 2;
  return std::sqrt(power / count - i * i / count / count - q * q / count / count);
}

TEST(SampleStream, DividesByTheDeviationOfTheStretch) {
  // Loud, then quiet, with a mean that stays.
  std::vector<float> iq = tone(64, 3, 1);
  const std::vector<float> quiet = tone(64, 1, 1);
  iq.insert(iq.end(), quiet.begin(), quiet.end());
  std::istringstream in(bytes_of(iq));
  SampleStream stream(in, "x", options_of("cf32", Normalization::kStretch, 16, 8));
  std::vector<float> values;
  ASSERT_EQ(stream.read(100, values), 8);
  const float gain = static_cast<float>(1 / deviation(iq));
  for (size_t n = 0; n < iq.size(); ++n) EXPECT_NEAR(values[n], gain * iq[n], 1e-5) << n;
}

TEST(SampleStream, DoesNotDependOnHowManyFramesAreReadAtATime) {
  std::vector<float> iq = tone(400, 1, 0);
  for (size_t n = 0; n < iq.size(); ++n) iq[n] *= 1 + static_cast<float>(n) / 100;
  std::vector<std::vector<float>> results;
  for (const int64_t at_once : {1, 3, 1000}) {
    std::istringstream in(bytes_of(iq));
    SampleStream stream(in, "x", options_of("cf32", Normalization::kStretch, 20, 4));
    std::vector<float> all, values;
    while (stream.read(at_once, values) > 0) all.insert(all.end(), values.begin(), values.end());
    EXPECT_EQ(all.size(), iq.size());
    results.push_back(all);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(SampleStream, DividesByEachFramesOwnDeviation) {
  std::vector<float> iq = tone(32, 5, 2);
  const std::vector<float> quiet = tone(32, 0.1F, 0), silence(64, 0.25F);
  iq.insert(iq.end(), quiet.begin(), quiet.end());
  iq.insert(iq.end(), silence.begin(), silence.end());
  std::istringstream in(bytes_of(iq));
  SampleStream stream(in, "x", options_of("cf32", Normalization::kFrame, 32));
  std::vector<float> values;
  ASSERT_EQ(stream.read(3, values), 3);
  EXPECT_NEAR(deviation({values.begin(), values.begin() + 64}), 1, 1e-5);
  EXPECT_NEAR(deviation({values.begin() + 64, values.begin() + 128}), 1, 1e-5);
  EXPECT_THAT(std::vector<float>(values.begin() + 128, values.end()), testing::Each(0.0F));
}

TEST(SampleStream, RefusesHalfSamplesAndValuesThatAreNotFinite) {
  std::vector<float> values;
  std::istringstream cut(bytes_of<float>({1, 2, 3}) + "ab");
  SampleStream of_cut(cut, "x", options_of("cf32", Normalization::kNone, 1));
  EXPECT_THAT(
      [&] { of_cut.read(5, values); },
      testing::ThrowsMessage<Error>("x: ends within a sample, 6 bytes after the last whole one"));
  std::istringstream bad(bytes_of<float>({1, 2, 3, 4, NAN, 6}));
  SampleStream of_bad(bad, "x", options_of("cf32", Normalization::kNone, 1));
  EXPECT_THAT([&] { of_bad.read(5, values); },
              testing::ThrowsMessage<Error>("x: sample 2 is nan, not a finite number"));
}

// The program on files of its own.
class Classify : public testing::Test {
 protected:
  Classify() : network_(random_network(config(), 0.5, 50)) {
    std::string name = (fs::temp_directory_path() / "fmp_classify_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("no temporary directory");
    path_ = name;
    Checkpoint checkpoint;
    checkpoint.networks.emplace("network", network_);
    checkpoint.state = json::object();
    save_checkpoint(path_ / "model.fmp", checkpoint);
  }
  ~Classify() override {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  static ChainConfig config() {
    ChainConfig config;
    config.filters = {4, 4, 4, 4, 4, 4, 4};
    config.dense = {16};
    config.input_bits = 6;
    config.weight_bits = {6};
    config.act_bits = {6};
    return config;
  }

  std::string file(const char* name) const { return (path_ / name).string(); }
  void write(const char* name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

  struct Outcome {
    int exit_code = -1;
    std::string out, error;
  };
  Outcome run(const std::string& arguments, const std::string& before = "",
              const std::string& program = "classify") const {
    const std::string command = before + "'" + FMP_BINARY_DIR + "/tools/" + program + "' " +
                                arguments + " >'" + file("out") + "' 2>'" + file("error") + "'";
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the test has one thread
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("error")};
  }
  std::string read(const char* name) const {
    std::ifstream in(path_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::vector<uint8_t> predictions(const std::vector<float>& values) const {
    std::vector<int8_t> codes(values.size());
    quantize_input(values, config().input_bits, codes.data());
    const size_t count = values.size() / 2048;
    std::vector<int32_t> logits(count * 24);
    std::vector<uint8_t> predicted(count);
    IntegerNetwork(network_).run(codes, logits, predicted, 1);
    return predicted;
  }

  Network network_;
  fs::path path_;
};

std::vector<float> some_frames(int count) {
  std::vector<float> values;
  Random random(9, "stream");
  for (int n = 0; n < count; ++n) {
    const float amplitude = random.uniform(0.2F, 1.5F), step = random.uniform(0.0F, 3.0F);
    for (int l = 0; l < 1024; ++l) {
      const float angle = step * static_cast<float>(l);
      values.push_back(amplitude * std::cos(angle) + 0.2F * random.uniform(-1.0F, 1.0F));
      values.push_back(amplitude * std::sin(angle) + 0.2F * random.uniform(-1.0F, 1.0F));
    }
  }
  return values;
}

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST_F(Classify, PrintsALineForEachFrameOfAStream) {
  const std::vector<float> values = some_frames(37);
  write("iq", bytes_of(values) + std::string(80, '\0'));
  const std::vector<uint8_t> expected = predictions(values);
  ASSERT_GT(std::ranges::max(expected), std::ranges::min(expected));
  for (const std::string batch : {"1", "16", "1000"}) {
    const Outcome r = run("--model '" + file("model.fmp") +
                              "' --data - --format cf32 --normalize none --json --batch " + batch,
                          "cat '" + file("iq") + "' | ");
    EXPECT_EQ(r.exit_code, 0) << r.error;
    EXPECT_EQ(r.error, "note: standard input: the last 10 samples fill no frame\n");
    const std::vector<json> lines = lines_of(r.out);
    ASSERT_EQ(lines.size(), expected.size());
    for (size_t n = 0; n < lines.size(); ++n) {
      EXPECT_EQ(lines[n]["frame"], n);
      EXPECT_EQ(lines[n]["label"], expected[n]);
      EXPECT_EQ(lines[n]["class"], radioml_class_names()[expected[n]]);
      EXPECT_GE(lines[n]["confidence"], 1.0 / 24 - 1e-6);
      EXPECT_LE(lines[n]["confidence"], 1.0);
    }
  }
  const Outcome text = run("--model '" + file("model.fmp") + "' --data '" + file("iq") +
                           "' --format cf32 --normalize none");
  EXPECT_EQ(text.exit_code, 0) << text.error;
  std::istringstream in(text.out);
  for (size_t n = 0; n < expected.size(); ++n) {
    size_t frame = 0;
    std::string name;
    double confidence = 0;
    ASSERT_TRUE(in >> frame >> name >> confidence);
    EXPECT_EQ(frame, n);
    EXPECT_EQ(name, radioml_class_names()[expected[n]]);
  }
}

TEST_F(Classify, ReadsSigMf) {
  const std::vector<float> values = some_frames(5);
  std::vector<int16_t> shorts;
  std::vector<float> rounded;
  for (const float v : values) {
    shorts.push_back(static_cast<int16_t>(std::lround(v * 8192)));
    rounded.push_back(static_cast<float>(shorts.back()) / 32768);
  }
  write("r.sigmf-data", bytes_of(shorts));
  write("r.sigmf-meta", R"({"global": {"core:datatype": "ci16_le", "core:version": "1.0.0"},
                           "captures": [], "annotations": []})");
  const std::vector<uint8_t> expected = predictions(rounded);
  for (const char* name : {"r.sigmf-meta", "r.sigmf-data"}) {
    const Outcome r = run("--model '" + file("model.fmp") + "' --data '" + file(name) +
                          "' --json --normalize none");
    EXPECT_EQ(r.exit_code, 0) << r.error;
    const std::vector<json> lines = lines_of(r.out);
    ASSERT_EQ(lines.size(), expected.size());
    for (size_t n = 0; n < lines.size(); ++n) EXPECT_EQ(lines[n]["label"], expected[n]);
  }
  write("r.sigmf-meta", R"({"global": {"core:datatype": "rf32_le"}})");
  EXPECT_THAT(
      run("--model '" + file("model.fmp") + "' --data '" + file("r.sigmf-meta") + "'").error,
      testing::HasSubstr("core:datatype is 'rf32_le', expected complex samples"));
  write("r.sigmf-meta", "no JSON");
  EXPECT_THAT(
      run("--model '" + file("model.fmp") + "' --data '" + file("r.sigmf-meta") + "'").error,
      testing::HasSubstr("is no JSON"));
}

// A network of some classes knows their names, and takes only these from a file that has more.
TEST_F(Classify, KnowsTheNamesOfItsClasses) {
  ChainConfig small = config();
  small.classes = 3;
  Network network = random_network(small, 0.5, 51);
  network.class_names = {"OOK", "BPSK", "FM"};
  Checkpoint checkpoint;
  checkpoint.networks.emplace("network", network);
  checkpoint.state = json::object();
  save_checkpoint(path_ / "small.fmp", checkpoint);
  EXPECT_EQ(load_checkpoint(path_ / "small.fmp").networks.at("network").class_names,
            network.class_names);
  const std::vector<float> values = some_frames(24);
  write("iq", bytes_of(values));
  {
    synth::RadioMlWriter writer(path_ / "data.h5", 24, 24, 0);
    for (size_t c = 0; c < 24; ++c)
      writer.append(std::span(values).subspan(c * 2048, 2048), static_cast<int>(c), 10);
    writer.finish();
  }
  const std::string model = "--model '" + file("small.fmp") + "' --data '";
  const Outcome stream = run(model + file("iq") + "' --format cf32 --normalize none --json");
  ASSERT_EQ(stream.exit_code, 0) << stream.error;
  const std::vector<json> lines = lines_of(stream.out);
  ASSERT_EQ(lines.size(), 24U);
  for (const json& line : lines)
    EXPECT_EQ(line["class"], network.class_names[line["label"].get<size_t>()]);
  // OOK, BPSK and FM are columns 0, 3 and 21.
  const auto confusion_of = [&](const std::string& flags) {
    const Outcome r = run(model + file("data.h5") + "' --json " + flags);
    EXPECT_EQ(r.exit_code, 0) << r.error;
    return json::parse(r.out);
  };
  const json named = confusion_of("");
  EXPECT_EQ(named["frames"], 3);
  EXPECT_EQ(named["classes"], json({"OOK", "BPSK", "FM"}));
  for (const auto& [row, frame] : {std::pair{0, 0}, {1, 3}, {2, 21}})
    EXPECT_EQ(named["confusion"][row][lines[static_cast<size_t>(frame)]["label"].get<size_t>()], 1);
  const json renamed = confusion_of("--classes 'GMSK, 8PSK,BPSK'");
  for (const auto& [row, frame] : {std::pair{0, 22}, {1, 5}, {2, 3}})
    EXPECT_EQ(renamed["confusion"][row][lines[static_cast<size_t>(frame)]["label"].get<size_t>()],
              1);
  EXPECT_EQ(run(model + file("data.h5") + "' --classes BPSK,FM").exit_code, 2);
  EXPECT_EQ(run(model + file("data.h5") + "' --classes BPSK,FM,none").exit_code, 1);
}

// The same of onnx_eval, whichever way it takes. 24 frames, one of each class: a network is right
// where it answers the frame's own class.
TEST_F(Classify, OnnxFilesKnowTheNamesOfTheirClasses) {
  ChainConfig small = config();
  small.classes = 3;
  Network network = random_network(small, 0.5, 51);
  network.class_names = {"OOK", "BPSK", "FM"};
  const std::vector<float> values = some_frames(24);
  std::vector<size_t> answers;
  {
    std::vector<int8_t> codes(values.size());
    quantize_input(values, small.input_bits, codes.data());
    std::vector<int32_t> logits(24 * 3);
    std::vector<uint8_t> predicted(24);
    IntegerNetwork(network).run(codes, logits, predicted, 1);
    answers.assign(predicted.begin(), predicted.end());
    synth::RadioMlWriter writer(path_ / "data.h5", 24, 24, 0);
    for (size_t c = 0; c < 24; ++c)
      writer.append(std::span(values).subspan(c * 2048, 2048), static_cast<int>(c), 10);
    writer.finish();
  }
  onnx::export_network(network, path_ / "named.onnx");
  network.class_names = {"OOK", "BPSK"};
  onnx::export_network(network, path_ / "two.onnx");
  network.class_names.clear();
  onnx::export_network(network, path_ / "nameless.onnx");
  // frames: of each of the network's classes, in its order.
  const auto expect = [&](const std::string& arguments, const std::vector<size_t>& frames) {
    int right = 0;
    for (size_t c = 0; c < 3; ++c) right += answers[frames[c]] == c ? 1 : 0;
    for (const char* engine : {" --engine graph", " --engine network"}) {
      const Outcome r =
          run("--data '" + file("data.h5") + "' " + arguments + engine, "", "onnx_eval");
      EXPECT_THAT(r.out,
                  testing::HasSubstr(": 3 frames, accuracy " + fmt::format("{:.4f}", right / 3.0)))
          << arguments << engine << r.error;
    }
  };
  const std::string named = "'" + file("named.onnx") + "'",
                    nameless = "'" + file("nameless.onnx") + "'";
  expect(named, {0, 3, 21});
  expect(named + " --classes 'GMSK, 8PSK,BPSK'", {22, 5, 3});
  expect(nameless + " --classes bpsk,ook,FM", {3, 0, 21});
  for (const char* engine : {" --engine graph", " --engine network"}) {
    const std::string data = std::string(" --data '") + file("data.h5") + "'" + engine;
    EXPECT_THAT(run(nameless + data, "", "onnx_eval").error, testing::HasSubstr("24 classes, but"));
    EXPECT_THAT(run("'" + file("two.onnx") + "'" + data, "", "onnx_eval").error,
                testing::HasSubstr("its fmp_class_names name 2 classes, but its output"));
    const std::string too_few = fmt::format("{} --classes BPSK,FM{}", named, data);
    EXPECT_EQ(run(too_few, "", "onnx_eval").exit_code, 2);
  }
}

TEST_F(Classify, WarnsOfAnotherLevel) {
  const std::string arguments = "--model '" + file("model.fmp") + "' --data '" + file("iq") + "' ";
  std::vector<float> values = some_frames(5);
  for (float& v : values) v *= 0.01F;
  write("iq", bytes_of(values));
  EXPECT_EQ(run(arguments + "--format cf32").error, "") << "it is divided by the deviation";
  const Outcome quiet = run(arguments + "--format cf32 --normalize none");
  EXPECT_EQ(quiet.exit_code, 0);
  EXPECT_THAT(quiet.error, testing::HasSubstr("networks are made for 1; of the 6-bit input codes"));
  EXPECT_EQ(std::ranges::count(quiet.error, '\n'), 1) << quiet.error;
  std::string clipped;
  for (const float v : some_frames(5))
    clipped += static_cast<char>(std::clamp(std::lround(v * 200), -128L, 127L));
  write("iq", clipped);
  EXPECT_THAT(run(arguments + "--format ci8").error,
              testing::HasSubstr("of the stored integers are at the limits of their type"));
}

TEST_F(Classify, CapturesAreStreamsOfTheirOwn) {
  const std::vector<float> values = some_frames(5);
  // Two frames and a half, 100 bytes that are none, a frame and a half; a header before it all.
  const std::string bytes = bytes_of(values);
  const size_t cut = 5 * 1024 / 2 * 8;
  write("r.sigmf-data", "HEAD" + bytes.substr(0, cut) + std::string(100, 'z') +
                            bytes.substr(cut, 3 * 1024 / 2 * 8) + "end");
  write("r.sigmf-meta", R"({"global": {"core:datatype": "cf32_le", "core:trailing_bytes": 3},
    "captures": [{"core:sample_start": 0, "core:header_bytes": 4},
                 {"core:sample_start": 2560, "core:header_bytes": 100}]})");
  std::vector<float> expected(values.begin(), values.begin() + 2 * 2048);
  expected.insert(expected.end(), values.begin() + 5 * 1024, values.begin() + 7 * 1024);
  const std::vector<uint8_t> labels = predictions(expected);
  const Outcome r = run("--model '" + file("model.fmp") + "' --data '" + file("r.sigmf-meta") +
                        "' --json --normalize none");
  EXPECT_EQ(r.exit_code, 0) << r.error;
  const std::vector<json> lines = lines_of(r.out);
  ASSERT_EQ(lines.size(), 3U);
  for (size_t n = 0; n < 3; ++n) {
    EXPECT_EQ(lines[n]["frame"], n);
    EXPECT_EQ(lines[n]["label"], labels[n]);
  }
  EXPECT_EQ(std::ranges::count(r.error, '\n'), 2) << r.error;  // 512 samples left, twice
}

TEST_F(Classify, MeasuresAccuracyAsTheTrainerDoes) {
  {
    synth::RadioMlWriter writer(path_ / "data.h5", 24 * 2 * 10, 24, 0);
    const std::vector<float> values = some_frames(24 * 2 * 10);
    for (size_t block = 0; block < 48; ++block) {
      writer.append(std::span(values).subspan(block * 10 * 2048, 10 * 2048),
                    static_cast<int>(block / 2), block % 2 == 0 ? -4 : 10);
    }
    writer.finish();
  }
  RadioMlOptions options;
  options.path = file("data.h5");
  options.input_bits = config().input_bits;
  const auto data = open_radioml(options);
  Trainer trainer{TrainerOptions()};
  for (const std::string split : {"all", "test"}) {
    std::vector<int64_t> frames(static_cast<size_t>(data->size()));
    std::iota(frames.begin(), frames.end(), 0);
    if (split == "test") frames = make_split(data->blocks(), 0).test;
    const Evaluation expected = trainer.evaluate(network_, *data, frames);
    const std::string arguments =
        "--model '" + file("model.fmp") + "' --data '" + file("data.h5") + "' --split " + split;
    const Outcome r = run(arguments + " --json");
    ASSERT_EQ(r.exit_code, 0) << r.error;
    const json result = json::parse(r.out);
    EXPECT_EQ(result["frames"], expected.frames);
    EXPECT_EQ(result["correct"], expected.correct);
    ASSERT_EQ(result["by_snr"].size(), expected.by_snr.size());
    for (size_t i = 0; i < expected.by_snr.size(); ++i) {
      EXPECT_EQ(result["by_snr"][i]["snr_db"], expected.by_snr[i].snr_db);
      EXPECT_EQ(result["by_snr"][i]["correct"], expected.by_snr[i].correct);
    }
    for (size_t t = 0; t < 24; ++t) {
      for (size_t p = 0; p < 24; ++p) {
        EXPECT_EQ(result["confusion"][t][p], expected.confusion[t * 24 + p]);
      }
    }
    const Outcome text = run(arguments);
    EXPECT_THAT(text.out, testing::StartsWith(fmt::format("{} of {} frames right", expected.correct,
                                                          expected.frames)));
  }
}

TEST_F(Classify, Benchmarks) {
  const Outcome r = run("--model '" + file("model.fmp") + "' --benchmark --json");
  ASSERT_EQ(r.exit_code, 0) << r.error;
  const json result = json::parse(r.out)["benchmark"];
  EXPECT_GT(result["frames_per_s"], 0);
  EXPECT_GE(result["latency_ms"]["p99"], result["latency_ms"]["p50"]);
  EXPECT_EQ(result["layers"].size(), 9U);
}

TEST_F(Classify, SaysInOneLineWhatIsWrong) {
  const std::string model = "--model '" + file("model.fmp") + "' ";
  const auto expect = [&](const std::string& arguments, int exit_code, const std::string& part) {
    const Outcome r = run(arguments);
    EXPECT_EQ(r.exit_code, exit_code) << arguments;
    EXPECT_THAT(r.error, testing::HasSubstr(part));
    if (exit_code == 1) {
      EXPECT_THAT(r.error, testing::StartsWith("error: "));
      EXPECT_EQ(std::ranges::count(r.error, '\n'), 1) << r.error;
    }
    EXPECT_EQ(r.out, "");
  };
  expect(model, 2, "--data or --benchmark");
  expect(model + "--data -", 2, "--format");
  expect(model + "--data x --format wav", 2, "--format");
  expect(model + "--data - --format sigmf", 2, "pipe");
  expect(model + "--data /nowhere --format cf32", 1, "/nowhere");
  expect("--model /nowhere --benchmark", 1, "/nowhere");
  write("short", std::string(100, '\0'));
  expect(model + "--data '" + file("short") + "' --format ci8", 1,
         "50 samples, fewer than the 1024");
  write("garbage.fmp", "no checkpoint");
  expect("--model '" + file("garbage.fmp") + "' --benchmark", 1, "garbage.fmp");
}

}  // namespace
}  // namespace fmp
