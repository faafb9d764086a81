// SPDX-License-Identifier: MIT
#include "framework/inference/integer_network.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "framework/data/dataset.h"
#include "framework/error.h"
#include "framework/threads.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/parallel.h"

namespace fmp {
namespace {

constexpr int64_t kLargestSum = std::numeric_limits<int32_t>::max();
constexpr int kFloatBitsOfMantissa = 24;

struct WideRange {
  int64_t low = 0, high = 0;
  bool fits() const { return low > -kLargestSum && high < kLargestSum; }
};

WideRange wide_range(std::span<const int8_t> weights, int smallest_input, int largest_input) {
  WideRange range;
  for (const int8_t w : weights) {
    range.low += w * (w > 0 ? smallest_input : largest_input);
    range.high += w * (w > 0 ? largest_input : smallest_input);
  }
  return range;
}

std::span<const int8_t> weights_of(const IntegerLayerData& layer, int channel) {
  const size_t fan_in =
      static_cast<size_t>(layer.shape.taps) * static_cast<size_t>(layer.shape.in_channels);
  return std::span(layer.codes).subspan(static_cast<size_t>(channel) * fan_in, fan_in);
}

// What makes the inputs of the first layer unsigned.
int input_offset(const IntegerLayerData& layer) { return -layer.smallest_input(); }

// What that adds to the sums of a channel.
int64_t offset_of_sums(const IntegerLayerData& layer, int channel) {
  int64_t sum = 0;
  for (const int8_t w : weights_of(layer, channel)) sum += w;
  return sum * input_offset(layer);
}

void require_quantized(const Layer& layer) {
  const auto check = [&](const char* what, int bits) {
    if (bits == kFloatBits) {
      fail(
          "{}: its {} are float; only a network whose input, weights and activations all have 2 "
          "to 8 bits runs on integers",
          layer.name, what);
    }
  };
  if (layer.has_weights()) {
    check("inputs", layer.input_bits);
    check("weights", layer.weight_bits);
  }
  if (layer.kind != Layer::Kind::kOutput) check("activations", layer.act_bits);
}

// positions: that the layer before writes.
IntegerLayerData describe(const Layer& layer, int positions, bool signed_input) {
  IntegerLayerData data;
  data.name = layer.name;
  data.kind = layer.kind;
  data.reads = layer.reads;
  data.form = layer.form;
  if (layer.kind != Layer::Kind::kConv) data.form.kernel = data.form.stride = positions;
  data.shape = {layer.in_channels, layer.out_channels, layer.taps, layer.pool, data.form.stride};
  data.length = layer.length;
  data.input_bits = layer.input_bits;
  data.signed_input = signed_input;
  data.act_bits = layer.act_bits;
  return data;
}

// The weight codes; returns their scale.
float set_codes(const Layer& layer, IntegerLayerData& data) {
  cpu::Weights weights;
  try {
    weights.compile(layer, layer.weight.value.floats(), layer.weight.mask, {}, false);
  } catch (const std::domain_error& error) {
    fail("{}: {}", layer.name, error.what());
  }
  for (const float code : weights.codes()) data.codes.push_back(static_cast<int8_t>(code));
  return weights.scale();
}

void check_sums(const IntegerLayerData& data) {
  for (int o = 0; o < data.shape.out_channels; ++o) {
    const std::span<const int8_t> weights = weights_of(data, o);
    const int offset = input_offset(data);
    if (!wide_range(weights, data.smallest_input(), data.largest_input()).fits() ||
        !wide_range(weights, 0, data.largest_input() + offset).fits()) {
      fail("{}: the sums of output {} can leave 32 bits", data.name, o);
    }
  }
}

// The smallest sum in low .. high + 1 whose code is at least k, for every k = 1 .. levels.
// code_of: from kLanes sums to kLanes codes, not decreasing. Binary searches, a lane each.
template <typename CodeOf>
void find_thresholds(const cpu::SumRange& range, const CodeOf& code_of,
                     std::span<int32_t> thresholds) {
  for (size_t k = 0; k < thresholds.size(); k += kLanes) {
    std::array<int32_t, kLanes> low{}, high{}, middle{};
    std::array<uint8_t, kLanes> code{};
    low.fill(range.low);
    high.fill(range.high + 1);
    while (low != high) {
      for (size_t i = 0; i < kLanes; ++i) middle[i] = std::midpoint(low[i], high[i]);
      code_of(middle.data(), code.data());
      for (size_t i = 0; i < kLanes; ++i) {
        if (low[i] == high[i]) continue;
        if (code[i] > k + i) {
          high[i] = middle[i];
        } else {
          low[i] = middle[i] + 1;
        }
      }
    }
    std::copy_n(low.begin(), std::min<size_t>(kLanes, thresholds.size() - k),
                thresholds.begin() + static_cast<ptrdiff_t>(k));
  }
}

// Batch-norm and quantizer as thresholds; returns the scale of the codes.
float set_thresholds(const Layer& layer, float x_scale, float weight_scale,
                     IntegerLayerData& data) {
  const cpu::EvaluationState state = cpu::evaluation_state(
      layer, x_scale, weight_scale,
      {layer.gamma.value.floats(), layer.beta.value.floats(), layer.threshold.value.floats()[0]},
      layer.running_mean.floats(), layer.running_var.floats());
  const double unit = double{state.sum_scale} / double{state.act_scale};  // of a sum, in codes
  const size_t levels = static_cast<size_t>((1 << layer.act_bits) - 1);
  const int half = 1 << (layer.act_bits - 1);
  data.thresholds.resize(static_cast<size_t>(layer.out_channels) * levels);
  for (int o = 0; o < layer.out_channels; ++o) {
    const size_t channel = static_cast<size_t>(o);
    const float gain = state.gain[channel], shift = state.shift[channel];
    const int sign = gain < 0 ? -1 : 1;
    if (sign < 0) {
      const size_t fan_in = weights_of(data, o).size();
      for (size_t i = channel * fan_in; i < (channel + 1) * fan_in; ++i) {
        data.codes[i] = static_cast<int8_t>(-data.codes[i]);
      }
    }
    const cpu::SumRange range = data.range(o);
    const float scaled = static_cast<float>(std::max(-range.low, range.high)) * state.sum_scale;
    if (!std::isfinite(scaled) || !std::isfinite(scaled * gain) || !std::isfinite(gain) ||
        !std::isfinite(shift)) {
      fail("{}: batch-norm of output {} is not finite", layer.name, o);
    }
    const auto code_of = [&](const int32_t* sums, uint8_t* codes) {
      std::array<int32_t, kLanes> original{};
      for (size_t i = 0; i < kLanes; ++i) original[i] = sign * sums[i];
      cpu::activation_codes(state, o, layer, original.data(), codes);
      // Signed ones are counted from the smallest of a full range on.
      if (layer.smallest_code == 0) return;
      for (size_t i = 0; i < kLanes; ++i) codes[i] = static_cast<uint8_t>(codes[i] + half);
    };
    const std::span<int32_t> thresholds =
        std::span(data.thresholds).subspan(channel * levels, levels);
    find_thresholds(range, code_of, thresholds);
    data.requantizers.push_back(
        cpu::fit_requantizer(thresholds, range, std::fabs(double{gain}) * unit));
  }
  return state.act_scale;
}

// The bias in units of the sums.
void set_bias(const Layer& layer, float scale, IntegerLayerData& data) {
  const std::vector<float> codes = cpu::output_bias_codes(layer.bias.value.floats(), scale);
  for (int o = 0; o < layer.out_channels; ++o) {
    const float code = codes[static_cast<size_t>(o)];
    const cpu::SumRange range = data.range(o);
    const double largest = static_cast<double>(std::max(range.high, -range.low));
    if (!(std::fabs(static_cast<double>(code)) + largest < static_cast<double>(kLargestSum))) {
      fail("{}: the bias of output {} is {} in units of its sums, too large for 32 bits",
           layer.name, o, code);
    }
    data.bias.push_back(static_cast<int32_t>(code));
  }
}

cpu::IntegerLayer compile(const IntegerLayerData& data) {
  std::vector<cpu::Requantizer> requantizers;
  std::vector<int32_t> thresholds = data.thresholds;
  const size_t levels = static_cast<size_t>(data.levels());
  for (size_t o = 0; o < data.requantizers.size(); ++o) {
    const int32_t offset = static_cast<int32_t>(offset_of_sums(data, static_cast<int>(o)));
    requantizers.push_back(cpu::shifted(data.requantizers[o], offset));
    for (size_t k = o * levels; k < (o + 1) * levels; ++k) thresholds[k] += offset;
  }
  return {
      data.shape, data.codes,   data.largest_input() + input_offset(data), std::move(requantizers),
      thresholds, data.levels()};
}

// Positions of zeros that a layer reads before the first one, and how many it needs on each side:
// more where what it reads has fewer positions than it writes.
int padding_before(const IntegerLayerData& layer) {
  return layer.has_weights() ? (layer.shape.taps - 1) / 2 * layer.form.stride : 0;
}
int padding_of(const IntegerLayerData& layer, int positions) {
  const int behind = layer.has_weights() ? layer.length * layer.form.stride - positions : 0;
  return padding_before(layer) + std::max(0, behind);
}

// The byte of a real value, each step rounded as kernels/cpu/join.cc does.
uint8_t byte_of(const Layer& layer, float value, float scale) {
  const float code =
      std::clamp(std::nearbyint(value / scale), static_cast<float>(layer.smallest_code),
                 static_cast<float>(layer.largest_code()));
  const int zero = layer.smallest_code < 0 ? 1 << (layer.act_bits - 1) : 0;
  return static_cast<uint8_t>(static_cast<int>(code) + zero);
}

// What a layer without weights makes of the bytes that it reads; scales: of these values.
void set_tables(const Layer& layer, std::span<const IntegerValue* const> inputs,
                std::span<const float> scales, float act_scale, IntegerLayerData& data) {
  const auto value = [&](size_t input, int byte) {
    return static_cast<float>(byte - inputs[input]->zero) * scales[input];
  };
  if (layer.kind == LayerKind::kAdd) {
    std::vector<uint8_t>& table = data.tables.emplace_back();
    data.columns = inputs[1]->levels + 1;
    for (int a = 0; a <= inputs[0]->levels; ++a) {
      for (int b = 0; b <= inputs[1]->levels; ++b)
        table.push_back(byte_of(layer, value(0, a) + value(1, b), act_scale));
    }
  } else if (layer.kind == LayerKind::kConcat) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      std::vector<uint8_t>& table = data.tables.emplace_back();
      for (int byte = 0; byte <= inputs[i]->levels; ++byte)
        table.push_back(byte_of(layer, value(i, byte), act_scale));
    }
  } else {
    constexpr int kMostSums = 1 << 22;
    data.window = layer.form.kernel;
    if (data.window > kMostSums / inputs[0]->levels) {
      fail("{}: a window of {} positions has more than {} sums", layer.name, data.window,
           kMostSums);
    }
    std::vector<uint8_t>& table = data.tables.emplace_back();
    const auto window = static_cast<float>(data.window);
    for (int sum = 0; sum <= data.window * inputs[0]->levels; ++sum) {
      const auto exact = static_cast<float>(sum - data.window * inputs[0]->zero);
      table.push_back(byte_of(layer, exact / window * scales[0], act_scale));
    }
  }
}

}  // namespace

