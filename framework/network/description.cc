// SPDX-License-Identifier: MIT
#include "framework/network/description.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "framework/error.h"
#include "framework/json.h"
#include "framework_presets.h"  // made from framework/network/presets

namespace fmp {
namespace {

using Json = nlohmann::json;

// The fields of one JSON object, each of which must be taken.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) fail("{}: expected an object", where_);
  }

  const Json* take(const char* name) {
    taken_.emplace_back(name);
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }
  std::optional<int> take_integer(const char* name) {
    const Json* value = take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer() || *value < 0 || *value > std::numeric_limits<int>::max()) {
      fail("{}: '{}': expected a whole number", where_, name);
    }
    return value->get<int>();
  }
  int take_integer_or(const char* name, int otherwise) {
    return take_integer(name).value_or(otherwise);
  }
  int require_integer(const char* name) {
    const std::optional<int> value = take_integer(name);
    if (!value) fail("{}: '{}' is missing", where_, name);
    return *value;
  }

  // To be called when everything that is known was taken.
  void refuse_others() const {
    for (const auto& [name, value] : object_.items()) {
      if (std::ranges::find(taken_, name) == taken_.end()) {
        fail("{}: unknown field '{}', expected {}", where_, name, fmt::join(taken_, ", "));
      }
    }
  }
  const std::string& where() const { return where_; }

 private:
  const Json& object_;
  std::string where_;
  std::vector<std::string> taken_;
};

void read_layer(Fields fields, int bits, NetworkConfig& config) {
  const Json* type = fields.take("type");
  const bool is_conv = type != nullptr && *type == "conv";
  if (!is_conv && (type == nullptr || *type != "dense")) {
    fail("{}: 'type': expected \"conv\" or \"dense\"", fields.where());
  }
  const int outputs = fields.require_integer("outputs");
  if (is_conv) {
    if (!config.dense.empty()) fail("{}: a convolution behind a dense layer", fields.where());
    config.filters.push_back(outputs);
    config.kernel.push_back(fields.require_integer("kernel"));
    config.stride.push_back(fields.take_integer_or("stride", 1));
    config.padding.push_back(fields.take_integer_or("padding", (config.kernel.back() - 1) / 2));
    config.groups.push_back(fields.take_integer_or("groups", 1));
    config.pool.push_back(fields.take_integer_or("pool", 1));
  } else {
    config.dense.push_back(outputs);
  }
  config.weight_bits.push_back(fields.take_integer_or("weight_bits", bits));
  config.act_bits.push_back(fields.take_integer_or("act_bits", bits));
  fields.refuse_others();
}

std::string read_text(const std::string& file) {
  constexpr size_t kMostBytes = 1 << 20;  // some thousand times what a network takes
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("{}: cannot be read", file);
  std::string text;
  for (std::istreambuf_iterator<char> at(stream), end; at != end; ++at) {
    text.push_back(*at);
    if (text.size() > kMostBytes) fail("{}: more than {} bytes, no network", file, kMostBytes);
  }
  return text;
}

}  // namespace

NetworkConfig parse_network(std::string_view text, const std::string& where, int bits) {
  const Json json = parse_json(text, where);
  Fields fields(json, where);
  NetworkConfig config;
  for (auto* list :
       {&config.filters, &config.dense, &config.kernel, &config.stride, &config.padding,
        &config.groups, &config.pool, &config.weight_bits, &config.act_bits}) {
    list->clear();
  }
  config.input_bits = fields.take_integer_or("input_bits", bits);
  const Json* layers = fields.take("layers");
  if (layers == nullptr || !layers->is_array()) fail("{}: 'layers': expected a list", where);
  for (size_t i = 0; i < layers->size(); ++i) {
    read_layer(Fields((*layers)[i], fmt::format("{}: layer {}", where, i + 1)), bits, config);
  }
  int output_bits = bits;
  if (const Json* output = fields.take("output")) {
    Fields of_output(*output, where + ": output");
    output_bits = of_output.take_integer_or("weight_bits", bits);
    of_output.refuse_others();
  }
  config.weight_bits.push_back(output_bits);
  fields.refuse_others();
  return config;
}

NetworkConfig read_network(const std::string& name_or_file, int bits) {
  for (const NetworkPreset& preset : kNetworkPresets) {
    if (name_or_file == preset.name) return parse_network(preset.text, preset.name, bits);
  }
  return parse_network(read_text(name_or_file), name_or_file, bits);
}

std::vector<std::string> network_presets() {
  std::vector<std::string> names;
  for (const NetworkPreset& preset : kNetworkPresets) names.emplace_back(preset.name);
  return names;
}

}  // namespace fmp
