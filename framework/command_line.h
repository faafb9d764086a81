// SPDX-License-Identifier: MIT
// How programs read their command lines.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "framework/error.h"
#include "framework/program.h"

namespace fmp {

// An empty name of a file or directory, as a script with an unset variable has it, is none.
inline void refuse_empty_names(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_type_name() != "FILE" && option->get_type_name() != "DIR") continue;
    for (const std::string& name : option->results()) {
      if (name.empty()) {
        throw UsageError(option->get_name() + ": the name is empty");
      }
    }
  }
}

// False when the user asked for help or the version, which is printed. Throws UsageError when the
// command line is wrong. "--name=" is an empty value, as "--name ''" is.
inline bool parse_command_line(CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> reversed;  // as CLI11 wants it
  bool flags = true;
  for (const std::string& argument : arguments) {
    flags = flags && argument != "--";
    if (flags && argument.size() > 3 && argument.starts_with("--") &&
        argument.find('=') == argument.size() - 1) {
      reversed.push_back(argument.substr(0, argument.size() - 1));
      reversed.emplace_back();
    } else {
      reversed.push_back(argument);
    }
  }
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::Success& success) {
    std::ostringstream text;
    app.exit(success, text, text);
    fmt::print("{}", text.str());
    return false;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  refuse_empty_names(app);
  return true;
}

inline bool parse_command_line(CLI::App& app, int argc, char** argv) {
  return parse_command_line(app, std::vector<std::string>(argv + 1, argv + argc));
}

// A name or number as people separate them by commas: without the blanks around it.
inline std::string trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}

// For elements of lists: trims them, and refuses what is empty then (--classes BPSK ' '). CLI11
// drops what is empty between two commas itself.
inline CLI::Validator list_element() {
  return {[](std::string& text) {
            text = trimmed(text);
            return text.empty() ? std::string("an element of the list is empty") : std::string();
          },
          ""};
}

}  // namespace fmp
