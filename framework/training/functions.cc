// SPDX-License-Identifier: MIT
#include "framework/training/functions.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "framework/error.h"
#include "kernels/communicator.h"
#include "kernels/cpu/parallel.h"

namespace fmp {
namespace {

Variable make_activation(const TileShape& shape, int bits, ElementType type) {
  auto result = std::make_shared<Activation>();
  result->bits = bits;
  result->value = Tensor::tile(shape, type);
  return result;
}

TileShape without_padding(TileShape shape) {
  shape.pad = 0;
  return shape;
}

cpu::HiddenParameters hidden_parameters(const Layer& layer) {
  const bool quantized = layer.act_bits != kFloatBits;
  return {layer.gamma.value.floats(), layer.beta.value.floats(),
          quantized ? layer.threshold.value.floats()[0] : 1.0F};
}

TileShape hidden_output_shape(const Layer& layer, int64_t frames, int padding) {
  return {frames, layer.length / layer.pool, layer.out_channels, padding};
}

void compile(const Layer& layer, LayerWorkspace& workspace, bool backward) {
  workspace.weights.compile(layer, layer.weight.value.floats(), layer.weight.mask, workspace.plan,
                            backward);
}

cpu::Input input_of(const Variable& x) { return {x->value.view(), x->scale}; }

cpu::OutputParameters output_parameters(const Layer& layer) {
  return {layer.bias.value.floats(), gain_of(layer)};
}

Variable logits_of(const Variable& x, const Layer& layer, const LayerWorkspace& workspace,
                   const cpu::RunContext& context) {
  Variable logits = make_activation({x->value.tile_shape().frames, 1, layer.out_channels, 0},
                                    kFloatBits, ElementType::kF32);
  cpu::output_forward(input_of(x), workspace.weights, output_parameters(layer),
                      logits->value.view(), context);
  return logits;
}

// Memory for the gradient of x, if anybody wants it.
TileView gradient_of(const Variable& x) {
  if (!x->needs_grad) return {};
  x->grad = Tensor::tile(without_padding(x->value.tile_shape()), ElementType::kF32);
  return x->grad.view();
}

}  // namespace

Variable input_frames(const FrameBatch& batch, const Network& network,
                      const cpu::RunContext& context) {
  const NetworkConfig& config = network.config();
  const Layer& first = network.layers().front();
  const TileShape shape{batch.count, first.length, first.in_channels, first.padding()};
  const bool are_codes = config.input_bits != kFloatBits;
  Variable x =
      make_activation(shape, config.input_bits, are_codes ? ElementType::kS8 : ElementType::kF32);
  x->needs_grad = false;
  if (!are_codes) {
    cpu::pack_frames(std::span<const float>(batch.values), x->value.view(), context.threads);
  } else {
    x->scale = config.input_quantizer().scale;
    cpu::pack_frames(std::span<const int8_t>(batch.codes), x->value.view(), context.threads);
  }
  return x;
}

Variable hidden_layer(Tape& tape, const Variable& x, Layer& layer, LayerWorkspace& workspace,
                      bool collect, bool first_collected, int out_padding,
                      const cpu::RunContext& context, LayerWorkspace* reader) {
  if (!std::exchange(workspace.compiled, false)) compile(layer, workspace, true);
  Variable y =
      make_activation(hidden_output_shape(layer, x->value.tile_shape().frames, out_padding),
                      layer.act_bits, layer.output_type());
  cpu::HiddenOperands reading;
  if (reader != nullptr) reading = {input_of(y), &reader->weights, &reader->state};
  workspace.state.first_layer = !x->needs_grad;
  cpu::hidden_forward_train(input_of(x), workspace.weights, hidden_parameters(layer), collect,
                            {layer.running_mean.floats(), layer.running_var.floats()},
                            workspace.state, y->value.view(),
                            reader != nullptr ? &reading : nullptr, context);
  y->producer = {input_of(x), &workspace.weights, &workspace.state, input_of(y).tile};
  y->scale = workspace.state.act_scale;
  if (workspace.state.collected) {
    float& mean = layer.threshold.value.floats()[0];
    const float momentum = static_cast<float>(kThresholdMomentum);
    mean = first_collected ? workspace.state.threshold
                           : (1 - momentum) * mean + momentum * workspace.state.threshold;
  }

  // Keeps alive: the codes of x (operands of the weight gradient) and y's gradient.
  tape.record([x, y, &layer, &workspace, context] {
    cpu::HiddenGradients gradients{layer.weight.grad.floats(), layer.gamma.grad.floats(),
                                   layer.beta.grad.floats()};
    const cpu::HiddenOperands* producer = x->producer ? &*x->producer : nullptr;
    const bool kept =
        producer == nullptr || !cpu::gradient_stays_in_cache(workspace.weights.shape(), *producer);
    cpu::hidden_backward(*y->producer, hidden_parameters(layer), y->grad.view(), y->scale_grad,
                         gradients, kept ? gradient_of(x) : TileView{}, producer, context);
    workspace.weights.backward(layer.weight.value.floats(), 0.0, layer.weight.grad.floats());
    if (layer.act_bits != kFloatBits) {
      layer.threshold.grad.floats()[0] = static_cast<float>(gradients.threshold);
    }
    y->grad = {};
  });
  return y;
}

Variable hidden_layer(const Variable& x, const Layer& layer, LayerWorkspace& workspace,
                      int out_padding, const cpu::RunContext& context) {
  compile(layer, workspace, false);
  Variable y =
      make_activation(hidden_output_shape(layer, x->value.tile_shape().frames, out_padding),
                      layer.act_bits, layer.output_type());
  y->scale = cpu::hidden_forward_eval(input_of(x), workspace.weights, hidden_parameters(layer),
                                      layer.running_mean.floats(), layer.running_var.floats(),
                                      y->value.view(), context);
  return y;
}

Variable join_positions(const Variable& x, int factor) {
  TileShape shape = x->value.tile_shape();
  if (shape.length % factor != 0 || shape.pad % factor != 0) {
    fail("{} positions with {} of padding cannot be joined by {}", shape.length, shape.pad, factor);
  }
  shape.channels *= factor;
  shape.length /= factor;
  shape.pad /= factor;
  Variable y = std::make_shared<Activation>(*x);
  y->value = x->value.reshaped(shape);
  return y;
}

Variable join_positions(Tape& tape, const Variable& x, int factor) {
  Variable y = join_positions(x, factor);
  tape.record([x, y] {
    x->grad = y->grad.reshaped(without_padding(x->value.tile_shape()));
    x->scale_grad += y->scale_grad;
    y->grad = {};
  });
  return y;
}

Variable gather(Tape& tape, const Variable& x, const BatchShare& share) {
  TileShape shape = x->value.tile_shape();
  shape.frames = share.batch_frames;
  Variable y = std::make_shared<Activation>(*x);
  y->producer.reset();
  y->value = Tensor::tile(shape, x->value.type());
  const int64_t tile_bytes =
      shape.tile_elements() * static_cast<int64_t>(element_bytes(x->value.type()));
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < share.ranks->ranks(); ++rank) {
    const int64_t frames = BatchShare::of(share.batch_frames, rank, *share.ranks).frames;
    sizes.push_back(share.tiles_of(frames) * tile_bytes);
  }
  share.ranks->gather({x->value.data<std::byte>(), x->value.bytes()}, sizes,
                      {y->value.data<std::byte>(), y->value.bytes()});
  if (!x->needs_grad) return y;
  tape.record([x, y, first_tile = share.first_tile] {
    x->grad = Tensor::tile(without_padding(x->value.tile_shape()), ElementType::kF32);
    const int64_t skipped = first_tile * x->grad.tile_shape().tile_elements();
    std::copy_n(y->grad.data<float>() + skipped, x->grad.size(), x->grad.data<float>());
    x->scale_grad += y->scale_grad;
    y->grad = {};
  });
  return y;
}

