// A step: the gradient of each row that occurs, its statistic, and the update of its counters, in one pass; the summed
// gradient never stands in memory. A warp takes the rows that begin in its window, eight words at a time: TILE of each of
// 8 / TILE rows. What is computed once a row is computed for all of these side by side, each by 4 TILE lanes. Floats are
// added in one fixed order; only the integers of totals.cuh are added atomically.
#define UPDATE_WARPS 4  // of a block
enum { SLOPE, SQUARES, UPDATE };  // a warp's passes over the words of its rows

// How counters move, and how many there are.
struct Rule {
  int bits;
  float rate, threshold, rest;
  u32 width, dim, columns_per_counter, counters, blocks;  // blocks of 32 counters

  __device__ __forceinline__ bool votes() const { return threshold >= 0.0f; }
  __device__ __forceinline__ bool joined() const { return columns_per_counter > 1u; }
};

// The words of rows `from` and following, TILE of each from `word` on, and of lane p their words of plane p.
template <int TILE> struct Image {
  u32 words[WORDS], planes[WORDS];

  template <class R>
  __device__ __forceinline__ void load(const u32 *table, const u32 *confidence, const Rule &rule,
                                       const Window<R> &window, u32 from, u32 word, u32 lane) {
    if (rule.joined()) return;  // reads its own
    const u32 each = (u32)rule.bits - 1u;
#pragma unroll
    for (u32 j = 0u; j < WORDS / TILE; j++) {
      const R row = __shfl_sync(WHOLE_WARP, window.row, (int)(from + j));
      const u32 *const of_row = row_at(table, row, rule.width * 4u) + word;
      const u32 *const of_planes = row_at(confidence, row, rule.width * each * 4u);
#pragma unroll
      for (u32 k = 0u; k < TILE; k++) {
        const bool there = word + k < rule.width;
        words[j * TILE + k] = there ? of_row[k] : 0u;
        planes[j * TILE + k] = there && lane < each ? of_planes[(word + k) * each + lane] : 0u;
      }
    }
  }
};

// What a gradient moves a counter by.
__device__ __forceinline__ float move_of(const Rule &rule, float rate, float gradient) {
  const float x = rate * gradient;
  return rule.votes() ? (fabsf(x) > rule.threshold ? copysignf(rule.rate, x) : 0.0f) : x;
}

// Moves the counters of eight words, and returns how many bits flipped. `rate` and `shrink` are those of the row that a
// lane computes for. All lanes must call.
template <class R, int TILE>
__device__ __forceinline__ u32 update_words(u32 *table, u32 *planes, const Rule &rule, const Window<R> &window,
                                            const Image<TILE> &image, const u16 *halves, const float *g, u32 from,
                                            u32 first_block, float rate, float shrink, u32 lane) {
  const u32 each = (u32)rule.bits - 1u;
  u32 flips = 0u;
#pragma unroll
  for (u32 j = 0u; j < WORDS / TILE; j++) {
    const float r = __shfl_sync(WHOLE_WARP, rate, (int)(j * TILE * 4u));
    const float lost = __shfl_sync(WHOLE_WARP, shrink, (int)(j * TILE * 4u));
    const R row = __shfl_sync(WHOLE_WARP, window.row, (int)(from + j));
    u32 *const words = row_at(table, row, rule.width * 4u) + first_block;
    u32 *const confidence = row_at(planes, row, rule.width * each * 4u) + first_block * each;
#pragma unroll
    for (u32 k = 0u; k < TILE; k++) {
      const u32 s = j * TILE + k, block = first_block + k;
      if (block >= rule.blocks) break;
      const bool exists = from + j < window.count && block * 32u + lane < rule.dim;
      flips += update_word(words + k, confidence + k * each, image.words[s], image.planes[s], move_of(rule, r, g[s]), lost,
                           rule.rest, halves[s * 32u + lane], rule.bits, exists, lane);
    }
  }
  return flips;
}

