// A step: the gradient of each row that occurs, its statistic, and the update of its counters, in one pass. The warp
// that has the first place of a row takes the row; the summed gradient never stands in memory. Floats are added in one
// fixed order; only the integers of totals.cuh are added atomically.

// The summed gradient of a row in TILE words from `word` on, this lane's column of each. `sums`: what run_sums.cu gave.
template <class R, int TILE>
__device__ __forceinline__ void row_gradient(float *g, const Occurrences<R> &all, R row, i64 place, u32 word, bool scaled,
                                             float scale, const float *sums, float factor) {
  const u32 lane = threadIdx.x & 31u;
#pragma unroll
  for (int k = 0; k < TILE; k++) g[k] = 0.0f;
  if (add_run<R, TILE>(g, all, row, place, word, scaled, scale) == RUN) {
#pragma unroll 1
    for (i64 run = place + RUN; run < all.total && all.rows[run] == row; run += RUN) {
#pragma unroll
      for (int k = 0; k < TILE; k++) {
        const u32 column = (word + k) * 32u + lane;
        if (column < all.dim) g[k] = g[k] + sums[(u64)(run / RUN) * all.dim + column];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < TILE; k++) g[k] = g[k] * factor;
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
__global__ void __launch_bounds__(128, TILE < 8 ? 4 : 3)
    row_update(u32 *table, u32 *planes, u32 *row_state, u64 *totals, const R *__restrict__ rows,
               const i64 *__restrict__ order, const i64 *__restrict__ bags, const float *__restrict__ gradient,
               const float *__restrict__ weights, const float *__restrict__ counts, const u32 *__restrict__ columns,
               const float *__restrict__ sums, const float *__restrict__ factor, float *scale, float *scale_squares,
               const float *__restrict__ plain_sums, const i64 *__restrict__ control, i64 total, i64 row_count, u32 span,
               u32 width, u32 dim, u32 columns_per_counter, int bits, float rate, int adaptivity, float decay, float threshold, float spacing,
               u32 group, float scale_rate, u64 seed, u32 first_step, u32 table_number,
               u64 first_row, u32 first_column, const float *__restrict__ mean_squares) {
  const i64 first = (i64)(thread_number() / 32u) * span;
  if (first >= total || (control && control[REFUSED]) || (factor && factor[1] == 0.0f)) return;
  const u32 lane = threadIdx.x & 31u, step = control ? (u32)control[STEPS] : first_step;
  const u32 counters = dim / columns_per_counter, blocks = (counters + 31u) / 32u;  // of 32 counters
  const Occurrences<R> all = {rows, order, bags, gradient, weights, counts, columns, total, width, counters};
  const float by = factor ? factor[0] : 1.0f;
  const u32 block = (table_number << 16) + first_column / columns_per_counter / 8u;
  const bool votes = threshold >= 0.0f;
  const float rest = rest_of(lane, spacing, group);
  bool starts = lane < span && first + lane < total;
  if (starts) {
    const R mine = rows[first + lane];
    starts = (i64)mine < row_count && !(first + lane > 0 && rows[first + lane - 1] == mine);
  }
  u64 sum_of_field = 0;  // lane f has that of field f
  for (u32 left = __ballot_sync(WHOLE_WARP, starts); left; left &= left - 1u) {
    const i64 place = first + (__ffs((int)left) - 1);
    const R row = rows[place];
    u32 *const words = table + row_start(row, width);
    float g[TILE];
    float old_scale = 1.0f, slope = 0.0f;
    if (scale) {  // the slope of the loss by the row's scale: gradients without it, and the bits of the forward pass
      float sum = 0.0f;
      for (u32 word = 0; word < width; word += TILE) {
        row_gradient<R, TILE>(g, all, row, place, word, false, 1.0f, plain_sums, by);
#pragma unroll
        for (int k = 0; k < TILE; k++) {
          if (word + k < width) sum = sum + times_sign(g[k], words[word + k], lane);
        }
      }
      slope = sum_of_lanes(sum);
      old_scale = scale[row];
    }
    float squares = 0.0f;
    for (u32 word = 0; word < blocks; word += TILE) {
      row_gradient<R, TILE>(g, all, row, place, word, scale != 0, old_scale, sums, by);
#pragma unroll
      for (int k = 0; k < TILE; k++) squares = squares + g[k] * g[k];
    }
    float r = votes ? 1.0f : rate, shrink = decay < MOST ? decay : MOST;
    u32 flips = 0u, kept = 0u;
    if (adaptivity != PLAIN) {
      u32 *const kept_state = row_state + (mean_squares ? (u64)place : (u64)row);
      u32 state = *kept_state;
      const u32 random = mixed(first_row + (u64)row, seed, step, table_number);
      const float mean = mean_squares ? mean_squares[place] : sum_of_lanes(squares) / (float)counters;
      const float statistic = touch(state, mean, adaptivity, random);
      __syncwarp();  // all lanes have read it
      if (lane == 0) *kept_state = state;
      kept = state & ~TOUCHES;
      const float root = sqrtf(statistic) + EPSILON;
      r = r / root;
      if (decay > 0.0f) shrink = shrink_of(statistic, root, state & TOUCHES, decay, typical_statistic(totals), step);
    }
    RandomHalves random;
    for (u32 word = 0; word < blocks; word += TILE) {
      if (blocks > TILE) row_gradient<R, TILE>(g, all, row, place, word, scale != 0, old_scale, sums, by);
      if (word % 8u == 0u) random.draw(seed, first_row + (u64)row, step, block, word, lane);
#pragma unroll
      for (int k = 0; k < TILE; k++) {
        if (word + k < blocks) {
          float x = r * g[k];
          if (votes) x = fabsf(x) > threshold ? copysignf(rate, x) : 0.0f;
          const u32 at = (word + k) * columns_per_counter, drawn = random.of_column((word + k) % 8u, lane);
          u32 *const confidence = planes + (row_start(row, width) + at) * (u32)(bits - 1);
          if (columns_per_counter == 1u) {
            flips += update_word(words + at, confidence, x, shrink, rest, drawn, bits, column_mask(at, dim), lane);
          } else {
            flips += update_joined(words + at, confidence, x, shrink, drawn, bits, columns_per_counter,
                                   counters - (word + k) * 32u, lane);
          }
        }
      }
    }
    sum_of_field += added_to(lane, flips, kept);
    __syncwarp();  // all lanes have read the scale
    if (scale && lane == 0) {
      const float sum = scale_squares[row] + slope * slope;
      scale_squares[row] = sum;
      scale[row] = old_scale - scale_rate * slope / (sqrtf(sum) + EPSILON);
    }
  }
  if (sum_of_field) atomicAdd(totals + lane, sum_of_field);
}
