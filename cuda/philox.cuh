// Philox4x32-10: the random numbers of stochastic rounding.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
__device__ __forceinline__ void philox(u32 *c, u32 key_low, u32 key_high) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high_a = __umulhi(c[0], 0xd2511f53u), low_a = c[0] * 0xd2511f53u;
    const u32 high_b = __umulhi(c[2], 0xcd9e8d57u), low_b = c[2] * 0xcd9e8d57u;
    c[0] = high_b ^ c[1] ^ key_low;
    c[1] = low_b;
    c[2] = high_a ^ c[3] ^ key_high;
    c[3] = low_a;
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
}

// The random numbers of eight words of one row, 16 bits a column. A number of 128 bits serves eight columns, so a warp
// needs one of each lane: lane l draws that of columns 8 l to 8 l + 7 of the eight words. `block`: table << 16 | the first
// column / 8.
struct RandomHalves {
  u32 drawn[4];

  __device__ __forceinline__ void draw(u64 seed, u64 row, u32 step, u32 block, u32 first_word, u32 lane) {
    drawn[0] = (u32)row;
    drawn[1] = (u32)(row >> 32);
    drawn[2] = step;
    drawn[3] = block + first_word * 4u + lane;
    philox(drawn, (u32)seed, (u32)(seed >> 32));
  }

  // The 16 bits of this lane's column in word `offset` of the eight. All lanes must call.
  __device__ __forceinline__ u32 of_column(u32 offset, u32 lane) const {
    const int source = (int)(offset * 4u + lane / 8u);
    const u32 a = __shfl_sync(WHOLE_WARP, drawn[0], source), b = __shfl_sync(WHOLE_WARP, drawn[1], source);
    const u32 c = __shfl_sync(WHOLE_WARP, drawn[2], source), d = __shfl_sync(WHOLE_WARP, drawn[3], source);
    const u32 pair = (lane & 7u) / 2u, word = pair == 0 ? a : (pair == 1 ? b : (pair == 2 ? c : d));
    return (lane & 1u) ? word >> 16 : word & 0xffffu;
  }
};
