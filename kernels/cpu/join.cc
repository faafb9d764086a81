// SPDX-License-Identifier: MIT
// Operations without weights, forward and backward: the sum of two values, channels side by side,
// the average of windows; see Join in kernels/cpu/ops.h. Nothing is kept for the backward pass: a
// real value follows from a few codes.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/join.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as Highway wants it.
#include "hwy/highway.h"
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fmp::cpu::HWY_NAMESPACE {
namespace {

// The codes of an operand, as floats.
class Operand {
 public:
  HWY_INLINE explicit Operand(const JoinOperand& operand)
      : codes_(operand.codes),
        stride_(operand.stride),
        flip_(hn::Set(kLaneInts, operand.flip)),
        zero_(hn::Set(kLaneInts, operand.zero)),
        scale_(hn::Set(kFloats, operand.scale)) {}

  HWY_INLINE auto integer(int position, int at) const {
    const auto bytes = hn::LoadU(kLaneBytes, codes_ + position * stride_ + at);
    return hn::Sub(hn::Xor(hn::PromoteTo(kLaneInts, bytes), flip_), zero_);
  }
  HWY_INLINE V value(int position, int at) const {
    return hn::Mul(hn::ConvertTo(kFloats, integer(position, at)), scale_);
  }
  V scale() const { return scale_; }

 private:
  const uint8_t* codes_;
  ptrdiff_t stride_;
  hn::Vec<hn::RebindToSigned<FloatTag>> flip_, zero_;
  V scale_;
};

// Where the gradient of an operand goes.
struct GradientTarget {
  float* values;
  ptrdiff_t stride;
  bool add;

  HWY_INLINE explicit GradientTarget(const JoinGradientRows& rows)
      : values(rows.values), stride(rows.stride), add(rows.add) {}
  HWY_INLINE void operator()(int position, int at, V g) const {
    if (values == nullptr) return;
    float* to = values + position * stride + at;
    hn::Store(add ? hn::Add(hn::Load(kFloats, to), g) : g, kFloats, to);
  }
};

// Real values of one operand, of the sum of two, and of averages. spread() takes the gradient of a
// value to the operands.
struct OneValue {
  Operand a;
  HWY_INLINE explicit OneValue(const JoinRows& rows) : a(rows.a) {}
  HWY_INLINE V operator()(int position, int at) const { return a.value(position, at); }
  HWY_INLINE void spread(int position, int at, V g, const GradientTarget& to_a,
                         const GradientTarget& /*to_b*/) const {
    to_a(position, at, g);
  }
};

struct SumOfTwo {
  Operand a, b;
  HWY_INLINE explicit SumOfTwo(const JoinRows& rows) : a(rows.a), b(rows.b) {}
  HWY_INLINE V operator()(int position, int at) const {
    return hn::Add(a.value(position, at), b.value(position, at));
  }
  HWY_INLINE void spread(int position, int at, V g, const GradientTarget& to_a,
                         const GradientTarget& to_b) const {
    to_a(position, at, g);
    to_b(position, at, g);
  }
};

struct Average {
  Operand a;
  int window;
  V count;
  HWY_INLINE explicit Average(const JoinRows& rows)
      : a(rows.a), window(rows.window), count(hn::Set(kFloats, static_cast<float>(rows.window))) {}
  HWY_INLINE V operator()(int position, int at) const {
    auto sum = a.integer(position * window, at);
    for (int j = 1; j < window; ++j) sum = hn::Add(sum, a.integer(position * window + j, at));
    return hn::Mul(hn::Div(hn::ConvertTo(kFloats, sum), count), a.scale());
  }
  HWY_INLINE void spread(int position, int at, V g, const GradientTarget& to_a,
                         const GradientTarget& /*to_b*/) const {
    const V share = hn::Div(g, count);
    for (int j = 0; j < window; ++j) to_a(position * window + j, at, share);
  }
};

template <typename F>
HWY_INLINE void with_values(const JoinRows& rows, const F& f) {
  if (rows.window != 0) return f(Average(rows));
  if (rows.b.codes != nullptr) return f(SumOfTwo(rows));
  f(OneValue(rows));
}

template <bool kSigned>
HWY_INLINE void codes_of(const JoinRows& rows, const ActivationSpec& spec, float act_scale,
                         uint8_t* HWY_RESTRICT out, ptrdiff_t out_stride) {
  const Activation<true, kSigned> activation(spec);
  const V scale = hn::Set(kFloats, act_scale);
  const V zero = hn::Set(kFloats, static_cast<float>(rows.zero_written));
  const int windows = rows.positions / spec.pool, width = rows.channels * kLanes, pool = spec.pool;
  with_values(rows, [&](const auto& value) HWY_ATTR {
    for (int w = 0; w < windows; ++w) {
      for (int at = 0; at < width; at += kWidth) {
        // Codes never decrease with the value, so that the largest value has the largest code.
        V largest = value(w * pool, at);
        for (int j = 1; j < pool; ++j) largest = hn::Max(largest, value(w * pool + j, at));
        const V code = activation.pooled(hn::Div(largest, scale));
        store_pooled(hn::Add(code, zero), out + w * out_stride + at);
      }
    }
  });
}

void join_codes(const JoinRows& rows, const ActivationSpec& spec, float act_scale, uint8_t* out,
                ptrdiff_t out_stride) {
  if (spec.min_code < 0) {
    codes_of<true>(rows, spec, act_scale, out, out_stride);
  } else {
    codes_of<false>(rows, spec, act_scale, out, out_stride);
  }
}

void join_values(const JoinRows& rows, float* HWY_RESTRICT out) {
  with_values(rows, [&](const auto& value) HWY_ATTR {
    for (int l = 0; l < rows.positions; ++l, out += rows.channels * kLanes) {
      for (int at = 0; at < rows.channels * kLanes; at += kWidth) {
        hn::Store(value(l, at), kFloats, out + at);
      }
    }
  });
}

template <bool kSigned>
HWY_INLINE void gradient_of(const JoinRows& rows, const ActivationSpec& spec, float act_scale,
                            const float* dp, ptrdiff_t dp_stride, const JoinGradientRows& a,
                            const JoinGradientRows& b, double* totals) {
  const Activation<true, kSigned> activation(spec);
  const V scale = hn::Set(kFloats, act_scale), rounder = hn::Set(kFloats, kRounder);
  const GradientTarget to_a(a), to_b(b);
  const int pool = spec.pool;
  with_values(rows, [&](const auto& value) HWY_ATTR {
    for (int w = 0; w < rows.positions / pool; ++w, dp += dp_stride) {
      HWY_ALIGN float row_sums[kLanes];
      for (int v = 0; v < kVectors; ++v) {
        V sum = hn::Zero(kFloats);
        for (int at = v * kWidth; at < rows.channels * kLanes; at += kLanes) {
          const V dp_w = hn::Load(kFloats, dp + at);
          V t = hn::Div(value(w * pool, at), scale), code = activation.pooled(t);
          V winner = hn::Zero(kFloats);  // its position in the window; t and code are its own
          for (int j = 1; j < pool; ++j) {
            const V t_j = hn::Div(value(w * pool + j, at), scale);
            const V code_j = activation.pooled(t_j);
            const Mask wins = hn::Gt(code_j, code);
            winner = hn::IfThenElse(wins, hn::Set(kFloats, static_cast<float>(j)), winner);
            t = hn::IfThenElse(wins, t_j, t);
            code = hn::Max(code, code_j);
          }
          const V g = hn::IfThenElseZero(activation.within(t), dp_w);
          for (int j = 0; j < pool; ++j) {
            const Mask wins = hn::Eq(winner, hn::Set(kFloats, static_cast<float>(j)));
            value.spread(w * pool + j, at, hn::IfThenElseZero(wins, g), to_a, to_b);
          }
          sum = hn::MulAdd(dp_w, hn::Sub(code, rounder), sum);
          sum = hn::NegMulAdd(g, t, sum);
        }
        hn::Store(sum, kFloats, row_sums + v * kWidth);
      }
      for (int i = 0; i < kLanes; ++i) totals[i] += static_cast<double>(row_sums[i]);
    }
    for (int l = rows.positions / pool * pool; l < rows.positions; ++l) {  // that no window has
      for (int at = 0; at < rows.channels * kLanes; at += kWidth)
        value.spread(l, at, hn::Zero(kFloats), to_a, to_b);
    }
  });
}

void join_gradient(const JoinRows& rows, const ActivationSpec& spec, float act_scale,
                   const float* dp, ptrdiff_t dp_stride, const JoinGradientRows& a,
                   const JoinGradientRows& b, double* totals) {
  if (spec.min_code < 0) {
    gradient_of<true>(rows, spec, act_scale, dp, dp_stride, a, b, totals);
  } else {
    gradient_of<false>(rows, spec, act_scale, dp, dp_stride, a, b, totals);
  }
}

void add_values(const float* HWY_RESTRICT from, int64_t count, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < count; i += kWidth) {
    hn::Store(hn::Add(hn::Load(kFloats, to + i), hn::Load(kFloats, from + i)), kFloats, to + i);
  }
}

}  // namespace

