// Atomics: relaxed, as on a GPU, and only on the types that CUDA has them for. Fences.
#pragma once

inline void __threadfence() { emu_fence(); }
inline void __threadfence_block() { emu_fence(); }
inline void __threadfence_system() { emu_fence(); }

template <class T> using emu_same = typename std::common_type<T>::type;  // lets a literal of another type convert

template <class T, class... Allowed>
void emu_check_atomic(const T *address) {
  static_assert((std::is_same<T, Allowed>::value || ...), "CUDA has no such atomic for this type");
  if ((uintptr_t)address % sizeof(T)) emu_fail("atomic on the misaligned address %p", (const void *)address);
  if (emu_preempting) emu_preempt();
}
template <class T, class Change>
T emu_atomic(T *address, Change change) {
  T old, updated;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do updated = change(old);
  while (!__atomic_compare_exchange(address, &old, &updated, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
// Integer atomics wrap around: computed in the unsigned type, where C++ defines it too.
template <class T>
T emu_sum(T a, T b) {
  if constexpr (std::is_integral<T>::value) {
    using U = typename std::make_unsigned<T>::type;
    return (T)((U)a + (U)b);
  } else {
    return a + b;
  }
}
#define EMU_ATOMIC(name, expression, ...)                                          \
  template <class T> T name(T *address, emu_same<T> value) {                       \
    emu_check_atomic<T, __VA_ARGS__>(address);                                     \
    return emu_atomic(address, [=](T old) -> T { (void)old; return expression; }); \
  }
#define EMU_INTEGERS int, unsigned, unsigned long long
EMU_ATOMIC(atomicAdd, emu_sum(old, value), EMU_INTEGERS, float, double)
EMU_ATOMIC(atomicExch, value, EMU_INTEGERS, float)
EMU_ATOMIC(atomicMin, value < old ? value : old, EMU_INTEGERS, long long)
EMU_ATOMIC(atomicMax, value > old ? value : old, EMU_INTEGERS, long long)
EMU_ATOMIC(atomicAnd, old & value, EMU_INTEGERS)
EMU_ATOMIC(atomicOr, old | value, EMU_INTEGERS)
EMU_ATOMIC(atomicXor, old ^ value, EMU_INTEGERS)
EMU_ATOMIC(atomicInc, old >= value ? 0u : old + 1u, unsigned)
EMU_ATOMIC(atomicDec, old == 0u || old > value ? value : old - 1u, unsigned)
inline int atomicSub(int *address, int value) { return atomicAdd(address, (int)(0u - (unsigned)value)); }
inline unsigned atomicSub(unsigned *address, unsigned value) { return atomicAdd(address, 0u - value); }

template <class T>
T atomicCAS(T *address, emu_same<T> expected, emu_same<T> value) {
  emu_check_atomic<T, EMU_INTEGERS, unsigned short>(address);
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
