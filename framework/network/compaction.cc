// SPDX-License-Identifier: MIT
// Two phases. The first marks: it masks every weight that cannot matter any more, which makes more
// channels superfluous, until nothing changes. The second drops the channels that are then neither
// written by a weight nor read by one.
//
// A quantized layer's scale is its largest weight, so masking that weight would change the code of
// every other one. It therefore stays, and with it the one channel that it belongs to, until a
// later round where it is the largest no more.
#include "framework/network/compaction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "framework/network/channel_links.h"
#include "framework/network/weight_codes.h"
#include "kernels/cpu/ops.h"

namespace fmp {
namespace {

// A Link whose layers change.
struct ChangingLink {
  Layer& layer;
  Layer& next;
  operator Link() const { return {layer, next}; }
  int copies() const { return Link(*this).copies(); }
};

bool is_written(const Layer& layer, int channel) {
  bool alive = false;
  for_each_writer(layer, channel, [&](size_t i) { alive |= layer.weight.mask[i] != 0; });
  return alive;
}

bool is_read(const Link& link, int channel) {
  bool alive = false;
  for_each_reader(link, channel, [&](int, size_t i) { alive |= link.next.weight.mask[i] != 0; });
  return alive;
}

bool is_silent(const Layer& layer, int channel) {
  const auto c = static_cast<size_t>(channel);
  return layer.gamma.value.floats()[c] == 0 && layer.beta.value.floats()[c] == 0;
}

void clear_entry(Parameter& parameter, size_t index) {
  parameter.value.floats()[index] = 0;
  parameter.grad.floats()[index] = 0;
  parameter.moment1.floats()[index] = 0;
  parameter.moment2.floats()[index] = 0;
}

// Masks weights of one layer, all but those that set its scale.
class WeightMasker {
 public:
  explicit WeightMasker(Layer& layer) : weight_(layer.weight) {
    if (layer.weight_bits == kFloatBits) return;
    largest_ = 0;
    for (const float value : weight_.value.floats()) {
      largest_ = std::max(largest_, std::abs(value));
    }
  }

  void mask(size_t index) {
    if (weight_.mask[index] == 0 || std::abs(weight_.value.floats()[index]) == largest_) return;
    weight_.mask[index] = 0;
    clear_entry(weight_, index);
    ++masked_;
  }
  int64_t masked() const { return masked_; }

