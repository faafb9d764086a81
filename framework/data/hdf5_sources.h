// SPDX-License-Identifier: MIT
// Data sets whose values lie elsewhere: virtual ones, made of others, and those in external files.
// The HDF5 library fills in zeros where a source is missing or too short; here that is an error.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "framework/data/hdf5_file.h"

namespace fmp {

// The innermost message of the library's error stack: what went wrong first, e.g. "inflate()
// failed".
std::string hdf5_error();

// Opens a data set again with an access property list that `set` fills.
template <typename Set>
Hdf5Handle reopen_beside(Hdf5Handle data_set, const Set& set);

// Whether external files of a data set are there beside its HDF5 file: then they are looked for
// there, else, as by HDF5 itself, in the working directory.
bool external_files_are_beside(hid_t data_set);
// Throws Error unless the external files hold `bytes` bytes of values.
void check_external_files(const std::string& where, hid_t data_set, int64_t bytes);

// Walks through the data sets that virtual ones are made of, and theirs. Each is checked once.
class VirtualSources {
 public:
  // Throws Error unless every value of the virtual data set comes from one that is there, whole and
  // large enough. `where` names it in messages.
  void check(const std::string& where, hid_t data_set, const std::vector<int64_t>& shape);

 private:
  using Name = std::pair<std::string, std::string>;  // file, data set
  const std::vector<int64_t>& shape_of(const std::string& where, const Name& name);
  static void check_source(const std::string& where, const Name& name,
                           const std::vector<int64_t>& shape, hid_t part, int64_t values);

  // The shapes of the sources; empty while one is being checked.
  std::map<Name, std::vector<int64_t>> checked_;
};

template <typename Set>
Hdf5Handle reopen_beside(Hdf5Handle data_set, const Set& set) {
  const Hdf5Handle access(H5Pcreate(H5P_DATASET_ACCESS));
  const Hdf5Handle file(H5Iget_file_id(data_set.get()));
  std::string name(static_cast<size_t>(H5Iget_name(data_set.get(), nullptr, 0)), '\0');
  H5Iget_name(data_set.get(), name.data(), name.size() + 1);
  if (set(access.get()) < 0) return data_set;
  data_set.reset();
  return Hdf5Handle(H5Dopen2(file.get(), name.c_str(), access.get()));
}

}  // namespace fmp
