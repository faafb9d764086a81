// SPDX-License-Identifier: MIT
// A network as a JSON file, for --network. framework/network/README.md says what may stand there.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// The network that `text` describes; where: the file's name, for messages. bits: of what the text
// gives no bits. Samples, input channels and classes are those of the defaults: the data say them.
// Throws Error with one line that names the layer and the field.
NetworkConfig parse_network(std::string_view text, const std::string& where, int bits);

NetworkConfig network_of_json(const nlohmann::json& json, const std::string& where, int bits);

// What parse_network() reads as the same layers, every number of bits included.
nlohmann::json describe_network(const NetworkConfig& config);

// A preset by its name, the JSON text itself, or else a file.
NetworkConfig read_network(const std::string& name_or_file, int bits);

std::vector<std::string> network_presets();  // names

}  // namespace fmp