// The same of counters that have neighbouring columns.
template <class R, int TILE>
__device__ __forceinline__ u32 update_joined_words(u32 *table, u32 *planes, const Rule &rule, const Window<R> &window,
                                                   const u16 *halves, const float *g, u32 from, u32 first_block,
                                                   float rate, float shrink, u32 lane) {
  u32 flips = 0u;
#pragma unroll 1
  for (u32 s = 0u; s < WORDS; s++) {
    const u32 row = from + s / TILE, block = first_block + s % TILE;
    if (row >= window.count || block >= rule.blocks) continue;
    float gradient[1];
    take<1>(gradient, g, s);
    const float r = __shfl_sync(WHOLE_WARP, rate, (int)(s / TILE * TILE * 4u));
    const float lost = __shfl_sync(WHOLE_WARP, shrink, (int)(s / TILE * TILE * 4u));
    const u64 start =
        row_start(__shfl_sync(WHOLE_WARP, window.row, (int)row), rule.width) + block * rule.columns_per_counter;
    flips += update_joined(table + start, planes + start * (u32)(rule.bits - 1), move_of(rule, r, gradient[0]), lost,
                           halves[s * 32u + lane], rule.bits, rule.columns_per_counter, rule.counters - block * 32u, lane);
  }
  return flips;
}

