// Barriers and warp operations. The line of the call is part of the operation: two lanes of one mask that meet at
// different lines are an error.
#pragma once
#define EMU_LINE int line = __builtin_LINE()

inline void __syncthreads(EMU_LINE) { emu_barrier(EMU_BARRIER, 0, line); }
inline int __syncthreads_count(int p, EMU_LINE) { return emu_barrier(EMU_BARRIER_COUNT, p != 0, line); }
inline int __syncthreads_and(int p, EMU_LINE) { return emu_barrier(EMU_BARRIER_AND, p != 0, line); }
inline int __syncthreads_or(int p, EMU_LINE) { return emu_barrier(EMU_BARRIER_OR, p != 0, line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_LINE) { emu_warp(EMU_SYNC, mask, 0, 0, line); }
inline unsigned __ballot_sync(unsigned mask, int p, EMU_LINE) {
  return (unsigned)emu_warp(EMU_BALLOT, mask, p != 0, 0, line);
}
inline int __any_sync(unsigned mask, int p, EMU_LINE) { return (int)emu_warp(EMU_ANY, mask, p != 0, 0, line); }
inline int __all_sync(unsigned mask, int p, EMU_LINE) { return (int)emu_warp(EMU_ALL, mask, p != 0, 0, line); }
inline unsigned __activemask(EMU_LINE) { return (unsigned)emu_warp(EMU_ACTIVE, 0, 0, 0, line); }

inline int emu_lane() {
  return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31u);
}
template <class T>
uint64_t emu_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic<T>::value, "warp operations take numbers of up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T emu_shuffle(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) >= 4, "CUDA shuffles 4- and 8-byte numbers; a narrower one is converted first");
  const uint64_t bits = emu_warp(EMU_SHUFFLE, mask, emu_bits(value), source, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline void emu_check_width(int width, int line) {
  if (width < 1 || width > 32 || (width & (width - 1))) emu_fail("shuffle width %d at line %d", width, line);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_LINE) {
  emu_check_width(width, line);
  return emu_shuffle(mask, value, (emu_lane() & ~(width - 1)) | (source & (width - 1)), line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_LINE) {
  emu_check_width(width, line);
  const int lane = emu_lane(), source = lane ^ bits;
  return emu_shuffle(mask, value, source / width <= lane / width ? source : lane, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_LINE) {
  emu_check_width(width, line);
  const int lane = emu_lane();
  return emu_shuffle(mask, value, (lane & (width - 1)) + (int)delta < width ? lane + (int)delta : lane, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_LINE) {
  emu_check_width(width, line);
  const int lane = emu_lane();
  return emu_shuffle(mask, value, (lane & (width - 1)) - (int)delta >= 0 ? lane - (int)delta : lane, line);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMU_LINE) {
  return (unsigned)emu_warp(EMU_MATCH, mask, emu_bits(value), 0, line);
}

#if __CUDA_ARCH__ >= 800
#define EMU_REDUCE(name, T, operation)                                    \
  inline T name(unsigned mask, T value, EMU_LINE) {                       \
    return (T)(unsigned)emu_warp(operation, mask, (unsigned)value, 0, line); \
  }
EMU_REDUCE(__reduce_add_sync, unsigned, EMU_REDUCE_ADD)
EMU_REDUCE(__reduce_add_sync, int, EMU_REDUCE_ADD)
EMU_REDUCE(__reduce_min_sync, unsigned, EMU_REDUCE_MIN)
EMU_REDUCE(__reduce_min_sync, int, EMU_REDUCE_MIN_SIGNED)
EMU_REDUCE(__reduce_max_sync, unsigned, EMU_REDUCE_MAX)
EMU_REDUCE(__reduce_max_sync, int, EMU_REDUCE_MAX_SIGNED)
EMU_REDUCE(__reduce_and_sync, unsigned, EMU_REDUCE_AND)
EMU_REDUCE(__reduce_or_sync, unsigned, EMU_REDUCE_OR)
EMU_REDUCE(__reduce_xor_sync, unsigned, EMU_REDUCE_XOR)
#endif
