// SPDX-License-Identifier: MIT
// Operations without weights, forward and backward: the sum of two values, channels side by side,
// the average of windows; the math, to the order of its roundings, is that of kernels/cpu/join.cc.
// Nothing is kept for the backward pass: a real value follows from a few codes.
//
// A part is what one launch computes: all channels, or those of one of concat's inputs.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/activation.h"
#include "kernels/cuda/device_ranks.h"

namespace fmp::cuda {
namespace {

using Scalars = HiddenState::Scalars;

constexpr int kChannelRows = 8;  // channels or quads of a block

struct Operand {
  const uint32_t* words;
  int quads, pad, lanes;
  uint32_t flip;  // the sign's bit of each code
  const float* scale;

  __device__ __forceinline__ uint32_t word(int position, int quad, int lane) const {
    if (quad >= quads) return 0;
    return __ldg(words +
                 (static_cast<size_t>(position + pad) * static_cast<size_t>(quads) +
                  static_cast<size_t>(quad)) *
                     static_cast<size_t>(lanes) +
                 static_cast<size_t>(lane));
  }
  __device__ __forceinline__ uint32_t code(int position, int channel, int lane) const {
    if (channel < 0) return 0;
    return word(position, channel / kQuad, lane) >> (8 * (channel % kQuad)) & 0xff;
  }
  __device__ __forceinline__ int integer(uint32_t code) const {
    return static_cast<int>(code ^ flip) - static_cast<int>(flip);
  }
  __device__ __forceinline__ float value(uint32_t code) const {
    return __fmul_rn(static_cast<float>(integer(code)), *scale);
  }
};

// Where the gradient of an operand goes, [position][channel][lane].
struct GradientTarget {
  float* values;  // null: it is not wanted
  bool add;
  __device__ __forceinline__ void operator()(size_t at, float g) const {
    if (values != nullptr) values[at] = add ? __fadd_rn(values[at], g) : g;
  }
};

struct Part {
  Operand a, b;
  int window;                   // of an average
  int first_channel, channels;  // of the output
  Activation of;                // the operation's real values; its gain and shift are not read here

