// SPDX-License-Identifier: MIT
#include "framework/training/cuda/device_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "framework/data/dataset.h"
#include "framework/error.h"
#include "framework/training/plan.h"
#include "kernels/cuda/runtime.h"

namespace fmp {
namespace {

using cuda::DeviceBuffer;
using cuda::Stream;

// Parameters begin on the boundaries that cudaMalloc gives.
constexpr size_t kAlignedFloats = 64;

size_t room_for(const Parameter& parameter) {
  return static_cast<size_t>(cuda::round_up(parameter.size(), kAlignedFloats));
}

// Copies one tensor of each parameter between the host's layout and the block's.
std::vector<float> gathered(const Network& network, size_t size, Tensor Parameter::*tensor) {
  std::vector<float> block;
  block.reserve(size);
  for (const Layer& layer : network.layers()) {
    for (const Parameter* p : layer.parameters()) {
      const std::span<const float> values = (p->*tensor).floats();
      block.insert(block.end(), values.begin(), values.end());
      block.resize(block.size() + room_for(*p) - values.size());
    }
  }
  return block;
}

void scatter(const DeviceBuffer<float>& block, Network& network, Tensor Parameter::*tensor,
             Stream stream) {
  const std::vector<float> values = block.to_host(stream);
  auto from = values.begin();
  for (Layer& layer : network.layers()) {
    for (Parameter* p : layer.parameters()) {
      std::copy_n(from, p->size(), (p->*tensor).floats().begin());
      from += static_cast<ptrdiff_t>(room_for(*p));
    }
  }
}

// How a layer with weights reads a value of `positions`: so many of them, rows of zeros behind the
// last one included, with rows of zeros as its taps want them; and how many of these its stride
// joins. A layer of one position reads rows as taps (conv_shape()).
struct Reading {
  int length, pad = 0, factor = 1;

