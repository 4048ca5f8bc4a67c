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

// Draws the random numbers of eight words, TILE of each of 8 / TILE rows: 16 bits a column, in the order of columns. A
// number of 128 bits serves eight columns, so a warp needs one of each lane: lanes 4 TILE n and the following draw those of
// row n. `halves`: the warp's 256, in shared memory. `row`: of which this lane draws. `block`: table << 16 | the first
// column / 8. All lanes must call.
template <int TILE>
__device__ __forceinline__ void draw(uint4 *halves, u64 seed, u64 row, u32 step, u32 block, u32 first_word, u32 lane) {
  u32 c[4] = {(u32)row, (u32)(row >> 32), step, block + first_word * 4u + lane % (TILE * 4u)};
  philox(c, (u32)seed, (u32)(seed >> 32));
  __syncwarp();  // all lanes have read the last ones
  halves[lane] = make_uint4(c[0], c[1], c[2], c[3]);
  __syncwarp();
}
