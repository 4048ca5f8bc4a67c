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

// What 32 neighbouring places hold, one a lane.
struct Places {
  i64 occurrence;     // its number
  const float *line;  // its line of `gradient`
  float count;
};

// Fetches what place `place` holds besides its row, where that is `wanted`.
template <class R>
__device__ __forceinline__ void fetch(Places &at, const Occurrences<R> &all, i64 place, bool wanted) {
  at.occurrence = 0;
  at.line = all.gradient;
  at.count = 1.0f;
  if (!wanted) return;
  at.occurrence = all.order[place];
  const i64 bag = all.bags[at.occurrence];
  at.line = all.gradient + bag * all.dim;
  if (all.counts) at.count = all.counts[bag];
}

// Adds the occurrence that lane `source` holds, if there is one, to `sum`: TILE words from `word` on, this lane's column
// of each. PLAIN: it has neither weight nor scale, count nor columns. All lanes must call.
template <class R, int TILE, bool PLAIN>
__device__ __forceinline__ void add_one(float *sum, const Occurrences<R> &all, const Places &at, u32 source,
                                        bool there, u32 word, bool scaled, float scale) {
  const u32 lane = threadIdx.x & 31u, column = word * 32u + lane;
  const float *const line = (const float *)__shfl_sync(WHOLE_WARP, (u64)at.line, (int)source) + column;
  float g[TILE];
#pragma unroll
  for (int k = 0; k < TILE; k++) g[k] = there && column + k * 32u < all.dim ? __ldg(line + k * 32) : 0.0f;
  if (!PLAIN) {
    const i64 number = __shfl_sync(WHOLE_WARP, at.occurrence, (int)source);
    const float n = __shfl_sync(WHOLE_WARP, at.count, (int)source);
    if (!there) return;
    const float w = all.weights ? all.weights[number] : 1.0f;
#pragma unroll
    for (int k = 0; k < TILE; k++) {
      if (all.weights) g[k] = g[k] * w;
      if (scaled) g[k] = g[k] * scale;
      if (all.counts) g[k] = g[k] / n;
      if (all.columns && word + k < all.width) {
        g[k] = (all.columns[(u64)number * all.width + word + k] >> lane) & 1u ? g[k] : 0.0f;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < TILE; k++) sum[k] = sum[k] + g[k];
}

// Adds the occurrences at places `first` to `last` - 1 of row `row`, at most 64 and as many as are the row's, to
// `sum`. Lanes fetch what 32 occurrences need side by side; all lanes must call. Returns how many there were.
template <class R, int TILE>
__device__ __forceinline__ int add_run(float *sum, const Occurrences<R> &all, R row, i64 first, i64 last, u32 word,
                                       bool scaled, float scale) {
  const u32 lane = threadIdx.x & 31u;
  if (last > all.total) last = all.total;
  int found = 0;
#pragma unroll 1
  for (i64 place = first; place < last; place += WARP) {
    Places at;
    const bool mine = place + lane < last && all.rows[place + lane] == row;
    fetch(at, all, place + lane, mine);
    const int here = __popc(__ballot_sync(WHOLE_WARP, mine));  // sorted: these are the first lanes
    if (all.weights || all.counts || all.columns || scaled) {
#pragma unroll 1
      for (int i = 0; i < here; i++) add_one<R, TILE, false>(sum, all, at, i, true, word, scaled, scale);
    } else {
#pragma unroll 4
      for (int i = 0; i < here; i++) add_one<R, TILE, true>(sum, all, at, i, true, word, false, 1.0f);
    }
    found += here;
    if (here < WARP) break;
  }
  return found;
}
