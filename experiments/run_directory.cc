// SPDX-License-Identifier: MIT
#include "experiments/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <utility>

#include "experiments/json_optional.h"
#include "framework/atomic_file.h"
#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRunFile = "run.json";
constexpr const char* kCheckpointFile = "checkpoint.fmp";
constexpr const char* kLockFile = ".lock";
constexpr int kSchema = 1;
constexpr uintmax_t kMaximumRunFile = 1 << 20;

std::string read_small_file(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) fail("cannot read '{}': {}", path.string(), error.message());
  if (size > kMaximumRunFile)
    fail("'{}': expected at most {} bytes, found {}", path.string(), kMaximumRunFile, size);
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) fail("cannot read '{}'", path.string());
  return text;
}

// Compact, invalid UTF-8 (in file names) replaced.
std::string dump(const nlohmann::json& json, int indent = -1) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json history_to_json(const std::vector<EpochRecord>& history) {
  nlohmann::json result = nlohmann::json::array();
  for (const EpochRecord& e : history) {
    result.push_back({{"epoch", e.epoch},
                      {"learning_rate", e.learning_rate},
                      {"train_loss", e.train_loss},
                      {"train_accuracy", e.train_accuracy},
                      {"validation_loss", json_or_null(e.validation_loss)},
                      {"validation_accuracy", json_or_null(e.validation_accuracy)},
                      {"test_accuracy", json_or_null(e.test_accuracy)},
                      {"criterion_accuracy", e.criterion_accuracy},
                      {"timing",
                       {{"train_seconds", e.train_seconds},
                        {"evaluation_seconds", e.evaluation_seconds},
                        {"frames_per_second", e.frames_per_second}}}});
  }
  return result;
}

std::string csv_field(const nlohmann::json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
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
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)) {}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);  // which also releases the lock
}

RunDirectory RunDirectory::create(const fs::path& path, const std::vector<std::string>& arguments) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail("cannot make the directory '{}': {}", path.string(), error.message());
  RunDirectory directory(path);
  if (fs::exists(path / kCheckpointFile))
    fail("'{}' already holds a run: continue it with --resume {}, or name another --out",
         path.string(), path.string());
  directory.write_json(kRunFile,
                       {{"program", "fmp_radioml"}, {"schema", kSchema}, {"arguments", arguments}});
  return directory;
}

RunDirectory RunDirectory::open(const fs::path& path) {
  stored_arguments(path);
  return RunDirectory(path);
}

std::vector<std::string> RunDirectory::stored_arguments(const fs::path& path) {
  const fs::path file = path / kRunFile;
  if (!fs::exists(file))
    fail("'{}' holds no run to resume ({} is missing): start one with --data and --out",
         path.string(), kRunFile);
  try {
    const nlohmann::json json = nlohmann::json::parse(read_small_file(file));
    if (const int schema = json.at("schema"); schema != kSchema)
      fail("'{}': expected schema {}, found {}", file.string(), kSchema, schema);
    return json.at("arguments").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception& exception) {
    fail("'{}' is damaged: {}", file.string(), exception.what());
  }
}

std::optional<Checkpoint> RunDirectory::load_checkpoint() const {
  const fs::path file = path_ / kCheckpointFile;
  if (!fs::exists(file)) return std::nullopt;
  return fmp::load_checkpoint(file);
}

void RunDirectory::save_checkpoint(const Checkpoint& checkpoint) const {
  fmp::save_checkpoint(path_ / kCheckpointFile, checkpoint);
}

