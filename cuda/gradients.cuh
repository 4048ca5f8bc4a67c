// The gradient of a row: the sum over its occurrences, which stand side by side once the rows are sorted. The order is
// that of every backend: runs of 64 occurrences, each summed from 0 in order, then the runs in order. Every product is
// rounded before it is added (--fmad=false).
#define RUN 64

// The sorted occurrences and what they contribute; null is 1 for weights and counts, all columns for `columns`.
template <class R> struct Occurrences {
  const R *rows;          // (N,) ascending; V and above: dropped
  const i64 *order;       // (N,) the occurrence at each place
  const i64 *bags;        // (N,) by occurrence: its line of `gradient`
  const float *gradient;  // (B, D)
  const float *weights;   // (N,) by occurrence
  const float *counts;    // (B,)
  const u32 *columns;     // (N, W) by occurrence
  i64 total;
  u32 width, dim;
};

// Adds the occurrences at places `first` to `last` - 1 of row `row`, at most 64 and as many as are the row's, to
// `sum`: TILE words from `word` on, this lane's column of each. `scale` multiplies each where `scaled`. Lanes fetch
// what 32 occurrences need side by side; all lanes must call. Returns how many occurrences there were.
template <class R, int TILE>
__device__ __forceinline__ int add_run(float *sum, const Occurrences<R> &all, R row, i64 first, u32 word, bool scaled,
                                       float scale) {
  const u32 lane = threadIdx.x & 31u;
  int found = 0;
#pragma unroll 1
  for (i64 place = first; place < first + RUN; place += WARP) {
    const bool mine = place + lane < all.total && all.rows[place + lane] == row;
    i64 occurrence = 0, bag = 0;
    float weight = 1.0f, count = 1.0f;
    if (mine) {
      occurrence = all.order[place + lane];
      bag = all.bags[occurrence];
      if (all.weights) weight = all.weights[occurrence];
      if (all.counts) count = all.counts[bag];
    }
    const int here = __popc(__ballot_sync(WHOLE_WARP, mine));  // sorted: these are the first lanes
#pragma unroll 4
    for (int i = 0; i < here; i++) {
      const i64 line = __shfl_sync(WHOLE_WARP, bag, i), number = __shfl_sync(WHOLE_WARP, occurrence, i);
      const float w = __shfl_sync(WHOLE_WARP, weight, i), n = __shfl_sync(WHOLE_WARP, count, i);
#pragma unroll
      for (int k = 0; k < TILE; k++) {
        const u32 column = (word + k) * 32u + lane;
        float g = column < all.dim ? __ldg(all.gradient + line * all.dim + column) : 0.0f;
        if (all.weights) g = g * w;
        if (scaled) g = g * scale;
        if (all.counts) g = g / n;
        if (all.columns && word + k < all.width) {
          g = (all.columns[(u64)number * all.width + word + k] >> lane) & 1u ? g : 0.0f;
        }
        sum[k] = sum[k] + g;
      }
    }
    found += here;
    if (here < WARP) break;
  }
  return found;
}
