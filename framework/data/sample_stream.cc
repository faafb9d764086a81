// SPDX-License-Identifier: MIT
#include "framework/data/sample_stream.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "framework/error.h"

namespace fmp {
namespace {

static_assert(std::endian::native == std::endian::little, "samples are read as they are in memory");

constexpr std::streamoff kMaxMetadataBytes = 1 << 24;  // annotations included

size_t value_bytes(SampleFormat format) {
  switch (format) {
    case SampleFormat::kCf32:
      return sizeof(float);
    case SampleFormat::kCi16:
      return sizeof(int16_t);
    default:
      return sizeof(int8_t);
  }
}

// Integers to the unit interval: the largest magnitude becomes 1.
template <typename T>
void convert(const char* bytes, size_t count, float unit, float* out) {
  for (size_t i = 0; i < count; ++i) {
    T value{};
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    out[i] = static_cast<float>(value) * unit;
  }
}

std::string text_field(const nlohmann::json& object, const char* field, const std::string& file) {
  if (!object.contains(field) || !object[field].is_string()) {
    fail("{}: global.{} is missing or no text", file, field);
  }
  return object[field].get<std::string>();
}

nlohmann::json read_metadata(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  if (!in) fail("{}: cannot be opened", file.string());
  const std::streamoff size = in.tellg();
  if (size < 0 || size > kMaxMetadataBytes) {
    fail("{}: {} bytes, expected at most {}", file.string(), size, kMaxMetadataBytes);
  }
  std::string text(static_cast<size_t>(size), '\0');
  in.seekg(0);
  if (!in.read(text.data(), size)) fail("{}: cannot be read", file.string());
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("global") || !json["global"].is_object()) {
    fail("{}: expected a JSON object with an object 'global'", file.string());
  }
  return json["global"];
}

}  // namespace

SampleFormat parse_sample_format(const std::string& name) {
  if (name == "cf32") return SampleFormat::kCf32;
  if (name == "ci16") return SampleFormat::kCi16;
  if (name == "ci8") return SampleFormat::kCi8;
  throw UsageError(fmt::format("sample format: expected cf32, ci16 or ci8, found '{}'", name));
}

Normalization parse_normalization(const std::string& name) {
  if (name == "stretch") return Normalization::kStretch;
  if (name == "frame") return Normalization::kFrame;
  if (name == "none") return Normalization::kNone;
  throw UsageError(fmt::format("normalization: expected stretch, frame or none, found '{}'", name));
}

SigMf read_sigmf(const std::filesystem::path& path) {
  std::filesystem::path meta = path, data = path;
  if (path.extension() == ".sigmf-data" || path.extension() == ".sigmf-meta") {
    meta.replace_extension(".sigmf-meta");
    data.replace_extension(".sigmf-data");
  } else {
    meta += ".sigmf-meta";
    data += ".sigmf-data";
  }
  const nlohmann::json global = read_metadata(meta);
  const std::string type = text_field(global, "core:datatype", meta.string());
  SigMf result;
  result.data = data;
  if (type == "cf32_le") {
    result.format = SampleFormat::kCf32;
  } else if (type == "ci16_le") {
    result.format = SampleFormat::kCi16;
  } else if (type == "ci8") {
    result.format = SampleFormat::kCi8;
  } else {
    fail("{}: core:datatype is '{}', expected cf32_le, ci16_le or ci8", meta.string(), type);
  }
  if (global.contains("core:num_channels") && global["core:num_channels"] != 1) {
    fail("{}: core:num_channels is {}, expected 1", meta.string(),
         global["core:num_channels"].dump());
  }
  return result;
}

SampleStream::SampleStream(std::istream& in, std::string name, const Options& options)
    : in_(in), name_(std::move(name)), options_(options) {
  bytes_.resize(static_cast<size_t>(options.length) * 2 * value_bytes(options.format));
}

