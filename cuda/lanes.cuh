// Sums over the columns of a row, in the order that every backend keeps: lane c has the columns c, 32 + c, ... in this
// order; then lanes are added +16, +8, +4, +2, +1. All lanes get lane 0's result.
__device__ __forceinline__ float sum_of_lanes(float lane_value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    lane_value = lane_value + __shfl_down_sync(WHOLE_WARP, lane_value, (u32)distance);
  }
  return __shfl_sync(WHOLE_WARP, lane_value, 0);
}

// The gradient, or its negative where the bit of this lane is 0.
__device__ __forceinline__ float times_sign(float gradient, u32 word, u32 lane) {
  return ((word >> lane) & 1u) ? gradient : -gradient;
}
