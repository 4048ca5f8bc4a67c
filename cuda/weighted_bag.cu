// Weighted bags: the sum, or the mean, of w * s * (+-1) over the entries of a bag. A warp has one word of one bag, a lane
// one of its columns. The lanes first fetch 32 entries side by side, then all of them go through these one by one.
//
// Accuracy: w * s is rounded once, eight terms are summed in float32, the sums of eight in float64: within
// 8 * 2^-24 = 4.8e-7 of the sum of |w * s|. A sum of eight is one operation of float64 for eight of float32, of which
// some cards have 64 times as many.
#define WEIGHTED_WARPS 4

template <class I, int OUT>
__global__ void __launch_bounds__(WARP * WEIGHTED_WARPS, 4)
    weighted_bag(const u32 *__restrict__ table, const I *__restrict__ indices, const i64 *__restrict__ offsets,
                 const float *__restrict__ weights, const float *__restrict__ scale, void *__restrict__ out, i64 bags,
                 i64 length, u32 width, u32 dim, i64 rows, i64 padding, int policy, int mean, u64 *record, int *raised) {
  __shared__ uint2 fetched[WEIGHTED_WARPS][WARP];  // a word of the table, and the bits of its factor
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x / 32u;
  const u64 number = thread_number() / 32u;
  if (number >= (u64)bags * width) return;
  u64 bag;
  u32 word;
  divide(number, width, bag, word);
  const Reading reading = {rows, padding, policy};
  const i64 begin = offsets ? __ldg(offsets + bag) : (i64)bag * length;
  const i64 end = offsets ? __ldg(offsets + bag + 1) : begin + length;
  double total = 0.0;
  int kept = 0;
  for (i64 i = begin; i < end; i += WARP) {
    u32 x = 0u;
    float factor = 0.0f;
    bool here = false;
    if (i + lane < end) {
      bool outside = false;
      const I index = __ldg(indices + i + lane), row = row_of(index, reading, outside);
      if (outside && word == 0) report(record, raised, KIND_INDEX, (u64)(i + lane), (i64)index, rows);
      here = row >= 0;
      if (here) {
        x = __ldg(table + row_start(row, width) + word);
        factor = weights ? __ldg(weights + i + lane) : 1.0f;
        if (scale) factor = factor * __ldg(scale + row);
      }
    }
    kept += __popc(__ballot_sync(WHOLE_WARP, here));
    fetched[warp][lane] = make_uint2(x, __float_as_uint(factor));
    __syncwarp();
    const int count = end - i < WARP ? (int)(end - i) : WARP;
    for (int j = 0; j < count; j += 8) {  // a place behind the last entry holds a factor of 0
      float eight = 0.0f;
#pragma unroll
      for (int k = 0; k < 8; k++) {
        const uint2 entry = fetched[warp][j + k];
        eight += __uint_as_float(entry.y ^ (((entry.x >> lane) & 1u) ? 0u : 0x80000000u));
      }
      total += (double)eight;
    }
    __syncwarp();
  }
  const u32 column = word * 32u + lane;
  if (column >= dim) return;
  float value = (float)total;
  if (mean) value = value / (float)(kept ? kept : 1);
  store_element<OUT>(out, bag * dim + column, value);
}
