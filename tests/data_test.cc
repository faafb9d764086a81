// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "framework/data/dataset.h"
#include "framework/data/radioml.h"
#include "framework/data/split.h"
#include "framework/error.h"
#include "kernels/tile.h"
#include "tests/fixture_file.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

// A fresh folder that is removed at the end of the test.
class Folder {
 public:
  Folder() {
    static int count = 0;
    path_ = fs::path(testing::TempDir()) / fmt::format("fmp_data_{}_{}", getpid(), count++);
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

// How a data set is stored.
struct Storage {
  hid_t type = H5T_IEEE_F32LE;
  std::vector<hsize_t> chunk;  // empty = contiguous
  int gzip = 0;                // compression level, 0 = none
};

// Writes a data set with the HDF5 library alone, so that the reader is tested against something
// that it shares no code with.
void write_set(hid_t file, const char* name, const std::vector<hsize_t>& shape,
               const std::vector<double>& values, const Storage& storage) {
  const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  if (!storage.chunk.empty()) {
    H5Pset_chunk(creation, static_cast<int>(storage.chunk.size()), storage.chunk.data());
  }
  if (storage.gzip > 0) {
    H5Pset_shuffle(creation);
    H5Pset_deflate(creation, static_cast<unsigned>(storage.gzip));
  }
  const hid_t set = H5Dcreate2(file, name, storage.type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  ASSERT_GE(set, 0);
  if (H5Tget_class(storage.type) == H5T_ENUM) {  // the library converts from, but not to these
    const std::vector<int8_t> members(values.begin(), values.end());
    ASSERT_GE(H5Dwrite(set, storage.type, H5S_ALL, H5S_ALL, H5P_DEFAULT, members.data()), 0);
  } else if (!values.empty()) {
    ASSERT_GE(H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  }
  H5Dclose(set);
  H5Pclose(creation);
  H5Sclose(space);
}

// The contents of a file in RadioML layout and how they are stored. An empty shape leaves a data
// set out.
struct Contents {
  std::vector<hsize_t> x_shape, y_shape, z_shape;
  std::vector<double> x, y, z;
  Storage x_storage, y_storage{H5T_STD_I64LE, {}, 0}, z_storage{H5T_STD_I64LE, {}, 0};

  void write(const std::string& path) const {
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    ASSERT_GE(file, 0) << path;
    if (!x_shape.empty()) write_set(file, "X", x_shape, x, x_storage);
    if (!y_shape.empty()) write_set(file, "Y", y_shape, y, y_storage);
    if (!z_shape.empty()) write_set(file, "Z", z_shape, z, z_storage);
    H5Fclose(file);
  }

  int64_t frames() const { return static_cast<int64_t>(x_shape[0]); }
  size_t frame_values() const { return static_cast<size_t>(x_shape[1]) * 2; }
  int label(int64_t row) const {
    const auto begin = y.begin() + row * static_cast<int64_t>(y_shape[1]);
    return static_cast<int>(std::find(begin, begin + static_cast<int64_t>(y_shape[1]), 1.0) -
                            begin);
  }
};

// `classes` x SNRs -4, 0, ... x frames, ordered as RadioML is. Samples are multiples of 1/256 in
// [-3, 3), which half floats hold exactly and of which many lie on a rounding boundary.
Contents make_contents(int classes, int snrs, int frames_per_block, int length) {
  const size_t frames = static_cast<size_t>(classes) * static_cast<size_t>(snrs) *
                        static_cast<size_t>(frames_per_block);
  Contents contents;
  contents.x_shape = {frames, static_cast<hsize_t>(length), 2};
  contents.y_shape = {frames, static_cast<hsize_t>(classes)};
  contents.z_shape = {frames, 1};
  std::mt19937 engine(1);
  contents.x.resize(frames * static_cast<size_t>(length) * 2);
  for (double& value : contents.x) value = (static_cast<int>(engine() % 1536) - 768) / 256.0;
  for (int label = 0; label < classes; ++label) {
    for (int i = 0; i < snrs * frames_per_block; ++i) {
      for (int c = 0; c < classes; ++c) contents.y.push_back(c == label ? 1 : 0);
      const int snr_index = i / frames_per_block;
      contents.z.push_back(-4 + 4 * snr_index);
    }
  }
  return contents;
}

std::vector<int64_t> all_frames(const Dataset& dataset) {
  std::vector<int64_t> frames(static_cast<size_t>(dataset.size()));
  std::iota(frames.begin(), frames.end(), 0);
  return frames;
}

int8_t expected_code(double value, int bits) {
  const double scale = 2.0 / std::pow(2.0, bits - 1);
  const double limit = std::pow(2.0, bits - 1);
  return static_cast<int8_t>(std::clamp(std::nearbyint(value / scale), -limit, limit - 1));
}

// Whether `dataset` holds these rows of `contents`, in this order.
void expect_rows(const Dataset& dataset, const Contents& contents, std::span<const int64_t> rows,
                 int bits) {
  ASSERT_EQ(dataset.size(), static_cast<int64_t>(rows.size()));
  FrameBatch batch;
  dataset.read(all_frames(dataset), batch);
  ASSERT_EQ(batch.count, dataset.size());
  const size_t values = contents.frame_values();
  ASSERT_EQ(batch.codes.size(), bits == kFloatBits ? 0 : rows.size() * values);
  ASSERT_EQ(batch.values.size(), bits == kFloatBits ? rows.size() * values : 0);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t row = static_cast<size_t>(rows[i]);
    ASSERT_EQ(batch.snr_db[i], contents.z[row]);
    for (size_t k = 0; k < values; ++k) {
      const double value = contents.x[row * values + k];
      if (bits == kFloatBits) {
        ASSERT_EQ(batch.values[i * values + k], static_cast<float>(value)) << i << " " << k;
      } else {
        ASSERT_EQ(batch.codes[i * values + k], expected_code(value, bits)) << i << " " << k;
      }
    }
  }
}

std::vector<int64_t> all_rows(const Contents& contents) {
  std::vector<int64_t> rows(static_cast<size_t>(contents.frames()));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

RadioMlOptions options_for(const std::string& path) {
  RadioMlOptions options;
  options.path = path;
  options.threads = 2;
  return options;
}

std::string error_of(const RadioMlOptions& options) {
  try {
    open_radioml(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// An IEEE half float, which HDF5 has no ready type for.
hid_t half_float() {
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, 10, 5, 0, 10);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, 15);
  return type;
}

// What h5py stores booleans as.
hid_t boolean() {
  const hid_t type = H5Tenum_create(H5T_STD_I8LE);
  int8_t value = 0;
  H5Tenum_insert(type, "FALSE", &value);
  value = 1;
  H5Tenum_insert(type, "TRUE", &value);
  return type;
}

TEST(QuantizeInputTest, MatchesBrevitas) {
  const FixtureFile fixture("input_quantizer");
  for (int bits = 2; bits <= 8; ++bits) {
    const std::string group = fmt::format("bits{}/", bits);
    const auto values = fixture.read<float>(group + "values");
    const auto expected = fixture.read<int8_t>(group + "codes");
    ASSERT_FALSE(values.empty());
    std::vector<int8_t> codes(values.size());
    quantize_input(values, bits, codes.data());
    EXPECT_EQ(codes, expected) << "bits " << bits;
  }
}

TEST(QuantizeInputTest, RoundsHalfToEvenAndClamps) {
  constexpr float kHuge = std::numeric_limits<float>::max();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<float> values = {0.0F, -0.0F, kTiny, -kTiny, kHuge, -kHuge};
    for (int i = -600; i <= 600; ++i) {  // every quarter of a step of 8 bits, and its neighbours
      const float value = static_cast<float>(i) / 256.0F;
      values.insert(values.end(),
                    {value, std::nextafter(value, kHuge), std::nextafter(value, -kHuge)});
    }
    std::vector<int8_t> codes(values.size());
    quantize_input(values, bits, codes.data());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(codes[i], expected_code(values[i], bits)) << values[i] << ", bits " << bits;
    }
  }
  // Any other scale: the nearest multiple of it.
  for (const float scale : {0.013F, 0.21F, 0.03125F, 3.7e-9F}) {
    for (int i = -300; i <= 300; ++i) {
      const float value = static_cast<float>(i) * 0.25F * scale;
      int8_t found = 0;
      quantize_input({&value, 1}, {6, scale}, &found);
      const double expected = std::nearbyint(static_cast<double>(value / scale));
      ASSERT_EQ(found, std::clamp(expected, -32.0, 31.0)) << value << ", scale " << scale;
    }
  }
  int8_t code = 0;
  EXPECT_THROW(quantize_input({}, 1, &code), Error);
  EXPECT_THROW(quantize_input({}, 9, &code), Error);
}

TEST(RadioMlTest, ReadsEveryBitWidth) {
  const Folder folder;
  const Contents contents = make_contents(3, 2, 5, 16);
  contents.write(folder / "a.h5");
  for (const int bits : {2, 3, 4, 5, 6, 7, 8, kFloatBits}) {
    RadioMlOptions options = options_for(folder / "a.h5");
    options.input_bits = bits;
    const auto dataset = open_radioml(options);
    expect_rows(*dataset, contents, all_rows(contents), bits);
    EXPECT_EQ(dataset->length(), 16);
    EXPECT_FALSE(dataset->streamed());
    EXPECT_EQ(dataset->stored_bytes(), 30 * 32 * (bits == kFloatBits ? 4 : 1));
    for (int64_t i = 0; i < dataset->size(); ++i) {
      EXPECT_EQ(dataset->label(i), contents.label(i));
      EXPECT_EQ(dataset->snr_db(i), contents.z[static_cast<size_t>(i)]);
    }
  }
}

TEST(RadioMlTest, ReadsAnyOrder) {
  const Folder folder;
  const Contents contents = make_contents(2, 2, 8, 4);
  contents.write(folder / "a.h5");
  const auto dataset = open_radioml(options_for(folder / "a.h5"));
  FrameBatch all, some;
  dataset->read(all_frames(*dataset), all);
  const std::vector<int64_t> frames = {31, 0, 7, 7, 16};
  dataset->read(frames, some);
  ASSERT_EQ(some.count, 5);
  for (size_t i = 0; i < frames.size(); ++i) {
    const size_t frame = static_cast<size_t>(frames[i]);
    EXPECT_EQ(some.labels[i], all.labels[frame]);
    EXPECT_TRUE(std::equal(some.codes.begin() + static_cast<std::ptrdiff_t>(8 * i),
                           some.codes.begin() + static_cast<std::ptrdiff_t>(8 * i + 8),
                           all.codes.begin() + static_cast<std::ptrdiff_t>(8 * frame)));
  }
  EXPECT_THROW(dataset->read(std::vector<int64_t>{32}, some), Error);
  EXPECT_THROW(dataset->read(std::vector<int64_t>{-1}, some), Error);
}

TEST(RadioMlTest, ReadsEveryTypeAndLayout) {
  const Folder folder;
  Contents contents = make_contents(3, 2, 7, 10);
  const hid_t half = half_float(), boolean_type = boolean();
  // Types of X; whole numbers only for the integers.
  const std::vector<std::pair<hid_t, bool>> types = {
      {H5T_IEEE_F32LE, false}, {H5T_IEEE_F32BE, false}, {H5T_IEEE_F64LE, false},
      {half, false},           {H5T_STD_I16LE, true},   {H5T_STD_I8LE, true},
      {H5T_STD_I32BE, true},   {H5T_STD_I64LE, true}};
  const std::vector<hid_t> table_types = {H5T_STD_I64LE,  H5T_STD_I32BE,  H5T_STD_I16LE,
                                          H5T_IEEE_F32LE, H5T_IEEE_F64BE, half};
  const std::vector<std::vector<hsize_t>> chunks = {
      {}, {42, 10, 2}, {5, 10, 2}, {8, 3, 1}, {1, 1, 1}};
  int file = 0;
  for (const auto& [type, whole] : types) {
    Contents variant = contents;
    if (whole) {
      for (double& value : variant.x) value = std::trunc(value);
    }
    for (const auto& chunk : chunks) {
      for (const int gzip : {0, 4}) {
        if (chunk.empty() && gzip > 0) continue;
        const hid_t table_type = table_types[static_cast<size_t>(file) % table_types.size()];
        variant.x_storage = {type, chunk, gzip};
        variant.y_storage = {file % 5 == 0 ? boolean_type : table_type, {}, 0};
        variant.z_storage = {table_type, {}, 0};
        if (file % 2 == 1) {
          variant.y_storage.chunk = {4, 2};
          variant.z_storage.chunk = {4, 1};
          variant.y_storage.gzip = variant.z_storage.gzip = gzip;
        }
        const std::string path = folder / fmt::format("{}.h5", file++);
        variant.write(path);
        RadioMlOptions options = options_for(path);
        options.input_bits = 6;
        expect_rows(*open_radioml(options), variant, all_rows(variant), 6);
        options.input_bits = kFloatBits;
        expect_rows(*open_radioml(options), variant, all_rows(variant), kFloatBits);
        if (HasFatalFailure()) FAIL() << path;
      }
    }
  }
  H5Tclose(half);
  H5Tclose(boolean_type);
}

TEST(RadioMlTest, SnrMayBeAVectorOrAColumn) {
  const Folder folder;
  Contents contents = make_contents(2, 3, 4, 4);
  contents.z_shape = {24};
  contents.write(folder / "a.h5");
  expect_rows(*open_radioml(options_for(folder / "a.h5")), contents, all_rows(contents), 8);
}

TEST(RadioMlTest, FramesMayLieInOtherWays) {
  const Folder folder;
  const Contents contents = make_contents(2, 3, 4, 6);
  for (const std::vector<hsize_t>& shape : std::vector<std::vector<hsize_t>>{
           {24, 2, 6}, {24, 1, 2, 6}, {24, 2, 6, 1}, {24, 1, 6, 2}, {24, 6, 1, 2}}) {
    Contents other = contents;
    other.x_shape = shape;
    if (std::ranges::find(shape, 6U) > std::ranges::find(shape, 2U)) {  // I before Q
      for (size_t i = 0; i < other.x.size(); ++i) {
        const size_t frame = i / 12 * 12, l = i % 12 / 2;
        other.x[frame + i % 2 * 6 + l] = contents.x[i];
      }
    }
    other.write(folder / "a.h5");
    const auto data = open_radioml(options_for(folder / "a.h5"));
    EXPECT_EQ(data->length(), 6);
    expect_rows(*data, contents, all_rows(contents), 8);
  }
}

TEST(RadioMlTest, WarnsOfAnotherLevel) {
  const Folder folder;
  Contents contents = make_contents(2, 3, 4, 64);  // even in [-3, 3): a deviation of sqrt(6)
  const auto warnings = [&](const Contents& c) {
    c.write(folder / "a.h5");
    return open_radioml(options_for(folder / "a.h5"))->warnings();
  };
  const auto scaled = [&](double factor) {
    Contents c = contents;
    for (double& value : c.x) value *= factor;
    return c;
  };
  EXPECT_TRUE(warnings(scaled(1 / std::sqrt(6.0))).empty());
  const auto expected = [](const Contents& c) {
    double i = 0, q = 0, power = 0, zeros = 0, limits = 0;
    for (size_t n = 0; n < c.x.size(); ++n) {
      (n % 2 == 0 ? i : q) += c.x[n];
      power += c.x[n] * c.x[n];
      const int8_t code = expected_code(c.x[n], 8);
      zeros += code == 0 ? 1 : 0;
      limits += code == 127 || code == -128 ? 1 : 0;
    }
    const auto values = static_cast<double>(c.x.size());
    const double samples = values / 2;
    return fmt::format(
        "a deviation of {:.3g}, networks are made for 1; of the 8-bit input codes {:.1f} % are 0 "
        "and {:.1f} % at the limits",
        std::sqrt(power / samples - (i * i + q * q) / samples / samples), 100 * zeros / values,
        100 * limits / values);
  };
  std::vector<std::string> lines = warnings(scaled(1e-4));
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find(expected(scaled(1e-4))), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find(" 100.0 % are 0"), std::string::npos) << lines[0];
  lines = warnings(contents);  // a third of the values is beyond the limits
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find(expected(contents)), std::string::npos) << lines[0];

  Contents silent = scaled(1 / std::sqrt(6.0));
  std::fill_n(silent.x.begin(), 2 * 128, 0);
  lines = warnings(silent);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find("2 of 24 frames hold nothing but zeros"), std::string::npos) << lines[0];

