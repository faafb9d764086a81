// SPDX-License-Identifier: MIT
// Finds the layers of a graph, one after the other, and matches them against the form of a Network:
// from a node that begins one, back to what it reads, and on to where the layer ends. What can be
// represented exactly in another way is (biases and epsilons go into the batch-norm, factors
// between layers into weights and scales); everything else is an error that names the node where
// the forms part.
#include "framework/onnx/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "framework/data/dataset.h"
#include "framework/error.h"
#include "framework/onnx/graph.h"
#include "kernels/cpu/ops.h"

namespace fmp::onnx {
namespace {

// Scales that a Network computes itself may differ from the file's by the rounding of a few float
// operations.
constexpr double kScaleTolerance = 1e-5;

bool same_scale(double found, double expected) {
  return std::abs(found - expected) <= kScaleTolerance * std::abs(expected);
}

// The largest value of a quantizer whose scale, computed as the kernels do, is `scale` to the bit.
float threshold_for(float scale, int largest_code) {
  const auto codes = static_cast<float>(largest_code);
  const float threshold = scale * codes;
  float below = threshold, above = threshold;
  constexpr int kMaxSteps = 4;
  for (int i = 0; i < kMaxSteps; ++i) {
    if (below / codes == scale) return below;
    if (above / codes == scale) return above;
    below = std::nextafter(below, 0.0F);
    above = std::nextafter(above, std::numeric_limits<float>::infinity());
  }
  return threshold;
}

// A layer as the file describes it, before it becomes a Layer.
struct FoundLayer {
  Layer::Kind kind = Layer::Kind::kConv;
  std::vector<int> reads;           // layers, or kReadsFrames
  const GraphNode* node = nullptr;  // that begins it
  // inputs: of a group. kernel: of an average, its window.
  int64_t outputs = 0, inputs = 0, kernel = 1, stride = 1, padding = 0, groups = 1, pool = 1;
  int64_t padding_after = Convolution::kAsNeeded;
  int weight_bits = kFloatBits, act_bits = kFloatBits;
  std::vector<float> weight;  // [outputs][inputs][kernel], inputs of a dense layer position-major
  double weight_scale = 1;    // the largest of all outputs'
  // Of an output's scale to weight_scale, <= 1; empty: the outputs share one scale.
  std::vector<double> scale_ratio;
  float act_scale = 1;
  int smallest_code = 0;  // of its activations
  bool collects = false;  // its quantizer is not the file's
  const GraphNode* quantizer_node = nullptr;
  // Scalars that the file multiplies the layer's operands and sums by, all in one. Its own output
  // is multiplied by act_factor.
  double factor = 1, act_factor = 1;
  std::vector<float> bias;                    // [outputs]; as the file's quantizer leaves it
  std::vector<float> gamma, beta, mean, var;  // [outputs]; empty: no batch-norm
};

// The weight operand of a node: constants, possibly through a division, a quantizer and a
// transposition.
struct WeightOperand {
  std::vector<float> values;  // before the quantizer, in the orientation that the node reads
  Shape shape;
  std::optional<Quantizer> quantizer;
  std::vector<float> scales;  // of every value, as `values`; empty: they share one
  const GraphNode* quantizer_node = nullptr;
  float divisor = 1;  // of the values, before the quantizer
};

class Importer {
 public:
  Importer(const Graph& graph, std::optional<int> bits) : graph_(graph), bits_(bits) {
    for (const GraphNode& node : graph.nodes) {
      if (graph.value(node.output).constant) continue;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (node.has_input(i) && !graph.input_of(node, i).constant) {
          readers_[node.inputs[i]].push_back(&node);
        }
      }
    }
  }

  Network read() {
    read_input();
    finished_[value_] = kReadsFrames;
    for (const GraphNode& node : graph_.nodes) {
      if (begins_layer(node)) read_layer(node);
    }
    for (const GraphNode& node : graph_.nodes) {
      if (!graph_.value(node.output).constant && !passed_.contains(&node)) fail_unknown(node);
    }
    if (layers_.size() < 2) fail("{}: fewer than two layers with weights", graph_.file);
    check_output();
    layers_.back().kind = Layer::Kind::kOutput;
    finish_output();
    Network network(config(), 0);
    for (size_t i = 0; i < layers_.size(); ++i) fill(layers_[i], network.layers()[i]);
    network.apply_masks();
    network.class_names = graph_.class_names;
    // The thresholds are learned ones: further training must not replace them by percentiles.
    const bool collects = std::ranges::any_of(layers_, &FoundLayer::collects);
    if (bits_ && !collects) {
      throw UsageError(
          fmt::format("{}: every layer has a quantizer, expected no bits for others (--bits {})",
                      graph_.file, *bits_));
    }
    network.steps = collects ? 0 : kThresholdStatisticSteps;
    return network;
  }

 private:
  [[noreturn]] void fail_here(const std::string& message) const {
    fail_at(graph_, *node_, message);
  }

  [[noreturn]] void fail_unknown(const GraphNode& node) const {
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const auto readers = readers_.find(node.inputs[i]);
      if (readers != readers_.end() && readers->second.size() > 1) {
        fail_at(
            graph_, node,
            "the network branches here, expected Conv, Gemm, MatMul, Add, Concat or AveragePool");
      }
    }
    fail_at(graph_, node, "expected Conv, Gemm, MatMul, Add, Concat or AveragePool here");
  }

