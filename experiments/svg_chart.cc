// SPDX-License-Identifier: MIT
#include "experiments/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

namespace fmp {
namespace {

// Space around the plot area for the title above it and the labels left of and below it.
constexpr double kLeft = 52, kRight = 16, kTop = 44, kBottom = 42;

// Maps the values of one axis to pixels; `from` and `to` are the pixels of low and high.
struct Axis {
  double low = 0, high = 1;
  double from = 0, to = 1;
  bool log_scale = false;
  std::vector<double> ticks;

  double operator()(double value) const {
    const double share =
        log_scale ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return from + share * (to - from);
  }
};

// The smallest of 1, 2 and 5 times a power of ten that is not below `step`.
double round_step(double step) {
  const double power = std::pow(10.0, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

// Ticks at round values; the axis is widened to the ticks around its ends.
void place_linear_ticks(Axis& axis, int wanted) {
  const double step = round_step((axis.high - axis.low) / wanted);
  const double first = std::floor(axis.low / step + 1e-9);
  const double last = std::ceil(axis.high / step - 1e-9);
  const int steps = static_cast<int>(last - first);
  for (int k = 0; k <= steps; ++k) axis.ticks.push_back((first + k) * step);
  axis.low = axis.ticks.front();
  axis.high = axis.ticks.back();
}

// Ticks at 1, 2 and 5 times powers of ten, at powers of ten alone when they span many.
void place_log_ticks(Axis& axis) {
  constexpr double kManyDecades = 3;
  const bool many = std::log10(axis.high / axis.low) > kManyDecades;
  const std::vector<double> factors =
      many ? std::vector<double>{1.0} : std::vector<double>{1.0, 2.0, 5.0};
  const int first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int last = static_cast<int>(std::ceil(std::log10(axis.high)));
  std::vector<double> all;
  for (int exponent = first; exponent <= last; ++exponent) {
    for (const double factor : factors) all.push_back(factor * std::pow(10.0, exponent));
  }
  const double low = axis.low * (1 + 1e-9), high = axis.high * (1 - 1e-9);
  const auto begin = std::prev(std::upper_bound(all.begin(), all.end(), low));
  auto end = std::lower_bound(all.begin(), all.end(), high);
  if (end != all.end()) ++end;
  axis.ticks.assign(begin, end);
  if (axis.ticks.size() < 2) axis.ticks.push_back(axis.ticks.back() * 10);
  axis.low = axis.ticks.front();
  axis.high = axis.ticks.back();
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

bool finite(const ChartPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

Axis x_axis(const Chart& chart, Range range) {
  Axis axis{range.low, range.high, kLeft, chart.width - kRight, false, {}};
  if (axis.low == axis.high) axis.high = axis.low + 1;
  const double step =
      std::max(1.0, round_step((axis.high - axis.low) / 8));  // rounds and SNRs are whole numbers
  const double first = std::ceil(axis.low / step);
  const int steps = static_cast<int>(std::floor(axis.high / step) - first);
  for (int k = 0; k <= steps; ++k) axis.ticks.push_back((first + k) * step);
  return axis;
}

Axis y_axis(const Chart& chart, Range range) {
  Axis axis{range.low, range.high, chart.height - kBottom, kTop, false, {}};
  if (chart.scale == Scale::kUnit) {
    axis.low = 0;
    axis.high = 1;
    axis.ticks = {0, 0.2, 0.4, 0.6, 0.8, 1};
  } else if (chart.scale == Scale::kLog && range.low > 0) {
    axis.log_scale = true;
    place_log_ticks(axis);
  } else {
    if (chart.scale != Scale::kFit) axis.low = std::min(0.0, axis.low);
    if (axis.high <= axis.low) axis.high = axis.low + (axis.low != 0 ? std::abs(axis.low) / 10 : 1);
    place_linear_ticks(axis, 4);
  }
  return axis;
}

std::string draw_axes(const Chart& chart, const Axis& x, const Axis& y) {
  std::string svg;
  auto out = std::back_inserter(svg);
  for (const double tick : y.ticks) {
    const std::string label =
        chart.percent ? fmt::format("{:.3g}%", 100 * tick) : short_number(tick);
    fmt::format_to(out,
                   R"(<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)"
                   R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)",
                   x.from, x.to, y(tick), y(tick), x.from - 7, y(tick) + 4, label);
  }
  for (const double tick : x.ticks) {
    fmt::format_to(out,
                   R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}</text>)",
                   x(tick), y.from + 16, tick);
  }
  fmt::format_to(out,
                 R"(<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)"
                 R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)",
                 x.from, x.to, y.from, y.from, (x.from + x.to) / 2, y.from + 34,
                 escape_html(chart.x_label));
  return svg;
}

// A dot, or a cross for what was rejected.
std::string draw_point(const ChartPoint& point, double x, double y, int color) {
  const std::string shape =
      point.rejected
          ? fmt::format(R"(<path class="cross" d="M{:.1f} {:.1f}l7 7m0 -7l-7 7"/>)", x - 3.5,
                        y - 3.5)
          : fmt::format(R"(<circle class="dot fill{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>)", color, x,
                        y);
  // The invisible circle is what the pointer has to hit to see the tooltip.
  return fmt::format(
      R"(<g>{}<circle cx="{:.1f}" cy="{:.1f}" r="9" fill="transparent"/><title>{}</title></g>)",
      shape, x, y, escape_html(point.tooltip));
}

std::string draw_series(const ChartSeries& series, const Axis& x, const Axis& y) {
  std::string line, points;
  for (const ChartPoint& point : series.points) {
    if (!finite(point)) continue;
    const double px = x(point.x), py = y(point.y);
    if (!point.rejected) {
      line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", px, py);
    }
    points += draw_point(point, px, py, series.color);
  }
  return fmt::format(R"(<path class="line stroke{}{}" d="{}"/>)", series.color,
                     series.dashed ? " dashed" : "", line) +
         points;
}

std::string draw_legend(const Chart& chart) {
  if (chart.series.size() < 2) return "";
  std::string svg;
  double x = kLeft;
  for (const ChartSeries& series : chart.series) {
    svg += fmt::format(R"(<line class="line stroke{}{}" x1="{:.1f}" x2="{:.1f}" y1="32" y2="32"/>)"
                       R"(<text class="tick" x="{:.1f}" y="36">{}</text>)",
                       series.color, series.dashed ? " dashed" : "", x, x + 20, x + 26,
                       escape_html(series.name));
    x += 44 + 6.5 * static_cast<double>(series.name.size());
  }
  return svg;
}

std::string draw_reference(const Chart& chart, const Axis& x, const Axis& y) {
  if (!chart.reference) return "";
  const double py = y(*chart.reference);
  return fmt::format(R"(<line class="reference" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)"
                     R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)",
                     x.from, x.to, py, py, x.to, py - 5, escape_html(chart.reference_label));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string short_number(double value) {
  constexpr struct {
    double unit;
    const char* suffix;
  } kSuffixes[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
  for (const auto& [unit, suffix] : kSuffixes) {
    // Rounding to three digits may reach the next unit: 999,600 is 1M.
    if (std::abs(value) >= unit * (1 - 0.0005))
      return fmt::format("{:.3g}{}", value / unit, suffix);
  }
  return fmt::format("{:.3g}", value);
}

std::string render_chart(const Chart& chart) {
  Range xs, ys;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (!finite(point)) continue;
      xs.add(point.x);
      ys.add(point.y);
    }
  }
  if (xs.empty()) return "";
  if (chart.reference) ys.add(*chart.reference);
  const Axis x = x_axis(chart, xs), y = y_axis(chart, ys);
  std::string svg = fmt::format(R"(<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">)"
                                R"(<text class="title" x="0" y="15">{}</text>)",
                                chart.width, chart.height, chart.width, escape_html(chart.title),
                                escape_html(chart.title));
  svg += draw_legend(chart) + draw_axes(chart, x, y) + draw_reference(chart, x, y);
  for (const ChartSeries& series : chart.series) svg += draw_series(series, x, y);
  return svg + "</svg>\n";
}