  Contents clipped = contents;  // whole numbers within -1 .. 1, of 2 bits, would be -2 .. 1
  for (double& value : clipped.x) value = value > 1 ? 127 : value < -2 ? -128 : 0;
  clipped.x_storage.type = H5T_STD_I8LE;
  lines = warnings(clipped);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_NE(lines[1].find("of the stored integers are at the limits of their type"),
            std::string::npos)
      << lines[1];
}

TEST(RadioMlTest, ClassesOfAFileAreMatchedByName) {
  const Folder folder;
  make_contents(24, 1, 1, 2).write(folder / "radioml.h5");
  make_contents(3, 1, 1, 2).write(folder / "other.h5");
  ClassMatch match = match_classes(folder / "radioml.h5", {"fm", "BPSK", "ook"});
  EXPECT_EQ(match.classes, (std::vector<std::string>{"OOK", "BPSK", "FM"}));
  EXPECT_EQ(match.network_class, (std::vector<uint8_t>{2, 1, 0}));
  match = match_classes(folder / "other.h5", {"FM", "BPSK", "OOK"});  // as many: in their order
  EXPECT_TRUE(match.classes.empty());
  EXPECT_EQ(match.network_class, (std::vector<uint8_t>{0, 1, 2}));
  EXPECT_THROW(match_classes(folder / "radioml.h5", {"FM", "BPSK", "5PSK"}), Error);
  EXPECT_THROW(match_classes(folder / "other.h5", {"FM", "BPSK"}), Error);
}

