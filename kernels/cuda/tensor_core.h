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
// Exact. A is signed, B as the name says.
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
#else  // the host runtime of the tests has them
using simt::mma_m16n8k16_bf16;
using simt::mma_m16n8k32_s8_s8;
using simt::mma_m16n8k32_s8_u8;
#endif

// The upper halves of two floats: two bf16, the first one in the lower bits.
__device__ __forceinline__ uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// A float has 24 significant bits and the exponents of bf16, which has 8 bits: it is the sum of
// three bf16, without any rounding (if it is at least 2^-109 or 0; what is lost of others is below
// 2^-133). Codes of up to 8 bits are bf16 as they are. So a product of
// gradients with codes comes to three exact products, and what rounds is their sum alone. (In TF32,
// with 11 bits, two parts would do to 22 bits, but at half the rate: two products take as long as
// four of bf16.)
inline constexpr int kFloatParts = 3;

// The parts of two neighbours in k, the largest first.
__device__ __forceinline__ void split(float first, float second, uint32_t (&parts)[kFloatParts]) {
  constexpr uint32_t kUpper = 0xffff0000U;
#pragma unroll
  for (int p = 0; p < kFloatParts; ++p) {
    parts[p] = upper_halves(first, second);
    first -= __uint_as_float(__float_as_uint(first) & kUpper);  // exact
    second -= __uint_as_float(__float_as_uint(second) & kUpper);
  }
}

}  // namespace fmp::cuda
