// SPDX-License-Identifier: MIT
#include "framework/inference/teacher.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "framework/error.h"
#include "kernels/cpu/parallel.h"
#include "kernels/tile.h"

namespace fmp {
namespace {

constexpr size_t kFramesOfItem = 32;
constexpr size_t kMostKeptBytes = size_t{1} << 30;

const Network& checked(const Network& teacher, const Dataset& data) {
  const NetworkConfig& config = teacher.config();
  const auto classes = static_cast<int>(data.class_names().size());
  if (config.input_channels != 2 || config.length != data.length() || config.classes != classes) {
    fail("the teacher is for {} x {} samples and {} classes, the frames are 2 x {} of {} classes",
         config.input_channels, config.length, config.classes, data.length(), classes);
  }
  if (!teacher.class_names.empty() && teacher.class_names != data.class_names())
    fail("the teacher tells other classes apart than those of the frames");
  return teacher;
}

// softmax(logits * scale), in double precision.
void softmax(std::span<const int32_t> logits, double scale, float* out) {
  std::array<double, 256> shares{};  // a label is one byte
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (size_t c = 0; c < logits.size(); ++c) {
    shares[c] = std::exp((logits[c] - largest) * scale);
    sum += shares[c];
  }
  for (size_t c = 0; c < logits.size(); ++c) out[c] = static_cast<float>(shares[c] / sum);
}

}  // namespace

TaughtFrames::TaughtFrames(const Dataset& source, const InputQuantizer& input,
                           const Network& teacher, double temperature, int threads, bool stay)
    : source_(source),
      input_(input),
      teacher_(checked(teacher, source)),
      temperature_(temperature),
      threads_(threads) {
  const auto frames = static_cast<size_t>(source.size());
  const size_t targets = frames * source.class_names().size();
  if (!stay || targets * sizeof(float) > kMostKeptBytes) return;
  kept_.resize(targets);
  is_kept_.resize(frames);
}

void TaughtFrames::read(std::span<const int64_t> frames, FrameBatch& batch) const {
  source_.read(frames, batch);
  if (recall(frames, batch.soft_targets)) return;
  ask_teacher(batch);
  keep(frames, batch.soft_targets);
}

// False: not all frames' targets are kept.
bool TaughtFrames::recall(std::span<const int64_t> frames, std::vector<float>& soft_targets) const {
  if (is_kept_.empty()) return false;
  const std::lock_guard lock(mutex_);
  const auto kept = [&](int64_t frame) { return is_kept_[static_cast<size_t>(frame)] != 0; };
  if (!std::ranges::all_of(frames, kept)) return false;
  const auto classes = static_cast<int64_t>(class_names().size());
  soft_targets.resize(frames.size() * static_cast<size_t>(classes));
  auto to = soft_targets.begin();
  for (const int64_t frame : frames) to = std::copy_n(kept_.begin() + frame * classes, classes, to);
  return true;
}

void TaughtFrames::keep(std::span<const int64_t> frames,
                        const std::vector<float>& soft_targets) const {
  if (is_kept_.empty()) return;
  const std::lock_guard lock(mutex_);
  const auto classes = static_cast<int64_t>(class_names().size());
  auto from = soft_targets.begin();
  for (const int64_t frame : frames) {
    std::copy_n(from, classes, kept_.begin() + frame * classes);
    from += classes;
    is_kept_[static_cast<size_t>(frame)] = 1;
  }
}

void TaughtFrames::ask_teacher(FrameBatch& batch) const {
  const auto count = static_cast<size_t>(batch.count);
  const size_t classes = class_names().size();
  std::vector<int8_t> converted;
  const std::span<const int8_t> codes = codes_for_teacher(batch, converted);
  std::vector<int32_t> logits(count * classes);
  teacher_.run(codes, logits, {}, threads_);
  batch.soft_targets.resize(count * classes);
  const double scale = static_cast<double>(teacher_.logit_scale()) / temperature_;
  for (size_t n = 0; n < count; ++n) {
    softmax(std::span(logits).subspan(n * classes, classes), scale,
            batch.soft_targets.data() + n * classes);
  }
}

// The frames in the teacher's input quantizer.
std::span<const int8_t> TaughtFrames::codes_for_teacher(const FrameBatch& batch,
                                                        std::vector<int8_t>& codes) const {
  const InputQuantizer wanted = teacher_.config().input_quantizer();
  if (wanted == input_) return batch.codes;
  const size_t count = static_cast<size_t>(batch.count);
  const size_t frame_values = 2 * static_cast<size_t>(length());
  codes.resize(count * frame_values);
  const auto items = static_cast<int64_t>((count + kFramesOfItem - 1) / kFramesOfItem);
  cpu::parallel_for(items, threads_, [&](int64_t item) {
    const size_t first = static_cast<size_t>(item) * kFramesOfItem * frame_values;
    const size_t size = std::min(codes.size() - first, kFramesOfItem * frame_values);
    if (input_.bits == kFloatBits)
      return quantize_input(std::span(batch.values).subspan(first, size), wanted,
                            codes.data() + first);
    std::vector<float> values(size);
    for (size_t i = 0; i < size; ++i)
      values[i] = static_cast<float>(batch.codes[first + i]) * input_.scale;
    quantize_input(values, wanted, codes.data() + first);
  });
  return codes;
}

}  // namespace fmp
