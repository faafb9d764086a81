// SPDX-License-Identifier: MIT
// Stands in for Thrust's CUDA backend where kernels run on the host: exactly the algorithms that
// this project calls, by Thrust's own host backend, behind the policy of the same name. Operands
// must be in device memory and, where they are read, initialised; otherwise a call throws
// thrust::system_error, as Thrust does when a kernel fails.
#pragma once

#include <thrust/copy.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/sort.h>
#include <thrust/system/cpp/execution_policy.h>
#include <thrust/system_error.h>

#include <string>
#include <type_traits>

#include "tests/simt/library.h"

namespace simt_thrust {

inline void require(bool holds, const std::string& why) {
  if (!holds) throw thrust::system_error(EFAULT, thrust::generic_category(), why);
}

template <typename T>
size_t bytes_of(const T* first, const T* last) {
  return static_cast<size_t>(last - first) * sizeof(T);
}
template <typename T>
void check_memory(const char* what, const T* data, size_t bytes, bool is_read) {
  if (bytes == 0) return;
  require(simt::is_device_address(data) && simt::in_one_allocation(data, bytes),
          std::string(what) + ": " + std::to_string(bytes) +
              " bytes that are not inside one allocation of device memory");
  require(!is_read || simt::is_initialised(data, bytes),
          std::string(what) + ": memory that was never written");
  const std::string race = simt::access_range(data, bytes, !is_read);
  require(race.empty(), std::string(what) + ": " + race);
}

struct Policy : thrust::cpp::execution_policy<Policy> {
  cudaStream_t stream = nullptr;
  void check() const {
    require(!simt::device_failed(), "a kernel failed before");
    require(simt::stream_exists(stream), "no such stream");
    require(!simt::stream_captures(stream), "a stream is captured into a graph");  // memory, waits
    simt::begin_operation(stream);
  }
};

// What thrust:: functions find for this policy. They are given it without const.
template <typename Key, typename Value>
void stable_sort_by_key(Policy& policy, Key* first, Key* last, Value* values) {
  static_assert(std::is_unsigned_v<Key>, "sorted by radix");
  policy.check();
  const size_t count = static_cast<size_t>(last - first);
  for (const bool is_read : {true, false}) {
    check_memory("keys", first, bytes_of(first, last), is_read);
    check_memory("values", values, count * sizeof(Value), is_read);
  }
  const simt::OpenDeviceMemory open;
  thrust::stable_sort_by_key(thrust::cpp::par, first, last, values);
}

// The results may take as much memory as the stencil asks for.
template <typename Integer, typename Mask, typename Predicate>
Integer* copy_if(Policy& policy, thrust::counting_iterator<Integer> first,
                 thrust::counting_iterator<Integer> last, Mask* stencil, Integer* result,
                 Predicate predicate) {
  policy.check();
  const size_t count = static_cast<size_t>(last - first);
  check_memory("stencil", stencil, count * sizeof(Mask), true);
  const simt::OpenDeviceMemory open;
  size_t chosen = 0;
  for (size_t i = 0; i < count; ++i) chosen += predicate(stencil[i]) ? 1 : 0;
  check_memory("result", result, chosen * sizeof(Integer), false);
  thrust::copy_if(thrust::cpp::par, first, last, stencil, result, predicate);
  if (chosen > 0) simt::mark_initialised(result, chosen * sizeof(Integer));
  return result + chosen;
}

struct Parallel {
  Policy on(cudaStream_t stream) const {
    Policy policy;
    policy.stream = stream;
    return policy;
  }
};

}  // namespace simt_thrust

namespace thrust::cuda {
inline constexpr simt_thrust::Parallel par{};
}  // namespace thrust::cuda
