// SPDX-License-Identifier: MIT
#include "experiments/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <optional>

#include "experiments/format.h"
#include "experiments/published_results.h"
#include "experiments/svg_chart.h"

namespace fmp {
namespace {

using nlohmann::json;

// Everything that is drawn takes its colors from these variables.
constexpr const char* kStyle = R"css(
:root { color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #5b6470; --grid: #dfe3e8;
  --one: #0b62c4; --two: #c2570c; --bad: #c0203a; --on-one: #ffffff; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --panel: #1d2127; --ink: #e8eaed; --soft: #a2abb6; --grid: #353b44;
  --one: #6cb0ff; --two: #ffab66; --bad: #ff7b8d; --on-one: #0c1420; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin-top: 20px; }
.tile { background: var(--panel); border-radius: 8px; padding: 12px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; text-align: right; vertical-align: bottom; }
td { text-align: right; white-space: nowrap; }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--grid); }
th.text, td.text { text-align: left; } td.wrap { white-space: normal;
  min-width: 240px; overflow-wrap: anywhere; }
tr.rejected { color: var(--soft); }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg.confusion { max-width: none; }
svg text { fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 11px; }
svg .title { font-size: 14px; font-weight: 600; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); }
svg .reference { stroke: var(--soft); stroke-dasharray: 2 4; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 6 4; }
svg .stroke1 { stroke: var(--one); } svg .stroke2 { stroke: var(--two); }
svg .fill1 { fill: var(--one); } svg .fill2 { fill: var(--two); }
svg .dot { stroke: var(--page); }
svg .cross { stroke: var(--bad); stroke-width: 2; fill: none; }
svg .back { fill: var(--panel); } svg .name { font-size: 11px; }
svg .weak { font-size: 11px; } svg .strong { font-size: 11px; fill: var(--on-one); }
@media print { :root { color-scheme: light; } }
)css";

const json kNull;

// The value at a path of keys; null when a key is missing on the way.
const json& at(const json& value, std::initializer_list<const char*> path) {
  const json* current = &value;
  for (const char* key : path) {
    const auto found = current->is_object() ? current->find(key) : current->end();
    if (!current->is_object() || found == current->end()) return kNull;
    current = &*found;
  }
  return *current;
}

// The number at a path, NaN when there is none.
double number(const json& value, std::initializer_list<const char*> path) {
  const json& found = at(value, path);
  return found.is_number() ? found.get<double>() : std::nan("");
}

// The text at a path; numbers, lists and the like as JSON; nothing for null.
std::string text(const json& value, std::initializer_list<const char*> path) {
  const json& found = at(value, path);
  if (found.is_null()) return "";
  return found.is_string() ? found.get<std::string>()
                           : found.dump(-1, ' ', false, json::error_handler_t::replace);
}

constexpr const char* kDash = "–";

std::string percent(double fraction) {
  return std::isfinite(fraction) ? format_percent(fraction) : kDash;
}

// A number with `digits` digits after the point.
std::string fixed(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : kDash;
}

// A whole number with commas between thousands.
std::string whole(double value) {
  return std::isfinite(value) ? format_count(std::llround(value)) : kDash;
}

std::string times(double ratio) {
  if (!std::isfinite(ratio)) return kDash;
  return ratio < 1000 ? fmt::format("{:.3g}×", ratio) : whole(ratio) + "×";
}

// The cost relative to the published 8-bit network; far below it the digits that say something.
std::string cost(double value) {
  return std::isfinite(value) && value > 0 && value < 0.001 ? fmt::format("{:.2g}", value)
                                                            : fixed(value, 4);
}

std::string duration(double seconds) {
  return std::isfinite(seconds) ? format_duration(seconds) : kDash;
}

// How a cell is set; the names are those of CSS classes.
constexpr const char* kNumber = "number";
constexpr const char* kText = "text";
constexpr const char* kLongText = "text wrap";  // may take several lines

// A column of a table: its heading and what it shows of a row.
struct Column {
  const char* heading;
  const char* style;
  std::function<std::string(const json&)> cell;  // text, not HTML
};

