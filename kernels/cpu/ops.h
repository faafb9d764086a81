// SPDX-License-Identifier: MIT
// The CPU backend: every operation of a training step on raw tiles, with shapes and meaning. The
// twin of kernels/cuda/ops.h.
//
// Notation: N frames, O output and C input channels, T taps, L positions. Activations are tiles
// (kernels/tile.h). Quantized activations are codes, value = code * scale, unsigned b bits after a
// QuantReLU, signed b bits at the input and after a signed quantizer. Weights are [O][T][C] float
// with a mask of bytes.
//
// The integer part of the forward pass is exact: sums of products of codes do not depend on order,
// plan, instruction set or number of threads. All floating-point sums run in an order that depends
// on the shapes alone, and for dense layers on whether the machine has AMX (gradient_tiles.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/communicator.h"
#include "kernels/layer.h"
#include "kernels/tile.h"

namespace fmp::cpu {

// Whether a layer's dense backward kernels are those that sum in an order of their own (Winograd's
// algorithm, matrix products, tiles) and so leave sparse ones behind. A layer that is dense enough
// for them does not choose by time, or its results would depend on it: the answer follows from the
// shape and the mask alone, and removing channels without weights does not change it.
bool prefers_dense_backward(const LayerShape& shape, std::span<const uint8_t> mask);

// Seconds of all threads together by what they were spent on.
struct Profile {
  double unpack = 0, conv_forward = 0, activation_forward = 0, activation_backward = 0,
         conv_backward_data = 0, conv_backward_weight = 0, other = 0;
};

// How operations run. Results do not depend on it.
struct RunContext {
  int threads = 1;
  Profile* profile = nullptr;  // filled when not null
  // In training, if the frames here are a share of a batch: which. All ranks call the operation.
  const BatchShare* share = nullptr;
};

// What a layer reads: codes or values, [L][C] with room for the taps' padding, and the scale of the
// codes (1 for values).
struct Input {
  ConstTileView tile;
  float scale = 1;
};

// A layer's weights, fake-quantized and compiled for the kernels of its plan. Quantization as
// Brevitas' Int8WeightPerTensorFloat: scale = max|w| / (2^(b-1) - 1), code = round_half_even(w /
// scale), w being masked.
class Weights {
 public:
  Weights();
  ~Weights();
  Weights(Weights&&) noexcept;
  Weights& operator=(Weights&&) noexcept;

  // weight: [O][T][C]; mask: the same shape or empty; plan: kernels of libraries stand for this
  // backend's own; backward: also compile what the backward pass needs. Throws std::domain_error
  // when a weight is not finite.
  void compile(const LayerShape& shape, std::span<const float> weight,
               std::span<const uint8_t> mask, const PassPlan& plan, bool backward);

  const LayerShape& shape() const;       // as compiled
  float scale() const;                   // 1 for float weights
  std::span<const float> codes() const;  // [O][T][C]: integers, or the masked weights if float
  int64_t nonzeros() const;              // nonzero codes

  // From the gradient with respect to the fake-quantized weights to that of the weights, in place:
  // straight-through, plus the scale's gradient at the largest |w| (spread evenly over ties), plus
  // `scale_gradient` from elsewhere (the output bias); masked weights get 0.
  void backward(std::span<const float> weight, double scale_gradient, std::span<float> grad) const;

  struct Compiled;
  const Compiled& compiled() const { return *compiled_; }

 private:
  std::unique_ptr<Compiled> compiled_;
};

// frames: [N][L][C] codes or values -> tile [L][C] of out.type (kS8 or kF32).
void pack_frames(std::span<const int8_t> frames, TileView out, int threads);
void pack_frames(std::span<const float> frames, TileView out, int threads);

// Parameters of a hidden layer: BatchNorm1d and QuantReLU. All [O] but threshold.
struct HiddenParameters {
  std::span<const float> gamma, beta;
  float threshold =
      1;  // v: scale = |v| / largest code; not read while collecting or if act is float
};

struct RunningStatistics {
  std::span<float> mean, var;  // [O]; var unbiased, as PyTorch's
};

// What a step keeps of a hidden layer beside its codes: the constants of its batch-norm, the bits
// that say where gradients pass, and sums over the batch that its neighbours took for it.
struct HiddenState {
  // Set by the caller before the forward pass: nobody will ask for the gradient of x. With few
  // inputs the gradient of the weights then follows from sums alone (see hidden_sums.h).
  bool first_layer = false;

  bool collected = false;                    // the threshold was this batch's percentile
  float act_scale = 1;                       // of the codes written
  float threshold = 1;                       // act_scale * largest code
  std::vector<float> gain, shift;            // t = gain * y + shift, in units of codes
  std::vector<float> xhat_gain, xhat_shift;  // normalised value before gamma and beta
  std::vector<float> inv_std;                // of the real-valued convolution output
  // The element that is the percentile: row among all rows of all tiles of the batch, channel,
  // lane, xhat there.
  int64_t statistic_row = -1;  // -1: none
  int statistic_channel = 0, statistic_lane = 0;
  float statistic_xhat = 0;
  float statistic_sign = 1;  // signed codes: the percentile is that of the magnitudes

