// SPDX-License-Identifier: MIT
#include "framework/synth/hdf5_writer.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "framework/atomic_file.h"
#include "framework/error.h"
#include "framework/synth/synth.h"

namespace fmp::synth {
namespace {

constexpr hsize_t kChunkFrames = 128;  // 1 MiB of X: small enough to read single frames from

// An HDF5 identifier that closes itself.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept { swap(other); }
  Handle& operator=(Handle&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Handle() { reset(); }
  operator hid_t() const { return id_; }
  void leak() { id_ = -1; }
  herr_t reset() {
    const herr_t status = id_ >= 0 ? close_(id_) : 0;
    id_ = -1;
    return status;
  }

 private:
  void swap(Handle& other) {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
  }
  hid_t id_ = -1;
  Close close_ = nullptr;
};

}  // namespace

struct RadioMlWriter::State {
  explicit State(const std::filesystem::path& target) : path(target), output(target) {}
  // A file that could not be written cannot be closed either: the library would try to write again
  // and again, at last from a handler at exit, and use what it has given back by then. It keeps its
  // identifiers instead; the file vanishes with `output`.
  ~State() {
    if (finished) return;
    for (Handle* handle : {&x, &y, &z, &file}) handle->leak();
  }

  std::filesystem::path path;
  OutputFile output;
  hsize_t frames = 0, written = 0;
  int classes = 0;
  bool finished = false;
  Handle file, x, y, z;

  [[noreturn]] void broken(const char* action) const {
    fail("{}: cannot {}: {}", path.string(), action,
         errno != 0 ? errno_message(errno) : "HDF5 library failure");
  }
  void check(herr_t status, const char* action) const {
    if (status < 0) broken(action);
  }

  Handle create(const char* name, hid_t type, std::vector<hsize_t> dims, int compression) {
    const int rank = static_cast<int>(dims.size());
    const Handle space(H5Screate_simple(rank, dims.data(), nullptr), H5Sclose);
    const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    dims[0] = std::min<hsize_t>(dims[0], kChunkFrames);
    check(H5Pset_chunk(properties, rank, dims.data()), "set the chunk size");
    // Without the time of creation, the same frames make the same file.
    check(H5Pset_obj_track_times(properties, false), "leave out times");
    if (compression > 0) {
      check(H5Pset_shuffle(properties), "set up compression");
      check(H5Pset_deflate(properties, static_cast<unsigned>(compression)), "set up compression");
    }
    Handle set(H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT), H5Dclose);
    if (set < 0) broken("create a data set");
    return set;
  }

  void write(const Handle& set, hid_t type, std::vector<hsize_t> count, const void* data) {
    const int rank = static_cast<int>(count.size());
    std::vector<hsize_t> start(count.size(), 0);
    start[0] = written;
    const Handle memory(H5Screate_simple(rank, count.data(), nullptr), H5Sclose);
    const Handle space(H5Dget_space(set), H5Sclose);
    check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
          "select frames");
    check(H5Dwrite(set, type, memory, space, H5P_DEFAULT, data), "write frames");
  }

  void attribute(const std::string& name, hid_t type, const void* value) {
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const Handle item(H5Acreate2(file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                      H5Aclose);
    if (item < 0) broken("create an attribute");
    check(H5Awrite(item, type, value), "write an attribute");
  }
};

RadioMlWriter::RadioMlWriter(const std::filesystem::path& path, int64_t frames, int classes,
                             int compression)
    : state_((H5dont_atexit(), std::make_unique<State>(path))) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // failures are reported by exceptions alone
  State& s = *state_;
  s.frames = static_cast<hsize_t>(frames);
  s.classes = classes;
  errno = 0;
  // The default driver looks the name up in the directory, where the file has none.
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  s.check(H5Pset_fapl_stdio(access), "choose how it is written");
  s.file =
      Handle(H5Fcreate(s.output.work_path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose);
  if (s.file < 0) s.broken("create it");
  s.x = s.create("X", H5T_IEEE_F32LE, {s.frames, kFrameLength, 2}, compression);
  s.y = s.create("Y", H5T_STD_I64LE, {s.frames, static_cast<hsize_t>(classes)}, compression);
  s.z = s.create("Z", H5T_STD_I64LE, {s.frames, 1}, compression);
}

RadioMlWriter::~RadioMlWriter() = default;

void RadioMlWriter::append(std::span<const float> values, int class_index, int snr_db) {
  State& s = *state_;
  const size_t count = values.size() / kFrameValues;
  std::vector<int64_t> one_hot(count * static_cast<size_t>(s.classes), 0);
  for (size_t k = 0; k < count; ++k)
    one_hot[k * static_cast<size_t>(s.classes) + static_cast<size_t>(class_index)] = 1;
  const std::vector<int64_t> snr(count, snr_db);
  errno = 0;
  s.write(s.x, H5T_NATIVE_FLOAT, {count, kFrameLength, 2}, values.data());
  s.write(s.y, H5T_NATIVE_INT64, {count, static_cast<hsize_t>(s.classes)}, one_hot.data());
  s.write(s.z, H5T_NATIVE_INT64, {count, 1}, snr.data());
  s.written += count;
}

void RadioMlWriter::attribute(const std::string& name, double value) {
  state_->attribute(name, H5T_NATIVE_DOUBLE, &value);
}

void RadioMlWriter::attribute(const std::string& name, int64_t value) {
  state_->attribute(name, H5T_NATIVE_INT64, &value);
}

void RadioMlWriter::attribute(const std::string& name, const std::string& value) {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, std::max<size_t>(value.size(), 1));
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  state_->attribute(name, type, value.data());
}

void RadioMlWriter::finish() {
  State& s = *state_;
  if (s.written != s.frames) {
    fail("{}: {} frames were announced, {} written", s.path.string(), s.frames, s.written);
  }
  errno = 0;
  for (Handle* handle : {&s.x, &s.y, &s.z}) s.check(handle->reset(), "close a data set");
  s.check(H5Fflush(s.file, H5F_SCOPE_GLOBAL), "flush it");
  s.check(s.file.reset(), "close it");
  s.finished = true;
  s.output.commit();
}

}  // namespace fmp::synth
