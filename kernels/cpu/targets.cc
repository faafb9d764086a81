// SPDX-License-Identifier: MIT
// Which of the compiled instruction sets runs.
#include <stdexcept>

#include "hwy/highway.h"
#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/gradient_tiles.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tables.h"

namespace fmp::cpu {
namespace {

Simd table_of_chosen_target() {
  Simd table{};
  fill_activation_table(table);
  fill_code_sums_table(table);
  fill_conv1d_table(table);
  fill_elementwise_table(table);
  fill_integer_table(table);
  fill_join_table(table);
  fill_sparse_sums_table(table);
  fill_winograd_table(table);
  table.has_tiles = table.integer.has_vnni && tiles_available();
  table.has_gradient_tiles = table.has_tiles && gradient_tiles::available();
  return table;
}

Simd& table_in_use() {
  static Simd table = table_of_chosen_target();
  return table;
}

}  // namespace

const Simd& simd() { return table_in_use(); }

std::string target_name() { return simd().target; }

std::vector<std::string> target_names() {
  std::vector<std::string> names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

void use_target(const std::string& name) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (name != hwy::TargetName(target)) continue;
    hwy::GetChosenTarget().Update(target);
    table_in_use() = table_of_chosen_target();
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return;
  }
  throw std::invalid_argument("no instruction set named " + name + " on this machine");
}

}  // namespace fmp::cpu
