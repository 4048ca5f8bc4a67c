// Bags of rows without weights: sum, mean, majority, max. One thread counts one word (32 columns) of one bag; a warp's
// threads have neighbouring words, and write their 1,024 neighbouring outputs together.
enum { COUNT = 0, MAJORITY = 1, MAXIMUM = 2 };  // COUNT is sum and mean

// What one thread has found of its word.
template <int P> struct Found {
  Planes<P> planes;
  u32 any;   // columns with a bit in some row
  int kept;  // entries that were not dropped
};

// A bag, as the thread of one of its words sees it.
template <class I> struct Bag {
  const u32 *column;  // the word of row 0
  u32 row_bytes;
  const I *indices;
  i64 end;
  bool deep, reports;
  u64 *record;
  int *raised;
};

// What is read of a row for an entry.
template <class I> __device__ __forceinline__ u32 word_of(const Bag<I> &bag, I row) {
  return __ldg(row_at(bag.column, row, bag.row_bytes));
}

// Counts entries one by one: those beside which an index lies outside, which is rare.
template <class I, int P, int FAMILY>
__device__ __forceinline__ void count_each(Found<P> &found, const Bag<I> &bag, i64 begin, i64 end,
                                           const Reading &reading) {
#pragma unroll 1
  for (i64 i = begin; i < end; i++) {
    bool outside = false;
    const I index = __ldg(bag.indices + i), row = row_of(index, reading, outside);
    if (outside && bag.reports) report(bag.record, bag.raised, KIND_INDEX, (u64)i, (i64)index, reading.rows);
    if (row < 0) continue;
    const u32 x = word_of(bag, row);
    found.kept++;
    if (FAMILY == MAXIMUM) {
      found.any |= x;
    } else {
      found.planes.add1(x, bag.deep);
    }
  }
}

// Adds the words of N entries, N at most 8.
template <int P, int FAMILY, int N> __device__ __forceinline__ void add(Found<P> &found, const u32 *words, bool deep) {
  if (FAMILY == MAXIMUM) {
#pragma unroll
    for (int j = 0; j < N; j++) found.any |= words[j];
  } else {
    u32 x[8];
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = j < N ? words[j < N ? j : 0] : 0u;
    found.planes.add8(x, deep);
  }
}

// Counts N entries, or the first `left` of them: all indices, then all rows, so that N loads are under way at once.
// Where each index names a row and none is to be left out, nothing stands between the loads. Counts none, and returns
// false, where an index lies outside and that is more than to be dropped.
template <class I, int P, int FAMILY, int N, bool WHOLE>
__device__ __forceinline__ bool count_some(Found<P> &found, const Bag<I> &bag, const I *__restrict__ entries, int left,
                                           const Usual<I> &usual) {
  I row[N];
  u32 x[N];
  bool inside = true;
#pragma unroll
  for (int j = 0; j < N; j++) row[j] = WHOLE || j < left ? __ldg(entries + j) : (I)-1;
#pragma unroll
  for (int j = 0; j < N; j++) inside = inside && (usual.inside(row[j]) || !(WHOLE || j < left));
  if (!inside && !usual.quiet) return false;
  if (WHOLE && inside && usual.padding < 0) {
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = word_of(bag, row[j]);
    found.kept += N;
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) {
      const bool kept = usual.inside(row[j]) && row[j] != usual.padding;
      x[j] = kept ? word_of(bag, row[j]) : 0u;
      found.kept += kept;
    }
  }
  add<P, FAMILY, N>(found, x, bag.deep);
  return true;
}

// Counts the rows of one bag in one word.
template <class I, int P, int FAMILY>
__device__ __forceinline__ void count_rows(Found<P> &found, const Bag<I> &bag, i64 begin, const Reading &reading) {
  const Usual<I> usual(reading);
  i64 next;
#pragma unroll 1
  for (i64 i = begin; i < bag.end; i = next) {
    const i64 left = bag.end - i;
    const I *const entries = bag.indices + i;
    bool done;
    if (left >= 8) {
      next = i + 8;
      done = count_some<I, P, FAMILY, 8, true>(found, bag, entries, 8, usual);
    } else if (left >= 4) {
      next = i + 4;
      done = count_some<I, P, FAMILY, 4, true>(found, bag, entries, 4, usual);
    } else {
      next = bag.end;
      done = count_some<I, P, FAMILY, 4, false>(found, bag, entries, (int)left, usual);
    }
    if (!done) count_each<I, P, FAMILY>(found, bag, i, next, reading);
  }
}

__device__ __forceinline__ float count_value(int ones, int kept, bool mean) {
  const float sum = (float)(2 * ones - kept);
  return mean ? (kept ? sum / (float)kept : 0.0f) : sum;
}

