// How often a row was touched, in 8 bits: exact up to 128, then by eighths of a power of two, counted by chance. The
// rule and its source stand in packedbag/core/touches.py.
#define TOUCHES 0xffu
#define EXACT 128u

// The number of touches that a code 0..255 stands for.
__device__ __forceinline__ u32 touches_of(u32 code) {
  const u32 over = code - EXACT;
  return code < EXACT ? code : (8u + over % 8u) << (over / 8u + 4u);
}

// The code after one more touch.
__device__ __forceinline__ u32 touched(u32 code, u32 random) {
  if (code < EXACT) return code + 1u;
  const u32 gap = 16u << ((code - EXACT) / 8u);
  return (random & (gap - 1u)) == 0u && code < TOUCHES ? code + 1u : code;
}

// 32 random bits of a row in a step: a hash, where Philox would cost as much as the row. MurmurHash3's finalizer.
__device__ __forceinline__ u32 mixed(u64 row, u64 seed, u32 step, u32 table) {
  u32 h = (u32)row * 0x9e3779b1u ^ (u32)(row >> 32) * 0x85ebca77u;
  h ^= (u32)seed ^ step * 0xc2b2ae3du ^ table * 0x27d4eb2fu;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}
