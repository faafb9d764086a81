// SPDX-License-Identifier: MIT
#include "framework/training/functions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
  return {frames, layer.out_length(), layer.out_channels, padding};
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

// Adds a gradient that one of its readers has for x. They run last to first, so that the sum has
// the same order in every run.
void add_gradient(const Variable& x, const Tensor& gradient, int threads) {
  if (!x->grad.defined()) {
    x->grad = gradient;
  } else {
    cpu::add_gradient(gradient.view(), x->grad.view(), threads);
  }
}

// Memory for the gradient that one reader has for x, if anybody wants it.
Tensor make_gradient(const Variable& x, ElementType type = ElementType::kF32) {
  if (!x->needs_grad) return {};
  return Tensor::tile(without_padding(x->value.tile_shape()), type);
}

TileView view_if_defined(Tensor& tensor) { return tensor.defined() ? tensor.view() : TileView{}; }

void take_threshold(Layer& layer, float of_batch, bool first_collected) {
  float& mean = layer.threshold.value.floats()[0];
  const float momentum = static_cast<float>(kThresholdMomentum);
  mean = first_collected ? of_batch : (1 - momentum) * mean + momentum * of_batch;
}

}  // namespace

Variable input_frames(const FrameBatch& batch, const Network& network,
                      const cpu::RunContext& context) {
  const NetworkConfig& config = network.config();
  const Layer& first = network.layers().front();
  // In the shape in which the first layer reads them, unless they must be copied into it.
  const int joined = config.length / first.form.stride;
  const bool fits =
      joined * first.form.stride == config.length && first.positions_read(joined) == joined;
  const TileShape shape = fits ? TileShape{batch.count, joined, first.in_channels, first.padding()}
                               : TileShape{batch.count, config.length, config.input_channels, 0};
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
                      const cpu::RunContext& context, LayerWorkspace* reader, bool has_one_reader) {
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
  const cpu::HiddenOperands operands{input_of(x), &workspace.weights, &workspace.state,
                                     input_of(y).tile};
  if (has_one_reader) {
    y->producer = operands;
    y->grad_type = workspace.gradients;
  }
  y->scale = workspace.state.act_scale;
  if (workspace.state.collected) take_threshold(layer, workspace.state.threshold, first_collected);

  // Keeps alive: the codes of x (operands of the weight gradient) and y's gradient.
  tape.record([x, y, operands, &layer, &workspace, context] {
    cpu::HiddenGradients gradients{layer.weight.grad.floats(), layer.gamma.grad.floats(),
                                   layer.beta.grad.floats()};
    const cpu::HiddenOperands* producer = x->producer ? &*x->producer : nullptr;
    const bool kept =
        producer == nullptr || !cpu::gradient_stays_in_cache(workspace.weights.shape(), *producer);
    Tensor dx = kept ? make_gradient(x, x->grad_type) : Tensor();
    cpu::hidden_backward(operands, hidden_parameters(layer), y->grad.view(), y->scale_grad,
                         gradients, view_if_defined(dx), producer, context);
    if (dx.defined()) add_gradient(x, dx, context.threads);
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

namespace {

std::vector<cpu::Input> inputs_of(std::span<const Variable> reads) {
  std::vector<cpu::Input> inputs;
  for (const Variable& x : reads) inputs.push_back(input_of(x));
  return inputs;
}

Variable joined(std::span<const Variable> reads, const Layer& layer, int out_padding) {
  return make_activation(
      hidden_output_shape(layer, reads[0]->value.tile_shape().frames, out_padding), layer.act_bits,
      layer.output_type());
}

}  // namespace

Variable join_layer(Tape& tape, std::span<const Variable> reads, Layer& layer,
                    LayerWorkspace& workspace, bool collect, bool first_collected, int out_padding,
                    const cpu::RunContext& context) {
  Variable y = joined(reads, layer, out_padding);
  cpu::JoinState& state = workspace.join;
  const float threshold = layer.threshold.value.floats()[0];
  cpu::join_forward_train(join_of(layer), layer, inputs_of(reads), threshold, collect, state,
                          y->value.view(), context);
  y->scale = state.act_scale;
  if (state.collected) take_threshold(layer, state.threshold, first_collected);

  tape.record([xs = std::vector<Variable>(reads.begin(), reads.end()), y, threshold, &state, &layer,
               context] {
    std::vector<cpu::JoinGradient> gradients;
    for (const Variable& x : xs) {
      const bool adds = x->grad.defined();
      if (!adds) x->grad = make_gradient(x);
      gradients.push_back({view_if_defined(x->grad), adds});
    }
    layer.threshold.grad.floats()[0] = static_cast<float>(
        cpu::join_backward(join_of(layer), layer, inputs_of(xs), threshold, state, y->grad.view(),
                           y->scale_grad, gradients, context));
    y->grad = {};
  });
  return y;
}

Variable join_layer(std::span<const Variable> reads, const Layer& layer, int out_padding,
                    const cpu::RunContext& context) {
  Variable y = joined(reads, layer, out_padding);
  y->scale = cpu::join_forward_eval(join_of(layer), layer, inputs_of(reads),
                                    layer.threshold.value.floats()[0], y->value.view(), context);
  return y;
}

namespace {

// The first positions of one tile to another, as many as both have, each with its own padding.
// Leaves the rest.
void copy_positions(const Tensor& from, Tensor& to, int threads) {
  const TileShape &source = from.tile_shape(), &target = to.tile_shape();
  const size_t row = static_cast<size_t>(source.row_elements()) * element_bytes(from.type());
  const auto tile_bytes = [&](const TileShape& shape) {
    return static_cast<size_t>(shape.length + 2 * shape.pad) * row;
  };
  const size_t bytes = static_cast<size_t>(std::min(source.length, target.length)) * row;
  cpu::parallel_for(source.tiles(), threads, [&](int64_t tile) {
    const auto t = static_cast<size_t>(tile);
    std::memcpy(
        to.data<std::byte>() + t * tile_bytes(target) + static_cast<size_t>(target.pad) * row,
        from.data<std::byte>() + t * tile_bytes(source) + static_cast<size_t>(source.pad) * row,
        bytes);
  });
}

}  // namespace

Variable fit_positions(const Variable& x, int length, int padding, int threads) {
  TileShape shape = x->value.tile_shape();
  shape.length = length;
  shape.pad = padding;
  Variable y = std::make_shared<Activation>(*x);
  y->producer.reset();
  y->value = Tensor::tile(shape, x->value.type());
  y->value.fill_zero();
  copy_positions(x->value, y->value, threads);
  return y;
}

Variable fit_positions(Tape& tape, const Variable& x, int length, int padding, int threads) {
  Variable y = fit_positions(x, length, padding, threads);
  if (!x->needs_grad) return y;
  tape.record([x, y, threads] {
    if (x->value.tile_shape().length == y->value.tile_shape().length) {
      add_gradient(x, y->grad, threads);
    } else {
      Tensor gradient = make_gradient(x, y->grad.type());
      gradient.fill_zero();
      copy_positions(y->grad, gradient, threads);
      add_gradient(x, gradient, threads);
    }
    x->scale_grad += y->scale_grad;
    y->grad = {};
  });
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
  if (!x->needs_grad) return y;
  tape.record([x, y] {
    // A gradient from another reader may be there, but none where nobody kept this one.
    if (y->grad.defined())
      add_gradient(x, y->grad.reshaped(without_padding(x->value.tile_shape())), 1);
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
    Tensor mine = make_gradient(x, y->grad.type());
    const int64_t skipped = first_tile * mine.tile_shape().tile_elements() *
                            static_cast<int64_t>(element_bytes(mine.type()));
    std::copy_n(y->grad.data<std::byte>() + skipped, mine.bytes(), mine.data<std::byte>());
    add_gradient(x, mine, 1);
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
    Tensor dx = make_gradient(x, x->grad_type);
    cpu::output_backward(input_of(x), workspace.weights, output_parameters(layer),
                         logits->grad.view(), gradients, view_if_defined(dx), context);
    if (dx.defined()) add_gradient(x, dx, context.threads);
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

// Weights of all layers, for a training step.
void compile_all(const std::vector<Layer>& layers, std::span<LayerWorkspace> workspaces,
                 int threads) {
  cpu::parallel_for(static_cast<int64_t>(layers.size()), threads, [&](int64_t i) {
    const auto layer = static_cast<size_t>(i);
    if (!layers[layer].has_weights()) return;
    compile(layers[layer], workspaces[layer], true);
    workspaces[layer].compiled = true;
  });
}

// What flows between the layers of a network: the value of each, from when it is written until its
// last reader had it, as each reader wants it.
class Values {
 public:
  // tape: null in evaluation.
  Values(Tape* tape, const Network& network, Variable frames, int threads)
      : tape_(tape),
        layers_(network.layers()),
        readers_(readers_of(layers_)),
        input_channels_(network.config().input_channels),
        threads_(threads) {
    frames_ = std::move(frames);
    values_.resize(layers_.size());
  }

  // Rows of zeros around what layer i writes: as many as its readers want.
  int padding(size_t i) const {
    int padding = 0;
    for (const int reader : readers_[i])
      padding = std::max(padding, layers_[static_cast<size_t>(reader)].input_padding());
    return padding;
  }
  bool has_one_reader(size_t i) const { return readers_[i].size() == 1; }
  // The hidden layer with weights that alone reads what layer i writes; -1: there is none.
  int only_reader(size_t i) const {
    const auto reader = static_cast<size_t>(readers_[i][0]);
    const LayerKind kind = layers_[reader].kind;
    const bool takes_sums = kind == LayerKind::kConv || kind == LayerKind::kDense;
    return has_one_reader(i) && takes_sums ? static_cast<int>(reader) : -1;
  }

  void put(size_t i, Variable value) { values_[i] = std::move(value); }

  // What layer i with weights reads, in the shape in which it reads it.
  Variable take(size_t i) {
    const Layer& layer = layers_[i];
    Variable x = value(layer.reads[0]);
    // Frames may be in the shape of the first layer.
    if (layer.in_channels % x->value.tile_shape().channels != 0) x = as_written(x);
    const TileShape& shape = x->value.tile_shape();
    const int factor = layer.in_channels / shape.channels;
    const int length = layer.positions_read((shape.length + factor - 1) / factor) * factor;
    if (shape.length != length || !has_padding(shape, layer, factor)) {
      const int padding = layer.input_padding();
      x = tape_ != nullptr ? fit_positions(*tape_, x, length, padding, threads_)
                           : fit_positions(x, length, padding, threads_);
    }
    if (factor != 1)
      x = tape_ != nullptr ? join_positions(*tape_, x, factor) : join_positions(x, factor);
    release(i);
    return x;
  }

  // What layer i without weights reads.
  std::vector<Variable> take_all(size_t i) {
    std::vector<Variable> reads;
    for (const int read : layers_[i].reads)
      reads.push_back(read == kReadsFrames ? as_written(frames_) : value(read));
    release(i);
    return reads;
  }

  // All that layers from i on read, of the whole batch.
  void gather_before(size_t i, const BatchShare& share) {
    const auto is_read = [&](int value) {
      return std::any_of(layers_.begin() + static_cast<ptrdiff_t>(i), layers_.end(),
                         [&](const Layer& layer) {
                           return std::ranges::find(layer.reads, value) != layer.reads.end();
                         });
    };
    if (is_read(kReadsFrames)) frames_ = gather(*tape_, frames_, share);
    for (size_t v = 0; v < i; ++v) {
      if (is_read(static_cast<int>(v))) values_[v] = gather(*tape_, values_[v], share);
    }
  }

 private:
  Variable value(int read) const {
    return read == kReadsFrames ? frames_ : values_[static_cast<size_t>(read)];
  }
  // Samples of frames as positions, whatever the first layer joins.
  Variable as_written(const Variable& x) const {
    TileShape shape = x->value.tile_shape();
    const int factor = shape.channels / input_channels_;
    shape.channels /= factor;
    shape.length *= factor;
    shape.pad *= factor;
    Variable y = std::make_shared<Activation>(*x);
    y->value = x->value.reshaped(shape);
    return y;
  }
  // Kernels need the padding of their taps at least, and a tile's rows are joined with all of it.
  static bool has_padding(const TileShape& shape, const Layer& layer, int factor) {
    if (!layer.has_positions()) return shape.pad == 0;
    return shape.pad % factor == 0 && shape.pad / factor >= layer.padding();
  }
  // Nobody reads any more what layer i read last.
  void release(size_t i) {
    for (const int read : layers_[i].reads) {
      if (read == kReadsFrames) continue;
      const auto value = static_cast<size_t>(read);
      if (readers_[value].back() == static_cast<int>(i)) values_[value].reset();
    }
  }

  Tape* tape_;
  const std::vector<Layer>& layers_;
  std::vector<std::vector<int>> readers_;
  Variable frames_;
  std::vector<Variable> values_;
  int input_channels_;
  int threads_;
};

}  // namespace

Variable forward(Tape& tape, Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, int64_t threshold_statistic_steps,
                 const cpu::RunContext& of_share) {
  std::vector<Layer>& layers = network.layers();
  cpu::RunContext context = of_share;
  const bool collect = network.collects_thresholds(threshold_statistic_steps);
  const bool first_collected = network.steps == 0;
  Values values(&tape, network, input_frames(batch, network, context), context.threads);
  compile_all(layers, workspaces, context.threads);
  const size_t hidden = layers.size() - 1;
  for (size_t i = 0; i < hidden; ++i) {
    if (context.share != nullptr && !layers[i].has_positions())
      values.gather_before(i, *std::exchange(context.share, nullptr));
    if (!layers[i].has_weights()) {
      values.put(i, join_layer(tape, values.take_all(i), layers[i], workspaces[i],
                               collect && layers[i].collects, first_collected, values.padding(i),
                               context));
      continue;
    }
    const int reader = values.only_reader(i);
    values.put(
        i, hidden_layer(tape, values.take(i), layers[i], workspaces[i],
                        collect && layers[i].collects, first_collected, values.padding(i), context,
                        reader < 0 ? nullptr : &workspaces[static_cast<size_t>(reader)],
                        values.has_one_reader(i)));
  }
  if (context.share != nullptr)
    values.gather_before(hidden, *std::exchange(context.share, nullptr));
  return output_layer(tape, values.take(hidden), layers[hidden], workspaces[hidden], context);
}

Variable forward(const Network& network, std::span<LayerWorkspace> workspaces,
                 const FrameBatch& batch, const cpu::RunContext& context) {
  const std::vector<Layer>& layers = network.layers();
  Values values(nullptr, network, input_frames(batch, network, context), context.threads);
  const size_t hidden = layers.size() - 1;
  for (size_t i = 0; i < hidden; ++i) {
    values.put(
        i, layers[i].has_weights()
               ? hidden_layer(values.take(i), layers[i], workspaces[i], values.padding(i), context)
               : join_layer(values.take_all(i), layers[i], values.padding(i), context));
  }
  return output_layer(values.take(hidden), layers[hidden], workspaces[hidden], context);
}

}  // namespace fmp
