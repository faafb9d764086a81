// SPDX-License-Identifier: MIT
#include "framework/data/sample_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "framework/error.h"

namespace fmp {
namespace {

static_assert(std::endian::native == std::endian::little, "samples are read as they are in memory");

using Number = SampleFormat::Number;

struct NumberName {
  std::string_view name;
  Number number;
};
constexpr NumberName kNumbers[] = {{"cf32", Number::kFloat32}, {"cf64", Number::kFloat64},
                                   {"ci32", Number::kInt32},   {"ci16", Number::kInt16},
                                   {"ci8", Number::kInt8},     {"cu32", Number::kUint32},
                                   {"cu16", Number::kUint16},  {"cu8", Number::kUint8}};

template <typename T>
void convert(const char* bytes, size_t count, bool big_endian, float* out) {
  for (size_t i = 0; i < count; ++i) {
    std::array<char, sizeof(T)> raw;
    std::memcpy(raw.data(), bytes + i * sizeof(T), sizeof(T));
    if (big_endian) std::ranges::reverse(raw);
    const T value = std::bit_cast<T>(raw);
    if constexpr (std::is_floating_point_v<T>) {
      out[i] = static_cast<float>(value);
    } else {
      constexpr double kHalf = 1LL << (8 * sizeof(T) - 1);
      constexpr double kMiddle = std::is_signed_v<T> ? 0 : kHalf;
      out[i] = static_cast<float>((static_cast<double>(value) - kMiddle) / kHalf);
    }
  }
}

}  // namespace

size_t SampleFormat::value_bytes() const {
  switch (number) {
    case Number::kFloat64:
      return 8;
    case Number::kFloat32:
    case Number::kInt32:
    case Number::kUint32:
      return 4;
    case Number::kInt16:
    case Number::kUint16:
      return 2;
    default:
      return 1;
  }
}

float SampleFormat::highest_value() const {
  if (number == Number::kFloat32 || number == Number::kFloat64) return 0;
  return static_cast<float>(1 - std::ldexp(1.0, 1 - 8 * static_cast<int>(value_bytes())));
}

std::optional<SampleFormat> find_sample_format(std::string_view name) {
  SampleFormat format;
  const bool little_endian = name.ends_with("_le");
  format.big_endian = name.ends_with("_be");
  if (little_endian || format.big_endian) name.remove_suffix(3);
  const auto* found = std::ranges::find(kNumbers, name, &NumberName::name);
  if (found == std::end(kNumbers)) return std::nullopt;
  format.number = found->number;
  if (format.value_bytes() == 1) format.big_endian = false;  // one byte has no order
  return format;
}

SampleFormat parse_sample_format(const std::string& name) {
  if (const auto format = find_sample_format(name)) return *format;
  throw UsageError(fmt::format("sample format: expected {}, found '{}'", kSampleFormats, name));
}

void convert_samples(const SampleFormat& format, const char* bytes, size_t count, float* out) {
  const bool swap = format.big_endian;
  switch (format.number) {
    case Number::kFloat32:
      return convert<float>(bytes, count, swap, out);
    case Number::kFloat64:
      return convert<double>(bytes, count, swap, out);
    case Number::kInt32:
      return convert<int32_t>(bytes, count, swap, out);
    case Number::kInt16:
      return convert<int16_t>(bytes, count, swap, out);
    case Number::kInt8:
      return convert<int8_t>(bytes, count, swap, out);
    case Number::kUint32:
      return convert<uint32_t>(bytes, count, swap, out);
    case Number::kUint16:
      return convert<uint16_t>(bytes, count, swap, out);
    case Number::kUint8:
      return convert<uint8_t>(bytes, count, swap, out);
  }
}

}  // namespace fmp
