// Sums over the columns of a row, in the order that every backend keeps: lane c has the columns c, 32 + c, ... in this
// order; then lanes are added +16, +8, +4, +2, +1. All lanes get lane 0's result.
__device__ __forceinline__ float sum_of_lanes(float lane_value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    lane_value = lane_value + __shfl_down_sync(WHOLE_WARP, lane_value, (u32)distance);
  }
  return __shfl_sync(WHOLE_WARP, lane_value, 0);
}

// The same of ROWS rows at once, a power of two. Lanes 32 / ROWS * n and the following get the sum of row n. `of_rows`: this
// lane's values; lost.
template <int ROWS> __device__ __forceinline__ float sums_of_lanes(float *of_rows, u32 lane) {
#pragma unroll
  for (u32 distance = 16u, half = ROWS / 2; distance > 0u; distance /= 2u, half /= 2u) {
    const bool upper = (lane & distance) != 0u;
    if (half == 0u) of_rows[0] = of_rows[0] + __shfl_xor_sync(WHOLE_WARP, of_rows[0], (int)distance);
#pragma unroll
    for (u32 n = 0u; n < half; n++) {  // the upper lanes keep the second half of the rows
      const float mine = upper ? of_rows[n + half] : of_rows[n], theirs = upper ? of_rows[n] : of_rows[n + half];
      of_rows[n] = mine + __shfl_xor_sync(WHOLE_WARP, theirs, (int)distance);
    }
  }
  return of_rows[0];
}

__device__ __forceinline__ u64 sum_of_all(u64 lane_value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    lane_value += __shfl_xor_sync(WHOLE_WARP, lane_value, distance);
  }
  return lane_value;
}

// The gradient, or its negative where the bit of this lane is 0.
__device__ __forceinline__ float times_sign(float gradient, u32 word, u32 lane) {
  return ((word >> lane) & 1u) ? gradient : -gradient;
}
