// SPDX-License-Identifier: MIT
// Feedback over bits: takes bits from the weights or the activations of single layers, one after
// the other, where the cost falls most for the least loss. A step takes the fraction p of the bits
// that can still go (those above 2 of the weights and of the activations of every quantized layer;
// the network's input keeps its bits, and so do activations that no weight is multiplied with, as
// those that only sums read: they cost nothing), but at least one.
//
// The loss is estimated as HAWQ-V2 does (Dong et al., NeurIPS 2020): the squared change of each
// value by the coarser quantizer, weighted by the curvature of the loss; the curvature as FIT does
// (Zandonati et al., "FIT: A Metric for Model Sensitivity", ICLR 2023): by the Fisher information,
// whose diagonal the averaged squared gradients are, up to a factor that is the same everywhere.
//   weights       sum of E[g_w^2] x (Q_b-1(w) - Q_b(w))^2 over the weights
//   activations   sum of E[g_shift^2] over the channels x (D_b-1^2 - D_b^2) / 12; they take off
//                 the cost what they take off all layers that read them
// where D_b is the distance of two codes, D^2 / 12 the variance of rounding to them, and g_shift
// the gradient of batch-norm's shift: the sum of the gradients of all activations of a channel,
// whose average square is the sum of theirs where they do not depend on each other. A layer without
// weights has no shift. It hands on those of what it reads, so their gradients are those of its own
// activations, as far as no others read them: of a sum, the larger of both is taken, as a ReLU
// lets pass less.
// Behind a quantizer with a sign there is no ReLU, and where a batch-norm follows the next product
// it takes off what a shift does: the gradients of a batch add up to 0, whatever each of them is.
// What its error does is estimated from the weights it is multiplied with: an error of x relative
// to its root mean square, taken as a third of the range, changes w x as such an error of w.
//   signed        sum of E[(w g_w)^2] over these weights x (D_b-1^2 - D_b^2) / 12 / (range / 3)^2
// No data are needed.
#include <algorithm>
#include <cmath>
#include <numeric>
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
  size_t at = 0;     // in layers or values
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

// E[g_shift^2] of the channels of every value. What joins the frames has none of theirs.
std::vector<std::vector<double>> squared_shift_gradients(const PruneRequest& request) {
  std::vector<std::vector<double>> all;
  for (const PrunableValue& value : request.values) {
    std::vector<double> squares;
    if (has_weights(value.kind)) {
      const TrainedValues& shift = request.layers[value.layer].beta;
      for (size_t c = 0; c < shift.size(); ++c) squares.push_back(shift.squared_gradient(c));
    }
    for (const int read : value.reads) {
      if (read == kReadsFrames) continue;
      const std::vector<double>& of_read = all[static_cast<size_t>(read)];
      const size_t first = value.kind == LayerKind::kConcat ? squares.size() : 0;
      squares.resize(std::max(squares.size(), first + of_read.size()));
      for (size_t c = 0; c < of_read.size(); ++c)
        squares[first + c] = std::max(squares[first + c], of_read[c]);
    }
    all.push_back(std::move(squares));
  }
  return all;
}

// By how much the variance of rounding grows with a bit less.
double variance_of_bit(const PrunableValue& value) {
  const auto scale = [&](int bits) {
    return double{cpu::activation_scale(value.range, largest_code(bits, value.is_signed))};
  };
  const double fine = scale(value.bits), coarse = scale(value.bits - 1);
  return (coarse * coarse - fine * fine) / 12;
}

// What a value with a sign is multiplied with, for each unit of its variance.
double squared_gradients_of_signed(const PruneRequest& request, const PrunableValue& value) {
  double sum = 0;
  for (const size_t reader : value.readers) {
    const PrunableLayer& layer = request.layers[reader];
    for (size_t i = 0; i < layer.mask.size(); ++i)
      if (layer.mask[i] != 0) sum += layer.trained_weights.squared_taylor(i);
  }
  const double square = double{value.range} * value.range / 9;
  return square > 0 ? sum / square : 0;
}

// The expected squared change of the loss for each unit of variance of every value.
std::vector<double> squared_gradients(const PruneRequest& request) {
  const std::vector<std::vector<double>> shifts = squared_shift_gradients(request);
  std::vector<double> sums;
  for (size_t i = 0; i < shifts.size(); ++i) {
    const PrunableValue& value = request.values[i];
    sums.push_back(value.is_signed ? squared_gradients_of_signed(request, value)
                                   : std::accumulate(shifts[i].begin(), shifts[i].end(), 0.0));
  }
  return sums;
}

// The bit with the lowest score; of equal ones that of the earlier layer, weights first. Bits that
// take nothing off the cost stay. Empty: there is none.
// gradients: squared_gradients().
std::optional<Step> best_step(const PruneRequest& request, std::span<const double> gradients) {
  const std::vector<PrunableLayer>& layers = request.layers;
  std::optional<Step> best;
  const auto consider = [&](const Step& step, double saved) {
    if (saved > 0 && (!best || step.score < best->score)) best = step;
  };
  const auto consider_weights = [&](size_t i) {
    const PrunableLayer& layer = layers[i];
    if (!can_fall(layer.weight_bits)) return;
    const double saved = cost_of(layer, layer.weight_bits, layer.input_bits) -
                         cost_of(layer, layer.weight_bits - 1, layer.input_bits);
    consider({score_per_cost(loss_of_weights(layer), saved), i, true}, saved);
  };
  for (size_t i = 0; i < request.values.size(); ++i) {
    const PrunableValue& value = request.values[i];
    if (has_weights(value.kind)) consider_weights(value.layer);
    if (!can_fall(value.bits)) continue;
    double saved = 0;
    for (const size_t r : value.readers) {
      saved += cost_of(layers[r], layers[r].weight_bits, value.bits) -
               cost_of(layers[r], layers[r].weight_bits, value.bits - 1);
    }
    consider({score_per_cost(gradients[i] * variance_of_bit(value), saved), i, false}, saved);
  }
  consider_weights(layers.size() - 1);  // of the output layer
  return best;
}

class FewerBits final : public PruningMethod {
 public:
  Granularity granularity() const override { return Granularity::kBits; }

  void prune(PruneRequest& request) const override {
    int64_t remaining = 0;
    for (const PrunableLayer& layer : request.layers) {
      if (can_fall(layer.weight_bits)) remaining += layer.weight_bits - kFewestBits;
    }
    for (const PrunableValue& value : request.values) {
      if (can_fall(value.bits) && !value.readers.empty()) remaining += value.bits - kFewestBits;
    }
    const std::vector<double> gradients = squared_gradients(request);
    const int64_t count = std::max<int64_t>(prune_count(request.fraction, remaining), 1);
    for (int64_t i = 0; i < count; ++i) {
      const std::optional<Step> step = best_step(request, gradients);
      if (!step) return;
      if (step->of_weights) {
        --request.layers[step->at].weight_bits;
        continue;
      }
      PrunableValue& value = request.values[step->at];
      --value.bits;
      for (const size_t reader : value.readers) --request.layers[reader].input_bits;
    }
  }
};

FMP_REGISTER_PRUNING_METHOD(FewerBits, "fewer-bits",
                            "Bits of weights and activations, where least loss saves most cost.");

}  // namespace
}  // namespace fmp