// Args: table (V, W) and planes (V, W, bits - 1), row_state (V,) or null: changed in place. totals: see totals.cuh;
//   added to, TYPICAL read. rows, order, bags, gradient, weights, counts, columns: see gradients.cuh. sums: see
//   run_sums.cu. factor: judge.cu's, or null for 1.
//   Row scales: scale (V,) or null; scale_squares (V,), their squared slopes so far; plain_sums: `sums` without scale.
//   control: see control.cuh, or null: then the step's number is `first_step`. span: sorted places a warp looks at, at
//   most 32. decay: 0 for none. threshold: negative, or gradients vote. spacing, group: packedbag/core/thermometer.py.
//   columns_per_counter: `gradient` has one number a counter. Without row scales, unless it is 1.
//   table_number: its position in the optimizer. first_row, first_column: where a shard begins in its table.
//   mean_squares: of whole rows, by place, where `gradient` has some of their columns; row_state is by place then. Or null.
template <class R, int TILE>
__global__ void __launch_bounds__(UPDATE_WARPS * WARP, TILE == 1 || (TILE == 2 && sizeof(R) == 8) ? 3 : 4)
    row_update(u32 *table, u32 *planes, u32 *row_state, u64 *totals, const R *__restrict__ rows,
               const i64 *__restrict__ order, const i64 *__restrict__ bags, const float *__restrict__ gradient,
               const float *__restrict__ weights, const float *__restrict__ counts, const u32 *__restrict__ columns,
               const float *__restrict__ sums, const float *__restrict__ factor, float *scale, float *scale_squares,
               const float *__restrict__ plain_sums, const i64 *__restrict__ control, i64 total, i64 row_count, u32 span,
               u32 width, u32 dim, u32 columns_per_counter, int bits, float rate, int adaptivity, float decay,
               float threshold, float spacing, u32 group, float scale_rate, u64 seed, u32 first_step, u32 table_number,
               u64 first_row, u32 first_column, const float *__restrict__ mean_squares) {
  constexpr u32 AT_ONCE = WORDS / TILE, LANES = WARP / AT_ONCE;
  __shared__ uint4 drawn[UPDATE_WARPS][WARP];
  const i64 first = (i64)__shfl_sync(WHOLE_WARP, (u32)(thread_number() / 32u), 0) * span;
  if (first >= total || (control && control[REFUSED]) || (factor && factor[1] == 0.0f)) return;
  const u32 lane = threadIdx.x & 31u, step = control ? (u32)control[STEPS] : first_step;
  const u32 counters = dim / columns_per_counter, blocks = (counters + 31u) / 32u;
  const Occurrences<R> all = {rows, order, bags, gradient, weights, counts, columns, total, width, counters};
  const float rest = rest_of(lane, spacing, group);
  const Rule rule = {bits, rate, threshold, rest, width, dim, columns_per_counter, counters, blocks};
  const float by = factor ? factor[0] : 1.0f;
  const u32 random_block = (table_number << 16) + first_column / columns_per_counter / 8u;
  const Window<R> window = look(all, first, span, row_count);
  // Of row `lane`: those of the whole window are asked for at once.
  u32 *const state_of_lane =
      adaptivity == PLAIN ? row_state : row_state + (u64)(mean_squares ? window.place() : (i64)window.row);
  u32 states = 0u;
  if (adaptivity != PLAIN && lane < window.count) states = *state_of_lane;
  u32 flips = 0u, with_statistic = 0u;
  u64 statistics = 0;
#pragma unroll 1
  for (u32 from = 0u; from < window.count; from += AT_ONCE) {
    const u32 number = from + lane / LANES;  // the row that this lane computes for
    const bool writes = number < window.count && lane % LANES == 0u;
    const R row = __shfl_sync(WHOLE_WARP, window.row, (int)number);
    const u64 row_number = first_row + (u64)row;
    Image<TILE> image;
    if (blocks <= TILE) image.load(table, planes, rule, window, from, 0u, lane);
    float g[WORDS], of_rows[AT_ONCE];
    float slope = 0.0f, r = rule.votes() ? 1.0f : rate, shrink = decay < MOST ? decay : MOST;
#pragma unroll 1
    for (int pass = scale ? SLOPE : SQUARES; pass <= UPDATE; pass++) {
      const float *const by_scale = pass == SLOPE ? 0 : scale, *const of_runs = pass == SLOPE ? plain_sums : sums;
      if (pass == UPDATE && adaptivity != PLAIN) {
        const i64 place = first + __shfl_sync(WHOLE_WARP, window.begin, (int)number);
        float mean = sums_of_lanes<AT_ONCE>(of_rows, lane) / (float)counters;
        if (mean_squares && number < window.count) mean = mean_squares[place];
        u32 state = __shfl_sync(WHOLE_WARP, states, (int)number);
        const float statistic = touch(state, mean, adaptivity, mixed(row_number, seed, step, table_number));
        const float root = sqrtf(statistic) + EPSILON;
        r = r / root;
        if (decay > 0.0f) shrink = shrink_of(statistic, root, state & TOUCHES, decay, typical_statistic(totals), step);
        const u32 kept = writes ? state & ~TOUCHES : 0u;
        statistics += kept;
        with_statistic += (u32)__popc(__ballot_sync(WHOLE_WARP, kept != 0u));
        state = __shfl_sync(WHOLE_WARP, state, (int)((lane - from) * LANES & 31u));
        if (lane - from < AT_ONCE && lane < window.count) *state_of_lane = state;
      }
      if (pass != UPDATE) {
#pragma unroll
        for (u32 j = 0u; j < AT_ONCE; j++) of_rows[j] = 0.0f;
      }
#pragma unroll 1
      for (u32 word = 0u; word < blocks; word += TILE) {
        if (blocks > TILE && pass != SQUARES) image.load(table, planes, rule, window, from, word, lane);
        if (pass != UPDATE || blocks > TILE) {
          row_gradients<R, TILE>(g, all, window, from, word, by_scale, of_runs, by);
        }
        if (pass == SLOPE) {  // of the loss by the row's scale, with the bits of the forward pass
#pragma unroll
          for (u32 s = 0u; s < WORDS; s++) {
            of_rows[s / TILE] = of_rows[s / TILE] + times_sign(g[s], image.words[s], lane);
          }
        } else if (pass == SQUARES) {
#pragma unroll
          for (u32 s = 0u; s < WORDS; s++) of_rows[s / TILE] = of_rows[s / TILE] + g[s] * g[s];
        } else {
          draw<TILE>(drawn[threadIdx.x / WARP], seed, row_number, step, random_block, word, lane);
          const u16 *const halves = (const u16 *)drawn[threadIdx.x / WARP];
          if (rule.joined()) {
            flips += update_joined_words<R, TILE>(table, planes, rule, window, halves, g, from, word, r, shrink, lane);
          } else {
            flips += update_words(table, planes, rule, window, image, halves, g, from, word, r, shrink, lane);
          }
        }
      }
      if (pass == SLOPE) slope = sums_of_lanes<AT_ONCE>(of_rows, lane);
    }
    if (scale && writes) {
      const float sum = scale_squares[row] + slope * slope;
      scale_squares[row] = sum;
      scale[row] = scale[row] - scale_rate * slope / (sqrtf(sum) + EPSILON);
    }
  }
  statistics = sum_of_all(statistics);  // the others are the same in all lanes
  const u64 of_rows = lane == ROWS ? window.count : (lane == STEP_ROWS ? with_statistic : statistics);
  const u64 added = lane == FLIPS ? flips : of_rows;
  if (lane <= STEP_BITS && added) atomicAdd(totals + lane, added);
}