bool accepted(const json& round) {
  const json& value = at(round, {"accepted"});
  return value.is_boolean() && value.get<bool>();
}

std::string table(const std::vector<Column>& columns, const std::vector<json>& rows) {
  std::string html = "<div class=\"scroll\"><table><thead><tr>";
  for (const Column& column : columns) {
    html += fmt::format("<th class=\"{}\">{}</th>", column.style, column.heading);
  }
  html += "</tr></thead><tbody>\n";
  for (const json& row : rows) {
    const bool is_rejected_round = row.contains("accepted") && !accepted(row);
    html += is_rejected_round ? "<tr class=\"rejected\">" : "<tr>";
    for (const Column& column : columns) {
      html += fmt::format("<td class=\"{}\">{}</td>", column.style, escape_html(column.cell(row)));
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string render_header(const json& summary) {
  const json& result = at(summary, {"result"});
  std::string html = fmt::format(
      "<h1>Feedback Magnitude Pruning: report</h1>\n<p>{}</p>\n<p class=\"soft\">{}</p>\n",
      escape_html(text(summary, {"message"})),
      escape_html(fmt::format("{} {} · {} · {} frames · {}", text(summary, {"program"}),
                              text(summary, {"version"}), text(summary, {"data", "source"}),
                              whole(number(summary, {"data", "frames"})),
                              text(summary, {"host", "started"}))));
  if (!result.is_object()) return html;
  const json& baseline = at(summary, {"baseline"});
  const auto tile = [](const char* name, const std::string& value, const std::string& note) {
    return fmt::format("<div class=\"tile\">{}<b>{}</b><span class=\"soft\">{}</span></div>\n",
                       name, escape_html(value), escape_html(note));
  };
  html += "<div class=\"tiles\">\n";
  html += tile("Test accuracy", percent(number(result, {"accuracy", "test"})),
               "baseline " + percent(number(baseline, {"accuracy", "test"})));
  html += tile(
      "Compression", times(number(summary, {"compression", "true"})),
      fmt::format("{} of {} weights are not zero", whole(number(result, {"network", "nonzeros"})),
                  whole(number(result, {"network", "weights_original"}))));
  html += tile("Inference cost", cost(number(result, {"network", "cost"})),
               "baseline " + cost(number(baseline, {"network", "cost"})));
  html += tile("Took", duration(number(summary, {"timing", "seconds"})),
               fmt::format("{} rounds, {} epochs", whole(number(summary, {"rounds", "tried"})),
                           whole(number(summary, {"rounds", "epochs"}))));
  return html + "</div>\n";
}

ChartSeries snr_series(const json& result, const char* name, int color, bool dashed) {
  ChartSeries series{name, color, dashed, {}};
  for (const json& row : at(result, {"by_snr"})) {
    const double snr = number(row, {"snr_db"}), accuracy = number(row, {"accuracy"});
    series.points.push_back(
        {snr, accuracy, false,
         fmt::format("{} at {:.0f} dB: {} ({} of {} frames)", name, snr, percent(accuracy),
                     whole(number(row, {"correct"})), whole(number(row, {"frames"})))});
  }
  return series;
}

std::string render_snr(const json& summary) {
  Chart chart;
  chart.title = "Accuracy on the test split";
  chart.x_label = "SNR in dB";
  chart.scale = Scale::kUnit;
  chart.percent = true;
  chart.width = 960;
  chart.height = 340;
  chart.series = {snr_series(at(summary, {"baseline"}), "baseline", 2, true),
                  snr_series(at(summary, {"result"}), "result", 1, false)};
  const std::string svg = render_chart(chart);
  return svg.empty() ? "" : "<h2>Accuracy over SNR</h2>\n" + svg;
}

std::string outcome(const json& round) {
  const std::string name = text(round, {"outcome"});
  return (accepted(round) ? "✓ " : "✗ ") + name;
}

// A series with a point for each round that has this value.
ChartSeries round_series(const std::vector<json>& rounds, const char* name, int color,
                         std::initializer_list<const char*> path,
                         std::string (*show)(double value)) {
  ChartSeries series{name, color, false, {}};
  for (const json& round : rounds) {
    const double value = number(round, path);
    const std::string method = text(round, {"method"});
    const std::string pruned =
        method.empty() ? "baseline" : fmt::format("{}, p = {}", method, text(round, {"p"}));
    series.points.push_back({number(round, {"round"}), value, !accepted(round),
                             fmt::format("round {} ({}), {}: {} {}", text(round, {"round"}), pruned,
                                         text(round, {"outcome"}), name, show(value))});
  }
  return series;
}

std::string render_round_charts(const json& summary, const std::vector<json>& rounds) {
  Chart accuracy{"Accuracy on the " + text(summary, {"criterion", "split"}) + " split",
                 "round",
                 {},
                 {},
                 "",
                 Scale::kFit,
                 true};
  accuracy.series = {round_series(rounds, "accuracy", 1, {"criterion_accuracy"}, percent)};
  const double criterion = number(summary, {"criterion", "accuracy"});
  if (std::isfinite(criterion)) {
    accuracy.reference = criterion;
    accuracy.reference_label = "criterion " + percent(criterion);
  }
  Chart nonzeros{"Weights that are not zero", "round", {}, {}, "", Scale::kLog};
  nonzeros.series = {round_series(rounds, "nonzeros", 1, {"network", "nonzeros"}, whole)};
  Chart costs{"Inference cost (1 = published 8-bit network)", "round", {}, {}, "", Scale::kLog};
  costs.series = {round_series(rounds, "cost", 1, {"network", "cost"}, cost)};
  const double goal = number(summary, {"criterion", "cost"});
  if (std::isfinite(goal)) {
    costs.reference = goal;
    costs.reference_label = "goal " + cost(goal);
  }
  Chart speed{"Training speed in frames per second", "round", {}, {}, "", Scale::kZero};
  speed.series = {
      round_series(rounds, "frames per second", 1, {"timing", "frames_per_second"}, whole)};
  return "<div class=\"charts\">\n" + render_chart(accuracy) + render_chart(nonzeros) +
         render_chart(costs) + render_chart(speed) + "</div>\n";
}

// The bits of a network's weights or of what its layers read: "4", or "4–8" where they differ.
std::string bits_of(const json& network, const char* key = "weight_bits") {
  double low = std::nan(""), high = std::nan("");
  for (const json& layer : at(network, {"layers"})) {
    const double bits = number(layer, {key});
    low = std::isnan(low) ? bits : std::min(low, bits);
    high = std::isnan(high) ? bits : std::max(high, bits);
  }
  return low == high ? whole(low) : fmt::format("{}–{}", whole(low), whole(high));
}

std::string render_rounds(const json& summary, const std::vector<json>& rounds) {
  if (rounds.empty()) return "";
  const std::vector<Column> columns = {
      {"Round", kNumber, [](const json& r) { return text(r, {"round"}); }},
      {"Method", kText,
       [](const json& r) {
         const std::string method = text(r, {"method"});
         return method.empty() ? "baseline" : method;
       }},
      {"p", kNumber,
       [](const json& r) {
         const double p = number(r, {"p"});
         return std::isfinite(p) ? fmt::format("{:.4g}", p) : kDash;
       }},
      {"Outcome", kText, outcome},
      {"Accuracy", kNumber,
       [](const json& r) { return percent(number(r, {"criterion_accuracy"})); }},
      {"Epochs", kNumber, [](const json& r) { return text(r, {"epochs"}); }},
      {"Nonzeros", kNumber,
       [](const json& r) {
         return whole(number(r, {"network", "nonzeros"}));
       }},
      {"Weight bits", kNumber, [](const json& r) { return bits_of(at(r, {"network"})); }},
      {"Input bits", kNumber,
       [](const json& r) { return bits_of(at(r, {"network"}), "input_bits"); }},
      {"True compression", kNumber,
       [](const json& r) {
         return times(number(r, {"network", "true_compression"}));
       }},
      {"Eq. 5", kNumber,
       [](const json& r) {
         return times(number(r, {"network", "eq5_compression"}));
       }},
      {"Cost", kNumber,
       [](const json& r) {
         return cost(number(r, {"network", "cost"}));
       }},
      {"Seconds per epoch", kNumber,
       [](const json& r) {
         return fixed(number(r, {"timing", "seconds_per_epoch"}), 2);
       }},
      {"Frames/s", kNumber,
       [](const json& r) {
         return whole(number(r, {"timing", "frames_per_second"}));
       }},
      {"", kLongText, [](const json& r) { return text(r, {"message"}); }},
  };
  return "<h2>Rounds</h2>\n<p class=\"soft\">A dot is a round that reached the criterion and was "
         "kept; a cross is one that did not and was undone.</p>\n" +
         render_round_charts(summary, rounds) + table(columns, rounds);
}

std::string render_confusion_section(const json& summary) {
  const json& names = at(summary, {"data", "classes"});
  const json& rows = at(summary, {"result", "confusion"});
  if (!names.is_array() || !rows.is_array() || rows.size() != names.size() || rows.empty())
    return "";
  const auto classes = names.get<std::vector<std::string>>();
  const auto counts = rows.get<std::vector<std::vector<int64_t>>>();
  for (const auto& row : counts) {
    if (row.size() != classes.size()) return "";
  }
  return "<h2>Confusion matrix</h2>\n<p class=\"soft\">Rows: what was sent. Columns: what the "
         "pruned network took it for. In % of the frames of a row, test split, all SNRs.</p>\n"
         "<div class=\"scroll\">" +
         render_confusion(classes, counts) + "</div>\n";
}

// The plan with which a layer was trained in the round that produced the result, in words.
std::string plan_of(const json& plan, const std::string& layer) {
  for (const json& entry : plan) {
    if (text(entry, {"layer"}) != layer) continue;
    return fmt::format("{} / {} / {}", text(entry, {"forward"}), text(entry, {"backward_data"}),
                       text(entry, {"backward_weight"}));
  }
  return kDash;
}

std::string render_layers(const json& summary, const std::vector<json>& rounds) {
  const json& layers = at(summary, {"result", "network", "layers"});
  if (!layers.is_array()) return "";
  const json& result_round = at(summary, {"result", "round"});
  json plan;
  for (const json& round : rounds) {
    if (at(round, {"round"}) == result_round) plan = at(round, {"timing", "plan"});
  }
  const auto count = [](const char* key) {
    return [key](const json& layer) { return whole(number(layer, {key})); };
  };
  const std::vector<Column> columns = {
      {"Layer", kText, [](const json& l) { return text(l, {"name"}); }},
      {"Kind", kText, [](const json& l) { return text(l, {"kind"}); }},
      {"Inputs", kNumber, count("in_channels")},
      {"Outputs", kNumber, count("out_channels")},
      {"Kernel", kNumber, count("kernel")},
      {"Weight bits", kNumber, count("weight_bits")},
      {"Input bits", kNumber,
       [](const json& l) {
         return text(l, {"input_bits"}) + (l.value("signed_inputs", false) ? " signed" : "");
       }},
      {"Weights at first", kNumber, count("weights_original")},
      {"Weights", kNumber, count("weights")},
      {"Nonzeros", kNumber, count("nonzeros")},
      {"Density", kNumber, [](const json& l) { return percent(number(l, {"density"})); }},
      {"MACs", kNumber, count("macs")},
      {"bit_ops", kNumber, count("bit_ops")},
      {"bit_mem", kNumber, count("bit_mem")},
      {"Plan", kText, [&plan](const json& l) { return plan_of(plan, text(l, {"name"})); }},
  };
  return "<h2>Layers of the result</h2>\n<p class=\"soft\">Zeros cost nothing: MACs, bit_ops and "
         "bit_mem count nonzero weights. The plan says which kernels the layer was trained with."
         "</p>\n" +
         table(columns, layers.get<std::vector<json>>());
}

template <typename T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

json own_row(const json& result, const char* name) {
  const json& network = at(result, {"network"});
  json row = {{"name", name}, {"bits", bits_of(network)}};
  for (const char* key : {"bit_ops", "bit_mem", "cost", "eq5_compression", "true_compression"}) {
    row[key] = at(network, {key});
  }
  row["accuracy"] = at(result, {"accuracy", "test"});
  return row;
}

std::string render_published(const json& summary) {
  if (!at(summary, {"result", "network"}).is_object()) return "";
  std::vector<json> rows = {own_row(at(summary, {"baseline"}), "this run: baseline"),
                            own_row(at(summary, {"result"}), "this run: result")};
  for (const PublishedResult& published : kPublishedResults) {
    rows.push_back({{"name", published.network},
                    {"bits", published.bits ? std::to_string(*published.bits) : kDash},
                    {"bit_ops", or_null(published.bit_ops)},
                    {"bit_mem", or_null(published.bit_mem)},
                    {"cost", published.cost},
                    {"eq5_compression", or_null(published.eq5_compression)}});
  }
  const std::vector<Column> columns = {
      {"Network", kText, [](const json& r) { return text(r, {"name"}); }},
      {"Bits", kNumber, [](const json& r) { return text(r, {"bits"}); }},
      {"bit_ops", kNumber, [](const json& r) { return whole(number(r, {"bit_ops"})); }},
      {"bit_mem", kNumber, [](const json& r) { return whole(number(r, {"bit_mem"})); }},
      {"Cost", kNumber, [](const json& r) { return cost(number(r, {"cost"})); }},
      {"True compression", kNumber,
       [](const json& r) { return times(number(r, {"true_compression"})); }},
      {"Eq. 5", kNumber, [](const json& r) { return times(number(r, {"eq5_compression"})); }},
      {"Test accuracy", kNumber,
       [](const json& r) {
         const double accuracy = number(r, {"accuracy"});
         return std::isfinite(accuracy) ? percent(accuracy) : "≥ 56%";
       }},
  };
  return "<h2>Published results</h2>\n<p class=\"soft\">Networks published for RadioML 2018.01A, "
         "which reach 56% on its test split over all SNRs. Accuracies of this run are comparable "
         "when it used that data set as a whole. Eq. 5 is the compression that publications of "
         "FMP state: the product over all pruning steps tried, failed ones included; the true "
         "one counts the weights that are not zero.</p>\n" +
         table(columns, rows);
}

// A two-column table of the members of an object.
std::string render_members(const char* heading, const json& object) {
  if (!object.is_object() || object.empty()) return "";
  std::string html = fmt::format("<h2>{}</h2>\n<div class=\"scroll\"><table><tbody>\n", heading);
  for (const auto& [key, value] : object.items()) {
    html += fmt::format("<tr><td class=\"text\">{}</td><td class=\"text wrap\">{}</td></tr>\n",
                        escape_html(key), escape_html(text(object, {key.c_str()})));
  }
  return html + "</tbody></table></div>\n";
}

}  // namespace

std::string render_report(const json& summary, const std::vector<json>& rounds) {
  const std::string command = text(summary, {"command"});
  return fmt::format(
             "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
             "<title>Feedback Magnitude Pruning: report</title>\n<style>{}</style>\n</head>\n"
             "<body>\n",
             kStyle) +
         render_header(summary) + render_snr(summary) + render_rounds(summary, rounds) +
         render_confusion_section(summary) + render_layers(summary, rounds) +
         render_published(summary) +
         (command.empty()
              ? ""
              : "<h2>Command</h2>\n<p><code>" + escape_html(command) + "</code></p>\n") +
         render_members("Options", at(summary, {"options"})) +
         render_members("Machine", at(summary, {"host"})) + "</body>\n</html>\n";
}

}  // namespace fmp
