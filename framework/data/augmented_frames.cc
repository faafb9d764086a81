// SPDX-License-Identifier: MIT
#include "framework/data/augmented_frames.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "framework/deterministic_math.h"
#include "framework/error.h"
#include "framework/random.h"
#include "kernels/cpu/parallel.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

constexpr size_t kFramesOfItem = 32;  // that a thread changes at a time: some 50 us

// Samples are [length][2], I and Q.
template <typename T>
void shift(std::span<T> samples, size_t later) {
  std::rotate(samples.begin(), samples.end() - static_cast<std::ptrdiff_t>(2 * later),
              samples.end());
}

template <typename T>
void swap_i_and_q(std::span<T> samples) {
  for (size_t k = 0; k < samples.size(); k += 2) std::swap(samples[k], samples[k + 1]);
}

// out may be the samples.
template <typename T>
void rotate(std::span<const T> samples, double turns, std::span<float> out) {
  const CosSin angle = cos_sin_turns(turns);
  const auto cos = static_cast<float>(angle.cos), sin = static_cast<float>(angle.sin);
  for (size_t k = 0; k < samples.size(); k += 2) {
    const auto i = static_cast<float>(samples[k]), q = static_cast<float>(samples[k + 1]);
    out[k] = i * cos - q * sin;
    out[k + 1] = i * sin + q * cos;
  }
}

}  // namespace

Augmentation augmentation_of(std::span<const std::string> names) {
  Augmentation augmentation;
  for (const std::string& name : names) {
    bool* kind = name == "rotate"  ? &augmentation.rotate
                 : name == "shift" ? &augmentation.shift
                 : name == "swap"  ? &augmentation.swap
                                   : nullptr;
    if (kind == nullptr)
      throw UsageError(fmt::format("expected rotate, shift or swap, found '{}'", name));
    if (*kind) throw UsageError(fmt::format("'{}' stands there twice", name));
    *kind = true;
  }
  return augmentation;
}

AugmentedFrames::AugmentedFrames(const Dataset& source, const InputQuantizer& input,
                                 const Augmentation& augmentation, uint64_t seed, int threads)
    : source_(source),
      bits_(input.bits),
      augmentation_(augmentation),
      seed_(seed),
      threads_(threads) {
  set_epoch(0);
}

void AugmentedFrames::set_epoch(uint64_t epoch) {
  epoch_seed_ = Random(seed_, "augment", epoch).next_u64();
}

void AugmentedFrames::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  source_.read(frames, batch);
  const size_t frame_values = 2 * static_cast<size_t>(length());
  const size_t values = frames.size() * frame_values;
  const bool as_codes = bits_ != kFloatBits;
  if (const size_t found = as_codes ? batch.codes.size() : batch.values.size(); found != values)
    fail("{} frames have {} values of {} bits, expected {}", frames.size(), found, bits_, values);
  const auto items = static_cast<int64_t>((frames.size() + kFramesOfItem - 1) / kFramesOfItem);
  cpu::parallel_for(items, threads_, [&](int64_t item) {
    const size_t first = static_cast<size_t>(item) * kFramesOfItem;
    std::vector<float> turned(frame_values);
    for (size_t k = first; k < std::min(frames.size(), first + kFramesOfItem); ++k) {
      const auto part = [&](auto& all) {
        return std::span(all).subspan(k * frame_values, frame_values);
      };
      if (as_codes) {
        change(frames[k], part(batch.codes), turned);
      } else {
        change(frames[k], part(batch.values), turned);
      }
    }
  });
}

// turned: room for the frame's values, for codes.
template <typename T>
void AugmentedFrames::change(int64_t frame, std::span<T> samples, std::span<float> turned) const {
  const auto random = [&](const char* stream) {
    return Random(epoch_seed_, stream, static_cast<uint64_t>(frame));
  };
  if (augmentation_.shift)
    shift(samples, random("shift").below(static_cast<uint64_t>(source_.length())));
  if (augmentation_.swap && random("swap").below(2) == 1) swap_i_and_q(samples);
  if (!augmentation_.rotate) return;
  const double turns = random("rotate").uniform_double();
  if constexpr (sizeof(T) == sizeof(int8_t)) {
    rotate(std::span<const T>(samples), turns, turned);
    quantize_input(turned, InputQuantizer::of(bits_, 1), samples.data());  // in units of a code
  } else {
    rotate(std::span<const T>(samples), turns, samples);
  }
}

}  // namespace fmp
