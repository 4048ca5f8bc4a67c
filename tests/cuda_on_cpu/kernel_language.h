// The CUDA C++ kernel language, as far as cuda/*.cu uses it, for g++. toolchain.py includes this file before a kernel
// source, as a precompiled header. Only thin wrappers are here: who runs when is the business of scheduler.cpp, which
// no sanitizer instruments.
#pragma once
#include <math.h>
#include <string.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
#define __CUDACC__ 1
#define PACKEDBAG_ON_CPU 1

// dialect.py rewrites what a macro cannot: __shared__ and __launch_bounds__.
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

// A vector is aligned to its size, as on a GPU, so that UBSan reports a load that a GPU would refuse.
#define EMU_VECTORS(T, name)                                                             \
  struct alignas(sizeof(T) * 2) name##2 { T x, y; };                                     \
  struct name##3 { T x, y, z; };                                                         \
  struct alignas(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) name##4 { T x, y, z, w; };     \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                             \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                     \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
EMU_VECTORS(int, int)
EMU_VECTORS(float, float)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(short, short)
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
struct alignas(16) longlong2 { long long x, y; };
inline double2 make_double2(double x, double y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }

enum EmuWarpOperation {
  EMU_BALLOT, EMU_ANY, EMU_ALL, EMU_SHUFFLE, EMU_SYNC, EMU_MATCH, EMU_ACTIVE,
  EMU_REDUCE_ADD, EMU_REDUCE_AND, EMU_REDUCE_OR, EMU_REDUCE_XOR,
  EMU_REDUCE_MIN, EMU_REDUCE_MAX, EMU_REDUCE_MIN_SIGNED, EMU_REDUCE_MAX_SIGNED
};
enum EmuBarrier { EMU_BARRIER, EMU_BARRIER_COUNT, EMU_BARRIER_AND, EMU_BARRIER_OR };

extern "C" {
extern uint3 emu_thread_index, emu_block_index;  // rewritten by the scheduler at every switch
extern dim3 emu_block_size, emu_grid_size;
extern int emu_preempting;                       // the random schedule also switches at atomics and fences
// A warp operation returns when every live lane of `mask` has arrived; a barrier when every live thread of the block.
uint64_t emu_warp(int operation, unsigned mask, uint64_t value, int source_lane, int line);
int emu_barrier(int kind, int predicate, int line);
void emu_preempt(void);
void emu_fence(void);
void *emu_shared(const void *key, const char *name, size_t bytes, size_t alignment);
void *emu_dynamic_shared(const char *name);
void emu_check_launch_bounds(unsigned long most_threads, ...);
void emu_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void emu_run(void (*body)(void *), void *context);
}
#define threadIdx emu_thread_index
#define blockIdx emu_block_index
#define blockDim emu_block_size
#define gridDim emu_grid_size
constexpr int warpSize = 32;

#define __trap() emu_fail("__trap() at line %d", __LINE__)
#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : emu_fail("assert(%s) at line %d", #condition, __LINE__))

// dialect.py writes `__shared__ T name[N];` as a typedef of emu_type_of_name and this. The key is the address of a
// static that belongs to this very declaration in this very template instance.
#define EMU_SHARED(name)                                                   \
  auto &name = *static_cast<emu_type_of_##name *>(                         \
      emu_shared([]() -> const void * { static char key; return &key; }(), \
                 #name, sizeof(emu_type_of_##name), alignof(emu_type_of_##name)))

#include "kernel_warp.h"
#include "kernel_numbers.h"
#include "kernel_atomics.h"
#include "kernel_entry.h"