  __device__ __forceinline__ size_t place(int position, int channel, int lane) const {
    return (static_cast<size_t>(position) * static_cast<size_t>(channels) +
            static_cast<size_t>(channel)) *
               static_cast<size_t>(of.lanes) +
           static_cast<size_t>(lane);
  }
};

// The real value of a channel of a part, given a function that has the codes of an operand, and the
// way of its gradient.
struct OneValue {
  template <typename Codes>
  __device__ __forceinline__ static float value(const Part& p, int position, const Codes& codes) {
    return p.a.value(codes(p.a, position));
  }
  __device__ static void spread(const Part& p, int position, int channel, int lane, float g,
                                const GradientTarget& to_a, const GradientTarget& /*to_b*/) {
    to_a(p.place(position, channel, lane), g);
  }
};
struct SumOfTwo {
  template <typename Codes>
  __device__ __forceinline__ static float value(const Part& p, int position, const Codes& codes) {
    return __fadd_rn(p.a.value(codes(p.a, position)), p.b.value(codes(p.b, position)));
  }
  __device__ static void spread(const Part& p, int position, int channel, int lane, float g,
                                const GradientTarget& to_a, const GradientTarget& to_b) {
    to_a(p.place(position, channel, lane), g);
    to_b(p.place(position, channel, lane), g);
  }
};
struct Average {
  template <typename Codes>
  __device__ __forceinline__ static float value(const Part& p, int position, const Codes& codes) {
    int sum = 0;
#pragma unroll 1
    for (int j = 0; j < p.window; ++j) sum += p.a.integer(codes(p.a, position * p.window + j));
    return __fmul_rn(__fdiv_rn(static_cast<float>(sum), static_cast<float>(p.window)), *p.a.scale);
  }
  __device__ static void spread(const Part& p, int position, int channel, int lane, float g,
                                const GradientTarget& to_a, const GradientTarget& /*to_b*/) {
    const float share = __fdiv_rn(g, static_cast<float>(p.window));
#pragma unroll 1
    for (int j = 0; j < p.window; ++j) to_a(p.place(position * p.window + j, channel, lane), share);
  }
};

// Of one channel: below zero and behind the last one it is 0.
template <typename Real>
__device__ __forceinline__ float value_of(const Part& p, int position, int channel, int lane) {
  return Real::value(p, position,
                     [=](const Operand& x, int at) { return x.code(at, channel, lane); });
}

// A code as a float.
__device__ __forceinline__ float code_of_value(const Activation& a, float t) {
  return rintf(fminf(fmaxf(t, a.min_code), a.max_code));
}

// Every row of `out` at the part's channels, padding included. A quad that an earlier part began
// gets the rest of its codes.
template <typename Real>
__global__ void __launch_bounds__(kBlockThreads)
    join_codes(Part p, WarpsByRows grid, const Scalars* s, Tile out, uint32_t* words) {
  const int lane = grid.first_lane() + thread_x();
  const int quad = p.first_channel / kQuad + block_y() * kChannelRows + thread_y();
  if (quad * kQuad >= p.first_channel + p.channels) return;
  const int row = grid.row() - out.pad;
  uint32_t word = 0;
  if (row >= 0 && row < out.length) {
    const float act_scale = s->act_scale;
#pragma unroll 1
    for (int k = 0; k < kQuad; ++k) {
      const int channel = quad * kQuad - p.first_channel + k;
      float largest = 0;
      for (int j = 0; j < p.of.pool; ++j) {
        const float value = value_of<Real>(p, row * p.of.pool + j, channel, lane);
        const float code = code_of_value(p.of, __fdiv_rn(value, act_scale));
        largest = j == 0 ? code : fmaxf(largest, code);
      }
      word |= static_cast<uint32_t>(static_cast<int>(largest) & 0xff) << (8 * k);
    }
  }
  uint32_t* const to = words +
                       (static_cast<size_t>(row + out.pad) * static_cast<size_t>(out.quads()) +
                        static_cast<size_t>(quad)) *
                           static_cast<size_t>(p.of.lanes) +
                       static_cast<size_t>(lane);
  *to = quad * kQuad < p.first_channel ? *to | word : word;
}

// Real values, for the search for their percentile: [position][channel of the output][lane].
template <typename Real>
__global__ void __launch_bounds__(kBlockThreads) join_values(Part p, WarpsByRows grid, float* y) {
  const int lane = grid.first_lane() + thread_x();
  const int channel = block_y() * kChannelRows + thread_y();
  if (channel >= p.channels) return;
  y[p.of.place(grid.row(), p.first_channel + channel, lane)] =
      value_of<Real>(p, grid.row(), channel, lane);
}

// The gradients of the operands. partial[slice][channel of the output]: sums of dp * code - g * t.
// A block has a channel.
template <typename Real>
__global__ void __launch_bounds__(kBlockThreads, 4)
    join_gradient(Part p, GroupSlices slices, const Scalars* s, const float* dp,
                  GradientTarget to_a, GradientTarget to_b, double* partial) {
  const int channel = block_x();
  const float act_scale = s->act_scale;
  double sum = 0;
  slices.for_each([&](int row, int lane) {
    float t = 0, code = 0;
    int winner = 0;
#pragma unroll 1
    for (int j = 0; j < p.of.pool; ++j) {
      const float value = value_of<Real>(p, row * p.of.pool + j, channel, lane);
      const float t_j = __fdiv_rn(value, act_scale), code_j = code_of_value(p.of, t_j);
      if (j != 0 && code_j <= code) continue;
      t = t_j;
      code = code_j;
      winner = j;
    }
    const bool used = lane < p.of.frames;
    const float gradient = used ? dp[p.of.place(row, p.first_channel + channel, lane)] : 0.0F;
    const float g = passes<true>(p.of, t) ? gradient : 0.0F;
#pragma unroll 1
    for (int j = 0; j < p.of.pool; ++j) {
      Real::spread(p, row * p.of.pool + j, channel, lane, j == winner ? g : 0.0F, to_a, to_b);
    }
    sum += static_cast<double>(gradient) * static_cast<double>(code) -
           static_cast<double>(g) * static_cast<double>(t);
  });
  sum = block_sum(sum);
  if (thread_x() != 0) return;
  partial[static_cast<size_t>(block_y()) * static_cast<size_t>(p.of.channels) +
          static_cast<size_t>(p.first_channel + channel)] = sum;
}

// One block: the threshold's gradient, or that of the element that is the percentile.
__global__ void __launch_bounds__(kBlockThreads, 4)
    join_threshold(PartialSums slices, int channels, const double* partial, float max_code,
                   const float* threshold, bool collected, const double* act_scale_gradient,
                   float* threshold_gradient, Scalars* s) {
  double of_scale = 0;
  const int lane = thread_x() % kWarpLanes;
  for (int c = thread_x() / kWarpLanes; c < channels; c += kBlockWarps) {
    double sum = sum_of_group<kLanesOfGroup>(slices, lane / kLanesOfGroup, [&](int slice) {
      return partial[static_cast<size_t>(slice) * static_cast<size_t>(channels) +
                     static_cast<size_t>(c)];
    });
    for (int step = kLanesOfGroup; step < kWarpLanes; step *= 2)
      sum += __shfl_xor_sync(kWholeWarp, sum, step);
    if (lane == 0) of_scale += sum;
  }
  of_scale = block_sum(of_scale);
  if (thread_x() != 0) return;
  const double extra = act_scale_gradient != nullptr ? *act_scale_gradient : 0.0;
  const double of_threshold = (of_scale + extra) / static_cast<double>(max_code);
  const float v = *threshold;
  *threshold_gradient = collected ? 0.0F
                                  : static_cast<float>(v > 0   ? of_threshold
                                                       : v < 0 ? -of_threshold
                                                               : 0.0);
  s->statistic_gradient = collected && s->has_statistic != 0
                              ? static_cast<float>(of_threshold) * s->statistic_sign
                              : 0.0F;
}

// Adds the statistic's gradient to what the element was made of; a thread for each position of a
// window.
__global__ void __launch_bounds__(kBlockThreads)
    add_to_element(Part p, const Scalars* s, GradientTarget to_a, GradientTarget to_b) {
  if (s->has_statistic == 0) return;
  const unsigned place = s->statistic_place;
  const unsigned row_of_tiles = place / kCpuLanes / static_cast<unsigned>(p.of.channels);
  const int tile = static_cast<int>(row_of_tiles / static_cast<unsigned>(p.of.length));
  const int position = static_cast<int>(row_of_tiles % static_cast<unsigned>(p.of.length));
  const int lane = tile * kCpuLanes + static_cast<int>(place % kCpuLanes) - p.of.first_frame;
  const int channel = p.of.channel_of_number(place) - p.first_channel;
  if (lane < 0 || lane >= p.of.frames || channel < 0 || channel >= p.channels) return;
  const int window = max(p.window, 1);
  const float g = __fdiv_rn(s->statistic_gradient, static_cast<float>(window));
  for (int j = thread_x(); j < window; j += kBlockThreads) {
    const size_t at = p.place(position * window + j, channel, lane);
    if (to_a.values != nullptr) to_a.values[at] = __fadd_rn(to_a.values[at], g);
    if (to_b.values != nullptr) to_b.values[at] = __fadd_rn(to_b.values[at], g);
  }
}

// threshold: v; null: the percentile was found.
__global__ void __launch_bounds__(kBlockThreads)
    join_scale(const float* threshold, float max_code, Scalars* s) {
  if (threshold != nullptr) s->threshold = fmaxf(fabsf(*threshold), kMinQuantizerRange);
  s->act_scale = __fdiv_rn(s->threshold, max_code);
}

// Of a value that is itself: what find_percentile() multiplies and adds.
__global__ void __launch_bounds__(kBlockThreads)
    set_identity(int channels, float* gain, float* shift, float* xhat_gain, float* xhat_shift) {
  const int c = static_cast<int>(global_x());
  if (c >= channels) return;
  gain[c] = xhat_gain[c] = 1.0F;
  shift[c] = xhat_shift[c] = 0.0F;
}

__global__ void __launch_bounds__(kBlockThreads)
    add_values(const float* from, size_t count, float* to) {
  const size_t i = global_x();
  if (i < count) to[i] = __fadd_rn(to[i], from[i]);
}

Operand operand_of(const Input& x) {
  return {static_cast<const uint32_t*>(x.data),    x.tile.quads(), x.tile.pad, x.tile.lanes(),
          x.type == ElementType::kS8 ? 0x80U : 0U, x.scale};
}

// The launches of an operation.
class JoinPass {
 public:
  JoinPass(Join join, const LayerShape& shape, std::span<const Input> inputs, HiddenState& state,
           Stream stream)
      : join_(join), inputs_(inputs), state_(state), stream_(stream) {
    const Tile& x = inputs[0].tile;
    state.channels = static_cast<size_t>(shape.out_channels);
    state.constants.reserve(state.channels * HiddenState::kConstants);
    if (state.scalars.empty()) {
      state.scalars.reserve(1);
      set_bytes(state.scalars.data(), 0, sizeof(Scalars), stream);
    }
    of_ = {shape.length,
           shape.out_channels,
           x.lanes(),
           static_cast<int>(x.frames),
           shape.pool,
           static_cast<float>(shape.largest_code()),
           static_cast<float>(shape.smallest_code),
           state.constant(HiddenState::kGain),
           state.constant(HiddenState::kShift),
           x.groups(),
           static_cast<int>(x.frames_of_batch()),
           static_cast<int>(x.first_frame)};
    if (join.kind == Join::kConcat) {
      int channel = 0;
      for (const Input& input : inputs) {
        parts_.push_back({operand_of(input), {}, 0, channel, input.tile.channels, of_});
        channel += input.tile.channels;
      }
      return;
    }
    parts_.push_back({operand_of(inputs[0]), {}, join.window, 0, shape.out_channels, of_});
    if (join.kind == Join::kAdd) parts_[0].b = operand_of(inputs[1]);
  }

