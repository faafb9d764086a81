// SPDX-License-Identifier: MIT
#include "kernels/cpu/hidden_sums.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace fmp::cpu {
namespace {

// Inputs of a window up to which their products in pairs cost less than the sums themselves.
constexpr int64_t kFewInputs = 16;

size_t fan_in(const LayerShape& shape) { return static_cast<size_t>(shape.fan_in()); }

size_t float_width(const HiddenPass& pass, bool of_inputs) {
  const size_t inputs = fan_in(pass.shape());
  if (of_inputs) return inputs + inputs * inputs;
  return pass.conv().sums_are_integers() ? 0 : 2 * pass.channels();
}

}  // namespace

bool sums_of_inputs_suffice(const HiddenOperands& layer) {
  return layer.state->first_layer && layer.x.tile.type == ElementType::kS8 &&
         layer.weights->shape().fan_in() <= kFewInputs && layer.weights->compiled().integers;
}

SumsOfOutput::SumsOfOutput(const HiddenOperands& layer)
    : pass_(layer.x.tile, *layer.weights),
      state_(*layer.state),
      of_inputs_(sums_of_inputs_suffice(layer)),
      integers_(!of_inputs_ && pass_.conv().sums_are_integers()
                    ? static_cast<size_t>(pass_.items().count()) * pass_.channels()
                    : 0),
      floats_(pass_.items().count(), float_width(pass_, of_inputs_)) {
  pass_.reserve(state_);
}

void SumsOfOutput::add(int64_t item, Scratch& scratch, LapTimer& timer, Profile& profile) {
  if (!of_inputs_ && !integers_.empty() && pass_.conv().makes_runs()) {
    return add_runs(item, scratch, timer, profile);
  }
  double* floats = floats_.of(item);
  pass_.for_each_chunk(item, [&](int r0, int rows) {
    if (of_inputs_) {
      add_inputs(item, r0, rows, scratch);
      timer.lap(profile.activation_forward);
      if (!pass_.keeps_sums()) return;
    }
    pass_.make_sums(state_, item, r0, rows, scratch, timer, profile, [&](int c, const Sums& sums) {
      if (of_inputs_) return;
      if (!integers_.empty()) {
        simd().integer_sums(sums, totals_of(item) + c);
      } else {
        simd().channel_sums(sums.y, sums.stride, sums.rows, sums.channels, floats + c,
                            floats + pass_.channels() + c);
      }
      timer.lap(profile.activation_forward);
    });
  });
}

void SumsOfOutput::add_runs(int64_t item, Scratch& scratch, LapTimer& timer, Profile& profile) {
  const size_t parts = pass_.channels() * 2 * kTotalParts;
  int64_t* lanes = scratch.totals.reserve(parts);
  std::fill_n(lanes, parts, int64_t{0});
  const auto flush = [&] {
    IntegerTotals* totals = totals_of(item);
    for (size_t c = 0; c < pass_.channels(); ++c) {
      const int64_t* of_channel = lanes + c * 2 * kTotalParts;
      totals[c].sum += std::accumulate(of_channel, of_channel + kTotalParts, int64_t{0});
      for (int i = 0; i < kTotalParts; ++i) totals[c].add_square(of_channel[kTotalParts + i]);
    }
    std::fill_n(lanes, parts, int64_t{0});
  };
  // Squares below 2^48: those of this many rows, two lanes of each in a part, fit into 63 bits.
  constexpr int kRowsInTotals = 1 << 13;
  int rows_since = 0;
  pass_.for_each_chunk(item, [&](int r0, int rows) {
    pass_.conv().add_totals(item, r0, rows, lanes, scratch, timer, profile);
    rows_since += rows;
    if (rows_since < kRowsInTotals) return;
    flush();
    rows_since = 0;
  });
  flush();
  timer.lap(profile.activation_forward);
}

// Sums and products of integers below 2^7: those of a chunk are exact in float.
void SumsOfOutput::add_inputs(int64_t item, int r0, int rows, Scratch& scratch) {
  const LayerShape& shape = pass_.shape();
  const size_t inputs = fan_in(shape), count = inputs + inputs * inputs;
  const ptrdiff_t stride = operand_stride(shape.in_channels);
  const float* x = pass_.conv().unpack_floats(item, r0, rows, scratch);
  float* sums = scratch.dw.reserve(count * kLanes);
  std::fill_n(sums, count * kLanes, 0.0F);
  alignas(64) static constexpr std::array<float, kLanes> kOnes = {1, 1, 1, 1, 1, 1, 1, 1,
                                                                  1, 1, 1, 1, 1, 1, 1, 1};
  simd().conv1d_backward_weight_dense(x, stride, kOnes.data(), 0, rows, 1, shape.taps,
                                      shape.in_channels, sums);
  for (int t = 0; t < shape.taps; ++t) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(inputs) * (1 + t * shape.in_channels) * kLanes;
    simd().conv1d_backward_weight_dense(x, stride, x + t * stride, stride, rows, shape.in_channels,
                                        shape.taps, shape.in_channels, sums + at);
  }
  simd().add_lane_sums(sums, static_cast<int>(count), floats_.of(item));
}

