// SPDX-License-Identifier: MIT
#include "experiments/run_file.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>

#include "framework/atomic_file.h"
#include "framework/error.h"
#include "framework/json.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

void write_run_file(const fs::path& directory, const std::vector<std::string>& arguments) {
  const nlohmann::json json = {
      {"program", "fmp_radioml"}, {"schema", kSchema}, {"arguments", arguments}};
  // Invalid UTF-8 (in file names) is replaced.
  write_file_atomically(directory / kRunFile,
                        json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

std::vector<std::string> stored_arguments(const fs::path& directory) {
  const fs::path file = directory / kRunFile;
  if (!fs::exists(file))
    fail("'{}' holds no run to resume ({} is missing): start one with --data and --out",
         directory.string(), kRunFile);
  try {
    const nlohmann::json json = parse_json(read_small_file(file), file.string());
    if (const int schema = json.at("schema"); schema != kSchema)
      fail("'{}': expected schema {}, found {}", file.string(), kSchema, schema);
    return json.at("arguments").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception& exception) {
    fail("'{}' is damaged: {}", file.string(), exception.what());
  }
}

}  // namespace fmp
