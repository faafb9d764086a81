// SPDX-License-Identifier: MIT
// A checkpoint is
//   magic     8 bytes   "FMPCKPT\n"
//   version   u32       kVersion
//   checksum  u32       CRC-32 of the payload
//   size      u64       bytes of the payload
//   payload:
//     size of the text u64, then JSON text: {"networks": [...], "state": ...}
//     the arrays of each network, in the order of visit_arrays(); their sizes follow from the
//     network's configuration, which is part of the text
// Everything is little-endian.
#include "framework/network/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "framework/atomic_file.h"
#include "framework/error.h"
#include "framework/json.h"
#include "framework/network/description.h"

namespace fmp {
namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian");

constexpr std::string_view kMagic = "FMPCKPT\n";
constexpr uint32_t kVersion = 2;

struct Header {
  std::array<char, 8> magic{};
  uint32_t version = 0;
  uint32_t checksum = 0;
  uint64_t payload_bytes = 0;
};
static_assert(sizeof(Header) == 24);

// CRC-32 as in zlib, PNG and Ethernet: reflected polynomial 0xEDB88320.
constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
    table[byte] = crc;
  }
  return table;
}();

uint32_t crc32(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) crc = kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

// Calls visit(span) for every array of a network's state, writable if the network is.
template <typename AnyNetwork, typename Visitor>
void visit_arrays(AnyNetwork& network, Visitor&& visit) {
  for (auto& layer : network.layers()) {
    for (auto* parameter : layer.parameters()) {
      visit(parameter->value.floats());
      visit(parameter->moment1.floats());
      visit(parameter->moment2.floats());
      visit(std::span(parameter->mask));
    }
    for (auto* tensor : {&layer.running_mean, &layer.running_var, &layer.gain})
      visit(tensor->floats());
  }
}

// A lower bound of what visit_arrays() visits, known before any of it is allocated: value, two
// moments and mask of every weight.
uint64_t least_array_bytes(const NetworkConfig& config) {
  return static_cast<uint64_t>(config.weights()) * (3 * sizeof(float) + sizeof(uint8_t));
}

void append(std::string& out, std::span<const std::byte> bytes) {
  out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// Takes bytes off the front of a payload.
class PayloadReader {
 public:
  explicit PayloadReader(std::string_view bytes) : bytes_(bytes) {}

  size_t left() const { return bytes_.size(); }

  std::string_view take(uint64_t count) {
    if (count > bytes_.size()) fail("{} bytes are missing", count - bytes_.size());
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }

  void read(std::span<std::byte> into) {
    const std::string_view taken = take(into.size());
    if (!taken.empty()) std::memcpy(into.data(), taken.data(), taken.size());
  }

 private:
  std::string_view bytes_;
};

std::string encode(const Checkpoint& checkpoint) {
  nlohmann::json document = {{"networks", nlohmann::json::array()}, {"state", checkpoint.state}};
  for (const auto& [name, network] : checkpoint.networks) {
    document["networks"].push_back({{"name", name},
                                    {"config", network.config()},
                                    {"class_names", network.class_names},
                                    {"steps", network.steps},
                                    {"optimizer_steps", network.optimizer_steps}});
  }
  // A path with bytes that are no UTF-8 must not cost the checkpoint.
  const std::string text = document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const uint64_t text_bytes = text.size();
  std::string payload;
  append(payload, std::as_bytes(std::span(&text_bytes, 1)));
  payload += text;
  for (const auto& [name, network] : checkpoint.networks) {
    visit_arrays(network, [&](auto array) { append(payload, std::as_bytes(array)); });
  }
  return payload;
}

int64_t read_count(const nlohmann::json& entry, const char* key) {
  const auto& value = entry.at(key);
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) {
    fail("{}: not a count", key);
  }
  return value.get<int64_t>();
}

