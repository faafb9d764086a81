// SPDX-License-Identifier: MIT
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "framework/error.h"

namespace fmp {

// Reads the data sets of a file that tests/fixtures/make_brevitas_fixtures.py wrote. Values are
// converted from the stored type to the one asked for. Throws Error that names file and data set.
class FixtureFile {
 public:
  // `name` without folder and extension, e.g. "w4a4_statistics".
  explicit FixtureFile(const std::string& name)
      : path_(std::string(FMP_FIXTURES_DIR) + "/" + name + ".h5"),
        file_(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT)) {
    if (file_ < 0) fail("{}: cannot be opened", path_);
  }
  ~FixtureFile() { H5Fclose(file_); }
  FixtureFile(const FixtureFile&) = delete;
  FixtureFile& operator=(const FixtureFile&) = delete;

  bool has(const std::string& name) const {
    // HDF5 wants every group on the way to exist before it is asked for what is inside.
    for (size_t slash = name.find('/'); slash != std::string::npos;
         slash = name.find('/', slash + 1)) {
      if (H5Lexists(file_, name.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
    }
    return H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0;
  }

  // All values in row-major order.
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    if (!has(name)) fail("{}: has no data set {}", path_, name);
    const hid_t dataset = H5Dopen2(file_, name.c_str(), H5P_DEFAULT);
    if (dataset < 0) fail("{}: cannot open {}", path_, name);
    const hid_t space = H5Dget_space(dataset);
    std::vector<T> values(static_cast<size_t>(H5Sget_simple_extent_npoints(space)));
    const herr_t status =
        H5Dread(dataset, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Sclose(space);
    H5Dclose(dataset);
    if (status < 0) fail("{}: cannot read {}", path_, name);
    return values;
  }

  template <typename T>
  T scalar(const std::string& name) const {
    const std::vector<T> values = read<T>(name);
    if (values.size() != 1) fail("{}: {} has {} values, expected 1", path_, name, values.size());
    return values[0];
  }

 private:
  template <typename T>
  static hid_t memory_type() {
    if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
    if constexpr (std::is_same_v<T, double>) return H5T_NATIVE_DOUBLE;
    if constexpr (std::is_same_v<T, int>) return H5T_NATIVE_INT;
    if constexpr (std::is_same_v<T, int64_t>) return H5T_NATIVE_INT64;
    if constexpr (std::is_same_v<T, int8_t>) return H5T_NATIVE_INT8;
    if constexpr (std::is_same_v<T, uint8_t>) return H5T_NATIVE_UINT8;
  }

  std::string path_;
  hid_t file_;
};

}  // namespace fmp
