// SPDX-License-Identifier: MIT
// Tensor cores: D += A * B by all 32 lanes of a warp, and operands for them. For .cu files only.
//
// Each lane holds a fragment of every matrix, in the layouts of the PTX ISA ("Matrix Fragments for
// mma.m16n8k16", "... mma.m16n8k32"). With group = lane / 4 and member = lane % 4:
//
//   D: elements 0, 1 are row group, columns 2 member, + 1; elements 2, 3 the same of row group + 8
//   A: registers 0, 2 are row group, 1, 3 row group + 8;  B: registers 0, 1 are column group;
//      the first register of a row or column holds k from (k of a register) * member on, the
//      second the same in the upper half of k; the first k is in the lowest bits
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fmp::cuda {

inline constexpr int kFragmentRows = 16, kFragmentColumns = 8;  // of D
inline constexpr int kMembers = 4;                              // lanes of a group
inline constexpr int kBf16Depth = 16, kByteDepth = 32;          // k of one product

#ifdef __CUDACC__
// Products of bf16 are exact; their sums are floats, each rounded towards zero.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Exact. A and B are as the name says.
__device__ __forceinline__ void mma_m16n8k32_s8_u8(int (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k32_s8_s8(int (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k32_u8_u8(int (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two bf16, rounded to the nearest, the first one in the lower bits.
__device__ __forceinline__ uint32_t rounded_pair(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
#else  // the host runtime of the tests has them
using simt::mma_m16n8k16_bf16;
using simt::mma_m16n8k32_s8_s8;
using simt::mma_m16n8k32_s8_u8;
using simt::mma_m16n8k32_u8_u8;
using simt::rounded_pair;
#endif

// The upper halves of two floats: two bf16, the first one in the lower bits.
__device__ __forceinline__ uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// Gradients are multiplied as the sum of two bf16, each rounded to the nearest: 16 of a float's 24
// significant bits, an error of 2^-17 at most (TF32, which PyTorch's convolutions use on such
// devices, has 11 bits). Codes of up to 8 bits are bf16 as they are. So a product of gradients with
// codes comes to two exact products.
inline constexpr int kFloatParts = 2;

// The parts of two neighbours in k, the larger first.
__device__ __forceinline__ void split(float first, float second, uint32_t (&parts)[kFloatParts]) {
  constexpr uint32_t kUpper = 0xffff0000U;
  parts[0] = rounded_pair(first, second);
  first -= __uint_as_float(parts[0] << 16);  // exact
  second -= __uint_as_float(parts[0] & kUpper);
  parts[1] = rounded_pair(first, second);
}

}  // namespace fmp::cuda