  void set_scale(const float* threshold) {
    launch(Where("join_scale", on()), Shape{dim3(1), dim3(1)}, join_scale, threshold, of_.max_code,
           state_.scalars.data());
  }

  void find_threshold(DeviceRanks* ranks) {
    launch(Where("set_identity", on()),
           Shape{dim3(blocks_for(state_.channels, kBlockThreads)), dim3(kBlockThreads)},
           set_identity, of_.channels, state_.constant(HiddenState::kGain),
           state_.constant(HiddenState::kShift), state_.constant(HiddenState::kXhatGain),
           state_.constant(HiddenState::kXhatShift));
    float* const y = state_.y.reserve(static_cast<size_t>(of_.length) * state_.channels *
                                      static_cast<size_t>(of_.lanes));
    const WarpsByRows grid = warps_by_rows(of_.lanes, of_.length);
    for (const Part& part : parts_) {
      launch(Where("join_values", on()), shape_of(grid, part.channels),
             with_real(join_values<OneValue>, join_values<SumOfTwo>, join_values<Average>), part,
             grid, y);
    }
    find_percentile(of_, state_, ranks, stream_);
  }

  void write(const Tile& out, void* out_data) {
    const WarpsByRows grid = warps_by_rows(of_.lanes, out.rows());
    for (const Part& part : parts_) {
      const int end = part.first_channel + part.channels;
      const int quads = (end + kQuad - 1) / kQuad - part.first_channel / kQuad;
      launch(Where("join_codes", on()), shape_of(grid, quads),
             with_real(join_codes<OneValue>, join_codes<SumOfTwo>, join_codes<Average>), part, grid,
             state_.scalars.data(), out, static_cast<uint32_t*>(out_data));
    }
  }