int64_t IntegerLayerData::nonzeros() const {
  return static_cast<int64_t>(codes.size()) - std::ranges::count(codes, int8_t{0});
}

cpu::SumRange IntegerLayerData::range(int channel) const {
  const WideRange range = wide_range(weights_of(*this, channel), smallest_input(), largest_input());
  return {static_cast<int32_t>(range.low), static_cast<int32_t>(range.high)};
}

LogitRounding::LogitRounding(float scale, std::span<const int32_t> bias) {
  int exponent = 0;
  const float mantissa = std::frexp(scale, &exponent);
  const auto multiplier = static_cast<int64_t>(std::ldexp(mantissa, kFloatBitsOfMantissa));
  multiplier_.assign(bias.size(), multiplier);
  for (const int32_t b : bias) offset_.push_back(round(round(b) * multiplier));
}

// All classes count in units of 2^e, small enough for each class's scale and `spare` bits below
// the largest's. A bias that has finer bits is made odd in the last bit that it keeps: then every
// sum with it rounds as the exact one does, because what it is added to has at least three zeros
// there, or is 0. Two such biases must not become the same.
LogitRounding::LogitRounding(float scale, std::span<const float> gain, std::span<const float> bias,
                             int64_t largest_sum) {
  constexpr int kBits = 62, kMostSpare = 14, kLeastSpare = 3;
  std::vector<int> exponents;
  for (const float g : gain) {
    int exponent = 0;
    const float mantissa = std::frexp(scale * g, &exponent);
    multiplier_.push_back(static_cast<int64_t>(std::ldexp(mantissa, kFloatBitsOfMantissa)));
    exponents.push_back(exponent - kFloatBitsOfMantissa);
  }
  const int sum_bits = std::bit_width(static_cast<uint64_t>(largest_sum)) + 1;
  const int spare = std::min(kMostSpare, kBits - kFloatBitsOfMantissa - sum_bits);
  const int largest = *std::ranges::max_element(exponents), unit = largest - spare;
  std::vector<bool> inexact;
  for (size_t c = 0; c < gain.size(); ++c) {
    if (exponents[c] - unit < kLeastSpare) {
      throw std::range_error("the scales of its outputs are too far apart");
    }
    multiplier_[c] <<= exponents[c] - unit;
    const double exact = std::ldexp(double{bias[c]}, -unit);
    if (!(std::abs(exact) < std::ldexp(1.0, kBits - 1))) {
      throw std::range_error("a bias is too large for the scales of its outputs");
    }
    auto offset = static_cast<int64_t>(exact);
    inexact.push_back(static_cast<double>(offset) != exact);
    if (inexact.back() && offset % 2 == 0) offset += exact > 0 ? 1 : -1;
    offset_.push_back(offset);
    for (size_t other = 0; other < c; ++other) {
      if (offset_[other] == offset && bias[other] != bias[c]) {
        throw std::range_error("two biases are too close to each other");
      }
    }
  }
  shift_ = spare + kFloatBitsOfMantissa;
  unit_ = std::ldexp(1.0F, unit + shift_);
}