TEST(RadioMlTest, NamesTheClasses) {
  const Folder folder;
  make_contents(24, 1, 1, 2).write(folder / "radioml.h5");
  make_contents(3, 1, 1, 2).write(folder / "other.h5");
  const auto names = open_radioml(options_for(folder / "radioml.h5"))->class_names();
  ASSERT_EQ(names.size(), 24U);
  EXPECT_EQ(names[0], "OOK");
  EXPECT_EQ(names[11], "128APSK");
  EXPECT_EQ(names[20], "AM-DSB-SC");
  EXPECT_EQ(names[23], "OQPSK");
  EXPECT_EQ(open_radioml(options_for(folder / "other.h5"))->class_names(),
            (std::vector<std::string>{"class0", "class1", "class2"}));
}

TEST(RadioMlTest, SplitsTheFileAsNumpyDoes) {
  const Folder folder;
  make_contents(24, 26, 7, 1).write(folder / "a.h5");
  const auto dataset = open_radioml(options_for(folder / "a.h5"));
  ASSERT_EQ(dataset->blocks().size(), 624U);
  // From tests/fixtures/split.json, 624 blocks of 7.
  EXPECT_EQ(dataset->blocks().front(), (Block{3, 5, 0, 4, 1, 6, 2}));
  EXPECT_EQ(dataset->blocks().back(), (Block{4365, 4367, 4364, 4362, 4363, 4366, 4361}));
}

