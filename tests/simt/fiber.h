// SPDX-License-Identifier: MIT
// A stack of its own and a switch to it.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#define SIMT_USE_UCONTEXT 1
#endif

namespace simt {

class Fiber {
 public:
  // entry(this) must not return.
  explicit Fiber(void (*entry)(Fiber*));
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From the host's stack to the fiber, until it calls leave().
  void enter();
  // From the fiber back to whoever entered it.
  void leave();
  // Forgets what was on the stack: entry starts anew at the next enter().
  void restart();

  const std::byte* stack_low() const { return stack_; }
  const std::byte* stack_high() const { return stack_ + kStackBytes; }

 private:
  static constexpr size_t kStackBytes = 128 * 1024, kGuardBytes = 4096;
  static void start();

  void (*entry_)(Fiber*);
  std::byte* stack_;
#ifdef SIMT_USE_UCONTEXT
  ucontext_t own_{}, host_{};
#else
  void* own_ = nullptr;
  void* host_ = nullptr;
#endif
  // For AddressSanitizer.
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
  void* host_fake_stack_ = nullptr;
  void* own_fake_stack_ = nullptr;
};

}  // namespace simt
