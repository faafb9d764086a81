// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "framework/error.h"

namespace fmp {

// JSON of a file, which is not trusted: copying and destroying a document takes stack for every
// level of it, so that there may be only so many. What this project and SigMF write has under ten.
inline constexpr int kMaxJsonDepth = 64;

// The document that `text` holds; `where` names the file. Throws Error of one line.
inline nlohmann::json parse_json(std::string_view text, const std::string& where) {
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxJsonDepth) fail("{}: JSON of more than {} levels", where, kMaxJsonDepth);
    return true;
  };
  try {
    return nlohmann::json::parse(text, check_depth);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: is no JSON: {}", where, error.what());
  }
}

}  // namespace fmp
