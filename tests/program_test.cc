// SPDX-License-Identifier: MIT
// What all programs do with files to write, with standard streams that are full or closed, and with
// errors.
#include "framework/program.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "framework/atomic_file.h"
#include "framework/error.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Scratch : public testing::Test {
 protected:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "fmp_program_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("no temporary directory");
    path_ = name;
  }
  ~Scratch() override {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::ptrdiff_t files() const {
    return std::distance(fs::directory_iterator(path_), fs::directory_iterator());
  }
  std::string error(const fs::path& path) const {
    try {
      write_file_atomically(path, "new");
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  }
  fs::path path_;
};

using OutputFileTest = Scratch;

TEST_F(OutputFileTest, ReplacesARegularFileAndKeepsItsPermissions) {
  write_file_atomically(path_ / "a", "old");
  EXPECT_EQ(read(path_ / "a"), "old");
  ASSERT_EQ(::chmod((path_ / "a").c_str(), 0600), 0);
  std::ifstream reader(path_ / "a");  // goes on reading what it opened
  write_file_atomically(path_ / "a", "new");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(reader), {}), "old");
  EXPECT_EQ(read(path_ / "a"), "new");
  EXPECT_EQ(fs::status(path_ / "a").permissions(), fs::perms(0600));
  EXPECT_EQ(files(), 1);
}

TEST_F(OutputFileTest, WithoutCommitNothingHappened) {
  write_file_atomically(path_ / "a", "old");
  {
    OutputFile file(path_ / "a");
    file.write("half");
    EXPECT_EQ(files(), 1) << "it has no name yet";
  }
  { OutputFile other(path_ / "b"); }
  EXPECT_EQ(read(path_ / "a"), "old");
  EXPECT_EQ(files(), 1);
}

TEST_F(OutputFileTest, LibrariesMayWriteThemselves) {
  OutputFile file(path_ / "a");
  std::ofstream(file.work_path(), std::ios::binary) << "by name";
  file.commit();
  EXPECT_EQ(read(path_ / "a"), "by name");
  EXPECT_EQ(files(), 1);
}

TEST_F(OutputFileTest, LeftOversOfOthersDoNotMatter) {
  std::ofstream(path_ / ".a.partial") << "of a program that was killed";
  write_file_atomically(path_ / "a", "new");
  EXPECT_EQ(read(path_ / "a"), "new");
  EXPECT_EQ(files(), 1);
}

TEST_F(OutputFileTest, ManyAtOnceLeaveOneWholeFile) {
  {
    std::vector<std::jthread> writers;
    for (char c = 'a'; c < 'e'; ++c) {
      writers.emplace_back([&, c] {
        for (int i = 0; i < 50; ++i) write_file_atomically(path_ / "a", std::string(10000, c));
      });
    }
  }
  const std::string text = read(path_ / "a");
  EXPECT_EQ(text, std::string(10000, text.at(0)));
  EXPECT_EQ(files(), 1);
}

TEST_F(OutputFileTest, LinksAreFollowed) {
  fs::create_directory(path_ / "sub");
  fs::create_symlink("sub/target", path_ / "link");
  fs::create_symlink(path_ / "link", path_ / "link2");
  write_file_atomically(path_ / "link2", "first");  // the target is not there yet
  EXPECT_EQ(read(path_ / "sub/target"), "first");
  write_file_atomically(path_ / "link2", "second");
  EXPECT_EQ(read(path_ / "sub/target"), "second");
  EXPECT_TRUE(fs::is_symlink(path_ / "link"));
  EXPECT_TRUE(fs::is_symlink(path_ / "link2"));
  fs::create_symlink("loop", path_ / "loop");
  EXPECT_THAT(error(path_ / "loop"), HasSubstr("symbolic links"));
}

TEST_F(OutputFileTest, WhatIsNoRegularFileIsWrittenTo) {
  ASSERT_EQ(::mkfifo((path_ / "fifo").c_str(), 0600), 0);
  std::string text;
  std::jthread reader([&] { text = read(path_ / "fifo"); });
  write_file_atomically(path_ / "fifo", "through it");
  reader.join();
  EXPECT_EQ(text, "through it");
  EXPECT_TRUE(fs::is_fifo(path_ / "fifo"));
  {
    std::jthread again([&] { text = read(path_ / "fifo"); });
    OutputFile file(path_ / "fifo");
    std::ofstream(file.work_path(), std::ios::binary) << "by name";
    file.commit();
  }
  EXPECT_EQ(text, "by name");

  fs::create_symlink("/dev/null", path_ / "null");
  write_file_atomically(path_ / "null", "gone");
  write_file_atomically("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_THAT(error("/dev/full"), HasSubstr("No space left on device"));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_THAT(error(path_), HasSubstr("Is a directory"));
  EXPECT_THAT(error(path_ / "none" / "a"), HasSubstr("No such file or directory"));
}

TEST_F(OutputFileTest, DescriptorsAreWrittenTo) {
  const int fd = ::open((path_ / "open").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "before ", 7), 7);
  write_file_atomically(fmt::format("/dev/fd/{}", fd), "after");
  write_file_atomically(fmt::format("/proc/self/fd/{}", fd), "wards");
  EXPECT_EQ(read(path_ / "open"), "before afterwards");
  ::close(fd);
  EXPECT_THAT(error(fmt::format("/dev/fd/{}", fd)), HasSubstr("annot"));
}