void fill_join(Simd& table) {
  table.join_codes = join_codes;
  table.join_values = join_values;
  table.join_gradient = join_gradient;
  table.add_values = add_values;
}

}  // namespace fmp::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/hidden_pass.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/percentile.h"

namespace fmp::cpu {
HWY_EXPORT(fill_join);
void fill_join_table(Simd& table) { HWY_DYNAMIC_DISPATCH(fill_join)(table); }

namespace {

// Where tiles are cut: a tile is an item, a part what one table entry is called with, all of the
// channels or those of one of concat's inputs.
class JoinPass {
 public:
  JoinPass(Join join, const LayerShape& shape, std::span<const Input> inputs)
      : join_(join), shape_(shape), inputs_(inputs), spec_(activation_spec(shape)) {}

  int64_t tiles() const { return inputs_[0].tile.shape.tiles(); }
  int lanes_used(int64_t tile) const { return inputs_[0].tile.shape.lanes_used(tile); }
  // Real values per frame and channel.
  int positions() const { return shape_.length; }
  double count(const RunContext& context) const {
    const int64_t frames =
        context.share != nullptr ? context.share->batch_frames : inputs_[0].tile.shape.frames;
    return static_cast<double>(frames) * positions() * shape_.out_channels;
  }
  int64_t first_tile(const RunContext& context) const {
    return context.share != nullptr ? context.share->first_tile : 0;
  }

