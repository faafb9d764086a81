// SPDX-License-Identifier: MIT
// The CUDA backend: the twin of kernels/cpu/ops.h, which says what each operation means. Every
// function puts its kernels on a stream and returns; nothing here waits for the device, and
// everything that depends on data (scales, thresholds, losses) stays in device memory. All pointers
// are the device's. Needs no CUDA header.
//
// The integer part of the forward pass is exact, so that codes equal the CPU's. Sums of floats run
// in an order that depends on the shapes alone: results are the same from run to run, and for any
// number of devices that share a batch (device_ranks.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/layer.h"

namespace fmp::cuda {

class DeviceRanks;
class LayoutWriter;
class Libraries;
struct SparsePattern;

// Frames that sit side by side come in warps.
inline constexpr int kWarpLanes = 32;
// Channels of codes that share a 32-bit word.
inline constexpr int kQuad = 4;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Sums of floats over a batch are made of sums of groups of its frames, which the batch alone
// decides: up to kFrameGroups of consecutive warps of frames, added from the first group to the
// last. Devices that share a batch have whole groups.
inline constexpr int kFrameGroups = 8;
struct FrameGroups {
  int batch_warps = 0;            // of frames
  int first_warp = 0;             // of those that are here
  int first_group = 0, here = 0;  // groups

  FrameGroups() = default;
  // Of `frames` of a batch of `batch_frames`, from frame `first` on.
  FrameGroups(int64_t batch_frames, int64_t first, int64_t frames)
      : batch_warps(static_cast<int>((batch_frames + kWarpLanes - 1) / kWarpLanes)),
        first_warp(static_cast<int>(first / kWarpLanes)) {
    const int end = static_cast<int>((first + frames + kWarpLanes - 1) / kWarpLanes);
    while (first_group < of_batch() && first_warp_of(first_group) < first_warp) ++first_group;
    while (first_group + here < of_batch() && first_warp_of(first_group + here) < end) ++here;
  }
  constexpr int of_batch() const { return batch_warps < kFrameGroups ? batch_warps : kFrameGroups; }
  constexpr bool are_all_here() const { return here == of_batch(); }
  // Of the batch, of a group of the batch.
  constexpr int first_warp_of(int group) const { return group * batch_warps / of_batch(); }
  // The warps of the i-th group that is here, among those that are here.
  constexpr int begin(int i) const { return first_warp_of(first_group + i) - first_warp; }
  constexpr int warps(int i) const { return begin(i + 1) - begin(i); }
};

// Activations of a whole batch, or of a device's share of it: [pad + length + pad] rows. Floats:
// [row][channel][lane]; codes: [row][quad of channels][lane][4]. lane = frame. Pad rows, lanes past
// the last frame and channels that fill up a quad are zero.
struct Tile {
  int64_t frames = 0;
  int length = 0;
  int channels = 0;
  int pad = 0;
  // Of a share: the frames of the batch (0: all of them are here), and which of them is the first
  // one here, where a group begins.
  int64_t batch_frames = 0, first_frame = 0;

  constexpr int64_t frames_of_batch() const { return batch_frames == 0 ? frames : batch_frames; }
  FrameGroups groups() const { return {frames_of_batch(), first_frame, frames}; }