void SumsOfOutput::finish(Communicator* ranks) {
  const size_t channels = pass_.channels();
  state_.sum_y.assign(channels, 0.0);
  state_.sum_squares.assign(channels, 0.0);
  state_.summed = true;
  if (of_inputs_) return finish_inputs(ranks);
  if (pass_.conv().sums_are_integers()) return finish_integers(ranks);
  const std::vector<double> totals = floats_.total(ranks);
  const auto total = totals.begin();
  std::copy_n(total, channels, state_.sum_y.begin());
  std::copy_n(total + static_cast<ptrdiff_t>(channels), channels, state_.sum_squares.begin());
}

void SumsOfOutput::finish_inputs(Communicator* ranks) {
  std::vector<double> totals = floats_.total(nullptr);
  if (ranks != nullptr) {  // they are integers
    std::vector<int64_t> sums(totals.begin(), totals.end());
    ranks->sum(sums);
    std::ranges::transform(sums, totals.begin(), [](int64_t s) { return static_cast<double>(s); });
  }
  const auto total = totals.begin();
  const size_t inputs = fan_in(pass_.shape());
  state_.input_sums.assign(total, total + static_cast<ptrdiff_t>(inputs));
  state_.input_products.assign(total + static_cast<ptrdiff_t>(inputs), totals.end());
  for (size_t o = 0; o < pass_.channels(); ++o) {
    const float* w = pass_.conv().codes() + o * inputs;
    for (size_t k = 0; k < inputs; ++k) {
      const double weight = static_cast<double>(w[k]);
      state_.sum_y[o] += weight * state_.input_sums[k];
      for (size_t j = 0; j < inputs; ++j) {
        state_.sum_squares[o] +=
            weight * static_cast<double>(w[j]) * state_.input_products[k * inputs + j];
      }
    }
  }
}

void SumsOfOutput::finish_integers(Communicator* ranks) {
  const size_t channels = pass_.channels();
  std::vector<IntegerTotals> totals(channels);
  for (size_t i = 0; i < integers_.size(); ++i) totals[i % channels].add(integers_[i]);
  if (ranks != nullptr) {
    std::vector<int64_t> sums;
    for (const IntegerTotals& t : totals) sums.insert(sums.end(), {t.sum, t.low, t.high});
    ranks->sum(sums);
    for (size_t o = 0; o < channels; ++o)
      totals[o] = {sums[3 * o], sums[3 * o + 1], sums[3 * o + 2]};
  }
  for (size_t o = 0; o < channels; ++o) {
    state_.sum_y[o] = static_cast<double>(totals[o].sum);
    state_.sum_squares[o] = totals[o].squares();
  }
}

SumsOfGradient::SumsOfGradient(const HiddenOperands& layer, const BatchShare* share)
    : layer_(layer),
      pass_(layer.x.tile, *layer.weights),
      state_(*layer.state),
      of_inputs_(sums_of_inputs_suffice(layer)),
      gradient_(pass_.conv(), pass_.items().count(), share),
      partial_(gradient_.groups(), pass_.channels() * kGradientSums) {}

PooledGradient SumsOfGradient::gradient(int64_t item, int first_row, const float* dp) const {
  return pooled_gradient(pass_, layer_, item, first_row, dp);
}

void SumsOfGradient::begin(Scratch& scratch) {
  std::fill_n(scratch.sums.reserve(lane_sums()), lane_sums(), 0.0F);
  scratch.rows_in_sums = 0;
  if (!of_inputs_) return;
  const size_t sums = pass_.conv().gradient_sums();
  std::fill_n(scratch.producer_dw.reserve(sums), sums, 0.0F);
}

void SumsOfGradient::end(int64_t group, Scratch& scratch) {
  flush(group, scratch);
  if (of_inputs_) pass_.conv().add_gradient(scratch.producer_dw.data(), gradient_.of(group));
}

void SumsOfGradient::flush(int64_t group, Scratch& scratch) {
  float* lanes = scratch.sums.data();
  simd().add_lane_sums(lanes, kGradientSums * pass_.shape().out_channels, partial_.of(group));
  std::fill_n(lanes, lane_sums(), 0.0F);
  scratch.rows_in_sums = 0;
}

