// SPDX-License-Identifier: MIT
// Launches the kernels of simt_kernels.cu; all pointers are the device's.
#pragma once

#include <cuda_runtime.h>

namespace simt_test {

void run_scale_add(const float* a, float* b, int n, cudaStream_t stream = nullptr);
void run_block_sums(const int* values, int* sums, int n, unsigned blocks, unsigned threads);
void run_reverse(int* values, unsigned n);
void run_vote(const int* values, unsigned* ballots, unsigned* count, unsigned* permuted);
void run_write_at(int* values, int index);
void run_load_vector(const float* values, float* out);  // 4 of each
void run_read_at(const int* values, int index, int* out);
void run_race_in_shared(int* out);
void run_ordered_in_warp(int* out);
void run_race_between_blocks(int* out);
// parts[block] = block + 1, and the last block's sum of them; arrived: 0.
enum class Fence { kNone, kOfWriters, kBoth };
void run_last_block(Fence fence, int* parts, unsigned* arrived, int* sum);
void run_divergent_barrier(int* out);
void run_left_before_barrier(int* out);
void run_divergent_shuffle(int* out);
void run_read_unwritten_shared(int* out);
void run_write_past_shared();
void run_read_foreign_stack(int* out);
// [lane][register] of one warp; the first `lanes` lanes come.
void run_multiply_bf16(const uint32_t* a, const uint32_t* b, float* d, unsigned lanes = 32);
enum class Signs { kNone, kOfA, kBoth };
void run_multiply_bytes(Signs signs, const uint32_t* a, const uint32_t* b, int* d);
void run_mma_after_exit(int* out);
// parts: [pair][3]
void run_split_floats(const float* values, uint32_t* parts, unsigned pairs);
void run_too_much_shared(int* values);
void run_too_many_threads(int* values);

}  // namespace simt_test
