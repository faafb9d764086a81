// SPDX-License-Identifier: MIT
// Operations without weights, forward and backward, against plain code in double.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "framework/network/tensor.h"
#include "framework/random.h"
#include "kernels/cpu/ops.h"
#include "tests/join_cases.h"

namespace fmp {
namespace {

using Doubles = std::vector<double>;

// The element of an input and its share in a real value.
struct Term {
  size_t input;
  int position, channel;
  double share;
};
std::vector<Term> terms_of(const JoinOperands& o, int l, int c) {
  std::vector<Term> terms;
  if (o.test.join == Join::kConcat) {
    size_t input = 0;
    for (; c >= o.test.inputs[input].channels; ++input) c -= o.test.inputs[input].channels;
    terms.push_back({input, l, c, 1.0});
  } else if (o.test.join == Join::kAdd) {
    for (size_t input = 0; input < 2; ++input) terms.push_back({input, l, c, 1.0});
  } else {
    for (int j = 0; j < o.test.window; ++j)
      terms.push_back({0, l * o.test.window + j, c, 1.0 / o.test.window});
  }
  return terms;
}
double value_at(const JoinOperands& o, int64_t n, int l, int c) {
  double value = 0;
  for (const Term& term : terms_of(o, l, c)) {
    const Tensor& x = o.codes[term.input];
    value += term.share * static_cast<double>(o.test.inputs[term.input].scale) *
             code_of(x, place(x.tile_shape(), n, term.position, term.channel));
  }
  return value;
}

struct Expected {
  double threshold = 0;  // |v|
  Doubles codes;         // [N][L / pool][C]
  double threshold_gradient = 0;
  std::vector<Doubles> dx;  // of each input, by its tile's place
};

Expected expected_of(const JoinOperands& o, double act_scale_gradient) {
  Expected e;
  const TileShape unpooled{o.test.frames, o.shape.length, o.shape.out_channels, 0};
  e.threshold = std::fabs(static_cast<double>(o.test.threshold));
  struct Place {
    int64_t n;
    int l, c;
  } statistic{};
  double sign = 1;
  if (o.test.collect) {
    struct Element {
      double size, value;
      Place at;
    };
    std::vector<Element> all;
    for_each(unpooled, [&](int64_t n, int l, int c) {
      const double value = value_at(o, n, l, c);
      all.push_back({o.test.smallest_code < 0 ? std::fabs(value) : value, value, {n, l, c}});
    });
    std::ranges::stable_sort(all, std::less<>(), &Element::size);
    const double k =
        std::floor(0.01 * kThresholdPercentile * static_cast<double>(all.size()) + 0.5);
    // Of equal ones the first in the order of tiles, positions, channels, lanes.
    const double size = all[static_cast<size_t>(k) - 1].size;
    const auto key = [](const Element& x) {
      return std::tuple(x.at.n / kLanes, x.at.l, x.at.c, x.at.n % kLanes);
    };
    const Element* first = nullptr;
    for (const Element& x : all) {
      if (std::fabs(x.size - size) > 1e-6 * size) continue;
      if (first == nullptr || key(x) < key(*first)) first = &x;
    }
    e.threshold = size;
    statistic = first->at;
    sign = first->value < 0 ? -1 : 1;
  }
  const double largest = o.shape.largest_code(), smallest = o.shape.smallest_code;
  const double scale = e.threshold / largest;
  for (size_t i = 0; i < o.codes.size(); ++i) {
    const Tensor& before = o.before[i];
    e.dx.emplace_back(static_cast<size_t>(before.size()), 0.0);
    if (!o.test.add) continue;
    for (size_t at = 0; at < e.dx[i].size(); ++at)
      e.dx[i][at] = static_cast<double>(before.data<float>()[at]);
  }
  const auto spread = [&](const Place& at, double g) {
    for (const Term& term : terms_of(o, at.l, at.c))
      e.dx[term.input][place(o.before[term.input].tile_shape(), at.n, term.position,
                             term.channel)] += term.share * g;
  };
  double scale_gradient = act_scale_gradient;
  for_each(o.dp.tile_shape(), [&](int64_t n, int w, int c) {
    double best = 0, best_t = 0;
    int winner = -1;
    for (int j = 0; j < o.test.pool; ++j) {
      const double t = value_at(o, n, w * o.test.pool + j, c) / scale;
      const double code = std::clamp(std::nearbyint(t), smallest, largest);
      if (winner >= 0 && code <= best) continue;
      best = code;
      best_t = t;
      winner = w * o.test.pool + j;
    }
    e.codes.push_back(best);
    const double g = static_cast<double>(o.dp.data<float>()[place(o.dp.tile_shape(), n, w, c)]);
    const bool passes = std::nearbyint(best_t) <= largest &&
                        (smallest < 0 ? std::nearbyint(best_t) >= smallest : best_t > 0);
    scale_gradient += g * (passes ? best - best_t : best);
    if (passes) spread({n, winner, c}, g);
  });
  const double of_threshold = scale_gradient / largest;
  if (o.test.collect) {
    spread(statistic, sign * of_threshold);
  } else {
    e.threshold_gradient = o.test.threshold < 0 ? -of_threshold : of_threshold;
  }
  return e;
}

struct Result {
  Tensor out, out_eval;
  cpu::JoinState state;
  double threshold_gradient = 0;
  std::vector<Tensor> dx;
};

constexpr double kScaleGradient = 0.37;

Result run(const JoinOperands& o, int threads) {
  Result r;
  TileShape out = o.dp.tile_shape();
  out.pad = 2;
  for (Tensor* tile : {&r.out, &r.out_eval}) {
    *tile = Tensor::tile(out, o.shape.output_type());
    tile->fill_zero();
  }
  const std::vector<cpu::Input> inputs = o.inputs();
  const cpu::RunContext context{threads};
  cpu::join_forward_train(o.test.whole_join(), o.shape, inputs, o.test.threshold, o.test.collect,
                          r.state, r.out.view(), context);
  const float scale = cpu::join_forward_eval(o.test.whole_join(), o.shape, inputs,
                                             r.state.threshold, r.out_eval.view(), context);
  EXPECT_EQ(scale, r.state.act_scale);
  std::vector<cpu::JoinGradient> gradients;
  for (const Tensor& before : o.before) {
    r.dx.push_back(before.clone());
    gradients.push_back({r.dx.back().view(), o.test.add});
  }
  r.threshold_gradient =
      cpu::join_backward(o.test.whole_join(), o.shape, inputs, o.test.threshold, r.state,
                         o.dp.view(), kScaleGradient, gradients, context);
  return r;
}

class JoinTest : public testing::TestWithParam<JoinCase> {};

TEST_P(JoinTest, IsWhatPlainCodeSays) {
  const JoinOperands o(GetParam());
  const Expected e = expected_of(o, kScaleGradient);
  const Result r = run(o, 2);
  EXPECT_NEAR(r.state.threshold, e.threshold, 1e-6);
  const TileShape& out = r.out.tile_shape();
  size_t at = 0;
  int different = 0;
  for_each(out, [&](int64_t n, int l, int c) {
    const size_t element = place(out, n, l, c);
    EXPECT_NEAR(code_of(r.out, element), e.codes[at], 1e-9) << n << ' ' << l << ' ' << c;
    EXPECT_EQ(code_of(r.out_eval, element), code_of(r.out, element));
    if (e.codes[at++] != e.codes[0]) ++different;
  });
  EXPECT_GT(different, std::ssize(e.codes) / 4);
  EXPECT_NEAR(r.threshold_gradient, e.threshold_gradient, 1e-4);
  for (size_t i = 0; i < r.dx.size(); ++i) {
    for_each(r.dx[i].tile_shape(), [&](int64_t n, int l, int c) {
      const size_t element = place(r.dx[i].tile_shape(), n, l, c);
      EXPECT_NEAR(r.dx[i].data<float>()[element], e.dx[i][element], 1e-5)
          << "input " << i << ": " << n << ' ' << l << ' ' << c;
    });
  }
}

TEST_P(JoinTest, ThreadsAndInstructionSetChangeNoBit) {
  const JoinOperands o(GetParam());
  const Result expected = run(o, 1);
  const std::string best = cpu::target_name();
  for (const std::string& target : cpu::target_names()) {
    if (target.starts_with("SSE") || target == "SSSE3") continue;  // no fused multiply-add
    cpu::use_target(target);
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(target);
      const Result r = run(o, threads);
      const auto expect_same = [&](const Tensor& a, const Tensor& b) {
        EXPECT_TRUE(
            std::equal(a.data<std::byte>(), a.data<std::byte>() + a.bytes(), b.data<std::byte>()));
      };
      expect_same(r.out, expected.out);
      EXPECT_EQ(r.threshold_gradient, expected.threshold_gradient);
      for (size_t i = 0; i < r.dx.size(); ++i) expect_same(r.dx[i], expected.dx[i]);
    }
  }
  cpu::use_target(best);
}

INSTANTIATE_TEST_SUITE_P(Joins, JoinTest, testing::ValuesIn(kJoinCases),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(AddGradientTest, AddsEveryElement) {
  Random random(3, "add");
  const TileShape shape{35, 3, 2, 0};
  const Tensor from = random_floats(shape, random);
  Tensor to = random_floats(shape, random);
  const Tensor before = to.clone();
  cpu::add_gradient(from.view(), to.view(), 2);
  for (int64_t i = 0; i < to.size(); ++i)
    EXPECT_EQ(to.data<float>()[i], before.data<float>()[i] + from.data<float>()[i]);
}

}  // namespace
}  // namespace fmp
