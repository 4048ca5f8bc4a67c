// Runs blocks one after another, and the threads of a block as fibers, in the order of the schedule.
#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

uint3 emu_thread_index, emu_block_index;
dim3 emu_block_size, emu_grid_size;
int emu_preempting;

namespace emu {
std::vector<Thread> threads;
unsigned current;
char *barrier_object;
int schedule;
std::mt19937 generator;

namespace {
std::vector<unsigned> order, block_order;
std::vector<void *> barrier_objects;
void (*kernel_body)(void *);
void *kernel_context;
char start_object, end_object, fence_object;

void complete_barrier() {
  unsigned at_barrier = 0, live = 0, first = 0, count = 0;
  for (unsigned i = 0; i < threads.size(); i++) {
    live += threads[i].state != DONE;
    if (threads[i].state != AT_BARRIER) continue;
    if (!at_barrier++) first = i;
    count += threads[i].value != 0;
  }
  if (!at_barrier || at_barrier != live) return;
  for (unsigned i = 0; i < threads.size(); i++) {
    Thread &thread = threads[i];
    if (thread.state != AT_BARRIER) continue;
    if (thread.line != threads[first].line)
      emu_fail("threads %u and %u of one block wait at different __syncthreads(): lines %d and %d", first, i,
               threads[first].line, thread.line);
    const int kind = thread.operation;
    thread.result = kind == EMU_BARRIER_COUNT ? count : kind == EMU_BARRIER_AND ? count == at_barrier : count != 0;
    thread.state = READY;
  }
}

void resume(unsigned i) {
  Thread &thread = threads[i];
  current = i;
  emu_thread_index = thread.index;
  if (thread.state == NEW) {
    thread.fiber = take_fiber();
    release(&start_object);  // publishes the fresh stack; the host's clock holds no CUDA thread's progress
  }
  thread.state = READY;
  Fiber *fiber = thread.fiber;
  in_scheduler = false;
  switch_to_fiber(fiber, thread.tsan);
  in_scheduler = true;
  if (error[0]) siglongjmp(after_fault, 1);
  if (threads[i].state == DONE) give_fiber(fiber);
}

[[noreturn]] void report_deadlock() {
  char text[1200];
  size_t used = 0;
  text[0] = 0;
  for (unsigned i = 0; i < threads.size() && used < sizeof text - 100; i++) {
    const Thread &thread = threads[i];
    if (thread.state == AT_BARRIER)
      used += (size_t)snprintf(text + used, sizeof text - used, " t%u:__syncthreads@%d", i, thread.line);
    if (thread.state == IN_WARP_OPERATION)
      used += (size_t)snprintf(text + used, sizeof text - used, " t%u:%s@%d/%#x", i, operation_name(thread.operation),
                               thread.line, thread.mask);
  }
  emu_fail("deadlock, these threads wait (thread:operation@line/mask):%s", text);
}

void start_block(uint3 block) {
  emu_block_index = block;
  const unsigned count = (unsigned)threads.size();
  for (unsigned warp = 0; warp < 32; warp++) {
    waiting[warp] = 0;
    alive[warp] = warp * 32 >= count ? 0 : count - warp * 32 >= 32 ? ~0u : (1u << (count - warp * 32)) - 1;
  }
  for (unsigned i = 0; i < count; i++) {
    Thread &thread = threads[i];
    thread.state = NEW;
    thread.index = {i % emu_block_size.x, i / emu_block_size.x % emu_block_size.y,
                    i / (emu_block_size.x * emu_block_size.y)};
    thread.tsan = tsan_create();
  }
  if (TSAN) {  // an address of its own: a barrier orders the threads of one block only
    barrier_object = (char *)malloc(128);
    barrier_objects.push_back(barrier_object);
  }
  reset_shared();
}

void run_block(uint3 block) {
  start_block(block);
  for (;;) {
    bool progress = false, live = false;
    if (schedule == RANDOM) std::shuffle(order.begin(), order.end(), generator);
    for (unsigned i : order) {
      if (threads[i].state != NEW && threads[i].state != READY) continue;
      resume(i);
      progress = true;
    }
    for (const Thread &thread : threads) live |= thread.state != DONE;
    if (!live) break;
    for (unsigned warp = 0; warp < threads.size() && !progress; warp += 32) group_active_lanes(warp, &progress);
    if (!progress) report_deadlock();
  }
  for (Thread &thread : threads) {
    tsan_destroy(thread.tsan);
    thread.tsan = nullptr;
  }
  char message[300] = "";
  check_shared_slack(message, sizeof message);
  if (message[0]) emu_fail("%s", message);
}
}  // namespace

void abandon_block() {  // after a fault: for TSan, what its threads did comes before what the host does next
  for (Thread &thread : threads) {
    if (TSAN && thread.tsan && thread.state != DONE) {
      tsan_switch(thread.tsan);
      release(&end_object);
      tsan_switch(host_tsan);
    }
    if (thread.tsan) tsan_destroy(thread.tsan);
  }
  threads.clear();
  acquire(&end_object);
  reclaim_fibers();
}

void wait_for_others() { switch_to_host(threads[current].fiber); }

[[noreturn]] void fiber_main() {
  finish_first_switch();
  for (;;) {  // the fiber is reused by a later CUDA thread
    acquire(&start_object);  // no order between CUDA threads: start is released by the host only
    kernel_body(kernel_context);
    in_scheduler = true;
    release(&end_object);
    const unsigned me = current;
    Fiber *fiber = threads[me].fiber;
    threads[me].state = DONE;
    alive[me / 32] &= ~(1u << (me & 31));
    if (waiting[me / 32]) complete_warp(me & ~31u);
    complete_barrier();
    switch_to_host(fiber);
  }
}
}  // namespace emu

