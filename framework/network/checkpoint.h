// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "framework/network/network.h"

namespace fmp {

// All that a run needs to go on as if it had never stopped: any number of networks by name, each
// with its weights, masks, batch-norm statistics, quantizers, optimizer moments and step counts,
// and a JSON document of the caller's. Gradients are not kept: every step computes them anew.
struct Checkpoint {
  std::map<std::string, Network> networks;
  nlohmann::json state;
};

// Replaces `path` atomically: whenever the program dies, a whole checkpoint, old or new, is there.
// Throws Error that names the file and the system's reason.
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);

// Gives back what was saved, bit for bit. Throws Error, in one line that names the file, when it
// cannot be read, is no checkpoint, has another version, is cut short or is damaged. Nothing in the
// file is trusted before its checksum holds, and no memory is taken that its size does not cover.
Checkpoint load_checkpoint(const std::filesystem::path& path);
// The same in two steps: the bytes behind the header, verified, and what they say. `path` names
// them in errors.
std::string read_checkpoint_bytes(const std::filesystem::path& path);
Checkpoint decode_checkpoint(const std::string& bytes, const std::filesystem::path& path);

// NetworkConfig as JSON: the layers as their description has them (description.h), and what the
// data say. from_json throws Error or nlohmann::json::exception on a missing field or a wrong type;
// it does not validate().
void to_json(nlohmann::json& json, const NetworkConfig& config);
void from_json(const nlohmann::json& json, NetworkConfig& config);

}  // namespace fmp
