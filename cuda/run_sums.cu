// Hot rows: rows that occur more than 64 times. Their runs of 64 occurrences, all but the first, are summed here, each
// by a warp of its own, so that a row that half of the batch names does not keep one warp busy for all.
//
// A run starts at a place p of the sorted occurrences. Places p / 64 differ for all runs but the first of their rows:
// runs of one row are 64 apart, and the second run of the next row begins 64 behind its first. So warp s looks after the
// one run, if any, that starts in places 64 s to 64 s + 63, and leaves its sums in line s.

template <class R> __device__ __forceinline__ i64 first_place_of(const R *rows, R row, i64 above) {
  i64 below = -1;  // rows[below] < row <= rows[above]
  while (above - below > 1) {
    const i64 middle = below + (above - below) / 2;
    if (rows[middle] < row) {
      below = middle;
    } else {
      above = middle;
    }
  }
  return above;
}

// Args: as in gradients.cuh; scale (V,) or null; row_count: V; sums (N / 64 rounded up, D).
template <class R>
__global__ void __launch_bounds__(128, 4)
    run_sums(const R *__restrict__ rows, const i64 *__restrict__ order, const i64 *__restrict__ bags,
             const float *__restrict__ gradient, const float *__restrict__ weights, const float *__restrict__ scale,
             const float *__restrict__ counts, const u32 *__restrict__ columns, float *__restrict__ sums, i64 total,
             i64 row_count, u32 width, u32 dim) {
  const i64 window = (i64)(thread_number() / 32u) * RUN;
  if (window >= total || window == 0) return;  // in the first 64 places there are first runs only
  const R row = rows[window];
  if ((i64)row >= row_count || rows[window - 1] != row) return;
  const i64 start = first_place_of(rows, row, window);
  const i64 first = start + (window - start + RUN - 1) / RUN * RUN;
  if (first >= total || rows[first] != row) return;
  const Occurrences<R> all = {rows, order, bags, gradient, weights, counts, columns, total, width, dim};
  const u32 lane = threadIdx.x & 31u;
  const float factor = scale ? scale[row] : 1.0f;
  for (u32 word = 0; word < width; word += 4) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    add_run<R, 4>(sum, all, row, first, first + RUN, word, scale != 0, factor);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const u32 column = (word + k) * 32u + lane;
      if (column < dim) sums[(u64)(window / RUN) * dim + column] = sum[k];
    }
  }
}
