// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "framework/error.h"

namespace fmp {

// JSON of a file, which is not trusted: copying and destroying a document takes stack for every
// level of it, so that there may be only so many. What this project and SigMF write has under ten.
inline constexpr int kMaxJsonDepth = 64;

// The document that `text` holds; `where` names the file. Throws Error of one line, also where an
// object has a field twice: readers take the first or the last of them.
inline nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> fields;  // of the objects around
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > kMaxJsonDepth) fail("{}: JSON of more than {} levels", where, kMaxJsonDepth);
    if (event == Event::object_start) fields.emplace_back();
    if (event == Event::object_end) fields.pop_back();
    if (event == Event::key && !fields.back().insert(value.get<std::string>()).second) {
      fail("{}: JSON with the field '{}' twice in one object", where, value.get<std::string>());
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: is no JSON: {}", where, error.what());
  }
}

}  // namespace fmp