TEST(RadioMlTest, ChoosesClassesAndRenumbersThem) {
  const Folder folder;
  const Contents contents = make_contents(24, 2, 3, 4);
  contents.write(folder / "a.h5");
  RadioMlOptions options = options_for(folder / "a.h5");
  options.classes = {"qpsk", "OOK", "FM"};
  const auto dataset = open_radioml(options);
  EXPECT_EQ(dataset->class_names(), (std::vector<std::string>{"OOK", "QPSK", "FM"}));
  std::vector<int64_t> rows;
  for (const int64_t label : {0, 4, 21}) {
    for (int64_t i = 0; i < 6; ++i) rows.push_back(label * 6 + i);
  }
  expect_rows(*dataset, contents, rows, 8);
  for (int64_t i = 0; i < 18; ++i) EXPECT_EQ(dataset->label(i), i / 6);
}

// The rows of the file that a choice loads, block by block as shuffled for the whole file.
TEST(RadioMlTest, ChoicesKeepThePublishedSplit) {
  const Folder folder;
  const Contents contents = make_contents(4, 3, 50, 2);
  contents.write(folder / "a.h5");
  RadioMlOptions options = options_for(folder / "a.h5");
  const auto whole = open_radioml(options);
  options.classes = {"class1", "class3"};
  options.snr_min = 0;
  options.frames_per_block = 20;
  const auto part = open_radioml(options);

  std::vector<Block> expected;  // in rows of the file
  for (const size_t block : {4, 5, 10, 11}) {
    expected.push_back(shortened(whole->blocks()[block], 20));
  }
  std::vector<int64_t> rows;
  for (const Block& block : expected) rows.insert(rows.end(), block.begin(), block.end());
  std::sort(rows.begin(), rows.end());
  expect_rows(*part, contents, rows, 8);
  ASSERT_EQ(part->blocks().size(), 4U);
  for (size_t b = 0; b < 4; ++b) {
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_EQ(rows[static_cast<size_t>(part->blocks()[b][i])], expected[b][i]);
    }
  }
  const Split split = make_split(part->blocks(), 0);
  const std::vector<int64_t> published_test = make_split(whole->blocks(), 0).test;
  EXPECT_EQ(split.test.size(), 8U);
  for (const int64_t frame : split.test) {
    EXPECT_TRUE(std::binary_search(published_test.begin(), published_test.end(),
                                   rows[static_cast<size_t>(frame)]));
  }
}

