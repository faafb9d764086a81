// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "experiments/round_record.h"
#include "framework/training/trainer.h"

namespace fmp {

// What a run shows. A stream that cannot be written to does not end a run: run_main() tells of it
// when all is done. On a terminal a progress bar that is drawn over and over in the last line; in a
// file or pipe plain lines: one per epoch, and a sign of life now and then.
class Console {
 public:
  explicit Console(std::FILE* out = stdout);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // A line that stays. The progress bar, if any, gives way to it.
  void line(std::string_view text);
  // How far something is. `prefix` says what ("loading"), `suffix` what else is to be known.
  void progress(std::string_view prefix, int64_t done, int64_t total, std::string_view suffix);
  // Takes the progress bar away.
  void clear_progress();

  // The table of rounds: its head, and a line for each round that ended.
  void round_header();
  void round(const RoundRecord& round);
  // An epoch that ended: a line where there is no terminal.
  void epoch(const RoundRecord& round, int epochs);
  // How the layers of a round run.
  void plan(const RoundRecord& round);
  // The end of a run, from what summary.json holds: fits a screen.
  void summary(const nlohmann::json& summary, const std::string& directory);

 private:
  using Clock = std::chrono::steady_clock;

  void put(std::string_view text) noexcept;

  std::FILE* out_;
  bool terminal_;
  bool bar_shown_ = false;
  Clock::time_point last_progress_, progress_began_;
  std::string progress_prefix_;
};

}  // namespace fmp
