// SPDX-License-Identifier: MIT
// Which bytes of a recording are samples: SigMF's fields, archives, sample types, and the level of
// streams.
#include "framework/data/sigmf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "framework/data/sample_stream.h"
#include "framework/data/sha512.h"
#include "framework/data/tar_file.h"
#include "framework/error.h"
#include "framework/random.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class SigMfTest : public testing::Test {
 protected:
  SigMfTest() {
    std::string name = (fs::temp_directory_path() / "fmp_sigmf_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("no temporary directory");
    path_ = name;
    write("r.sigmf-data", std::string(1000, 'x'));
  }
  ~SigMfTest() override {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  void write(const char* name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  // A recording of 1,000 bytes with these fields after core:datatype, and these captures.
  SigMf read(const std::string& fields, const std::string& captures = "[]",
             const std::string& type = "ci8") const {
    write("r.sigmf-meta", R"({"global": {"core:datatype": ")" + type + '"' + fields +
                              R"(}, "captures": )" + captures + "}");
    return read_sigmf(path_ / "r.sigmf-meta");
  }
  std::string error(const std::string& fields, const std::string& captures = "[]",
                    const std::string& type = "ci8") const {
    try {
      read(fields, captures, type);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith((path_ / "r.sigmf-meta").string()));
      return error.what();
    }
    return "none";
  }

  fs::path path_;
};

TEST_F(SigMfTest, WithoutCapturesAllBytesAreSamples) {
  const SigMf recording = read("");
  EXPECT_EQ(recording.data, path_ / "r.sigmf-data");
  EXPECT_THAT(recording.captures, ElementsAre(Capture{0, 1000}));
  EXPECT_EQ(recording.format, parse_sample_format("ci8"));
}

TEST_F(SigMfTest, CapturesSayWhichBytesAreSamples) {
  // Samples of 2 bytes. What lies before the first capture is no signal.
  EXPECT_THAT(read("", R"([{"core:sample_start": 100}])").captures, ElementsAre(Capture{200, 800}));
  EXPECT_THAT(read("", R"([{"core:sample_start": 0, "core:header_bytes": 24}])").captures,
              ElementsAre(Capture{24, 976}));
  // Indices do not count the bytes of headers.
  EXPECT_THAT(read("", R"([{"core:sample_start": 0, "core:header_bytes": 10},
                           {"core:sample_start": 50, "core:header_bytes": 6},
                           {"core:sample_start": 100}])")
                  .captures,
              ElementsAre(Capture{10, 100}, Capture{116, 100}, Capture{216, 784}));
  // A data set that is a part of a longer one.
  EXPECT_THAT(read(R"(, "core:offset": 5000)", R"([{"core:sample_start": 5100}])").captures,
              ElementsAre(Capture{200, 800}));
  EXPECT_THAT(read(R"(, "core:trailing_bytes": 40)").captures, ElementsAre(Capture{0, 960}));
  EXPECT_THAT(read(R"(, "core:trailing_bytes": 1000)").captures, ElementsAre());
  // Floats, as programs without integers write them.
  EXPECT_THAT(read("", R"([{"core:sample_start": 1e2}])").captures, ElementsAre(Capture{200, 800}));
}

TEST_F(SigMfTest, CapturesThatDoNotFitAreRefused) {
  EXPECT_THAT(error("", R"([{}])"), HasSubstr("captures[0].core:sample_start is missing"));
  EXPECT_THAT(error("", R"([{"core:sample_start": -1}])"), HasSubstr("whole number"));
  EXPECT_THAT(error("", R"([{"core:sample_start": 1.5}])"), HasSubstr("whole number"));
  EXPECT_THAT(error("", R"([{"core:sample_start": "1"}])"), HasSubstr("whole number"));
  EXPECT_THAT(error("", R"([{"core:sample_start": 501}])"), HasSubstr("ends at byte 1002"));
  EXPECT_THAT(error("", R"([{"core:sample_start": 0, "core:header_bytes": 1001}])"),
              HasSubstr("ends at byte 1001"));
  EXPECT_THAT(error("", R"([{"core:sample_start": 9}, {"core:sample_start": 8}])"),
              HasSubstr("less than that of the one before"));
  EXPECT_THAT(error("", R"([{"core:sample_start": 9223372036854775807}])"), HasSubstr("too large"));
  EXPECT_THAT(error(R"(, "core:offset": 10)", R"([{"core:sample_start": 9}])"),
              HasSubstr("begins with sample 10"));
  EXPECT_THAT(error(R"(, "core:trailing_bytes": 1001)"), HasSubstr("has 1000 bytes"));
  EXPECT_THAT(error("", "7"), HasSubstr("captures: expected a list"));
  EXPECT_THAT(error("", "[7]"), HasSubstr("captures[0]: expected an object"));
}