  Reading(const Layer& layer, int positions) : length(positions) {
    if (layer.kind != LayerKind::kConv) return;
    const int stride = layer.form.stride;
    length = layer.positions_read((positions + stride - 1) / stride) * stride;
    if (!layer.has_positions()) return;
    pad = layer.input_padding();
    factor = stride;
  }
  // The same of positions that are joined already.
  Reading of_joined() const {
    Reading joined = *this;
    joined.length /= factor;
    joined.pad /= factor;
    joined.factor = 1;
    return joined;
  }
  // Rows of zeros that a value needs at each end.
  int padding_of_value(int positions) const { return std::max(pad, pad + length - positions); }
};

// How many samples of a frame a layer reads as one position: frames lie in memory as such layers
// read them. Where a stride does not divide the samples, they are joined as what layers write is.
int joined_samples(const Layer& layer, int samples) {
  if (!layer.has_weights() || !layer.has_positions()) return 1;
  return samples % layer.form.stride == 0 ? layer.form.stride : 1;
}
Reading reading_of_frames(const Layer& layer, int samples) {
  const Reading reading(layer, samples);
  return joined_samples(layer, samples) == 1 ? reading : reading.of_joined();
}

size_t gradient_elements(const cuda::Tile& tile) {
  return static_cast<size_t>(tile.length) * static_cast<size_t>(tile.channels) *
         static_cast<size_t>(tile.lanes());
}

}  // namespace

ParameterBlock::ParameterBlock(const Network& network, bool training, Stream stream) {
  size_t size = 0;
  std::vector<uint8_t> mask;
  for (const Layer& layer : network.layers()) {
    for (const Parameter* p : layer.parameters()) {
      begin_.emplace(p, size);
      size += room_for(*p);
      if (p->mask.empty()) {
        mask.resize(mask.size() + static_cast<size_t>(p->size()), 1);
      } else {
        mask.insert(mask.end(), p->mask.begin(), p->mask.end());
      }
      mask.resize(size, 0);
    }
  }
  const std::vector<float> values = gathered(network, size, &Parameter::value);
  value_ = DeviceBuffer<float>(values, stream);
  if (training) {
    const std::vector<float> moment1 = gathered(network, size, &Parameter::moment1);
    const std::vector<float> moment2 = gathered(network, size, &Parameter::moment2);
    moment1_ = DeviceBuffer<float>(moment1, stream);
    moment2_ = DeviceBuffer<float>(moment2, stream);
    mask_ = DeviceBuffer<uint8_t>(mask, stream);
    grad_ = DeviceBuffer<float>(size);
    cuda::set_bytes(grad_.data(), 0, size * sizeof(float), stream);
    cuda::synchronize(stream);  // the moments and the mask on the host end here
  }
  cuda::synchronize(stream);
}

float* ParameterBlock::value(const Parameter& parameter) const {
  return value_.data() + begin_.at(&parameter);
}
float* ParameterBlock::grad(const Parameter& parameter) const {
  return grad_.data() + begin_.at(&parameter);
}

void ParameterBlock::adam(const cuda::AdamFactors* factors, unsigned* not_finite,
                          Stream stream) const {
  cuda::adam_step(factors, value_.size(), grad_.data(), mask_.data(), value_.data(),
                  moment1_.data(), moment2_.data(), not_finite, stream);
}

void ParameterBlock::store(Network& network, Stream stream) const {
  scatter(value_, network, &Parameter::value, stream);
  scatter(grad_, network, &Parameter::grad, stream);
  scatter(moment1_, network, &Parameter::moment1, stream);
  scatter(moment2_, network, &Parameter::moment2, stream);
}

// A layer with the memory of its passes, and what its work is called on a timeline.
struct DeviceNetwork::DeviceLayer {
  // samples: see joined_samples().
  DeviceLayer(const Layer& layer, const cuda::Tile& value_read, const Reading& how, int samples,
              int output_pad, const LayerPlan& layer_plan, const ParameterBlock& parameters,
              bool training, cuda::Libraries& libraries, cuda::DeviceRanks* ranks)
      : hidden(layer.kind != Layer::Kind::kOutput),
        quantized(layer.act_bits != kFloatBits),
        has_weights(layer.has_weights()),
        collects(layer.collects),
        join(join_of(layer)),
        reads(layer.reads),
        reading(how),
        joined_samples(samples),
        shape(layer),
        conv(has_weights ? cuda::conv_shape(shape, as_read(value_read, how)) : cuda::ConvShape{}),
        plan(layer_plan),
        out{0, layer.length / layer.pool, layer.out_channels, output_pad},
        forward_name(fmt::format("{} forward {}", layer.name, kernel_name(plan.forward))),
        backward_name(fmt::format("{} backward data {} weight {}", layer.name,
                                  kernel_name(plan.backward_data),
                                  kernel_name(plan.backward_weight))) {
    if (!has_weights) {
      forward_name = layer.name + " forward";
      backward_name = layer.name + " backward";
      threshold = parameters.value(layer.threshold);
      if (training) gradients.threshold = parameters.grad(layer.threshold);
      return;
    }
    const Stream stream = libraries.stream();
    weight = parameters.value(layer.weight);
    weights.use_libraries(&libraries);
    if (layer.has_positions()) weights.use_ranks(ranks);
    weights.set_mask(conv, layer.weight.mask, stream);
    if (hidden) {
      values = {parameters.value(layer.gamma), parameters.value(layer.beta),
                quantized ? parameters.value(layer.threshold) : nullptr};
      threshold = quantized ? parameters.value(layer.threshold) : nullptr;
      mean = DeviceBuffer<float>(layer.running_mean.floats(), stream);
      var = DeviceBuffer<float>(layer.running_var.floats(), stream);
    } else {
      output_values.bias = parameters.value(layer.bias);
      if (layer.gain.defined()) {
        gain = DeviceBuffer<float>(layer.gain.floats(), stream);
        output_values.gain = gain.data();
      }
    }
    if (!training) return;
    if (hidden) {
      gradients = {parameters.grad(layer.weight), parameters.grad(layer.gamma),
                   parameters.grad(layer.beta),
                   quantized ? parameters.grad(layer.threshold) : nullptr};
    } else {
      bias_sums = DeviceBuffer<double>(static_cast<size_t>(layer.out_channels));
      scales = DeviceBuffer<double>(2);
      output_gradients = {parameters.grad(layer.weight), parameters.grad(layer.bias),
                          bias_sums.data(), scales.data()};
    }
  }

