// SPDX-License-Identifier: MIT
// A machine without a GPU that runs CUDA kernels: what the stand-in cuda_runtime.h is made of, and
// what tests ask it.
//
// The .cu files are compiled unmodified by the host compiler with this directory first on the
// include path and -fsanitize=thread, but without that sanitizer's library: the calls it puts
// before every load and store end here (access.cc), so that each access of a kernel is checked to
// be inside an allocation, initialised, and ordered with the accesses of other threads. Blocks run
// one after the other, the threads of a block as fibers that switch at barriers and warp primitives
// only. One host thread at a time may use it.
//
// A fault ends the kernel: the launch and every later call return cudaErrorLaunchFailure, as on a
// device, and cudaGetErrorString says what went wrong where; cudaDeviceReset() starts afresh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

// The line of a barrier or warp primitive.
struct Site {
  int line = 0;
  static constexpr Site current(int line = __builtin_LINE()) { return {line}; }
  bool operator==(const Site&) const = default;
};

struct Index3 {
  unsigned x, y, z;
};

// Of the thread that runs; faults outside a kernel are programming errors and abort.
Index3 thread_index();
Index3 block_index();
Index3 block_size();
Index3 grid_size();

void barrier(const Site& site);

// Meeting point of the lanes of `mask`; every lane must come with the same mask and site.
void sync_warp(unsigned mask, const Site& site);
// `value` of lane `source`, which must take part.
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, const Site& site);
// Bit i: lane i takes part and its predicate holds.
unsigned ballot(unsigned mask, bool predicate, const Site& site);

// The matrix products of the PTX ISA with these names, D += A * B, in its layouts of fragments; all
// 32 lanes of the warp must come. Sums of floats are rounded as devices do it (Fasi et al.,
// "Numerical behavior of NVIDIA tensor cores", 2021): products are exact; each eight of them and
// what was there before are aligned to the largest exponent among them and cut off 23 bits below
// its first one; the sum is rounded towards zero. Newer devices take sixteen at once and keep two
// or three bits more, so that this one is the least exact of them. A sum that does not fit into 32
// bits is a fault: the device would wrap.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const Site& site = Site::current());
void mma_m16n8k32_s8_u8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site = Site::current());
void mma_m16n8k32_u8_u8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site = Site::current());
void mma_m16n8k32_s8_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Site& site = Site::current());

// cvt.rn.bf16x2.f32: two bf16, rounded to the nearest, halves to even, the first in the lower bits.
uint32_t rounded_pair(float first, float second);

// A load of `bytes` bytes at once must have an address that is a multiple of them. (The compiler's
// calls before other accesses do not tell: it merges some. -fsanitize=alignment sees those.)
void check_alignment(const void* address, size_t bytes);
// Before an atomic access to `bytes` bytes.
void check_atomic(const void* address, size_t bytes);
// __threadfence(): what the block has written before it, and before an atomic access that follows,
// is seen by blocks that have a fence behind an atomic access of their own.
void fence();

// Runs body(arguments) for every thread; returns whether all went well. `arguments` of
// `argument_bytes` bytes is memory that every thread may read: the kernel's parameters.
struct Launch {
  Index3 grid, block;
  size_t shared_bytes;
};
bool run(const Launch& launch, void (*body)(void* arguments), void* arguments,
         size_t argument_bytes);

// Text of the fault that stopped the last kernel, empty if none did.
const std::string& fault_text();

// Totals since the program started, for tests and figures.
struct Counters {
  uint64_t launches = 0, blocks = 0, threads = 0, accesses = 0, switches = 0;
};
const Counters& counters();

// Largest dynamic shared memory of a block, as on sm_90, and without asking for more.
inline constexpr size_t kMaxSharedBytes = 227 * 1024, kDefaultSharedBytes = 48 * 1024;

}  // namespace simt
