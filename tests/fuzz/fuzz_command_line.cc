// SPDX-License-Identifier: MIT
// Arguments of fmp_radioml, a line each. What is accepted must be accepted again in the form in
// which it is stored.
#include <sstream>
#include <vector>

#include "experiments/options.h"
#include "tests/fuzz/harness.h"

using namespace fmp;  // NOLINT: a program of one function

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> arguments;
  std::istringstream in{std::string(fuzz::text(data, size))};
  for (std::string line; std::getline(in, line);) arguments.push_back(line);
  fuzz::refuse_or_run([&] {
    const std::optional<Options> options = parse_options(arguments);
    if (!options || !options->init.empty() || !options->resume.empty()) return;
    // One that begins with a dash, or holds what separates lists, is not what is meant here.
    const std::optional<Options> again = parse_options(to_arguments(*options));
    if (!again || !(*again == *options)) std::abort();
  });
  return 0;
}
