// float32 to float16 and bfloat16, nearest even, in integers: no header is needed, and the emulator runs it as it is.
__device__ __forceinline__ u32 half_bits(float value) {
  const u32 bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (size >= 0x47800000u) return sign | 0x7c00u;  // from 65536 on: infinity
  if (size >= 0x38800000u) {                       // normal: from 2^-14 on; a carry out of 65504 ends at infinity
    const u32 rebiased = size - 0x38000000u;
    return sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13);
  }
  if (size <= 0x33000000u) return sign;            // up to 2^-25, a tie with the even 0
  const u32 significand = (size & 0x7fffffu) | 0x800000u, shift = 126u - (size >> 23);  // in units of 2^-24
  const u32 whole = significand >> shift, rest = significand & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
  return sign | (whole + (rest > tie || (rest == tie && (whole & 1u)) ? 1u : 0u));
}

__device__ __forceinline__ u32 bfloat16_bits(float value) {
  const u32 bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;  // NaN, whose payload might round to infinity
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
