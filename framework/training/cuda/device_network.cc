// SPDX-License-Identifier: MIT
#include "framework/training/cuda/device_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "framework/data/dataset.h"
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

// A value in the shape in which a layer with weights reads it: rows of zeros as its taps want them,
// and positions that its stride joins. A layer of one position reads rows as taps (conv_shape()).
cuda::Tile tile_read_by(const Layer& layer, cuda::Tile written) {
  if (!layer.has_positions()) {
    written.pad = 0;
    return written;
  }
  written.pad = layer.input_padding();
  return cuda::joined_positions(written, layer.form.stride);
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
  DeviceLayer(const Layer& layer, const cuda::Tile& input, int output_pad,
              const LayerPlan& layer_plan, const ParameterBlock& parameters, bool training,
              cuda::Libraries& libraries, cuda::DeviceRanks* ranks)
      : hidden(layer.kind != Layer::Kind::kOutput),
        quantized(layer.act_bits != kFloatBits),
        has_positions(layer.has_positions()),
        input_pad(has_positions ? layer.input_padding() : 0),
        stride(has_positions ? layer.form.stride : 1),
        shape(layer),
        conv(cuda::conv_shape(shape, input)),
        plan(layer_plan),
        out{0, layer.length / layer.pool, layer.out_channels, output_pad},
        forward_name(fmt::format("{} forward {}", layer.name, kernel_name(plan.forward))),
        backward_name(fmt::format("{} backward data {} weight {}", layer.name,
                                  kernel_name(plan.backward_data),
                                  kernel_name(plan.backward_weight))),
        weight(parameters.value(layer.weight)) {
    const Stream stream = libraries.stream();
    weights.use_libraries(&libraries);
    if (has_positions) weights.use_ranks(ranks);
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

  // Where this layer's output goes, as the next one reads it.
  cuda::Input output(const cuda::Tile& in) {
    out.frames = in.frames;
    out.batch_frames = in.batch_frames;
    out.first_frame = in.first_frame;
    if (!quantized) return {out, ElementType::kF32, values_out.reserve(out.floats()), nullptr};
    // The scale has no address before the first pass.
    return {out, shape.output_type(), codes_out.reserve(out.code_bytes()), nullptr};
  }

  // A value as this layer reads it.
  cuda::Input read(const cuda::Input& value, Stream stream) {
    return cuda::join_positions(cuda::with_padding(value, input_pad), stride, joined, stream);
  }

  bool hidden, quantized, has_positions;
  int input_pad, stride;
  LayerShape shape;
  cuda::ConvShape conv;
  PassPlan plan;
  cuda::Tile out;
  std::string forward_name, backward_name;
  float* weight;
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
  cuda::Input x;  // of the last forward pass
};

DeviceNetwork::DeviceNetwork(const Network& network, std::span<const LayerPlan> plan, Use use,
                             cuda::Libraries& libraries, cuda::DeviceRanks* ranks)
    : config_(network.config()),
      stream_(libraries.stream()),
      ranks_(ranks),
      parameters_(network, use == Use::kTraining, stream_),
      input_tile_{0, network.layers()[0].length, network.layers()[0].in_channels,
                  network.layers()[0].padding()},
      factors_(1) {
  require_chain(config_, "CUDA");
  const float scale = config_.input_quantizer().scale;
  input_scale_ = DeviceBuffer<float>(std::span(&scale, 1), stream_);
  const std::vector<Layer>& layers = network.layers();
  cuda::Tile tile = input_tile_;
  bool integers = config_.input_bits != kFloatBits;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int output_pad = i + 1 < layers.size() ? layers[i + 1].input_padding() : 0;
    if (i > 0) tile = tile_read_by(layers[i], tile);
    layers_.push_back(std::make_unique<DeviceLayer>(layers[i], tile, output_pad,
                                                    plan_of(plan, layers[i]), parameters_,
                                                    use == Use::kTraining, libraries, ranks));
    DeviceLayer& layer = *layers_.back();
    layer.weights.prepare(layer.shape, layer.conv, layer.weight, integers, layer.plan,
                          use == Use::kTraining, stream_);
    weights_.push_back(&layer.weights);
    tile = layer.out;
    integers = layer.quantized;
  }
  compile();
  for (const cuda::Weights* weights : weights_) weights->summary(stream_);  // throws if not finite
  cuda::synchronize(stream_);
}