  // body(first channel, rows, first input) for each part of a tile.
  template <typename Body>
  void for_each_part(int64_t tile, const Body& body) const {
    if (join_.kind == Join::kConcat) {
      int channel = 0;
      for (size_t i = 0; i < inputs_.size(); ++i) {
        const int channels = inputs_[i].tile.shape.channels;
        body(channel, JoinRows{operand(i, tile), {}, 0, positions(), channels, 0}, i);
        channel += channels;
      }
      return;
    }
    JoinRows rows{operand(0, tile), {}, join_.window, positions(), shape_.out_channels, 0};
    if (join_.kind == Join::kAdd) rows.b = operand(1, tile);
    body(0, rows, size_t{0});
  }

  void write(float act_scale, TileView out, const RunContext& context) const {
    const ptrdiff_t stride = out.shape.row_elements();
    for_each_item(tiles(), context, [&](int64_t tile, Scratch&, LapTimer& timer, Profile& mine) {
      uint8_t* to = static_cast<uint8_t*>(out.data) + tile * out.shape.tile_elements() +
                    out.shape.pad * stride;
      for_each_part(tile, [&](int channel, const JoinRows& rows, size_t /*input*/) {
        simd().join_codes(rows, spec_, act_scale, to + channel * kLanes, stride);
      });
      timer.lap(mine.activation_forward);
    });
  }

  Percentile percentile(const RunContext& context) const {
    const size_t wanted = elements_from_percentile(count(context));
    const std::vector<float> ones(static_cast<size_t>(shape_.out_channels), 1.0F);
    const std::vector<float> zeros(ones.size(), 0.0F);
    std::vector<LargestElements> largest(static_cast<size_t>(tiles()));
    for_each_item(tiles(), context,
                  [&](int64_t tile, Scratch& scratch, LapTimer& timer, Profile& mine) {
                    for_each_part(tile, [&](int channel, const JoinRows& rows, size_t /*input*/) {
                      const ptrdiff_t stride = static_cast<ptrdiff_t>(rows.channels) * kLanes;
                      scratch.y.reserve(static_cast<size_t>(rows.positions * stride));
                      simd().join_values(rows, scratch.y.data());
                      for (int l = 0; l < rows.positions; ++l) {
                        largest[static_cast<size_t>(tile)].add_row(
                            {scratch.y.data() + l * stride, stride, 1, rows.channels},
                            {ones.data(), zeros.data()}, shape_.smallest_code < 0, lanes_used(tile),
                            (first_tile(context) + tile) * positions() + l, channel, wanted);
                      }
                    });
                    timer.lap(mine.activation_forward);
                  });
    return percentile_of(largest, wanted, ranks_of(context));
  }

  // The gradients of the inputs. Returns the batch's sum of dp * code - g * t.
  double backward(float act_scale, const ConstTileView& dp, std::span<const JoinGradient> gradients,
                  const RunContext& context) const {
    PartialSums partial(tiles(), kLanes);
    const ptrdiff_t stride = dp.shape.row_elements();
    for_each_item(tiles(), context, [&](int64_t tile, Scratch&, LapTimer& timer, Profile& mine) {
      const float* from = static_cast<const float*>(dp.data) + tile * dp.shape.tile_elements();
      for_each_part(tile, [&](int channel, const JoinRows& rows, size_t i) {
        const bool two = rows.b.codes != nullptr;
        simd().join_gradient(
            rows, spec_, act_scale, from + channel * kLanes, stride, target(gradients[i], tile),
            two ? target(gradients[i + 1], tile) : JoinGradientRows{}, partial.of(tile));
        if (rows.window != 0) clear_left_over(gradients[i], target(gradients[i], tile));
      });
      timer.lap(mine.activation_backward);
    });
    double sum = 0;
    for (const double lane : partial.total(ranks_of(context))) sum += lane;
    return sum;
  }

