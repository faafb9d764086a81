// SPDX-License-Identifier: MIT
// A file in RadioML's layout, or nearly. The HDF5 library is not instrumented, and crashes or hangs
// on some damaged files, which the project therefore opens in another process first. A new process
// for each of four steps of every input would take most of the time, so that here one process
// stays: it loads each input first. If it ends inside the library another one is started, and the
// input counts as refused; if the project's own code is at fault that is a finding. What it
// survives is loaded again in this process, which counts the branches.
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <iterator>

#include "framework/data/radioml.h"
#include "framework/data/trial_process.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of two functions

// The library leaks where it fails.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }  // NOLINT

// In place of the framework's.
void fmp::try_in_another_process(const std::string& /*where*/,
                                 const std::function<void()>& /*body*/) {}

namespace {

constexpr int kLibraryExit = 42;   // of the other process: the library was at fault
constexpr int kMilliseconds = 60;  // that the library may take, of the processor
constexpr int kInputs = 2000;      // of one process: the library leaks where it fails

const std::filesystem::path& data_file() {
  static const std::filesystem::path path = fuzz::scratch() / "data.h5";
  return path;
}

// What the other process wrote to standard error.
std::filesystem::path log() { return fuzz::scratch() / "log"; }
std::string text_of_log() {
  std::ifstream in(log());
  return {std::istreambuf_iterator<char>(in), {}};
}

void load() {
  RadioMlOptions options;
  options.path = data_file().string();
  options.threads = 1;
  options.memory_limit = 64 << 20;
  options.cache_dir = fuzz::scratch().string();
  fuzz::refuse_or_run([&] { open_radioml(options); });
}

// Whether a report or a stack begins in the library. The first frame that does not belong to the
// sanitizer is where it happened; calls of the project's own code stand below the library's.
bool is_in_library(const std::string& stack) {
  const size_t library = stack.find("libhdf5"), project = stack.find(" in fmp::");
  return library < project;
}

void exit_by_report(const char* report) { ::_exit(is_in_library(report) ? kLibraryExit : 1); }

// The library's time is up. The project's own code goes on: how long that takes is measured in the
// process that counts.
void exit_in_library(int /*signal*/) {
  ::ftruncate(STDERR_FILENO, 0);
  ::lseek(STDERR_FILENO, 0, SEEK_SET);
  __sanitizer_print_stack_trace();
  if (is_in_library(text_of_log())) ::_exit(kLibraryExit);
}

void set_timer(int milliseconds) {
  const timeval time{milliseconds / 1000, milliseconds % 1000 * 1000};
  const itimerval timer{time, time};
  ::setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

class OtherProcess {
 public:
  // Whether the input can be loaded without harm.
  bool survives() {
    if (process_ <= 0 || ++inputs_ > kInputs) start();
    char byte = 0;
    if (::write(requests_, &byte, 1) != 1) std::abort();
    if (::read(answers_, &byte, 1) == 1) return true;
    const int status = stop();
    if (WIFEXITED(status) && WEXITSTATUS(status) == kLibraryExit) return false;
    std::fputs(text_of_log().c_str(), stderr);
    std::abort();
  }

 private:
  int stop() {
    ::close(requests_);
    int status = 0;
    ::waitpid(process_, &status, 0);
    ::close(answers_);
    process_ = 0;
    return status;
  }

  void start() {
    if (process_ > 0) stop();
    std::array<int, 2> requests{}, answers{};
    if (::pipe(requests.data()) != 0 || ::pipe(answers.data()) != 0) std::abort();
    process_ = ::fork();
    if (process_ < 0) std::abort();
    if (process_ == 0) {
      ::close(requests[1]);
      ::close(answers[0]);
      serve(requests[0], answers[1]);
    }
    ::close(requests[0]);
    ::close(answers[1]);
    requests_ = requests[1];
    answers_ = answers[0];
    inputs_ = 1;
  }

  [[noreturn]] void serve(int requests, int answers) {
    const int to_log = ::open(log().c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(to_log, STDERR_FILENO);
    std::signal(SIGVTALRM, exit_in_library);
    __asan_set_error_report_callback(exit_by_report);
    __sanitizer_set_death_callback([] { ::_exit(1); });  // libFuzzer's would write an old input
    char byte = 0;
    while (::read(requests, &byte, 1) == 1) {
      set_timer(kMilliseconds);
      load();
      set_timer(0);
      if (::write(answers, &byte, 1) != 1) break;
    }
    ::_exit(0);
  }

  pid_t process_ = 0;
  int requests_ = -1, answers_ = -1, inputs_ = 0;
};

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static OtherProcess other;
  fuzz::file(data_file().filename().c_str(), fuzz::text(data, size));
  if (other.survives()) load();
  return 0;
}