TEST_F(OutputFileTest, SeveralFilesGoTogether) {
  write_file_atomically(path_ / "a", "old");
  EXPECT_THROW(write_files_atomically({{path_ / "a", "new"}, {path_ / "none" / "b", "new"}}),
               Error);
  EXPECT_EQ(read(path_ / "a"), "old");
  write_files_atomically({{path_ / "a", "1"}, {path_ / "b", "2"}});
  EXPECT_EQ(read(path_ / "a") + read(path_ / "b"), "12");
}

TEST(OneLine, IsOneLineOfBoundedLength) {
  EXPECT_EQ(one_line("plain text"), "plain text");
  EXPECT_EQ(one_line("a\nb\tc\r\x1b[31m\x7f"), "a\\nb\\tc\\r\\x1b[31m\\x7f");
  EXPECT_EQ(one_line("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x93\xa1"),
            "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x93\xa1");
  EXPECT_EQ(one_line("\xff\xc3\xc0\xaf\xc2\x9b\xed\xa0\x80"),
            "\\xff\\xc3\\xc0\\xaf\\xc2\\x9b\\xed\\xa0\\x80");
  EXPECT_EQ(one_line(std::string("\0", 1)), "\\x00");
  const std::string line = one_line(std::string(100, 'a') + std::string(100000, '\n') + "end");
  EXPECT_LE(line.size(), 900U);
  EXPECT_THAT(line, testing::EndsWith("end"));
  EXPECT_EQ(one_line(std::string(100000, 'x')).size(), 295U);
}

struct Outcome {
  int exit_code = -1;
  std::string out, error;
};

// Programs as users run them, with redirections of the shell's.
class ProgramTest : public Scratch {
 protected:
  Outcome run(const std::string& program, const std::string& arguments,
              const std::string& redirections = "") const {
    const std::string command =
        fmt::format("cd '{0}' && '{1}/{2}' {3} >out 2>error {4}", path_.string(), FMP_BINARY_DIR,
                    program, arguments, redirections);
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the test has one thread
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read(path_ / "out"),
            read(path_ / "error")};
  }
};

const std::string kModel = FMP_FIXTURES_DIR "/onnx_branches.onnx";

// Every program that prints a result, with arguments that make it do so.
std::vector<std::pair<std::string, std::string>> printing_programs() {
  return {
      {"tools/inference_cost", kModel},
      {"tools/inference_cost", "--help"},
      {"tools/onnx_eval", "--help"},
      {"tools/fmp_bench", "--help"},
      {"tools/fmp_bench", "--channels 2 --length 128 --batch 16 --steps 1 --warm-up 0 --json"},
      {"tools/emit_c", "--help"},
      {"tools/classify", "--help"},
      {"tools/radioml_synth", "--out s.h5 --frames-per-block 1 --snr 10 --classes BPSK --quiet"},
      {"tools/radioml_gallery", "--help"},
      {"experiments/fmp_radioml", "--version"},
      {"experiments/fmp_radioml", "--help"}};
}

TEST_F(ProgramTest, AResultThatIsLostIsAnError) {
  for (const auto& [program, arguments] : printing_programs()) {
    EXPECT_EQ(run(program, arguments).exit_code, 0) << program << read(path_ / "error");
    for (const std::string redirection : {">/dev/full", ">&-", ">/dev/full 2>&1", ">&- 2>&-"}) {
      const Outcome r = run(program, arguments, redirection);
      EXPECT_EQ(r.exit_code, 1) << program << ' ' << arguments << redirection << r.error;
      if (redirection.find('2') == std::string::npos) {
        EXPECT_THAT(r.error, testing::StartsWith("error: standard output cannot be written"));
        EXPECT_THAT(r.error, HasSubstr(redirection == ">&-" ? "Bad file descriptor"
                                                            : "No space left on device"));
        EXPECT_EQ(std::ranges::count(r.error, '\n'), 1) << r.error;
      }
    }
  }
}

TEST_F(ProgramTest, ErrorsThatCannotBeToldAreErrorsStill) {
  for (const char* program : {"tools/inference_cost", "tools/onnx_eval", "tools/fmp_bench",
                              "tools/emit_c", "tools/classify", "tools/radioml_synth",
                              "tools/radioml_gallery", "experiments/fmp_radioml"}) {
    for (const char* redirection : {"", "2>&-", "2>/dev/full", ">&- 2>&- <&-"}) {
      EXPECT_EQ(run(program, "--no-such-flag", redirection).exit_code, 2) << program << redirection;
    }
  }
}

