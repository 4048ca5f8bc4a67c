// How a value (float32, or an exact int) becomes an element of the output. The numbers are those of
// packedbag/backends/cuda_kernels.py.
enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT32 = 3, PACKED = 4 };

template <int OUT> __device__ __forceinline__ u32 element_bits(float value) {
  if (OUT == FLOAT16) return half_bits(value);
  if (OUT == BFLOAT16) return bfloat16_bits(value);
  if (OUT == INT32) return (u32)(int)value;
  return __float_as_uint(value);
}

// Stores pass the caches by (`cs`: streaming): nobody reads the output before it has left them.
template <int OUT> __device__ __forceinline__ void store_element(void *out, u64 at, float value) {
  if (OUT == FLOAT16 || OUT == BFLOAT16) {
    __stcs((u16 *)out + at, (u16)element_bits<OUT>(value));
  } else {
    __stcs((u32 *)out + at, element_bits<OUT>(value));
  }
}

// Four neighbours at once; `at` is a multiple of 4.
template <int OUT> __device__ __forceinline__ void store_four(void *out, u64 at, float a, float b, float c, float d) {
  const u32 x = element_bits<OUT>(a), y = element_bits<OUT>(b), z = element_bits<OUT>(c), w = element_bits<OUT>(d);
  if (OUT == FLOAT16 || OUT == BFLOAT16) {
    __stcs((uint2 *)((u16 *)out + at), make_uint2(x | (y << 16), z | (w << 16)));
  } else {
    __stcs((uint4 *)((u32 *)out + at), make_uint4(x, y, z, w));
  }
}

// The weight that a bit stands for: 1 is +1, 0 is -1.
__device__ __forceinline__ float sign_of(u32 word, u32 bit) {
  return __uint_as_float(((word << (31u - bit)) & 0x80000000u) ^ 0xbf800000u);
}
