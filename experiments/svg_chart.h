// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fmp {

// `text` with &, <, >, " and ' replaced, safe in HTML and SVG text and in quoted attributes.
std::string escape_html(std::string_view text);

// Three significant digits with an SI suffix from a thousand on: 0.0419, 12.3, 159k, 808M.
std::string short_number(double value);

struct ChartPoint {
  double x = 0, y = 0;
  bool rejected = false;  // drawn as a cross beside the line instead of a dot on it
  std::string tooltip;    // shown when the pointer rests on the point
};

struct ChartSeries {
  std::string name;  // for the legend; a chart with one series has none
  int color = 1;     // 1 or 2: the page's colors for series
  bool dashed = false;
  std::vector<ChartPoint> points;  // ascending x; points that are not finite are left out
};

// What the y axis spans.
enum class Scale : uint8_t {
  kUnit,  // 0 to 1
  kZero,  // 0 to the largest value
  kFit,   // the smallest to the largest value
  kLog,   // likewise, logarithmic; kZero when a value is not positive
};

// A small line chart.
struct Chart {
  std::string title, x_label;
  std::vector<ChartSeries> series;
  std::optional<double> reference;  // a dashed horizontal line
  std::string reference_label;
  Scale scale = Scale::kZero;
  bool percent = false;  // y values are fractions, labelled in %
  int width = 460, height = 260;
};

// One <svg> element. Colors come from the CSS variables of the page it is put into (see report.cc),
// so that it follows its light or dark mode.
std::string render_chart(const Chart& chart);

// One <svg> element with a cell for each pair [true class][predicted class], shaded by the share of
// the true class's frames. `counts` is square with one row and one column per class.
std::string render_confusion(const std::vector<std::string>& classes,
                             const std::vector<std::vector<int64_t>>& counts);

}  // namespace fmp
