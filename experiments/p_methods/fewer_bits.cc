// SPDX-License-Identifier: MIT
// Feedback over bits: takes bits from the weights or the activations of single layers, one after
// the other, where the cost falls most for the least loss. A step takes the fraction p of the bits
// that can still go (those above 2 of the weights and of the activations of every quantized layer;
// the network's input keeps its bits), but at least one.
//
// The loss is estimated as HAWQ-V2 does (Dong et al., NeurIPS 2020): the squared change of each
// value by the coarser quantizer, weighted by the curvature of the loss; the curvature as FIT does
// (Zandonati et al., "FIT: A Metric for Model Sensitivity", ICLR 2023): by the Fisher information,
// whose diagonal the averaged squared gradients are, up to a factor that is the same everywhere.
//   weights       sum of E[g_w^2] x (Q_b-1(w) - Q_b(w))^2 over the weights
//   activations   sum of E[g_shift^2] over the channels x (D_b-1^2 - D_b^2) / 12
// where D_b is the distance of two codes, D^2 / 12 the variance of rounding to them, and g_shift
// the gradient of batch-norm's shift: the sum of the gradients of all activations of a channel,
// whose average square is the sum of theirs where they do not depend on each other. No data are
// needed.
#include <cmath>
#include <optional>
#include <span>
#include <vector>

#include "framework/network/cost.h"
#include "framework/network/pruning.h"
#include "framework/network/weight_codes.h"
#include "kernels/cpu/ops.h"

namespace fmp {
namespace {

bool can_fall(int bits) { return bits > kFewestBits && bits != kFloatBits; }

// One bit that can go.
struct Step {
  double score = 0;  // estimated loss for each unit of cost that it takes off
  size_t layer = 0;
  bool of_weights = true;
};

int64_t nonzeros(const PrunableLayer& layer, int bits) {
  int64_t count = 0;
  if (bits == kFloatBits) {
    for (const float weight : layer.weights) count += weight != 0;
  } else {
    for (const int8_t code : quantize_weights(layer.weights, bits).codes) count += code != 0;
  }
  return count;
}

double cost_of(const PrunableLayer& layer, int weight_bits, int input_bits) {
  const int64_t count = nonzeros(layer, weight_bits);
  return normalized_cost(count * layer.positions * weight_bits * input_bits, count * weight_bits);
}

double loss_of_weights(const PrunableLayer& layer) {
  const WeightCodes fine = quantize_weights(layer.weights, layer.weight_bits);
  const WeightCodes coarse = quantize_weights(layer.weights, layer.weight_bits - 1);
  double loss = 0;
  for (size_t i = 0; i < layer.weights.size(); ++i) {
    if (layer.mask[i] == 0) continue;
    const double change = static_cast<double>(coarse.scale) * coarse.codes[i] -
                          static_cast<double>(fine.scale) * fine.codes[i];
    loss += layer.trained_weights.squared_gradient(i) * change * change;
  }
  return loss;
}

double loss_of_activations(const PrunableLayer& layer) {
  double gradients = 0;
  for (size_t c = 0; c < layer.beta.size(); ++c) gradients += layer.beta.squared_gradient(c);
  const auto scale = [&](int bits) {
    return double{
        cpu::activation_scale(layer.output_range, largest_code(bits, layer.signed_output))};
  };
  const double fine = scale(layer.output_bits), coarse = scale(layer.output_bits - 1);
  return gradients * (coarse * coarse - fine * fine) / 12;
}

// The bit with the lowest score; of equal ones that of the earlier layer, weights first. Bits that
// take nothing off the cost stay. Empty: there is none.
std::optional<Step> best_step(std::span<const PrunableLayer> layers) {
  std::optional<Step> best;
  const auto consider = [&](const Step& step, double saved) {
    if (saved > 0 && (!best || step.score < best->score)) best = step;
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    const PrunableLayer& layer = layers[i];
    if (can_fall(layer.weight_bits)) {
      const double saved = cost_of(layer, layer.weight_bits, layer.input_bits) -
                           cost_of(layer, layer.weight_bits - 1, layer.input_bits);
      consider({score_per_cost(loss_of_weights(layer), saved), i, true}, saved);
    }
    if (can_fall(layer.output_bits)) {
      const PrunableLayer& reader = layers[i + 1];
      const double saved = cost_of(reader, reader.weight_bits, layer.output_bits) -
                           cost_of(reader, reader.weight_bits, layer.output_bits - 1);
      consider({score_per_cost(loss_of_activations(layer), saved), i, false}, saved);
    }
  }
  return best;
}

class FewerBits final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kBits; }

  void prune(PruneRequest& request) const override {
    int64_t remaining = 0;
    for (const PrunableLayer& layer : request.layers) {
      for (const int bits : {layer.weight_bits, layer.output_bits}) {
        if (can_fall(bits)) remaining += bits - kFewestBits;
      }
    }
    const int64_t count = std::max<int64_t>(prune_count(request.fraction, remaining), 1);
    for (int64_t i = 0; i < count; ++i) {
      const std::optional<Step> step = best_step(request.layers);
      if (!step) return;
      PrunableLayer& layer = request.layers[step->layer];
      if (step->of_weights) {
        --layer.weight_bits;
      } else {
        --layer.output_bits;
        --request.layers[step->layer + 1].input_bits;
      }
    }
  }
};

FMP_REGISTER_PRUNING_METHOD(FewerBits, "fewer-bits",
                            "Bits of weights and activations, where least loss saves most cost.");

}  // namespace
}  // namespace fmp
