// SPDX-License-Identifier: MIT
#pragma once

#include "framework/error.h"
#include "kernels/communicator.h"

namespace fmp {

// The user pressed Ctrl-C or asked the program to end.
class InterruptedError : public Error {
 public:
  using Error::Error;
};

// From now on SIGINT and SIGTERM are noted instead of ending the program; a second one ends it.
void note_interrupts();
// Throws InterruptedError when one was noted, on all ranks when it was on any; null = there is this
// process alone.
void check_interrupt(Communicator* ranks);

}  // namespace fmp