int32_t LogitRounding::integer_logit(int64_t value) const {
  const int64_t unit = int64_t{1} << shift_;
  const int64_t rest = value % unit;
  return static_cast<int32_t>(value / unit + (2 * rest >= unit ? 1 : 0) -
                              (2 * rest < -unit ? 1 : 0));
}

int64_t LogitRounding::round(int64_t value) {
  const uint64_t magnitude = static_cast<uint64_t>(value < 0 ? -value : value);
  const int excess = static_cast<int>(std::bit_width(magnitude)) - kFloatBitsOfMantissa;
  if (excess <= 0) return value;
  const uint64_t unit = uint64_t{1} << excess, rest = magnitude & (unit - 1);
  uint64_t rounded = magnitude - rest;
  if (rest > unit / 2 || (rest == unit / 2 && (rounded & unit) != 0)) rounded += unit;
  return value < 0 ? -static_cast<int64_t>(rounded) : static_cast<int64_t>(rounded);
}

int64_t LogitRounding::operator()(size_t label, int32_t sum) const {
  return round(round(round(sum) * multiplier_[label]) + offset_[label]);
}

IntegerNetwork::IntegerNetwork(const Network& network) : config_(network.config()) {
  for (const Layer& layer : network.layers()) require_quantized(layer);
  const auto value_with_bits = [&](int channels, int positions, int bits, bool is_signed) {
    IntegerValue& value = values_.emplace_back();
    value.channels = channels;
    value.positions = positions;
    value.zero = is_signed ? 1 << bits % kFloatBits >> 1 : 0;
    value.levels = (1 << bits % kFloatBits) - 1;
  };
  scales_ = {config_.input_quantizer().scale};
  value_with_bits(config_.input_channels, config_.length, config_.input_bits, true);
  for (const Layer& layer : network.layers()) {
    std::vector<const IntegerValue*> inputs;
    std::vector<float> input_scales;
    for (const int read : layer.reads) {
      inputs.push_back(&value(read));
      input_scales.push_back(scales_[static_cast<size_t>(read + 1)]);
    }
    shapes_.push_back(layer);
    IntegerLayerData& data =
        data_.emplace_back(describe(layer, inputs[0]->positions, inputs[0]->zero != 0));
    if (layer.has_weights()) {
      const float weight_scale = set_codes(layer, data);
      check_sums(data);
      if (layer.kind == Layer::Kind::kOutput) {
        const float scale = input_scales[0] * weight_scale;
        set_output(layer, scale);
        output_affine_ =
            cpu::output_affine(layer, scale, {layer.bias.value.floats(), gain_of(layer)});
      } else {
        scales_.push_back(set_thresholds(layer, input_scales[0], weight_scale, data));
      }
      kernel_of_.push_back(static_cast<int>(kernels_.size()));
      kernels_.push_back(compile(data));
    } else {
      const float act_scale =
          cpu::activation_scale(layer.threshold.value.floats()[0], layer.largest_code());
      if (!std::isfinite(act_scale)) fail("{}: its threshold is not finite", layer.name);
      set_tables(layer, inputs, input_scales, act_scale, data);
      scales_.push_back(act_scale);
      kernel_of_.push_back(-1);
    }
    if (layer.kind != Layer::Kind::kOutput) {
      value_with_bits(layer.out_channels, layer.out_length(), layer.act_bits,
                      layer.smallest_code < 0);
    }
  }
  place_values();
}

