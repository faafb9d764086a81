// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <new>

namespace fmp {

// There is not so much memory.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) : bytes_(bytes) {}
  const char* what() const noexcept override { return "out of memory"; }
  size_t bytes() const { return bytes_; }  // that were asked for

 private:
  size_t bytes_;
};

}  // namespace fmp
