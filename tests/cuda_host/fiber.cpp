#include "fiber.h"

namespace cuda_host {

namespace {

constexpr int max_guarded = 4096;

}

Fiber::Fiber() {
  static int fibers = 0;
  void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  // A guard page below the stack: an overflow is a fault, and does not reach another fiber's stack. Each one is a
  // mapping of its own, of which a process can have 65,530: the many threads of a cooperative launch run the same code.
  if (fibers++ < max_guarded) mprotect(stack_, 4096, PROT_NONE);
}

Fiber::~Fiber() { munmap(stack_, stack_bytes); }

void Fiber::main() {
  run_();
  for (;;) pause();
}

#if defined(__x86_64__)

// cuda_host_switch(where to save this stack pointer, the stack pointer to resume): the callee-saved registers are kept
// on the stack.
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_host_switch
.hidden cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_host_switch, . - cuda_host_switch
)");

namespace {

Fiber* starting;
void begin() { starting->main(); }

}  // namespace

void Fiber::start(std::function<void()> run) {
  run_ = std::move(run);
  auto** top = reinterpret_cast<void**>(stack_ + stack_bytes);
  *--top = nullptr;  // the return address of `begin`, which never returns; it also aligns its frame
  *--top = reinterpret_cast<void*>(begin);
  for (int kept = 0; kept < 6; ++kept) *--top = nullptr;
  own_ = top;
}

void Fiber::resume() {
  starting = this;
  cuda_host_switch(&caller_, own_);
}

void Fiber::pause() { cuda_host_switch(&own_, caller_); }

#else

namespace {

Fiber* starting;
void begin() { starting->main(); }

}  // namespace

void Fiber::start(std::function<void()> run) {
  run_ = std::move(run);
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = stack_bytes;
  own_.uc_link = nullptr;
  makecontext(&own_, begin, 0);
}

void Fiber::resume() {
  starting = this;
  swapcontext(&caller_, &own_);
}

void Fiber::pause() { swapcontext(&own_, &caller_); }

#endif

}  // namespace cuda_host
