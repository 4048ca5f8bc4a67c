// Buffers that end at an unmapped page, so that a read or write past the end stops at the instruction that does it.
// Under ASan and TSan they come from malloc, which those watch byte by byte.
#include "scheduler.h"

#include <sys/mman.h>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace emu {
namespace {
constexpr size_t PAGE = 4096, KEPT_PAGES = 64;  // larger maps are not kept for the next launch
constexpr unsigned char SLACK = 0xEE;
#if defined(EMU_ASAN) || defined(EMU_TSAN)
constexpr bool GUARD_PAGES = false;
#else
constexpr bool GUARD_PAGES = true;
#endif

struct Shared {
  const void *key;
  Guarded memory;
};
std::vector<Guarded> arguments;
std::vector<Shared> shared;
Guarded dynamic;
size_t static_bytes;
std::vector<void *> discarded;
std::vector<char *> kept[KEPT_PAGES + 1];

// `phase` is the address of the data modulo 16: what a kernel may assume of the real address holds here too. Up to 15
// bytes then lie between the end and the unmapped page; a changed one is found when the buffer is freed.
Guarded allocate(size_t bytes, size_t phase) {
  Guarded g{};
  g.bytes = bytes;
  if (!GUARD_PAGES) {
    g.map = (char *)malloc(phase + bytes);  // aligned to 16; of the exact size, so that ASan sees its very end
    if (!g.map) emu_fail("no memory for a buffer of %zu bytes", bytes);
    g.data = g.map + phase;
    return g;
  }
  const size_t slack = (16 - (phase + bytes) % 16) % 16;
  const size_t pages = (bytes + slack + PAGE - 1) / PAGE + (bytes + slack == 0);
  g.mapped = (pages + 2) * PAGE;
  if (pages <= KEPT_PAGES && !kept[pages].empty()) {
    g.map = kept[pages].back();
    kept[pages].pop_back();
  } else {
    g.map = (char *)mmap(nullptr, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED) emu_fail("no memory for a buffer of %zu bytes", bytes);
    mprotect(g.map, PAGE, PROT_NONE);
    mprotect(g.map + PAGE + pages * PAGE, PAGE, PROT_NONE);
  }
  g.data = g.map + g.mapped - PAGE - slack - bytes;
  memset(g.map + PAGE, SLACK, (size_t)(g.data - g.map) - PAGE);
  memset(g.data + bytes, SLACK, slack);
  return g;
}
void discard(Guarded &g) {
  if (TSAN) {
    discarded.push_back(g.map);  // a reused address would look like a race between blocks
  } else if (!GUARD_PAGES) {
    free(g.map);
  } else {
    const size_t pages = g.mapped / PAGE - 2;
    if (pages > KEPT_PAGES) {
      munmap(g.map, g.mapped);
    } else {
      if (g.read_only) mprotect(g.map + PAGE, pages * PAGE, PROT_READ | PROT_WRITE);
      kept[pages].push_back(g.map);
    }
  }
  g = Guarded{};
}
void check_slack_of(const Guarded &g, char *message, size_t size) {
  if (!GUARD_PAGES || g.read_only || message[0] || !g.map) return;
  char what[100];
  if (g.argument >= 0) snprintf(what, sizeof what, "argument %d", g.argument);
  else snprintf(what, sizeof what, "shared memory %s", g.name);
  for (const char *p = g.data + g.bytes; p < g.map + g.mapped - PAGE; p++)
    if ((unsigned char)*p != SLACK) {
      snprintf(message, size, "%s: written past its end, at byte %zd of %zu", what, p - g.data, g.bytes);
      return;
    }
  for (const char *p = g.data - 1; p >= g.map + PAGE; p--)
    if ((unsigned char)*p != SLACK) {
      snprintf(message, size, "%s: written before its start, at byte %zd", what, p - g.data);
      return;
    }
}
bool holds(const Guarded &g, const char *address) { return address >= g.map && address < g.map + g.mapped; }

Guarded shared_allocation(const char *name, size_t bytes, size_t alignment) {
  Guarded g = allocate(bytes, alignment >= 16 ? 0 : (16 - bytes % 16) % 16);
  g.argument = -1;
  g.name = name;
  memset(g.data, schedule == RANDOM ? (int)(generator() & 0xFF) : 0xCD, bytes);
  return g;
}
}  // namespace

size_t dynamic_bytes, shared_limit;

char *argument_memory(int argument, const void *from, size_t bytes, size_t phase, bool writable) {
  Guarded g = allocate(bytes, phase);
  g.argument = argument;
  if (bytes) memcpy(g.data, from, bytes);
  if (GUARD_PAGES && !writable) {
    mprotect(g.map + PAGE, g.mapped - 2 * PAGE, PROT_READ);
    g.read_only = true;
  }
  arguments.push_back(g);
  return g.data;
}
void return_argument(size_t number, void *to) {
  if (arguments[number].bytes) memcpy(to, arguments[number].data, arguments[number].bytes);
}
void check_slack(char *message, size_t size) {
  for (const Guarded &g : arguments) check_slack_of(g, message, size);
}
void check_shared_slack(char *message, size_t size) {
  for (const Shared &s : shared) check_slack_of(s.memory, message, size);
  check_slack_of(dynamic, message, size);
}
void free_arguments() {
  for (Guarded &g : arguments) discard(g);
  arguments.clear();
  for (void *p : discarded) free(p);
  discarded.clear();
}
void reset_shared() {
  for (Shared &s : shared) discard(s.memory);
  if (dynamic.map) discard(dynamic);
  shared.clear();
  static_bytes = 0;
}
const Guarded *guarded_at(const char *address) {
  for (const Guarded &g : arguments)
    if (holds(g, address)) return &g;
  for (const Shared &s : shared)
    if (holds(s.memory, address)) return &s.memory;
  return holds(dynamic, address) ? &dynamic : nullptr;
}
}  // namespace emu

using namespace emu;

namespace {
// Allocated as the host, and ordered before every thread that asks for it.
template <class Allocate>
void *as_host(Allocate allocate_once) {
  InScheduler guard;
  void *me = threads[current].tsan;
  tsan_switch(host_tsan);
  void *data = allocate_once();
  tsan_switch(me);
  acquire(data);
  return data;
}
}  // namespace

extern "C" {
void *emu_shared(const void *key, const char *name, size_t bytes, size_t alignment) {
  return as_host([=]() -> void * {
    for (const Shared &s : shared)
      if (s.key == key) return s.memory.data;
    static_bytes += bytes;
    if (static_bytes > 48 << 10)
      emu_fail("%zu bytes of static shared memory, with %s; a kernel has 49152", static_bytes, name);
    if (static_bytes + dynamic_bytes > shared_limit)
      emu_fail("%zu bytes of shared memory, %zu static with %s, %zu dynamic; this launch may have %zu",
               static_bytes + dynamic_bytes, static_bytes, name, dynamic_bytes, shared_limit);
    shared.push_back({key, shared_allocation(name, bytes, alignment)});
    release(shared.back().memory.data);
    return shared.back().memory.data;
  });
}
void *emu_dynamic_shared(const char *name) {
  return as_host([=]() -> void * {
    if (!dynamic.map) {
      dynamic = shared_allocation(name, dynamic_bytes, 16);
      release(dynamic.data);
    }
    return dynamic.data;
  });
}
}