TEST_F(SigMfTest, FieldsThatSayThatItIsNotForUsAreObeyed) {
  EXPECT_EQ(read(R"(, "core:num_channels": 1)").captures.size(), 1U);
  EXPECT_THAT(error(R"(, "core:num_channels": 2)"), HasSubstr("core:num_channels is 2"));
  EXPECT_THAT(error(R"(, "core:metadata_only": true)"), HasSubstr("there are no samples"));
  EXPECT_EQ(read(R"(, "core:metadata_only": false)").captures.size(), 1U);
  EXPECT_THAT(error(R"(, "core:version": "2.0.0")"), HasSubstr("expected 0.x or 1.x"));
  EXPECT_EQ(read(R"(, "core:version": "1.2.5")").captures.size(), 1U);
  EXPECT_THAT(error(R"(, "core:extensions": [{"name": "spatial", "version": "1.0.0",
                         "optional": false}])"),
              HasSubstr("'spatial' must be understood"));
  EXPECT_EQ(read(R"(, "core:extensions": [{"name": "antenna", "version": "1.0.0",
                         "optional": true}])")
                .captures.size(),
            1U);
  EXPECT_EQ(read(R"(, "core:extensions": {"antenna": "v0.9.0"})").captures.size(), 1U);
}

TEST_F(SigMfTest, TheHashIsThatOfTheDataSet) {
  Sha512 hash;
  const std::string bytes(1000, 'x');
  hash.add(std::as_bytes(std::span(bytes)));
  EXPECT_EQ(read(R"(, "core:sha512": ")" + hash.finish() + '"').captures.size(), 1U);
  EXPECT_THAT(error(R"(, "core:sha512": ")" + std::string(128, '0') + '"'),
              HasSubstr("has another hash"));
}

// FIPS 180-4's examples, and lengths around the borders of a block, checked with Python's hashlib.
TEST(Sha512Test, AgreesWithOthers) {
  const auto of = [](const std::string& text, size_t at_a_time) {
    Sha512 hash;
    for (size_t i = 0; i < text.size(); i += at_a_time)
      hash.add(std::as_bytes(std::span(text).subspan(i, std::min(at_a_time, text.size() - i))));
    return hash.finish();
  };
  EXPECT_EQ(
      of("abc", 1),
      "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23"
      "a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
  EXPECT_EQ(
      of("", 1),
      "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2"
      "877eec2f63b931bd47417a81a538327af927da3e");
  const std::pair<size_t, const char*> expected[] = {
      {111, "a467698069eae8ed1e0c6dbfd1b4a247"}, {112, "a473c93732eef627d02e86d19047a422"},
      {127, "c6ce82cb15c8d7040ef3704b1cb161ae"}, {128, "217d3d9c0952c3e4907f06d4fbf34460"},
      {129, "18d5a20f40cd7903e625ac1e4fc10971"}, {1000, "c6017363f579f50a015ce5e21b966a94"},
  };
  for (const auto& [length, digits] : expected) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + i % 26);
    for (const size_t at_a_time : {size_t{1}, size_t{7}, size_t{128}, size_t{5000}})
      EXPECT_EQ(of(text, at_a_time).substr(0, 32), digits) << length;
  }
}

TEST_F(SigMfTest, TheDataSetMayHaveAnotherName) {
  write("samples.bin", std::string(64, 'y'));
  const SigMf recording = read(R"(, "core:dataset": "samples.bin")");
  EXPECT_EQ(recording.data, path_ / "samples.bin");
  EXPECT_THAT(recording.captures, ElementsAre(Capture{0, 64}));
  for (const char* name : {"../samples.bin", "/etc/passwd", "", "..", "a/b"}) {
    EXPECT_THAT(error(R"(, "core:dataset": ")" + std::string(name) + '"'),
                HasSubstr("expected the name of a file beside the metadata"));
  }
}