TEST(RadioMlTest, FramesMayComeInAnyOrder) {
  const Folder folder;
  const Contents ordered = make_contents(3, 2, 6, 2);
  Contents contents = ordered;
  std::vector<int64_t> order = all_rows(ordered);
  std::mt19937 engine(3);
  std::shuffle(order.begin(), order.end(), engine);
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t from = static_cast<size_t>(order[i]);
    contents.z[i] = ordered.z[from];
    for (size_t k = 0; k < 4; ++k) contents.x[4 * i + k] = ordered.x[4 * from + k];
    for (size_t k = 0; k < 3; ++k) contents.y[3 * i + k] = ordered.y[3 * from + k];
  }
  contents.write(folder / "a.h5");
  const auto dataset = open_radioml(options_for(folder / "a.h5"));
  expect_rows(*dataset, contents, all_rows(contents), 8);
  ASSERT_EQ(dataset->blocks().size(), 6U);
  for (size_t b = 0; b < 6; ++b) {
    ASSERT_EQ(dataset->blocks()[b].size(), 6U);
    for (const int64_t frame : dataset->blocks()[b]) {
      EXPECT_EQ(dataset->label(frame), b / 2);
      EXPECT_EQ(dataset->snr_db(frame), b % 2 == 0 ? -4 : 0);
    }
  }
}

