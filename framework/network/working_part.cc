// SPDX-License-Identifier: MIT
#include "framework/network/working_part.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "framework/network/channel_links.h"

namespace fmp {
namespace {

size_t size(int count) { return static_cast<size_t>(count); }

// Whether batch-norm and activation turn sums of 0 into 0, and let no gradient pass in training,
// as a signed quantizer does.
bool silences_zero(const Layer& layer, int channel, bool training) {
  if (training && layer.smallest_code < 0) return false;
  return training ? layer.beta.value.floats()[size(channel)] <= 0
                  : constant_output(layer, channel) == 0;
}

void gather(const Tensor& from, std::span<const size_t> places, Tensor& to) {
  std::ranges::transform(places, to.floats().begin(),
                         [values = from.floats()](size_t i) { return values[i]; });
}

void scatter(const Tensor& from, std::span<const size_t> places, Tensor& to) {
  const std::span<const float> values = from.floats();
  const std::span<float> target = to.floats();
  for (size_t i = 0; i < places.size(); ++i) target[places[i]] = values[i];
}

void copy(const Tensor& from, Tensor& to) {
  if (from.defined()) std::ranges::copy(from.floats(), to.floats().begin());
}

// The running statistics after a batch whose own are 0.
void forget(Tensor& statistic, size_t channel) {
  float& value = statistic.floats()[channel];
  value = static_cast<float>((1 - kBatchNormMomentum) * static_cast<double>(value));
}

}  // namespace

WorkingPart::WorkingPart(const Network& whole) : all_work_(true) {
  if (!whole.config().is_chain()) return;
  // A channel with weights works, whatever batch-norm does, if all others do.
  const std::vector<Layer>& layers = whole.layers();
  for (size_t l = 0; l + 1 < layers.size() && all_work_; ++l) {
    const std::vector<uint8_t>& mask = layers[l].weight.mask;
    const ptrdiff_t row = layers[l].fan_in();
    for (auto of_output = mask.begin(); of_output != mask.end(); of_output += row) {
      all_work_ = all_work_ && std::find(of_output, of_output + row, 1) != of_output + row;
    }
  }
  if (all_work_) return;
  for (const Layer& layer : layers) {
    std::vector<Alive>& alive = alive_.emplace_back();
    size_t i = 0;
    for (int o = 0; o < layer.out_channels; ++o) {
      for (int t = 0; t < layer.taps; ++t) {
        for (int c = 0; c < layer.in_channels; ++c, ++i) {
          if (layer.weight.mask[i] != 0) alive.push_back({o, c, i});
        }
      }
    }
  }
}

WorkingPart::Flags WorkingPart::find_silent(const Network& whole, bool training) const {
  const std::vector<Layer>& layers = whole.layers();
  const size_t hidden = layers.size() - 1;
  Flags silent(hidden);
  for (size_t l = 0; l < hidden; ++l) silent[l].assign(size(layers[l].out_channels), 0);
  Flags none = silent;
  Flags sets_scale = silent;
  // The channel of layer l - 1 that is input c of layer l.
  const auto source = [&](size_t l, int c) { return size(c % layers[l - 1].out_channels); };

  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].weight_bits == kFloatBits) continue;
    const std::span<const float> weights = layers[l].weight.value.floats();
    float largest = 0;
    bool finite = true;
    for (const Alive& w : alive_[l]) {
      largest = std::max(largest, std::fabs(weights[w.index]));
      finite = finite && std::isfinite(weights[w.index]);
    }
    if (!finite) return none;  // the pass will say so
    if (largest == 0) continue;
    for (const Alive& w : alive_[l]) {
      if (std::fabs(weights[w.index]) != largest) continue;
      if (l < hidden) sets_scale[l][size(w.output)] = 1;
      if (l > 0) sets_scale[l - 1][source(l, w.input)] = 1;
    }
  }

  for (size_t l = 0; l < hidden; ++l) {
    std::vector<uint8_t> works = sets_scale[l];
    for (const Alive& w : alive_[l]) {
      if (l == 0 || silent[l - 1][source(l, w.input)] == 0) works[size(w.output)] = 1;
    }
    for (int o = 0; o < layers[l].out_channels; ++o) {
      silent[l][size(o)] = works[size(o)] == 0 && silences_zero(layers[l], o, training) ? 1 : 0;
    }
    if (std::ranges::find(silent[l], 0) == silent[l].end()) silent[l][0] = 0;
  }
  return silent;
}

