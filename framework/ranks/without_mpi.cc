// SPDX-License-Identifier: MIT
#include "framework/error.h"
#include "framework/ranks/job.h"
#include "framework/ranks/launcher.h"

namespace fmp {

std::unique_ptr<Job> join_job() {
  if (const int processes = launched_processes(); processes > 1) {
    throw UsageError(fmt::format(
        "{} processes were started as one job, but this build has no MPI: configure with "
        "-DFMP_MPI=ON",
        processes));
  }
  return nullptr;
}

std::string mpi_description() { return "built without MPI"; }

}  // namespace fmp
