// SPDX-License-Identifier: MIT
// On x86-64 a switch saves the six registers that a function must preserve; elsewhere ucontext does
// it, with two system calls. AddressSanitizer is told of every switch.
#include "tests/simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SIMT_USE_UCONTEXT
// void simt_switch(void** save, void* to): pushes the callee-saved registers, changes the stack.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

namespace simt {
namespace {

thread_local Fiber* entering = nullptr;  // tells start() whose stack it is on

// Each side of a switch: before it, and after it on the other stack.
void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] size_t bytes) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}
void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from_stack,
                  [[maybe_unused]] size_t* from_bytes) {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, from_stack, from_bytes);
#endif
}

}  // namespace

Fiber::Fiber(void (*entry)(Fiber*)) : entry_(entry) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    std::perror("simt: cannot get a stack");
    std::abort();
  }
  stack_ = static_cast<std::byte*>(memory) + kGuardBytes;
  restart();
}

Fiber::~Fiber() { munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes); }

void Fiber::restart() {
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  own_fake_stack_ = nullptr;
#ifdef SIMT_USE_UCONTEXT
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStackBytes;
  own_.uc_link = nullptr;
  makecontext(&own_, &Fiber::start, 0);
#else
  // As if simt_switch had been called from the start of start(): six registers, a return address,
  // and the stack 8 bytes off a multiple of 16 as after a call.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&Fiber::start);
  own_ = top - 6;
#endif
}

void Fiber::start() {
  Fiber* self = entering;
  after_switch(nullptr, &self->host_stack_, &self->host_stack_bytes_);
  self->entry_(self);
  std::abort();
}

void Fiber::enter() {
  entering = this;
  before_switch(&host_fake_stack_, stack_, kStackBytes);
#ifdef SIMT_USE_UCONTEXT
  swapcontext(&host_, &own_);
#else
  simt_switch(&host_, own_);
#endif
  after_switch(host_fake_stack_, nullptr, nullptr);
}

void Fiber::leave() {
  before_switch(&own_fake_stack_, host_stack_, host_stack_bytes_);
#ifdef SIMT_USE_UCONTEXT
  swapcontext(&own_, &host_);
#else
  simt_switch(&own_, host_);
#endif
  after_switch(own_fake_stack_, &host_stack_, &host_stack_bytes_);
}

}  // namespace simt
