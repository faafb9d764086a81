// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "experiments/round_record.h"
#include "framework/network/checkpoint.h"

namespace fmp {

// The directory that holds a run:
//   run.json        the command line, written first
//   checkpoint.fmp  everything that a resumed run needs, replaced after every epoch
//   rounds.jsonl, rounds.csv     the finished rounds
//   model.onnx, model_cost.json  the best network so far, written with every accepted round
//   summary.json, report.html, baseline.fmp, result.fmp     written at the end
// Every file is replaced atomically, so that a kill at any instant leaves a run that can go on.
// While the object lives, no other process can write to the directory.
class RunDirectory {
 public:
  // A new run with this command line. Makes the directory if needed. Throws Error when it is in use
  // or already holds a run that has completed an epoch.
  static RunDirectory create(const std::filesystem::path& path,
                             const std::vector<std::string>& arguments);
  // An earlier run. Throws Error when there is none or it is in use.
  static RunDirectory open(const std::filesystem::path& path);

  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory& operator=(RunDirectory&&) = delete;
  ~RunDirectory();

  const std::filesystem::path& path() const { return path_; }

  // Takes a new run back that failed before anything was worth keeping: what create() made goes.
  void discard_if_unused();

  // What decode_checkpoint() takes; empty when the run was interrupted before its first epoch
  // ended.
  std::string read_checkpoint() const;
  void save_checkpoint(const Checkpoint& checkpoint) const;
  void write_rounds(const std::vector<RoundRecord>& rounds) const;
  void write_text(std::string_view name, std::string_view text) const;
  void write_json(std::string_view name, const nlohmann::json& json) const;
  void write_network(std::string_view name, const Network& network) const;

 private:
  explicit RunDirectory(const std::filesystem::path& path);

  std::filesystem::path path_;
  int lock_ = -1;                            // file descriptor of the locked file
  bool new_ = false;                         // made by create()
  std::vector<std::filesystem::path> made_;  // directories that were not there, innermost first
};

}  // namespace fmp
