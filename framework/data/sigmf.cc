// SPDX-License-Identifier: MIT
#include "framework/data/sigmf.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "framework/data/sha512.h"
#include "framework/data/tar_file.h"
#include "framework/error.h"
#include "framework/json.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kMaxMetadataBytes = 1 << 24;  // annotations included
constexpr const char* kMeta = ".sigmf-meta";
constexpr const char* kData = ".sigmf-data";

// Where bytes are: a file, or a part of an archive.
struct Bytes {
  fs::path file;
  int64_t first = 0, size = 0;
};

Bytes whole_file(const fs::path& file) {
  std::error_code error;
  const uintmax_t size = fs::file_size(file, error);
  if (error) fail("{}: {}", file.string(), error.message());
  return {file, 0, static_cast<int64_t>(size)};
}

std::string read_text(const Bytes& bytes) {
  if (bytes.size > kMaxMetadataBytes) {
    fail("{}: {} bytes of metadata, expected at most {}", bytes.file.string(), bytes.size,
         kMaxMetadataBytes);
  }
  std::ifstream in(bytes.file, std::ios::binary);
  std::string text(static_cast<size_t>(bytes.size), '\0');
  in.seekg(bytes.first);
  if (!in.read(text.data(), bytes.size)) fail("{}: cannot be read", bytes.file.string());
  return text;
}

std::string sha512_of(const Bytes& bytes) {
  std::ifstream in(bytes.file, std::ios::binary);
  in.seekg(bytes.first);
  std::vector<char> buffer(1 << 20);
  Sha512 hash;
  for (int64_t left = bytes.size; left > 0;) {
    const int64_t count = std::min(left, static_cast<int64_t>(buffer.size()));
    if (!in.read(buffer.data(), count)) fail("{}: cannot be read", bytes.file.string());
    hash.add(std::as_bytes(std::span(buffer).first(static_cast<size_t>(count))));
    left -= count;
  }
  return hash.finish();
}

// An object of the metadata, for messages "FILE: NAME.FIELD ...".
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("{}: expected an object", where_);
  }

  bool has(const char* field) const { return object_.contains(field); }
  const Json& at(const char* field) const { return object_.at(field); }
  std::string name(const char* field) const { return where_ + '.' + field; }

  std::string text(const char* field) const {
    if (!has(field) || !at(field).is_string()) fail("{} is missing or no text", name(field));
    return at(field).get<std::string>();
  }
  // A whole number of at least 0, or `otherwise` where there is none.
  int64_t count(const char* field, int64_t otherwise) const {
    if (!has(field)) return otherwise;
    const Json& value = at(field);
    if (value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX) return value;
    // As programs write it that know only floats.
    if (value.is_number_float() && value.get<double>() >= 0 && value.get<double>() < 0x1p53 &&
        value.get<double>() == static_cast<double>(static_cast<int64_t>(value.get<double>()))) {
      return static_cast<int64_t>(value.get<double>());
    }
    fail("{} is {}, expected a whole number of at least 0", name(field), value.dump());
  }
  bool flag(const char* field) const {
    if (!has(field)) return false;
    if (!at(field).is_boolean())
      fail("{} is {}, expected true or false", name(field), at(field).dump());
    return at(field).get<bool>();
  }

 private:
  const Json& object_;
  std::string where_;
};

// a + b and a * b of counts; a file has fewer than 2^63 bytes.
int64_t checked_sum(const std::string& where, int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) fail("{}: too large", where);
  return sum;
}
int64_t checked_product(const std::string& where, int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) fail("{}: too large", where);
  return product;
}

void check_extensions(const Fields& global) {
  constexpr const char* kField = "core:extensions";
  if (!global.has(kField)) return;
  const Json& list = global.at(kField);
  if (list.is_object()) {
    // Before version 1.0: names and versions, all of them optional.
    return;
  }
  if (!list.is_array()) fail("{}: expected a list", global.name(kField));
  for (const Json& entry : list) {
    const Fields extension(entry, global.name(kField));
    const std::string name = extension.text("name");
    const bool optional = extension.has("optional") ? extension.flag("optional") : false;
    if (!optional) {
      fail("{}: '{}' must be understood to read this recording, and is not", global.name(kField),
           name);
    }
  }
}

SampleFormat read_format(const Fields& global) {
  constexpr const char* kField = "core:datatype";
  const std::string type = global.text(kField);
  const auto format = find_sample_format(type);
  const bool one_byte = type == "ci8" || type == "cu8";
  if (!format || (!one_byte && (!type.ends_with("_le") && !type.ends_with("_be"))) ||
      (format->value_bytes() == 1 && !one_byte)) {
    fail("{} is '{}', expected complex samples of a known type: {}", global.name(kField), type,
         kSampleFormats);
  }
  return *format;
}

void check_version(const Fields& global) {
  constexpr const char* kField = "core:version";
  if (!global.has(kField)) return;
  const std::string version = global.text(kField);
  if (!version.starts_with("0.") && !version.starts_with("1.")) {
    fail("{} is '{}', expected 0.x or 1.x", global.name(kField), version);
  }
}

// One segment of `captures`, in samples and bytes.
struct Segment {
  int64_t start = 0;   // sample, counted from the first one of the data set
  int64_t header = 0;  // bytes before it that are no samples
};