  // Adds g to the gradient of the inputs of one real value.
  void add_to_element(const JoinState& state, float g, std::span<const JoinGradient> gradients,
                      const RunContext& context) const {
    const int64_t tile = state.statistic_row / positions() - first_tile(context);
    if (tile < 0 || tile >= tiles()) return;  // another rank's
    const int64_t position = state.statistic_row % positions();
    for_each_part(tile, [&](int first, const JoinRows& rows, size_t i) {
      const int channel = state.statistic_channel - first;
      if (channel < 0 || channel >= rows.channels) return;
      const ptrdiff_t at = channel * kLanes + state.statistic_lane;
      const int window = std::max(rows.window, 1);
      const auto add_to = [&](const JoinGradient& gradient) {
        const JoinGradientRows to = target(gradient, tile);
        if (to.values == nullptr) return;
        for (int j = 0; j < window; ++j) {
          to.values[(position * window + j) * to.stride + at] += g / static_cast<float>(window);
        }
      };
      add_to(gradients[i]);
      if (rows.b.codes != nullptr) add_to(gradients[i + 1]);
    });
  }

 private:
  JoinOperand operand(size_t input, int64_t tile) const {
    const ConstTileView& x = inputs_[input].tile;
    const ptrdiff_t stride = x.shape.row_elements();
    const uint8_t sign = x.type == ElementType::kS8 ? 0x80 : 0;
    return {
        static_cast<const uint8_t*>(x.data) + tile * x.shape.tile_elements() + x.shape.pad * stride,
        stride, sign, sign, inputs_[input].scale};
  }
  static JoinGradientRows target(const JoinGradient& gradient, int64_t tile) {
    if (gradient.dx.data == nullptr) return {};
    return {static_cast<float*>(gradient.dx.data) + tile * gradient.dx.shape.tile_elements(),
            gradient.dx.shape.row_elements(), gradient.add};
  }

  // No gradient comes from positions that an average leaves over.
  void clear_left_over(const JoinGradient& gradient, const JoinGradientRows& of_tile) const {
    if (of_tile.values == nullptr || of_tile.add) return;
    const ptrdiff_t read = static_cast<ptrdiff_t>(shape_.length) * join_.window;
    std::fill(of_tile.values + read * of_tile.stride,
              of_tile.values + gradient.dx.shape.length * of_tile.stride, 0.0F);
  }

  Join join_;
  const LayerShape& shape_;
  std::span<const Input> inputs_;
  ActivationSpec spec_;
};

}  // namespace

void join_forward_train(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        float threshold, bool collect, JoinState& state, TileView out,
                        const RunContext& context) {
  const JoinPass pass(join, shape, inputs);
  state = {};
  state.collected = collect;
  state.threshold = std::max(std::fabs(threshold), kMinQuantizerRange);
  if (collect) {
    const Percentile found = pass.percentile(context);
    state.threshold = found.threshold;
    state.statistic_row = found.row;
    state.statistic_channel = found.channel;
    state.statistic_lane = found.lane;
    state.statistic_sign = found.value < 0 ? -1.0F : 1.0F;
  }
  state.act_scale = activation_scale(state.threshold, shape.largest_code());
  pass.write(state.act_scale, out, context);
}

float join_forward_eval(Join join, const LayerShape& shape, std::span<const Input> inputs,
                        float threshold, TileView out, const RunContext& context) {
  const float act_scale = activation_scale(threshold, shape.largest_code());
  JoinPass(join, shape, inputs).write(act_scale, out, context);
  return act_scale;
}

double join_backward(Join join, const LayerShape& shape, std::span<const Input> inputs,
                     float threshold, const JoinState& state, ConstTileView dp,
                     double act_scale_gradient, std::span<const JoinGradient> gradients,
                     const RunContext& context) {
  const JoinPass pass(join, shape, inputs);
  const double scale_gradient =
      pass.backward(state.act_scale, dp, gradients, context) + act_scale_gradient;
  const double of_threshold = scale_gradient / static_cast<double>(shape.largest_code());
  if (!state.collected) return threshold > 0 ? of_threshold : threshold < 0 ? -of_threshold : 0;
  if (state.statistic_row >= 0) {
    pass.add_to_element(state, static_cast<float>(of_threshold) * state.statistic_sign, gradients,
                        context);
  }
  return 0;
}

void add_gradient(ConstTileView from, TileView to, int threads) {
  const int64_t elements = from.shape.tile_elements();
  parallel_for(from.shape.tiles(), threads, [&](int64_t tile) {
    simd().add_values(static_cast<const float*>(from.data) + tile * elements, elements,
                      static_cast<float*>(to.data) + tile * elements);
  });
}

}  // namespace fmp::cpu
#endif