void RunDirectory::write_rounds(const std::vector<RoundRecord>& rounds,
                                CriterionSplit split) const {
  std::string lines;
  for (const RoundRecord& round : rounds) lines += dump(round_to_json(round, split)) + '\n';
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

nlohmann::json round_to_json(const RoundRecord& r, CriterionSplit split) {
  const EpochRecord* best = r.best();
  const auto of_best = [&](auto value) {
    return best != nullptr ? nlohmann::json(value(*best)) : nlohmann::json(nullptr);
  };
  return {
      {"round", r.round},
      {"kind", r.is_baseline() ? "baseline" : "prune"},
      {"method", r.is_baseline() ? nlohmann::json(nullptr) : nlohmann::json(r.method)},
      {"p", r.is_baseline() ? nlohmann::json(nullptr) : nlohmann::json(r.p)},
      {"outcome", to_string(r.outcome)},
      {"accepted", r.accepted()},
      {"message", r.message},
      {"criterion", json_or_null(r.criterion)},
      {"criterion_split", to_string(split)},
      {"criterion_accuracy", of_best([](const EpochRecord& e) { return e.criterion_accuracy; })},
      {"validation_accuracy",
       of_best([](const EpochRecord& e) { return json_or_null(e.validation_accuracy); })},
      {"test_accuracy",
       of_best([](const EpochRecord& e) { return json_or_null(e.test_accuracy); })},
      {"best_epoch", r.best_epoch},
      {"epochs", r.history.size()},
      {"learning_rate", r.history.empty() ? nlohmann::json(nullptr)
                                          : nlohmann::json(r.history.back().learning_rate)},
      {"weights_removed", r.weights_removed},
      {"weights_compacted", r.weights_compacted},
      {"channels", r.channels},
      {"network", r.network},
      {"history", history_to_json(r.history)},
      {"timing",
       {{"seconds", r.seconds()},
        {"seconds_per_epoch", json_or_null(r.seconds_per_epoch())},
        {"frames_per_second", json_or_null(r.frames_per_second())},
        {"evaluation_frames_per_second", json_or_null(r.evaluation_frames_per_second())},
        {"plan", r.plan}}}};
}

// d, s: this program's dense and sparse kernels; D, S: cuBLAS and cuSPARSE.
std::string plan_to_text(const nlohmann::json& plan) {
  const auto letter = [](const std::string& kernel) {
    return kernel == "cublas" ? 'D' : kernel == "cusparse" ? 'S' : kernel.front();
  };
  std::string text;
  for (const nlohmann::json& layer : plan) {
    if (!text.empty()) text += ' ';
    text += layer.at("layer").get<std::string>() + '=';
    for (const char* pass : {"forward", "backward_data", "backward_weight"})
      text += letter(layer.at(pass).get<std::string>());
  }
  return text;
}

std::string rounds_to_csv(const std::vector<RoundRecord>& rounds) {
  std::string csv =
      "round,method,p,outcome,accepted,criterion,criterion_accuracy,validation_accuracy,"
      "test_accuracy,epochs,weights_alive,nonzeros,density,true_compression,eq5_compression,macs,"
      "bit_ops,bit_mem,cost,seconds,seconds_per_epoch,frames_per_second,"
      "evaluation_frames_per_second,plan\n";
  for (const RoundRecord& record : rounds) {
    const nlohmann::json r = round_to_json(record, CriterionSplit::kValidation);
    const nlohmann::json &network = r.at("network"), &timing = r.at("timing");
    const double density =
        network.at("nonzeros").get<double>() / network.at("weights_original").get<double>();
    std::vector<nlohmann::json> fields = {
        r.at("round"), record.is_baseline() ? nlohmann::json("baseline") : r.at("method")};
    for (const char* key : {"p", "outcome", "accepted", "criterion", "criterion_accuracy",
                            "validation_accuracy", "test_accuracy", "epochs"})
      fields.push_back(r.at(key));
    fields.push_back(network.at("weights_alive"));
    fields.push_back(network.at("nonzeros"));
    fields.push_back(density);
    for (const char* key :
         {"true_compression", "eq5_compression", "macs", "bit_ops", "bit_mem", "cost"})
      fields.push_back(network.at(key));
    for (const char* key :
         {"seconds", "seconds_per_epoch", "frames_per_second", "evaluation_frames_per_second"})
      fields.push_back(timing.at(key));
    fields.push_back(plan_to_text(record.plan));
    for (const nlohmann::json& field : fields) csv += csv_field(field) + ',';
    csv.back() = '\n';
  }
  return csv;
}

}  // namespace fmp