// A value gets the first slot that no value needs any more by then.
void IntegerNetwork::place_values() {
  std::vector<int> last_reader(values_.size(), -1);
  for (size_t i = 0; i < data_.size(); ++i) {
    for (const int read : data_[i].reads) {
      IntegerValue& read_value = values_[static_cast<size_t>(read + 1)];
      read_value.padding = std::max(read_value.padding, padding_of(data_[i], read_value.positions));
      last_reader[static_cast<size_t>(read + 1)] = static_cast<int>(i);
    }
  }
  std::vector<int> needed_until;  // of each slot: by which layer
  std::vector<size_t> slot_bytes;
  for (size_t v = 0; v < values_.size(); ++v) {
    const int writer = static_cast<int>(v) - 1;
    size_t slot = 0;
    while (slot < needed_until.size() && needed_until[slot] >= writer) ++slot;
    if (slot == needed_until.size()) {
      needed_until.push_back(0);
      slot_bytes.push_back(0);
    }
    needed_until[slot] = last_reader[v];
    slot_bytes[slot] = std::max(slot_bytes[slot], values_[v].bytes());
    values_[v].slot = static_cast<int>(slot);
  }
  std::vector<size_t> offsets(slot_bytes.size(), 0);
  for (size_t slot = 0; slot < slot_bytes.size(); ++slot) {
    offsets[slot] = memory_bytes_;
    memory_bytes_ += (slot_bytes[slot] + kAlignment - 1) / kAlignment * kAlignment;
  }
  for (IntegerValue& value : values_) value.offset = offsets[static_cast<size_t>(value.slot)];
  slots_ = static_cast<int>(slot_bytes.size());
}

