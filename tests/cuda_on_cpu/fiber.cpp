// Stacks and the switch between them, with what the sanitizers must be told.
#include "scheduler.h"

#include <pthread.h>
#include <sys/mman.h>
#include <cstdlib>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace emu {
namespace {
constexpr size_t PAGE = 4096;
constexpr size_t STACK = TSAN ? 32 << 10 : 256 << 10;  // under TSan mapped and unmapped for every CUDA thread
std::vector<Fiber *> every, idle;
void *host_stack;
size_t host_stack_bytes;

#if defined(__x86_64__)
extern "C" void emu_switch_stack(void **save, void *to);
asm(R"(.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack,@function
emu_switch_stack:
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
.size emu_switch_stack,.-emu_switch_stack
)");
void prepare(Fiber *fiber) {  // as if it had been switched away from at the start of fiber_main
  void **top = (void **)((char *)fiber->stack + STACK);
  *--top = nullptr;
  *--top = (void *)fiber_main;
  top -= 6;
  memset(top, 0, 6 * sizeof *top);
  fiber->stack_pointer = top;
}
void change(Fiber *from, Fiber *to) { emu_switch_stack(&from->stack_pointer, to->stack_pointer); }
#else
ucontext_t *context(Fiber *fiber) {
  if (!fiber->context) fiber->context = new ucontext_t;
  return (ucontext_t *)fiber->context;
}
void prepare(Fiber *fiber) {
  ucontext_t *c = context(fiber);
  getcontext(c);
  c->uc_stack.ss_sp = fiber->stack;
  c->uc_stack.ss_size = STACK;
  c->uc_link = nullptr;
  makecontext(c, (void (*)())fiber_main, 0);
}
void change(Fiber *from, Fiber *to) { swapcontext(context(from), context(to)); }
#endif

void announce(Fiber *from, const void *stack, size_t bytes) {
  (void)from, (void)stack, (void)bytes;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&from->asan, stack, bytes);
#endif
}
Fiber newcomer;  // never switched away from, so without a fake stack
void arrived(Fiber *at) {
  (void)at;
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(at->asan, nullptr, nullptr);
#endif
}
}  // namespace

void finish_first_switch() { arrived(&newcomer); }

Fiber host;
bool on_fiber;

Fiber *take_fiber() {
  if (idle.empty()) {
    Fiber *fiber = new Fiber;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *map = (char *)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED) emu_fail("no memory for the stack of another thread");
    mprotect(map, PAGE, PROT_NONE);
    fiber->stack = map + PAGE;
    prepare(fiber);
    every.push_back(fiber);
    return fiber;
  }
  Fiber *fiber = idle.back();
  idle.pop_back();
  return fiber;
}
void give_fiber(Fiber *fiber) {
  if (!TSAN) {
    idle.push_back(fiber);
    return;
  }
  munmap((char *)fiber->stack - PAGE, STACK + PAGE);  // a reused stack would look like a race
  for (Fiber *&other : every) {
    if (other != fiber) continue;
    other = every.back();
    every.pop_back();
    break;
  }
  delete fiber;
}
void reclaim_fibers() {
  idle = every;
  for (Fiber *fiber : every) {
    fiber->asan = nullptr;
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(fiber->stack, STACK);  // of the frames that were abandoned
#endif
    prepare(fiber);
  }
}
void remember_host_stack() {
#ifdef EMU_ASAN
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &host_stack, &host_stack_bytes);
  pthread_attr_destroy(&attributes);
#endif
}
void switch_to_fiber(Fiber *fiber, void *tsan) {
  announce(&host, fiber->stack, STACK);
  tsan_switch(tsan);
  on_fiber = true;
  change(&host, fiber);
  on_fiber = false;
  arrived(&host);
}
void switch_to_host(Fiber *fiber) {
  announce(fiber, host_stack, host_stack_bytes);
  tsan_switch(host_tsan);
  change(fiber, &host);
  arrived(fiber);
}
bool is_stack_overflow(const char *address) {
  for (const Fiber *fiber : every) {
    const char *bottom = (const char *)fiber->stack;
    if (address >= bottom - PAGE && address < bottom) return true;
  }
  return false;
}

void *host_tsan;
#ifdef EMU_TSAN
void *tsan_current() { return __tsan_get_current_fiber(); }
void *tsan_create() { return __tsan_create_fiber(0); }
void tsan_destroy(void *fiber) { __tsan_destroy_fiber(fiber); }
void tsan_switch(void *fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
void acquire(void *object) { __tsan_acquire(object); }
void release(void *object) { __tsan_release(object); }
#else
void *tsan_current() { return nullptr; }
void *tsan_create() { return nullptr; }
void tsan_destroy(void *) {}
void tsan_switch(void *) {}
void acquire(void *) {}
void release(void *) {}
#endif

}  // namespace emu
