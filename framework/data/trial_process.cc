// SPDX-License-Identifier: MIT
#include "framework/data/trial_process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "framework/error.h"

namespace fmp {
namespace {

// Of the processor. Opening a file of a million chunks takes about one.
constexpr rlim_t kSeconds = 10;
constexpr unsigned kMostSeconds = 120;  // of the clock: a disk may be slow

[[noreturn]] void run_and_exit(const std::function<void()>& body) {
  // Handlers that the program has installed would report or clean up what is not theirs.
  for (const int signal :
       {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGXCPU, SIGALRM, SIGINT, SIGTERM, SIGHUP})
    std::signal(signal, SIG_DFL);
  const rlimit no_core{0, 0}, seconds{kSeconds, kSeconds + 1};
  (void)::setrlimit(RLIMIT_CORE, &no_core);
  (void)::setrlimit(RLIMIT_CPU, &seconds);
  ::alarm(kMostSeconds);
  const int nowhere = ::open("/dev/null", O_RDWR);
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) (void)::dup2(nowhere, fd);
  try {
    body();
  } catch (...) {  // NOLINT(bugprone-empty-catch): the caller meets it again
  }
  ::_exit(0);
}

}  // namespace

void try_in_another_process(const std::string& where, const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child < 0) return;
  if (child == 0) run_and_exit(body);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return;
  }
  if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGALRM)) {
    fail("{}: is damaged: the HDF5 library works on it for more than {} s", where, kSeconds);
  }
  if (WIFSIGNALED(status) || WEXITSTATUS(status) != 0) {
    fail("{}: is damaged: the HDF5 library crashes on it", where);
  }
}

}  // namespace fmp
