// SPDX-License-Identifier: MIT
// For tests that run fmp_radioml as a user does: data, the process, and what it leaves.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "framework/synth/hdf5_writer.h"

namespace fmp {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;
using Clock = std::chrono::steady_clock;

// Noise and, weaker, a tone of its own for each class: quickly learned, yet not perfectly.
inline std::vector<float> make_frame(int class_index, float amplitude, std::mt19937& engine) {
  constexpr int kLength = 1024;
  std::normal_distribution<float> noise(0, 0.7F);
  std::vector<float> frame(2 * kLength);
  const float turns = 0.05F + 0.1F * static_cast<float>(class_index);
  for (int n = 0; n < kLength; ++n) {
    const float angle = 6.2831853F * turns * static_cast<float>(n);
    frame[static_cast<size_t>(2 * n)] = amplitude * std::cos(angle) + noise(engine);
    frame[static_cast<size_t>(2 * n + 1)] = amplitude * std::sin(angle) + noise(engine);
  }
  return frame;
}

// Three classes at 0 and 10 dB, so many frames of each.
inline void write_data(const fs::path& path, int frames_per_block, unsigned seed) {
  constexpr int kClasses = 3;
  std::mt19937 engine(seed);
  synth::RadioMlWriter writer(path, kClasses * 2 * frames_per_block, kClasses, 0);
  for (int class_index = 0; class_index < kClasses; ++class_index) {
    for (const int snr_db : {0, 10}) {
      for (int i = 0; i < frames_per_block; ++i)
        writer.append(make_frame(class_index, snr_db == 0 ? 0.1F : 0.3F, engine), class_index,
                      snr_db);
    }
  }
  writer.finish();
}

// A running program whose output goes to a file.
class Process {
 public:
  Process(const char* program, const Arguments& arguments, const fs::path& log) : id_(::fork()) {
    if (id_ != 0) return;
    std::vector<const char*> argv = {program};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    argv.push_back(nullptr);
    if (std::freopen(log.c_str(), "a", stdout) == nullptr) ::_exit(126);
    ::dup2(STDOUT_FILENO, STDERR_FILENO);
    ::execv(program, const_cast<char* const*>(argv.data()));
    ::_exit(127);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (!ended_) finish_with(SIGKILL);
  }

  // Waits up to `patience`. True when the process has ended by then.
  bool wait_for(Clock::duration patience) {
    const Clock::time_point end = Clock::now() + patience;
    while (!ended_ && Clock::now() < end) {
      if (::waitpid(id_, &status_, WNOHANG) == id_) ended_ = true;
      if (!ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return ended_;
  }
  int wait() {
    if (!ended_) ::waitpid(id_, &status_, 0);
    ended_ = true;
    return exit_code();
  }
  int finish_with(int signal) {
    ::kill(id_, signal);
    return wait();
  }
  int exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }

 private:
  pid_t id_;
  int status_ = 0;
  bool ended_ = false;
};

inline std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Without what may differ from run to run.
inline nlohmann::json reproducible(nlohmann::json json) {
  if (json.is_object()) {
    for (const char* key : {"timing", "host", "options", "command"}) json.erase(key);
  }
  if (json.is_structured()) {
    for (nlohmann::json& value : json) value = reproducible(value);
  }
  return json;
}

inline std::vector<nlohmann::json> rounds_of(const fs::path& run) {
  std::ifstream file(run / "rounds.jsonl");
  std::vector<nlohmann::json> rounds;
  for (std::string line; std::getline(file, line);) rounds.push_back(nlohmann::json::parse(line));
  return rounds;
}

}  // namespace fmp