 private:
  Parameter& weight_;
  float largest_ = std::numeric_limits<float>::infinity();  // float layers have no scale to keep
  int64_t masked_ = 0;
};

// The weights that a layer multiplies, after quantization.
std::vector<float> effective_weights(const Layer& layer) {
  const std::span<const float> values = layer.weight.value.floats();
  std::vector<float> weights(values.begin(), values.end());
  if (layer.weight_bits == kFloatBits) return weights;
  const WeightCodes quantized = quantize_weights(layer);
  std::ranges::transform(quantized.codes, weights.begin(),
                         [&](int8_t code) { return static_cast<float>(code) * quantized.scale; });
  return weights;
}

// Moves what `next` computes from a channel that is always `constant` into `next` itself.
// `weights`: effective_weights(next).
void fold_constant(const ChangingLink& link, int channel, float constant,
                   std::span<const float> weights) {
  Layer& next = link.next;
  std::vector<double> sums(static_cast<size_t>(next.out_channels));
  for_each_reader(link, channel,
                  [&](int output, size_t i) { sums[static_cast<size_t>(output)] += weights[i]; });
  const bool has_batch_norm = next.kind != Layer::Kind::kOutput;
  const std::span<float> target =
      has_batch_norm ? next.running_mean.floats() : next.bias.value.floats();
  for (size_t output = 0; output < sums.size(); ++output) {
    const double moved = constant * sums[output];
    target[output] = static_cast<float>(target[output] + (has_batch_norm ? -moved : moved));
  }
}

// With gamma = beta = 0 the channel emits 0 in training and evaluation, and as the gradient of a
// ReLU at 0 is 0, neither ever changes. (That of a signed quantizer passes: where a weight remains
// that reads the channel, it learns a constant.)
void silence(Layer& layer, int channel) {
  const auto c = static_cast<size_t>(channel);
  clear_entry(layer.gamma, c);
  clear_entry(layer.beta, c);
  layer.running_mean.floats()[c] = 0;
  layer.running_var.floats()[c] = 1;
}

// One pass over a layer's channels. Returns whether anything changed.
bool mark_superfluous(const ChangingLink& link, int64_t& weights_removed) {
  WeightMasker writers(link.layer), readers(link.next);
  const std::vector<float> next_weights = effective_weights(link.next);
  bool changed = false;
  for (int channel = 0; channel < link.layer.out_channels; ++channel) {
    if (!is_read(link, channel)) {
      for_each_writer(link.layer, channel, [&](size_t i) { writers.mask(i); });
    }
    if (is_written(link.layer, channel)) continue;
    if (!is_silent(link.layer, channel)) {
      const float constant = constant_output(link.layer, channel);
      if (constant != 0) fold_constant(link, channel, constant, next_weights);
      silence(link.layer, channel);
      changed = true;
    }
    for_each_reader(link, channel, [&](int, size_t i) { readers.mask(i); });
  }
  const int64_t masked = writers.masked() + readers.masked();
  weights_removed += masked;
  return changed || masked > 0;
}

std::vector<int> channels_to_keep(const Link& link) {
  std::vector<int> keep;
  for (int channel = 0; channel < link.layer.out_channels; ++channel) {
    if (is_written(link.layer, channel) || is_read(link, channel)) keep.push_back(channel);
  }
  if (keep.empty()) keep.push_back(0);  // silent, but a layer needs a channel
  return keep;
}

// The elements of `tensor` at these indices, in this order.
Tensor gather(const Tensor& tensor, std::span<const size_t> indices,
              const std::vector<int64_t>& shape) {
  Tensor gathered = Tensor::zeros(shape);
  std::ranges::transform(indices, gathered.floats().begin(),
                         [from = tensor.floats()](size_t i) { return from[i]; });
  return gathered;
}

void gather(Parameter& parameter, std::span<const size_t> indices,
            const std::vector<int64_t>& shape) {
  parameter.value = gather(parameter.value, indices, shape);
  parameter.grad = gather(parameter.grad, indices, shape);
  parameter.moment1 = gather(parameter.moment1, indices, shape);
  parameter.moment2 = gather(parameter.moment2, indices, shape);
  if (parameter.mask.empty()) return;
  std::vector<uint8_t> mask(indices.size());
  std::ranges::transform(indices, mask.begin(), [&](size_t i) { return parameter.mask[i]; });
  parameter.mask = std::move(mask);
}

// Keeps only these output channels of `layer`.
void keep_outputs(Layer& layer, const std::vector<int>& channels) {
  const auto count = static_cast<int64_t>(channels.size());
  std::vector<size_t> writers, entries;
  for (const int channel : channels) {
    entries.push_back(static_cast<size_t>(channel));
    for_each_writer(layer, channel, [&](size_t i) { writers.push_back(i); });
  }
  gather(layer.weight, writers, {count, layer.taps, layer.in_channels});
  gather(layer.gamma, entries, {count});
  gather(layer.beta, entries, {count});
  layer.running_mean = gather(layer.running_mean, entries, {count});
  layer.running_var = gather(layer.running_var, entries, {count});
  layer.out_channels = static_cast<int>(count);
}

// Keeps only what `next` reads from these channels of `layer`, which still has all of them.
void keep_inputs(const ChangingLink& link, const std::vector<int>& channels) {
  Layer& next = link.next;
  std::vector<size_t> readers;
  for (const int channel : channels) {
    for_each_reader(link, channel, [&](int, size_t i) { readers.push_back(i); });
  }
  std::ranges::sort(readers);  // back to the layout [output][tap][position * channels + channel]
  const int inputs = link.copies() * static_cast<int>(channels.size());
  gather(next.weight, readers, {next.out_channels, next.taps, inputs});
  next.in_channels = inputs;
}

// A layer whose channels were removed has no groups any more, but its mask remembers them. Where
// each channel still reads its own one alone, they are what is left of as many groups.
void keep_groups(Layer& layer) {
  if (layer.form.groups == 1) return;
  const int channels = layer.in_channels / layer.form.stride;
  layer.form.groups = 1;
  if (layer.out_channels != channels) return;
  for (size_t i = 0; i < layer.weight.mask.size(); ++i) {
    const size_t row = static_cast<size_t>(layer.taps) * static_cast<size_t>(layer.in_channels);
    if (layer.weight.mask[i] != 0 && i % static_cast<size_t>(channels) != i / row) return;
  }
  layer.form.groups = channels;
}

}  // namespace

float constant_output(const Layer& layer, int channel) {
  const auto c = static_cast<size_t>(channel);
  const float batch_norm =
      cpu::evaluation_affine(layer.gamma.value.floats()[c], layer.beta.value.floats()[c],
                             layer.running_mean.floats()[c], layer.running_var.floats()[c])
          .shift;
  if (layer.act_bits == kFloatBits) return std::max(0.0F, batch_norm);
  const float scale =
      cpu::activation_scale(layer.threshold.value.floats()[0], layer.largest_code());
  return std::clamp(std::nearbyint(batch_norm / scale), static_cast<float>(layer.smallest_code),
                    static_cast<float>(layer.largest_code())) *
         scale;
}

CompactionReport compact(Network& network) {
  require_chain(network.config(), "removing channels");
  std::vector<Layer> layers = Network(network).layers();  // a copy: all of it happens or nothing
  const auto link = [&](size_t i) { return ChangingLink{layers[i], layers[i + 1]}; };
  const size_t hidden = layers.size() - 1;
  CompactionReport report;
  bool changed = true;
  while (changed) {
    changed = false;
    for (size_t i = 0; i < hidden; ++i)
      changed |= mark_superfluous(link(i), report.weights_removed);
  }
  NetworkConfig config = network.config();
  for (size_t i = 0; i < hidden; ++i) {
    report.channels_before.push_back(layers[i].out_channels);
    const std::vector<int> keep = channels_to_keep(link(i));
    keep_inputs(link(i), keep);
    keep_outputs(layers[i], keep);
    report.channels_after.push_back(layers[i].out_channels);
    config.layers[i].outputs = layers[i].out_channels;
  }
  for (size_t i = 0; i < hidden; ++i) {
    if (layers[i].kind != Layer::Kind::kConv) continue;
    const bool smaller = layers[i].out_channels != report.channels_before[i] ||
                         layers[i].in_channels != network.layers()[i].in_channels;
    if (smaller) keep_groups(layers[i]);
    config.layers[i].form.groups = layers[i].form.groups;
  }
  network.replace(std::move(config), std::move(layers));
  return report;
}

}  // namespace fmp
