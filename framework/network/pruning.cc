// SPDX-License-Identifier: MIT
#include "framework/network/pruning.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "framework/error.h"
#include "framework/network/compaction.h"
#include "framework/network/cost.h"

namespace fmp {
namespace {

// A function's static: methods register before main(), in an order that nobody controls.
std::map<std::string, PruningMethodInfo, std::less<>>& registry() {
  static std::map<std::string, PruningMethodInfo, std::less<>> methods;
  return methods;
}

// What Adam's second moment is multiplied with; see TrainedValues. The moments of all parameters
// are as old as each other.
double moment2_correction(const Network& network) {
  if (network.optimizer_steps == 0) return 0;
  const auto steps = static_cast<double>(network.optimizer_steps);
  return 1 / (1 - std::pow(AdamOptions().beta2, steps));
}

TrainedValues trained(const Parameter& parameter, double correction) {
  if (!parameter.value.defined()) return {};
  return {parameter.value.floats(), parameter.moment2.floats(), correction};
}

PrunableLayer prunable(Layer& layer, size_t index, double correction) {
  PrunableLayer view;
  view.index = index;
  view.name = layer.name;
  view.kind = layer.kind;
  view.out_channels = layer.out_channels;
  view.kernel = layer.taps;
  view.in_channels = layer.in_channels;
  view.positions = layer.positions();
  view.weight_bits = layer.weight_bits;
  view.input_bits = layer.input_bits;
  view.weights = layer.weight.value.floats();
  view.mask = layer.weight.mask;
  view.trained_weights = trained(layer.weight, correction);
  view.gamma = trained(layer.gamma, correction);
  view.beta = trained(layer.beta, correction);
  return view;
}

PrunableValue value_of(const Layer& layer) {
  PrunableValue value;
  value.name = layer.name;
  value.kind = layer.kind;
  value.bits = layer.act_bits;
  value.is_signed = layer.smallest_code < 0;
  if (layer.threshold.value.defined()) value.range = layer.threshold.value.floats()[0];
  return value;
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

// Gives the layers of `network` the bits of `request`. Returns by how many they fell.
int apply_bits(Network& network, const PruneRequest& request, const PruningMethod& method) {
  std::vector<Layer> layers = network.layers();
  NetworkConfig config = network.config();
  int removed = 0;
  const auto lower = [&](const std::string& name, int before, int after) {
    if (before == after) return;
    const bool allowed = method.granularity() == Granularity::kBits && before != kFloatBits &&
                         after < before && after >= kFewestBits;
    if (!allowed) fail("{}: the pruning method changed {} bits to {}", name, before, after);
    removed += before - after;
  };
  size_t view = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    Layer& layer = layers[i];
    const bool is_output = i + 1 == layers.size();
    if (layer.has_weights()) {
      const int bits = request.layers[view++].weight_bits;
      lower(layer.name, layer.weight_bits, bits);
      layer.weight_bits = bits;
      (is_output ? config.output_bits : config.layers[i].weight_bits) = bits;
    }
    if (const int read = layer.reads[0]; read != kReadsFrames)
      layer.input_bits = layers[static_cast<size_t>(read)].act_bits;
    if (is_output) break;
    const LayerShape before = layer;
    lower(layer.name, layer.act_bits, request.values[i].bits);
    layer.act_bits = config.layers[i].act_bits = request.values[i].bits;
    if (int& code = layer.smallest_code; code < 0) {
      const bool is_narrow = code + before.largest_code() == 0;
      code = -layer.largest_code() - (is_narrow ? 0 : 1);
      config.layers[i].smallest_code = code;
    }
  }
  if (removed > 0) network.replace(std::move(config), std::move(layers));
  return removed;
}

struct Candidate {
  double score;
  size_t layer;
  int64_t index;
};

bool operator<(const Candidate& a, const Candidate& b) {
  return std::tie(a.score, a.layer, a.index) < std::tie(b.score, b.layer, b.index);
}

double checked_score(double score, const PrunableLayer& layer) {
  if (std::isnan(score)) fail("{}: a score is not a number, cannot prune", layer.name);
  return score;
}

}  // namespace

double TrainedValues::squared_gradient(size_t index) const {
  if (moment2_correction == 0) {
    fail("the pruning method needs gradients, but the network was not trained");
  }
  return moment2[index] * moment2_correction;
}

double TrainedValues::squared_taylor(size_t index) const {
  const double value = values[index];
  return value * value * squared_gradient(index);
}

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

double PrunableLayer::cost_per_weight() const {
  return normalized_cost(bit_ops_per_weight(), weight_bits);
}

std::vector<double> lamp_scores(const PrunableLayer& layer) {
  std::vector<size_t> order(layer.weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return std::abs(layer.weights[i]); });
  std::vector<double> scores(order.size());
  double not_smaller = 0;
  for (auto largest_first = order.rbegin(); largest_first != order.rend(); ++largest_first) {
    const size_t i = *largest_first;
    const double square = static_cast<double>(layer.weights[i]) * layer.weights[i];
    not_smaller += square;
    scores[i] = square > 0 ? square / not_smaller : 0;
  }
  return scores;
}

