// SPDX-License-Identifier: MIT
#include "framework/data/sample_stream.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "framework/error.h"

namespace fmp {
namespace {

// Whether two powers are as good as the same, next to kLevelChangeDb.
bool same_level(double a, double b) {
  static const double ratio = std::pow(10, SampleStream::kLevelChangeDb / 10);
  return a <= ratio * b && b <= ratio * a;
}

}  // namespace

Normalization parse_normalization(const std::string& name) {
  if (name == "stretch") return Normalization::kStretch;
  if (name == "frame") return Normalization::kFrame;
  if (name == "none") return Normalization::kNone;
  throw UsageError(fmt::format("normalization: expected stretch, frame or none, found '{}'", name));
}

SampleStream::SampleStream(std::istream& in, std::string name, const Options& options)
    : in_(in), name_(std::move(name)), options_(options), bytes_left_(options.bytes) {
  bytes_.resize(static_cast<size_t>(options.length) * options.format.sample_bytes());
}

bool SampleStream::read_frame(float* frame) {
  const size_t count = static_cast<size_t>(options_.length) * 2;
  const auto whole = static_cast<int64_t>(bytes_.size());
  in_.read(bytes_.data(), bytes_left_ < 0 ? whole : std::min(whole, bytes_left_));
  if (in_.bad()) fail("{}: cannot be read", name_);
  const size_t found = static_cast<size_t>(in_.gcount());
  if (bytes_left_ >= 0) bytes_left_ -= static_cast<int64_t>(found);
  if (found < bytes_.size()) {
    const size_t sample_bytes = options_.format.sample_bytes();
    if (found % sample_bytes != 0) {
      fail("{}: ends within a sample, {} bytes after the last whole one", name_,
           found % sample_bytes);
    }
    if (found > 0) left_over_ = static_cast<int64_t>(found / sample_bytes);
    return false;
  }
  convert_samples(options_.format, bytes_.data(), count, frame);
  const float* bad = std::find_if(frame, frame + count, [](float v) { return !std::isfinite(v); });
  if (bad != frame + count) {
    fail("{}: sample {} is {}, not a finite number", name_,
         frames_read_ * options_.length + (bad - frame) / 2, *bad);
  }
  if (const float highest = options_.format.highest_value(); highest > 0) {
    clipped_values_ +=
        std::count_if(frame, frame + count, [highest](float v) { return v <= -1 || v >= highest; });
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
  // A constant signal has no deviation but that of rounding.
  constexpr double kRounding = 1e-12;
  return variance() > kRounding * power ? 1 / std::sqrt(variance()) : 0;
}

void SampleStream::Moments::add(const Moments& other, double weight) {
  i += weight * (other.i - i);
  q += weight * (other.q - q);
  power += weight * (other.power - power);
}

double SampleStream::Moments::power_about(const Moments& mean) const {
  return std::max(0.0, power - 2 * (mean.i * i + mean.q * q) + mean.i * mean.i + mean.q * mean.q);
}

// Reads until `frames` frames wait to be handed out. False: there are fewer.
bool SampleStream::look_ahead(size_t frames) {
  while (ahead_.size() < frames) {
    Frame next{std::vector<float>(static_cast<size_t>(options_.length) * 2), {}};
    if (!read_frame(next.values.data())) return false;
    next.moments = moments_of(next.values.data());
    ahead_.push_back(std::move(next));
  }
  return true;
}

bool SampleStream::at_level(const Moments& frame) const {
  return same_level(frame.power_about(level_), level_.variance());
}

// The level of the stretch that begins with the first frame that waits.
void SampleStream::take_level() {
  const auto wanted = static_cast<size_t>(options_.stretch_frames);
  look_ahead(wanted);
  const size_t frames = std::min(wanted, ahead_.size());
  // A constant that receivers add must not hide that the signal begins.
  Moments mean;
  for (size_t k = 0; k < frames; ++k) mean.add(ahead_[k].moments, 1 / static_cast<double>(k + 1));
  Moments level;
  double power = 0, counted = 0;
  size_t others = 0;  // frames of another level, up to the present one
  fixed_frames_ = 0;
  for (size_t k = 0; k < frames && others < kLevelFrames; ++k) {
    const double here = ahead_[k].moments.power_about(mean);
    if (counted > 0 && !same_level(here, power / counted)) {
      ++others;
      continue;
    }
    others = 0;
    power += here;
    ++counted;
    level.add(ahead_[k].moments, 1 / counted);
    fixed_frames_ = static_cast<int64_t>(k) + 1;
  }
  level_ = level;
  level_known_ = true;
}

// The level for the first frame that waits, which is neither one of those that the present level
// was taken from nor at this level.
void SampleStream::look_for_change() {
  look_ahead(kLevelFrames);
  const size_t frames = std::min<size_t>(kLevelFrames, ahead_.size());
  for (size_t k = 0; k < frames; ++k) {
    if (at_level(ahead_[k].moments)) return;  // it comes back: a transient
  }
  const double before = level_.variance();
  take_level();
  if (changes_.size() < kMostChanges) {
    constexpr double kLeast = 1e-30;  // of silence
    changes_.push_back({frames_given_, 10 * std::log10(std::max(level_.variance(), kLeast) /
                                                       std::max(before, kLeast))});
  }
}

bool SampleStream::next_of_stretch(float* out) {
  if (!look_ahead(1)) return false;
  if (!level_known_) take_level();
  if (fixed_frames_ == 0) {
    const Moments& moments = ahead_.front().moments;
    if (at_level(moments)) {
      level_.add(moments, 1.0 / options_.stretch_frames);
    } else {
      look_for_change();
    }
  }
  if (fixed_frames_ > 0) --fixed_frames_;
  const double gain = level_.gain();
  std::ranges::transform(ahead_.front().values, out, [gain](float v) {
    return static_cast<float>(gain * static_cast<double>(v));
  });
  ahead_.pop_front();
  return true;
}

bool SampleStream::next(float* out) {
  if (options_.normalization == Normalization::kStretch) return next_of_stretch(out);
  if (!read_frame(out)) return false;
  if (options_.normalization == Normalization::kFrame) {
    const double gain = moments_of(out).gain();
    std::for_each(out, out + static_cast<ptrdiff_t>(options_.length) * 2,
                  [gain](float& v) { v = static_cast<float>(gain * static_cast<double>(v)); });
  }
  return true;
}

int64_t SampleStream::read(int64_t count, std::vector<float>& values) {
  const size_t frame_values = static_cast<size_t>(options_.length) * 2;
  values.clear();
  int64_t frames = 0;
  for (; frames < count; ++frames) {
    const size_t at = values.size();
    values.resize(at + frame_values);
    if (!next(values.data() + at)) {
      values.resize(at);
      break;
    }
    ++frames_given_;
  }
  return frames;
}

}  // namespace fmp
