// SPDX-License-Identifier: MIT
// The structure that the READMEs describe, read from the sources: which folder includes which, and
// that the functions that a walk through the code names are where it says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace fmp {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = fs::path(FMP_FIXTURES_DIR).parent_path().parent_path();

// From the lowest floor to the highest: a folder includes itself and what is below it.
const std::vector<std::string> kFloors = {"kernels", "framework", "experiments", "tools"};

std::string read(const fs::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

struct Include {
  fs::path from, to;  // relative to the sources
};

// What the sources of all floors include of each other.
std::vector<Include> read_includes() {
  const std::regex line("(^|\n)#include \"([^\"]+)\"");
  std::vector<Include> found;
  for (const std::string& floor : kFloors) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(kSource / floor)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cc" && extension != ".cu") continue;
      const std::string text = read(entry.path());
      for (auto match = std::sregex_iterator(text.begin(), text.end(), line);
           match != std::sregex_iterator(); ++match) {
        const fs::path to = (*match)[2].str();
        if (std::ranges::find(kFloors, to.begin()->string()) == kFloors.end()) continue;
        found.push_back({fs::relative(entry.path(), kSource), to});
      }
    }
  }
  return found;
}

const std::vector<Include>& includes() {
  static const std::vector<Include> all = read_includes();
  return all;
}

// The room of a file: its folder, but no deeper than framework/training.
std::string room_of(const fs::path& file) {
  const auto second = std::next(file.begin());
  return second == std::prev(file.end()) ? file.begin()->string()
                                         : (*file.begin() / *second).string();
}

std::ptrdiff_t floor_of(const fs::path& file) {
  return std::ranges::find(kFloors, file.begin()->string()) - kFloors.begin();
}

using Graph = std::map<std::string, std::set<std::string>>;

// A circle of the graph as text, empty if there is none.
std::string circle_in(const Graph& graph) {
  enum class State { kNew, kOpen, kDone };
  std::map<std::string, State> states;
  std::string circle;
  const auto visit = [&](const auto& self, const std::string& node) -> void {
    states[node] = State::kOpen;
    const auto next = graph.find(node);
    for (const std::string& to : next == graph.end() ? std::set<std::string>() : next->second) {
      if (states[to] == State::kOpen) circle = fmt::format("{} -> {}", node, to);
      if (states[to] == State::kNew) self(self, to);
    }
    states[node] = State::kDone;
  };
  for (const auto& [node, unused] : graph) {
    if (states[node] == State::kNew) visit(visit, node);
  }
  return circle;
}

TEST(Structure, IncludesPointDownwards) {
  EXPECT_GT(includes().size(), 300U);
  for (const Include& include : includes()) {
    EXPECT_TRUE(fs::exists(kSource / include.to)) << include.from << " includes " << include.to;
    EXPECT_GE(floor_of(include.from), floor_of(include.to))
        << include.from << " includes " << include.to;
  }
}

TEST(Structure, RoomsHaveNoCircle) {
  Graph rooms;
  for (const Include& include : includes()) {
    const std::string from = room_of(include.from), to = room_of(include.to);
    if (from != to) rooms[from].insert(to);
  }
  EXPECT_GT(rooms.size(), 8U);
  EXPECT_EQ(circle_in(rooms), "");
  EXPECT_EQ(rooms["kernels/cpu"], std::set<std::string>{"kernels"}) << "backends know only layer.h";
  EXPECT_EQ(rooms["kernels/cuda"], std::set<std::string>{"kernels"});
  EXPECT_EQ(rooms.count("kernels"), 0U);
}

// A unit is a header with its source file.
TEST(Structure, UnitsOfExperimentsHaveNoCircle) {
  Graph units;
  for (const Include& include : includes()) {
    if (*include.from.begin() != "experiments" || *include.to.begin() != "experiments") continue;
    const std::string from = fs::path(include.from).replace_extension().string();
    const std::string to = fs::path(include.to).replace_extension().string();
    if (from != to) units[from].insert(to);
  }
  EXPECT_GT(units.size(), 10U);
  EXPECT_EQ(circle_in(units), "");
}

TEST(Structure, CirclesAreFound) {
  EXPECT_EQ(circle_in({{"a", {"b"}}, {"b", {"c"}}}), "");
  EXPECT_EQ(circle_in({{"a", {"b"}}, {"b", {"c"}}, {"c", {"a"}}}), "c -> a");
}

// Every line of a README that names a file in backticks and then functions ("`a/b.cc`: `f`, `g`"):
// each function is in that file.
void expect_functions(const fs::path& readme, size_t at_least) {
  const std::regex token("`([^`]+)`");
  const std::regex is_file("[a-z_0-9]+(/[a-z_0-9-]+)+\\.(h|cc|cu)");
  const std::regex is_function("[A-Za-z_0-9:]+");
  std::ifstream in(kSource / readme);
  size_t functions = 0;
  for (std::string line; std::getline(in, line);) {
    std::string file, text;
    for (auto match = std::sregex_iterator(line.begin(), line.end(), token);
         match != std::sregex_iterator(); ++match) {
      const std::string name = (*match)[1].str();
      if (std::regex_match(name, is_file)) {
        file = name;
        text = read(kSource / file);
        EXPECT_FALSE(text.empty()) << readme << " names " << file;
      } else if (!file.empty() && std::regex_match(name, is_function)) {
        ++functions;
        const std::regex call("\\b" + name + "\\s*[(<{;]");
        EXPECT_TRUE(std::regex_search(text, call)) << readme << ": " << name << " in " << file;
      }
    }
  }
  EXPECT_GE(functions, at_least) << readme;
}

TEST(Structure, TheWalkThroughATrainingStepNamesWhatExists) {
  expect_functions("framework/training/README.md", 30);
}

TEST(Structure, TheFormulasOfAHiddenLayerNameWhatExists) {
  expect_functions("kernels/README.md", 20);
}

}  // namespace
}  // namespace fmp
