// SPDX-License-Identifier: MIT
#include "framework/onnx/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "framework/error.h"
#include "kernels/cpu/parallel.h"

namespace fmp::onnx {
namespace {

constexpr int64_t kIqChannels = 2;

// For every node whether the output depends on it.
std::vector<bool> needed_nodes(const Graph& graph) {
  std::vector<bool> needed(graph.nodes.size(), false);
  const auto need = [&](int value) {
    const GraphValue& v = graph.value(value);
    if (!v.constant && v.producer >= 0) needed[static_cast<size_t>(v.producer)] = true;
  };
  need(graph.output);
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    if (!needed[i]) continue;
    const GraphNode& node = graph.nodes[i];
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (node.has_input(k)) need(node.inputs[k]);
    }
  }
  return needed;
}

}  // namespace

GraphEvaluator::GraphEvaluator(Graph graph) : graph_(std::move(graph)) {
  const std::vector<bool> needed = needed_nodes(graph_);
  std::vector<int> last_reader(graph_.values.size(), -1);
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    if (!needed[i]) continue;
    for (const int value : graph_.nodes[i].inputs) {
      if (value != GraphNode::kAbsent)
        last_reader[static_cast<size_t>(value)] = static_cast<int>(i);
    }
  }
  last_reader[static_cast<size_t>(graph_.output)] = -1;  // stays until the end
  std::vector<int> buffer_of(graph_.values.size(), -1), free_buffers;
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    if (!needed[i]) continue;
    const GraphNode& node = graph_.nodes[i];
    Step step;
    PreparedNode prepared = prepare_node(graph_, node);
    step.run = std::move(prepared.run);
    step.inputs = node.inputs;
    step.output = node.output;
    step.size = static_cast<size_t>(elements(prepared.shape));
    if (free_buffers.empty()) {
      free_buffers.push_back(static_cast<int>(buffer_sizes_.size()));
      buffer_sizes_.push_back(0);
    }
    step.buffer = free_buffers.back();
    free_buffers.pop_back();
    size_t& buffer_size = buffer_sizes_[static_cast<size_t>(step.buffer)];
    buffer_size = std::max(buffer_size, step.size);
    buffer_of[static_cast<size_t>(node.output)] = step.buffer;
    for (const int value : node.inputs) {
      if (value == GraphNode::kAbsent) continue;
      int& buffer = buffer_of[static_cast<size_t>(value)];
      if (buffer < 0 || last_reader[static_cast<size_t>(value)] != static_cast<int>(i)) continue;
      free_buffers.push_back(buffer);
      buffer = -1;  // a node may read a value twice
    }
    steps_.push_back(std::move(step));
  }
}

int64_t GraphEvaluator::input_size() const { return elements(graph_.value(graph_.input).shape); }
int64_t GraphEvaluator::output_size() const { return elements(graph_.value(graph_.output).shape); }

void GraphEvaluator::run_frame(std::span<const float> frame,
                               std::vector<std::vector<float>>& buffers,
                               std::span<float> result) const {
  std::vector<std::span<const float>> values(graph_.values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& constant = graph_.values[i].constant;
    if (constant && constant->is_float()) values[i] = constant->floats();
  }
  values[static_cast<size_t>(graph_.input)] = frame;
  std::vector<std::span<const float>> inputs;
  for (const Step& step : steps_) {
    inputs.clear();
    for (const int value : step.inputs) {
      inputs.push_back(value == GraphNode::kAbsent ? std::span<const float>()
                                                   : values[static_cast<size_t>(value)]);
    }
    const std::span<float> output(buffers[static_cast<size_t>(step.buffer)].data(), step.size);
    step.run(inputs, output);
    values[static_cast<size_t>(step.output)] = output;
  }
  std::ranges::copy(values[static_cast<size_t>(graph_.output)], result.begin());
}

std::vector<float> GraphEvaluator::run(std::span<const float> frames, int threads) const {
  const auto in = static_cast<size_t>(input_size()), out = static_cast<size_t>(output_size());
  if (in == 0 || frames.size() % in != 0) {
    fail("{}: {} values, expected a multiple of {}", graph_.file, frames.size(), in);
  }
  const auto count = static_cast<int64_t>(frames.size() / in);
  std::vector<float> results(static_cast<size_t>(count) * out);
  cpu::share_items(count, threads, [&](cpu::SharedItems& items) {
    std::vector<std::vector<float>> buffers;
    for (const size_t size : buffer_sizes_) buffers.emplace_back(size);
    while (const std::optional<int64_t> item = items.take()) {
      const auto frame = static_cast<size_t>(*item);
      run_frame(frames.subspan(frame * in, in), buffers,
                std::span(results).subspan(frame * out, out));
    }
  });
  return results;
}

// Whether frames are read sample by sample, [..., length, 2], or channel by channel, [..., 2,
// length]; nothing when the shape is neither. Axes of 1 may stand anywhere.
std::optional<bool> GraphEvaluator::samples_first(int length) const {
  Shape axes;
  const Shape& shape = graph_.value(graph_.input).shape;
  std::copy_if(shape.begin() + 1, shape.end(), std::back_inserter(axes),
               [](int64_t size) { return size != 1; });
  if (axes == Shape{kIqChannels, length}) return false;
  if (axes == Shape{length, kIqChannels}) return true;
  return std::nullopt;
}

std::vector<float> GraphEvaluator::run(const FrameBatch& batch, int length, int threads) const {
  const auto order = samples_first(length);
  if (!order) {
    fail("{}: its input has shape {}, expected {} values of {} samples: [1, {}, {}] or [1, {}, {}]",
         graph_.file, to_string(graph_.value(graph_.input).shape), kIqChannels, length, kIqChannels,
         length, length, kIqChannels);
  }
  if (*order) return run(batch.values, threads);
  const auto samples = static_cast<size_t>(length), channels = static_cast<size_t>(kIqChannels);
  std::vector<float> frames(batch.values.size());
  for (size_t i = 0; i < frames.size(); ++i) {
    const size_t frame = i / (channels * samples), sample = i / channels % samples;
    frames[(frame * channels + i % channels) * samples + sample] = batch.values[i];
  }
  return run(frames, threads);
}

}  // namespace fmp::onnx
