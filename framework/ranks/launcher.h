// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <string>

namespace fmp {

// Processes that a launcher says to have started as one job; 1 without a launcher.
inline int launched_processes() {
  // Open MPI's mpirun, MPICH's and Intel's mpiexec, srun.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread yet
    if (value != nullptr && *value != '\0') return std::max(1, std::atoi(value));  // NOLINT
  }
  return 1;
}

}  // namespace fmp