  void backward(const float* threshold, const float* dp, const double* act_scale_gradient,
                std::span<const JoinGradient> gradients, float* threshold_gradient,
                DeviceRanks* ranks) {
    for (size_t i = 0; i < gradients.size(); ++i) clear_left_over(gradients[i], i);
    GroupSlices slices(of_, of_.pooled_length());
    double* partial = state_.partial.reserve(static_cast<size_t>(slices.count()) * state_.channels);
    for (size_t i = 0; i < parts_.size(); ++i) {
      slices.channels = parts_[i].channels;  // of a launch
      launch(Where("join_gradient", on()), slices.shape(),
             with_real(join_gradient<OneValue>, join_gradient<SumOfTwo>, join_gradient<Average>),
             parts_[i], slices, state_.scalars.data(), dp, target(gradients[i]),
             join_.kind == Join::kAdd ? target(gradients[1]) : GradientTarget{}, partial);
    }
    PartialSums sums = slices.sums();
    if (!of_.groups.are_all_here()) {
      RowsOfGroups rows(*ranks, of_.groups, state_.channels, stream_);
      rows.put<kLanesOfGroup>(partial, state_.channels, sums);
      rows.exchange();
      sums = rows.sums();
      partial = rows.rows();
    }
    launch(Where("join_threshold", on()), Shape{dim3(1), dim3(kBlockThreads)}, join_threshold, sums,
           of_.channels, partial, of_.max_code, threshold, state_.collected, act_scale_gradient,
           threshold_gradient, state_.scalars.data());
    if (!state_.collected) return;
    for (size_t i = 0; i < parts_.size(); ++i) {
      launch(Where("add_to_element", on()), Shape{dim3(1), dim3(kBlockThreads)}, add_to_element,
             parts_[i], state_.scalars.data(), target(gradients[i]),
             join_.kind == Join::kAdd ? target(gradients[1]) : GradientTarget{});
    }
  }