  constexpr int lanes() const { return static_cast<int>(round_up(frames, kWarpLanes)); }
  constexpr int rows() const { return length + 2 * pad; }
  constexpr int quads() const { return (channels + kQuad - 1) / kQuad; }
  constexpr size_t floats() const {
    return static_cast<size_t>(rows()) * static_cast<size_t>(channels) *
           static_cast<size_t>(lanes());
  }
  constexpr size_t code_bytes() const {
    return static_cast<size_t>(rows()) * static_cast<size_t>(quads()) * kQuad *
           static_cast<size_t>(lanes());
  }
};

// What a grid, or a sum over positions and frames, walks along first.
enum class Walk : uint8_t { kFramesFirst, kPositionsFirst };
constexpr const char* walk_name(Walk walk) {
  return walk == Walk::kFramesFirst ? "frames first" : "positions first";
}

// What a layer reads: codes or values, and the scale of the codes (a device float; null for
// values).
struct Input {
  Tile tile;
  ElementType type = ElementType::kF32;
  const void* data = nullptr;
  const float* scale = nullptr;
};

// A layer's convolution as the kernels see it. A dense layer behind a convolution reads rows of a
// tile: it is a convolution without padding whose taps are all the rows, its weights [O][L][C].
struct ConvShape {
  int in_channels = 0, out_channels = 0, taps = 1, out_length = 1;
  bool same_padding = false;  // otherwise out_length is 1
  // Positions that the gradient of the input has. With padding: the input's, which are out_length
  // or more, up to the padding of the taps. Otherwise 1.
  int in_length = 1;
};
// Throws std::invalid_argument when the tile is not what the layer reads.
ConvShape conv_shape(const LayerShape& shape, const Tile& input);

constexpr bool is_library(Kernel k) { return k == Kernel::kCublas || k == Kernel::kCusparse; }

// Whether fp32 holds the layer's sums of products of codes exactly: below 2^24. Otherwise a library
// cannot run its integer forward pass.
bool exact_in_floats(const LayerShape& layer);
// An upper bound of their magnitudes.
int64_t largest_sum(const LayerShape& layer);

class Weights;

// A layer's gradient, [O][T][C], and that of its scale from elsewhere: a device double, null = 0.
struct WeightGradient {
  Weights* weights;
  float* grad;
  const double* scale_gradient;
};

// The twin of cpu::Weights.
class Weights {
 public:
  // For plans with kernels of libraries: whose handles they use. Call before set_mask(); the
  // libraries must outlive the weights, and their stream is the one to use.
  void use_libraries(Libraries* libraries) { libraries_ = libraries; }
  // For inputs that are shares of a batch: whom to add up gradients with. The backward pass then
  // has own kernels only, as the order of a library's sums may depend on the share's size;
  // prepare() refuses other plans.
  void use_ranks(DeviceRanks* ranks) { ranks_ = ranks; }
  DeviceRanks* ranks() const { return ranks_; }

  // Where the mask has zeros changes with prunes only: lists the surviving weights for the sparse
  // kernels, on the host. mask: [O][T][C] in host memory, empty = all. Call before compile(), and
  // again after a prune. Waits for the stream.
  void set_mask(const ConvShape& shape, std::span<const uint8_t> mask, Stream stream);

  // What compile() is to do, and memory for it. weight: [O][T][C]. input: what the layer reads, as
  // codes or values. backward: also what the backward pass needs. Throws std::invalid_argument when
  // the plan asks for a library that was not given, is of another stream, or would not be exact.
  void prepare(const LayerShape& layer, const ConvShape& shape, const float* weight,
               bool integer_input, const PassPlan& plan, bool backward, Stream stream);
  // All layers of a network at once, from their weights as they are now.
  static void compile(std::span<Weights* const> layers, Stream stream);
  // Both, for one layer.
  void compile(const LayerShape& layer, const ConvShape& shape, const float* weight,
               bool integer_input, const PassPlan& plan, bool backward, Stream stream) {
    prepare(layer, shape, weight, integer_input, plan, backward, stream);
    Weights* const self = this;
    compile(std::span(&self, 1), stream);
  }

  const LayerShape& layer() const { return layer_; }  // as compiled
  const PassPlan& plan() const { return plan_; }
  const ConvShape& conv() const { return shape_; }
  // How the gradients of weights are added up. Positions first, neighbouring windows find the rows
  // that they share in L1; frames first, lanes / 32 steps lie between.
  void add_up(Walk walk) { walk_ = walk; }

  const float* scale() const { return &status_.data()->scale; }
  const float* codes() const { return codes_.data(); }  // [O][T][C]
  // What tensor cores multiply codes by (conv1d_tensor.h); null if the plan is another one.
  const uint32_t* byte_fragments() const {
    return integers_ && plan_.forward == Kernel::kDense ? forward_fragments_.data() : nullptr;
  }

  // Those of backward_data() with each tap's outputs filled up to whole tiles of kPairOutputs; null
  // if the input or the weights are not codes, or the plan is another one.
  const uint32_t* tap_fragments() const;

  // Throws std::domain_error if a weight is not finite. Waits for the stream.
  struct Summary {
    float scale;
    int64_t nonzeros;
  };
  Summary summary(Stream stream) const;

  // What backward_weight() has left of these layers, at once.
  static void add_up_gradients(std::span<Weights* const> layers, Stream stream);
  void add_up_gradients(Stream stream) {
    Weights* const self = this;
    add_up_gradients(std::span(&self, 1), stream);
  }
  // In place, from the gradients of the fake-quantized weights, as backward_weight() or
  // hidden_backward() leave them, to the weights'; all layers at once.
  static void backward(std::span<const WeightGradient> layers, Stream stream);

