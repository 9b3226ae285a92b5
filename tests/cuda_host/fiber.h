// A fiber: a stack of its own, scheduled cooperatively: it runs until it calls pause().
//
// The switch is 15 instructions on x86-64, where swapcontext would make a system call for the signal mask each time
// (a block of 256 threads switches some million times in one test). Other processors use swapcontext.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets what the next resume begins to run; what ran before is abandoned.
  void start(std::function<void()> run);
  // Runs until the fiber pauses or its function returns.
  void resume();
  // Called on the fiber: returns to the caller of resume.
  void pause();

  void main();  // the entry point of a fresh stack

 private:
  static constexpr std::size_t stack_bytes = 128 * 1024;

  char* stack_;
  std::function<void()> run_;
#if defined(__x86_64__)
  void *own_ = nullptr, *caller_ = nullptr;
#else
  ucontext_t own_, caller_;
#endif
};

}  // namespace cuda_host