// Writes the 32 words of a warp, the first of which is number `first` of `words`, where D is a multiple of 32: lane
// groups of eight take a word each, four columns a lane.
template <int P, int FAMILY, int OUT>
__device__ __forceinline__ void write_aligned(const Found<P> &found, u32 bits, bool deep, void *out, u64 first,
                                              u64 words, bool mean) {
  const u32 lane = threadIdx.x & 31u, shift = (lane & 7u) * 4u;
#pragma unroll(P > 8 ? 1 : 8)
  for (int r = 0; r < 8; r++) {
    const int source = r * 4 + (int)(lane >> 3);
    float v[4];
    const int kept = FAMILY == MAJORITY ? 1 : __shfl_sync(WHOLE_WARP, found.kept, source);
    if (FAMILY == COUNT) {
      int ones[4] = {0, 0, 0, 0};
      u32 four = 0u;  // four counts of a byte each
#pragma unroll
      for (int k = 0; k < P; k++) {
        if (P > 8 && k >= 8 && !deep) break;
        const u32 nibble = (__shfl_sync(WHOLE_WARP, found.planes.c[k], source) >> shift) & 15u;
        if (k < 8) {
          four += ((nibble * 0x00204081u) & 0x01010101u) << k;
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++) ones[j] += (int)(((nibble >> j) & 1u) << k);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = count_value(ones[j] + (int)((four >> (8 * j)) & 255u), kept, mean);
    } else {
      const u32 nibble = __shfl_sync(WHOLE_WARP, bits, source) >> shift;
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = FAMILY == MAXIMUM && kept == 0 ? 0.0f : sign_of(nibble, (u32)j);
    }
    if (first + source < words) store_four<OUT>(out, (first + source) * 32 + (lane & 7u) * 4u, v[0], v[1], v[2], v[3]);
  }
}

// The same for any D: one word after the other, a column a lane.
template <int P, int FAMILY, int OUT>
__device__ __forceinline__ void write_ragged(const Found<P> &found, u32 bits, bool deep, void *out, u64 first, u64 words,
                                             u32 width, u32 dim, bool mean) {
  const u32 lane = threadIdx.x & 31u;
  for (int r = 0; r < WARP && first + r < words; r++) {
    const int kept = __shfl_sync(WHOLE_WARP, found.kept, r);
    float v;
    if (FAMILY == COUNT) {
      u32 ones = 0u;
#pragma unroll
      for (int k = 0; k < P; k++) {
        if (P > 8 && k >= 8 && !deep) break;
        ones += ((__shfl_sync(WHOLE_WARP, found.planes.c[k], r) >> lane) & 1u) << k;
      }
      v = count_value((int)ones, kept, mean);
    } else {
      v = FAMILY == MAXIMUM && kept == 0 ? 0.0f : sign_of(__shfl_sync(WHOLE_WARP, bits, r) >> lane, 0u);
    }
    u64 bag;
    u32 word;
    divide(first + r, width, bag, word);
    const u32 column = word * 32u + lane;
    if (column < dim) store_element<OUT>(out, bag * dim + column, v);
  }
}

// Args: indices (bags, length), or (N,) with offsets (bags + 1,); out (bags, D), or (bags, W) words for PACKED.
template <class I, int P, int FAMILY, int OUT>
__global__ void __launch_bounds__(128, 4)
    bag(const u32 *__restrict__ table, const I *__restrict__ indices, const i64 *__restrict__ offsets,
        void *__restrict__ out, i64 bags, i64 length, u32 width, u32 dim, i64 rows, i64 padding, int policy, int mean,
        u64 *record, int *raised) {
  const u64 t = thread_number(), words = (u64)bags * width, first = t - (threadIdx.x & 31u);
  if (first >= words) return;  // whole warps leave: those that stay shuffle together
  const Reading reading = {rows, padding, policy};
  Found<P> found;
  found.planes.clear();
  found.any = 0u;
  found.kept = 0;
  u64 number;
  u32 word;
  divide(t < words ? t : 0, width, number, word);
  i64 begin = 0, end = 0;
  if (t < words) {
    begin = offsets ? __ldg(offsets + number) : (i64)number * length;
    end = offsets ? __ldg(offsets + number + 1) : begin + length;
  }
  // The planes from 8 on are of use from 256 entries on, in any bag of the warp.
  const bool deep = P > 8 && __any_sync(WHOLE_WARP, end - begin > 255);
  const Bag<I> one = {table + word, width * 4u, indices, end, deep, word == 0, record, raised};
  count_rows<I, P, FAMILY>(found, one, begin, reading);
  u32 bits = found.any;
  if (FAMILY == MAJORITY) bits = found.planes.at_least(((u32)found.kept + 1u) / 2u, deep);
  if (OUT == PACKED) {
    if (t < words) ((u32 *)out)[t] = bits & column_mask(word, dim);
  } else if (dim % 32u == 0u) {
    write_aligned<P, FAMILY, OUT>(found, bits, deep, out, first, words, mean != 0);
  } else {
    write_ragged<P, FAMILY, OUT>(found, bits, deep, out, first, words, width, dim, mean != 0);
  }
}