  // y = W * x, the sums of codes or values as floats. y: [out_length][O][lane].
  void forward(const Input& x, float* y, Stream stream) const;
  // dy: float tile [in_length][O] with the padding of the layer's taps (none if not same_padding),
  // zeros from out_length on. dx: the same positions, [in_length][C][lane], without padding.
  void backward_data(const Tile& dy_tile, const float* dy, float* dx, Stream stream) const;
  // Gradient of the fake-quantized weights, [O][T][C]; of surviving ones only if the plan is sparse
  // (own kernels do not write the others). Sums of slices of the batch may be left to
  // add_up_gradients(): `grad` and the input's scale are used until then.
  void backward_weight(const Input& x, const Tile& dy_tile, const float* dy, float* grad,
                       Stream stream);

  // Largest |w|, scale and counts, found by the device.
  struct Status {
    unsigned largest_bits;  // of max|w|: bits of non-negative floats are ordered as they are
    unsigned not_finite, nonzeros;
    float scale;
    unsigned arrived;  // blocks of a kernel (device_code.h)
  };

 private:
  // Weights that are not masked, row by row: (tap << 16 | channel), and where each stands in
  // [O][T][C].
  struct Sparse {
    DeviceBuffer<int> row_begin, entry, place;
    DeviceBuffer<float> value;
  };
  // The same as cuSPARSE reads them: one matrix for each tap. Where only one position is written,
  // all taps are one matrix.
  struct TapMatrices {
    int rows = 0, columns = 0, taps = 0;
    std::vector<int> begin;  // first entry of each tap, on the host
    DeviceBuffer<int> row_begin, row, column, place;
    DeviceBuffer<float> value;
    DeviceBuffer<int> repeated;  // columns of each tap, once for each position

    SparsePattern pattern(int tap) const;
  };
  void check_plan(Stream stream) const;
  TapMatrices tap_matrices(int out, int taps, int in, bool transposed,
                           std::span<const uint8_t> mask, Stream stream) const;
  // What the kernels of the plan read.
  void add_layouts(LayoutWriter& writer);
  void add_layouts_of_libraries(LayoutWriter& writer);
  // grad, from partial_: sums of slices of groups of frames, [slice][count].
  void add_up(const FrameGroups& groups, int each, int count, const int* places, const float* scale,
              float* grad, Stream stream);
  const float* values_of_input(const Input& x, Stream stream) const;
  void multiply_taps(const TapMatrices& taps, int lanes, const float* x, int positions,
                     bool deterministic, float* y, Stream stream) const;
  void forward_library(const Input& x, float* y, Stream stream) const;
  void backward_data_library(const Tile& dy_tile, const float* dy, float* dx, Stream stream) const;
  void backward_weight_library(const Input& x, const Tile& dy_tile, const float* dy, float* grad,
                               Stream stream) const;

  void forward_tensor(const Input& x, float* y, Stream stream) const;
  void backward_data_tensor(const Tile& dy_tile, const float* dy, float* dx, Stream stream) const;
  void backward_weight_tensor(const Input& x, const Tile& dy_tile, const float* dy, float* grad,
                              Stream stream);

