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

  std::string take_string_or(const char* name, const char* otherwise) {
    const Json* value = take(name);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) fail("{}: '{}': expected a text", where_, name);
    return value->get<std::string>();
  }
  bool take_flag(const char* name, bool otherwise = false) {
    const Json* value = take(name);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail("{}: '{}': expected true or false", where_, name);
    return value->get<bool>();
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

struct TypeName {
  LayerKind kind;
  const char* name;
};
constexpr TypeName kTypes[] = {{LayerKind::kConv, "conv"},
                               {LayerKind::kDense, "dense"},
                               {LayerKind::kAdd, "add"},
                               {LayerKind::kConcat, "concat"},
                               {LayerKind::kAveragePool, "average_pool"}};
constexpr const char* kInputName = "input";

LayerKind read_kind(Fields& fields) {
  const Json* type = fields.take("type");
  std::string expected;
  for (const TypeName& known : kTypes) {
    if (type != nullptr && *type == known.name) return known.kind;
    expected += fmt::format("{}\"{}\"", expected.empty() ? "" : ", ", known.name);
  }
  fail("{}: 'type': expected one of {}", fields.where(), expected);
}

// Among the names of the layers before it.
std::vector<int> read_reads(Fields& fields, const std::vector<std::string>& names_before) {
  const Json* names = fields.take("reads");
  if (names == nullptr) return {};
  const bool is_list = names->is_array() && !names->empty() &&
                       std::ranges::all_of(*names, [](const Json& n) { return n.is_string(); });
  if (!is_list) fail("{}: 'reads': expected a list of names", fields.where());
  std::vector<int> reads;
  for (const Json& entry : *names) {
    const auto name = entry.get<std::string>();
    const auto found = std::ranges::find(names_before, name);
    if (found == names_before.end() && name != kInputName) {
      fail("{}: 'reads': no layer before it is called '{}', expected names or \"{}\"",
           fields.where(), name, kInputName);
    }
    reads.push_back(name == kInputName ? kReadsFrames
                                       : static_cast<int>(found - names_before.begin()));
  }
  return reads;
}

// Zeros before the first sample, or before it and behind the last.
void read_padding(Fields& fields, Convolution& form) {
  form.padding = (form.kernel - 1) / 2;
  const Json* padding = fields.take("padding");
  if (padding == nullptr) return;
  const auto is_count = [](const Json& n) {
    return n.is_number_integer() && n >= 0 && n <= std::numeric_limits<int>::max();
  };
  if (is_count(*padding)) {
    form.padding = padding->get<int>();
  } else if (padding->is_array() && padding->size() == 2 &&
             std::ranges::all_of(*padding, is_count)) {
    form.padding = (*padding)[0].get<int>();
    form.padding_after = (*padding)[1].get<int>();
  } else {
    fail("{}: 'padding': expected a whole number, or two of them: [before, behind]",
         fields.where());
  }
}

void read_layer(Fields fields, int bits, NetworkConfig& config, std::vector<std::string>& names) {
  const LayerKind kind = read_kind(fields);
  if (kind != LayerKind::kDense && !config.layers.empty() &&
      config.layers.back().kind == LayerKind::kDense)
    fail("{}: only a dense layer may follow a dense layer", fields.where());
  LayerConfig& layer = config.layers.emplace_back();
  layer.kind = kind;
  layer.name = fields.take_string_or("name", "");
  if (layer.name == kInputName)
    fail("{}: 'name': \"{}\" are the frames", fields.where(), layer.name);
  layer.reads = read_reads(fields, names);
  if (has_weights(kind)) {
    layer.outputs = fields.require_integer("outputs");
    layer.weight_bits = fields.take_integer_or("weight_bits", bits);
  }
  if (kind == LayerKind::kConv) {
    layer.form.kernel = fields.require_integer("kernel");
    layer.form.stride = fields.take_integer_or("stride", 1);
    read_padding(fields, layer.form);
    layer.form.groups = fields.take_integer_or("groups", 1);
  }
  if (kind == LayerKind::kAveragePool) {
    layer.form.kernel = fields.take_integer_or("window", 0);
  } else if (kind != LayerKind::kDense) {
    layer.form.pool = fields.take_integer_or("pool", 1);
  }
  layer.act_bits = fields.take_integer_or("act_bits", bits);
  const bool is_signed = fields.take_flag("signed"), is_narrow = fields.take_flag("narrow");
  if (is_narrow && !is_signed) fail("{}: 'narrow': only with \"signed\"", fields.where());
  if (is_signed) {
    if (layer.act_bits < 2 || layer.act_bits > 8)
      fail("{}: 'signed': only with act_bits of 2..8", fields.where());
    layer.smallest_code = -(1 << (layer.act_bits - 1)) + (is_narrow ? 1 : 0);
  }
  layer.collects = fields.take_flag("collects", true);
  fields.refuse_others();
  names.push_back(config.name_of(config.layers.size() - 1));
}

Json describe_layer(const NetworkConfig& config, size_t index) {
  const LayerConfig& layer = config.layers[index];
  const auto* type = std::ranges::find(kTypes, layer.kind, &TypeName::kind);
  Json json = {{"type", type->name}, {"act_bits", layer.act_bits}};
  if (!layer.name.empty()) json["name"] = layer.name;
  for (const int read : layer.reads) {
    json["reads"].push_back(read == kReadsFrames ? std::string(kInputName)
                                                 : config.name_of(static_cast<size_t>(read)));
  }
  if (has_weights(layer.kind)) {
    json["outputs"] = layer.outputs;
    json["weight_bits"] = layer.weight_bits;
  }
  if (layer.kind == LayerKind::kConv) {
    json["kernel"] = layer.form.kernel;
    json["stride"] = layer.form.stride;
    json["padding"] = layer.form.padding;
    if (layer.form.padding_after != Convolution::kAsNeeded)
      json["padding"] = {layer.form.padding, layer.form.padding_after};
    json["groups"] = layer.form.groups;
  }
  if (layer.kind == LayerKind::kAveragePool) {
    json["window"] = layer.form.kernel;
  } else if (layer.kind != LayerKind::kDense) {
    json["pool"] = layer.form.pool;
  }
  if (layer.smallest_code < 0) json["signed"] = true;
  if (layer.smallest_code < 0 && layer.smallest_code != -(1 << (layer.act_bits - 1)))
    json["narrow"] = true;
  if (!layer.collects) json["collects"] = false;
  return json;
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
  return network_of_json(parse_json(text, where), where, bits);
}

NetworkConfig network_of_json(const Json& json, const std::string& where, int bits) {
  Fields fields(json, where);
  NetworkConfig config;
  config.input_bits = fields.take_integer_or("input_bits", bits);
  if (const Json* scale = fields.take("input_scale")) {
    if (!scale->is_number()) fail("{}: 'input_scale': expected a number", where);
    config.input_scale = scale->get<float>();
  }
  const Json* layers = fields.take("layers");
  if (layers == nullptr || !layers->is_array()) fail("{}: 'layers': expected a list", where);
  if (layers->size() > kMaxLayers)
    fail("{}: {} layers, at most {} are supported", where, layers->size(), kMaxLayers);
  std::vector<std::string> names;
  for (size_t i = 0; i < layers->size(); ++i) {
    read_layer(Fields((*layers)[i], fmt::format("{}: layer {}", where, i + 1)), bits, config,
               names);
  }
  config.output_bits = bits;
  if (const Json* output = fields.take("output")) {
    Fields of_output(*output, where + ": output");
    config.output_bits = of_output.take_integer_or("weight_bits", bits);
    config.class_scales = of_output.take_flag("class_scales");
    of_output.refuse_others();
  }
  fields.refuse_others();
  return config;
}

Json describe_network(const NetworkConfig& config) {
  Json json = {{"input_bits", config.input_bits},
               {"layers", Json::array()},
               {"output", {{"weight_bits", config.output_bits}}}};
  if (config.input_scale != 0) json["input_scale"] = config.input_scale;
  if (config.class_scales) json["output"]["class_scales"] = true;
  for (size_t i = 0; i < config.layers.size(); ++i)
    json["layers"].push_back(describe_layer(config, i));
  return json;
}

NetworkConfig read_network(const std::string& name_or_file, int bits) {
  for (const NetworkPreset& preset : kNetworkPresets) {
    if (name_or_file == preset.name) return parse_network(preset.text, preset.name, bits);
  }
  if (name_or_file.starts_with('{')) return parse_network(name_or_file, "its text", bits);
  return parse_network(read_text(name_or_file), name_or_file, bits);
}

std::vector<std::string> network_presets() {
  std::vector<std::string> names;
  for (const NetworkPreset& preset : kNetworkPresets) names.emplace_back(preset.name);
  return names;
}

}  // namespace fmp