  AlignedBuffer<uint16_t> passes;  // [tiles][L][O] bits of the lanes to which gradients pass
  AlignedBuffer<float> y;          // sums [tiles][L][O][lanes] where they are not computed again

  bool summed = false;                     // the next two were taken
  std::vector<double> sum_y, sum_squares;  // of y and y^2, per channel
  bool gradient_summed = false;            // the next three were taken, or the last one
  std::vector<double> sum_g, sum_g_y;      // of g, the gradient where it passes, and g * y
  double sum_code = 0;                     // of the gradient * code
  // First layers with few inputs: sums of the window's inputs, of their products in pairs, and of
  // g * input for the weights that have a gradient.
  std::vector<double> input_sums, input_products;
  std::vector<float> sum_g_input;
};

// A hidden layer in the middle of a step, as its neighbours see it.
struct HiddenOperands {
  Input x;
  const Weights* weights = nullptr;
  HiddenState* state = nullptr;
  ConstTileView out{};  // what it wrote; not read in the forward pass
};

// x -> convolution -> batch-norm with the batch's statistics -> QuantReLU -> max-pool -> out.
// out: [L / pool][O] of shape.output_type(). collect: take a quantizer's threshold from this batch
// (see kThresholdPercentile). running: updated. reader: null, or the hidden layer
// that reads `out`; its sums of y are taken on the way, if it is of the same kind (a convolution,
// or dense).
void hidden_forward_train(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, bool collect,
                          const RunningStatistics& running, HiddenState& state, TileView out,
                          const HiddenOperands* reader, const RunContext& context);

// The scale of an activation's codes: its threshold's size, but not less than kMinQuantizerRange,
// is the largest code.
float activation_scale(float threshold, int largest_code);

// Batch-norm with running statistics as value = gain * x + shift. Each operation is rounded to
// float: gain = gamma * (1 / sqrt(var + eps)), shift = beta - mean * gain, as ONNX Runtime does it.
struct EvaluationAffine {
  float gain = 1, shift = 0;
};
EvaluationAffine evaluation_affine(float gamma, float beta, float mean, float var);

// What evaluation mode does to a channel's sums y: value = (y * sum_scale) * gain + shift, code =
// round_half_even(value / act_scale) within smallest_code .. largest_code(). Each operation is
// rounded to float by itself, nothing is fused: so does a runtime that executes the exported graph
// node by node (see framework/onnx/export.h), and its codes are these.
struct EvaluationState {
  float sum_scale = 1;  // x_scale * weight_scale
  float act_scale = 1;  // of the codes; 1 without quantization
  std::vector<float> gain, shift;
};
EvaluationState evaluation_state(const LayerShape& shape, float x_scale, float weight_scale,
                                 const HiddenParameters& parameters,
                                 std::span<const float> running_mean,
                                 std::span<const float> running_var);

// The forward pass in evaluation mode, with evaluation_state(). Returns the scale of the codes
// written.
float hidden_forward_eval(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, std::span<const float> running_mean,
                          std::span<const float> running_var, TileView out,
                          const RunContext& context);

struct HiddenGradients {
  std::span<float> weight;       // [O][T][C], of the fake-quantized weights; see Weights
  std::span<float> gamma, beta;  // [O]
  double threshold = 0;          // of v; 0 while collecting
};

// Backward of a layer whose forward pass has run. dp: gradient of the output's values, [L /
// pool][O] kF32 or kBF16 without padding, 0 in unused lanes; not read if its sums were taken and
// suffice (see gradient_stays_in_cache()). act_scale_gradient: further gradient of the output's
// scale (from the output layer's bias). dx: gradient of the input's values, [L][C] without padding,
// kF32 or kBF16 (rounded to nearest, ties to even, before sums are taken of it); data null = not
// kept. producer: null, or the hidden layer that wrote x; the sums of its gradient are taken on the
// way, if it is of the same kind.
void hidden_backward(const HiddenOperands& layer, const HiddenParameters& parameters,
                     ConstTileView dp, double act_scale_gradient, HiddenGradients& gradients,
                     TileView dx, const HiddenOperands* producer, const RunContext& context);

// Whether the backward pass of `layer` takes from the gradient of its input all that `producer`,
// the layer that wrote it, needs of it, so that it need not be kept.
bool gradient_stays_in_cache(const LayerShape& layer, const HiddenOperands& producer);

// Operations without weights. Each reads codes of other layers, makes real values of them and
// quantizes these with a quantizer of its own:
//   kAdd          s_a * a + s_b * b                    two inputs, [L][C] both
//   kConcat       s_i * x_i                            inputs [L][C_i], their channels side by side
//   kAveragePool  (x_0 + x_1 + ..) / window * s        one input, [L * window][C]
// s being the scales of the inputs. Every operation is rounded to float by itself, in training as
// in evaluation and in the order of the exported graph; a window's sum is exact. code =
// clamp(round_half_even(value / act_scale), smallest_code, largest_code()).
//
// Of a LayerShape they use length L, out_channels C, act_bits (below kFloatBits), smallest_code and
// pool, the window of the maximum behind it. An average's input has L * window positions or, which
// it leaves over, up to window - 1 more. out: [L / pool][C] of shape.output_type(). Inputs: kU8 or
// kS8, any padding, 0 in lanes without frames, as out is.

// What a step keeps of it.
struct JoinState {
  bool collected = false;                         // the threshold was this batch's percentile
  float act_scale = 1;                            // of the codes written
  float threshold = 1;                            // act_scale * largest code
  int64_t statistic_row = -1;                     // the percentile's place, as in HiddenState
  int statistic_channel = 0, statistic_lane = 0;  // channel: of the output
  float statistic_sign = 1;
};

// threshold: v, not read while collecting. collect: take it from this batch, as
// hidden_forward_train does; the percentile is that of the real values before any maximum.
void join_forward_train(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        float threshold, bool collect, JoinState& state, TileView out,
                        const RunContext& context);
// Returns the scale of the codes written.
float join_forward_eval(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        float threshold, TileView out, const RunContext& context);

// Where the gradient of an input's real values goes: [L][C_i] kF32 without padding; data null = it
// is not wanted. add: it is added to what is there, the gradient from another reader.
struct JoinGradient {
  TileView dx = {};
  bool add = false;
};
// dp: gradient of the output's real values, [L / pool][C] kF32 without padding, 0 in unused lanes.
// act_scale_gradient: further gradient of the output's scale. gradients: one for each input.
// Returns the gradient of v; 0 while collecting (then it goes to the element that is the
// percentile).
double join_backward(Join join, const LayerShape& shape, std::span<const Input> inputs,
                     float threshold, const JoinState& state, ConstTileView dp,
                     double act_scale_gradient, std::span<const JoinGradient> gradients,
                     const RunContext& context);

// to += from, element by element: gradients of a value that has several readers. Both are kF32 of
// one shape.
void add_gradient(ConstTileView from, TileView to, int threads);

struct OutputParameters {
  std::span<const float> bias;  // [O]
  // [O]: of each output's scale to the one of all, fixed; empty = all 1, and a quantized bias.
  std::span<const float> gain = {};
};

// logits = x * w + bias, bias fake-quantized at scale x.scale * weights.scale() (Brevitas'
// Int32Bias; plain when input or weights are float). With gains: sum of codes * (x.scale *
// weights.scale() * gain) + bias, as it is. logits: [1][O] kF32.
void output_forward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                    TileView logits, const RunContext& context);