  LayerShape layer_;
  ConvShape shape_;
  PassPlan plan_;
  Walk walk_ = Walk::kPositionsFirst;
  const float* weight_ = nullptr;
  bool backward_ = false;
  bool quantized_ = false;  // the weights are codes
  bool integers_ = false;   // the input, too
  Libraries* libraries_ = nullptr;
  DeviceRanks* ranks_ = nullptr;
  DeviceBuffer<uint8_t> mask_;  // empty = all
  DeviceBuffer<Status> status_;
  DeviceBuffer<float> codes_;
  // For tensor cores, in the order of their fragments: forward if integers, backward if quantized.
  DeviceBuffer<uint32_t> forward_fragments_, backward_fragments_, tap_fragments_;
  // Otherwise [T][quad of C][4][O up to a multiple of 8].
  DeviceBuffer<float> forward_values_, backward_values_;
  Sparse forward_sparse_, backward_sparse_;
  TapMatrices forward_taps_, backward_taps_;  // if there are libraries
  DeviceBuffer<float> transposed_;            // [C][T flipped][O], for cuBLAS
  // Groups of up to kGroup surviving weights of one output channel: where each begins in
  // forward_sparse_, and its channel.
  DeviceBuffer<int> group_begin_, group_row_;
  DeviceBuffer<float> partial_;  // sums of slices of the batch
  // Those that are to be added up; count = 0: none.
  struct Unfinished {
    FrameGroups groups;
    int each = 0, count = 0;
    const int* places = nullptr;
    const float* scale = nullptr;
    float* grad = nullptr;
  };
  Unfinished unfinished_;
  DeviceBuffer<double> scale_partial_;  // of backward()
  DeviceBuffer<unsigned> ties_partial_;
};

// frames: [N][L][C] codes or values -> a tile of codes or floats, padding written. which: null, or
// the frames that are wanted of a larger N, [out.frames].
void pack_frames(const int8_t* frames, const Tile& out, void* codes, Stream stream,
                 const uint32_t* which = nullptr);
void pack_frames(const float* frames, const Tile& out, float* values, Stream stream,
                 const uint32_t* which = nullptr);

// Rows of the same memory: `length` positions from the first on, with `pad` rows before and behind
// them. Positions behind the last one are rows of zeros; the rows behind fewer positions than there
// are hold the next ones.
Input positions_of(const Input& x, int length, int pad);

// Several positions seen as one with the channels of all, as a stride reads them. `factor` divides
// the length and the padding. Floats, and codes whose channels fill up quads, are in that order
// already; others are copied into `memory`.
Tile joined_positions(const Tile& tile, int factor);
Input join_positions(const Input& x, int factor, DeviceBuffer<uint8_t>& memory, Stream stream);

// Constants of a hidden layer on the device, [O] each, and what they come from.
struct HiddenParameters {
  const float *gamma, *beta;
  const float* threshold;  // v
};

// The twin of cpu::HiddenState.
class HiddenState {
 public:
  // All in device memory.
  struct Scalars {
    float act_scale, threshold;
    float sum_scale;  // of evaluation
    // The element that is the percentile, if there is one: its place in the CPU's order of
    // elements, xhat and the sign there and, in the backward pass, its gradient.
    unsigned has_statistic, statistic_place;
    float statistic_xhat, statistic_sign, statistic_gradient;
    unsigned value_bits, selected, rank, histogram[256];  // of the search for it
    unsigned arrived;                                     // blocks of a kernel (device_code.h)
  };
  // Arrays of [O] floats in `constants`.
  enum Constant { kGain, kShift, kXhatGain, kXhatShift, kInvStd, kOfG, kOfY, kOfOne, kConstants };

  float* constant(Constant which) const {
    return constants.data() + static_cast<size_t>(which) * channels;
  }
  const float* act_scale() const { return &scalars.data()->act_scale; }

