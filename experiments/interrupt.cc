// SPDX-License-Identifier: MIT
#include "experiments/interrupt.h"

#include <csignal>

namespace fmp {
namespace {

volatile std::sig_atomic_t interrupted = 0;

}  // namespace

void note_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void check_interrupt(Communicator* ranks) {
  if (any_rank(ranks, interrupted != 0)) throw InterruptedError("interrupted");
}

}  // namespace fmp
