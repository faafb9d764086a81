// SPDX-License-Identifier: MIT
// Numbers as people read them, on the console and in the report.
#pragma once

#include <cstdint>
#include <string>

namespace fmp {

// "12,345".
std::string format_count(int64_t value);
// "56.78%".
std::string format_percent(double fraction);
// "4.2 s", "12 min 7 s", "1 h 2 min". seconds: not negative.
std::string format_duration(double seconds);

}  // namespace fmp
