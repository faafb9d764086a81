// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "framework/data/dataset.h"
#include "framework/network/network.h"
#include "framework/training/autograd.h"
#include "kernels/cpu/ops.h"

namespace fmp {

// What a layer keeps between steps beside its parameters: its plan, its compiled weights and the
// memory of its forward pass.
struct LayerWorkspace {
  PassPlan plan;
  bool compiled = false;  // for the step that is about to come
  cpu::Weights weights;
  cpu::HiddenState state;
  ElementType gradients = ElementType::kF32;  // of the layer's output: that, or kBF16
  cpu::JoinState join;                        // of a layer without weights, instead of all this
};

// The frames of a batch as the first layer reads them.
Variable input_frames(const FrameBatch& batch, const Network& network,
                      const cpu::RunContext& context);

// Convolution or dense layer, batch-norm, QuantReLU and pooling, in training mode: batch
// statistics, running statistics updated; while `collect`, the threshold follows the batches'
// percentiles. out_padding: of the layer that reads the result. reader: null, or the workspace of
// that layer, if it is a hidden one and compiled: its sums are taken on the way. has_one_reader:
// whether that reader's gradient is all that the result gets, so that it may take sums of it. layer
// and workspace must outlive the tape.
Variable hidden_layer(Tape& tape, const Variable& x, Layer& layer, LayerWorkspace& workspace,
                      bool collect, bool first_collected, int out_padding,
                      const cpu::RunContext& context, LayerWorkspace* reader = nullptr,
                      bool has_one_reader = true);
// The same in evaluation mode.
Variable hidden_layer(const Variable& x, const Layer& layer, LayerWorkspace& workspace,
                      int out_padding, const cpu::RunContext& context);

// A layer without weights: the real value that its operation makes of what it reads, quantized with
// a threshold of its own, and a maximum. Training: as above.
Variable join_layer(Tape& tape, std::span<const Variable> reads, Layer& layer,
                    LayerWorkspace& workspace, bool collect, bool first_collected, int out_padding,
                    const cpu::RunContext& context);
Variable join_layer(std::span<const Variable> reads, const Layer& layer, int out_padding,
                    const cpu::RunContext& context);

// The first `length` positions, zeros where there are fewer, with other rows of zeros around them:
// where readers of one value want different ones, or not as many positions as it has.
Variable fit_positions(Tape& tape, const Variable& x, int length, int padding, int threads);
Variable fit_positions(const Variable& x, int length, int padding, int threads);

// The activations of a whole batch, from those of the ranks that share it.
Variable gather(Tape& tape, const Variable& x, const BatchShare& share);

// [length][channels] seen as length / factor positions of factor * channels channels: what a stride
// reads and, with factor = length, what flattening does. The rows of padding are counted likewise.
Variable join_positions(Tape& tape, const Variable& x, int factor);
Variable join_positions(const Variable& x, int factor);

// Dense layer with bias; the result is float logits.
Variable output_layer(Tape& tape, const Variable& x, Layer& layer, LayerWorkspace& workspace,
                      const cpu::RunContext& context);
Variable output_layer(const Variable& x, const Layer& layer, LayerWorkspace& workspace,
                      const cpu::RunContext& context);

// Mean softmax cross-entropy of the batch; starts the backward pass from its gradient 1.
cpu::LossResult cross_entropy(Tape& tape, const Variable& logits, const cpu::Targets& targets);

// The whole network. Training: returns the logits with everything recorded on the tape. If ranks
// share the batch (see RunContext), its layers with positions are computed by shares, and the few
// operations of the layers behind them by every rank for the whole batch, whose logits are
// returned.
Variable forward(Tape& tape, Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, int64_t threshold_statistic_steps,
                 const cpu::RunContext& context);
Variable forward(const Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, const cpu::RunContext& context);

}  // namespace fmp