TEST_F(SigMfTest, TypesAreTakenByTheirNames) {
  for (const char* type : {"cf32_le", "cf32_be", "cf64_le", "ci32_le", "ci32_be", "ci16_le",
                           "ci16_be", "ci8", "cu32_le", "cu16_be", "cu8"}) {
    EXPECT_EQ(read("", "[]", type).format, parse_sample_format(type)) << type;
  }
  // Real samples have no Q; the others are no names of SigMF's.
  for (const char* type : {"rf32_le", "ri16_le", "ru8", "cf32", "cf16_le", "ci8_le", "cu64_le", ""})
    EXPECT_THAT(error("", "[]", type), HasSubstr("expected complex samples of a known type"));
}

TEST_F(SigMfTest, NestingHasAnEnd) {
  const auto deep = [](const std::string& part, int times) {
    std::string text;
    for (int i = 0; i < times; ++i) text += part;
    return text;
  };
  write("r.sigmf-meta", deep("{\"global\":", 100000));
  EXPECT_THAT([&] { read_sigmf(path_ / "r"); },
              testing::ThrowsMessage<Error>(HasSubstr("more than 64 levels")));
  write("r.sigmf-meta", deep("[", 100000) + deep("]", 100000));
  EXPECT_THAT([&] { read_sigmf(path_ / "r"); },
              testing::ThrowsMessage<Error>(HasSubstr("more than 64 levels")));
}

// Readers of JSON take the first of them, or the last.
TEST_F(SigMfTest, AFieldThatIsGivenTwiceIsRefused) {
  for (const char* text :
       {R"({"global": {"core:datatype": "ci8", "core:version": "1.0.0", "core:datatype": "cu8"},
          "captures": []})",
        R"({"global": {"core:datatype": "ci8", "core:version": "1.0.0"}, "captures": [],
          "global": {}})"}) {
    write("r.sigmf-meta", text);
    EXPECT_THAT([&] { read_sigmf(path_ / "r"); },
                testing::ThrowsMessage<Error>(HasSubstr("twice in one object")));
  }
}

// A header of a tar archive as POSIX describes it.
std::string tar_member(const std::string& name, const std::string& bytes, char type = '0') {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  header.replace(100, 7, "0000644");
  header.replace(108, 7, "0000000");
  header.replace(116, 7, "0000000");
  header.replace(124, 11, fmt::format("{:011o}", bytes.size()));
  header.replace(136, 11, "00000000000");
  header[156] = type;
  header.replace(257, 5, "ustar");
  header.replace(263, 2, "00");
  header.replace(148, 8, "        ");
  int sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 7, fmt::format("{:06o}", sum) + '\0');
  std::string padded = bytes;
  padded.resize((bytes.size() + 511) / 512 * 512);
  return header + padded;
}

