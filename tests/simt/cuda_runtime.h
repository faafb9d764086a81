// SPDX-License-Identifier: MIT
// Stands in for CUDA's header of the same name where kernels run on the host (see simt.h): exactly
// the part of CUDA that this project uses, with its documented meaning, and strict about it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tests/simt/simt.h"

// CUDA's names. NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses)

// --- The language ------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// Thread-local variables have addresses apart from all others, so that the runtime knows them.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Code of this header that must not be taken for an access of the kernel.
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

namespace simt {
// A member of threadIdx and its like: asks the runtime where it is read.
template <Index3 (*kOf)(), unsigned Index3::*kAxis>
struct Coordinate {
  operator unsigned() const { return kOf().*kAxis; }
};
template <Index3 (*kOf)()>
struct Coordinates {
  Coordinate<kOf, &Index3::x> x;
  Coordinate<kOf, &Index3::y> y;
  Coordinate<kOf, &Index3::z> z;
};
}  // namespace simt
inline constexpr simt::Coordinates<simt::thread_index> threadIdx{};
inline constexpr simt::Coordinates<simt::block_index> blockIdx{};
inline constexpr simt::Coordinates<simt::block_size> blockDim{};
inline constexpr simt::Coordinates<simt::grid_size> gridDim{};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads(const simt::Site site = simt::Site::current()) { simt::barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffU, const simt::Site site = simt::Site::current()) {
  simt::sync_warp(mask, site);
}

namespace simt {
// Values of up to 8 bytes travel as bits.
template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace simt

// width 32 only: a smaller one is refused by the compiler, as there is no such parameter.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, const simt::Site site = simt::Site::current()) {
  return simt::from_bits<T>(
      simt::shuffle(mask, simt::to_bits(value), static_cast<unsigned>(source) & 31, site));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes,
                  const simt::Site site = simt::Site::current()) {
  return simt::from_bits<T>(
      simt::shuffle(mask, simt::to_bits(value),
                    (simt::thread_index().x ^ static_cast<unsigned>(lanes)) & 31, site));
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const simt::Site site = simt::Site::current()) {
  return simt::ballot(mask, predicate != 0, site);
}

namespace simt {
template <typename T, typename Update>
SIMT_UNCHECKED T atomic(T* address, const Update& update) {
  check_atomic(address, sizeof(T));
  const T before = *address;
  *address = update(before);
  return before;
}
}  // namespace simt
// Of integers only: the order of floating-point atomics is not determined.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return simt::atomic(address, [=](unsigned v) { return v + value; });
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return simt::atomic(address, [=](unsigned long long v) { return v + value; });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return simt::atomic(address, [=](unsigned v) { return v >= last ? 0U : v + 1; });
}
inline void __threadfence() { simt::fence(); }
inline unsigned atomicMax(unsigned* address, unsigned value) {
  return simt::atomic(address, [=](unsigned v) { return v > value ? v : value; });
}
inline unsigned atomicOr(unsigned* address, unsigned value) {
  return simt::atomic(address, [=](unsigned v) { return v | value; });
}

template <typename T>
T __ldg(const T* address) {
  simt::check_alignment(address, sizeof(T));
  return *address;
}
inline unsigned __float_as_uint(float value) {
  return simt::from_bits<unsigned>(simt::to_bits(value));
}
inline float __uint_as_float(unsigned bits) { return simt::from_bits<float>(simt::to_bits(bits)); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// Nothing is fused here: -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return __builtin_sqrtf(value); }
// Each digit of the selector picks a byte: of x from 0 on, of y from 4 on.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned picked = 0;
  for (int i = 0; i < 4; ++i) {
    picked |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return picked;
}
// The larger one of each pair of unsigned bytes.
inline unsigned __vmaxu4(unsigned x, unsigned y) {
  unsigned larger = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const unsigned a = x >> shift & 0xff, b = y >> shift & 0xff;
    larger |= (a > b ? a : b) << shift;
  }
  return larger;
}
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// --- The runtime library -----------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevicePointer = 17,
  cudaErrorInvalidMemcpyDirection = 21,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
};
inline constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0,
                          cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;

using cudaStream_t = struct SimtStream*;
using cudaEvent_t = struct SimtEvent*;
using cudaGraph_t = struct SimtGraph*;
using cudaGraphExec_t = struct SimtGraphExec*;
using cudaGraphNode_t = struct SimtGraphNode*;

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;  // NOLINT: CUDA's names
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

const char* cudaGetErrorName(cudaError_t error);
// Of cudaErrorLaunchFailure and of refused arguments: with the particulars.
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceReset();
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
struct cudaDeviceProp {
  char name[256];  // NOLINT: CUDA's
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
// Page-locked memory of the host.
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop);

// What a capturing stream is given is recorded, not run, and a launch of the graph runs it. While a
// stream captures, memory is neither allocated nor freed and nothing is waited for.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);

namespace simt {
// Runs `work` as the stream's next work: now, or in every launch of the graph that is captured.
// Stand-ins of libraries go through it, too.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work);
cudaError_t set_function_attribute(const void* function, cudaFuncAttribute attribute, int value);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, void (*body)(void*),
                   void* arguments, size_t argument_bytes);
}  // namespace simt

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return simt::set_function_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto body = [](void* opaque) {
    const Call* c = static_cast<const Call*>(opaque);
    std::apply(c->kernel, c->parameters);
  };
  return simt::enqueue(config->stream, [config = *config, call, body]() mutable {
    return simt::launch(config, reinterpret_cast<const void*>(call.kernel), body, &call,
                        sizeof(call));
  });
}
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