Variable output_layer(const Variable& x, const Layer& layer, LayerWorkspace& workspace,
                      const cpu::RunContext& context) {
  compile(layer, workspace, false);
  return logits_of(x, layer, workspace, context);
}

Variable output_layer(Tape& tape, const Variable& x, Layer& layer, LayerWorkspace& workspace,
                      const cpu::RunContext& context) {
  if (!std::exchange(workspace.compiled, false)) compile(layer, workspace, true);
  Variable logits = logits_of(x, layer, workspace, context);
  // Keeps alive: the codes of x and the logits' gradient.
  tape.record([x, logits, &layer, &workspace, context] {
    cpu::OutputGradients gradients{layer.weight.grad.floats(), layer.bias.grad.floats()};
    cpu::output_backward(input_of(x), workspace.weights, output_parameters(layer),
                         logits->grad.view(), gradients, gradient_of(x), context);
    workspace.weights.backward(layer.weight.value.floats(), gradients.weight_scale,
                               layer.weight.grad.floats());
    x->scale_grad += gradients.x_scale;
    logits->grad = {};
  });
  return logits;
}

cpu::LossResult cross_entropy(Tape& tape, const Variable& logits, const cpu::Targets& targets) {
  Tensor gradient = Tensor::tile(logits->value.tile_shape(), ElementType::kF32);
  gradient.fill_zero();
  const cpu::LossResult result =
      cpu::softmax_cross_entropy(logits->value.view(), targets, gradient.view(), {});
  tape.record([logits, gradient] { logits->grad = gradient; });
  return result;
}