void SumsOfGradient::add(int64_t group, int64_t item, int begin, int end, const float* dp,
                         Scratch& scratch, LapTimer& timer, Profile& profile) {
  const int pool = pass_.shape().pool, windows = pass_.conv().chunk_rows() / pool;
  // So few that floats are accurate enough for their sum.
  constexpr int kRowsInSums = 64;
  float* lanes = scratch.sums.data();
  for (int w = begin; w < end; w += windows) {
    const int r0 = w * pool, rows = std::min(windows, end - w) * pool;
    const PooledGradient chunk =
        gradient(item, r0, dp + (w - begin) * static_cast<ptrdiff_t>(pass_.channels()) * kLanes);
    if (of_inputs_) {
      add_inputs(group, item, r0, rows, chunk, scratch, timer, profile);
    } else if (pass_.conv().uses_sums_in_registers()) {
      pass_.conv().with_code_chunk(
          item, r0, rows, scratch, timer, profile, [&](const CodeChunk& codes) {
            simd().sparse_gradient_sums(codes, pass_.shape().out_channels, pool, chunk, lanes);
          });
    } else {
      pass_.for_each_sums(&state_, item, r0, rows, scratch, timer, profile,
                          [&](int c, const Sums& sums) {
                            simd().backward_sums(sums, pool, from_channel(chunk, c),
                                                 lanes + c * kGradientSums * kLanes);
                            timer.lap(profile.activation_backward);
                          });
    }
    scratch.rows_in_sums += rows;
    if (scratch.rows_in_sums >= kRowsInSums) flush(group, scratch);
    timer.lap(profile.activation_backward);
  }
}

void SumsOfGradient::add_inputs(int64_t /*group*/, int64_t item, int r0, int rows,
                                const PooledGradient& gradient, Scratch& scratch, LapTimer& timer,
                                Profile& profile) {
  const LayerShape& shape = pass_.shape();
  const ChunkLayout layout = pass_.conv().gradient_layout();
  float* g = scratch.producer_g.reserve(
      static_cast<size_t>(std::max(rows * layout.row, shape.out_channels * layout.channel)));
  simd().spread_gradient(rows, shape.out_channels, shape.pool, gradient, g, layout.row,
                         layout.channel, scratch.sums.data());
  timer.lap(profile.activation_backward);
  pass_.conv().backward_weight(item, r0, rows, g, scratch.producer_dw.data(), scratch, timer,
                               profile);
}

void SumsOfGradient::finish(Communicator* ranks) {
  const std::vector<double> total = partial_.total(ranks);
  const size_t channels = pass_.channels();
  state_.gradient_summed = true;
  state_.sum_g.assign(channels, 0.0);
  state_.sum_g_y.assign(channels, 0.0);
  state_.sum_code = 0;
  for (size_t o = 0; o < channels; ++o) {
    state_.sum_g[o] = total[o * kGradientSums];
    state_.sum_g_y[o] = total[o * kGradientSums + 1];
    state_.sum_code += total[o * kGradientSums + 2];
  }
  if (!of_inputs_) return;
  state_.sum_g_input.assign(static_cast<size_t>(pass_.shape().weights()), 0.0F);
  gradient_.total(1.0F, state_.sum_g_input);
  const size_t inputs = fan_in(pass_.shape());
  for (size_t i = 0; i < state_.sum_g_input.size(); ++i) {
    state_.sum_g_y[i / inputs] +=
        static_cast<double>(pass_.conv().codes()[i]) * static_cast<double>(state_.sum_g_input[i]);
  }
}

void weight_gradient_of_sums(const HiddenOperands& layer, const GradientAffine& step,
                             std::span<float> dweight) {
  const HiddenState& state = *layer.state;
  const std::span<const float> codes = layer.weights->codes();
  const size_t inputs = fan_in(layer.weights->shape());
  for (size_t o = 0; o < state.sum_g.size(); ++o) {
    for (size_t k = 0; k < inputs; ++k) {
      double y_input = 0;
      for (size_t j = 0; j < inputs; ++j) {
        y_input +=
            static_cast<double>(codes[o * inputs + j]) * state.input_products[k * inputs + j];
      }
      const double sum = static_cast<double>(step.of_g[o]) *
                             static_cast<double>(state.sum_g_input[o * inputs + k]) +
                         static_cast<double>(step.of_y[o]) * y_input +
                         static_cast<double>(step.of_one[o]) * state.input_sums[k];
      dweight[o * inputs + k] = static_cast<float>(static_cast<double>(layer.x.scale) * sum);
    }
  }
}

}  // namespace fmp::cpu
