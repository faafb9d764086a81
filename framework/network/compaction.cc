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

// Which channels are the same: an add writes channel c of the sum of channels c, the others hand
// each channel on. `layers` with the input's channels as those of layer -1.
class Channels {
 public:
  explicit Channels(const std::vector<Layer>& layers)
      : layers_(layers), readers_(readers_of(layers)) {}

  const std::vector<int>& readers(size_t layer) const { return readers_[layer]; }

  // Calls visit(reader, channel that it writes) for each layer without weights that reads a
  // channel.
  template <typename Visitor>
  void for_each_join(size_t layer, int channel, Visitor visit) const {
    for (const int r : readers_[layer]) {
      const Layer& reader = layers_[static_cast<size_t>(r)];
      if (reader.has_weights()) continue;
      visit(static_cast<size_t>(r), channel + offset(reader, static_cast<int>(layer)));
    }
  }
  // Calls visit(layer, channel) for each that channel `channel` of a layer without weights is made
  // of; layer -1: the frames.
  template <typename Visitor>
  void for_each_source(size_t join, int channel, Visitor visit) const {
    const Layer& layer = layers_[join];
    for (const int read : layer.reads) {
      const int own = channel - offset(layer, read);
      if (own >= 0 && own < channels_of(layer, read)) visit(read, own);
    }
  }

  // Of the channels of `read` among those of a layer that puts them side by side.
  int offset(const Layer& reader, int read) const {
    if (reader.kind != LayerKind::kConcat) return 0;
    int before = 0;
    for (const int each : reader.reads) {
      if (each == read) break;
      before += channels_of(reader, each);
    }
    return before;
  }

 private:
  // Only the frames' may be unknown, which no other channels follow but in a concat.
  int channels_of(const Layer& reader, int read) const {
    if (read != kReadsFrames) return layers_[static_cast<size_t>(read)].out_channels;
    if (reader.kind != LayerKind::kConcat) return reader.out_channels;
    int others = 0;
    for (const int each : reader.reads) {
      if (each != kReadsFrames) others += layers_[static_cast<size_t>(each)].out_channels;
    }
    return reader.out_channels - others;
  }
  const std::vector<Layer>& layers_;
  std::vector<std::vector<int>> readers_;
};

// The first phase: what computes nothing gets no weights, until nothing more changes.
class Marker {
 public:
  Marker(std::vector<Layer>& layers, const Channels& channels)
      : layers_(layers), channels_(channels) {
    maskers_.reserve(layers.size());
    for (Layer& layer : layers) maskers_.emplace_back(layer);
  }

  // One pass over a layer's channels. Returns whether anything changed.
  bool mark(size_t index) {
    Layer& layer = layers_[index];
    if (!layer.has_weights()) return false;
    const int64_t masked_before = masked();
    bool changed = false;
    for (int channel = 0; channel < layer.out_channels; ++channel) {
      if (!is_read(index, channel)) {
        for_each_writer(layer, channel, [&](size_t i) { maskers_[index].mask(i); });
      }
      if (is_written(layer, channel)) continue;
      if (!is_silent(layer, channel)) {
        const float constant = constant_output(layer, channel);
        if (constant != 0 && !fold(index, channel, constant)) continue;
        silence(layer, channel);
        changed = true;
      }
      mask_readers(index, channel);
    }
    return changed || masked() > masked_before;
  }

  int64_t masked() const {
    int64_t sum = 0;
    for (const WeightMasker& masker : maskers_) sum += masker.masked();
    return sum;
  }

  // Whether any weight reads it, from what is made of it, too.
  bool is_read(size_t index, int channel) const {
    for (const int reader : channels_.readers(index)) {
      const Layer& next = layers_[static_cast<size_t>(reader)];
      if (next.has_weights() && fmp::is_read({layers_[index], next}, channel)) return true;
    }
    bool read = false;
    channels_.for_each_join(index, channel,
                            [&](size_t join, int c) { read = read || is_read(join, c); });
    return read;
  }

 private:
  // Whether all that it is made of is 0; then it is 0, too.
  bool is_zero(int index, int channel) const {
    if (index == kReadsFrames) return false;
    const auto i = static_cast<size_t>(index);
    if (layers_[i].has_weights())
      return !is_written(layers_[i], channel) && is_silent(layers_[i], channel);
    bool zero = true;
    channels_.for_each_source(i, channel,
                              [&](int source, int c) { zero = zero && is_zero(source, c); });
    return zero;
  }

  // Masks what reads a channel that is 0.
  void mask_readers(size_t index, int channel) {
    for (const int r : channels_.readers(index)) {
      const auto reader = static_cast<size_t>(r);
      if (!layers_[reader].has_weights()) continue;
      for_each_reader({layers_[index], layers_[reader]}, channel,
                      [&](int, size_t i) { maskers_[reader].mask(i); });
    }
    channels_.for_each_join(index, channel, [&](size_t join, int c) {
      if (is_zero(static_cast<int>(join), c)) mask_readers(join, c);
    });
  }