namespace {

// Padding that the reader of layer i's output wants.
int padding_after(const Network& network, size_t i) {
  return network.layers()[i + 1].input_padding();
}
// Weights of all layers, for a training step.
void compile_all(const std::vector<Layer>& layers, std::span<LayerWorkspace> workspaces,
                 int threads) {
  cpu::parallel_for(static_cast<int64_t>(layers.size()), threads, [&](int64_t i) {
    const auto layer = static_cast<size_t>(i);
    compile(layers[layer], workspaces[layer], true);
    workspaces[layer].compiled = true;
  });
}
// How many positions of x the layer reads as one.
int positions_joined(const Layer& layer, const Variable& x) {
  return layer.in_channels / x->value.tile_shape().channels;
}

}  // namespace

Variable forward(Tape& tape, Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, int64_t threshold_statistic_steps,
                 const cpu::RunContext& of_share) {
  require_chain(network.config(), "training");
  std::vector<Layer>& layers = network.layers();
  cpu::RunContext context = of_share;
  const bool collect = network.collects_thresholds(threshold_statistic_steps);
  Variable x = input_frames(batch, network, context);
  compile_all(layers, workspaces, context.threads);
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    if (context.share != nullptr && !layers[i].has_positions())
      x = gather(tape, x, *std::exchange(context.share, nullptr));
    if (const int n = positions_joined(layers[i], x); n != 1) x = join_positions(tape, x, n);
    LayerWorkspace* reader = i + 2 < layers.size() ? &workspaces[i + 1] : nullptr;
    x = hidden_layer(tape, x, layers[i], workspaces[i], collect, network.steps == 0,
                     padding_after(network, i), context, reader);
  }
  if (context.share != nullptr) x = gather(tape, x, *std::exchange(context.share, nullptr));
  if (const int n = positions_joined(layers.back(), x); n != 1) x = join_positions(tape, x, n);
  return output_layer(tape, x, layers.back(), workspaces[layers.size() - 1], context);
}

Variable forward(const Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, const cpu::RunContext& context) {
  require_chain(network.config(), "evaluation");
  const std::vector<Layer>& layers = network.layers();
  Variable x = input_frames(batch, network, context);
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    if (const int n = positions_joined(layers[i], x); n != 1) x = join_positions(x, n);
    x = hidden_layer(x, layers[i], workspaces[i], padding_after(network, i), context);
  }
  if (const int n = positions_joined(layers.back(), x); n != 1) x = join_positions(x, n);
  return output_layer(x, layers.back(), workspaces[layers.size() - 1], context);
}

}  // namespace fmp