TEST(RadioMlTest, StreamsWhatDoesNotFitTheMemoryLimit) {
  const Folder folder;
  const Contents contents = make_contents(3, 2, 40, 32);
  contents.write(folder / "a.h5");
  for (const int bits : {4, 8, kFloatBits}) {
    RadioMlOptions options = options_for(folder / "a.h5");
    options.input_bits = bits;
    options.cache_dir = folder / "cache";
    fs::create_directory(options.cache_dir);
    options.memory_limit = 240 * 64 * (bits == kFloatBits ? 4 : 1);
    EXPECT_FALSE(open_radioml(options)->streamed());
    --options.memory_limit;
    const auto dataset = open_radioml(options);
    EXPECT_TRUE(dataset->streamed());
    EXPECT_TRUE(fs::is_empty(options.cache_dir));  // a killed run leaves nothing behind
    expect_rows(*dataset, contents, all_rows(contents), bits);
    fs::remove(options.cache_dir);
  }
}

TEST(RadioMlTest, StreamedFramesAreReadByManyThreads) {
  const Folder folder;
  make_contents(3, 2, 40, 32).write(folder / "a.h5");
  RadioMlOptions options = options_for(folder / "a.h5");
  const auto in_memory = open_radioml(options);
  options.memory_limit = 1;
  options.cache_dir = folder.path();
  const auto streamed = open_radioml(options);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      BatchReader a(*in_memory, shuffled(all_frames(*in_memory), t, 0), 17);
      BatchReader b(*streamed, shuffled(all_frames(*streamed), t, 0), 17);
      while (const FrameBatch* expected = a.next()) {
        const FrameBatch* found = b.next();
        ASSERT_NE(found, nullptr);
        ASSERT_EQ(found->codes, expected->codes);
        ASSERT_EQ(found->labels, expected->labels);
      }
      ASSERT_EQ(b.next(), nullptr);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Large enough that several ranges are loaded at a time.
class LargeFileTest : public testing::Test {
 protected:
  LargeFileTest() : contents_(make_contents(2, 5, 300, 1024)) {}
  const Folder folder_;
  Contents contents_;
};

TEST_F(LargeFileTest, LoadsInParallelWithProgress) {
  contents_.write(folder_ / "a.h5");
  for (const int threads : {0, 1, 3}) {
    RadioMlOptions options = options_for(folder_ / "a.h5");
    options.threads = threads;
    std::vector<int64_t> done;
    const auto dataset = open_radioml(options, [&](int64_t frames, int64_t total) {
      EXPECT_EQ(total, 3000);
      done.push_back(frames);
    });
    EXPECT_GE(done.size(), 3U);
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
    EXPECT_EQ(done.back(), 3000);
    expect_rows(*dataset, contents_, all_rows(contents_), 8);
  }
}

TEST_F(LargeFileTest, NamesTheFirstOfSeveralBadRows) {
  for (const size_t row : {1100, 1101, 2900}) {
    contents_.x[row * 2048 + 77] = std::nan("");
  }
  contents_.write(folder_ / "a.h5");
  for (int repeat = 0; repeat < 5; ++repeat) {
    RadioMlOptions options = options_for(folder_ / "a.h5");
    options.threads = 3;
    EXPECT_EQ(error_of(options),
              folder_ / "a.h5" +
                  ": data set X, row 1100: Q of sample 38 is nan, expected a finite "
                  "value");
  }
}

TEST_F(LargeFileTest, PassesOnWhatTheCallbackThrows) {
  contents_.write(folder_ / "a.h5");
  const auto cancel = [](int64_t, int64_t) { throw Error("cancelled"); };
  EXPECT_THROW(open_radioml(options_for(folder_ / "a.h5"), cancel), Error);
}

struct BadFile {
  std::string name;
  std::function<void(Contents&)> spoil;
  std::string expected;  // the message after "FILE: "
};

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsOneClearLine) {
  const Folder folder;
  Contents contents = make_contents(3, 2, 5, 8);  // 30 frames
  GetParam().spoil(contents);
  contents.write(folder / "a.h5");
  EXPECT_EQ(error_of(options_for(folder / "a.h5")), folder / "a.h5" + ": " + GetParam().expected);
}