Network decode_network(const nlohmann::json& entry, PayloadReader& payload) {
  const auto config = entry.at("config").get<NetworkConfig>();
  config.validate();
  if (least_array_bytes(config) > payload.left()) fail("the network's arrays are missing");
  Network network(config, 0);
  network.class_names = entry.at("class_names").get<std::vector<std::string>>();
  if (!network.class_names.empty() &&
      network.class_names.size() != static_cast<size_t>(config.classes)) {
    fail("{} class names for {} classes", network.class_names.size(), config.classes);
  }
  network.steps = read_count(entry, "steps");
  network.optimizer_steps = read_count(entry, "optimizer_steps");
  visit_arrays(network, [&](auto array) { payload.read(std::as_writable_bytes(array)); });
  for (const Layer& layer : network.layers()) {
    if (std::ranges::any_of(layer.weight.mask, [](uint8_t alive) { return alive > 1; })) {
      fail("{}: a mask entry is neither 0 nor 1", layer.name);
    }
  }
  return network;
}

Checkpoint decode(std::string_view bytes) {
  PayloadReader payload(bytes);
  uint64_t text_bytes = 0;
  payload.read(std::as_writable_bytes(std::span(&text_bytes, 1)));
  nlohmann::json document = parse_json(payload.take(text_bytes), "its text");
  Checkpoint checkpoint;
  checkpoint.state = std::move(document.at("state"));
  for (const nlohmann::json& entry : document.at("networks")) {
    checkpoint.networks.emplace(entry.at("name").get<std::string>(),
                                decode_network(entry, payload));
  }
  if (payload.left() != 0) fail("{} bytes too many", payload.left());
  return checkpoint;
}

int checked_int(const nlohmann::json& value, const char* key) {
  // get<int>() would convert fractions and wrap large numbers silently.
  if (!value.is_number_integer() || value.get<int64_t>() < std::numeric_limits<int>::min() ||
      value.get<int64_t>() > std::numeric_limits<int>::max()) {
    throw UsageError(fmt::format("{}: {} is not an integer in range", key, value.dump()));
  }
  return value.get<int>();
}

void read_field(const nlohmann::json& json, const char* key, int& field) {
  field = checked_int(json.at(key), key);
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  const std::string payload = encode(checkpoint);
  Header header;
  std::ranges::copy(kMagic, header.magic.begin());
  header.version = kVersion;
  header.checksum = crc32(payload);
  header.payload_bytes = payload.size();
  std::string bytes;
  bytes.reserve(sizeof(header) + payload.size());
  append(bytes, std::as_bytes(std::span(&header, 1)));
  bytes += payload;
  write_file_atomically(path, bytes);
}

std::string read_checkpoint_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const uint64_t file_bytes = std::filesystem::file_size(path, error);
  if (error) fail("{}: cannot read: {}", path.string(), error.message());
  std::ifstream file(path, std::ios::binary);
  Header header;
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header)) ||
      std::string_view(header.magic.data(), header.magic.size()) != kMagic) {
    fail("{}: not a checkpoint", path.string());
  }
  if (header.version != kVersion) {
    fail("{}: checkpoint version {}, expected {}", path.string(), header.version, kVersion);
  }
  if (header.payload_bytes != file_bytes - sizeof(header)) {
    fail("{}: damaged checkpoint: {} bytes follow the header, expected {}", path.string(),
         file_bytes - sizeof(header), header.payload_bytes);
  }
  std::string payload(header.payload_bytes, '\0');
  if (!file.read(payload.data(), static_cast<std::streamsize>(payload.size()))) {
    fail("{}: cannot read", path.string());
  }
  if (crc32(payload) != header.checksum) {
    fail("{}: damaged checkpoint: the checksum does not match", path.string());
  }
  return payload;
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  return decode_checkpoint(read_checkpoint_bytes(path), path);
}

Checkpoint decode_checkpoint(const std::string& bytes, const std::filesystem::path& path) {
  try {
    return decode(bytes);
  } catch (const Error& error) {
    fail("{}: damaged checkpoint: {}", path.string(), error.what());
  } catch (const nlohmann::json::exception& error) {
    fail("{}: damaged checkpoint: {}", path.string(), error.what());
  }
}

void to_json(nlohmann::json& json, const NetworkConfig& config) {
  json = {{"input_channels", config.input_channels},
          {"length", config.length},
          {"classes", config.classes},
          {"network", describe_network(config)}};
}

void from_json(const nlohmann::json& json, NetworkConfig& config) {
  constexpr int kBits = 0;  // all are there
  config = network_of_json(json.at("network"), "network", kBits);
  read_field(json, "input_channels", config.input_channels);
  read_field(json, "length", config.length);
  read_field(json, "classes", config.classes);
}

}  // namespace fmp
