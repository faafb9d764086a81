// SPDX-License-Identifier: MIT
#include "experiments/model_export.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "framework/atomic_file.h"
#include "framework/error.h"
#include "framework/onnx/export.h"
#include "framework/onnx/import.h"
#include "framework/training/trainer.h"

namespace fmp {
namespace {

std::vector<int64_t> predictions(const Network& network, const FrameBatch& batch, int threads) {
  TrainerOptions options;
  options.threads = threads;
  Trainer trainer(options);
  const std::vector<float> logits = trainer.logits(network, batch);
  const auto classes = static_cast<size_t>(network.config().classes);
  std::vector<int64_t> result;
  for (size_t i = 0; i < logits.size(); i += classes) {
    const auto row = std::span(logits).subspan(i, classes);
    result.push_back(std::ranges::max_element(row) - row.begin());
  }
  return result;
}

// Removes a file in the end, whatever happens.
class Removed {
 public:
  explicit Removed(const std::filesystem::path& path) : path_(path) {}
  ~Removed() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  Removed(const Removed&) = delete;
  Removed& operator=(const Removed&) = delete;

 private:
  const std::filesystem::path& path_;
};

}  // namespace

void write_verified_model(const Network& network, const std::filesystem::path& file,
                          const FrameBatch& frames, int threads) {
  std::filesystem::path unverified = file;
  unverified += ".unverified";
  const Removed removed(unverified);
  onnx::export_network(network, unverified);
  const Network back = onnx::import_network(unverified);
  if (predictions(network, frames, threads) != predictions(back, frames, threads)) {
    fail("{}: read back, it classifies frames differently", unverified.string());
  }
  // Its own bytes once more, since `file` may be a link or something else that is not replaced.
  std::ifstream in(unverified, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (in.bad()) fail("{}: cannot be read back", unverified.string());
  write_file_atomically(file, bytes);
}

}  // namespace fmp
