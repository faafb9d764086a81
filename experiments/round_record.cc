// SPDX-License-Identifier: MIT
#include "experiments/round_record.h"

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <utility>

#include "experiments/json_optional.h"
#include "framework/error.h"

namespace fmp {
namespace {

using nlohmann::json;

template <typename Value>
std::optional<double> median(const std::vector<EpochRecord>& history, Value value) {
  if (history.empty()) return std::nullopt;
  std::vector<double> values;
  for (const EpochRecord& epoch : history) values.push_back(value(epoch));
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double ratio(int64_t a, int64_t b) {
  return b > 0 ? static_cast<double>(a) / static_cast<double>(b) : 0.0;
}

// The value of an enum that has this name.
template <typename Enum>
Enum named(const json& name, std::initializer_list<Enum> values, const char* (*name_of)(Enum)) {
  for (const Enum value : values)
    if (name == name_of(value)) return value;
  fail("the checkpoint has an unknown name: {}", name.dump());
}

Kernel kernel_of(const json& name) {
  return named<Kernel>(name, {Kernel::kDense, Kernel::kSparse, Kernel::kCublas, Kernel::kCusparse},
                       kernel_name);
}

json to_json(const EvaluationRecord& e) {
  return {{"validation_loss", json_or_null(e.validation_loss)},
          {"validation_accuracy", json_or_null(e.validation_accuracy)},
          {"test_accuracy", json_or_null(e.test_accuracy)},
          {"criterion_accuracy", e.criterion_accuracy},
          {"timing",
           {{"evaluation_seconds", e.evaluation_seconds},
            {"evaluation_frames_per_second", e.evaluation_frames_per_second}}}};
}

json to_json(const EpochRecord& e) {
  json result = to_json(static_cast<const EvaluationRecord&>(e));
  result["epoch"] = e.epoch;
  result["learning_rate"] = e.learning_rate;
  result["train_loss"] = e.train_loss;
  result["train_accuracy"] = e.train_accuracy;
  result["timing"]["train_seconds"] = e.train_seconds;
  result["timing"]["frames_per_second"] = e.frames_per_second;
  return result;
}

EvaluationRecord evaluation_from_json(const json& from) {
  EvaluationRecord e;
  e.validation_loss = optional_from<double>(from.at("validation_loss"));
  e.validation_accuracy = optional_from<double>(from.at("validation_accuracy"));
  e.test_accuracy = optional_from<double>(from.at("test_accuracy"));
  e.criterion_accuracy = from.at("criterion_accuracy");
  const json& timing = from.at("timing");
  e.evaluation_seconds = timing.at("evaluation_seconds");
  e.evaluation_frames_per_second = timing.at("evaluation_frames_per_second");
  return e;
}

EpochRecord epoch_from_json(const json& from) {
  EpochRecord e{evaluation_from_json(from)};
  e.epoch = from.at("epoch");
  e.learning_rate = from.at("learning_rate");
  e.train_loss = from.at("train_loss");
  e.train_accuracy = from.at("train_accuracy");
  const json& timing = from.at("timing");
  e.train_seconds = timing.at("train_seconds");
  e.frames_per_second = timing.at("frames_per_second");
  return e;
}

json to_json(const LayerDescription& l) {
  return {{"name", l.name},
          {"kind", l.kind},
          {"in_channels", l.in_channels},
          {"out_channels", l.out_channels},
          {"kernel", l.kernel},
          {"stride", l.stride},
          {"groups", l.groups},
          {"positions", l.positions},
          {"weight_bits", l.weight_bits},
          {"input_bits", l.input_bits},
          {"signed_inputs", l.signed_inputs},
          {"weights", l.weights},
          {"weights_original", l.weights_original},
          {"weights_alive", l.weights_alive},
          {"nonzeros", l.nonzeros},
          {"density", ratio(l.nonzeros, l.weights)},
          {"macs", l.macs},
          {"bit_ops", l.bit_ops},
          {"bit_mem", l.bit_mem}};
}

LayerDescription layer_from_json(const json& from) {
  LayerDescription l;
  l.name = from.at("name");
  l.kind = from.at("kind");
  l.in_channels = from.at("in_channels");
  l.out_channels = from.at("out_channels");
  l.kernel = from.at("kernel");
  l.stride = from.value("stride", 1);  // older records have none
  l.groups = from.value("groups", 1);
  l.positions = from.at("positions");
  l.weight_bits = from.at("weight_bits");
  l.input_bits = from.at("input_bits");
  l.signed_inputs = from.value("signed_inputs", false);  // runs of earlier versions have none
  l.weights = from.at("weights");
  l.weights_original = from.at("weights_original");
  l.weights_alive = from.at("weights_alive");
  l.nonzeros = from.at("nonzeros");
  l.macs = from.at("macs");
  l.bit_ops = from.at("bit_ops");
  l.bit_mem = from.at("bit_mem");
  return l;
}

NetworkDescription network_from_json(const json& from) {
  NetworkDescription n;
  n.weights = from.at("weights");
  n.weights_original = from.at("weights_original");
  n.weights_alive = from.at("weights_alive");
  n.input_scale = from.value("input_scale", 0.0);
  n.nonzeros = from.at("nonzeros");
  n.macs = from.at("macs");
  n.bit_ops = from.at("bit_ops");
  n.bit_mem = from.at("bit_mem");
  n.cost = from.at("cost");
  for (const json& layer : from.at("layers")) n.layers.push_back(layer_from_json(layer));
  return n;
}

json to_json(const LayerPlan& plan) {
  json result = {{"layer", plan.layer},
                 {"density", plan.density},
                 {"forward", kernel_name(plan.forward)},
                 {"backward_data", kernel_name(plan.backward_data)},
                 {"backward_weight", kernel_name(plan.backward_weight)}};
  if (!plan.refused.empty()) result["refused"] = plan.refused;
  return result;
}

LayerPlan plan_from_json(const json& from) {
  LayerPlan plan;
  plan.layer = from.at("layer");
  plan.density = from.at("density");
  plan.forward = kernel_of(from.at("forward"));
  plan.backward_data = kernel_of(from.at("backward_data"));
  plan.backward_weight = kernel_of(from.at("backward_weight"));
  if (from.contains("refused")) plan.refused = from.at("refused");
  return plan;
}

template <typename Record>
json list_of(const std::vector<Record>& records) {
  json list = json::array();
  for (const Record& record : records) list.push_back(to_json(record));
  return list;
}

std::string csv_field(const json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

}  // namespace

double NetworkDescription::true_compression() const { return ratio(weights_original, nonzeros); }

const char* to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::kAccepted:
      return "accepted";
    case Outcome::kDiverged:
      return "diverged";
    default:
      return "rejected";
  }
}

const EpochRecord* RoundRecord::best_trained() const {
  return best_epoch > 0 ? &history.at(static_cast<size_t>(best_epoch - 1)) : nullptr;
}

const EvaluationRecord* RoundRecord::best() const { return as_given ? &*as_given : best_trained(); }

double RoundRecord::seconds() const {
  double sum = as_given ? as_given->evaluation_seconds : 0;
  for (const EpochRecord& epoch : history) sum += epoch.train_seconds + epoch.evaluation_seconds;
  return sum;
}

std::optional<double> RoundRecord::seconds_per_epoch() const {
  return median(history, [](const EpochRecord& e) { return e.train_seconds; });
}

std::optional<double> RoundRecord::frames_per_second() const {
  return median(history, [](const EpochRecord& e) { return e.frames_per_second; });
}

std::optional<double> RoundRecord::evaluation_frames_per_second() const {
  return median(history, [](const EpochRecord& e) { return e.evaluation_frames_per_second; });
}

json network_to_json(const RoundRecord& round) {
  const NetworkDescription& n = round.network;
  return {{"weights_original", n.weights_original},
          {"weights", n.weights},
          {"weights_alive", n.weights_alive},
          {"input_scale", n.input_scale},
          {"nonzeros", n.nonzeros},
          {"true_compression", n.true_compression()},
          {"eq5_compression", round.eq5_compression},
          {"macs", n.macs},
          {"bit_ops", n.bit_ops},
          {"bit_mem", n.bit_mem},
          {"cost", n.cost},
          {"layers", list_of(n.layers)}};
}

json to_json(const RoundRecord& r) {
  const EvaluationRecord* best = r.best();
  const auto of_best = [&](auto value) {
    return best != nullptr ? json(value(*best)) : json(nullptr);
  };
  return {
      {"round", r.round},
      {"kind", r.is_baseline() ? "baseline" : "prune"},
      {"method", r.is_baseline() ? json(nullptr) : json(r.method)},
      {"p", r.is_baseline() ? json(nullptr) : json(r.p)},
      {"outcome", to_string(r.outcome)},
      {"accepted", r.accepted()},
      {"message", r.message},
      {"criterion", json_or_null(r.criterion)},
      {"criterion_split", to_string(r.criterion_split)},
      {"criterion_accuracy",
       of_best([](const EvaluationRecord& e) { return e.criterion_accuracy; })},
      {"validation_accuracy",
       of_best([](const EvaluationRecord& e) { return json_or_null(e.validation_accuracy); })},
      {"test_accuracy",
       of_best([](const EvaluationRecord& e) { return json_or_null(e.test_accuracy); })},
      {"best_epoch", r.best_epoch},
      {"epochs", r.history.size()},
      {"learning_rate", r.history.empty() ? json(nullptr) : json(r.history.back().learning_rate)},
      {"weights_removed", r.weights_removed},
      {"weights_compacted", r.weights_compacted},
      {"bits_removed", r.bits_removed},
      {"channels", r.channels},
      {"network", network_to_json(r)},
      {"as_given", r.as_given ? to_json(*r.as_given) : json(nullptr)},
      {"history", list_of(r.history)},
      {"timing",
       {{"seconds", r.seconds()},
        {"seconds_per_epoch", json_or_null(r.seconds_per_epoch())},
        {"frames_per_second", json_or_null(r.frames_per_second())},
        {"evaluation_frames_per_second", json_or_null(r.evaluation_frames_per_second())},
        {"plan", list_of(r.plan)}}}};
}

RoundRecord round_from_json(const json& from) {
  RoundRecord r;
  r.round = from.at("round");
  if (!r.is_baseline()) {
    r.method = from.at("method");
    r.p = from.at("p");
  }
  r.outcome = named<Outcome>(
      from.at("outcome"), {Outcome::kAccepted, Outcome::kRejected, Outcome::kDiverged}, to_string);
  r.message = from.at("message");
  r.criterion = optional_from<double>(from.at("criterion"));
  r.criterion_split = named<CriterionSplit>(
      from.at("criterion_split"), {CriterionSplit::kValidation, CriterionSplit::kTest}, to_string);
  r.best_epoch = from.at("best_epoch");
  r.weights_removed = from.at("weights_removed");
  r.weights_compacted = from.at("weights_compacted");
  r.bits_removed = from.at("bits_removed");
  r.channels = from.at("channels").get<std::vector<int>>();
  r.network = network_from_json(from.at("network"));
  r.eq5_compression = from.at("network").at("eq5_compression");
  // Runs of earlier versions have none.
  if (const auto given = from.find("as_given"); given != from.end() && !given->is_null())
    r.as_given = evaluation_from_json(*given);
  for (const json& epoch : from.at("history")) r.history.push_back(epoch_from_json(epoch));
  for (const json& layer : from.at("timing").at("plan")) r.plan.push_back(plan_from_json(layer));
  return r;
}

std::string plan_to_text(const std::vector<LayerPlan>& plan) {
  const auto letter = [](Kernel kernel) {
    switch (kernel) {
      case Kernel::kSparse:
        return 's';
      case Kernel::kCublas:
        return 'D';
      case Kernel::kCusparse:
        return 'S';
      default:
        return 'd';
    }
  };
  std::string text;
  for (const LayerPlan& layer : plan) {
    if (!text.empty()) text += ' ';
    text += layer.layer + '=';
    for (const Kernel kernel : {layer.forward, layer.backward_data, layer.backward_weight})
      text += letter(kernel);
  }
  return text;
}

std::string rounds_to_csv(const std::vector<RoundRecord>& rounds) {
  std::string csv =
      "round,method,p,outcome,accepted,criterion,criterion_accuracy,validation_accuracy,"
      "test_accuracy,epochs,weights_alive,nonzeros,density,true_compression,eq5_compression,macs,"
      "bit_ops,bit_mem,cost,seconds,seconds_per_epoch,frames_per_second,"
      "evaluation_frames_per_second,plan\n";
  for (const RoundRecord& record : rounds) {
    const NetworkDescription& n = record.network;
    const json r = to_json(record);
    std::vector<json> fields = {r.at("round"),
                                record.is_baseline() ? json("baseline") : json(record.method)};
    for (const char* key : {"p", "outcome", "accepted", "criterion", "criterion_accuracy",
                            "validation_accuracy", "test_accuracy", "epochs"})
      fields.push_back(r.at(key));
    const double density =
        static_cast<double>(n.nonzeros) / static_cast<double>(n.weights_original);
    for (const json& of_network : {json(n.weights_alive), json(n.nonzeros), json(density),
                                   json(n.true_compression()), json(record.eq5_compression),
                                   json(n.macs), json(n.bit_ops), json(n.bit_mem), json(n.cost)})
      fields.push_back(of_network);
    for (const char* key :
         {"seconds", "seconds_per_epoch", "frames_per_second", "evaluation_frames_per_second"})
      fields.push_back(r.at("timing").at(key));
    fields.push_back(plan_to_text(record.plan));
    for (const json& field : fields) csv += csv_field(field) + ',';
    csv.back() = '\n';
  }
  return csv;
}

}  // namespace fmp