DeviceNetwork::~DeviceNetwork() = default;

cuda::Input DeviceNetwork::input() const {
  if (config_.input_bits == kFloatBits) {
    return {input_tile_, ElementType::kF32, input_.data(), nullptr};
  }
  return {input_tile_, ElementType::kS8, input_.data(), input_scale_.data()};
}

cuda::Input DeviceNetwork::whole(const cuda::Input& share) {
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
  cuda::join_lanes(parts, {all.tile.frames, ranks_->ranks()}, rows, joined_.reserve(words),
                   stream_);
  all.data = joined_.data();
  return all;
}

const float* DeviceNetwork::share_of(const float* gradient, const cuda::Tile& whole,
                                     const cuda::Tile& share) {
  const size_t rows = static_cast<size_t>(whole.length) * static_cast<size_t>(whole.channels);
  float* const part = share_gradient_.reserve(rows * static_cast<size_t>(share.lanes()));
  cuda::take_lanes(gradient, rows, whole.lanes(), static_cast<int>(share.first_frame),
                   share.lanes(), part, stream_);
  return part;
}

void DeviceNetwork::load(const void* frames, const uint32_t* which, const uint8_t* labels,
                         int64_t count, int64_t first, int64_t batch_frames) {
  const cuda::Range range("input");
  input_tile_.frames = count;
  input_tile_.batch_frames = count == batch_frames ? 0 : batch_frames;
  input_tile_.first_frame = first;
  if (config_.input_bits == kFloatBits) {
    input_.reserve(input_tile_.floats() * sizeof(float));
    cuda::pack_frames(static_cast<const float*>(frames), input_tile_,
                      reinterpret_cast<float*>(input_.data()), stream_, which);
  } else {
    input_.reserve(input_tile_.code_bytes());
    cuda::pack_frames(static_cast<const int8_t*>(frames), input_tile_, input_.data(), stream_,
                      which);
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
  const size_t count =
      static_cast<size_t>(input_tile_.frames_of_batch()) * static_cast<size_t>(config_.classes);
  cuda::copy_on_device(soft_.reserve(count), soft, count * sizeof(float), stream_);
}

void DeviceNetwork::load(const cuda::AdamFactors* factors) {
  cuda::copy_on_device(factors_.data(), factors, sizeof(*factors), stream_);
}

void DeviceNetwork::compile() {
  const cuda::Range range("weights");
  cuda::Weights::compile(weights_, stream_);
}

void DeviceNetwork::forward_output(const cuda::Input& x, float* dlogits, uint8_t* predicted) {
  DeviceLayer& layer = *layers_.back();
  const int64_t frames = input_tile_.frames_of_batch();
  const cuda::Range range(layer.forward_name);
  loss_.reserve(cuda::loss_partials(frames));
  cuda::output_forward(x, layer.weights, layer.output_values, logits_.data(), stream_);
  const cuda::Targets targets{labels_.data(), has_soft_ ? soft_.data() : nullptr, loss_options_};
  cuda::softmax_cross_entropy(frames, config_.classes, logits_.data(), targets, dlogits, predicted,
                              loss_.data(), stream_);
}

void DeviceNetwork::backward(DeviceLayer& layer, const cuda::Input& x, const float* dy,
                             const double* of_scale, float* dx) {
  const cuda::Range range(layer.backward_name);
  if (!layer.hidden) {
    cuda::output_backward(x, layer.weights, layer.output_values, dlogits_.data(),
                          layer.output_gradients, dx, stream_);
    weight_gradients_.push_back(
        {&layer.weights, layer.output_gradients.weight, layer.scales.data()});
    return;
  }
  std::swap(layer.state.dy, dy_);  // one for all layers
  cuda::hidden_backward(x, layer.weights, layer.values, layer.state, dy, of_scale, layer.gradients,
                        dx, stream_);
  std::swap(layer.state.dy, dy_);
  weight_gradients_.push_back({&layer.weights, layer.gradients.weight, nullptr});
}

void DeviceNetwork::train_step(bool collect, bool first) {
  const int64_t frames = input_tile_.frames_of_batch();
  compile();
  cuda::Input x = input();
  for (const auto& layer : layers_) {
    if (x.tile.batch_frames != 0 && !layer->has_positions) x = whole(x);
    layer->x = layer == layers_.front() ? x : layer->read(x, stream_);
    if (!layer->hidden) break;
    const cuda::Range range(layer->forward_name);
    x = layer->output(layer->x.tile);
    cuda::hidden_forward_train(layer->x, layer->weights, layer->values, collect,
                               {layer->mean.data(), layer->var.data()}, layer->state, layer->out,
                               const_cast<void*>(x.data), stream_);
    if (layer->state.collected) {
      cuda::follow_threshold(layer->state, first, layer->threshold, stream_);
    }
    if (layer->quantized) x.scale = layer->state.act_scale();
  }
  const cuda::Tile logits_tile{frames, 1, config_.classes, 0};
  logits_.reserve(logits_tile.floats());
  forward_output(x, dlogits_.reserve(logits_tile.floats()), nullptr);

  weight_gradients_.clear();
  const float* dy = dlogits_.data();
  for (size_t i = layers_.size(); i-- > 0;) {
    DeviceLayer& layer = *layers_[i];
    const cuda::Tile& in = layer.x.tile;
    const auto elements = static_cast<size_t>(in.length) * static_cast<size_t>(in.channels) *
                          static_cast<size_t>(in.lanes());
    // The output layer's bias is quantized at a scale that the layer before it has set.
    const bool before_output = i + 2 == layers_.size();
    const double* of_scale = before_output ? layers_.back()->scales.data() + 1 : nullptr;
    backward(layer, layer.x, dy, of_scale, i == 0 ? nullptr : gradient_out_.reserve(elements));
    std::swap(gradient_in_, gradient_out_);
    dy = gradient_in_.data();
    if (i > 0 && in.batch_frames == 0 && layers_[i - 1]->x.tile.batch_frames != 0)
      dy = share_of(dy, in, layers_[i - 1]->x.tile);
  }
  // An even number of exchanges, so that every step finds the buffers as the one before did.
  if (layers_.size() % 2 != 0) std::swap(gradient_in_, gradient_out_);
  const cuda::Range range("adam");
  cuda::Weights::backward(weight_gradients_, stream_);
  parameters_.adam(factors_.data(), &loss_.data()->not_finite, stream_);
}

void DeviceNetwork::evaluate() {
  const int64_t frames = input_tile_.frames;
  cuda::Input x = input();
  for (const auto& layer : layers_) {
    if (!layer->hidden) break;
    const cuda::Range range(layer->forward_name);
    if (layer != layers_.front()) x = layer->read(x, stream_);
    const cuda::Input y = layer->output(x.tile);
    cuda::hidden_forward_eval(x, layer->weights, layer->values,
                              {layer->mean.data(), layer->var.data()}, layer->state, layer->out,
                              const_cast<void*>(y.data), stream_);
    x = y;
    if (layer->quantized) x.scale = layer->state.act_scale();
  }
  logits_.reserve(cuda::Tile{frames, 1, config_.classes, 0}.floats());
  forward_output(x, nullptr, predicted_.reserve(static_cast<size_t>(frames)));
}

const cuda::LossResult* DeviceNetwork::loss() const { return loss_.data(); }
const uint8_t* DeviceNetwork::predicted() const { return predicted_.data(); }

std::vector<float> DeviceNetwork::logits() const {
  const std::vector<float> tile = logits_.to_host(stream_);
  const auto lanes = static_cast<size_t>(input_tile_.lanes());
  const auto classes = static_cast<size_t>(config_.classes);
  std::vector<float> result;
  for (size_t n = 0; n < static_cast<size_t>(input_tile_.frames); ++n) {
    for (size_t c = 0; c < classes; ++c) result.push_back(tile[c * lanes + n]);
  }
  return result;
}

void DeviceNetwork::store(Network& network) const {
  parameters_.store(network, stream_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layers_[i]->hidden) continue;
    Layer& layer = network.layers()[i];
    const auto copy = [&](const DeviceBuffer<float>& from, Tensor& to) {
      std::ranges::copy(from.to_host(stream_), to.floats().begin());
    };
    copy(layers_[i]->mean, layer.running_mean);
    copy(layers_[i]->var, layer.running_var);
  }
}

}  // namespace fmp