void IntegerNetwork::set_output(const Layer& layer, float scale) {
  IntegerLayerData& data = data_.back();
  for (int o = 0; o < layer.out_channels; ++o) {
    output_offset_.push_back(static_cast<int32_t>(offset_of_sums(data, o)));
  }
  if (data.nonzeros() == 0) return set_constant_output(layer, scale);
  logit_scale_ = scale;
  if (!std::isnormal(scale)) {
    fail("{}: the scale of its sums is {}, not a normal number", layer.name, scale);
  }
  if (!layer.gain.defined()) {
    set_bias(layer, scale, data);
    rounding_ = LogitRounding(scale, data.bias);
    return;
  }
  data.bias.assign(static_cast<size_t>(layer.out_channels), 0);
  const std::span<const float> gains = gain_of(layer), biases = layer.bias.value.floats();
  int64_t largest = 1;
  double largest_logit = 0;
  for (int o = 0; o < layer.out_channels; ++o) {
    const cpu::SumRange range = data.range(o);
    const int64_t own = std::max(-int64_t{range.low}, int64_t{range.high});
    const auto c = static_cast<size_t>(o);
    const float gain = gains[c], bias = biases[c];
    if (!std::isnormal(scale * gain) || !std::isfinite(bias)) {
      fail("{}: the scale or bias of output {} is not a normal number", layer.name, o);
    }
    largest = std::max(largest, own);
    largest_logit = std::max(
        largest_logit, static_cast<double>(own) * double{scale * gain} + std::abs(double{bias}));
  }
  try {
    rounding_ = LogitRounding(scale, gains, biases, largest);
  } catch (const std::range_error& error) {
    fail("{}: {}", layer.name, error.what());
  }
  logit_scale_ = rounding_.unit();
  if (largest_logit / double{logit_scale_} >= static_cast<double>(kLargestSum)) {
    fail("{}: its logits can leave 32 bits", layer.name);
  }
}

