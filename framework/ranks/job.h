// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>

#include "kernels/communicator.h"

namespace fmp {

// The ranks that a launcher (mpirun, srun) started as one job, connected by MPI. Two things watch
// over it: MPI moves the data, and a thread exchanges signs of life (see watch.h), because a
// collective operation of MPI waits for a rank that is gone for ever.
class Job : public Communicator {
 public:
  // The orderly end of all ranks. Nothing else may be called afterwards.
  virtual void leave() = 0;
  // The end because of an error of this rank: the job's exit code is `exit_code`, and one line,
  // "error: message", is printed by rank 0. If several ranks have an error, that of rank 0 is told,
  // else the first one. May be called at any time.
  [[noreturn]] virtual void end(int exit_code, const std::string& message) = 0;
};

// Null where no launcher started this process, or started it alone. Throws UsageError where one
// started several processes that do not know of each other, as this program was built without MPI
// or with another one.
std::unique_ptr<Job> join_job();

// The version of MPI, or why there is none.
std::string mpi_description();

}  // namespace fmp