  // Only weights can take a constant over. Returns whether they all did.
  bool fold(size_t index, int channel, float constant) {
    for (const int reader : channels_.readers(index)) {
      if (!layers_[static_cast<size_t>(reader)].has_weights()) return false;
    }
    for (const int reader : channels_.readers(index)) {
      Layer& next = layers_[static_cast<size_t>(reader)];
      fold_constant({layers_[index], next}, channel, constant, effective_weights(next));
    }
    return true;
  }

  std::vector<Layer>& layers_;
  const Channels& channels_;
  std::vector<WeightMasker> maskers_;
};

// The second phase: which channels of every hidden layer stay.
std::vector<std::vector<int>> channels_to_keep(const std::vector<Layer>& layers,
                                               const Marker& marker) {
  const size_t hidden = layers.size() - 1;
  const std::vector<std::vector<size_t>> ties = tied_channels(layers);
  size_t most = 0;
  for (const std::vector<size_t>& of_layer : ties)
    most = std::max(most, std::ranges::max(of_layer));
  std::vector<uint8_t> stays(most + 1, 0);
  stays[0] = 1;
  for (size_t i = 0; i < hidden; ++i) {
    for (int c = 0; c < layers[i].out_channels; ++c) {
      const bool works =
          (layers[i].has_weights() && is_written(layers[i], c)) || marker.is_read(i, c);
      if (works) stays[ties[i][static_cast<size_t>(c)]] = 1;
    }
  }
  std::vector<std::vector<int>> keep(hidden);
  const auto collect = [&](size_t i) {
    keep[i].clear();
    for (int c = 0; c < layers[i].out_channels; ++c) {
      if (stays[ties[i][static_cast<size_t>(c)]] != 0) keep[i].push_back(c);
    }
  };
  for (size_t i = 0; i < hidden; ++i) {
    collect(i);
    if (keep[i].empty()) stays[ties[i][0]] = 1;  // silent, but a layer needs a channel
  }
  for (size_t i = 0; i < hidden; ++i) collect(i);
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

int first_channel_of(const std::vector<Layer>& layers, size_t concat, int read) {
  return Channels(layers).offset(layers[concat], read);
}

std::vector<std::vector<size_t>> tied_channels(const std::vector<Layer>& layers) {
  const Channels channels(layers);
  const size_t hidden = layers.size() - 1;
  std::vector<size_t> first(hidden);  // number of a layer's first channel
  std::vector<size_t> group{0};       // of each channel, the number of one of its own; 0: frames
  for (size_t i = 0; i < hidden; ++i) {
    first[i] = group.size();
    for (int c = 0; c < layers[i].out_channels; ++c) group.push_back(group.size());
  }
  const auto find = [&](size_t channel) {
    while (group[channel] != channel) channel = group[channel] = group[group[channel]];
    return channel;
  };
  for (size_t i = 0; i < hidden; ++i) {
    if (layers[i].has_weights()) continue;
    for (int c = 0; c < layers[i].out_channels; ++c) {
      channels.for_each_source(i, c, [&](int source, int of_source) {
        const size_t a = find(first[i] + static_cast<size_t>(c));
        const size_t b = find(source == kReadsFrames ? 0
                                                     : first[static_cast<size_t>(source)] +
                                                           static_cast<size_t>(of_source));
        group[std::max(a, b)] = std::min(a, b);
      });
    }
  }
  std::vector<std::vector<size_t>> ties(hidden);
  for (size_t i = 0; i < hidden; ++i) {
    for (int c = 0; c < layers[i].out_channels; ++c)
      ties[i].push_back(find(first[i] + static_cast<size_t>(c)));
  }
  return ties;
}

CompactionReport compact(Network& network) {
  std::vector<Layer> layers = Network(network).layers();  // a copy: all of it happens or nothing
  const size_t hidden = layers.size() - 1;
  const Channels channels(layers);
  CompactionReport report;
  Marker marker(layers, channels);
  bool changed = true;
  while (changed) {
    changed = false;
    for (size_t i = 0; i < hidden; ++i) changed |= marker.mark(i);
  }
  report.weights_removed = marker.masked();
  const std::vector<std::vector<int>> keep = channels_to_keep(layers, marker);
  NetworkConfig config = network.config();
  for (size_t i = 0; i < hidden; ++i) {
    Layer& layer = layers[i];
    report.channels_before.push_back(layer.out_channels);
    for (const int reader : channels.readers(i)) {
      Layer& next = layers[static_cast<size_t>(reader)];
      if (next.has_weights()) keep_inputs({layer, next}, keep[i]);
    }
    if (layer.has_weights()) {
      keep_outputs(layer, keep[i]);
      config.layers[i].outputs = layer.out_channels;
    } else {
      layer.in_channels = layer.out_channels = static_cast<int>(keep[i].size());
    }
    report.channels_after.push_back(layer.out_channels);
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
