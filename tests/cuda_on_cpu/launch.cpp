// One launch: guarded copies of the arguments, the kernel, its results; and faults turned into messages.
#include "scheduler.h"

#include <dlfcn.h>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

namespace emu {
char error[2048];
bool in_scheduler;
sigjmp_buf after_fault;

namespace {
#if defined(EMU_ASAN) || defined(EMU_TSAN)
constexpr bool CATCHES_SIGNALS = false;  // the sanitizer reports, and ends the process
#else
constexpr bool CATCHES_SIGNALS = true;
#endif
uintptr_t fault_offset;  // of the instruction that faulted, in the kernel's library
double most_seconds;

void write_error(const char *format, va_list values) {
  char text[1700];
  vsnprintf(text, sizeof text, format, values);
  snprintf(error, sizeof error, "%s; block (%u,%u,%u) thread (%u,%u,%u)", text, emu_block_index.x, emu_block_index.y,
           emu_block_index.z, emu_thread_index.x, emu_thread_index.y, emu_thread_index.z);
}
__attribute__((format(printf, 1, 2))) void write_error(const char *format, ...) {
  va_list values;
  va_start(values, format);
  write_error(format, values);
  va_end(values);
}

void on_fault(int, siginfo_t *info, void *context) {
  const char *address = (const char *)info->si_addr;
#if defined(__x86_64__)
  const uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
  const uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.pc;
#else
  const uintptr_t pc = 0;
  (void)context;
#endif
  Dl_info library;
  if (pc && dladdr((void *)pc, &library)) fault_offset = pc - (uintptr_t)library.dli_fbase;
  if (const Guarded *g = guarded_at(address)) {
    const long offset = (long)(address - g->data);
    const bool inside = offset >= 0 && (size_t)offset < g->bytes;
    char what[100];
    if (g->argument >= 0) snprintf(what, sizeof what, "argument %d", g->argument);
    else snprintf(what, sizeof what, "shared memory %s", g->name);
    if (inside) write_error("write to the const %s at byte %ld of %zu", what, offset, g->bytes);
    else write_error("access outside %s, at byte %ld of %zu", what, offset, g->bytes);
  } else if (is_stack_overflow(address)) {
    write_error("the stack of a thread is full: endless recursion, or local arrays of over 200 KiB");
  } else {
    write_error("access to %p, which is no argument and no shared memory", (const void *)address);
  }
  siglongjmp(after_fault, 1);
}
void on_time_limit(int) {
  if (in_scheduler) return;  // malloc may be held; the timer fires again
  write_error("still running after %.3g s of CPU time: waits in a loop for another thread?", most_seconds);
  siglongjmp(after_fault, 1);
}

// Handlers for one launch; what was there before (pytest's faulthandler) comes back after it.
struct Handlers {
  struct sigaction segv, bus, clock;
  stack_t stack;
  timer_t timer;

  explicit Handlers(double seconds) {
    static char alternate[64 << 10];
    stack_t mine{};
    mine.ss_sp = alternate;
    mine.ss_size = sizeof alternate;
    sigaltstack(&mine, &stack);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    action.sa_handler = on_time_limit;
    sigaction(SIGRTMIN + 3, &action, &clock);
    static timer_t one;
    static long owner;
    const long me = syscall(SYS_gettid);
    if (owner != me) {
      sigevent event{};
      event.sigev_notify = SIGEV_THREAD_ID;
      event.sigev_signo = SIGRTMIN + 3;
      event._sigev_un._tid = (pid_t)me;
      timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &one);
      owner = me;
    }
    timer = one;
    set(seconds);
  }
  void set(double seconds) {
    itimerspec when{};
    when.it_value.tv_sec = (time_t)seconds;
    when.it_value.tv_nsec = (long)((seconds - (double)when.it_value.tv_sec) * 1e9);
    when.it_interval.tv_nsec = seconds > 0 ? 50'000'000 : 0;
    timer_settime(timer, 0, &when, nullptr);
  }
  void restore() {
    set(0);
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaction(SIGRTMIN + 3, &clock, nullptr);
    sigaltstack(&stack, nullptr);
  }
};

void run_caught(void (*entry)(void **), void **arguments) {
  if (sigsetjmp(after_fault, 0) == 0) {
    entry(arguments);
  } else {
    on_fiber = false;
    in_scheduler = true;
    abandon_block();
  }
}
}  // namespace
}  // namespace emu

using namespace emu;

extern "C" {
void emu_fail(const char *format, ...) {
  in_scheduler = true;
  va_list values;
  va_start(values, format);
  write_error(format, values);
  va_end(values);
  if (on_fiber) switch_to_host(threads[current].fiber);  // which sees the error and never comes back
  siglongjmp(after_fault, 1);
}

struct EmuArgument {
  uint64_t is_pointer;  // 0: `value` is the argument's bytes
  uint64_t value;       // or the address of the real memory
  uint64_t bytes;
  uint64_t phase;       // of the address, modulo 16
  uint64_t writable;    // for any of the arguments that share this memory
  uint64_t same_as;     // the argument whose copy this one shares: itself, or an earlier one
};
struct EmuLaunch {
  uint32_t grid[3], block[3];
  uint64_t dynamic_bytes, shared_limit, count;
  uint32_t schedule, seed;
  double most_seconds;
  EmuArgument arguments[64];
};
static_assert(sizeof(EmuLaunch) == 64 + 64 * sizeof(EmuArgument), "emulator.py packs it");

// Returns the error, or an empty text. Results are copied back only where there is no error.
const char *emu_launch(void (*entry)(void **), const EmuLaunch *launch) {
  error[0] = 0;
  fault_offset = 0;
  in_scheduler = true;
  schedule = (int)launch->schedule;
  generator.seed(launch->seed);
  dynamic_bytes = launch->dynamic_bytes;
  shared_limit = launch->shared_limit;
  most_seconds = launch->most_seconds;
  emu_grid_size = {launch->grid[0], launch->grid[1], launch->grid[2]};
  emu_block_size = {launch->block[0], launch->block[1], launch->block[2]};
  emu_block_index = emu_thread_index = {0, 0, 0};
  host_tsan = tsan_current();
  remember_host_stack();

  uint64_t values[64];
  void *pointers[64];
  uint64_t copies[64];
  size_t copy_count = 0;
  if (sigsetjmp(after_fault, 0) != 0) return error;  // no memory for a copy
  for (uint64_t i = 0; i < launch->count; i++) {
    const EmuArgument &a = launch->arguments[i];
    values[i] = a.value;
    pointers[i] = &values[i];
    if (!a.is_pointer || !a.value) continue;
    if (a.same_as != i) {
      values[i] = values[a.same_as];
      continue;
    }
    values[i] = (uint64_t)argument_memory((int)i, (const void *)a.value, a.bytes, a.phase, a.writable != 0);
    copies[copy_count++] = i;
  }
  if (CATCHES_SIGNALS) {
    Handlers handlers(launch->most_seconds);
    run_caught(entry, pointers);
    handlers.restore();
  } else {
    run_caught(entry, pointers);
  }
  check_slack(error, sizeof error);
  if (!error[0])
    for (size_t k = 0; k < copy_count; k++)
      if (launch->arguments[copies[k]].writable) return_argument(k, (void *)launch->arguments[copies[k]].value);
  reset_shared();
  free_arguments();
  return error;
}
uintptr_t emu_fault_offset(void) { return fault_offset; }
}