TEST_F(SigMfTest, ArchivesHoldBothFiles) {
  const std::string meta = R"({"global": {"core:datatype": "ci16_le"},
                               "captures": [{"core:sample_start": 2, "core:header_bytes": 3}]})";
  const std::string end(1024, '\0');
  write("a.sigmf", tar_member("a/", "", '5') + tar_member("a/a.sigmf-data", std::string(100, 'd')) +
                       tar_member("a/a.sigmf-meta", meta) + end);
  const SigMf recording = read_sigmf(path_ / "a.sigmf");
  EXPECT_EQ(recording.data, path_ / "a.sigmf");
  EXPECT_EQ(recording.format, parse_sample_format("ci16"));
  EXPECT_THAT(recording.captures, ElementsAre(Capture{1024 + 3 + 8, 100 - 3 - 8}));
  // A pax header says a name that has no room otherwise.
  write("b.sigmf", tar_member("x", "21 path=b.sigmf-data\n", 'x') + tar_member("short", "0123") +
                       tar_member("b.sigmf-meta", meta) + end);
  EXPECT_THAT([&] { read_sigmf(path_ / "b.sigmf"); },
              testing::ThrowsMessage<Error>(HasSubstr("ends at byte 11, but the data set has 4")));

  const auto refused = [&](const std::string& bytes) -> std::string {
    write("c.sigmf", bytes);
    try {
      read_sigmf(path_ / "c.sigmf");
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(refused(tar_member("c.sigmf-meta", meta) + tar_member("d.sigmf-meta", meta)),
              HasSubstr("more than one recording"));
  EXPECT_THAT(refused(tar_member("c.sigmf-data", "x") + end), HasSubstr("holds no .sigmf-meta"));
  EXPECT_THAT(refused(tar_member("c.sigmf-meta", meta) + end),
              HasSubstr("holds no 'c.sigmf-data'"));
  EXPECT_THAT(refused(std::string("\x1f\x8b") + std::string(1000, 'z')), HasSubstr("compressed"));
  EXPECT_THAT(refused(tar_member("c.sigmf-data", std::string(999, 'z')).substr(0, 700)),
              HasSubstr("ends within a file of 999 bytes"));
  EXPECT_THAT(refused(tar_member("c.sigmf-data", "z").substr(0, 100)),
              HasSubstr("within a header"));
  write("d.sigmf-collection", "{}");
  EXPECT_THAT([&] { read_sigmf(path_ / "d.sigmf-collection"); },
              testing::ThrowsMessage<Error>(HasSubstr("collection")));
}

template <typename T>
std::vector<float> converted(const char* format, std::vector<T> numbers, bool swapped = false) {
  std::string bytes;
  for (const T number : numbers) {
    std::string raw(sizeof number, '\0');
    std::memcpy(raw.data(), &number, sizeof number);
    if (swapped) std::ranges::reverse(raw);
    bytes += raw;
  }
  std::vector<float> values(numbers.size());
  convert_samples(parse_sample_format(format), bytes.data(), numbers.size(), values.data());
  return values;
}

TEST(SampleFormatTest, EveryTypeInBothByteOrders) {
  EXPECT_THAT(converted<float>("cf32", {1.5F, -2}), ElementsAre(1.5F, -2));
  EXPECT_THAT(converted<float>("cf32_be", {1.5F, -2}, true), ElementsAre(1.5F, -2));
  EXPECT_THAT(converted<double>("cf64_le", {1.5, -2}), ElementsAre(1.5F, -2));
  EXPECT_THAT(converted<double>("cf64_be", {1.5, -2}, true), ElementsAre(1.5F, -2));
  EXPECT_THAT(converted<int32_t>("ci32", {INT32_MIN, 1 << 30}), ElementsAre(-1, 0.5F));
  EXPECT_THAT(converted<int32_t>("ci32_be", {INT32_MIN, 1}, true), ElementsAre(-1, 0x1p-31F));
  EXPECT_THAT(converted<int16_t>("ci16_be", {-32768, 1}, true), ElementsAre(-1, 0x1p-15F));
  EXPECT_THAT(converted<int8_t>("ci8", {-128, 64}), ElementsAre(-1, 0.5F));
  EXPECT_THAT(converted<uint8_t>("cu8", {0, 128, 192, 255}), ElementsAre(-1, 0, 0.5F, 127 / 128.F));
  EXPECT_THAT(converted<uint16_t>("cu16", {0, 1 << 15}), ElementsAre(-1, 0));
  EXPECT_THAT(converted<uint16_t>("cu16_be", {0, 3 << 14}, true), ElementsAre(-1, 0.5F));
  EXPECT_THAT(converted<uint32_t>("cu32", {0, 1U << 31}), ElementsAre(-1, 0));
  EXPECT_THROW(parse_sample_format("cf16"), UsageError);
  EXPECT_THROW(parse_sample_format("cf32_xe"), UsageError);
}

// Frames of noise of the given amplitudes, each for so many frames, plus a constant.
constexpr int kLength = 64;
std::string noise(const std::vector<std::pair<int, float>>& parts, float constant = 0) {
  std::vector<float> iq;
  Random random(1, "level");
  for (const auto& [frames, amplitude] : parts) {
    for (int n = 0; n < 2 * kLength * frames; ++n)
      iq.push_back(amplitude * random.uniform(-1.0F, 1.0F) + constant);
  }
  return {reinterpret_cast<const char*>(iq.data()), iq.size() * sizeof(float)};
}

double deviation_of(std::span<const float> iq) {
  double i = 0, q = 0, power = 0;
  for (size_t n = 0; n < iq.size(); n += 2) {
    const double x = static_cast<double>(iq[n]), y = static_cast<double>(iq[n + 1]);
    i += x;
    q += y;
    power += x * x + y * y;
  }
  const double count = static_cast<double>(iq.size()) / 2;
  return std::sqrt(power / count - (i * i + q * q) / count / count);
}

// The deviation of frames first .. last - 1 of a stream.
struct Levels {
  std::vector<float> values;
  std::vector<SampleStream::LevelChange> changes;
  double deviation(int first, int last) const {
    return deviation_of(std::span(values).subspan(static_cast<size_t>(first) * 2 * kLength,
                                                  static_cast<size_t>(last - first) * 2 * kLength));
  }
};
Levels levels_of(const std::string& bytes, int64_t at_a_time = 7) {
  std::istringstream in(bytes);
  SampleStream stream(in, "x", {{}, Normalization::kStretch, kLength, 256, -1});
  Levels result;
  for (std::vector<float> values; stream.read(at_a_time, values) > 0;)
    result.values.insert(result.values.end(), values.begin(), values.end());
  result.changes = stream.level_changes();
  return result;
}

TEST(StreamLevel, SilenceBeforeASignalDoesNotCount) {
  for (const int silence : {20, 200, 256, 300, 700}) {
    for (const float constant : {0.0F, 0.5F}) {
      const Levels l = levels_of(noise({{silence, 0.01F}, {600, 0.25F}}, constant));
      EXPECT_NEAR(l.deviation(silence, silence + 600), 1, 0.05) << silence;
      EXPECT_NEAR(l.deviation(silence, silence + 8), 1, 0.1) << silence;
      ASSERT_EQ(l.changes.size(), 1U) << silence;
      EXPECT_EQ(l.changes[0].frame, silence);
      EXPECT_NEAR(l.changes[0].db, 28, 1);
    }
  }
}

TEST(StreamLevel, ATransientDoesNotCount) {
  const Levels l = levels_of(noise({{3, 8}, {300, 0.25F}, {7, 8}, {300, 0.25F}}));
  EXPECT_NEAR(l.deviation(3, 303), 1, 0.05);
  EXPECT_NEAR(l.deviation(310, 610), 1, 0.05);
  ASSERT_EQ(l.changes.size(), 1U) << "after the first, which begins the stream";
  EXPECT_EQ(l.changes[0].frame, 3);
}

TEST(StreamLevel, ZerosAndSlowChangesAreNoTrouble) {
  const Levels zeros = levels_of(noise({{40, 0}, {300, 1}, {40, 0}}));
  EXPECT_NEAR(zeros.deviation(40, 340), 1, 0.05);
  EXPECT_EQ(zeros.deviation(0, 40), 0);
  EXPECT_EQ(zeros.deviation(340, 380), 0);
  EXPECT_EQ(zeros.changes.size(), 2U);
  const Levels within = levels_of(noise({{300, 1}, {300, 2}}));  // 6 dB
  EXPECT_TRUE(within.changes.empty());
}

TEST(StreamLevel, DoesNotDependOnHowManyFramesAreReadAtATime) {
  const std::string bytes =
      noise({{3, 8}, {90, 0.01F}, {400, 0.25F}, {5, 0}, {200, 0.25F}, {9, 4}});
  const Levels one = levels_of(bytes, 1), many = levels_of(bytes, 1000);
  EXPECT_EQ(one.values, many.values);
  EXPECT_EQ(one.values.size(), bytes.size() / sizeof(float));
}

TEST(StreamLevel, AStreamMayBeAPartOfAFile) {
  const std::string bytes = noise({{10, 1}});
  std::istringstream in(bytes);
  in.seekg(512);
  SampleStream stream(in, "x", {{}, Normalization::kNone, kLength, 256, 3 * 512 + 80});
  std::vector<float> values;
  EXPECT_EQ(stream.read(100, values), 3);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(values.data()), 3 * 512),
            bytes.substr(512, 3 * 512));
  EXPECT_EQ(stream.left_over(), 10);
}

}  // namespace
}  // namespace fmp
