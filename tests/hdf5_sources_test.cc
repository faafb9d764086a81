// SPDX-License-Identifier: MIT
// Data sets whose values lie elsewhere, or nowhere: everything that is read was stored.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <span>

#include "framework/data/hdf5_file.h"
#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr hsize_t kColumns = 3;

// An HDF5 identifier that is closed by its own function.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {
    if (id < 0) throw Error("HDF5 failed");
  }
  ~Id() { close_(id_); }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// A part of a virtual data set: rows to .. to + count - 1 are those from `from` on of a source.
struct Part {
  std::string file, set = "X";
  hsize_t to = 0, count = 0, from = 0, source_rows = 0;
};

class Hdf5SourcesTest : public testing::Test {
 protected:
  Hdf5SourcesTest() {
    std::string name = (fs::temp_directory_path() / "fmp_sources_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("no temporary directory");
    path_ = name;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Hdf5SourcesTest() override {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  std::string file(const std::string& name) const { return (path_ / name).string(); }

  // rows x kColumns numbers first, first + 1, ...
  void write_plain(const std::string& name, hsize_t rows, float first) const {
    std::vector<float> values(rows * kColumns);
    std::iota(values.begin(), values.end(), first);
    write(name, rows, values, H5P_DEFAULT);
  }

  void write(const std::string& name, hsize_t rows, const std::vector<float>& values,
             hid_t creation) const {
    const Id f(H5Fcreate(file(name).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const hsize_t dims[] = {rows, kColumns};
    const Id space(H5Screate_simple(2, dims, nullptr), H5Sclose);
    const Id set(H5Dcreate2(f, "X", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT),
                 H5Dclose);
    if (values.empty()) return;
    ASSERT_GE(H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  }

  void write_virtual(const std::string& name, hsize_t rows, const std::vector<Part>& parts) const {
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const hsize_t dims[] = {rows, kColumns};
    const Id space(H5Screate_simple(2, dims, nullptr), H5Sclose);
    for (const Part& part : parts) {
      const hsize_t to[] = {part.to, 0}, from[] = {part.from, 0}, count[] = {part.count, kColumns};
      H5Sselect_hyperslab(space, H5S_SELECT_SET, to, nullptr, count, nullptr);
      const hsize_t source_dims[] = {part.source_rows, kColumns};
      const Id source(H5Screate_simple(2, source_dims, nullptr), H5Sclose);
      if (part.count != part.source_rows)
        H5Sselect_hyperslab(source, H5S_SELECT_SET, from, nullptr, count, nullptr);
      ASSERT_GE(H5Pset_virtual(creation, space, part.file.c_str(), part.set.c_str(), source), 0);
    }
    write(name, rows, {}, creation);
  }

  std::vector<float> read(const std::string& name) const {
    const Hdf5DataSet set = Hdf5File(file(name)).dataset("X");
    std::vector<float> values(static_cast<size_t>(set.rows() * set.row_elements()));
    set.read_rows(0, set.rows(), values.data());
    return values;
  }
  std::string error(const std::string& name) const {
    try {
      read(name);
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  }

  fs::path path_;
};

std::vector<float> numbers(size_t count, float first = 0) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST_F(Hdf5SourcesTest, AVirtualDataSetIsReadWhereAllOfItIsThere) {
  write_plain("a.h5", 4, 0);
  write_plain("b.h5", 10, 100);
  write_virtual("v.h5", 7, {{"a.h5", "X", 0, 4, 0, 4}, {"b.h5", "X", 4, 3, 5, 10}});
  std::vector<float> expected = numbers(12);
  const std::vector<float> rest = numbers(9, 115);
  expected.insert(expected.end(), rest.begin(), rest.end());
  EXPECT_EQ(read("v.h5"), expected);
  // From another directory, and one virtual data set in another.
  write_virtual("w.h5", 9, {{"v.h5", "X", 0, 7, 0, 7}, {"a.h5", "X", 7, 2, 0, 4}});
  EXPECT_EQ(read("w.h5").size(), 27U);
  EXPECT_EQ(read("w.h5")[14], 117);
}

TEST_F(Hdf5SourcesTest, ZerosOfVirtualDataSetsAreAnError) {
  write_plain("a.h5", 4, 0);
  write_virtual("gone.h5", 8, {{"a.h5", "X", 0, 4, 0, 4}, {"no.h5", "X", 4, 4, 0, 4}});
  EXPECT_THAT(error("gone.h5"), HasSubstr("no.h5', which is not there"));
  write_virtual("set.h5", 8, {{"a.h5", "X", 0, 4, 0, 4}, {"a.h5", "Y", 4, 4, 0, 4}});
  EXPECT_THAT(error("set.h5"), HasSubstr("data set Y is missing"));
  write_virtual("short.h5", 6, {{"a.h5", "X", 0, 6, 0, 8}});
  EXPECT_THAT(error("short.h5"), HasSubstr("holds frames that data set X of"));
  write_virtual("all.h5", 6, {{"a.h5", "X", 0, 6, 0, 6}});
  EXPECT_THAT(error("all.h5"), HasSubstr("holds frames that data set X of"));
  write_virtual("gap.h5", 9, {{"a.h5", "X", 0, 4, 0, 4}, {"a.h5", "X", 5, 4, 0, 4}});
  EXPECT_THAT(error("gap.h5"), HasSubstr("row 4 and maybe more come from nowhere"));
  write_virtual("end.h5", 9, {{"a.h5", "X", 0, 4, 0, 4}, {"a.h5", "X", 4, 4, 0, 4}});
  EXPECT_THAT(error("end.h5"), HasSubstr("row 8 and maybe more come from nowhere"));
  write_virtual("overlap.h5", 6, {{"a.h5", "X", 0, 4, 0, 4}, {"a.h5", "X", 1, 4, 0, 4}});
  EXPECT_THAT(error("overlap.h5"), HasSubstr("row 5 and maybe more come from nowhere"));
  // A source that was never written is as bad as none.
  const Id early(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  write("empty.h5", 4, {}, early);
  write_virtual("of_empty.h5", 4, {{"empty.h5", "X", 0, 4, 0, 4}});
  EXPECT_THAT(error("of_empty.h5"), HasSubstr("empty.h5: data set X is incomplete"));
}

// Half rows, which are combined piece by piece.
TEST_F(Hdf5SourcesTest, ColumnsAreCountedToo) {
  write_plain("a.h5", 4, 0);
  const auto write_columns = [&](const std::string& name, hsize_t columns) {
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const hsize_t dims[] = {4, kColumns};
    const Id space(H5Screate_simple(2, dims, nullptr), H5Sclose);
    const Id source(H5Screate_simple(2, dims, nullptr), H5Sclose);
    for (hsize_t c = 0; c < columns; ++c) {
      const hsize_t start[] = {0, c}, count[] = {4, 1};
      H5Sselect_hyperslab(space, H5S_SELECT_SET, start, nullptr, count, nullptr);
      H5Sselect_hyperslab(source, H5S_SELECT_SET, start, nullptr, count, nullptr);
      ASSERT_GE(H5Pset_virtual(creation, space, "a.h5", "X", source), 0);
    }
    write(name, 4, {}, creation);
  };
  write_columns("columns.h5", kColumns);
  EXPECT_EQ(read("columns.h5"), numbers(12));
  write_columns("two.h5", kColumns - 1);
  EXPECT_THAT(error("two.h5"), HasSubstr("row 0 and maybe more come from nowhere"));
}

TEST_F(Hdf5SourcesTest, CirclesEnd) {
  write_virtual("self.h5", 4, {{".", "X", 0, 4, 0, 4}});
  EXPECT_THAT(error("self.h5"), HasSubstr("is made of itself"));
  write_virtual("named.h5", 4, {{"named.h5", "X", 0, 4, 0, 4}});
  EXPECT_THAT(error("named.h5"), HasSubstr("is made of itself"));
  write_virtual("a.h5", 4, {{"b.h5", "X", 0, 4, 0, 4}});
  write_virtual("b.h5", 4, {{"a.h5", "X", 0, 4, 0, 4}});
  EXPECT_THAT(error("a.h5"), HasSubstr("is made of itself"));
}

TEST_F(Hdf5SourcesTest, LinksOfAllKindsAreFollowed) {
  write_plain("a.h5", 4, 7);
  {
    const Id f(H5Fcreate(file("links.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
               H5Fclose);
    ASSERT_GE(H5Lcreate_external("a.h5", "X", f, "X", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("X", f, "soft", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_external("gone.h5", "X", f, "gone", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("nowhere", f, "dangling", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_soft("loop", f, "loop", H5P_DEFAULT, H5P_DEFAULT), 0);
    ASSERT_GE(H5Lcreate_external("links.h5", "circle", f, "circle", H5P_DEFAULT, H5P_DEFAULT), 0);
  }
  EXPECT_EQ(read("links.h5"), numbers(12, 7));
  const Hdf5File links(file("links.h5"));
  EXPECT_EQ(links.dataset("soft").rows(), 4);
  for (const char* name : {"gone", "dangling", "loop", "circle"})
    EXPECT_THROW(links.dataset(name), Error) << name;
  // The file that a link leads to is the one that must be whole.
  write_plain("long.h5", 4000, 0);
  {
    const Id f(H5Fcreate(file("to_long.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
               H5Fclose);
    ASSERT_GE(H5Lcreate_external("long.h5", "X", f, "X", H5P_DEFAULT, H5P_DEFAULT), 0);
  }
  EXPECT_EQ(read("to_long.h5").size(), 12000U);
  // A virtual data set behind a link looks for its sources beside itself.
  fs::create_directory(path_ / "sub");
  write_plain("sub/part.h5", 4, 0);
  write_virtual("sub/v.h5", 4, {{"part.h5", "X", 0, 4, 0, 4}});
  {
    const Id f(H5Fcreate(file("to_v.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
               H5Fclose);
    ASSERT_GE(H5Lcreate_external("sub/v.h5", "X", f, "X", H5P_DEFAULT, H5P_DEFAULT), 0);
  }
  EXPECT_EQ(read("to_v.h5"), numbers(12));
}

TEST_F(Hdf5SourcesTest, ExternalFilesMustBeWhole) {
  const std::vector<float> values = numbers(12, 1);
  const std::string bytes(reinterpret_cast<const char*>(values.data()), 48);
  const auto write_external = [&](const std::string& name, hsize_t second) {
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    ASSERT_GE(H5Pset_external(creation, "one.raw", 8, 20), 0);
    ASSERT_GE(H5Pset_external(creation, "two.raw", 0, second), 0);
    write(name, 4, {}, creation);
  };
  std::ofstream(path_ / "one.raw", std::ios::binary) << "12345678" << bytes.substr(0, 20);
  std::ofstream(path_ / "two.raw", std::ios::binary) << bytes.substr(20);
  write_external("e.h5", 28);
  EXPECT_EQ(read("e.h5"), values);
  write_external("rest.h5", H5F_UNLIMITED);
  EXPECT_EQ(read("rest.h5"), values);
  std::ofstream(path_ / "two.raw", std::ios::binary) << bytes.substr(20, 27);
  EXPECT_THAT(error("e.h5"), HasSubstr("two.raw' holds 27 bytes, 28 from byte 0 expected"));
  EXPECT_THAT(error("rest.h5"), HasSubstr("two.raw' holds 27 bytes, 28 from byte 0 expected"));
  fs::remove(path_ / "two.raw");
  EXPECT_THAT(error("e.h5"), HasSubstr("two.raw': No such file"));
}

TEST_F(Hdf5SourcesTest, CompressedChunksHaveASize) {
  const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk[] = {100'000'000, kColumns};  // 1.2 GB of zeros are 1.2 MB in the file
  H5Pset_chunk(creation, 2, chunk);
  H5Pset_deflate(creation, 1);
  write("bomb.h5", 100'000'000, {}, creation);
  EXPECT_THAT(error("bomb.h5"), HasSubstr("compressed chunks take 1200000000 bytes"));
}

// A gzip chunk that is stored as `bytes`, of a data set with one more before it.
class StoredChunkTest : public Hdf5SourcesTest {
 protected:
  static std::string compressed(const std::string& text) {
    uLongf size = compressBound(text.size());
    std::string out(size, '\0');
    if (compress(reinterpret_cast<Bytef*>(out.data()), &size,
                 reinterpret_cast<const Bytef*>(text.data()), text.size()) != Z_OK) {
      throw Error("zlib failed");
    }
    out.resize(size);
    return out;
  }

  void write_chunk(const std::string& name, const std::string& bytes) const {
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const hsize_t chunk[] = {4, kColumns}, second[] = {4, 0};
    H5Pset_chunk(creation, 2, chunk);
    H5Pset_deflate(creation, 1);
    write(name, 12, numbers(36), creation);
    const Id f(H5Fopen(file(name).c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    const Id set(H5Dopen2(f, "X", H5P_DEFAULT), H5Dclose);
    ASSERT_GE(H5Dwrite_chunk(set, H5P_DEFAULT, 0, second, bytes.size(), bytes.data()), 0);
  }
};

TEST_F(StoredChunkTest, HoldsWhatTheDataSetSays) {
  const std::vector<float> values = numbers(12, 500);
  const std::string bytes(reinterpret_cast<const char*>(values.data()), 48);
  write_chunk("right.h5", compressed(bytes));
  std::vector<float> expected = numbers(36);
  std::ranges::copy(values, expected.begin() + 12);
  EXPECT_EQ(read("right.h5"), expected);
}

TEST_F(StoredChunkTest, ThatInflatesToMoreIsRefused) {
  write_chunk("more.h5", compressed(std::string(3'000'000, 'x')));
  EXPECT_THAT(error("more.h5"), HasSubstr("data set X: rows 4 to 7 cannot be read: their chunk "
                                          "inflates to more than 52 bytes"));
  write_chunk("one.h5", compressed(std::string(49, 'x')));
  EXPECT_THAT(error("one.h5"), HasSubstr("chunk holds 49 bytes, expected 48"));
  write_chunk("large.h5", std::string(6000, 'x'));
  EXPECT_THAT(error("large.h5"), HasSubstr("takes 6000 bytes in the file, 48 without"));
}

TEST_F(StoredChunkTest, ThatInflatesToLessIsRefused) {
  write_chunk("less.h5", compressed(std::string(40, 'x')));
  EXPECT_THAT(error("less.h5"), HasSubstr("their chunk holds 40 bytes, expected 48"));
  write_chunk("cut.h5", compressed(std::string(48, 'x')).substr(0, 10));
  EXPECT_THAT(error("cut.h5"), HasSubstr("cut short"));
  write_chunk("junk.h5", "no gzip");
  EXPECT_THAT(error("junk.h5"), HasSubstr("cannot be inflated"));
  write_virtual("v.h5", 12, {{"less.h5", "X", 0, 12, 0, 12}});
  EXPECT_THAT(error("v.h5"), HasSubstr("less.h5: data set X: rows 4 to 7 cannot be read"));
}

// What the library reads.
std::vector<double> read_by_library(const std::string& path, size_t values) {
  const Id f(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  const Id set(H5Dopen2(f, "X", H5P_DEFAULT), H5Dclose);
  std::vector<double> out(values);
  H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data());
  return out;
}

TEST_F(Hdf5SourcesTest, ChunksOfAllShapesAreReadAsByTheLibrary) {
  constexpr hsize_t kRows = 23, kLength = 5, kRowValues = kLength * 2;
  std::vector<double> values(kRows * kRowValues);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i * 37 % 241) - 120;
  const std::vector<std::vector<hsize_t>> chunks = {{4, 3, 1},  {7, 5, 2},  {1, 5, 2},
                                                    {23, 1, 2}, {40, 5, 2}, {6, 2, 2}};
  for (const std::string filters : {"g", "sg", "sgf", "f", "s"}) {
    for (const hid_t type : {H5T_IEEE_F32LE, H5T_STD_I16BE, H5T_STD_I8LE, H5T_IEEE_F64BE}) {
      for (const auto& chunk : chunks) {
        const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
        H5Pset_chunk(creation, 3, chunk.data());
        for (const char filter : filters) {
          if (filter == 'g') H5Pset_deflate(creation, 1);
          if (filter == 's') H5Pset_shuffle(creation);
          if (filter == 'f') H5Pset_fletcher32(creation);
        }
        {
          const Id f(H5Fcreate(file("c.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
                     H5Fclose);
          const hsize_t dims[] = {kRows, kLength, 2}, most[] = {H5S_UNLIMITED, kLength, 2};
          const Id space(H5Screate_simple(3, dims, most), H5Sclose);
          const Id set(H5Dcreate2(f, "X", type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
                       H5Dclose);
          ASSERT_GE(H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
                    0);
        }
        ASSERT_EQ(read_by_library(file("c.h5"), values.size()), values);
        const Hdf5DataSet set = Hdf5File(file("c.h5")).dataset("X");
        for (const auto& [first, count] : {std::pair(0, 23), {3, 9}, {22, 1}, {5, 18}}) {
          std::vector<double> part(static_cast<size_t>(count) * kRowValues);
          set.read_rows(first, count, part.data());
          const auto expected = std::span(values).subspan(static_cast<size_t>(first) * kRowValues);
          EXPECT_TRUE(std::ranges::equal(part, expected.first(part.size())))
              << filters << ", chunk " << chunk[0] << " " << chunk[1] << " " << chunk[2];
        }
      }
    }
  }
}

TEST_F(Hdf5SourcesTest, AChecksumThatIsWrongIsAnError) {
  const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk[] = {4, kColumns};
  H5Pset_chunk(creation, 2, chunk);
  H5Pset_fletcher32(creation);
  write("sum.h5", 4, numbers(12, 1000), creation);
  EXPECT_EQ(read("sum.h5"), numbers(12, 1000));
  std::ifstream in(file("sum.h5"), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  const std::vector<float> values = numbers(12, 1000);
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(values.data()), 48));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 3] ^= 1;
  std::ofstream(file("sum.h5"), std::ios::binary) << bytes;
  EXPECT_THAT(error("sum.h5"), HasSubstr("rows 0 to 3 cannot be read: their chunk does not fit"));
}

TEST_F(Hdf5SourcesTest, FiltersThatTheLibraryUndoesSayTheSizeOfAChunk) {
  const hsize_t chunk[] = {4, kColumns};
  const auto write_with = [&](const std::string& name, const std::vector<H5Z_filter_t>& filters) {
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(creation, 2, chunk);
    for (const H5Z_filter_t filter : filters) {
      if (filter == H5Z_FILTER_SZIP) H5Pset_szip(creation, H5_SZIP_NN_OPTION_MASK, 8);
      if (filter == H5Z_FILTER_NBIT) H5Pset_nbit(creation);
      if (filter == H5Z_FILTER_SCALEOFFSET) H5Pset_scaleoffset(creation, H5Z_SO_FLOAT_DSCALE, 2);
      if (filter == H5Z_FILTER_DEFLATE) H5Pset_deflate(creation, 1);
    }
    write(name, 9, numbers(27), creation);
  };
  for (const H5Z_filter_t filter : {H5Z_FILTER_NBIT, H5Z_FILTER_SCALEOFFSET, H5Z_FILTER_SZIP}) {
    unsigned can = 0;
    if (H5Zget_filter_info(filter, &can) < 0 || (can & H5Z_FILTER_CONFIG_ENCODE_ENABLED) == 0) {
      continue;
    }
    write_with("alone.h5", {filter});
    EXPECT_EQ(read("alone.h5"), numbers(27)) << filter;
    write_with("gzip.h5", {filter, H5Z_FILTER_DEFLATE});
    EXPECT_THAT(error("gzip.h5"), HasSubstr("have gzip beside another one")) << filter;
  }
  write_with("twice.h5", {H5Z_FILTER_DEFLATE, H5Z_FILTER_DEFLATE});
  EXPECT_THAT(error("twice.h5"), HasSubstr("compress twice"));
}

TEST_F(Hdf5SourcesTest, FiltersThatAreMissingAreNamed) {
  // Registered for as long as it takes to write the file.
  constexpr H5Z_filter_t kLzf = 32000;
  const auto nothing = [](unsigned, size_t, const unsigned*, size_t bytes, size_t*,
                          void**) -> size_t { return bytes; };
  const H5Z_class2_t filter = {H5Z_CLASS_T_VERS, kLzf, 1, 1, "lzf", nullptr, nullptr, nothing};
  ASSERT_GE(H5Zregister(&filter), 0);
  const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk[] = {4, kColumns};
  H5Pset_chunk(creation, 2, chunk);
  H5Pset_filter(creation, kLzf, H5Z_FLAG_OPTIONAL, 0, nullptr);
  write("lzf.h5", 4, numbers(12), creation);
  ASSERT_GE(H5Zunregister(kLzf), 0);
  EXPECT_THAT(error("lzf.h5"), HasSubstr("filter 32000 (lzf, which h5py brings along"));
}

TEST_F(Hdf5SourcesTest, HugeNumbersAreRefused) {
  const Id f(H5Fcreate(file("wide.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  const hsize_t dims[] = {4, kColumns};
  const Id space(H5Screate_simple(2, dims, nullptr), H5Sclose);
  const Id type(H5Tcopy(H5T_STD_I64LE), H5Tclose);
  H5Tset_size(type, 4096);
  const Id set(H5Dcreate2(f, "X", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
  H5Fflush(f, H5F_SCOPE_GLOBAL);
  EXPECT_THAT(error("wide.h5"), HasSubstr("values of 4096 bytes"));
}

}  // namespace
}  // namespace fmp
