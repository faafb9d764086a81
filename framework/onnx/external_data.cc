// SPDX-License-Identifier: MIT
#include "framework/onnx/external_data.h"

#include <onnx/onnx_pb.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <map>
#include <optional>

#include "framework/error.h"
#include "framework/onnx/ops.h"

namespace fmp::onnx {
namespace {

namespace fs = std::filesystem;

// Where the bytes are.
struct Place {
  std::string location;
  uint64_t offset = 0;
  std::optional<uint64_t> length;
};

uint64_t number(const std::string& what, const std::string& key, const std::string& text) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) {
    fail("{}: {} '{}' of its external data is no number", what, key, printable(text));
  }
  return value;
}

Place place_of(const std::string& what, const ::onnx::TensorProto& tensor) {
  Place place;
  for (const ::onnx::StringStringEntryProto& entry : tensor.external_data()) {
    if (entry.key() == "location") {
      place.location = entry.value();
    } else if (entry.key() == "offset") {
      place.offset = number(what, "offset", entry.value());
    } else if (entry.key() == "length") {
      place.length = number(what, "length", entry.value());
    } else if (entry.key() != "checksum") {  // of the whole file, for those who move files about
      fail("{}: '{}' of its external data is not supported", what, printable(entry.key()));
    }
  }
  if (place.location.empty()) fail("{}: its external data has no location", what);
  return place;
}

// Whether `path` is below `folder`; both are free of links and dots.
bool is_below(const fs::path& path, const fs::path& folder) {
  const auto [end, at] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end() && at != path.end();
}

}  // namespace

ExternalData::ExternalData(const fs::path& model) : folder_(model.parent_path()) {
  if (folder_.empty()) folder_ = ".";
}

bool ExternalData::is_external(const ::onnx::TensorProto& tensor) {
  return tensor.data_location() == ::onnx::TensorProto::EXTERNAL ||
         tensor.external_data_size() != 0;
}

std::string ExternalData::read(const std::string& what, const ::onnx::TensorProto& tensor) const {
  const Place place = place_of(what, tensor);
  const std::string name = printable(place.location);
  const fs::path relative(place.location);
  if (relative.is_absolute() || std::ranges::find(relative, fs::path("..")) != relative.end()) {
    fail("{}: its data is in {}, outside the model's folder, which is not read", what, name);
  }
  std::error_code error;
  const fs::path folder = fs::canonical(folder_, error);
  const fs::path file = error ? fs::path() : fs::canonical(folder_ / relative, error);
  if (error) fail("{}: its data is in {}: {}", what, name, error.message());
  if (!is_below(file, folder)) {
    fail("{}: its data is in {}, a link out of the model's folder, which is not read", what, name);
  }
  if (!fs::is_regular_file(file, error)) fail("{}: its data is in {}, no file", what, name);
  const uint64_t size = fs::file_size(file, error);
  if (error) fail("{}: its data is in {}: {}", what, name, error.message());
  const uint64_t length = place.length.value_or(size - std::min(size, place.offset));
  if (place.offset > size || length > size - place.offset) {
    fail("{}: its data is bytes {} to {} of {}, which has {}", what, place.offset,
         place.offset + length, name, size);
  }
  constexpr uint64_t kMaxBytes = uint64_t{8} * kMaxElements;
  if (length > kMaxBytes) {
    fail("{}: {} bytes in {}, at most {} are supported", what, length, name, kMaxBytes);
  }
  std::string bytes(static_cast<size_t>(length), '\0');
  std::ifstream stream(file, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(place.offset));
  stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!stream) fail("{}: its data in {} cannot be read", what, name);
  return bytes;
}

}  // namespace fmp::onnx
