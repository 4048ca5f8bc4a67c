// What the parts of the emulator share: scheduler.cpp runs blocks and barriers, warp_operations.cpp groups lanes,
// fiber.cpp switches stacks, memory.cpp keeps the guarded buffers, launch.cpp launches and turns faults into messages.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernel_language.h"

namespace emu {

// ---- fibers: a CUDA thread is a stack of its own, switched only where it waits for others ----
struct Fiber {
  void *stack_pointer = nullptr;  // x86-64: the rest of the registers are on the stack
  void *context = nullptr;        // elsewhere: a ucontext_t
  void *stack = nullptr;          // lowest usable address; an unmapped page lies below it
  void *asan = nullptr;           // ASan's fake stack
};
extern Fiber host;                // the stack that launched
extern bool on_fiber;
Fiber *take_fiber();
void give_fiber(Fiber *fiber);
void reclaim_fibers();            // after a fault: every fiber starts anew
void remember_host_stack();
void switch_to_fiber(Fiber *fiber, void *tsan);
void switch_to_host(Fiber *fiber);
void finish_first_switch();       // a new fiber tells ASan that it runs
bool is_stack_overflow(const char *address);
[[noreturn]] void fiber_main();   // in scheduler.cpp: what a fiber runs

// ---- threads of the block that runs ----
enum State : uint8_t { NEW, READY, IN_WARP_OPERATION, AT_BARRIER, DONE };
struct Thread {
  State state;
  uint3 index;
  Fiber *fiber;
  void *tsan;
  unsigned mask;
  int operation, line, source_lane;
  uint64_t value, result;
};
extern std::vector<Thread> threads;
extern unsigned current;                      // the thread that runs
extern unsigned waiting[32], alive[32];       // per warp: lanes in a warp operation, lanes that have not returned
extern char *barrier_object;                  // what TSan orders by: one per block, and one byte per warp
void wait_for_others();
void abandon_block();                         // after a fault
void complete_warp(unsigned first_thread);    // finish every group of lanes that has all arrived
void group_active_lanes(unsigned first_thread, bool *progress);
const char *operation_name(int operation);

enum Schedule { FORWARD, REVERSE, RANDOM };
extern int schedule;
extern std::mt19937 generator;

// ---- memory ----
struct Guarded {
  char *map = nullptr, *data = nullptr;
  size_t mapped = 0, bytes = 0;
  bool read_only = false;
  int argument = -1;                          // -1: shared memory, called `name`
  const char *name = nullptr;
};
char *argument_memory(int argument, const void *host, size_t bytes, size_t phase, bool writable);
void return_argument(size_t number, void *host);  // copies results back
void check_slack(char *message, size_t size); // bytes beside the buffers that a write out of bounds changed
void check_shared_slack(char *message, size_t size);
void free_arguments();
void reset_shared();                          // a block starts with fresh, garbage-filled shared memory
const Guarded *guarded_at(const char *address);
extern size_t dynamic_bytes, shared_limit;

// ---- faults ----
extern char error[2048];
extern bool in_scheduler;                     // no other thread may be blamed, and malloc may be held
extern sigjmp_buf after_fault;
struct InScheduler {
  InScheduler() { in_scheduler = true; }
  ~InScheduler() { in_scheduler = false; }
};

// ---- ThreadSanitizer: a CUDA thread is a TSan fiber, and only these calls order one before another ----
#ifdef EMU_TSAN
constexpr bool TSAN = true;
#else
constexpr bool TSAN = false;
#endif
extern void *host_tsan;
void *tsan_current();
void *tsan_create();
void tsan_destroy(void *fiber);
void tsan_switch(void *fiber);
void acquire(void *object);
void release(void *object);

}  // namespace emu