bool SampleStream::read_frame(float* frame) {
  const size_t count = static_cast<size_t>(options_.length) * 2;
  in_.read(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
  if (in_.bad()) fail("{}: cannot be read", name_);
  const size_t found = static_cast<size_t>(in_.gcount());
  if (found < bytes_.size()) {
    const size_t sample_bytes = 2 * value_bytes(options_.format);
    if (found % sample_bytes != 0) {
      fail("{}: ends within a sample, {} bytes after the last whole one", name_,
           found % sample_bytes);
    }
    if (found > 0) left_over_ = static_cast<int64_t>(found / sample_bytes);
    return false;
  }
  switch (options_.format) {
    case SampleFormat::kCf32:
      std::memcpy(frame, bytes_.data(), bytes_.size());
      break;
    case SampleFormat::kCi16:
      convert<int16_t>(bytes_.data(), count, 0x1p-15F, frame);
      break;
    case SampleFormat::kCi8:
      convert<int8_t>(bytes_.data(), count, 0x1p-7F, frame);
      break;
  }
  const float* bad = std::find_if(frame, frame + count, [](float v) { return !std::isfinite(v); });
  if (bad != frame + count) {
    fail("{}: sample {} is {}, not a finite number", name_,
         frames_read_ * options_.length + (bad - frame) / 2, *bad);
  }
  ++frames_read_;
  return true;
}

SampleStream::Moments SampleStream::moments_of(const float* frame) const {
  Moments m;
  for (int l = 0; l < options_.length; ++l) {
    const double i = static_cast<double>(frame[2 * l]), q = static_cast<double>(frame[2 * l + 1]);
    m.i += i;
    m.q += q;
    m.power += i * i + q * q;
  }
  m.i /= options_.length;
  m.q /= options_.length;
  m.power /= options_.length;
  return m;
}

double SampleStream::Moments::gain() const {
  const double variance = power - i * i - q * q;
  // A constant signal has no deviation but that of rounding.
  constexpr double kRounding = 1e-12;
  return variance > kRounding * power ? 1 / std::sqrt(variance) : 0;
}

void SampleStream::fill_stretch() {
  const size_t frame_values = static_cast<size_t>(options_.length) * 2;
  std::vector<float> frame(frame_values);
  int frames = 0;
  for (; frames < options_.stretch_frames && read_frame(frame.data()); ++frames) {
    waiting_.insert(waiting_.end(), frame.begin(), frame.end());
    const Moments m = moments_of(frame.data());
    stretch_.i += m.i;
    stretch_.q += m.q;
    stretch_.power += m.power;
  }
  if (frames > 0) {
    stretch_.i /= frames;
    stretch_.q /= frames;
    stretch_.power /= frames;
  }
  const double gain = stretch_.gain();
  for (float& v : waiting_) v = static_cast<float>(gain * static_cast<double>(v));
}

int64_t SampleStream::read(int64_t count, std::vector<float>& values) {
  if (options_.normalization == Normalization::kStretch && !std::exchange(stretch_known_, true)) {
    fill_stretch();
  }
  const size_t frame_values = static_cast<size_t>(options_.length) * 2;
  values.clear();
  int64_t frames = 0;
  for (; frames < count; ++frames) {
    const size_t at = values.size();
    values.resize(at + frame_values);
    float* frame = values.data() + at;
    if (handed_out_ < waiting_.size()) {
      std::copy_n(waiting_.begin() + static_cast<ptrdiff_t>(handed_out_), frame_values, frame);
      handed_out_ += frame_values;
      if (handed_out_ == waiting_.size()) {
        handed_out_ = 0;
        waiting_ = {};
      }
      continue;
    }
    if (!read_frame(frame)) {
      values.resize(at);
      break;
    }
    if (options_.normalization == Normalization::kNone) continue;
    const Moments m = moments_of(frame);
    if (options_.normalization == Normalization::kFrame) {
      stretch_ = m;
    } else {
      const double weight = 1.0 / options_.stretch_frames;
      stretch_.i += weight * (m.i - stretch_.i);
      stretch_.q += weight * (m.q - stretch_.q);
      stretch_.power += weight * (m.power - stretch_.power);
    }
    const double gain = stretch_.gain();
    for (size_t i = 0; i < frame_values; ++i) {
      frame[i] = static_cast<float>(gain * static_cast<double>(frame[i]));
    }
  }
  return frames;
}

}  // namespace fmp
