// SPDX-License-Identifier: MIT
#include "framework/network/pruning.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "framework/error.h"

namespace fmp {
namespace {

// A function's static: methods register before main(), in an order that nobody controls.
std::map<std::string, PruningMethodInfo, std::less<>>& registry() {
  static std::map<std::string, PruningMethodInfo, std::less<>> methods;
  return methods;
}

PrunableLayer prunable(Layer& layer) {
  PrunableLayer view;
  view.name = layer.name;
  view.kind = layer.kind;
  view.out_channels = layer.out_channels;
  view.kernel = layer.taps;
  view.in_channels = layer.in_channels;
  view.positions = layer.positions();
  view.weight_bits = layer.weight_bits;
  view.input_bits = layer.input_bits;
  view.output_bits = layer.act_bits;
  view.weights = layer.weight.value.floats();
  view.mask = layer.weight.mask;
  return view;
}

// Scores are compared, and one that is not a number compares with nothing.
void check_finite(const Network& network) {
  for (const Layer& layer : network.layers()) {
    for (const float weight : layer.weight.value.floats()) {
      if (!std::isfinite(weight)) {
        fail("{}: a weight is {}, cannot prune a network that diverged", layer.name, weight);
      }
    }
  }
}

void check_masks(const Network& network, const Network& before) {
  for (size_t i = 0; i < network.layers().size(); ++i) {
    const Layer& layer = network.layers()[i];
    const std::vector<uint8_t>& old_mask = before.layers()[i].weight.mask;
    for (size_t j = 0; j < old_mask.size(); ++j) {
      if (layer.weight.mask[j] > old_mask[j]) {
        fail("{}: the pruning method brought back weight {}", layer.name, j);
      }
    }
  }
}

struct Candidate {
  double score;
  size_t layer;
  int64_t index;
};

bool operator<(const Candidate& a, const Candidate& b) {
  return std::tie(a.score, a.layer, a.index) < std::tie(b.score, b.layer, b.index);
}

}  // namespace

std::span<const float> PrunableLayer::channel_weights(int channel) const {
  const auto count = static_cast<size_t>(weights_per_channel());
  return weights.subspan(static_cast<size_t>(channel) * count, count);
}

std::span<uint8_t> PrunableLayer::channel_mask(int channel) const {
  const auto count = static_cast<size_t>(weights_per_channel());
  return mask.subspan(static_cast<size_t>(channel) * count, count);
}

bool PrunableLayer::channel_alive(int channel) const {
  return std::ranges::any_of(channel_mask(channel), [](uint8_t alive) { return alive != 0; });
}

int64_t prune_count(double fraction, int64_t remaining) {
  // nearbyint() in the default rounding mode rounds halves to even, as Python does.
  return static_cast<int64_t>(std::nearbyint(fraction * static_cast<double>(remaining)));
}

void prune_lowest(std::span<PrunableLayer> layers, double fraction, const WeightScore& score) {
  std::vector<Candidate> alive;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (size_t i = 0; i < layers[layer].mask.size(); ++i) {
      if (layers[layer].mask[i] == 0) continue;
      const auto index = static_cast<int64_t>(i);
      alive.push_back({score(layers[layer], index), layer, index});
    }
  }
  const auto remaining = static_cast<int64_t>(alive.size());
  const auto first_kept = alive.begin() + prune_count(fraction, remaining);
  std::nth_element(alive.begin(), first_kept, alive.end());
  std::for_each(alive.begin(), first_kept, [&](const Candidate& candidate) {
    layers[candidate.layer].mask[static_cast<size_t>(candidate.index)] = 0;
  });
}

PruneResult prune(Network& network, const PruningMethod& method, double fraction, uint64_t seed,
                  uint64_t round) {
  if (!(fraction > 0 && fraction < 1)) {
    fail("pruning fraction: {} is not between 0 and 1", fraction);
  }
  check_finite(network);
  const Network before = network;
  PruneRequest request{.layers = {}, .fraction = fraction, .seed = seed, .round = round};
  for (Layer& layer : network.layers()) request.layers.push_back(prunable(layer));
  method.prune(request);
  check_masks(network, before);
  network.apply_masks();
  return {.weights_before = before.weights_alive(), .weights_after = network.weights_alive()};
}

std::vector<PruningMethodInfo> pruning_methods() {
  std::vector<PruningMethodInfo> methods;
  for (const auto& [name, info] : registry()) methods.push_back(info);
  return methods;
}

std::unique_ptr<PruningMethod> make_pruning_method(std::string_view name) {
  const auto found = registry().find(name);
  if (found != registry().end()) return found->second.create();
  std::string names;
  for (const auto& [existing, info] : registry()) {
    names += names.empty() ? existing : ", " + existing;
  }
  throw UsageError(fmt::format("pruning method: '{}' does not exist; there are: {}", name, names));
}

bool register_pruning_method(PruningMethodInfo info) {
  std::string name = info.name;
  if (!registry().emplace(name, std::move(info)).second) {
    throw std::logic_error("two pruning methods are called " + name);
  }
  return true;
}

}  // namespace fmp
