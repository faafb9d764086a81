// SPDX-License-Identifier: MIT
#include "framework/data/tar_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <string_view>
#include <system_error>

#include "framework/error.h"

namespace fmp {
namespace {

constexpr size_t kBlock = 512;
constexpr int64_t kMaxExtendedHeader = 1 << 20;  // of a name, or of pax records

using Header = std::array<char, kBlock>;

std::string_view field(const Header& header, size_t at, size_t size) {
  const std::string_view text(header.data() + at, size);
  return text.substr(0, text.find('\0'));
}

// An octal number, or GNU's binary one of which the first byte is 0x80. -1: neither.
int64_t number(const Header& header, size_t at, size_t size) {
  if (static_cast<unsigned char>(header[at]) == 0x80) {
    uint64_t value = 0;
    for (size_t i = size - 8; i < size; ++i)
      value = value << 8 | static_cast<unsigned char>(header[at + i]);
    return value <= INT64_MAX ? static_cast<int64_t>(value) : -1;
  }
  std::string_view text = field(header, at, size);
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(' ')));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
  const bool complete = end == text.data() + text.size() || *end == ' ';
  return error == std::errc() && complete && value >= 0 ? value : -1;
}

bool checksum_holds(const Header& header) {
  constexpr size_t kAt = 148, kSize = 8;
  int64_t sum = 0;
  for (size_t i = 0; i < header.size(); ++i)
    sum += i >= kAt && i < kAt + kSize ? ' ' : static_cast<unsigned char>(header[i]);
  return number(header, kAt, kSize) == sum;
}

// What headers before a file say of it instead of its own.
struct Overrides {
  std::string name;
  int64_t bytes = -1;

  // Records "LENGTH KEY=VALUE\n".
  bool read_pax(std::string_view records) {
    while (!records.empty()) {
      size_t length = 0;
      const auto [end, error] =
          std::from_chars(records.data(), records.data() + records.size(), length);
      const auto digits = static_cast<size_t>(end - records.data());
      if (error != std::errc() || length > records.size() || length < digits + 3) return false;
      const std::string_view record = records.substr(digits + 1, length - digits - 2);
      records.remove_prefix(length);
      const size_t equals = record.find('=');
      if (equals == std::string_view::npos) return false;
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key == "path") name = value;
      if (key.starts_with("GNU.sparse.")) return false;
      if (key == "size") {
        const auto parsed = std::from_chars(value.data(), value.data() + value.size(), bytes);
        if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size() || bytes < 0)
          return false;
      }
    }
    return true;
  }
};

}  // namespace

std::vector<TarMember> list_tar(const std::filesystem::path& archive) {
  std::error_code error;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(archive, error));
  std::ifstream in(archive, std::ios::binary);
  if (error || !in) fail("{}: cannot be opened", archive.string());
  std::vector<TarMember> members;
  Overrides overrides;
  Header header;
  for (int64_t at = 0; at < size;) {
    in.seekg(at);
    if (!in.read(header.data(), header.size())) fail("{}: ends within a header", archive.string());
    at += static_cast<int64_t>(kBlock);
    if (std::ranges::all_of(header, [](char c) { return c == '\0'; })) break;  // its end
    if (!checksum_holds(header)) {
      fail("{}: is no tar archive, or a damaged or compressed one (header at byte {})",
           archive.string(), at - static_cast<int64_t>(kBlock));
    }
    const char type = header[156];
    int64_t bytes = number(header, 124, 12);
    const bool is_file = type == '0' || type == '\0' || type == '7';
    if (is_file && overrides.bytes >= 0) bytes = overrides.bytes;
    if (bytes < 0 || bytes > size - at) {
      fail("{}: ends within a file of {} bytes", archive.string(), bytes);
    }
    if (type == 'x' || type == 'L') {
      if (bytes > kMaxExtendedHeader) {
        fail("{}: a header of {} bytes, expected at most {}", archive.string(), bytes,
             kMaxExtendedHeader);
      }
      std::string text(static_cast<size_t>(bytes), '\0');
      in.read(text.data(), bytes);
      if (type == 'L') overrides.name = text.substr(0, text.find('\0'));
      if (type == 'x' && !overrides.read_pax(text)) {
        fail("{}: a header of a form that is not known", archive.string());
      }
    } else {
      if (is_file) {
        std::string name(field(header, 0, 100));
        const std::string_view prefix = field(header, 345, 155);
        if (field(header, 257, 5) == "ustar" && header[262] == '\0' && !prefix.empty())
          name = fmt::format("{}/{}", prefix, name);
        members.push_back({overrides.name.empty() ? name : overrides.name, at, bytes});
        if (members.size() > kMaxTarMembers) {
          fail("{}: more than {} files", archive.string(), kMaxTarMembers);
        }
      } else if (type == 'S') {
        fail("{}: holds a sparse file, which is not supported", archive.string());
      }
      overrides = {};
    }
    const auto block = static_cast<int64_t>(kBlock);
    at += bytes + (block - bytes % block) % block;
  }
  return members;
}

}  // namespace fmp
