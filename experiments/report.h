// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace fmp {

// The page report.html of a run: how the accuracy depends on the SNR, which classes are taken for
// which, what each round did to accuracy, cost, size and speed, and the layers, options and machine
// behind it. One file without scripts or links to anything else, for light and dark mode.
// `summary` is what summary.json holds and `rounds` are the lines of rounds.jsonl; values that are
// null or missing are left out or shown as a dash.
std::string render_report(const nlohmann::json& summary, const std::vector<nlohmann::json>& rounds);

}  // namespace fmp