const BadFile kBadFiles[] = {
    {"NoX", [](Contents& c) { c.x_shape.clear(); }, "data set X is missing"},
    {"NoY", [](Contents& c) { c.y_shape.clear(); }, "data set Y is missing"},
    {"NoZ", [](Contents& c) { c.z_shape.clear(); }, "data set Z is missing"},
    {"XOfThree",
     [](Contents& c) {
       c.x_shape = {20, 8, 3};
     },
     "data set X is 20 x 8 x 3, expected frames x length x 2 or frames x 2 x length (length 1 to "
     "1048576)"},
    {"XFlat",
     [](Contents& c) {
       c.x_shape = {30, 16};
     },
     "data set X is 30 x 16, expected frames x length x 2 or frames x 2 x length (length 1 to "
     "1048576)"},
    {"XEmpty",
     [](Contents& c) {
       c.x_shape[0] = 0;
       c.x.clear();
     },
     "data set X holds no frames"},
    {"YShort", [](Contents& c) { c.y_shape[0] = 29; },
     "data set Y is 29 x 3, expected 30 x classes (2 to 256)"},
    {"YOneClass", [](Contents& c) { c.y_shape[1] = 1; },
     "data set Y is 30 x 1, expected 30 x classes (2 to 256)"},
    {"YIndices", [](Contents& c) { c.y_shape = {30}; },
     "data set Y is 30, expected 30 x classes (2 to 256)"},
    {"ZLong",
     [](Contents& c) {
       c.z_shape[0] = 31;
       c.z.push_back(0);
     },
     "data set Z is 31 x 1, expected 30 or 30 x 1"},
    {"ZWide",
     [](Contents& c) {
       c.z_shape[1] = 2;
       c.z.resize(60);
     },
     "data set Z is 30 x 2, expected 30 or 30 x 1"},
    {"NaN", [](Contents& c) { c.x[12 * 16 + 4] = std::nan(""); },
     "data set X, row 12: I of sample 2 is nan, expected a finite value"},
    {"Infinity", [](Contents& c) { c.x[29 * 16 + 15] = -HUGE_VAL; },
     "data set X, row 29: Q of sample 7 is -inf, expected a finite value"},
    {"TooLargeForFloat",
     [](Contents& c) {
       c.x_storage.type = H5T_IEEE_F64LE;
       c.x[0] = 1e300;
     },
     "data set X, row 0: I of sample 0 is inf, expected a finite value"},
    {"TwoHot", [](Contents& c) { c.y[7 * 3 + 1] = 1; },
     "data set Y, row 7: is not one-hot (it holds 2 ones)"},
    {"NoneHot", [](Contents& c) { c.y[7 * 3] = 0; },
     "data set Y, row 7: is not one-hot (it holds 0 ones)"},
    {"NegativeLabel", [](Contents& c) { c.y[3 * 3 + 2] = -1; },
     "data set Y, row 3: is not one-hot (column 2 holds -1)"},
    {"FractionalLabel",
     [](Contents& c) {
       c.y_storage.type = H5T_IEEE_F32LE;
       c.y[3 * 3] = 0.5;
     },
     "data set Y, row 3: is not one-hot (column 0 holds 0.5)"},
    {"FractionalSnr",
     [](Contents& c) {
       c.z_storage.type = H5T_IEEE_F64LE;
       c.z[4] = 0.25;
     },
     "data set Z, row 4: the SNR is 0.25, expected a whole number of dB"},
    {"NaNSnr",
     [](Contents& c) {
       c.z_storage.type = H5T_IEEE_F64LE;
       c.z[4] = std::nan("");
     },
     "data set Z, row 4: the SNR is nan, expected a whole number of dB"},
    {"HugeSnr", [](Contents& c) { c.z[4] = 40000; },
     "data set Z, row 4: the SNR is 40000, expected a whole number of dB"},
    {"Strings",
     [](Contents& c) {
       c.z_storage.type = H5T_C_S1;
       c.z.clear();
     },
     "data set Z holds no integers or floats"},
    {"NeverWritten", [](Contents& c) { c.x.clear(); },
     "data set X is incomplete: 0 bytes are stored, 1920 expected"},
    {"ChunksNeverWritten",
     [](Contents& c) {
       c.z.clear();
       c.z_storage.chunk = {7, 1};
     },
     "data set Z is incomplete: 0 of 5 chunks are stored"},
};

