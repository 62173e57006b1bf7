// A stack of its own that can be left and entered again. ucontext, of which each switch makes two system calls, is a
// hundred times slower than the few instructions used on x86-64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__)
// Saves the registers that a call preserves and the stack pointer, and takes up another's.
extern "C" void fastlrp_switch(void** save, void* load);
#endif

class Fiber {
 public:
  static constexpr size_t kStack = 128 * 1024;

  Fiber() : stack_(static_cast<char*>(std::aligned_alloc(64, kStack))) {
    if (stack_ == nullptr) {
      throw std::bad_alloc();
    }
  }
  ~Fiber() { std::free(stack_); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next enter() calls body(argument), which must leave() and not return.
  void prepare(void (*body)(void*), void* argument) {
    body_ = body;
    argument_ = argument;
#if defined(__x86_64__)
    auto* top = reinterpret_cast<void**>(stack_ + kStack);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&Fiber::start);
    for (int i = 0; i < 6; ++i) {
      *--top = nullptr;
    }
    inside_ = top;
    starting() = this;
#else
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_;
    inside_.uc_stack.ss_size = kStack;
    inside_.uc_link = nullptr;
    makecontext(&inside_, &Fiber::start, 0);
#endif
  }

  void enter() {
    starting() = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&outside_fake_, stack_, kStack);
#endif
#if defined(__x86_64__)
    fastlrp_switch(&outside_, inside_);
#else
    swapcontext(&outside_, &inside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(outside_fake_, nullptr, nullptr);
#endif
  }

  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&inside_fake_, bottom_, size_);
#endif
#if defined(__x86_64__)
    fastlrp_switch(&inside_, outside_);
#else
    swapcontext(&inside_, &outside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(inside_fake_, &bottom_, &size_);
#endif
  }

 private:
  static Fiber*& starting() {
    static Fiber* fiber = nullptr;
    return fiber;
  }

  static void start() {
    Fiber& fiber = *starting();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &fiber.bottom_, &fiber.size_);
#endif
    fiber.body_(fiber.argument_);
    std::abort();
  }

  char* stack_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
#if defined(__x86_64__)
  void *inside_ = nullptr, *outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void *inside_fake_ = nullptr, *outside_fake_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace emulator