// The bias as output_forward adds it when it is quantized: integers, in units of `scale` = x.scale
// * weights.scale().
std::vector<float> output_bias_codes(std::span<const float> bias, float scale);

// What output_forward makes of a sum of codes: sum * scale + offset, each of the two rounded.
// scale: x.scale * weights.scale().
struct OutputAffine {
  std::vector<float> scale, offset;  // [O]
};
OutputAffine output_affine(const LayerShape& shape, float scale,
                           const OutputParameters& parameters);

struct OutputGradients {
  std::span<float> weight;               // [O][1][C], of the fake-quantized weights
  std::span<float> bias;                 // [O]
  double weight_scale = 0, x_scale = 0;  // through the bias quantizer
};

// dx: kF32 or kBF16.
void output_backward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                     ConstTileView dlogits, OutputGradients& gradients, TileView dx,
                     const RunContext& context);

struct LossResult {
  double loss_sum = 0;  // sum of the frames' cross-entropies
  int64_t correct = 0;
};

// What logits are compared with. labels: [N]; soft: the teacher's q, [N][classes], or empty.
struct Targets {
  std::span<const uint8_t> labels;
  std::span<const float> soft;
  LossOptions loss;
};

// Softmax cross-entropy, see LossOptions. logits: [1][classes] kF32; dlogits (data null = not
// wanted): gradient of the mean loss; predicted: [N] or empty.
LossResult softmax_cross_entropy(ConstTileView logits, const Targets& targets, TileView dlogits,
                                 std::span<uint8_t> predicted);

// One Adam step (PyTorch's, without weight decay). step: t, from 1. mask: empty, or 0 where nothing
// may move.
void adam_step(const AdamOptions& options, int64_t step, std::span<const float> grad,
               std::span<const uint8_t> mask, std::span<float> value, std::span<float> moment1,
               std::span<float> moment2);

// Name of the instruction set in use, e.g. "AVX2".
std::string target_name();

// The instruction sets that this machine can use, best first.
std::vector<std::string> target_names();

// Uses one of them from now on; for tests and comparisons. Not while kernels run. Throws
// std::invalid_argument when the machine or the build lacks it.
void use_target(const std::string& name);

}  // namespace fmp::cpu
