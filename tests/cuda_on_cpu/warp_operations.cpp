// Warp operations: lanes wait until every live lane of their mask is at the same operation, then all get their result.
#include "scheduler.h"

#include <algorithm>

namespace emu {
unsigned waiting[32], alive[32];

const char *operation_name(int operation) {
  static const char *const names[] = {
      "__ballot_sync", "__any_sync", "__all_sync", "__shfl*_sync", "__syncwarp", "__match_any_sync", "__activemask",
      "__reduce_add_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync"};
  return names[operation];
}

namespace {
uint64_t combined(int operation, const Thread *warp, unsigned lanes) {
  uint64_t result = 0;
  bool first = true;
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t value = warp[lane].value;
    switch (operation) {
      case EMU_BALLOT: result |= (value & 1) << lane; break;
      case EMU_ANY: result |= value; break;
      case EMU_ALL: result = first ? value : result & value; break;
      case EMU_REDUCE_ADD: result = (unsigned)(result + value); break;
      case EMU_REDUCE_AND: result = first ? value : result & value; break;
      case EMU_REDUCE_OR: result |= value; break;
      case EMU_REDUCE_XOR: result ^= value; break;
      case EMU_REDUCE_MIN: result = first ? value : std::min(result, value); break;
      case EMU_REDUCE_MAX: result = first ? value : std::max(result, value); break;
      case EMU_REDUCE_MIN_SIGNED: result = first ? value : (unsigned)std::min((int)result, (int)value); break;
      case EMU_REDUCE_MAX_SIGNED: result = first ? value : (unsigned)std::max((int)result, (int)value); break;
    }
    first = false;
  }
  return result;
}
uint64_t result_of(const Thread &lane, uint64_t common, const Thread *warp, unsigned lanes) {
  if (lane.operation == EMU_SHUFFLE) {  // a lane that takes no part gives what a GPU leaves undefined: garbage
    const bool takes_part = lane.source_lane >= 0 && lane.source_lane < 32 && (lanes >> lane.source_lane & 1);
    return takes_part ? warp[lane.source_lane].value : 0xA5A5A5A5A5A5A5A5ull;
  }
  if (lane.operation != EMU_MATCH) return common;
  uint64_t equal = 0;
  for (unsigned other = 0; other < 32; other++)
    if ((lanes >> other & 1) && warp[other].value == lane.value) equal |= 1ull << other;
  return equal;
}
unsigned arrived_with(const Thread *warp, unsigned lane, unsigned expected) {
  const Thread &thread = warp[lane];
  unsigned here = 0;
  for (unsigned k = 0; k < 32; k++) {
    if (!(expected >> k & 1)) continue;
    const Thread &other = warp[k];
    if (other.state != IN_WARP_OPERATION || other.operation == EMU_ACTIVE) continue;
    if (other.mask != thread.mask && (other.mask & thread.mask))
      emu_fail("%s at line %d: lane %u uses mask %#x, lane %u uses the overlapping mask %#x (line %d)",
               operation_name(thread.operation), thread.line, lane, thread.mask, k, other.mask, other.line);
    if (other.mask == thread.mask && (other.operation != thread.operation || other.line != thread.line))
      emu_fail("lanes %u and %u of one mask %#x meet at different warp operations: %s line %d, %s line %d", lane, k,
               thread.mask, operation_name(thread.operation), thread.line, operation_name(other.operation),
               other.line);
    here |= 1u << k;
  }
  return here;
}
}  // namespace

void complete_warp(unsigned first_thread) {
  Thread *warp = &threads[first_thread];
  const unsigned lanes = std::min<unsigned>(32, (unsigned)threads.size() - first_thread);
  unsigned live = 0, seen = 0;
  for (unsigned lane = 0; lane < lanes; lane++)
    if (warp[lane].state != DONE) live |= 1u << lane;
  for (unsigned lane = 0; lane < lanes; lane++) {
    const Thread &thread = warp[lane];
    if (thread.state != IN_WARP_OPERATION || (seen >> lane & 1) || thread.operation == EMU_ACTIVE) continue;
    const unsigned expected = thread.mask & live;
    const unsigned here = arrived_with(warp, lane, expected);
    seen |= here;
    if (here != expected) continue;
    const uint64_t common = combined(thread.operation, warp, expected);
    for (unsigned k = 0; k < lanes; k++) {
      if (!(expected >> k & 1)) continue;
      warp[k].result = result_of(warp[k], common, warp, expected);
      warp[k].state = READY;
      waiting[first_thread / 32] &= ~(1u << k);
    }
  }
}

// Only when nothing else runs do lanes that wait in __activemask() form a group: those at the same line.
void group_active_lanes(unsigned first_thread, bool *progress) {
  Thread *warp = &threads[first_thread];
  const unsigned lanes = std::min<unsigned>(32, (unsigned)threads.size() - first_thread);
  const auto is_waiting = [&](unsigned lane) {
    return warp[lane].state == IN_WARP_OPERATION && warp[lane].operation == EMU_ACTIVE;
  };
  for (unsigned lane = 0; lane < lanes; lane++) {
    if (!is_waiting(lane)) continue;
    unsigned group = 0;
    for (unsigned k = 0; k < lanes; k++)
      if (is_waiting(k) && warp[k].line == warp[lane].line) group |= 1u << k;
    for (unsigned k = 0; k < lanes; k++) {
      if (!(group >> k & 1)) continue;
      warp[k].result = group;
      warp[k].state = READY;
    }
    waiting[first_thread / 32] &= ~group;
    *progress = true;
    return;
  }
}
}  // namespace emu

using namespace emu;

extern "C" uint64_t emu_warp(int operation, unsigned mask, uint64_t value, int source_lane, int line) {
  InScheduler guard;
  const unsigned me = current, lane = me & 31, warp = me / 32;
  if (operation != EMU_ACTIVE && !(mask >> lane & 1))
    emu_fail("%s at line %d: mask %#x does not name the calling lane %u", operation_name(operation), line, mask, lane);
  const unsigned lanes = std::min<unsigned>(32, (unsigned)threads.size() - warp * 32);
  if (operation != EMU_ACTIVE && mask != ~0u && lanes < 32 && mask >> lanes)
    emu_fail("%s at line %d: mask %#x names lanes that this warp of %u does not have", operation_name(operation), line,
             mask, lanes);
  Thread &thread = threads[me];
  thread.state = IN_WARP_OPERATION;
  thread.mask = mask;
  thread.operation = operation;
  thread.line = line;
  thread.source_lane = source_lane;
  thread.value = value;
  if (operation == EMU_SYNC) release(barrier_object + 64 + warp);
  waiting[warp] |= 1u << lane;
  const unsigned expected = mask & alive[warp];
  if (operation != EMU_ACTIVE && (waiting[warp] & expected) == expected) complete_warp(warp * 32);
  if (threads[me].state != READY) wait_for_others();
  if (operation == EMU_SYNC) acquire(barrier_object + 64 + warp);
  return threads[me].result;
}