void WorkingPart::build(const Network& whole, Flags silent) {
  silent_ = std::move(silent);
  places_.assign(whole.layers().size(), {});
  NetworkConfig config = whole.config();
  std::vector<Layer> layers = Network(whole).layers();
  for (size_t l = 0; l < layers.size(); ++l) {
    Layer& layer = layers[l];
    const Layer& from = whole.layers()[l];
    Places& places = places_[l];
    for (int o = 0; o < from.out_channels; ++o) {
      if (l == silent_.size() || silent_[l][size(o)] == 0) places.channels.push_back(size(o));
    }
    std::vector<size_t> inputs;
    for (int c = 0; c < from.in_channels; ++c) {
      if (l == 0 || silent_[l - 1][size(c) % silent_[l - 1].size()] == 0) {
        inputs.push_back(size(c));
      }
    }
    for (const size_t o : places.channels) {
      for (size_t t = 0; t < size(from.taps); ++t) {
        const size_t row = (o * size(from.taps) + t) * size(from.in_channels);
        for (const size_t c : inputs) places.weights.push_back(row + c);
      }
    }
    layer.in_channels = static_cast<int>(inputs.size());
    layer.form.groups = 1;  // the mask has them
    layer.out_channels = static_cast<int>(places.channels.size());
    layer.weight.mask.resize(places.weights.size());
    std::ranges::transform(places.weights, layer.weight.mask.begin(),
                           [&](size_t i) { return from.weight.mask[i]; });
    const auto resize = [](Tensor& tensor, const std::vector<int64_t>& shape) {
      if (tensor.defined()) tensor = Tensor::zeros(shape);
    };
    const std::vector<int64_t> channels = {layer.out_channels};
    // Adam runs on the whole network; moments only have the shape that they must have.
    const auto resize_all = [&](Parameter& p, const std::vector<int64_t>& shape) {
      for (Tensor* tensor : {&p.value, &p.grad, &p.moment1, &p.moment2}) resize(*tensor, shape);
    };
    resize_all(layer.weight, {layer.out_channels, layer.taps, layer.in_channels});
    resize_all(layer.gamma, channels);
    resize_all(layer.beta, channels);
    resize(layer.running_mean, channels);
    resize(layer.running_var, channels);
    if (l == silent_.size()) continue;
    config.layers[l].outputs = layer.out_channels;
    config.layers[l].form.groups = 1;
  }
  part_.emplace(whole);
  part_->replace(std::move(config), std::move(layers));
}

void WorkingPart::read_values(const Network& whole) {
  part_->steps = whole.steps;
  part_->optimizer_steps = whole.optimizer_steps;
  for (size_t l = 0; l < places_.size(); ++l) {
    const Layer& from = whole.layers()[l];
    Layer& to = part_->layers()[l];
    const Places& places = places_[l];
    gather(from.weight.value, places.weights, to.weight.value);
    copy(from.threshold.value, to.threshold.value);
    copy(from.bias.value, to.bias.value);
    copy(from.gain, to.gain);
    if (l == silent_.size()) continue;
    gather(from.gamma.value, places.channels, to.gamma.value);
    gather(from.beta.value, places.channels, to.beta.value);
    gather(from.running_mean, places.channels, to.running_mean);
    gather(from.running_var, places.channels, to.running_var);
  }
}

Network& WorkingPart::before_step(Network& whole, bool collects_thresholds) {
  in_use_ = !all_work_ && !collects_thresholds;
  if (!in_use_) return whole;
  if (Flags silent = find_silent(whole, true); !part_ || silent != silent_) {
    build(whole, std::move(silent));
  }
  read_values(whole);
  return *part_;
}

void WorkingPart::after_step(Network& whole) const {
  if (!in_use_) return;
  for (size_t l = 0; l < places_.size(); ++l) {
    const Layer& from = part_->layers()[l];
    Layer& to = whole.layers()[l];
    const Places& places = places_[l];
    for (Parameter* p : to.parameters()) p->grad.fill_zero();
    scatter(from.weight.grad, places.weights, to.weight.grad);
    copy(from.threshold.grad, to.threshold.grad);
    copy(from.bias.grad, to.bias.grad);
    if (l == silent_.size()) continue;
    scatter(from.gamma.grad, places.channels, to.gamma.grad);
    scatter(from.beta.grad, places.channels, to.beta.grad);
    scatter(from.running_mean, places.channels, to.running_mean);
    scatter(from.running_var, places.channels, to.running_var);
    for (size_t c = 0; c < silent_[l].size(); ++c) {
      if (silent_[l][c] == 0) continue;
      forget(to.running_mean, c);
      forget(to.running_var, c);
    }
  }
}

const Network& WorkingPart::for_evaluation(const Network& whole) {
  if (all_work_) return whole;
  build(whole, find_silent(whole, false));
  read_values(whole);
  return *part_;
}

}  // namespace fmp
