// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "experiments/experiment.h"
#include "experiments/fmp_controller.h"
#include "experiments/options.h"

namespace fmp {

// How long a run took, over all the invocations that it was made of.
struct RunTiming {
  double seconds = 0;
  int sessions = 0;
  std::string started;  // of the first one, UTC, "2025-01-31T12:00:00Z"
};

// What summary.json holds, but for what summarize_network() tells of the networks. `state` as the
// controller left it.
nlohmann::json summarize(const Options& options, const ControllerState& state,
                         const FmpExperiment& experiment, const RunTiming& timing);

// Fills in summary["baseline"] or summary["result"]: the round that produced the network, its
// accuracies and what the network costs.
nlohmann::json summarize_network(const RoundRecord& round, const FinalEvaluation& evaluation,
                                 size_t classes);

// The round that the best network of a run comes from: the open one, if it keeps its best epochs
// (RoundRecord::keeps_best) and completed one, else the last accepted one, else the baseline's.
// Empty when no epoch of that one completed.
std::optional<RoundRecord> result_round(const ControllerState& state,
                                        const FmpExperiment& experiment);

std::string utc_now();

}  // namespace fmp
