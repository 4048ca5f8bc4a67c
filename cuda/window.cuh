// A warp's part of a step: 32 neighbouring places of the sorted occurrences, and the rows that have their first place among
// the first `span` of them. Those rows are numbered; what belongs to row n is with lane n.
#define WORDS 8  // of rows, that a warp works at together: TILE of each of WORDS / TILE rows

template <class R> struct Window {
  i64 first;       // place
  Places at;       // what place `first` + lane holds
  u32 count;       // rows
  bool goes_on;    // the last row, behind the window
  R row;           // row `lane`; the last where there are fewer
  u32 begin, size; // the lane that has its first occurrence, and how many are here

  __device__ __forceinline__ i64 place() const { return first + begin; }
};

// The number of the n-th bit that is set, counted from 0; 31 where there are fewer.
__device__ __forceinline__ u32 bit_number(u32 bits, u32 n) {
  u32 found = 0u;
#pragma unroll
  for (u32 half = 16u; half > 0u; half /= 2u) {
    const u32 below = (u32)__popc(bits >> found & ((1u << half) - 1u));
    if (n >= below) {
      n -= below;
      found += half;
    }
  }
  return found;
}

// All lanes must call. row_count: V.
template <class R>
__device__ __forceinline__ Window<R> look(const Occurrences<R> &all, i64 first, u32 span, i64 row_count) {
  const u32 lane = threadIdx.x & 31u;
  Window<R> w;
  w.first = first;
  const R here = first + lane < all.total ? all.rows[first + lane] : (R)-1;
  R before = __shfl_up_sync(WHOLE_WARP, here, 1u);
  if (lane == 0u) before = first > 0 ? all.rows[first - 1] : (R)-1;
  const bool differs = here != before, named = here >= 0 && (i64)here < row_count;
  const u32 changes = __ballot_sync(WHOLE_WARP, differs);
  const u32 starts = __ballot_sync(WHOLE_WARP, differs && named && lane < span);
  w.count = (u32)__popc(starts);
  w.begin = bit_number(starts, lane);
  const u32 behind = changes & ~((2u << w.begin) - 1u);
  w.size = lane < w.count ? (behind ? (u32)__ffs((int)behind) - 1u : 32u) - w.begin : 0u;
  w.row = __shfl_sync(WHOLE_WARP, here, (int)w.begin);
  const R last = __shfl_sync(WHOLE_WARP, w.row, (int)(w.count ? w.count - 1u : 0u));
  w.goes_on = w.count > 0u && __shfl_sync(WHOLE_WARP, here, 31) == last;
  if (lane >= w.count) w.row = last;
  // Behind the span, what the last row has of it.
  fetch(w.at, all, first + lane, named && (lane < span || here == last));
  return w;
}

// The values of row `number` of those in `of_rows`, and back: registers have no index, so all are gone through.
template <int TILE> __device__ __forceinline__ void take(float *of_row, const float *of_rows, u32 number) {
#pragma unroll
  for (u32 s = 0u; s < WORDS; s++) {
    if (s < TILE || s / TILE == number) of_row[s % TILE] = of_rows[s];
  }
}

template <int TILE> __device__ __forceinline__ void put(float *of_rows, const float *of_row, u32 number) {
#pragma unroll
  for (u32 s = 0u; s < WORDS; s++) {
    if (s / TILE == number) of_rows[s] = of_row[s % TILE];
  }
}

// Adds what the window has of rows `from` to `from` + WORDS / TILE - 1, in a form for each of the two cases: where
// gradients are all there is, those of all rows are under way at once.
template <class R, int TILE>
__device__ __forceinline__ void add_gradients(float *g, const Occurrences<R> &all, const Window<R> &window, u32 from,
                                              u32 word) {
  constexpr u32 AT_ONCE = WORDS / TILE;
  u32 begin[AT_ONCE], size[AT_ONCE], most = 0u;
#pragma unroll
  for (u32 j = 0u; j < AT_ONCE; j++) {
    begin[j] = __shfl_sync(WHOLE_WARP, window.begin, (int)(from + j));
    size[j] = __shfl_sync(WHOLE_WARP, window.size, (int)(from + j));
    most = most > size[j] ? most : size[j];
  }
#pragma unroll 1
  for (u32 i = 0u; i < most; i++) {
#pragma unroll
    for (u32 j = 0u; j < AT_ONCE; j++) {
      add_one<R, TILE, true>(g + j * TILE, all, window.at, (begin[j] + i) & 31u, i < size[j], word, false, 1.0f);
    }
  }
}

