// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>

namespace fmp {

// Lowers the learning rate when an accuracy stops rising:
// torch.optim.lr_scheduler.ReduceLROnPlateau with mode="max", threshold_mode="rel" and PyTorch's
// other defaults (threshold 1e-4, cooldown 0, min_lr 0, eps 1e-8).
class ReduceOnPlateau {
 public:
  static constexpr double kThreshold = 1e-4;  // an improvement is more than this share of the best
  static constexpr double kEpsilon = 1e-8;    // smaller changes of the rate are not made

  ReduceOnPlateau() = default;
  // The rate is multiplied by `factor` (0 < factor < 1) after more than `patience` >= 0 epochs in a
  // row without an improvement.
  ReduceOnPlateau(double learning_rate, int patience, double factor = 0.1);

  double learning_rate() const { return learning_rate_; }
  // Called once after each epoch with the accuracy that it reached.
  void step(double accuracy);

  nlohmann::json to_json() const;
  static ReduceOnPlateau from_json(const nlohmann::json& json);
  bool operator==(const ReduceOnPlateau&) const = default;

 private:
  double learning_rate_ = 0;
  double factor_ = 0.1;
  int patience_ = 0;
  int bad_epochs_ = 0;
  std::optional<double> best_;
};

// The rate of epoch `epoch` (from 0) of a round of `epochs`: half a cosine, from `learning_rate` in
// the first epoch to 0 after the last one. torch.optim.lr_scheduler.CosineAnnealingLR with
// T_max = epochs, stepped after each epoch (Loshchilov, Hutter: "SGDR", 2017, without restarts).
double cosine_rate(double learning_rate, int epoch, int epochs);

// Says when to give up: `patience` epochs in a row that do not exceed the best accuracy so far by
// more than kMinimumGain. Slow progress counts, because the best moves only with a counted gain.
class EarlyStop {
 public:
  static constexpr double kMinimumGain = 1e-3;  // what the published experiments asked for

  EarlyStop() = default;
  explicit EarlyStop(int patience) : patience_(patience) {}

  // Called once after each epoch; true when training should end.
  bool step(double accuracy);

  nlohmann::json to_json() const;
  static EarlyStop from_json(const nlohmann::json& json);
  bool operator==(const EarlyStop&) const = default;

 private:
  int patience_ = 1;
  int bad_epochs_ = 0;
  std::optional<double> best_;
};

}  // namespace fmp