std::vector<Segment> read_segments(const Json& document, const Fields& global,
                                   const std::string& file) {
  if (!document.contains("captures")) return {{}};
  const Json& captures = document.at("captures");
  if (!captures.is_array()) fail("{}: captures: expected a list", file);
  const int64_t offset = global.count("core:offset", 0);
  std::vector<Segment> segments;
  for (size_t i = 0; i < captures.size(); ++i) {
    const Fields capture(captures[i], fmt::format("{}: captures[{}]", file, i));
    constexpr const char* kStart = "core:sample_start";
    if (!capture.has(kStart)) fail("{} is missing", capture.name(kStart));
    const int64_t start = capture.count(kStart, 0);
    if (start < offset) {
      fail("{} is {}, but the data set begins with sample {} (core:offset)", capture.name(kStart),
           start, offset);
    }
    if (i > 0 && start - offset < segments.back().start) {
      fail("{} is {}, less than that of the one before", capture.name(kStart), start);
    }
    segments.push_back({start - offset, capture.count("core:header_bytes", 0)});
  }
  if (segments.empty()) return {{}};
  return segments;
}

std::vector<Capture> locate(const std::vector<Segment>& segments, const SampleFormat& format,
                            int64_t size, const std::string& file) {
  const auto sample = static_cast<int64_t>(format.sample_bytes());
  std::vector<Capture> captures;
  int64_t headers = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const std::string where = fmt::format("{}: captures[{}]", file, i);
    headers = checked_sum(where, headers, segments[i].header);
    const int64_t first =
        checked_sum(where, headers, checked_product(where, sample, segments[i].start));
    const bool last = i + 1 == segments.size();
    const int64_t end =
        last ? size
             : checked_sum(where, headers, checked_product(where, sample, segments[i + 1].start));
    if (first > size || end > size) {
      fail("{}: ends at byte {}, but the data set has {}", where, std::max(first, end), size);
    }
    if (end > first) captures.push_back({first, end - first});
  }
  return captures;
}

// The recording that `meta` describes. `find` says where a data set of this name is, or that of the
// usual name if the name is empty.
template <typename Find>
SigMf read_recording(const Bytes& meta, const std::string& name, const Find& find) {
  const Json document = parse_json(read_text(meta), name);
  if (!document.is_object() || !document.contains("global") || !document["global"].is_object()) {
    fail("{}: expected a JSON object with an object 'global'", name);
  }
  const Fields global(document["global"], name + ": global");
  check_version(global);
  check_extensions(global);
  SigMf result;
  result.format = read_format(global);
  if (const int64_t channels = global.count("core:num_channels", 1); channels != 1) {
    fail("{} is {}, expected 1", global.name("core:num_channels"), channels);
  }
  if (global.flag("core:metadata_only")) {
    fail("{}: there are no samples", global.name("core:metadata_only"));
  }
  std::string data_name;
  if (global.has("core:dataset")) {
    data_name = global.text("core:dataset");
    if (data_name.empty() || data_name == "." || data_name == ".." ||
        data_name.find('/') != std::string::npos || data_name.find('\0') != std::string::npos) {
      fail("{} is '{}', expected the name of a file beside the metadata",
           global.name("core:dataset"), data_name);
    }
  }
  const Bytes data = find(data_name);
  if (global.has("core:sha512")) {
    std::string expected = global.text("core:sha512");
    std::ranges::transform(expected, expected.begin(), [](char c) {
      return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    if (sha512_of(data) != expected) {
      fail("{}: the data set has another hash: it is damaged, or not that of this metadata",
           global.name("core:sha512"));
    }
  }
  const int64_t trailing = global.count("core:trailing_bytes", 0);
  if (trailing > data.size) {
    fail("{} is {}, but the data set has {} bytes", global.name("core:trailing_bytes"), trailing,
         data.size);
  }
  result.data = data.file;
  result.captures =
      locate(read_segments(document, global, name), result.format, data.size - trailing, name);
  for (Capture& capture : result.captures) capture.first_byte += data.first;
  return result;
}

SigMf read_archive(const fs::path& archive) {
  const std::vector<TarMember> members = list_tar(archive);
  const TarMember* meta = nullptr;
  for (const TarMember& member : members) {
    if (!member.name.ends_with(kMeta)) continue;
    if (meta != nullptr) {
      fail("{}: holds more than one recording; unpack it (tar xf) and name one", archive.string());
    }
    meta = &member;
  }
  if (meta == nullptr) fail("{}: holds no {}", archive.string(), kMeta);
  const auto find = [&](const std::string& name) -> Bytes {
    fs::path wanted = fs::path(meta->name).replace_extension(kData);
    if (!name.empty()) wanted = fs::path(meta->name).parent_path() / name;
    const auto found = std::ranges::find(members, wanted.string(), &TarMember::name);
    if (found == members.end()) fail("{}: holds no '{}'", archive.string(), wanted.string());
    return {archive, found->first_byte, found->bytes};
  };
  return read_recording({archive, meta->first_byte, meta->bytes},
                        fmt::format("{}({})", archive.string(), meta->name), find);
}

}  // namespace

SigMf read_sigmf(const fs::path& path) {
  const fs::path extension = path.extension();
  if (extension == ".sigmf-collection") {
    fail("{}: is a collection; name one of its recordings", path.string());
  }
  if (extension == ".sigmf") return read_archive(path);
  fs::path meta = path, data = path;
  if (extension == kData || extension == kMeta) {
    meta.replace_extension(kMeta);
    data.replace_extension(kData);
  } else {
    meta += kMeta;
    data += kData;
  }
  return read_recording(whole_file(meta), meta.string(), [&](const std::string& name) {
    return whole_file(name.empty() ? data : meta.parent_path() / name);
  });
}

}  // namespace fmp