  // Whether a layer begins with a node, which is not a part of one that has been read.
  bool begins_layer(const GraphNode& node) const {
    if (graph_.value(node.output).constant || passed_.contains(&node)) return false;
    if (node.op == "Add") return variables(node) == 2;
    return node.op == "Conv" || node.op == "Gemm" || node.op == "MatMul" || node.op == "Concat" ||
           node.op == "AveragePool" || node.op == "GlobalAveragePool";
  }
  // Inputs of a node that are no constants.
  size_t variables(const GraphNode& node) const {
    size_t count = 0;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      if (node.has_input(i) && !graph_.input_of(node, i).constant) ++count;
    }
    return count;
  }

  // The node that reads the current value; null at the output, and where several do: layers end
  // there.
  void advance_to(int value) {
    value_ = value;
    node_ = nullptr;
    const auto found = readers_.find(value);
    if (value == graph_.output) {
      if (found != readers_.end()) {
        fail_at(graph_, *found->second.front(), "reads the output of the network");
      }
      return;
    }
    if (found == readers_.end()) {
      fail("{}: nothing reads {}, expected a way to the output", graph_.file,
           graph_.value(value).name);
    }
    if (found->second.size() != 1) return;
    node_ = found->second.front();
    if (node_->inputs[0] != value) {
      // The constant may come first in these; a layer may be any of a Concat's inputs.
      if (node_->op != "Add" && node_->op != "Mul" && node_->op != "Concat") {
        fail_here("reads the layer before it as something else than its input");
      }
    }
  }
  void advance() {
    passed_.insert(node_);
    advance_to(node_->output);
  }
  bool at_output() const { return value_ == graph_.output; }
  bool at(std::string_view op) const { return node_ != nullptr && node_->op == op; }
  void skip_transparent() {
    while (at("Identity") || at("Dropout")) advance();
  }

  const Shape& shape() const { return graph_.value(value_).shape; }

  float scalar_scale(const GraphNode& node, const Quantizer& quantizer) const {
    const auto scale = quantizer.scalar_scale();
    if (!scale) fail_at(graph_, node, "its scale is not a single number");
    if (!quantizer.zero_centred()) fail_at(graph_, node, "its zero point is not 0");
    return *scale;
  }

  void check_bits(const GraphNode& node, int bits) const {
    if (bits < 2 || bits > 8) fail_at(graph_, node, fmt::format("{} bits, expected 2 to 8", bits));
  }

  // What a quantizer does to values that depend on the input, and the nodes that it is made of.
  struct FoundQuantizer {
    const GraphNode* node = nullptr;
    int bits = 8;
    float low = 0, high = 255;  // codes, as if the zero point were 0
    float scale = 1;
    bool is_signed() const { return low < 0; }
  };

  bool at_quantizer() const {
    return node_ != nullptr && (is_quantizer(*node_) || at("QuantizeLinear"));
  }

  // Passes a quantizer: Quant, IntQuant or QuantizeLinear, [Clip,] DequantizeLinear.
  FoundQuantizer read_quantizer() {
    FoundQuantizer found;
    found.node = node_;
    if (is_quantizer(*node_)) {
      const Quantizer quantizer = quantizer_of(graph_, *node_);
      if (quantizer.rounding != Rounding::kHalfEven) {
        fail_here("values are not rounded to the nearest code");
      }
      found.bits = quantizer.bits;
      found.low = quantizer.low();
      found.high = quantizer.high();
      found.scale = scalar_scale(*node_, quantizer);
      advance();
    } else {
      read_linear_quantizer(found);
    }
    check_bits(*found.node, found.bits);
    const float codes = std::ldexp(1.0F, found.bits) - 1;
    const bool is_full = found.high - found.low == codes;
    const bool is_narrow = found.is_signed() && found.high - found.low == codes - 1;
    if ((!is_full && !is_narrow) || found.low > 0 ||
        (found.is_signed() && found.high != std::ldexp(1.0F, found.bits - 1) - 1)) {
      fail_at(graph_, *found.node,
              fmt::format("its codes are {} to {}, which is no range of 2 to 8 bits", found.low,
                          found.high));
    }
    return found;
  }

  void read_linear_quantizer(FoundQuantizer& found) {
    const LinearQuantizer quantizer = linear_quantizer_of(graph_, *node_);
    if (quantizer.scale.size() != 1) fail_here("its scale is not a single number");
    found.scale = quantizer.scale[0];
    auto low = static_cast<float>(quantizer.low), high = static_cast<float>(quantizer.high);
    advance();
    if (at("Clip")) {
      const auto bound = [&](size_t input, float otherwise) {
        if (!node_->has_input(input)) return otherwise;
        const auto& constant = graph_.input_of(*node_, input).constant;
        if (!constant || constant->is_float()) fail_here("its bounds are no constant integers");
        return static_cast<float>(constant->integers().at(0));
      };
      low = std::max(low, bound(1, low));
      high = std::min(high, bound(2, high));
      advance();
    }
    if (!at("DequantizeLinear")) {
      fail_at(graph_, *found.node, "expected DequantizeLinear after it");
    }
    const LinearQuantizer back = linear_quantizer_of(graph_, *node_);
    if (back.scale != quantizer.scale || back.zero_point != quantizer.zero_point) {
      fail_here("its scale or zero point is not that of its QuantizeLinear");
    }
    found.low = low - quantizer.zero_point[0];
    found.high = high - quantizer.zero_point[0];
    found.bits = static_cast<int>(std::ceil(std::log2(found.high - found.low + 1)));
    advance();
  }

  void read_input() {
    const Shape& in = graph_.value(graph_.input).shape;
    if (in.size() != 3) {
      fail("{}: input of shape {}, expected [1, channels, samples]", graph_.file, to_string(in));
    }
    advance_to(graph_.input);
    skip_transparent();
    const GraphNode* divides = at("Div") ? node_ : nullptr;
    if (divides != nullptr) input_factor_ = read_factor();
    skip_transparent();
    if (divides != nullptr && !at_quantizer()) {
      fail_at(graph_, *divides, "expected a quantizer after what divides the input");
    }
    if (!at_quantizer()) return;
    const FoundQuantizer quantizer = read_quantizer();
    input_bits_ = quantizer.bits;
    if (quantizer.low != -std::ldexp(1.0F, input_bits_ - 1)) {
      fail_at(graph_, *quantizer.node,
              "the input quantizer is unsigned or narrow, expected signed and full range");
    }
    input_scale_ = static_cast<float>(double{quantizer.scale} / input_factor_);
    if (!std::isnormal(input_scale_)) {
      fail_at(graph_, *quantizer.node, fmt::format("its scale is {}", input_scale_));
    }
    // Else two divisions are rounded, where a Network has one.
    if (divides != nullptr && !is_power_of_two(quantizer.scale)) {
      fail_at(graph_, *divides,
              fmt::format("divides the input before it is quantized at {}, expected a power of two",
                          quantizer.scale));
    }
  }

  // The constant that a node multiplies or divides by, if it is a single positive number.
  std::optional<float> positive_scalar(const GraphNode& node, size_t input) const {
    const auto& constant = graph_.input_of(node, input).constant;
    if (!constant || !constant->is_float() || constant->floats().size() != 1) return std::nullopt;
    const float scalar = constant->floats()[0];
    return scalar > 0 && std::isfinite(scalar) ? std::optional(scalar) : std::nullopt;
  }
  // What a Mul or Div multiplies a value by, which is its input 0 or, of a Mul, 1.
  double factor_of(const GraphNode& node, int value) const {
    const auto scalar = positive_scalar(node, node.inputs[0] == value ? 1 : 0);
    if (!scalar || (node.op == "Div" && node.inputs[0] != value)) {
      fail_at(graph_, node, "expected a single positive number as its factor");
    }
    return node.op == "Div" ? 1 / double{*scalar} : double{*scalar};
  }
  // Passes a Mul or Div by a scalar.
  double read_factor() {
    const double factor = factor_of(*node_, value_);
    advance();
    return factor;
  }

  // What a layer reads: the file's values are those that a Network's layer writes, times factor.
  struct Operand {
    int layer = kReadsFrames;
    double factor = 1;
    Shape flattened;  // [channels, positions] where these become one dimension on the way
  };

  // From the input of a node that begins a layer back to the layer that writes it.
  Operand operand_of(const GraphNode& reader, size_t input) {
    Operand operand;
    int value = reader.has_input(input) ? reader.inputs[input] : GraphNode::kAbsent;
    for (;;) {
      if (value == GraphNode::kAbsent || graph_.value(value).constant) {
        fail_at(graph_, reader, fmt::format("its input {} is a constant", input));
      }
      if (const auto found = finished_.find(value); found != finished_.end()) {
        operand.layer = found->second;
        operand.factor *= operand.layer == kReadsFrames ? input_factor_ : layer(operand).act_factor;
        return operand;
      }
      const int producer = graph_.value(value).producer;
      if (producer < 0) fail_at(graph_, reader, "reads the input before it is quantized");
      const GraphNode& node = graph_.nodes[static_cast<size_t>(producer)];
      size_t from = 0;
      if (node.op == "Mul" || node.op == "Div") {
        if (graph_.input_of(node, 0).constant) from = 1;
        operand.factor *= factor_of(node, node.inputs[from]);
      } else if (node.op == "Flatten" || node.op == "Reshape") {
        pass_flatten(node, operand);
      } else if (node.op != "Identity" && node.op != "Dropout") {
        fail_unknown(node);
      }
      passed_.insert(&node);
      value = node.inputs[from];
    }
  }
  const FoundLayer& layer(const Operand& operand) const {
    return layers_[static_cast<size_t>(operand.layer)];
  }

  void pass_flatten(const GraphNode& node, Operand& operand) const {
    const Shape &before = graph_.input_of(node, 0).shape, &after = graph_.value(node.output).shape;
    if (before.size() == 3 && after.size() == 2) operand.flattened = {before[1], before[2]};
    if (after.size() != 2 && after != before) {
      fail("{}: flattens {} to {}, expected two dimensions", graph_.file, to_string(before),
           to_string(after));
    }
  }

  // A positive number for each output, along the axis of the outputs, as floats; empty if the
  // constant is none.
  std::vector<float> factors_of_outputs(const FoundLayer& layer) const {
    const auto& constant = graph_.input_of(*node_, node_->inputs[0] == value_ ? 1 : 0).constant;
    const size_t behind = layer.kind == Layer::Kind::kConv ? 1 : 0;  // axes behind that one
    if (!constant || !constant->is_float() || layer.outputs < 2 ||
        elements(constant->shape) != layer.outputs || constant->shape.size() <= behind ||
        constant->shape[constant->shape.size() - 1 - behind] != layer.outputs ||
        (at("Div") && node_->inputs[0] != value_)) {
      return {};
    }
    const bool usable = std::ranges::all_of(
        constant->floats(), [](float factor) { return factor > 0 && std::isfinite(factor); });
    return usable ? constant->floats() : std::vector<float>();
  }

  // Passes a Mul or Div by a number for each output, if one is there: the largest is a factor of
  // the layer, and the others are relative to it.
  bool read_factors_of_outputs(FoundLayer& layer) {
    const std::vector<float> factors = factors_of_outputs(layer);
    if (factors.empty()) return false;
    const auto factor = [&](size_t i) {
      return at("Div") ? 1 / double{factors[i]} : double{factors[i]};
    };
    double largest = 0;
    if (layer.scale_ratio.empty()) layer.scale_ratio.assign(factors.size(), 1.0);
    for (size_t i = 0; i < factors.size(); ++i) {
      layer.scale_ratio[i] *= factor(i);
      largest = std::max(largest, layer.scale_ratio[i]);
      if (!layer.bias.empty()) layer.bias[i] = static_cast<float>(layer.bias[i] * factor(i));
    }
    for (double& ratio : layer.scale_ratio) ratio /= largest;
    layer.factor *= largest;
    advance();
    skip_transparent();
    return true;
  }

  // Factors of the sums of a Conv, Gemm or MatMul.
  void read_sum_factors(FoundLayer& layer) {
    while (at("Mul") || at("Div")) {
      if (read_factors_of_outputs(layer)) continue;
      const double factor = read_factor();
      layer.factor *= factor;
      for (float& bias : layer.bias) bias = static_cast<float>(bias * factor);
      skip_transparent();
    }
  }

  // What is quantized to `codes` of this scale, as float.
  float usable_scale(const GraphNode& node, double scale, double codes) const {
    const double smallest = double{kMinQuantizerRange} * (1 - kScaleTolerance);
    if (scale * codes >= smallest && scale * codes <= double{std::numeric_limits<float>::max()}) {
      return static_cast<float>(scale);
    }
    fail_at(graph_, node,
            fmt::format("a scale of {} with all factors, expected {} / {} or more", scale,
                        kMinQuantizerRange, codes));
  }

  // What a node divides weights by on their way to the quantizer.
  std::optional<float> divisor_of_quantized(const GraphNode& node,
                                            const WeightOperand& operand) const {
    if (node.op != "Div" || !operand.quantizer) return std::nullopt;
    return positive_scalar(node, 1);
  }

  WeightOperand weight_operand(size_t input) const {
    WeightOperand operand;
    if (!node_->has_input(input) || !graph_.input_of(*node_, input).constant) {
      fail_here("its weight is no constant");
    }
    const GraphValue* value = &graph_.input_of(*node_, input);
    operand.shape = value->constant->shape;
    bool transposed = false, scales_transposed = false;
    while (value->producer >= 0) {
      const GraphNode& producer = graph_.nodes[static_cast<size_t>(value->producer)];
      if (producer.op == "Constant") break;
      if (is_quantizer(producer) && !operand.quantizer) {
        operand.quantizer = quantizer_of(graph_, producer);
        operand.quantizer_node = &producer;
        operand.scales = scales_of_values(*operand.quantizer, value->shape);
        scales_transposed = transposed;
      } else if (producer.op == "DequantizeLinear" && !operand.quantizer) {
        take_linear(operand, producer, *value);
        scales_transposed = transposed;
        break;
      } else if (const auto divisor = divisor_of_quantized(producer, operand)) {
        operand.divisor *= *divisor;
      } else if (producer.op == "Transpose" && value->shape.size() == 2) {
        if (integers_attribute(graph_, producer, "perm", {1, 0})[0] == 1) transposed = !transposed;
      } else if (producer.op != "Identity") {
        break;  // constants that were computed in another way
      }
      value = &graph_.input_of(producer, 0);
    }
    if (!value->constant->is_float()) fail_here("its weight is not floating point");
    operand.values = value->constant->floats();
    if (transposed) transpose(operand.values, operand.shape[1], operand.shape[0]);
    if (scales_transposed && !operand.scales.empty()) {
      transpose(operand.scales, operand.shape[1], operand.shape[0]);
    }
    return operand;
  }

  // Weights that the file holds as codes, perhaps clipped to fewer bits: a quantizer that changes
  // nothing.
  void take_linear(WeightOperand& operand, const GraphNode& node, const GraphValue& value) const {
    const LinearQuantizer linear = linear_quantizer_of(graph_, node);
    Quantizer quantizer;
    quantizer.scale = {graph_.input_of(node, 1).shape, linear.scale};
    if (linear.scale.size() > 1) {
      Shape shape(value.shape.size(), 1);
      const int64_t axis = integer_attribute(graph_, node, "axis", 1);
      const auto rank = static_cast<int64_t>(shape.size());
      shape[static_cast<size_t>(axis < 0 ? axis + rank : axis)] =
          static_cast<int64_t>(linear.scale.size());
      quantizer.scale.shape = std::move(shape);
    }
    quantizer.zero_point = {{}, std::vector{0.0F}};
    quantizer.is_signed = linear.is_signed;
    quantizer.bits = linear.bits;
    quantizer.narrow = true;
    for (const float zero : linear.zero_point) {
      if (zero != 0) fail_at(graph_, node, "the zero point of weights is not 0");
    }
    const int source = graph_.input_of(node, 0).producer;
    if (source >= 0 && graph_.nodes[static_cast<size_t>(source)].op == "Clip") {
      const GraphNode& clip = graph_.nodes[static_cast<size_t>(source)];
      const auto& high = clip.has_input(2) ? graph_.input_of(clip, 2).constant : std::nullopt;
      if (high && !high->is_float() && high->integers().at(0) > 0) {
        const double codes = static_cast<double>(high->integers()[0]) + 1;
        quantizer.bits =
            std::min(quantizer.bits, 1 + static_cast<int>(std::ceil(std::log2(codes))));
      }
    }
    operand.quantizer = std::move(quantizer);
    operand.quantizer_node = &node;
    operand.scales = scales_of_values(*operand.quantizer, value.shape);
  }

  // A scale for every value of this shape; empty when there is one for all.
  static std::vector<float> scales_of_values(const Quantizer& quantizer, const Shape& shape) {
    if (quantizer.scalar_scale()) return {};
    const Shape& given = quantizer.scale.shape;
    std::vector<float> scales;
    for (int64_t i = 0; i < elements(shape); ++i) {
      int64_t at = 0, stride = 1, rest = i;  // from the last axis to the first
      for (size_t axis = shape.size(); axis-- > 0;) {
        const int64_t position = rest % shape[axis];
        rest /= shape[axis];
        const size_t skipped = shape.size() - given.size();
        if (axis < skipped) continue;
        const int64_t size = given[axis - skipped];
        at += size == 1 ? 0 : position * stride;
        stride *= size;
      }
      scales.push_back(quantizer.scale.floats()[static_cast<size_t>(at)]);
    }
    return scales;
  }

  // [rows][columns] -> [columns][rows], in place.
  static void transpose(std::span<float> values, int64_t rows, int64_t columns) {
    const std::vector<float> from(values.begin(), values.end());
    const auto height = static_cast<size_t>(rows), width = static_cast<size_t>(columns);
    for (size_t i = 0; i < from.size(); ++i) {
      values[i % width * height + i / width] = from[i];
    }
  }

  // Takes weights and quantizer over. A Network's scale is its largest weight / the largest code.
  // Where the file's is another one, or every output has its own, only the codes count, and one of
  // them must be the largest.
  void take_weight(FoundLayer& layer, WeightOperand operand) const {
    layer.weight = std::move(operand.values);
    for (const float weight : layer.weight) {
      if (!std::isfinite(weight)) fail_here(fmt::format("a weight is {}", weight));
    }
    if (!operand.quantizer) return;
    const GraphNode& node = *operand.quantizer_node;
    const Quantizer& quantizer = *operand.quantizer;
    check_bits(node, quantizer.bits);
    if (!quantizer.is_signed) fail_at(graph_, node, "the weight quantizer is unsigned");
    if (!quantizer.zero_centred()) fail_at(graph_, node, "its zero point is not 0");
    if (quantizer.rounding != Rounding::kHalfEven) {
      fail_at(graph_, node, "weights are not rounded to the nearest code");
    }
    layer.weight_bits = quantizer.bits;
    layer.factor /= double{operand.divisor};
    const float high = quantizer.high();
    const std::vector<float> scales = scales_of_outputs(layer, operand);
    const float largest_scale = *std::ranges::max_element(scales);
    const float scale =
        usable_scale(node, double{largest_scale} * double{operand.divisor}, double{high});
    layer.weight_scale = double{scale};
    if (scales.size() > 1) {
      for (const float s : scales) layer.scale_ratio.push_back(double{s} / double{largest_scale});
    }
    float largest = 0;
    for (const float weight : layer.weight) largest = std::max(largest, std::abs(weight));
    if (largest == 0 ||
        (scales.size() == 1 && quantizer.narrow && same_scale(scale, largest / high))) {
      return;
    }
    take_codes(layer, node, quantizer, scales, operand.divisor, scale);
  }

  // The scale of each output's weights, or the one of all.
  std::vector<float> scales_of_outputs(const FoundLayer& layer,
                                       const WeightOperand& operand) const {
    if (operand.scales.empty()) return {*operand.quantizer->scalar_scale()};
    const size_t size = operand.scales.size() / static_cast<size_t>(layer.outputs);
    std::vector<float> scales;
    for (size_t i = 0; i < operand.scales.size(); ++i) {
      if (i % size == 0) scales.push_back(operand.scales[i]);
      if (operand.scales[i] != scales.back()) {
        fail_at(graph_, *operand.quantizer_node,
                "its scales differ within an output, expected one for each");
      }
    }
    return scales;
  }

  // Weights as codes times one scale for all outputs.
  void take_codes(FoundLayer& layer, const GraphNode& node, const Quantizer& quantizer,
                  const std::vector<float>& scales, float divisor, float scale) const {
    const float high = quantizer.high(), low = quantizer.low();
    const size_t size = layer.weight.size() / static_cast<size_t>(layer.outputs);
    float largest_code = 0;
    for (size_t i = 0; i < layer.weight.size(); ++i) {
      const float own = scales[scales.size() == 1 ? 0 : i / size] * divisor;
      const float code = std::nearbyint(std::clamp(layer.weight[i] / own, low, high));
      largest_code = std::max(largest_code, std::abs(code));
      layer.weight[i] = code * scale;
    }
    if (largest_code != 0 && largest_code != high) {
      fail_at(graph_, node, fmt::format("the largest code is {}, expected {}", largest_code, high));
    }
  }

  // Before the first sample that a convolution reads and behind the last one.
  void read_padding(FoundLayer& layer) const {
    const std::string auto_pad = string_attribute(graph_, *node_, "auto_pad", "NOTSET");
    const int64_t samples = shape().back(), positions = graph_.value(node_->output).shape.back();
    if (auto_pad.starts_with("SAME")) {
      const int64_t both =
          std::max<int64_t>(0, (positions - 1) * layer.stride + layer.kernel - samples);
      layer.padding = auto_pad == "SAME_LOWER" ? both - both / 2 : both / 2;
      layer.padding_after = both - layer.padding;
    } else if (auto_pad == "VALID") {
      layer.padding = layer.padding_after = 0;
    } else {
      const std::vector<int64_t> pads = integers_attribute(graph_, *node_, "pads", {0, 0});
      layer.padding = pads.at(0);
      layer.padding_after = pads.at(1);
    }
    if (samples == positions * layer.stride) layer.padding_after = Convolution::kAsNeeded;
  }

  bool reads_dense(const FoundLayer& layer) const {
    return std::ranges::any_of(layer.reads, [&](int read) {
      return read != kReadsFrames && layers_[static_cast<size_t>(read)].kind == Layer::Kind::kDense;
    });
  }

  void read_convolution(FoundLayer& layer) {
    layer.kind = Layer::Kind::kConv;
    if (reads_dense(layer)) fail_here("a convolution after a dense layer");
    WeightOperand operand = weight_operand(1);
    if (operand.shape.size() != 3) fail_here("is not one-dimensional");
    layer.outputs = operand.shape[0];
    layer.inputs = operand.shape[1];
    layer.kernel = operand.shape[2];
    layer.groups = integer_attribute(graph_, *node_, "group", 1);
    layer.stride = integers_attribute(graph_, *node_, "strides", {1}).at(0);
    if (const auto dilations = integers_attribute(graph_, *node_, "dilations", {1});
        dilations != std::vector<int64_t>{1}) {
      fail_here(fmt::format("dilations {}, expected {{1}}", to_string(dilations)));
    }
    read_padding(layer);
    take_weight(layer, std::move(operand));
    if (node_->has_input(2)) add_bias(layer, graph_.input_of(*node_, 2));
    advance();
    skip_transparent();
    read_sum_factors(layer);
  }

  // Reorders the inputs of the first dense layer: ONNX flattens [C][L], a Network [L][C].
  void reorder_flattened(FoundLayer& layer) const {
    if (flattened_.empty()) return;
    const int64_t channels = flattened_[0], length = flattened_[1];
    if (channels * length != layer.inputs) {
      fail_here(fmt::format("{} inputs, expected {} x {}", layer.inputs, channels, length));
    }
    const auto size = static_cast<size_t>(layer.inputs);
    for (size_t o = 0; o < static_cast<size_t>(layer.outputs); ++o) {
      transpose(std::span(layer.weight).subspan(o * size, size), channels, length);
    }
  }

  void read_dense(FoundLayer& layer) {
    layer.kind = Layer::Kind::kDense;
    const bool is_gemm = at("Gemm");
    if (layer.reads[0] == kReadsFrames) fail_here("a dense layer before any convolution");
    if (shape().size() != 2) {
      fail_here(fmt::format("reads shape {}, expected flattened values", to_string(shape())));
    }
    WeightOperand operand = weight_operand(1);
    bool outputs_first = false;
    if (is_gemm) {
      if (integer_attribute(graph_, *node_, "transA", 0) != 0 ||
          float_attribute(graph_, *node_, "alpha", 1) != 1 ||
          float_attribute(graph_, *node_, "beta", 1) != 1) {
        fail_here("transA, alpha or beta are not supported");
      }
      outputs_first = integer_attribute(graph_, *node_, "transB", 0) != 0;
    }
    if (operand.shape.size() != 2) fail_here("its weight is no matrix");
    layer.outputs = operand.shape[outputs_first ? 0 : 1];
    layer.inputs = operand.shape[outputs_first ? 1 : 0];
    if (!outputs_first) {
      transpose(operand.values, layer.inputs, layer.outputs);
      if (!operand.scales.empty()) transpose(operand.scales, layer.inputs, layer.outputs);
    }
    take_weight(layer, std::move(operand));
    reorder_flattened(layer);
    flattened_.clear();
    if (is_gemm && node_->has_input(2)) add_bias(layer, graph_.input_of(*node_, 2));
    advance();
    skip_transparent();
    read_sum_factors(layer);
    if (at("Add") && variables(*node_) == 1) {
      add_bias(layer, graph_.input_of(*node_, node_->inputs[0] == value_ ? 1 : 0));
      advance();
    }
  }

  void add_bias(FoundLayer& layer, const GraphValue& value) {
    if (!value.constant || !value.constant->is_float()) fail_here("its bias is no constant");
    const std::vector<float>& bias = value.constant->floats();
    if (static_cast<int64_t>(bias.size()) != layer.outputs && bias.size() != 1) {
      fail_here(fmt::format("{} biases, expected {}", bias.size(), layer.outputs));
    }
    layer.bias.resize(static_cast<size_t>(layer.outputs), 0.0F);
    for (size_t i = 0; i < layer.bias.size(); ++i) layer.bias[i] += bias[bias.size() == 1 ? 0 : i];
  }

  void read_batch_norm(FoundLayer& layer) {
    const auto parameter = [&](size_t i) {
      const GraphValue& value = graph_.input_of(*node_, i);
      if (!value.constant) fail_here("its parameters are no constants");
      for (const float number : value.constant->floats()) {
        if (!std::isfinite(number)) fail_here(fmt::format("a parameter is {}", number));
      }
      return value.constant->floats();
    };
    layer.gamma = parameter(1);
    layer.beta = parameter(2);
    layer.mean = parameter(3);
    layer.var = parameter(4);
    const float epsilon = float_attribute(graph_, *node_, "epsilon", 1e-5F);
    // The same sum with our epsilon.
    if (epsilon != static_cast<float>(kBatchNormEpsilon)) {
      for (float& var : layer.var)
        var = static_cast<float>(double{var} + epsilon - kBatchNormEpsilon);
    }
    for (const float var : layer.var) {
      if (var < 0) fail_here("its variance and epsilon are too small");
    }
    advance();
  }

  void read_activation_quantizer(FoundLayer& layer) {
    const FoundQuantizer quantizer = read_quantizer();
    layer.act_bits = quantizer.bits;
    layer.smallest_code = static_cast<int>(quantizer.low);
    layer.act_scale = usable_scale(*quantizer.node, double{quantizer.scale} / layer.act_factor,
                                   largest_code(quantizer.bits, quantizer.is_signed()));
    layer.quantizer_node = quantizer.node;
  }

  void read_pool(FoundLayer& layer) {
    if (layer.kind == Layer::Kind::kDense) fail_here("pooling after a dense layer");
    if (layer.kind == Layer::Kind::kAveragePool) fail_here("pooling after an average");
    layer.pool *= at("GlobalMaxPool") ? shape().back() : window_of(*node_, shape());
    advance();
  }

  // Of a pooling of values of this shape.
  int64_t window_of(const GraphNode& node, const Shape& shape) const {
    const auto kernel = integers_attribute(graph_, node, "kernel_shape", {});
    const auto strides = integers_attribute(graph_, node, "strides", {1});
    const auto pads = integers_attribute(graph_, node, "pads", {0, 0});
    const auto dilations = integers_attribute(graph_, node, "dilations", {1});
    if (kernel.size() != 1 || strides != kernel || pads != std::vector<int64_t>{0, 0} ||
        dilations != std::vector<int64_t>{1}) {
      fail_at(graph_, node, "expected windows that follow each other without padding");
    }
    // A part of a window is left out, unless the file says otherwise.
    const bool leaves_out = integer_attribute(graph_, node, "ceil_mode", 0) == 0;
    if (shape.back() % kernel[0] != 0 && !leaves_out) {
      fail_at(graph_, node,
              fmt::format("{} positions cannot be divided by {}", shape.back(), kernel[0]));
    }
    return kernel[0];
  }

  // Relu, quantizer and pooling are monotone and change places freely, positive factors with them.
  // Pools behind one another are one: the windows of the second are whole ones of the first.
  bool read_activation(FoundLayer& layer) {
    bool has_relu = false, has_quantizer = false;
    for (;;) {
      skip_transparent();
      if (at("Mul") || at("Div")) {
        layer.act_factor *= read_factor();
      } else if (at("Relu") && !has_relu) {
        has_relu = true;
        advance();
      } else if (at_quantizer() && !has_quantizer) {
        has_quantizer = true;
        read_activation_quantizer(layer);
      } else if (at("MaxPool") || at("GlobalMaxPool")) {
        read_pool(layer);
      } else {
        break;
      }
    }
    // Of signed codes, Relu leaves those of an unsigned quantizer with one bit less.
    if (has_relu && layer.smallest_code < 0) {
      layer.smallest_code = 0;
      check_bits(*layer.quantizer_node, --layer.act_bits);
    }
    return has_relu || has_quantizer;
  }

  // Factors that cancel each other are left out; others go into the weights.
  void take_factor(FoundLayer& layer) const {
    if (same_scale(layer.factor, 1)) return;
    for (float& weight : layer.weight) {
      const double scaled = double{weight} * layer.factor;
      if (!(std::abs(scaled) <= double{std::numeric_limits<float>::max()})) {
        fail_at(graph_, *layer_node_, fmt::format("a weight is {} with all factors", scaled));
      }
      weight = static_cast<float>(scaled);
    }
    if (layer.weight_bits == kFloatBits) return;
    layer.weight_scale = double{usable_scale(*layer_node_, layer.weight_scale * layer.factor,
                                             std::ldexp(1.0, layer.weight_bits - 1) - 1)};
  }

  // A node that computes with values alone. They may all have one factor, which its own has, too.
  void read_join(FoundLayer& layer, const std::vector<Operand>& operands) {
    const Shape& in = graph_.input_of(*node_, 0).shape;
    if (in.size() != 3) {
      fail_here(fmt::format("reads shape {}, expected [1, channels, positions]", to_string(in)));
    }
    if (at("Add")) {
      layer.kind = Layer::Kind::kAdd;
      if (graph_.input_of(*node_, 1).shape != in) {
        fail_here(fmt::format("adds {} and {}, expected one shape", to_string(in),
                              to_string(graph_.input_of(*node_, 1).shape)));
      }
    } else if (at("Concat")) {
      layer.kind = Layer::Kind::kConcat;
      const int64_t axis = integer_attribute(graph_, *node_, "axis", 0);
      if (axis != 1 && axis != -2) fail_here("does not join channels, expected axis 1");
    } else {
      layer.kind = Layer::Kind::kAveragePool;
      layer.kernel = at("GlobalAveragePool") ? in.back() : window_of(*node_, in);
    }
    for (const Operand& operand : operands) {
      if (!operand.flattened.empty()) fail_here("reads flattened values");
      if (!same_scale(operand.factor, operands[0].factor)) {
        fail_here(fmt::format("its inputs are multiplied by {} and {}, expected one factor",
                              operands[0].factor, operand.factor));
      }
    }
    if (!same_scale(operands[0].factor, 1)) layer.act_factor = operands[0].factor;
    layer.outputs = graph_.value(node_->output).shape[1];
    advance();
  }

  void read_layer(const GraphNode& node) {
    std::vector<Operand> operands;
    const bool reads_values = node.op == "Add" || node.op == "Concat";
    for (size_t i = 0; i < (reads_values ? node.inputs.size() : 1); ++i) {
      operands.push_back(operand_of(node, i));
    }
    FoundLayer& layer = layers_.emplace_back();
    for (const Operand& operand : operands) layer.reads.push_back(operand.layer);
    layer.node = node_ = layer_node_ = &node;
    value_ = node.inputs[0];
    if (at("Conv") || at("Gemm") || at("MatMul")) {
      layer.factor = operands[0].factor;
      flattened_ = operands[0].flattened;
      if (at("Conv")) {
        read_convolution(layer);
      } else {
        read_dense(layer);
      }
      take_factor(layer);
    } else {
      read_join(layer, operands);
    }
    skip_transparent();
    if (at("BatchNormalization") && has_weights(layer.kind)) read_batch_norm(layer);
    bool has_activation = read_activation(layer);
    if (bits_ && layer.act_bits == kFloatBits && !at_output()) {
      layer.act_bits = *bits_;
      layer.smallest_code = has_activation ? 0 : -(1 << (*bits_ - 1));  // it is a Relu
      layer.collects = has_activation = true;
    }
    check_activation(layer, has_activation);
    finished_[value_] = static_cast<int>(layers_.size()) - 1;
  }

  void check_activation(const FoundLayer& layer, bool has_activation) const {
    if (!has_weights(layer.kind) && layer.act_bits == kFloatBits) {
      fail_at(graph_, *layer_node_,
              fmt::format("no Quant follows it: what it writes must be quantized{}", kAddsOnes));
    }
    if (!at_output() && !has_activation) {
      fail_at(graph_, node_ != nullptr ? *node_ : *layer_node_,
              fmt::format("expected Relu or Quant after {}{}", layer_node_->name, kAddsOnes));
    }
    if (at_output() && (has_activation || !layer.gamma.empty())) {
      fail_at(graph_, *layer_node_, "the last layer has a batch-norm or an activation");
    }
    if (at_output() && layer.act_factor != 1) {
      fail_at(graph_, *layer_node_, "the last layer's biased sums are multiplied by a factor");
    }
  }

  // Whether the last layer is one that can be a Network's, and the others lead to it.
  void check_output() const {
    const FoundLayer& output = layers_.back();
    if (const auto last = finished_.find(graph_.output); last == finished_.end()) {
      fail("{}: ends with a reshaping, expected a dense layer", graph_.file);
    } else if (last->second != static_cast<int>(layers_.size()) - 1) {
      fail_at(graph_, *output.node, "does not lead to the output of the network");
    }
    if (output.kind != Layer::Kind::kDense) {
      fail("{}: the last layer is a {}, expected a dense layer", graph_.file,
           output.kind == Layer::Kind::kConv ? "convolution" : output.node->op);
    }
    for (size_t i = 0; i + 1 < layers_.size(); ++i) {
      const bool is_read = std::ranges::any_of(layers_, [&](const FoundLayer& reader) {
        return std::ranges::count(reader.reads, static_cast<int>(i)) > 0;
      });
      if (!is_read) fail_at(graph_, *layers_[i].node, "does not lead to the output of the network");
    }
    if (output.reads[0] != static_cast<int>(layers_.size()) - 2) {
      fail_at(graph_, *output.node, "the last layer reads another one than that before it");
    }
  }

  float input_scale_of(const FoundLayer& layer) const {
    const int read = layer.reads[0];
    return read == kReadsFrames ? input_scale_ : layers_[static_cast<size_t>(read)].act_scale;
  }

  // An output layer with a scale for each class, or with a bias that is not in codes, keeps them.
  void finish_output() {
    FoundLayer& output = layers_.back();
    if (output.weight_bits == kFloatBits || layers_[layers_.size() - 2].act_bits == kFloatBits) {
      if (!output.scale_ratio.empty()) weigh_outputs(output);
      return;
    }
    if (output.scale_ratio.empty() && !bias_has_fractions()) return;
    gains_.assign(static_cast<size_t>(output.outputs), 1.0F);
    const float scale = input_scale_of(output) * static_cast<float>(output.weight_scale);
    for (size_t i = 0; i < output.scale_ratio.size(); ++i) {
      gains_[i] = gain_for(scale, output.scale_ratio[i]);
    }
    output.scale_ratio.clear();
  }

  // The gain whose product with `scale`, in float, is that of `ratio`, as near as there is one.
  static float gain_for(float scale, double ratio) {
    const auto gain = static_cast<float>(ratio);
    const auto wanted = static_cast<float>(double{scale} * ratio);
    for (const float near : {gain, std::nextafter(gain, 0.0F), std::nextafter(gain, 2.0F)})
      if (scale * near == wanted) return near;
    return gain;
  }

  // Weights as they are meant. Of floats, whose scale is no quantizer's.
  static void weigh_outputs(FoundLayer& output) {
    const size_t size = output.weight.size() / output.scale_ratio.size();
    for (size_t i = 0; i < output.weight.size(); ++i) {
      output.weight[i] =
          static_cast<float>(double{output.weight[i]} * output.scale_ratio[i / size]);
    }
    output.scale_ratio.clear();
  }

  // Of a bias as the file's quantizer leaves it, codes are whole.
  bool bias_has_fractions() const {
    const FoundLayer& output = layers_.back();
    const double scale = output.weight_scale * double{input_scale_of(output)};
    constexpr double kMaxFraction = 0.01;
    for (size_t i = 0; i < output.bias.size(); ++i) {
      const double ratio = output.scale_ratio.empty() ? 1 : output.scale_ratio[i];
      const double code = double{output.bias[i]} / (scale * ratio);
      if (std::abs(code - std::nearbyint(code)) > kMaxFraction + kScaleTolerance * std::abs(code))
        return true;
    }
    return false;
  }

  // As export_network() calls the node that begins a layer: "conv1.Conv". Empty: not so.
  static std::string name_of(const GraphNode& node) {
    const std::string end = "." + node.op;
    if (!node.name.ends_with(end)) return {};
    return node.name.substr(0, node.name.size() - end.size());
  }

  // The layers' names, where the file has one for each that they can have.
  void take_names(NetworkConfig& config) const {
    NetworkConfig named = config;
    for (size_t i = 0; i < named.layers.size(); ++i) {
      std::string name = name_of(*layers_[i].node);
      if (name.empty()) return;
      if (name != config.name_of(i)) named.layers[i].name = std::move(name);
    }
    try {
      named.validate();
    } catch (const UsageError&) {
      return;
    }
    config = std::move(named);
  }

  NetworkConfig config() const {
    NetworkConfig config;
    const Shape& in = graph_.value(graph_.input).shape;
    config.input_channels = static_cast<int>(in[1]);
    config.length = static_cast<int>(in[2]);
    config.classes = static_cast<int>(layers_.back().outputs);
    config.input_bits = input_bits_;
    if (input_bits_ != kFloatBits && input_scale_ != fmp::input_scale(input_bits_)) {
      config.input_scale = input_scale_;
    }
    config.class_scales = !gains_.empty();
    for (const FoundLayer& found : layers_) {
      if (found.kind == Layer::Kind::kOutput) {
        config.output_bits = found.weight_bits;
        break;
      }
      LayerConfig& layer = config.layers.emplace_back();
      layer.kind = found.kind;
      const int before = static_cast<int>(config.layers.size()) - 2;
      if (found.reads != std::vector{before}) layer.reads = found.reads;
      layer.outputs = static_cast<int>(found.outputs);
      layer.weight_bits = found.weight_bits;
      layer.act_bits = found.act_bits;
      layer.smallest_code = found.smallest_code;
      layer.collects = found.collects || std::ranges::none_of(layers_, &FoundLayer::collects);
      if (found.kind == Layer::Kind::kDense) continue;
      layer.form = {static_cast<int>(found.kernel),  static_cast<int>(found.stride),
                    static_cast<int>(found.padding), static_cast<int>(found.groups),
                    static_cast<int>(found.pool),    static_cast<int>(found.padding_after)};
    }
    try {
      config.validate();
    } catch (const UsageError& error) {
      fail("{}: {}", graph_.file, error.what());
    }
    take_names(config);
    return config;
  }

  void fill(const FoundLayer& found, Layer& layer) const {
    const auto copy = [&](const std::vector<float>& from, std::span<float> to) {
      if (from.size() != to.size()) {
        fail("{}: {} has {} values, expected {}", graph_.file, layer.name, from.size(), to.size());
      }
      std::ranges::copy(from, to.begin());
    };
    if (found.act_bits != kFloatBits && !found.collects) {
      layer.threshold.value.floats()[0] = threshold_for(found.act_scale, layer.largest_code());
    }
    if (!layer.has_weights()) return;
    if (static_cast<int64_t>(found.weight.size()) != layer.weights_total()) {
      fail("{}: {} has {} weights, expected {}", graph_.file, layer.name, found.weight.size(),
           layer.weights_total());
    }
    auto weight = found.weight.begin();
    for (int o = 0; o < layer.out_channels; ++o) {
      for (int c = 0; c < layer.group_channels(); ++c) {
        for (int k = 0; k < layer.form.kernel; ++k, ++weight) {
          const size_t place = layer.place(o, c, k);
          layer.weight.value.floats()[place] = *weight;
          layer.weight.mask[place] = *weight != 0 ? 1 : 0;
        }
      }
    }
    if (found.kind == Layer::Kind::kOutput) {
      if (!gains_.empty()) copy(gains_, layer.gain.floats());
      if (found.bias.empty()) {
        std::ranges::fill(layer.bias.value.floats(), 0.0F);
      } else {
        copy(found.bias, layer.bias.value.floats());
      }
      return;
    }
    if (found.gamma.empty()) {
      // No batch-norm: one that changes nothing.
      std::ranges::fill(layer.running_var.floats(), static_cast<float>(1 - kBatchNormEpsilon));
    } else {
      copy(found.gamma, layer.gamma.value.floats());
      copy(found.beta, layer.beta.value.floats());
      copy(found.mean, layer.running_mean.floats());
      copy(found.var, layer.running_var.floats());
    }
    for (size_t i = 0; i < found.bias.size(); ++i) layer.running_mean.floats()[i] -= found.bias[i];
    // Outputs with scales of their own: sums of codes are larger by 1 / ratio.
    for (size_t i = 0; i < found.scale_ratio.size(); ++i) {
      const double ratio = found.scale_ratio[i];
      float &mean = layer.running_mean.floats()[i], &var = layer.running_var.floats()[i];
      mean = static_cast<float>(double{mean} / ratio);
      var = static_cast<float>((double{var} + kBatchNormEpsilon) / (ratio * ratio) -
                               kBatchNormEpsilon);
      if (!std::isfinite(mean) || !std::isfinite(var)) {
        fail("{}: {}: the scales of its outputs are too far apart", graph_.file, layer.name);
      }
    }
  }

  static constexpr const char* kAddsOnes = " (fmp_radioml --init adds quantizers with --bits N)";

  const Graph& graph_;
  std::optional<int> bits_;  // of quantizers that the file does not have
  std::map<int, std::vector<const GraphNode*>> readers_;  // of values that depend on the input
  std::map<int, int> finished_;            // values that layers write, or the frames: which
  std::set<const GraphNode*> passed_;      // nodes that are parts of layers
  int value_ = 0;                          // where in a layer we are ...
  const GraphNode* node_ = nullptr;        // ... and what reads it, if one node does
  const GraphNode* layer_node_ = nullptr;  // of the layer that is being read
  int input_bits_ = kFloatBits;
  float input_scale_ = 1;
  double input_factor_ = 1;  // of the input's values, before they are quantized
  Shape flattened_;  // [channels, positions] when the next dense layer reads flattened values
  std::vector<FoundLayer> layers_;
  std::vector<float> gains_;  // of the classes; empty: they share one scale
};

}  // namespace

Network import_network(const Graph& graph, std::optional<int> bits) {
  return Importer(graph, bits).read();
}

Network import_network(const std::filesystem::path& file, std::optional<int> bits) {
  return import_network(load(file), bits);
}

}  // namespace fmp::onnx