  static cuda::Tile as_read(cuda::Tile tile, const Reading& how) {
    tile.length = how.length;
    tile.pad = how.pad;
    return cuda::joined_positions(tile, how.factor);
  }

  // Where this layer's output goes.
  void* make_output(const cuda::Tile& in) {
    out.frames = in.frames;
    out.batch_frames = in.batch_frames;
    out.first_frame = in.first_frame;
    // The scale has no address before the first pass.
    void* const data = quantized ? static_cast<void*>(codes_out.reserve(out.code_bytes()))
                                 : static_cast<void*>(values_out.reserve(out.floats()));
    value = {out, quantized ? shape.output_type() : ElementType::kF32, data, nullptr};
    return data;
  }

  bool hidden, quantized, has_weights, collects;
  Join join;  // if it has no weights
  std::vector<int> reads;
  Reading reading;
  int joined_samples;
  LayerShape shape;
  cuda::ConvShape conv;
  PassPlan plan;
  cuda::Tile out;
  std::string forward_name, backward_name;
  float* weight = nullptr;
  float* threshold = nullptr;
  cuda::OutputParameters output_values{};
  cuda::HiddenParameters values{};
  cuda::HiddenGradients gradients{};
  cuda::OutputGradients output_gradients{};
  cuda::Weights weights;
  cuda::HiddenState state;
  DeviceBuffer<float> mean, var, gain, values_out;
  DeviceBuffer<uint8_t> codes_out, joined;
  DeviceBuffer<double> bias_sums, scales;
  DeviceBuffer<uint32_t> of_batch;     // its output, of all ranks
  DeviceBuffer<float> share_gradient;  // the way back
  size_t gradient_memory = 0;          // which of DeviceNetwork's
  // Of the step that runs.
  std::vector<cuda::Input> xs;
  cuda::Input value;          // what it wrote, or all ranks did
  float* gradient = nullptr;  // of that; null: no reader has given any
};

DeviceNetwork::DeviceNetwork(const Network& network, std::span<const LayerPlan> plan, Use use,
                             cuda::Libraries& libraries, cuda::DeviceRanks* ranks)
    : config_(network.config()),
      stream_(libraries.stream()),
      ranks_(ranks),
      parameters_(network, use == Use::kTraining, stream_),
      factors_(1) {
  const float scale = config_.input_quantizer().scale;
  input_scale_ = DeviceBuffer<float>(std::span(&scale, 1), stream_);
  const std::vector<Layer>& layers = network.layers();
  for (const Layer& layer : layers) {
    if (std::ranges::find(layer.reads, kReadsFrames) == layer.reads.end()) continue;
    const int samples = joined_samples(layer, config_.length);
    cuda::Tile& tile = frames_[samples].tile;
    tile.length = config_.length / samples;
    tile.channels = config_.input_channels * samples;
    const Reading reading = reading_of_frames(layer, config_.length);
    tile.pad = std::max(tile.pad, reading.padding_of_value(tile.length));
  }
  const std::vector<std::vector<int>> readers = readers_of(layers);
  for (size_t i = 0; i < layers.size(); ++i) {
    int output_pad = 0;
    for (const int reader : readers[i]) {
      const int positions = layers[i].out_length();
      const Reading reading(layers[static_cast<size_t>(reader)], positions);
      output_pad = std::max(output_pad, reading.padding_of_value(positions));
    }
    const int read = layers[i].reads[0];
    const bool reads_frames = read == kReadsFrames;
    const int samples = joined_samples(layers[i], config_.length);
    const cuda::Tile& tile =
        reads_frames ? frames_.at(samples).tile : layers_[static_cast<size_t>(read)]->out;
    const Reading reading = reads_frames ? reading_of_frames(layers[i], config_.length)
                                         : Reading(layers[i], tile.length);
    const bool integers = reads_frames ? config_.input_bits != kFloatBits
                                       : layers_[static_cast<size_t>(read)]->quantized;
    layers_.push_back(std::make_unique<DeviceLayer>(layers[i], tile, reading, samples, output_pad,
                                                    plan_of(plan, layers[i]), parameters_,
                                                    use == Use::kTraining, libraries, ranks));
    DeviceLayer& layer = *layers_.back();
    if (!layer.has_weights) continue;
    layer.weights.prepare(layer.shape, layer.conv, layer.weight, integers, layer.plan,
                          use == Use::kTraining, stream_);
    weights_.push_back(&layer.weights);
  }
  while (layers[behind_shares_].has_positions()) ++behind_shares_;  // the output layer has none
  for (size_t i = behind_shares_; i < layers.size(); ++i) {
    for (const int read : layers[i].reads) {
      std::vector<int>& list = read == kReadsFrames ? gathered_frames_ : gathered_;
      const int item = read == kReadsFrames ? joined_samples(layers[i], config_.length) : read;
      if (read >= static_cast<int>(behind_shares_)) continue;
      if (std::ranges::find(list, item) == list.end()) list.push_back(item);
    }
  }
  if (use == Use::kTraining) plan_gradients();
  compile();
  for (const cuda::Weights* weights : weights_) weights->summary(stream_);  // throws if not finite
  cuda::synchronize(stream_);
}

DeviceNetwork::~DeviceNetwork() = default;

// Memory of a gradient is used again as soon as the layer that wrote the value has had it.
void DeviceNetwork::plan_gradients() {
  std::vector<size_t> idle;
  std::vector<bool> has_memory(layers_.size(), false);
  size_t count = 0;
  for (size_t i = layers_.size(); i-- > 0;) {
    for (const int read : layers_[i]->reads) {
      if (read == kReadsFrames || has_memory[static_cast<size_t>(read)]) continue;
      has_memory[static_cast<size_t>(read)] = true;
      if (idle.empty()) idle.push_back(count++);
      layers_[static_cast<size_t>(read)]->gradient_memory = idle.back();
      idle.pop_back();
    }
    if (has_memory[i]) idle.push_back(layers_[i]->gradient_memory);
  }
  gradients_.resize(count);
}

void DeviceNetwork::put_frames() {
  const bool are_codes = config_.input_bits != kFloatBits;
  for (auto& [samples, frames] : frames_) {
    frames.value = {frames.tile, are_codes ? ElementType::kS8 : ElementType::kF32,
                    frames.data.data(), are_codes ? input_scale_.data() : nullptr};
  }
  for (const auto& layer : layers_) layer->gradient = nullptr;
}

const cuda::Input& DeviceNetwork::value(const DeviceLayer& reader, int read) const {
  return read == kReadsFrames ? frames_.at(reader.joined_samples).value
                              : layers_[static_cast<size_t>(read)]->value;
}

cuda::Input DeviceNetwork::read(DeviceLayer& layer) {
  const Reading& how = layer.reading;
  const cuda::Input x = cuda::positions_of(value(layer, layer.reads[0]), how.length, how.pad);
  return cuda::join_positions(x, how.factor, layer.joined, stream_);
}

cuda::Input DeviceNetwork::whole(const cuda::Input& share, DeviceBuffer<uint32_t>& memory) {
  cuda::Input all = share;
  all.tile.frames = share.tile.batch_frames;
  all.tile.batch_frames = all.tile.first_frame = 0;
  const int columns = share.type == ElementType::kF32 ? share.tile.channels : share.tile.quads();
  const size_t rows = static_cast<size_t>(share.tile.rows()) * static_cast<size_t>(columns);
  const size_t words = rows * static_cast<size_t>(all.tile.lanes());
  uint32_t* const parts = parts_.reserve(words);
  cuda::copy_on_device(parts + rows * static_cast<size_t>(share.tile.first_frame), share.data,
                       rows * static_cast<size_t>(share.tile.lanes()) * sizeof(uint32_t), stream_);
  ranks_->gather_lanes(parts, rows, all.tile.frames, stream_);
  cuda::join_lanes(parts, {all.tile.frames, ranks_->ranks()}, rows, memory.reserve(words), stream_);
  all.data = memory.data();
  return all;
}

void DeviceNetwork::gather() {
  for (const int samples : gathered_frames_) {
    Frames& frames = frames_.at(samples);
    frames.value = whole(frames.value, frames.of_batch);
  }
  for (const int i : gathered_) {
    DeviceLayer& layer = *layers_[static_cast<size_t>(i)];
    layer.value = whole(layer.value, layer.of_batch);
  }
}

void DeviceNetwork::share_gradients() {
  for (const int i : gathered_) {
    DeviceLayer& layer = *layers_[static_cast<size_t>(i)];
    const size_t rows =
        static_cast<size_t>(layer.out.length) * static_cast<size_t>(layer.out.channels);
    float* const part = layer.share_gradient.reserve(gradient_elements(layer.out));
    cuda::take_lanes(layer.gradient, rows, layer.value.tile.lanes(),
                     static_cast<int>(layer.out.first_frame), layer.out.lanes(), part, stream_);
    layer.gradient = part;
  }
}

void DeviceNetwork::load(const void* frames, const uint32_t* which, const uint8_t* labels,
                         int64_t count, int64_t first, int64_t batch_frames) {
  const cuda::Range range("input");
  frames_here_ = count;
  frames_of_batch_ = batch_frames;
  for (auto& [samples, as_read] : frames_) {
    cuda::Tile& tile = as_read.tile;
    tile.frames = count;
    tile.batch_frames = count == batch_frames ? 0 : batch_frames;
    tile.first_frame = first;
    if (config_.input_bits == kFloatBits) {
      as_read.data.reserve(tile.floats() * sizeof(float));
      cuda::pack_frames(static_cast<const float*>(frames), tile,
                        reinterpret_cast<float*>(as_read.data.data()), stream_, which);
    } else {
      as_read.data.reserve(tile.code_bytes());
      cuda::pack_frames(static_cast<const int8_t*>(frames), tile, as_read.data.data(), stream_,
                        which);
    }
  }
  has_soft_ = false;
  const auto bytes = static_cast<size_t>(batch_frames);
  labels_.reserve(bytes);
  if (labels != nullptr) {
    cuda::copy_on_device(labels_.data(), labels, bytes, stream_);
  } else {
    cuda::set_bytes(labels_.data(), 0, bytes, stream_);
  }
}

void DeviceNetwork::load_soft_targets(const float* soft) {
  has_soft_ = soft != nullptr;
  if (!has_soft_) return;
  const size_t count = static_cast<size_t>(frames_of_batch_) * static_cast<size_t>(config_.classes);
  cuda::copy_on_device(soft_.reserve(count), soft, count * sizeof(float), stream_);
}

void DeviceNetwork::load(const cuda::AdamFactors* factors) {
  cuda::copy_on_device(factors_.data(), factors, sizeof(*factors), stream_);
}

void DeviceNetwork::compile() {
  const cuda::Range range("weights");
  cuda::Weights::compile(weights_, stream_);
}

void DeviceNetwork::forward(DeviceLayer& layer, bool collect, bool first) {
  collect = collect && layer.collects;
  const cuda::Range range(layer.forward_name);
  layer.xs.clear();
  if (layer.has_weights) {
    layer.xs.push_back(read(layer));
    void* const out = layer.make_output(layer.xs[0].tile);
    cuda::hidden_forward_train(layer.xs[0], layer.weights, layer.values, collect,
                               {layer.mean.data(), layer.var.data()}, layer.state, layer.out, out,
                               stream_);
  } else {
    for (const int i : layer.reads) layer.xs.push_back(value(layer, i));
    void* const out = layer.make_output(layer.xs[0].tile);
    cuda::join_forward_train(layer.join, layer.shape, layer.xs, layer.threshold, collect,
                             layer.state, ranks_, layer.out, out, stream_);
  }
  if (layer.state.collected) {
    cuda::follow_threshold(layer.state, first, layer.threshold, stream_);
  }
  if (layer.quantized) layer.value.scale = layer.state.act_scale();
}

void DeviceNetwork::forward_output(float* dlogits, uint8_t* predicted) {
  DeviceLayer& layer = *layers_.back();
  const cuda::Range range(layer.forward_name);
  layer.xs = {read(layer)};
  const int64_t frames = layer.xs[0].tile.frames;
  loss_.reserve(cuda::loss_partials(frames));
  cuda::output_forward(layer.xs[0], layer.weights, layer.output_values, logits_.data(), stream_);
  const cuda::Targets targets{labels_.data(), has_soft_ ? soft_.data() : nullptr, loss_options_};
  cuda::softmax_cross_entropy(frames, config_.classes, logits_.data(), targets, dlogits, predicted,
                              loss_.data(), stream_);
}

float* DeviceNetwork::gradient_for(int read, size_t elements, bool& add) {
  add = false;
  if (read == kReadsFrames) return nullptr;
  DeviceLayer& layer = *layers_[static_cast<size_t>(read)];
  add = layer.gradient != nullptr;
  if (!add) {
    const size_t of_value = gradient_elements(layer.value.tile);
    layer.gradient = gradients_[layer.gradient_memory].reserve(std::max(of_value, elements));
  }
  return layer.gradient;
}

void DeviceNetwork::backward(DeviceLayer& layer, const double* of_scale) {
  const cuda::Range range(layer.backward_name);
  const cuda::Input& x = layer.xs[0];
  const int read = layer.reads[0];
  bool add = false;
  const size_t elements = gradient_elements(x.tile);
  float* const sum = gradient_for(read, elements, add);
  float* const dx = add ? added_.reserve(elements) : sum;
  if (!layer.hidden) {
    cuda::output_backward(x, layer.weights, layer.output_values, dlogits_.data(),
                          layer.output_gradients, dx, stream_);
    weight_gradients_.push_back(
        {&layer.weights, layer.output_gradients.weight, layer.scales.data()});
  } else {
    std::swap(layer.state.dy, dy_);  // one for all layers
    cuda::hidden_backward(x, layer.weights, layer.values, layer.state, layer.gradient, of_scale,
                          layer.gradients, dx, stream_);
    std::swap(layer.state.dy, dy_);
    weight_gradients_.push_back({&layer.weights, layer.gradients.weight, nullptr});
  }
  if (sum == nullptr) return;
  // The layer may have read fewer positions than there are, or rows of zeros behind them.
  const size_t of_value = gradient_elements(value(layer, read).tile);
  if (add) {
    cuda::add_gradient(dx, std::min(elements, of_value), sum, stream_);
  } else if (elements < of_value) {
    cuda::set_bytes(sum + elements, 0, (of_value - elements) * sizeof(float), stream_);
  }
}

void DeviceNetwork::backward_join(DeviceLayer& layer, const double* of_scale) {
  const cuda::Range range(layer.backward_name);
  std::vector<cuda::JoinGradient> gradients;
  for (const int read : layer.reads) {
    bool add = false;
    float* const dx = gradient_for(read, 0, add);
    gradients.push_back({dx, add});
  }
  cuda::join_backward(layer.join, layer.shape, layer.xs, layer.threshold, layer.state,
                      layer.gradient, of_scale, gradients, layer.gradients.threshold, ranks_,
                      stream_);
}

void DeviceNetwork::train_step(bool collect, bool first, bool with_backward) {
  const bool shared = frames_here_ != frames_of_batch_;
  compile();
  put_frames();
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (shared && i == behind_shares_) gather();
    if (layers_[i]->hidden) forward(*layers_[i], collect, first);
  }
  const cuda::Tile logits_tile{frames_of_batch_, 1, config_.classes, 0};
  logits_.reserve(logits_tile.floats());
  forward_output(dlogits_.reserve(logits_tile.floats()), nullptr);
  if (!with_backward) return;

