// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "experiments/options.h"
#include "framework/data/dataset.h"
#include "framework/data/radioml.h"

namespace fmp {

// The frames of a run and their split.
struct LoadedData {
  std::unique_ptr<Dataset> dataset;
  Split split;
  std::string storage;                // where the frames are, to be shown: "in memory, 123 MB"
  std::vector<std::string> warnings;  // of what the frames are like, a line each
  // Called before each epoch with its number. Empty for data that stays what it is.
  std::function<void(uint64_t epoch)> begin_epoch;
};

// Opens "SCHEME:argument". Further sources can so be linked into a program without this library
// knowing them.
using DataSource = std::function<LoadedData(const std::string& argument, const Options& options,
                                            Communicator* ranks, const LoadProgress& progress)>;
using DataSources = std::map<std::string, DataSource>;  // by scheme

// Opens options.data: by the source whose scheme it begins with, else as a RadioML file. Makes the
// split. ranks: null, or those that hold a part of the frames each. Throws Error, also when a part
// of the split that the options need is empty.
LoadedData open_data(const Options& options, const DataSources& sources, Communicator* ranks,
                     const LoadProgress& progress);

// A hash of sizes, labels, SNRs and a sample of the frames: tells whether a resumed run sees the
// data that it began with. The same for any number of ranks.
uint64_t fingerprint(const Dataset& dataset, int input_bits, Communicator* ranks);

}  // namespace fmp
