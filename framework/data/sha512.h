// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace fmp {

// SHA-512 (FIPS 180-4) of bytes that come in pieces.
class Sha512 {
 public:
  void add(std::span<const std::byte> bytes);
  // The hash of all that was added, as 128 hexadecimal digits. To be called once, last.
  std::string finish();

 private:
  static constexpr size_t kBlockBytes = 128;
  void add_block(const std::byte* block);

  std::array<uint64_t, 8> state_ = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                    0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                                    0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  std::array<std::byte, kBlockBytes> waiting_{};
  size_t waiting_bytes_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace fmp
