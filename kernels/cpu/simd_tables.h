// SPDX-License-Identifier: MIT
#pragma once

namespace fmp::cpu {

struct Simd;

// Each file of vector code fills its part of the table for the best target of this machine.
void fill_activation_table(Simd& table);
void fill_code_sums_table(Simd& table);
void fill_conv1d_table(Simd& table);
void fill_elementwise_table(Simd& table);
void fill_integer_table(Simd& table);
void fill_join_table(Simd& table);
void fill_sparse_sums_table(Simd& table);
void fill_winograd_table(Simd& table);

}  // namespace fmp::cpu