std::string render_confusion(const std::vector<std::string>& classes,
                             const std::vector<std::vector<int64_t>>& counts) {
  constexpr double kCell = 31, kNames = 96;
  constexpr double kOverhang = 34;  // of the slanted name of the last column
  constexpr double kStrong = 0.5;   // from this shade on the number is written in the page's color
  const double height = kNames + kCell * static_cast<double>(classes.size());
  std::string svg = fmt::format(
      R"(<svg class="confusion" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" role="img" )"
      R"(aria-label="Confusion matrix">)",
      height + kOverhang, height);
  auto out = std::back_inserter(svg);
  for (size_t truth = 0; truth < classes.size(); ++truth) {
    const double row = kNames + kCell * static_cast<double>(truth);  // also the x of its column
    const std::string name = escape_html(classes[truth]);
    fmt::format_to(out, R"(<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)",
                   kNames - 6, row + kCell / 2 + 4, name);
    fmt::format_to(
        out,
        R"svg(<text class="name" transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>)svg",
        row + kCell / 2 + 4, kNames - 6, name);
    const int64_t total = std::accumulate(counts[truth].begin(), counts[truth].end(), int64_t{0});
    for (size_t guess = 0; guess < classes.size(); ++guess) {
      const int64_t count = counts[truth][guess];
      const double share =
          total > 0 ? static_cast<double>(count) / static_cast<double>(total) : 0.0;
      const double x = kNames + kCell * static_cast<double>(guess);
      fmt::format_to(
          out,
          R"(<g><rect class="back" x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{2:.1f}"/>)"
          R"(<rect class="fill1" fill-opacity="{3:.3f}" x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" )"
          R"(height="{2:.1f}"/>)",
          x, row, kCell - 1, share);
      if (share >= 0.005) {
        fmt::format_to(
            out, R"(<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}</text>)",
            share >= kStrong ? "strong" : "weak", x + kCell / 2, row + kCell / 2 + 4, 100 * share);
      }
      fmt::format_to(out, "<title>{} taken for {}: {} of {} ({:.1f}%)</title></g>", name,
                     escape_html(classes[guess]), count, total, 100 * share);
    }
  }
  return svg + "</svg>\n";
}

}  // namespace fmp
