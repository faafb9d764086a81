// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

#include "framework/inference/integer_network.h"

namespace fmp {

struct CCode {
  std::string source, header;  // NAME.c and NAME.h
  int64_t constant_bytes = 0;  // weights, tables: read-only
  int64_t working_bytes = 0;   // activations and sums: static, zero-initialised
};

// The network as C99 without dependencies but <stdint.h>: integers only, no heap, results equal to
// IntegerNetwork::run's. `name` prefixes files and functions; throws UsageError when it is no C
// identifier. origin: where the network comes from, for a comment.
CCode emit_c(const IntegerNetwork& network, const std::string& name, const std::string& origin);

}  // namespace fmp
