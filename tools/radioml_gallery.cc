// SPDX-License-Identifier: MIT
// radioml_gallery: one HTML page that shows each class of a RadioML file at two SNRs: one frame in
// the I/Q plane and over time, and the mean spectrum of several frames. For a person to look at.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <exception>
#include <map>
#include <numbers>
#include <set>
#include <span>
// liquid.h takes std::complex for its complex numbers where <complex> came before it.
#include <liquid/liquid.h>

#include "experiments/svg_chart.h"
#include "framework/atomic_file.h"
#include "framework/command_line.h"
#include "framework/data/dataset.h"
#include "framework/data/radioml.h"
#include "framework/error.h"
#include "kernels/tile.h"

namespace {

using Samples = std::span<const float>;  // I and Q of one sample after the other

constexpr int kFramesShown = 16;  // per class and SNR, in the mean spectrum; the first is drawn
constexpr int kBins = 256;        // of the spectrum
constexpr int kTimeSamples = 256;
constexpr int kSide = 190;          // of a picture, in pixels
constexpr double kAmplitude = 2.5;  // at the edges; the input quantizers of published networks end
                                    // at 2, so a frame that is seen to touch the edge is clipped

struct Options {
  std::string file, out = "gallery.html";
  std::vector<int> snrs = {10, 30};
};

// Coordinate of an amplitude, clipped at the edges.
double place(double value) { return std::clamp((value / kAmplitude + 1) / 2, 0.0, 1.0) * kSide; }

std::string picture(const std::string& content) {
  return fmt::format(
      "<svg viewBox=\"0 0 {0} {0}\" width=\"{0}\" height=\"{0}\">"
      "<rect class=\"back\" width=\"{0}\" height=\"{0}\"/>"
      "<path class=\"grid\" d=\"M0 {1}H{0}M{1} 0V{0}\"/>{2}</svg>",
      kSide, kSide / 2, content);
}

std::string draw_plane(Samples frame) {
  std::string dots;
  for (size_t n = 0; n + 1 < frame.size(); n += 2) {
    dots += fmt::format("M{:.1f} {:.1f}h1v1h-1z", place(frame[n]), kSide - place(frame[n + 1]));
  }
  return picture("<path class=\"dots\" d=\"" + dots + "\"/>");
}

std::string draw_time(Samples frame) {
  std::string lines;
  const size_t count = std::min<size_t>(kTimeSamples, frame.size() / 2);
  for (size_t rail : {0, 1}) {
    std::string path;
    for (size_t n = 0; n < count; ++n) {
      path += fmt::format("{}{:.1f} {:.1f}", n == 0 ? 'M' : 'L',
                          static_cast<double>(n * kSide) / static_cast<double>(count),
                          kSide - place(frame[2 * n + rail]));
    }
    lines += fmt::format("<path class=\"rail{}\" d=\"{}\"/>", rail, path);
  }
  return picture(lines);
}

// Welch's estimate: the mean of the squared transforms of windowed, half-overlapping pieces, in dB
// relative to its largest value, from -1/2 to 1/2 cycles per sample.
std::vector<double> mean_spectrum_db(const std::vector<Samples>& frames) {
  std::vector<std::complex<float>> in(kBins), out(kBins);
  const fftplan plan = fft_create_plan(kBins, in.data(), out.data(), LIQUID_FFT_FORWARD, 0);
  std::vector<double> power(kBins);
  for (const Samples& frame : frames) {
    for (size_t first = 0; 2 * (first + kBins) <= frame.size(); first += kBins / 2) {
      for (size_t n = 0; n < kBins; ++n) {
        const double turn = static_cast<double>(n) / kBins;
        const auto window = static_cast<float>(0.5 - 0.5 * std::cos(2 * std::numbers::pi * turn));
        in[n] = window * std::complex<float>(frame[2 * (first + n)], frame[2 * (first + n) + 1]);
      }
      fft_execute(plan);
      for (size_t k = 0; k < kBins; ++k) power[(k + kBins / 2) % kBins] += std::norm(out[k]);
    }
  }
  fft_destroy_plan(plan);
  const double top = *std::max_element(power.begin(), power.end());
  for (double& value : power)
    value = 10 * std::log10(std::max(value, 1e-12) / std::max(top, 1e-12));
  return power;
}

std::string draw_spectrum(const std::vector<Samples>& frames) {
  constexpr double kRangeDb = 60;
  std::string path;
  const std::vector<double> spectrum = mean_spectrum_db(frames);
  for (size_t k = 0; k < spectrum.size(); ++k) {
    path +=
        fmt::format("{}{:.1f} {:.1f}", k == 0 ? 'M' : 'L', static_cast<double>(k * kSide) / kBins,
                    std::min(-spectrum[k] / kRangeDb, 1.0) * kSide);
  }
  return picture("<path class=\"rail0\" d=\"" + path + "\"/>");
}

std::string cell(const fmp::Dataset& data, const std::vector<int64_t>& indices) {
  if (indices.empty()) return "<td>no frames</td>";
  fmp::FrameBatch batch;
  data.read(indices, batch);
  const size_t values = 2 * static_cast<size_t>(data.length());
  std::vector<Samples> frames;
  for (size_t k = 0; k < indices.size(); ++k)
    frames.push_back(Samples(batch.values).subspan(k * values, values));
  return "<td>" + draw_plane(frames[0]) + draw_time(frames[0]) + draw_spectrum(frames) + "</td>";
}

std::string render(const fmp::Dataset& data, const Options& o) {
  std::map<std::pair<int, int>, std::vector<int64_t>> blocks;
  std::set<int> present;
  for (int64_t frame = 0; frame < data.size(); ++frame) {
    present.insert(data.snr_db(frame));
    auto& block = blocks[{data.label(frame), data.snr_db(frame)}];
    if (block.size() < kFramesShown) block.push_back(frame);
  }
  std::string head = "<th>class</th>", rows;
  for (int snr : o.snrs) {
    if (!present.contains(snr)) {
      throw fmp::UsageError(fmt::format("{}: no frames at --snr {} dB", o.file, snr));
    }
    head += fmt::format("<th>{} dB: I/Q plane, {} samples over time, mean spectrum</th>", snr,
                        kTimeSamples);
  }
  for (size_t c = 0; c < data.class_names().size(); ++c) {
    rows += "<tr><th>" + fmp::escape_html(data.class_names()[c]) + "</th>";
    for (int snr : o.snrs) rows += cell(data, blocks[{static_cast<int>(c), snr}]);
    rows += "</tr>\n";
  }
  return "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>" +
         fmp::escape_html(o.file) +
         "</title><style>:root{color-scheme:light dark}body{font:14px system-ui,sans-serif}"
         "svg{margin:2px}th{text-align:left;padding:4px}.back{fill:#8881}.grid{stroke:#8884}"
         ".dots{fill:#0b78d0}.rail0{stroke:#0b78d0;fill:none}.rail1{stroke:#d0700b;fill:none}"
         "</style><h1>" +
         fmp::escape_html(o.file) + "</h1><p>Planes and times reach from -" +
         fmt::format("{0} to {0}; spectra", kAmplitude) +
         " from -1/2 to 1/2 cycles per sample and 60 dB down. I blue, Q orange.</p>\n<table><tr>" +
         head + "</tr>\n" + rows + "</table></html>\n";
}

void make_gallery(const Options& o) {
  fmp::RadioMlOptions options;
  options.path = o.file;
  options.frames_per_block = kFramesShown;
  options.snr_min = *std::min_element(o.snrs.begin(), o.snrs.end());
  options.input_bits = fmp::kFloatBits;
  const auto data = fmp::open_radioml(options);
  fmp::write_file_atomically(o.out, render(*data, o));
  if (o.out != "-") fmt::print("{}\n", o.out);
}

}  // namespace

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    CLI::App app("Draws every class of a RadioML file at two SNRs into one HTML page.");
    Options options;
    app.add_option("file", options.file, "HDF5 file in RadioML's layout")
        ->type_name("FILE")
        ->required();
    app.add_option("--out", options.out,
                   "HTML file to write; - = standard output, and nothing else")
        ->type_name("FILE")
        ->capture_default_str();
    app.add_option("--snr", options.snrs, "two SNRs in dB, separated by a comma")
        ->delimiter(',')
        ->expected(1, 4)
        ->capture_default_str();
    if (fmp::parse_command_line(app, argc, argv)) make_gallery(options);
    return fmp::kExitSuccess;
  });
}
