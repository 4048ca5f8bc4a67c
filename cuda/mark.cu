// What backward keeps of a batch: for each entry its row, or V where it is dropped, and its bag; for each bag how many
// entries were kept. Nothing is left out, so that no size depends on values: the host need not wait for the device.

// Args: indices, offsets, bags, length, rows, padding, policy: as in bag.cu; total: how many indices there are.
//   lanes: of a group that goes through a bag together, a power of two up to 32.
//   row_out, bag_out (total,); counts (bags,).
//   bad (2,): the first is NaN where bag_ends.cu found wrong offsets, whose bags may overlap: then all entries stay as
//   they are, which is dropped. The second becomes NaN for that, and for what RAISE refuses.
template <class I, class R>
__global__ void __launch_bounds__(128, 4)
    mark(const I *__restrict__ indices, const i64 *__restrict__ offsets, R *__restrict__ row_out,
         i64 *__restrict__ bag_out, float *__restrict__ counts, u32 *bad, i64 bags, i64 length, i64 total, i64 rows,
         i64 padding, int policy, int lanes) {
  const i64 bag = (i64)(thread_number() / (u32)lanes);
  const u32 lane = threadIdx.x & (u32)(lanes - 1), lane_of_warp = threadIdx.x & 31u;
  const Reading reading = {rows, padding, policy};
  // With offsets, one more group has what lies behind the last bag, and drops it.
  const bool wrong = offsets && bad[0] != 0u, whole = bag < bags && !wrong, behind = offsets && bag == bags && !wrong;
  i64 begin = 0, end = 0;
  if (whole) {
    begin = offsets ? __ldg(offsets + bag) : bag * length;
    end = offsets ? __ldg(offsets + bag + 1) : begin + length;
  } else if (behind) {
    begin = __ldg(offsets + bags);
    end = total;
  }
  int kept = 0;
  bool refused = wrong;
  for (i64 i = begin + lane; i < end; i += lanes) {
    bool outside = false;
    const I row = whole ? row_of(__ldg(indices + i), reading, outside) : (I)-1;
    refused |= outside;
    kept += row >= 0;
    row_out[i] = row >= 0 ? (R)row : (R)rows;
    bag_out[i] = whole ? bag : 0;
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    kept += __shfl_xor_sync(WHOLE_WARP, kept, distance);
  }
  if (bag < bags && lane == 0) counts[bag] = (float)kept;
  if (__any_sync(WHOLE_WARP, refused) && lane_of_warp == 0) atomicOr(bad + 1, NOT_A_NUMBER);
}
