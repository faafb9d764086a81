// SPDX-License-Identifier: MIT
// The payload of a .fmp file: size and checksum are put right, or every input would end there.
#include <array>
#include <cstring>

#include "framework/inference/integer_network.h"
#include "framework/inference/model_file.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of two functions

namespace {

// CRC-32 bit by bit, independently of the checkpoint's own.
uint32_t crc32(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  return ~crc;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(fuzz::text(data, size));
  constexpr size_t kHeader = 24;
  if (size >= kHeader) {
    const uint32_t checksum = crc32(std::string_view(bytes).substr(kHeader));
    const uint64_t payload = size - kHeader;
    std::memcpy(bytes.data() + 12, &checksum, sizeof checksum);
    std::memcpy(bytes.data() + 16, &payload, sizeof payload);
  }
  const std::filesystem::path path = fuzz::file("model.fmp", bytes);
  fuzz::refuse_or_run([&] { IntegerNetwork network(load_model(path)); });
  return 0;
}