double squared_taylor_of_channel(const PrunableLayer& layer, int channel) {
  const auto c = static_cast<size_t>(channel);
  return layer.gamma.squared_taylor(c) + layer.beta.squared_taylor(c);
}

std::vector<ChannelGroup> alive_channel_groups(std::span<const PrunableLayer> layers) {
  std::vector<ChannelGroup> groups;
  std::map<size_t, size_t> found;  // a tie's number -> its group
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].kind == Layer::Kind::kOutput) continue;
    for (int channel = 0; channel < layers[layer].out_channels; ++channel) {
      const size_t tie = layers[layer].ties[static_cast<size_t>(channel)];
      if (tie == 0 || !layers[layer].channel_alive(channel)) continue;
      const auto [at, is_new] = found.emplace(tie, groups.size());
      if (is_new) groups.emplace_back();
      groups[at->second].emplace_back(layer, channel);
    }
  }
  return groups;
}

double cost_of_channel(std::span<const PrunableLayer> layers, size_t layer, int channel) {
  const PrunableLayer& writer = layers[layer];
  const std::span<const uint8_t> own = writer.channel_mask(channel);
  double of_readers = 0;
  for (const PrunableLayer::Reader& reader : writer.readers) {
    const PrunableLayer& next = layers[reader.layer];
    // Where flattened activations are read, a channel occurs once per position of them.
    int64_t weights = 0;
    for (int64_t i = reader.first + channel; i < std::ssize(next.mask); i += reader.width) {
      weights += next.mask[static_cast<size_t>(i)];
    }
    of_readers += static_cast<double>(weights) * next.cost_per_weight();
  }
  const size_t tie = writer.ties[static_cast<size_t>(channel)];
  int64_t together = 0;
  for (const PrunableLayer& each : layers) {
    for (int c = 0; c < std::ssize(each.ties); ++c) {
      together += each.ties[static_cast<size_t>(c)] == tie && each.channel_alive(c) ? 1 : 0;
    }
  }
  return static_cast<double>(std::ranges::count(own, 1)) * writer.cost_per_weight() +
         of_readers / static_cast<double>(std::max<int64_t>(together, 1));
}

double score_per_cost(double score, double cost) {
  return cost > 0 ? score / cost : std::numeric_limits<double>::infinity();
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
      alive.push_back({checked_score(score(layers[layer], index), layers[layer]), layer, index});
    }
  }
  const auto remaining = static_cast<int64_t>(alive.size());
  const auto first_kept = alive.begin() + prune_count(fraction, remaining);
  std::nth_element(alive.begin(), first_kept, alive.end());
  std::for_each(alive.begin(), first_kept, [&](const Candidate& candidate) {
    layers[candidate.layer].mask[static_cast<size_t>(candidate.index)] = 0;
  });
}

