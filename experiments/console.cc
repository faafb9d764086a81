// SPDX-License-Identifier: MIT
#include "experiments/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "experiments/format.h"
#include "framework/program.h"

namespace fmp {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);  // of the progress bar
constexpr auto kSignOfLife = std::chrono::seconds(30);    // where there is no terminal
constexpr int kBarWidth = 24;
constexpr int kDefaultColumns = 100;

int columns(std::FILE* out) {
  winsize size{};
  if (::ioctl(::fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kDefaultColumns;
  return size.ws_col;
}

std::string bar(double share) {
  const int filled = static_cast<int>(std::floor(std::clamp(share, 0.0, 1.0) * kBarWidth));
  std::string text(static_cast<size_t>(filled), '=');
  if (filled < kBarWidth) text += '>';
  text.resize(kBarWidth, ' ');
  return '[' + text + ']';
}

std::string percent(const nlohmann::json& accuracy) {
  return accuracy.is_number() ? format_percent(accuracy.get<double>()) : "-";
}

}  // namespace

Console::Console(std::FILE* out) : out_(out), terminal_(::isatty(::fileno(out)) != 0) {}

Console::~Console() { clear_progress(); }

void Console::put(std::string_view text) noexcept {
  // The stream remembers that it failed, but not why.
  if (std::fwrite(text.data(), 1, text.size(), out_) != text.size() || std::fflush(out_) != 0) {
    note_lost_output(errno);
  }
}

void Console::line(std::string_view text) {
  clear_progress();
  put(std::string(text) + '\n');
}

void Console::clear_progress() {
  if (!bar_shown_) return;
  put("\r\033[K");
  bar_shown_ = false;
}

void Console::progress(std::string_view prefix, int64_t done, int64_t total,
                       std::string_view suffix) {
  const Clock::time_point now = Clock::now();
  if (progress_prefix_ != prefix) {
    progress_prefix_ = prefix;
    progress_began_ = now;
    if (!terminal_) last_progress_ = now;  // short work needs no sign of life
  }
  if (now - last_progress_ < (terminal_ ? Clock::duration(kRedraw) : Clock::duration(kSignOfLife)))
    return;
  last_progress_ = now;
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
  const double seconds = std::chrono::duration<double>(now - progress_began_).count();
  const std::string eta =
      share > 0 ? format_duration(seconds / share * (1 - share)) : std::string("-");
  std::string text = fmt::format("{} {} {:3.0f} %  {}  ETA {}", prefix, bar(share),
                                 std::floor(100 * share), suffix, eta);
  if (!terminal_) {
    put(text + '\n');
  } else {
    const auto width = static_cast<size_t>(std::max(columns(out_) - 1, 1));
    if (text.size() > width) text.resize(width);
    put(fmt::format("\r{}\033[K", text));
    bar_shown_ = true;
  }
}

void Console::round_header() {
  line(fmt::format("{:>5}  {:<24} {:>6} {:>8} {:>8}  {:<8} {:>9} {:>7} {:>7} {:>6} {:>8} {:>8}",
                   "round", "method", "p", "accuracy", "goal", "outcome", "nonzeros", "ratio",
                   "cost", "epochs", "s/epoch", "frames/s"));
}

void Console::round(const RoundRecord& r) {
  const EvaluationRecord* best = r.best();
  const auto number = [](const std::optional<double>& value, const char* format) {
    return value ? fmt::format(fmt::runtime(format), *value) : std::string("-");
  };
  line(fmt::format(
      "{:>5}  {:<24} {:>6} {:>8} {:>8}  {:<8} {:>9} {:>7.2f} {:>7.4f} {:>6} {:>8} {:>8}", r.round,
      r.is_baseline() ? "baseline" : r.method, r.is_baseline() ? "" : fmt::format("{:.4g}", r.p),
      best ? fmt::format("{:.4f}", best->criterion_accuracy) : "-", number(r.criterion, "{:.4f}"),
      to_string(r.outcome), format_count(r.network.nonzeros), r.network.true_compression(),
      r.network.cost, r.history.size(), number(r.seconds_per_epoch(), "{:.2f}"),
      r.frames_per_second() ? format_count(std::llround(*r.frames_per_second())) : "-"));
  if (r.outcome == Outcome::kDiverged) line("       " + r.message);
}

void Console::epoch(const RoundRecord& r, int epochs) {
  if (terminal_) return;
  const EpochRecord& e = r.history.back();
  line(fmt::format(
      "       round {} epoch {}/{}: loss {:.4f}, accuracy {:.4f}, {} frames/s, {:.2f} s", r.round,
      e.epoch, epochs, e.train_loss, e.criterion_accuracy,
      format_count(std::llround(e.frames_per_second)), e.train_seconds + e.evaluation_seconds));
}

void Console::plan(const RoundRecord& r) {
  const auto all_dense = [](const LayerPlan& layer) {
    return static_cast<const PassPlan&>(layer) == PassPlan();
  };
  if (!std::ranges::all_of(r.plan, all_dense)) line("       plan " + plan_to_text(r.plan));
  std::map<std::string, std::string> layers_of;  // by what a library refused
  for (const LayerPlan& layer : r.plan) {
    for (const std::string& refused : layer.refused) {
      layers_of[refused] += (layers_of[refused].empty() ? "" : ", ") + layer.layer;
    }
  }
  for (const auto& [refused, layers] : layers_of) {
    line(fmt::format("       not a candidate for {}: {}", layers, refused));
  }
}

void Console::summary(const nlohmann::json& s, const std::string& directory) {
  line("");
  line(s.at("message").get<std::string>());
  const nlohmann::json &baseline = s.at("baseline"), &result = s.at("result");
  if (!result.is_null() && !baseline.is_null()) {
    const auto row = [&](const char* name, const std::string& a, const std::string& b) {
      line(fmt::format("  {:<36} {:>16} {:>16}", name, a, b));
    };
    const auto accuracy = [](const nlohmann::json& of, const char* split) {
      return percent(of.at("accuracy").at(split));
    };
    const auto count = [](const nlohmann::json& of, const char* key) {
      return format_count(of.at("network").at(key).get<int64_t>());
    };
    const auto real = [](const nlohmann::json& of, const char* key, int digits) {
      return fmt::format("{:.{}f}", of.at("network").at(key).get<double>(), digits);
    };
    row("", "baseline", "result");
    for (const char* split : {"validation", "test"})
      row(fmt::format("accuracy, {} frames", split).c_str(), accuracy(baseline, split),
          accuracy(result, split));
    row("nonzero weights", count(baseline, "nonzeros"), count(result, "nonzeros"));
    row("bit operations per frame", count(baseline, "bit_ops"), count(result, "bit_ops"));
    row("weight memory, bits", count(baseline, "bit_mem"), count(result, "bit_mem"));
    row("cost (published baseline = 1)", real(baseline, "cost", 4), real(result, "cost", 4));
    row("compression, weights / nonzeros", real(baseline, "true_compression", 2),
        real(result, "true_compression", 2));
    line(fmt::format("  {:<36} {:>33.1f}", "Eq. 5 ratio, every iteration tried",
                     s.at("compression").at("eq5").get<double>()));
  }
  const nlohmann::json &rounds = s.at("rounds"), &timing = s.at("timing");
  line(fmt::format("  {} pruning rounds, {} accepted; {} epochs; {} in all, training {}",
                   rounds.at("tried").get<int>(), rounds.at("accepted").get<int>(),
                   rounds.at("epochs").get<int64_t>(),
                   format_duration(timing.at("seconds").get<double>()),
                   format_duration(timing.at("training_seconds").get<double>())));
  if (const auto device = timing.find("peak_device_memory_mb");
      device != timing.end() && !device->is_null()) {
    line(fmt::format("  device memory: at most {:.0f} MB", device->get<double>()));
  }
  line(fmt::format("  results: {0}/report.html, {0}/summary.json, {0}/rounds.csv", directory));
}

}  // namespace fmp
