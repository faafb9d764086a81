// SPDX-License-Identifier: MIT
#include "experiments/lr_schedule.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "experiments/json_optional.h"

namespace fmp {

ReduceOnPlateau::ReduceOnPlateau(double learning_rate, int patience, double factor)
    : learning_rate_(learning_rate), factor_(factor), patience_(patience) {}

void ReduceOnPlateau::step(double accuracy) {
  if (!best_ || accuracy > *best_ * (1 + kThreshold)) {
    best_ = accuracy;
    bad_epochs_ = 0;
    return;
  }
  if (++bad_epochs_ <= patience_) return;
  bad_epochs_ = 0;
  const double reduced = learning_rate_ * factor_;
  if (learning_rate_ - reduced > kEpsilon) learning_rate_ = reduced;
}

nlohmann::json ReduceOnPlateau::to_json() const {
  return {{"learning_rate", learning_rate_},
          {"factor", factor_},
          {"patience", patience_},
          {"bad_epochs", bad_epochs_},
          {"best", json_or_null(best_)}};
}

ReduceOnPlateau ReduceOnPlateau::from_json(const nlohmann::json& json) {
  ReduceOnPlateau schedule(json.at("learning_rate"), json.at("patience"), json.at("factor"));
  schedule.bad_epochs_ = json.at("bad_epochs");
  schedule.best_ = optional_from<double>(json.at("best"));
  return schedule;
}

double cosine_rate(double learning_rate, int epoch, int epochs) {
  return learning_rate * (1 + std::cos(std::numbers::pi * epoch / epochs)) / 2;
}

bool EarlyStop::step(double accuracy) {
  if (!best_ || accuracy > *best_ + kMinimumGain) {
    best_ = accuracy;
    bad_epochs_ = 0;
    return false;
  }
  return ++bad_epochs_ >= patience_;
}

nlohmann::json EarlyStop::to_json() const {
  return {{"patience", patience_}, {"bad_epochs", bad_epochs_}, {"best", json_or_null(best_)}};
}

EarlyStop EarlyStop::from_json(const nlohmann::json& json) {
  EarlyStop stop(json.at("patience"));
  stop.bad_epochs_ = json.at("bad_epochs");
  stop.best_ = optional_from<double>(json.at("best"));
  return stop;
}

}  // namespace fmp
