// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fmp {

// How complex samples are stored: I and Q one after the other, as numbers of one type.
struct SampleFormat {
  enum class Number : uint8_t {
    kFloat32,
    kFloat64,
    kInt32,
    kInt16,
    kInt8,
    kUint32,
    kUint16,
    kUint8
  };
  Number number = Number::kFloat32;
  bool big_endian = false;

  size_t value_bytes() const;  // of I or Q
  size_t sample_bytes() const { return 2 * value_bytes(); }
  // The value that the largest integer is converted to, where numbers are integers; 0 for floats.
  float highest_value() const;
  bool operator==(const SampleFormat&) const = default;
};

// What parse_sample_format() takes, for messages.
inline constexpr std::string_view kSampleFormats =
    "cf32, cf64, ci8, ci16, ci32, cu8, cu16, cu32, with _le (as without) or _be";

// The format of a name as SigMF writes it ("ci16_le", "cu8"), or without the byte order, which is
// then little-endian ("ci16"). Empty for other names.
std::optional<SampleFormat> find_sample_format(std::string_view name);
// Likewise; throws UsageError for other names.
SampleFormat parse_sample_format(const std::string& name);

// `count` numbers at `bytes` as floats: floats as they are, signed integers divided so that the
// largest magnitude becomes 1, unsigned ones likewise after half of their range was subtracted
// (cu8: (v - 128) / 128).
void convert_samples(const SampleFormat& format, const char* bytes, size_t count, float* out);

}  // namespace fmp
