// SPDX-License-Identifier: MIT
// What the tests of the host runtime and of its libraries have in common.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tests/simt/cuda_runtime.h"

// Starts from a fresh device and leaves one.
class RuntimeTest : public testing::Test {
 protected:
  RuntimeTest() { cudaDeviceReset(); }
  ~RuntimeTest() override { cudaDeviceReset(); }

  template <typename T>
  static T* uninitialised(size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(T)), cudaSuccess);
    return static_cast<T*>(memory);
  }
  template <typename T>
  static T* upload(const std::vector<T>& values) {
    T* memory = uninitialised<T>(values.size());
    EXPECT_EQ(cudaMemcpyAsync(memory, values.data(), values.size() * sizeof(T),
                              cudaMemcpyHostToDevice, nullptr),
              cudaSuccess);
    return memory;
  }
  template <typename T>
  static std::vector<T> download(const T* memory, size_t count) {
    std::vector<T> values(count);
    EXPECT_EQ(
        cudaMemcpyAsync(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost, nullptr),
        cudaSuccess);
    return values;
  }
};
