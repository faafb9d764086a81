// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fmp {

// FNV-1a with 64 bits: tells whether two lists of values are the same, against accidents only.
class Hash {
 public:
  template <typename T>
  void add(std::span<const T> values) {
    for (const std::byte byte : std::as_bytes(values))
      value_ = (value_ ^ static_cast<uint8_t>(byte)) * 0x100000001B3;
  }
  void add(int64_t value) { add(std::span<const int64_t>(&value, 1)); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325;
};

}  // namespace fmp
