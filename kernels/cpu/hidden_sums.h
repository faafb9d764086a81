// SPDX-License-Identifier: MIT
// The two sets of sums over the batch that batch-norm needs of a hidden layer, item by item, so
// that a neighbour can take them while it has the layer's operand in the cache:
//
//   SumsOfOutput     y and y^2 per channel, from the codes that the layer reads;
//   SumsOfGradient   g and g * y per channel and dp * code, from the gradient dp of its output, g
//                    being dp where it passes (HiddenState::passes).
//
// The first layer has few inputs, and nobody wants their gradient. Then nothing but sums is needed
// of it. With k over the inputs of a window, y = sum_k w_k x_k gives
//
//   sum y = sum_k w_k S_k              S_k = sum of x_k over the batch
//   sum y^2 = sum_kj w_k w_j P_kj      P_kj = sum of x_k x_j
//   sum g y = sum_k w_k G_k            G_k = sum of g x_k
//   dw_k = sum dy x_k = k_g G_k + k_y sum_j w_j P_kj + k_0 S_k    (dy = k_g g + k_y y + k_0)
//
// so that its gradient is used up where it is made: half of all gradients of a VGG never reach
// memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/conv_backward.h"
#include "kernels/cpu/hidden_pass.h"

namespace fmp::cpu {

// Whether a layer's sums are those of its inputs. Its inputs must be integers, so that they are
// exact.
bool sums_of_inputs_suffice(const HiddenOperands& layer);

class SumsOfOutput {
 public:
  explicit SumsOfOutput(const HiddenOperands& layer);

  const Items& items() const { return pass_.items(); }
  void add(int64_t item, Scratch& scratch, LapTimer& timer, Profile& profile);
  // Totals of the batch to the layer's state. ranks: that share it; null = it is here.
  void finish(Communicator* ranks);

 private:
  void add_runs(int64_t item, Scratch& scratch, LapTimer& timer, Profile& profile);
  void add_inputs(int64_t item, int r0, int rows, Scratch& scratch);
  void finish_inputs(Communicator* ranks);
  void finish_integers(Communicator* ranks);
  IntegerTotals* totals_of(int64_t item) {
    return integers_.data() + static_cast<size_t>(item) * pass_.channels();
  }

  HiddenPass pass_;
  HiddenState& state_;
  bool of_inputs_;
  std::vector<IntegerTotals> integers_;  // [items][O]
  PartialSums floats_;                   // otherwise: [items][2][O], or [items][K + K * K]
};

class SumsOfGradient final : public GradientTaker {
 public:
  SumsOfGradient(const HiddenOperands& layer, const BatchShare* share);

  const HiddenPass& pass() const { return pass_; }
  int64_t groups() const { return gradient_.groups(); }
  int64_t first_item(int64_t group) const { return gradient_.first_item(group); }

  void begin(Scratch& scratch) override;
  // dp: of pooled rows begin .. end - 1 of the item.
  void add(int64_t group, int64_t item, int begin, int end, const float* dp, Scratch& scratch,
           LapTimer& timer, Profile& profile) override;
  void end(int64_t group, Scratch& scratch) override;
  void finish(Communicator* ranks);

 private:
  size_t lane_sums() const { return pass_.channels() * kGradientSums * kLanes; }
  // From the lanes to the group's sums.
  void flush(int64_t group, Scratch& scratch);
  PooledGradient gradient(int64_t item, int first_row, const float* dp) const;
  void add_inputs(int64_t group, int64_t item, int r0, int rows, const PooledGradient& gradient,
                  Scratch& scratch, LapTimer& timer, Profile& profile);

  HiddenOperands layer_;
  HiddenPass pass_;
  HiddenState& state_;
  bool of_inputs_;
  WeightGradient gradient_;  // G
  PartialSums partial_;      // [groups][O][kGradientSums]
};

// Gradient of the weights, [O][T][C], of a layer that needs sums alone.
void weight_gradient_of_sums(const HiddenOperands& layer, const GradientAffine& step,
                             std::span<float> dweight);

}  // namespace fmp::cpu