using namespace emu;

extern "C" {
int emu_barrier(int kind, int predicate, int line) {
  InScheduler guard;
  const unsigned me = current;
  threads[me].state = AT_BARRIER;
  threads[me].operation = kind;
  threads[me].line = line;
  threads[me].value = (uint64_t)predicate;
  release(barrier_object);
  complete_barrier();
  if (threads[me].state != READY) wait_for_others();
  acquire(barrier_object);
  return (int)threads[me].result;
}
void emu_preempt(void) {  // the other threads of the block may run first
  InScheduler guard;
  if (generator() & 1) wait_for_others();
}
void emu_fence(void) {
  InScheduler guard;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (emu_preempting && (generator() & 1)) wait_for_others();
  acquire(&fence_object);  // TSan knows no fences: all fences are ordered, so a race that one hides is not seen
  release(&fence_object);
}
void emu_check_launch_bounds(unsigned long most, ...) {
  if (threads.size() > most) emu_fail("a block of %zu threads, __launch_bounds__ says %lu", threads.size(), most);
}
void emu_run(void (*body)(void *), void *context) {
  InScheduler guard;
  kernel_body = body;
  kernel_context = context;
  const unsigned blocks = emu_grid_size.x * emu_grid_size.y * emu_grid_size.z;
  const unsigned count = emu_block_size.x * emu_block_size.y * emu_block_size.z;
  threads.assign(count, Thread{});
  order.resize(count);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == REVERSE) std::reverse(order.begin(), order.end());
  block_order.resize(schedule == RANDOM ? blocks : 0);
  std::iota(block_order.begin(), block_order.end(), 0u);
  std::shuffle(block_order.begin(), block_order.end(), generator);
  emu_preempting = schedule == RANDOM;
  release(&start_object);
  for (unsigned i = 0; i < blocks; i++) {
    const unsigned k = schedule == FORWARD ? i : schedule == REVERSE ? blocks - 1 - i : block_order[i];
    run_block({k % emu_grid_size.x, k / emu_grid_size.x % emu_grid_size.y, k / (emu_grid_size.x * emu_grid_size.y)});
  }
  acquire(&end_object);
  for (void *object : barrier_objects) free(object);
  barrier_objects.clear();
}
}
