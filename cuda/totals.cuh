// What a table's updates add up to, 64-bit each: packedbag/core/totals.py. Integers, so the order of additions is free.
//   FLIPS: of weights.   ROWS: updated.   STEP_ROWS, STEP_BITS: of the last step, rows with a statistic, and the sum of
//   these as integers.   FOLDS: steps folded into TYPICAL, the bits of a float: the typical statistic.
enum { FLIPS = 0, ROWS = 1, STEP_ROWS = 2, STEP_BITS = 3, FOLDS = 4, TYPICAL = 5 };
#define MEMORY 100

__device__ __forceinline__ float typical_statistic(const u64 *totals) { return __uint_as_float((u32)totals[TYPICAL]); }

// Takes the last step's statistics into the typical one. One thread calls, between two steps.
__device__ __forceinline__ void fold(u64 *totals) {
  const u64 rows = totals[STEP_ROWS];
  if (rows == 0) return;
  const float mean = __uint_as_float((u32)(totals[STEP_BITS] / rows)), old = typical_statistic(totals);
  const u64 folds = totals[FOLDS] + 1;
  const float now = old + (mean - old) / (float)(folds < MEMORY ? folds : MEMORY);
  totals[FOLDS] = folds;
  totals[TYPICAL] = __float_as_uint(now);
  totals[STEP_ROWS] = totals[STEP_BITS] = 0;
}
