// SPDX-License-Identifier: MIT
#include "experiments/report.h"

#include <gtest/gtest.h>

#include <limits>
#include <regex>
#include <string>
#include <vector>

#include "experiments/svg_chart.h"

namespace fmp {
namespace {

using nlohmann::json;

json layer(const std::string& name, int64_t nonzeros) {
  return {{"name", name},
          {"kind", "conv"},
          {"in_channels", 64},
          {"out_channels", 61},
          {"kernel", 3},
          {"positions", 512},
          {"weight_bits", 4},
          {"input_bits", 4},
          {"weights", 12288},
          {"weights_original", 12288},
          {"weights_alive", nonzeros},
          {"nonzeros", nonzeros},
          {"density", static_cast<double>(nonzeros) / 12288},
          {"macs", nonzeros * 512},
          {"bit_ops", nonzeros * 512 * 16},
          {"bit_mem", nonzeros * 4}};
}

json network(int64_t nonzeros) {
  return {{"weights_original", 159104},
          {"weights", 159104},
          {"weights_alive", nonzeros},
          {"nonzeros", nonzeros},
          {"true_compression", 159104.0 / static_cast<double>(nonzeros)},
          {"eq5_compression", 813.0},
          {"macs", 1},
          {"bit_ops", 1},
          {"bit_mem", 1},
          {"cost", 0.0419},
          {"layers", {layer("conv1", 300), layer("conv2", 4321)}}};
}

json result(int round, double accuracy) {
  return {{"round", round},
          {"method", nullptr},
          {"accuracy", {{"train", 0.6}, {"validation", 0.57}, {"test", accuracy}}},
          {"by_snr",
           {{{"snr_db", -20}, {"frames", 100}, {"correct", 5}, {"accuracy", 0.05}},
            {{"snr_db", 0}, {"frames", 100}, {"correct", 47}, {"accuracy", 0.47}},
            {{"snr_db", 30}, {"frames", 100}, {"correct", 93}, {"accuracy", 0.93}}}},
          {"confusion", {{90, 10, 0}, {1, 98, 1}, {0, 0, 0}}},
          {"network", network(16654)}};
}

json summary() {
  return {{"program", "fmp_radioml"},
          {"version", "0.1.0"},
          {"status", "finished"},
          {"message", "finished"},
          {"command", "fmp_radioml --data 'a b.h5'"},
          {"options", {{"data", "a b.h5"}, {"p", 0.2}, {"time-limit", nullptr}}},
          {"data", {{"source", "a b.h5"}, {"frames", 1234567}, {"classes", {"OOK", "4ASK", "FM"}}}},
          {"criterion", {{"requested", "0.56"}, {"accuracy", 0.56}, {"split", "validation"}}},
          {"baseline", result(0, 0.6123)},
          {"result", result(1, 0.5678)},
          {"rounds", {{"tried", 2}, {"accepted", 1}, {"epochs", 17}}},
          {"compression", {{"true", 9.5535}, {"eq5", 813.0}}},
          {"timing", {{"seconds", 3723.0}}},
          {"host", {{"cpu", "Test CPU"}, {"threads", 2}}}};
}

json round(int number, const std::string& outcome, int64_t nonzeros) {
  return {{"round", number},
          {"method", number == 0 ? json() : json("unstructured-l1")},
          {"p", number == 0 ? json() : json(0.2)},
          {"outcome", outcome},
          {"accepted", outcome == "accepted"},
          {"message", outcome == "accepted" ? "" : "reached 0.541 of 0.560"},
          {"criterion_accuracy", outcome == "diverged" ? json() : json(0.565)},
          {"epochs", 4},
          {"network", network(nonzeros)},
          {"timing",
           {{"seconds", 12.0},
            {"seconds_per_epoch", 3.25},
            {"frames_per_second", 1234.0},
            {"plan",
             {{{"layer", "conv2"},
               {"forward", "sparse"},
               {"backward_data", "dense"},
               {"backward_weight", "sparse"}}}}}}};
}

std::vector<json> rounds() {
  return {round(0, "accepted", 159104), round(1, "accepted", 16654), round(2, "rejected", 14000),
          round(3, "diverged", 13000)};
}

size_t count(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  return static_cast<size_t>(
      std::distance(std::sregex_iterator(text.begin(), text.end(), regex), std::sregex_iterator()));
}

// The text between the heading `heading` and the next one.
std::string section(const std::string& html, const std::string& heading) {
  const size_t begin = html.find("<h2>" + heading);
  if (begin == std::string::npos) return "";
  return html.substr(begin, html.find("<h2>", begin + 4) - begin);
}

// Walks the tags and returns the first that is closed out of order, or "" when all nest.
std::string first_misnested_tag(const std::string& html) {
  static const std::regex kTag(R"(<(/?)([a-z0-9]+)((?:"[^"]*"|[^>"])*?)(/?)>)");
  std::vector<std::string> open;
  for (auto it = std::sregex_iterator(html.begin(), html.end(), kTag); it != std::sregex_iterator();
       ++it) {
    const std::string name = (*it)[2];
    if (name == "meta" || (*it)[4].length() > 0) continue;
    if ((*it)[1].length() == 0) {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return "</" + name + "> at " + std::to_string(it->position());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : "<" + open.back() + "> not closed";
}

TEST(Report, ShowsTheGoalOnCostAndTheBitsOfEveryRound) {
  json with_goal = summary();
  EXPECT_EQ(render_report(with_goal, rounds()).find("goal 0."), std::string::npos);
  with_goal["criterion"]["cost"] = 0.0123;
  std::vector<json> records = rounds();
  records[2]["network"]["layers"][1]["weight_bits"] = 3;
  records[2]["network"]["layers"][1]["input_bits"] = 2;
  const std::string html = render_report(with_goal, records);
  EXPECT_NE(html.find("goal 0.0123"), std::string::npos);
  const std::string table = section(html, "Rounds");
  EXPECT_EQ(count(table, ">3–4</td>"), 1U);
  EXPECT_EQ(count(table, ">2–4</td>"), 1U);
}

TEST(Report, TagsNestAndNothingIsLoadedFromElsewhere) {
  const std::string html = render_report(summary(), rounds());
  EXPECT_EQ(first_misnested_tag(html), "");
  EXPECT_EQ(html.rfind("<!DOCTYPE html>", 0), 0u);
  for (const char* outside : {"<script", "<link", "<img", "http:", "https:", "url(", "@import"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
  EXPECT_NE(html.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_EQ(count(html, "[> ]-?(nan|inf)"), 0u);
}

TEST(Report, HeadlineNumbers) {
  const std::string html = render_report(summary(), rounds());
  for (const char* shown : {"56.78%", "baseline 61.23%", "9.55×", "16,654 of 159,104", "0.0419",
                            "1 h 2 min", "2 rounds, 17 epochs", "1,234,567 frames"}) {
    EXPECT_NE(html.find(shown), std::string::npos) << shown;
  }
}

TEST(Report, AccuracyOverSnrHasAPointForEachSnrOfBothNetworks) {
  const std::string chart = section(render_report(summary(), rounds()), "Accuracy over SNR");
  EXPECT_EQ(count(chart, R"(<circle class="dot)"), 6u);
  EXPECT_NE(chart.find("result at 0 dB: 47.00% (47 of 100 frames)"), std::string::npos);
  EXPECT_NE(chart.find("baseline at 30 dB"), std::string::npos);
}

TEST(Report, RejectedRoundsAreToldApart) {
  const std::string html = section(render_report(summary(), rounds()), "Rounds");
  // Four charts with a mark per round; the diverged round has no accuracy.
  EXPECT_EQ(count(html, R"(<circle class="dot)"), 4u * 2u);
  EXPECT_EQ(count(html, R"(<path class="cross")"), 3u * 2u + 1u);
  EXPECT_EQ(count(html, R"(<tr class="rejected">)"), 2u);
  EXPECT_EQ(count(html, "reached 0.541 of 0.560"), 2u);
  EXPECT_EQ(count(html, "unstructured-l1</td>"), 3u);
  EXPECT_NE(html.find("criterion 56.00%"), std::string::npos);
  EXPECT_NE(html.find(">3.25<"), std::string::npos);
}

TEST(Report, ConfusionMatrixIsShadedByTheShareOfTheTrueClass) {
  const std::string html = section(render_report(summary(), rounds()), "Confusion matrix");
  EXPECT_EQ(count(html, R"(<rect class="fill1")"), 9u);
  EXPECT_EQ(count(html, R"(fill-opacity="0\.900")"), 1u);
  EXPECT_EQ(count(html, R"(fill-opacity="0\.010")"), 2u);
  EXPECT_NE(html.find("4ASK taken for OOK: 1 of 100 (1.0%)"), std::string::npos);
  EXPECT_NE(html.find("FM taken for FM: 0 of 0 (0.0%)"), std::string::npos);
  EXPECT_EQ(count(html, R"(<text class="name")"), 6u);
}

TEST(Report, LayersWithTheirPlan) {
  const std::string html = section(render_report(summary(), rounds()), "Layers");
  EXPECT_EQ(count(html, "<tr><td"), 2u);
  EXPECT_NE(html.find("sparse / dense / sparse"), std::string::npos);  // conv2
  EXPECT_EQ(count(html, "–</td>"), 1u);                                // conv1 has no plan
  EXPECT_NE(html.find("35.16%"), std::string::npos);                   // 4321 / 12288
  EXPECT_NE(html.find("2,212,352"), std::string::npos);                // 4321 * 512
}

TEST(Report, PublishedResultsStandBesideTheRun) {
  const std::string html = section(render_report(summary(), rounds()), "Published results");
  EXPECT_EQ(count(html, "<tr>"), 1U + 2U + 9U);  // heading, this run, published
  EXPECT_EQ(count(html, "this run"), 2U + 1U);   // and the explanation
  for (const char* text : {"24,601,600", "0.0419", "0.0157", "5,821", "56.78%", "1,244,936"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
}

TEST(Report, TextIsEscaped) {
  json evil = summary();
  const std::string attack = R"(<script>alert("1")</script>&'x)";
  evil["data"]["source"] = attack;
  evil["data"]["classes"][0] = attack;
  evil["options"]["data"] = attack;
  evil["options"][attack] = {attack};
  evil["message"] = evil["command"] = evil["host"]["cpu"] = attack;
  std::vector<json> lines = rounds();
  lines[2]["message"] = lines[2]["method"] = attack;
  const std::string html = render_report(evil, lines);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(first_misnested_tag(html), "");
  EXPECT_NE(html.find("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;x"),
            std::string::npos);
}

TEST(Report, BaselineThatFailedHasNoResult) {
  json failed = summary();
  failed["status"] = "baseline_failed";
  failed["baseline"] = failed["result"] = nullptr;
  failed["criterion"]["accuracy"] = nullptr;
  const std::string html = render_report(failed, {round(0, "diverged", 159104)});
  EXPECT_EQ(first_misnested_tag(html), "");
  EXPECT_EQ(html.find("Confusion matrix"), std::string::npos);
  EXPECT_NE(html.find("✗ diverged"), std::string::npos);
  EXPECT_EQ(count(html, "[> ]-?(nan|inf)"), 0u);
}

TEST(Report, NumbersFarFromThePublishedOnesStayReadable) {
  json tiny = summary();
  tiny["compression"]["true"] = 16864.0;
  tiny["result"]["network"]["cost"] = 0.0000234;
  const std::string html = render_report(tiny, rounds());
  EXPECT_NE(html.find("<b>16,864×</b>"), std::string::npos);
  EXPECT_NE(html.find("<b>2.3e-05</b>"), std::string::npos);
}

TEST(Report, NothingKnownIsStillAPage) {
  EXPECT_EQ(first_misnested_tag(render_report(json::object(), {})), "");
}

TEST(Report, ConfusionOfAnotherShapeThanTheClassesIsLeftOut) {
  json wrong = summary();
  wrong["result"]["confusion"] = {{1, 2, 3}, {4, 5}, {6, 7, 8}};
  EXPECT_EQ(section(render_report(wrong, rounds()), "Confusion matrix"), "");
}

TEST(SvgChart, ShortNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(0.04192), "0.0419");
  EXPECT_EQ(short_number(999.4), "999");
  EXPECT_EQ(short_number(999.7), "1k");
  EXPECT_EQ(short_number(159104), "159k");
  EXPECT_EQ(short_number(999600), "1M");
  EXPECT_EQ(short_number(-807699904), "-808M");
}

// The pixel positions of the dots, in the order of the points.
std::vector<double> dot_heights(const Chart& chart) {
  static const std::regex kDot(R"re(<circle class="dot[^>]* cy="([0-9.]+)")re");
  const std::string svg = render_chart(chart);
  std::vector<double> heights;
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), kDot); it != std::sregex_iterator();
       ++it) {
    heights.push_back(std::stod((*it)[1]));
  }
  return heights;
}

TEST(SvgChart, LogScalePutsEqualRatiosAtEqualDistances) {
  Chart chart;
  chart.scale = Scale::kLog;
  chart.series = {{"", 1, false, {{0, 1000, false, ""}, {1, 100, false, ""}, {2, 10, false, ""}}}};
  const std::vector<double> y = dot_heights(chart);
  ASSERT_EQ(y.size(), 3u);
  EXPECT_NEAR(y[1] - y[0], y[2] - y[1], 0.11);  // positions are printed to 0.1
  EXPECT_GT(y[1] - y[0], 20);                   // downwards on the screen is down in value
}

TEST(SvgChart, ZeroOnALogScaleFallsBackToLinear) {
  Chart chart;
  chart.scale = Scale::kLog;
  chart.series = {{"", 1, false, {{0, 100, false, ""}, {1, 50, false, ""}, {2, 0, false, ""}}}};
  const std::vector<double> y = dot_heights(chart);
  ASSERT_EQ(y.size(), 3u);
  EXPECT_NEAR(y[1] - y[0], y[2] - y[1], 0.11);
}

TEST(SvgChart, EveryPointStaysInsideThePlot) {
  for (const Scale scale : {Scale::kZero, Scale::kFit, Scale::kLog}) {
    for (const double value : {1e-9, 0.3, 1.0, 7.0, 12345.678, 9.9e11}) {
      Chart chart;
      chart.scale = scale;
      chart.series = {{"", 1, false, {{0, value, false, ""}, {1, value * 1.7, false, ""}}}};
      for (const double y : dot_heights(chart)) {
        EXPECT_GT(y, 20) << value;
        EXPECT_LT(y, chart.height - 20) << value;
      }
      chart.series[0].points.resize(1);  // a single value has a range of zero
      EXPECT_EQ(dot_heights(chart).size(), 1u) << value;
    }
  }
}

TEST(SvgChart, PointsWithoutAValueAreLeftOut) {
  Chart chart;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  chart.series = {{"", 1, false, {{0, nan, false, ""}, {1, 2, false, ""}}}};
  EXPECT_EQ(dot_heights(chart).size(), 1u);
  chart.series[0].points.pop_back();
  EXPECT_EQ(render_chart(chart), "");
}

}  // namespace
}  // namespace fmp