void prune_lowest_channels(std::span<PrunableLayer> layers, double fraction,
                           const ChannelScore& score) {
  const std::vector<ChannelGroup> groups = alive_channel_groups(layers);
  std::vector<std::pair<double, size_t>> order;  // score, group
  std::vector<int64_t> left(layers.size());
  int64_t alive = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    double sum = 0;
    for (const auto& [layer, channel] : groups[i]) {
      sum += checked_score(score(layer, channel), layers[layer]);
      ++left[layer];
      ++alive;
    }
    order.emplace_back(sum, i);
  }
  std::ranges::sort(order);
  int64_t to_remove = prune_count(fraction, alive);
  for (const auto& [sum, i] : order) {
    if (to_remove <= 0) break;
    std::map<size_t, int64_t> of_layer;
    for (const auto& [layer, channel] : groups[i]) ++of_layer[layer];
    const bool leaves_some = std::ranges::all_of(
        of_layer, [&](const auto& entry) { return left[entry.first] > entry.second; });
    if (!leaves_some) continue;
    for (const auto& [layer, channel] : groups[i]) {
      std::ranges::fill(layers[layer].channel_mask(channel), uint8_t{0});
      --left[layer];
      --to_remove;
    }
  }
}

void prune_smallest(PruneRequest& request) {
  if (request.on_device) {
    request.on_device(request.layers, request.fraction);
    return;
  }
  prune_lowest(request.layers, request.fraction, [](const PrunableLayer& layer, int64_t index) {
    return std::abs(layer.weights[static_cast<size_t>(index)]);
  });
}

namespace {

// Where the values of a network's layers come from and go.
void link_values(const std::vector<Layer>& layers, std::vector<PrunableValue>& values) {
  size_t view = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    if (layer.has_weights() && layer.reads[0] != kReadsFrames)
      values[static_cast<size_t>(layer.reads[0])].readers.push_back(view);
    if (i < values.size()) {
      if (layer.has_weights()) {
        values[i].layer = view;
      } else {
        values[i].reads = layer.reads;
      }
    }
    view += layer.has_weights() ? 1 : 0;
  }
}

// Ties and readers of the views of a network's layers with weights.
void link_channels(const std::vector<Layer>& layers, std::vector<PrunableLayer>& views) {
  const std::vector<std::vector<size_t>> ties = tied_channels(layers);
  const std::vector<std::vector<int>> readers = readers_of(layers);
  std::vector<size_t> view_of(layers.size());
  size_t count = 0;
  for (size_t i = 0; i < layers.size(); ++i) view_of[i] = layers[i].has_weights() ? count++ : 0;
  // Everybody who reads what layer `at` writes, in which the channels of `view` begin at `first`.
  const std::function<void(PrunableLayer&, size_t, int)> add = [&](PrunableLayer& view, size_t at,
                                                                   int first) {
    for (const int r : readers[at]) {
      const auto reader = static_cast<size_t>(r);
      if (layers[reader].has_weights()) {
        view.readers.push_back({view_of[reader], first, layers[at].out_channels});
        continue;
      }
      int before = 0;
      if (layers[reader].kind == LayerKind::kConcat) {
        before = first_channel_of(layers, reader, static_cast<int>(at));
      }
      add(view, reader, first + before);
    }
  };
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    if (!layers[i].has_weights()) continue;
    PrunableLayer& view = views[view_of[i]];
    view.ties = ties[i];
    add(view, i, 0);
  }
}

}  // namespace

PruneResult prune(Network& network, const PruningMethod& method, double fraction, uint64_t seed,
                  uint64_t round, const PruneSmallest& on_device) {
  if (!(fraction > 0 && fraction < 1)) {
    fail("pruning fraction: {} is not between 0 and 1", fraction);
  }
  check_finite(network);
  const Network before = network;
  PruneRequest request;
  request.fraction = fraction;
  request.seed = seed;
  request.round = round;
  request.on_device = on_device;
  const double correction = moment2_correction(network);
  for (Layer& layer : network.layers()) {
    if (layer.kind != Layer::Kind::kOutput) request.values.push_back(value_of(layer));
    if (!layer.has_weights()) continue;
    request.layers.push_back(prunable(layer, request.layers.size(), correction));
  }
  link_values(network.layers(), request.values);
  link_channels(network.layers(), request.layers);
  method.prune(request);
  check_masks(network, before);
  network.apply_masks();
  PruneResult result{.weights_before = before.weights_alive(),
                     .weights_after = network.weights_alive()};
  if (method.granularity() == Granularity::kBits && result.weights_after < result.weights_before) {
    fail("the pruning method lowers bits, but removed weights");
  }
  result.bits_removed = apply_bits(network, request, method);
  return result;
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