INSTANTIATE_TEST_SUITE_P(All, BadFileTest, testing::ValuesIn(kBadFiles),
                         [](const auto& test) { return test.param.name; });

TEST(RadioMlErrorTest, FilesThatAreNone) {
  const Folder folder;
  EXPECT_EQ(error_of(options_for(folder / "none.h5")),
            folder / "none.h5" + ": No such file or directory");
  EXPECT_EQ(error_of(options_for(folder.path())),
            folder.path() + ": is not a file that can be read at any place");
  std::ofstream(folder / "text.h5") << "not HDF5 at all\n";
  EXPECT_EQ(error_of(options_for(folder / "text.h5")),
            folder / "text.h5" + ": is not an HDF5 file");
  std::ofstream(folder / "empty.h5").close();
  EXPECT_EQ(error_of(options_for(folder / "empty.h5")),
            folder / "empty.h5" + ": is not an HDF5 file");
}

TEST(RadioMlErrorTest, TruncatedFiles) {
  const Folder folder;
  Contents contents = make_contents(3, 2, 20, 64);
  for (const std::vector<hsize_t>& chunk : {std::vector<hsize_t>{}, {16, 64, 2}}) {
    contents.x_storage = {H5T_IEEE_F32LE, chunk, chunk.empty() ? 0 : 4};
    const std::string path = folder / "a.h5";
    contents.write(path);
    const auto whole = fs::file_size(path);
    for (int percent = 0; percent < 100; percent += 3) {
      contents.write(path);
      fs::resize_file(path, whole * static_cast<uintmax_t>(percent) / 100);
      const std::string message = error_of(options_for(path));
      EXPECT_EQ(message.rfind(path + ": ", 0), 0U) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
    contents.write(path);
    fs::resize_file(path, whole - 1);
    EXPECT_NE(error_of(options_for(path)).find("truncated file"), std::string::npos);
  }
}

TEST(RadioMlErrorTest, DamagedChunk) {
  const Folder folder;
  Contents contents = make_contents(3, 2, 20, 64);
  contents.x_storage = {H5T_IEEE_F32LE, {10, 64, 2}, 4};
  const std::string path = folder / "a.h5";
  contents.write(path);
  // Most of the file is the compressed X, so bytes in the middle are.
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(fs::file_size(path) / 2));
  file << std::string(64, '\xFF');
  file.close();
  const std::string message = error_of(options_for(path));
  EXPECT_NE(message.find(path + ": data set X: rows "), std::string::npos) << message;
  EXPECT_NE(message.find(" cannot be read: "), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(RadioMlErrorTest, OptionsThatDoNotFitTheFile) {
  const Folder folder;
  make_contents(24, 1, 3, 2).write(folder / "a.h5");
  RadioMlOptions options = options_for(folder / "a.h5");
  options.classes = {"QPSK", "5PSK"};
  EXPECT_THROW(open_radioml(options), UsageError);
  EXPECT_NE(error_of(options).find("has no class \"5PSK\", expected some of OOK, 4ASK"),
            std::string::npos);
  options = options_for(folder / "a.h5");
  options.snr_min = 0;
  EXPECT_THROW(open_radioml(options), UsageError);
  options = options_for(folder / "a.h5");
  options.frames_per_block = 4;
  EXPECT_EQ(error_of(options), folder / "a.h5" + ": has 3 frames of OOK at -4 dB, 4 are asked for");
  options = options_for(folder / "a.h5");
  options.input_bits = 9;
  EXPECT_THROW(open_radioml(options), UsageError);
  options = options_for(folder / "a.h5");
  options.memory_limit = -1;
  EXPECT_THROW(open_radioml(options), UsageError);
  options.memory_limit = 1;
  options.cache_dir = folder / "none";
  EXPECT_NE(error_of(options).find("none: cannot be used for temporary files"), std::string::npos);
}

}  // namespace
}  // namespace fmp
