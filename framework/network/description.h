// SPDX-License-Identifier: MIT
// A network as a JSON file, for --network. framework/network/README.md says what may stand there.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "framework/network/network.h"

namespace fmp {

// The network that `text` describes; where: the file's name, for messages. bits: of what the text
// gives no bits. Samples, input channels and classes are those of the defaults: the data say them.
// Throws Error with one line that names the layer and the field.
NetworkConfig parse_network(std::string_view text, const std::string& where, int bits);

// A preset by its name, or else a file.
NetworkConfig read_network(const std::string& name_or_file, int bits);

std::vector<std::string> network_presets();  // names

}  // namespace fmp
