// SPDX-License-Identifier: MIT
// The inference cost of an ONNX file, as finn-base counts it and the RadioML challenge scored it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "framework/atomic_file.h"
#include "framework/command_line.h"
#include "framework/error.h"
#include "framework/onnx/graph.h"
#include "framework/onnx/graph_cost.h"

namespace fmp {
namespace {

struct CostOptions {
  std::string model, json;
  onnx::QuantizerReading reading = onnx::QuantizerReading::kAsFinnBase;
};

std::optional<CostOptions> parse(int argc, char** argv) {
  CostOptions options;
  std::string brevitas = "float";
  CLI::App app("Inference cost of an ONNX file, by finn-base's definition, zeros discounted");
  app.add_option("model", options.model, "ONNX file")->type_name("FILE")->required();
  app.add_option("--json", options.json,
                 "Also write the totals here, with finn-base's keys; - = to "
                 "standard output, and nothing else")
      ->type_name("FILE");
  app.add_option("--brevitas-domain", brevitas,
                 "Quantizers of the domain onnx.brevitas: float = not understood, as by finn-base "
                 "and so in published figures; quantized = like all others [float]")
      ->type_name("float|quantized");
  if (!parse_command_line(app, argc, argv)) return std::nullopt;
  if (brevitas == "quantized") {
    options.reading = onnx::QuantizerReading::kAll;
  } else if (brevitas != "float") {
    throw UsageError(
        fmt::format("--brevitas-domain: expected float or quantized, found '{}'", brevitas));
  }
  return options;
}

void print(const NetworkCost& cost) {
  fmt::print("{:32} {:>16} {:>14} {:>9} {:>9} {:>9} {:>12} {:>15} {:>12}\n", "layer", "inputs",
             "weights", "number", "nonzero", "positions", "MACs", "bit ops", "memory bits");
  for (const LayerCost& layer : cost.layers) {
    fmt::print("{:32.32} {:>16} {:>14} {:9} {:9} {:9} {:12} {:15} {:12}\n", layer.layer,
               layer.input_type, layer.weight_type, layer.weights, layer.weights_nonzero,
               layer.positions, layer.macs(), layer.bit_ops(), layer.bit_mem());
  }
  fmt::print("{:32} {:>16} {:>14} {:9} {:9} {:>9} {:12} {:15} {:12}\n", "total", "", "",
             cost.weights(), cost.weights_nonzero(), "", cost.macs(), cost.bit_ops(),
             cost.bit_mem());
  if (!cost.unsupported.empty()) {
    fmt::print("not counted (unsupported): {}\n", fmt::join(cost.unsupported, ", "));
  }
  fmt::print(
      "normalized cost {:.6f} = 0.5 * {} / {} (bit ops of the published 8-bit VGG10) + 0.5 * {} / "
      "{} "
      "(its memory bits)\n",
      cost.normalized(), cost.bit_ops(), kBaselineBitOps, cost.bit_mem(), kBaselineBitMem);
}

void run(const CostOptions& options) {
  const onnx::Graph graph = onnx::load(options.model, onnx::Reading::kShapes);
  const NetworkCost cost = inference_cost(graph, options.reading);
  if (options.json == "-") {  // and nothing else, so that it can be parsed
    return write_file_atomically(options.json, to_finn_json(cost).dump(2) + "\n");
  }
  print(cost);
  if (options.reading == onnx::QuantizerReading::kAsFinnBase &&
      onnx::has_brevitas_quantizers(graph)) {
    fmt::print(
        "note: finn-base does not know the quantizers of the domain onnx.brevitas, so they count "
        "as "
        "float here; with --brevitas-domain quantized the normalized cost is {:.6f}\n",
        inference_cost(graph, onnx::QuantizerReading::kAll).normalized());
  }
  if (!options.json.empty()) {
    write_file_atomically(options.json, to_finn_json(cost).dump(2) + "\n");
  }
}

}  // namespace
}  // namespace fmp

int main(int argc, char** argv) {
  return fmp::run_main([&] {
    if (const auto options = fmp::parse(argc, argv)) fmp::run(*options);
    return fmp::kExitSuccess;
  });
}
