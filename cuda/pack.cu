// Bits of signs: 1 where a number is >= 0 (-0.0 too) or a byte is not 0. A warp makes one word, a lane one column.
template <class T> struct Sign;
template <> struct Sign<u8> {  // bool
  static __device__ __forceinline__ bool positive(u8 byte) { return byte != 0; }
};
template <> struct Sign<u16> {  // float16 and bfloat16: the sign is the highest bit in both
  static __device__ __forceinline__ bool positive(u16 bits) { return bits <= 0x8000u; }
};
template <> struct Sign<u32> {  // float32
  static __device__ __forceinline__ bool positive(u32 bits) { return bits <= 0x80000000u; }
};

// Args: values (lines, D), free of NaN; out (lines, W).
template <class T>
__global__ void __launch_bounds__(256)
    pack(const T *__restrict__ values, u32 *__restrict__ out, i64 lines, u32 width, u32 dim) {
  const u64 number = thread_number() / 32u;
  if (number >= (u64)lines * width) return;
  u64 line;
  u32 word;
  divide(number, width, line, word);
  const u32 lane = threadIdx.x & 31u, column = word * 32u + lane;
  const u32 bits =
      __ballot_sync(WHOLE_WARP, column < dim && Sign<T>::positive(__ldg(values + line * dim + column)));
  if (lane == 0) out[number] = bits;
}
