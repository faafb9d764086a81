// SPDX-License-Identifier: MIT
#include "experiments/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "experiments/run_file.h"
#include "framework/atomic_file.h"
#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCheckpointFile = "checkpoint.fmp";
constexpr const char* kLockFile = ".lock";

// Compact, invalid UTF-8 (in file names) replaced.
std::string dump(const nlohmann::json& json, int indent = -1) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

RunDirectory::RunDirectory(const fs::path& path) : path_(path) {
  const std::string lock = (path / kLockFile).string();
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) fail("cannot write to '{}': {}", path.string(), errno_message(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(std::exchange(lock_, -1));
    fail("'{}' is in use by another fmp_radioml", path.string());
  }
}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      lock_(std::exchange(other.lock_, -1)),
      new_(other.new_),
      made_(std::move(other.made_)) {}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);  // which also releases the lock
}

RunDirectory RunDirectory::create(const fs::path& path, const std::vector<std::string>& arguments) {
  std::error_code error;
  std::vector<fs::path> made;  // the innermost first
  for (fs::path missing = fs::absolute(path).lexically_normal();
       !missing.empty() && !fs::exists(missing, error); missing = missing.parent_path())
    made.push_back(missing);
  fs::create_directories(path, error);
  if (error) fail("cannot make the directory '{}': {}", path.string(), error.message());
  RunDirectory directory(path);
  directory.made_ = std::move(made);
  if (fs::exists(path / kCheckpointFile))
    fail("'{}' already holds a run: continue it with --resume {}, or name another --out",
         path.string(), path.string());
  write_run_file(path, arguments);
  directory.new_ = true;
  return directory;
}

void RunDirectory::discard_if_unused() {
  std::error_code ignored;
  if (!new_ || fs::exists(path_ / kCheckpointFile, ignored)) return;
  for (const char* name : {kRunFile, kLockFile}) fs::remove(path_ / name, ignored);
  for (const fs::path& folder : made_) fs::remove(folder, ignored);  // only if it is empty
}

RunDirectory RunDirectory::open(const fs::path& path) {
  stored_arguments(path);
  return RunDirectory(path);
}

std::string RunDirectory::read_checkpoint() const {
  const fs::path file = path_ / kCheckpointFile;
  return fs::exists(file) ? read_checkpoint_bytes(file) : std::string();
}

void RunDirectory::save_checkpoint(const Checkpoint& checkpoint) const {
  fmp::save_checkpoint(path_ / kCheckpointFile, checkpoint);
}

void RunDirectory::write_rounds(const std::vector<RoundRecord>& rounds) const {
  std::string lines;
  for (const RoundRecord& round : rounds) lines += dump(to_json(round)) + '\n';
  write_text("rounds.jsonl", lines);
  write_text("rounds.csv", rounds_to_csv(rounds));
}

void RunDirectory::write_text(std::string_view name, std::string_view text) const {
  write_file_atomically(path_ / name, text);
}

void RunDirectory::write_json(std::string_view name, const nlohmann::json& json) const {
  write_text(name, dump(json, 2) + '\n');
}

void RunDirectory::write_network(std::string_view name, const Network& network) const {
  Checkpoint checkpoint;
  checkpoint.networks.emplace("network", network);
  checkpoint.state = nlohmann::json::object();
  fmp::save_checkpoint(path_ / name, checkpoint);
}

}  // namespace fmp