 private:
  cudaStream_t on() const { return native(stream_); }
  // No gradient comes from positions that no window has.
  void clear_left_over(const JoinGradient& gradient, size_t input) const {
    if (gradient.dx == nullptr || gradient.add) return;
    const Tile& x = inputs_[input].tile;
    const size_t row = static_cast<size_t>(x.channels) * static_cast<size_t>(x.lanes());
    const int used = of_.pooled_length() * of_.pool * std::max(1, join_.window);
    set_bytes(gradient.dx + static_cast<size_t>(used) * row, 0,
              static_cast<size_t>(x.length - used) * row * sizeof(float), stream_);
  }
  static Shape shape_of(const WarpsByRows& grid, int rows) {
    return {dim3(grid.blocks(), blocks_for(static_cast<size_t>(rows), kChannelRows)),
            dim3(kWarpLanes, kChannelRows)};
  }
  static GradientTarget target(const JoinGradient& gradient) { return {gradient.dx, gradient.add}; }
  template <typename Kernel>
  Kernel* with_real(Kernel* of_one, Kernel* of_sum, Kernel* of_average) const {
    return join_.kind == Join::kConcat ? of_one : join_.kind == Join::kAdd ? of_sum : of_average;
  }

  Join join_;
  std::span<const Input> inputs_;
  HiddenState& state_;
  Stream stream_;
  Activation of_;
  std::vector<Part> parts_;
};

}  // namespace

void join_forward_train(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        const float* threshold, bool collect, HiddenState& state,
                        DeviceRanks* ranks, const Tile& out, void* out_data, Stream stream) {
  JoinPass pass(join, shape, inputs, state, stream);
  state.collected = collect;
  if (collect) pass.find_threshold(ranks);
  pass.set_scale(collect ? nullptr : threshold);
  pass.write(out, out_data);
}

void join_forward_eval(Join join, const LayerShape& shape, std::span<const Input> inputs,
                       const float* threshold, HiddenState& state, const Tile& out, void* out_data,
                       Stream stream) {
  JoinPass pass(join, shape, inputs, state, stream);
  state.collected = false;
  pass.set_scale(threshold);
  pass.write(out, out_data);
}

void join_backward(Join join, const LayerShape& shape, std::span<const Input> inputs,
                   const float* threshold, HiddenState& state, const float* dp,
                   const double* act_scale_gradient, std::span<const JoinGradient> gradients,
                   float* threshold_gradient, DeviceRanks* ranks, Stream stream) {
  JoinPass(join, shape, inputs, state, stream)
      .backward(threshold, dp, act_scale_gradient, gradients, threshold_gradient, ranks);
}

void add_gradient(const float* from, size_t count, float* to, Stream stream) {
  launch(Where("add_values", native(stream)),
         Shape{dim3(blocks_for(count, kBlockThreads)), dim3(kBlockThreads)}, add_values, from,
         count, to);
}

}  // namespace fmp::cuda
