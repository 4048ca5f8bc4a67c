// Names that every kernel uses. No includes anywhere in this folder: CuPy's NVRTC, nvcc and the CPU emulator of the
// tests compile the same text. packedbag/backends/cuda_kernels.py says which parts go before which kernel.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define WHOLE_WARP 0xffffffffu
#define WARP 32

// A row's number as an unsigned integer of its own width: of 32 bits, one wide multiplication finds its words.
template <class I> struct Unsigned;
template <> struct Unsigned<int> { typedef u32 type; };
template <> struct Unsigned<i64> { typedef u64 type; };

// The first word of a row. A table may have more than 2^31 words.
template <class R> __device__ __forceinline__ u64 row_start(R row, u32 width) {
  return (u64)(typename Unsigned<R>::type)row * width;
}

// The same as an address, of rows of `bytes` bytes: for an int, one instruction.
template <class R, class T> __device__ __forceinline__ T *row_at(T *table, R row, u32 bytes) {
  return (T *)((char *)table + row_start(row, bytes));
}

// The columns of word `word` that exist, D in all.
__device__ __forceinline__ u32 column_mask(u32 word, u32 dim) {
  const u32 before = word * 32u;
  return dim - before >= 32u ? 0xffffffffu : (1u << (dim - before)) - 1u;
}

__device__ __forceinline__ u64 thread_number() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Quotient and remainder by a number below 2^32. A 64-bit division takes some 40 instructions, a 32-bit one 15.
__device__ __forceinline__ void divide(u64 value, u32 by, u64 &quotient, u32 &rest) {
  if (value >> 32) {
    quotient = value / by;
    rest = (u32)(value - quotient * by);
  } else {
    const u32 small = (u32)value / by;
    quotient = small;
    rest = (u32)value - small * by;
  }
}