// As a script with an unset variable gives them.
TEST_F(ProgramTest, EmptyNamesAreNoNames) {
  for (const auto& [program, arguments] : std::vector<std::pair<std::string, std::string>>{
           {"tools/inference_cost", kModel + " --json ''"},
           {"tools/onnx_eval", kModel + " --data f.h5 --logits="},
           {"tools/radioml_synth", "--out ''"},
           {"tools/radioml_gallery", "f.h5 --out="},
           {"experiments/fmp_radioml", "--data f.h5 --out o --init="},
           {"experiments/fmp_radioml", "--data f.h5 --out o --network="}}) {
    const Outcome r = run(program, arguments);
    EXPECT_EQ(r.exit_code, 2) << program << r.error;
    EXPECT_THAT(r.error, HasSubstr("the name is empty"));
  }
}

// A file that is opened must not become standard output.
TEST_F(ProgramTest, ClosedDescriptorsAreNotUsedForFiles) {
  const Outcome r = run("tools/inference_cost", kModel + " --json cost.json", ">&- <&-");
  EXPECT_EQ(r.exit_code, 1);
  const std::string written = read(path_ / "cost.json");
  EXPECT_TRUE(written.empty() || written.front() == '{') << written;
}

TEST_F(ProgramTest, OutputsMayBeStandardOutputAndDevices) {
  const Outcome plain = run("tools/inference_cost", kModel + " --json cost.json");
  ASSERT_EQ(plain.exit_code, 0);
  const std::string json = read(path_ / "cost.json");
  ASSERT_THAT(json, HasSubstr("total_bops"));
  EXPECT_EQ(run("tools/inference_cost", kModel + " --json -").out, json);
  for (const char* name : {"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "out"}) {
    const Outcome r = run("tools/inference_cost", kModel + " --json " + name);
    EXPECT_EQ(r.exit_code, 0) << r.error;
    EXPECT_EQ(r.out, plain.out + json) << name;
  }
  EXPECT_EQ(run("tools/inference_cost", kModel + " --json /dev/stderr").error, json);
  EXPECT_TRUE(fs::is_symlink("/dev/stdout"));
  const Outcome full = run("tools/inference_cost", kModel + " --json /dev/full");
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_THAT(full.error, HasSubstr("/dev/full: cannot write: No space left on device"));

  const std::string synth = "--frames-per-block 1 --snr 10 --classes BPSK --quiet --out ";
  ASSERT_EQ(run("tools/radioml_synth", synth + "s.h5").exit_code, 0);
  EXPECT_EQ(run("tools/radioml_synth", synth + "-").out, read(path_ / "s.h5"));
  EXPECT_EQ(run("tools/radioml_synth", synth + "/dev/null").exit_code, 0);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(ProgramTest, FilesAtTheLimitOfTheirSizeAreAnError) {
  const std::string command = fmt::format(
      "cd '{}' && (ulimit -f 1000; '{}/tools/radioml_synth' --frames-per-block 200 --snr 10 "
      "--quiet "
      "--out big.h5 2>error)",
      path_.string(), FMP_BINARY_DIR);
  const int status = std::system(command.c_str());  // NOLINT(concurrency-mt-unsafe): likewise
  ASSERT_TRUE(WIFEXITED(status)) << "a signal ended it";
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(read(path_ / "error"), HasSubstr("big.h5: cannot"));
  EXPECT_EQ(std::ranges::count(read(path_ / "error"), '\n'), 1);
  EXPECT_FALSE(fs::exists(path_ / "big.h5"));
}

TEST_F(ProgramTest, SaysHowMuchMemoryWasAskedFor) {
  if (FMP_SANITIZED) GTEST_SKIP() << "sanitizers need all the address space";
  const std::string command = fmt::format(
      "cd '{}' && (ulimit -v 400000; '{}/tools/fmp_bench' --channels 2 --batch 1000000 --steps 1 "
      "--threads 1 >out 2>error)",
      path_.string(), FMP_BINARY_DIR);
  const int status = std::system(command.c_str());  // NOLINT(concurrency-mt-unsafe): likewise
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(read(path_ / "error"),
              testing::MatchesRegex("error: out of memory: .* were asked for\n"));
}

TEST_F(ProgramTest, ASynthesisThatIsEndedLeavesNothing) {
  for (const char* signal : {"TERM", "KILL"}) {
    const std::string command = fmt::format(
        "cd '{}' && ('{}/tools/radioml_synth' --out s.h5 --quiet & pid=$!; sleep 0.3; kill -{} "
        "$pid; wait $pid) 2>/dev/null",
        path_.string(), FMP_BINARY_DIR, signal);
    EXPECT_NE(std::system(command.c_str()), 0);  // NOLINT(concurrency-mt-unsafe): likewise
    EXPECT_EQ(files(), 0) << signal;
  }
}

}  // namespace
}  // namespace fmp