template <class R, int TILE>
__device__ __forceinline__ void add_products(float *g, const Occurrences<R> &all, const Window<R> &window, u32 from,
                                             u32 word, const float *scale) {
#pragma unroll 1
  for (u32 j = 0u; j < WORDS / TILE; j++) {
    const u32 begin = __shfl_sync(WHOLE_WARP, window.begin, (int)(from + j));
    const u32 size = __shfl_sync(WHOLE_WARP, window.size, (int)(from + j));
    const R row = __shfl_sync(WHOLE_WARP, window.row, (int)(from + j));
    const float factor = scale ? scale[row] : 1.0f;
    float sum[TILE];
#pragma unroll
    for (int k = 0; k < TILE; k++) sum[k] = 0.0f;
#pragma unroll 1
    for (u32 i = begin; i < begin + size; i++) {
      add_one<R, TILE, false>(sum, all, window.at, i, true, word, scale != 0, factor);
    }
    put<TILE>(g, sum, j);
  }
}

// The place behind the last of `row`, which has place `first`. Lanes try 32 places at once; all must call.
template <class R> __device__ __forceinline__ i64 end_of(const Occurrences<R> &all, R row, i64 first) {
  i64 left = all.total - first;  // the last is among so many
  while (left > 1) {
    const i64 step = (left + WARP - 1) / WARP, ahead = (i64)(threadIdx.x & 31u) * step;
    const bool mine = ahead < left && all.rows[first + ahead] == row;
    const i64 passed = (i64)(__popc(__ballot_sync(WHOLE_WARP, mine)) - 1) * step;
    first += passed;
    left = left - passed < step ? left - passed : step;
  }
  return first + 1;
}

// Adds what run_sums.cu gave for the runs of `row` but the first, which begins at `first`. Their number is found before, so
// that several are under way at once: a row that half of a batch names has thousands.
template <class R, int TILE>
__device__ __forceinline__ void add_runs(float *sum, const Occurrences<R> &all, R row, i64 first, u32 word,
                                         const float *__restrict__ sums) {
  const u32 column = word * 32u + (threadIdx.x & 31u);
  const u32 runs = (u32)((end_of(all, row, first) - first - 1) / RUN);  // behind the first
  const float *line = sums + (u64)(first / RUN + 1) * all.dim + column;
#pragma unroll(TILE < 8 ? 16 / TILE : 4)
  for (u32 n = 0u; n < runs; n++) {
#pragma unroll
    for (int k = 0; k < TILE; k++) sum[k] = sum[k] + (column + k * 32u < all.dim ? __ldg(line + k * 32) : 0.0f);
    line += all.dim;
  }
}

// The summed gradients of rows `from` to `from` + WORDS / TILE - 1: TILE words from `word` on of each, this lane's
// column of each. `scale`: (V,) or null. `sums`: what run_sums.cu gave. All lanes must call.
template <class R, int TILE>
__device__ __forceinline__ void row_gradients(float *g, const Occurrences<R> &all, const Window<R> &window, u32 from,
                                              u32 word, const float *scale, const float *sums, float by) {
#pragma unroll
  for (int s = 0; s < WORDS; s++) g[s] = 0.0f;
  if (all.weights || all.counts || all.columns || scale) {
    add_products<R, TILE>(g, all, window, from, word, scale);
  } else {
    add_gradients<R, TILE>(g, all, window, from, word);
  }
  if (window.goes_on && window.count - from <= WORDS / TILE) {
    const int last = (int)window.count - 1;
    const R row = __shfl_sync(WHOLE_WARP, window.row, last);
    const float factor = scale ? scale[row] : 1.0f;
    const i64 place = __shfl_sync(WHOLE_WARP, window.place(), last), seen = window.first + WARP;
    float sum[TILE];
    take<TILE>(sum, g, (u32)last - from);
    const int more = add_run<R, TILE>(sum, all, row, seen, place + RUN, word, scale != 0, factor);
    if (seen + more == place + RUN) add_runs<R, TILE>(sum, all, row, place, word, sums);
    put<TILE>(g, sum, (u32)last - from);
  }
#pragma unroll
  for (int s = 0; s < WORDS; s++) g[s] = g[s] * by;
}