// Where no weight is left, logits are biases, and `scale`, which follows from the largest weight,
// says nothing of their size.
void IntegerNetwork::set_constant_output(const Layer& layer, float scale) {
  const std::span<const float> biases = layer.bias.value.floats();
  std::vector<float> logits(biases.begin(), biases.end());
  if (!layer.gain.defined()) {
    logits = cpu::output_bias_codes(biases, scale);
    for (float& logit : logits) logit *= scale;
  }
  float largest = 0;
  for (const float logit : logits) {
    if (!std::isfinite(logit)) fail("{}: a bias is {}", layer.name, logit);
    largest = std::max(largest, std::abs(logit));
  }
  constexpr int kBitsOfLargest = 22;  // in units of the scale
  const float unit = std::max(std::ldexp(largest, -kBitsOfLargest), 0x1p-100F);
  data_.back().bias.assign(logits.size(), 0);
  try {
    rounding_ = LogitRounding(unit, std::vector<float>(logits.size(), 1.0F), logits, 1);
  } catch (const std::range_error& error) {
    fail("{}: {}", layer.name, error.what());
  }
  logit_scale_ = rounding_.unit();
}

void IntegerNetwork::run_tile(const int8_t* frames, int count, uint8_t* memory,
                              int32_t* sums) const {
  // Rows of zeros around a value; returns where its own rows begin.
  const auto pad = [&](const IntegerValue& written) {
    uint8_t* rows = memory + written.offset;
    const size_t bytes = static_cast<size_t>(written.padding) * written.row_bytes();
    const size_t inside = static_cast<size_t>(written.positions) * written.row_bytes();
    std::memset(rows, written.zero, bytes);
    std::memset(rows + bytes + inside, written.zero, bytes);
    return rows + bytes;
  };
  const IntegerValue& input = values_[0];
  cpu::pack_quads(frames, count, config_.length, config_.input_channels, input.zero, pad(input));
  for (size_t i = 0; i < data_.size(); ++i) {
    const IntegerLayerData& layer = data_[i];
    if (!layer.has_weights()) {
      run_join(i, pad(values_[i + 1]), memory);
      continue;
    }
    const IntegerValue& x = value(layer.reads[0]);
    const uint8_t* first =
        memory + x.offset + static_cast<size_t>(x.padding - padding_before(layer)) * x.row_bytes();
    const cpu::IntegerLayer& kernel = kernels_[static_cast<size_t>(kernel_of_[i])];
    if (i + 1 == data_.size()) return kernel.output(first, sums);
    kernel.hidden(first, layer.positions_written() * layer.shape.pool, pad(values_[i + 1]));
  }
}

void IntegerNetwork::run_join(size_t layer, uint8_t* out, const uint8_t* memory) const {
  const IntegerLayerData& data = data_[layer];
  const IntegerValue& written = values_[layer + 1];
  const auto rows_of = [&](size_t input) {
    const IntegerValue& x = value(data.reads[input]);
    return cpu::ByteRows{memory + x.offset + static_cast<size_t>(x.padding) * x.row_bytes(),
                         static_cast<ptrdiff_t>(x.row_bytes()), static_cast<uint8_t>(x.zero),
                         scales_[static_cast<size_t>(data.reads[input] + 1)]};
  };
  const auto write = [&](const cpu::ByteRows& a, const cpu::ByteRows& b, int window, uint8_t* to) {
    cpu::join_bytes(shapes_[layer], a, b, window, scales_[layer + 1], written.zero,
                    static_cast<int>(a.stride), to, static_cast<ptrdiff_t>(written.row_bytes()));
  };
  if (data.kind == LayerKind::kAdd) return write(rows_of(0), rows_of(1), 0, out);
  if (data.kind == LayerKind::kAveragePool) return write(rows_of(0), {}, data.window, out);
  // Channels side by side: whole quads as long as they begin with one. The last one may be partly
  // filled; what follows overwrites the rest.
  int channel = 0;
  for (size_t input = 0; input < data.reads.size(); ++input) {
    if (channel % cpu::kQuad == 0) {
      const int quad = channel / cpu::kQuad;
      write(rows_of(input), {}, 0, out + static_cast<ptrdiff_t>(quad) * cpu::kQuadRow);
    } else {
      place_channels(layer, input, channel, out, memory);
    }
    channel += value(data.reads[input]).channels;
  }
}