  // A value's readers run from the last to the first, which is the order of the sum of their
  // gradients.
  weight_gradients_.clear();
  const DeviceLayer& output = *layers_.back();
  for (size_t i = layers_.size(); i-- > 0;) {
    DeviceLayer& layer = *layers_[i];
    if (shared && i + 1 == behind_shares_) share_gradients();
    // The output layer's bias is quantized at the scale of what it reads.
    const bool before_output = static_cast<int>(i) == output.reads[0];
    const double* of_scale = before_output ? output.scales.data() + 1 : nullptr;
    if (layer.has_weights) {
      backward(layer, of_scale);
    } else {
      backward_join(layer, of_scale);
    }
  }
  const cuda::Range range("adam");
  cuda::Weights::backward(weight_gradients_, stream_);
  parameters_.adam(factors_.data(), &loss_.data()->not_finite, stream_);
}

void DeviceNetwork::evaluate() {
  put_frames();
  for (const auto& layer : layers_) {
    if (!layer->hidden) break;
    const cuda::Range range(layer->forward_name);
    if (layer->has_weights) {
      const cuda::Input x = read(*layer);
      void* const out = layer->make_output(x.tile);
      cuda::hidden_forward_eval(x, layer->weights, layer->values,
                                {layer->mean.data(), layer->var.data()}, layer->state, layer->out,
                                out, stream_);
    } else {
      layer->xs.clear();
      for (const int i : layer->reads) layer->xs.push_back(value(*layer, i));
      void* const out = layer->make_output(layer->xs[0].tile);
      cuda::join_forward_eval(layer->join, layer->shape, layer->xs, layer->threshold, layer->state,
                              layer->out, out, stream_);
    }
    if (layer->quantized) layer->value.scale = layer->state.act_scale();
  }
  logits_.reserve(cuda::Tile{frames_here_, 1, config_.classes, 0}.floats());
  forward_output(nullptr, predicted_.reserve(static_cast<size_t>(frames_here_)));
}

const cuda::LossResult* DeviceNetwork::loss() const { return loss_.data(); }
const uint8_t* DeviceNetwork::predicted() const { return predicted_.data(); }

std::vector<float> DeviceNetwork::logits() const {
  const std::vector<float> tile = logits_.to_host(stream_);
  const auto lanes = static_cast<size_t>(cuda::round_up(frames_here_, cuda::kWarpLanes));
  const auto classes = static_cast<size_t>(config_.classes);
  std::vector<float> result;
  for (size_t n = 0; n < static_cast<size_t>(frames_here_); ++n) {
    for (size_t c = 0; c < classes; ++c) result.push_back(tile[c * lanes + n]);
  }
  return result;
}

void DeviceNetwork::store(Network& network) const {
  parameters_.store(network, stream_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layers_[i]->hidden || !layers_[i]->has_weights) continue;
    Layer& layer = network.layers()[i];
    const auto copy = [&](const DeviceBuffer<float>& from, Tensor& to) {
      std::ranges::copy(from.to_host(stream_), to.floats().begin());
    };
    copy(layers_[i]->mean, layer.running_mean);
    copy(layers_[i]->var, layer.running_var);
  }
}

}  // namespace fmp