  size_t channels = 0;
  bool collected = false;
  // Of the blocks of elementwise kernels. Frames first, neighbouring blocks read neighbouring
  // memory; positions first, pieces of it lie channels * lanes * 4 bytes apart.
  Walk walk = Walk::kFramesFirst;
  DeviceBuffer<float> constants;
  DeviceBuffer<Scalars> scalars;
  // Convolution sums [L][O][lane], if the last forward pass kept them: all passes read them then.
  // Otherwise they are computed again.
  bool keeps_y = false;
  DeviceBuffer<float> y;
  DeviceBuffer<double> partial;             // sums of slices
  DeviceBuffer<unsigned long long> totals;  // of integers
  DeviceBuffer<unsigned long long> adding;  // such totals while they are added up, otherwise 0
  DeviceBuffer<float> dy;                   // in the backward pass
  // Where forms_dy_on_chip(): what the forward pass leaves for the backward pass, and sums of both
  // passes' blocks.
  bool on_chip = false;
  Tile out;
  const void* out_data = nullptr;
  DeviceBuffer<uint32_t> winners;
  DeviceBuffer<int64_t> by_weights;
  DeviceBuffer<float> sums_of_blocks;
};

struct RunningStatistics {
  float *mean, *var;  // [O]; var unbiased, as PyTorch's
};

// out: a tile of codes, or of floats when act_bits is kFloatBits; its padding is written, too.
// running: updated. hidden_backward() may read the output again.
void hidden_forward_train(const Input& x, const Weights& weights,
                          const HiddenParameters& parameters, bool collect,
                          const RunningStatistics& running, HiddenState& state, const Tile& out,
                          void* out_data, Stream stream);

// The same in evaluation mode; state.act_scale() is the scale of the codes.
void hidden_forward_eval(const Input& x, const Weights& weights, const HiddenParameters& parameters,
                         const RunningStatistics& running, HiddenState& state, const Tile& out,
                         void* out_data, Stream stream);

// After a step that collected: the threshold, which is the running mean of the batches'
// percentiles, or the first one of them.
void follow_threshold(const HiddenState& state, bool first, float* threshold, Stream stream);

// Whether a backward pass without dx takes one pass over dp and gives the weights' gradient with it
// (first_layer.cu): of the layer that reads the frames, where its forward pass and its weights'
// gradient are planned to run dense.
bool sums_gradients_once(const Input& x, const Weights& weights);

// Whether the training step of a hidden layer has neither its sums nor their gradients dy in memory
// (window_products.cu, recompute_backward.cu).
bool forms_dy_on_chip(const Input& x, const Weights& weights);

struct HiddenGradients {
  float* weight;        // [O][T][C], of the fake-quantized weights
  float *gamma, *beta;  // [O]
  float* threshold;     // of v
};

// dp: [L / pool][O][lane]. act_scale_gradient: a device double, null = 0. dx: null = not wanted.
// gradients.weight: as Weights::backward_weight() leaves it.
void hidden_backward(const Input& x, Weights& weights, const HiddenParameters& parameters,
                     HiddenState& state, const float* dp, const double* act_scale_gradient,
                     const HiddenGradients& gradients, float* dx, Stream stream);

// Operations without weights. Of `state` they use what a quantizer has: its scale, and where the
// percentile is. threshold: v, not read while collecting. ranks: of inputs that are shares of a
// batch.
void join_forward_train(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        const float* threshold, bool collect, HiddenState& state,
                        DeviceRanks* ranks, const Tile& out, void* out_data, Stream stream);
void join_forward_eval(Join join, const LayerShape& shape, std::span<const Input> inputs,
                       const float* threshold, HiddenState& state, const Tile& out, void* out_data,
                       Stream stream);
struct JoinGradient {
  float* dx = nullptr;  // [L][C_i][lane]; null: it is not wanted
  bool add = false;     // to what is there, the gradient from another reader
};
// dp: [L / pool][C][lane]. act_scale_gradient: a device double, null = 0. gradients: one for each
// input. threshold_gradient: of v.
void join_backward(Join join, const LayerShape& shape, std::span<const Input> inputs,
                   const float* threshold, HiddenState& state, const float* dp,
                   const double* act_scale_gradient, std::span<const JoinGradient> gradients,
                   float* threshold_gradient, DeviceRanks* ranks, Stream stream);
// to += from: gradients of a value that has several readers.
void add_gradient(const float* from, size_t count, float* to, Stream stream);

struct OutputParameters {
  const float* bias;            // [O]
  const float* gain = nullptr;  // [O]: see cpu::OutputParameters; null = none
};
// logits: [O][lane].
void output_forward(const Input& x, const Weights& weights, const OutputParameters& parameters,
                    float* logits, Stream stream);

struct OutputGradients {
  float* weight;      // [O][T][C], as Weights::backward_weight() leaves it
  float* bias;        // [O]
  double* bias_sums;  // [O], memory for the next
  double* scales;     // 2: of the weights' scale and of the input's, through the bias quantizer
};
// dlogits: multiplied by the gains, if there are any.
void output_backward(const Input& x, Weights& weights, const OutputParameters& parameters,
                     float* dlogits, const OutputGradients& gradients, float* dx, Stream stream);

struct LossResult {
  double loss_sum;
  unsigned correct;
  unsigned not_finite;  // 1: the Adam step of the batch made a value that is not finite
};
// What logits are compared with. labels: [N]; soft: the teacher's q, [N][classes], null = none.
struct Targets {
  const uint8_t* labels;
  const float* soft = nullptr;
  LossOptions loss = {};
};
// See LossOptions. logits: [classes][lane]; dlogits likewise, null = not wanted; predicted: [N],
// null = not wanted. partial: memory of loss_partials(frames) results; the first is the batch's.
size_t loss_partials(int64_t frames);
void softmax_cross_entropy(int64_t frames, int classes, const float* logits, const Targets& targets,
                           float* dlogits, uint8_t* predicted, LossResult* partial, Stream stream);

// What Adam's step number and options come to. On the device, so that a captured step serves all.
struct AdamFactors {
  float step_size, root_correction, beta1, beta2, rest1, rest2, epsilon;
};
AdamFactors adam_factors(const AdamOptions& options, int64_t step);
// mask: null = all. not_finite: becomes 1 when a value is not finite any more; may be null.
void adam_step(const AdamFactors* factors, size_t count, const float* grad, const uint8_t* mask,
               float* value, float* moment1, float* moment2, unsigned* not_finite, Stream stream);

}  // namespace fmp::cuda