void IntegerNetwork::place_channels(size_t layer, size_t input, int channel, uint8_t* out,
                                    const uint8_t* memory) const {
  const IntegerLayerData& data = data_[layer];
  const IntegerValue& x = value(data.reads[input]);
  const uint8_t* rows = memory + x.offset + static_cast<size_t>(x.padding) * x.row_bytes();
  const uint8_t* codes = data.tables[input].data();
  const size_t out_bytes = values_[layer + 1].row_bytes();
  const size_t pool = static_cast<size_t>(data.shape.pool);
  const auto positions = static_cast<size_t>(data.positions_written());
  const auto place = [](int c) {
    return static_cast<size_t>(c / cpu::kQuad * cpu::kQuadRow + cpu::byte_of_channel(c));
  };
  for (int c = 0; c < x.channels; ++c, ++channel) {
    for (size_t l = 0; l < positions; ++l) {
      const uint8_t* from = rows + l * pool * x.row_bytes() + place(c);
      uint8_t* to = out + l * out_bytes + place(channel);
      for (size_t lane = 0; lane < kLanes; ++lane, from += cpu::kQuad, to += cpu::kQuad) {
        uint8_t largest = codes[*from];
        for (size_t j = 1; j < pool; ++j)
          largest = std::max(largest, codes[from[j * x.row_bytes()]]);
        *to = largest;
      }
    }
  }
}

template <typename Use>
void IntegerNetwork::run_tiles(std::span<const int8_t> frames, int threads, const Use& use) const {
  const size_t count = frames.size() / frame_size();
  const int64_t tiles = static_cast<int64_t>((count + kLanes - 1) / kLanes);
  const size_t sums_size = static_cast<size_t>(kernels_.back().out_quads()) * cpu::kQuadRow;
  cpu::share_items(tiles, threads_or_all_cores(threads), [&](cpu::SharedItems& items) {
    static thread_local AlignedBuffer<uint8_t> memory_buffer;
    static thread_local AlignedBuffer<int32_t> sums_buffer;
    uint8_t* memory = memory_buffer.reserve(memory_bytes_);
    int32_t* sums = sums_buffer.reserve(sums_size);
    while (const std::optional<int64_t> tile = items.take()) {
      const size_t begin = static_cast<size_t>(*tile) * kLanes;
      const size_t used = std::min<size_t>(kLanes, count - begin);
      run_tile(frames.data() + begin * frame_size(), static_cast<int>(used), memory, sums);
      use(static_cast<size_t>(*tile), used, sums);
    }
  });
}

void IntegerNetwork::run(std::span<const int8_t> frames, std::span<int32_t> logits,
                         std::span<uint8_t> predicted, int threads) const {
  const size_t classes = static_cast<size_t>(config_.classes);
  const size_t count = frames.size() / frame_size();
  if (frames.size() != count * frame_size() || logits.size() != count * classes ||
      (!predicted.empty() && predicted.size() != count)) {
    throw std::invalid_argument("IntegerNetwork::run: frames, logits and predictions do not match");
  }
  run_tiles(frames, threads, [&](size_t tile, size_t used, const int32_t* sums) {
    for (size_t lane = 0; lane < used; ++lane) {
      const size_t frame = tile * kLanes + lane;
      size_t best = 0;
      int64_t largest = std::numeric_limits<int64_t>::min();
      for (size_t c = 0; c < classes; ++c) {
        const int32_t sum = sums[c * kLanes + lane] - output_offset_[c];
        const int64_t logit = rounding_(c, sum);
        logits[frame * classes + c] =
            has_plain_output() ? sum + data_.back().bias[c] : rounding_.integer_logit(logit);
        if (logit <= largest) continue;
        largest = logit;
        best = c;
      }
      if (!predicted.empty()) predicted[frame] = static_cast<uint8_t>(best);
    }
  });
}

void IntegerNetwork::float_logits(std::span<const int8_t> frames, TileView logits,
                                  int threads) const {
  const size_t classes = static_cast<size_t>(config_.classes);
  const size_t count = static_cast<size_t>(logits.shape.frames);
  if (frames.size() != count * frame_size() || logits.type != ElementType::kF32 ||
      logits.shape.channels != config_.classes || logits.shape.length != 1 ||
      logits.shape.pad != 0) {
    throw std::invalid_argument("IntegerNetwork::float_logits: frames and logits do not match");
  }
  run_tiles(frames, threads, [&](size_t tile, size_t used, const int32_t* sums) {
    float* out = static_cast<float*>(logits.data) + tile * classes * kLanes;
    for (size_t c = 0; c < classes; ++c, sums += kLanes, out += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const float sum = static_cast<float>(sums[lane] - output_offset_[c]);
        out[lane] = lane < used ? sum * output_affine_.scale[c] + output_affine_.offset[c] : 0.0F;
      }
    }
  });
}

}  // namespace fmp
