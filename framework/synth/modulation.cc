// SPDX-License-Identifier: MIT
#include "framework/synth/modulation.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "framework/error.h"
#include "framework/synth/families.h"

namespace fmp::synth {
namespace {

constexpr Modulations (*kFamilies[])() = {
    amplitude_shift_keying, phase_shift_keying,   amplitude_phase_keying, quadrature_amplitude,
    amplitude_modulation,   frequency_modulation, minimum_shift_keying,
};

// The order of the one-hot columns of RadioML 2018.01A. Classes that are not listed follow, in the
// order in which their families name them.
constexpr const char* kOrder[] = {
    "OOK",    "4ASK",      "8ASK",      "BPSK",      "QPSK",      "8PSK",  "16PSK", "32PSK",
    "16APSK", "32APSK",    "64APSK",    "128APSK",   "16QAM",     "32QAM", "64QAM", "128QAM",
    "256QAM", "AM-SSB-WC", "AM-SSB-SC", "AM-DSB-WC", "AM-DSB-SC", "FM",    "GMSK",  "OQPSK"};

auto rank(const std::unique_ptr<Modulation>& modulation) {
  return std::find(std::begin(kOrder), std::end(kOrder), modulation->name()) - std::begin(kOrder);
}

Modulations make_all() {
  Modulations all;
  for (auto family : kFamilies) {
    for (auto& modulation : family()) all.push_back(std::move(modulation));
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return rank(a) < rank(b); });
  return all;
}

}  // namespace

const Modulations& modulations() {
  static const Modulations all = make_all();
  return all;
}

int class_index(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& modulation : modulations()) {
    if (modulation->name() == name) return static_cast<int>(names.size());
    names.push_back(modulation->name());
  }
  throw UsageError(fmt::format("no class '{}'; the classes are {}", name, fmt::join(names, ", ")));
}

}  // namespace fmp::synth
