// Bags of rows without weights: sum, mean, majority, max. One thread counts one word (32 columns) of one bag; a warp's
// threads have neighbouring words, and write their 1,024 neighbouring outputs together.
enum { COUNT = 0, MAJORITY = 1, MAXIMUM = 2 };  // COUNT is sum and mean

// What one thread has found of its word.
template <int P> struct Found {
  Planes<P> planes;
  u32 any;   // columns with a bit in some row
  int kept;  // entries that were not dropped
};

// Counts the rows of one bag in word `word`.
template <class I, int P, int FAMILY>
__device__ __forceinline__ void count_rows(Found<P> &found, const u32 *__restrict__ table, const I *__restrict__ indices,
                                           i64 begin, i64 end, u32 word, u32 width, const Reading &reading, bool deep,
                                           u64 *record, int *raised) {
#pragma unroll 1
  for (i64 i = begin; i < end; i += 8) {
    I row[8];
    u32 x[8];
    bool outside = false;
#pragma unroll
    for (int j = 0; j < 8; j++) {  // all indices, then all rows: eight loads under way at once
      row[j] = i + j < end ? row_of(__ldg(indices + i + j), reading, outside) : (I)-1;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const bool kept = row[j] >= 0;
      x[j] = kept ? __ldg(table + row_start(row[j], width) + word) : 0u;
      found.kept += kept;
    }
    if (FAMILY == MAXIMUM) {
#pragma unroll
      for (int j = 0; j < 8; j++) found.any |= x[j];
    } else {
      found.planes.add8(x, deep);
    }
    if (outside && word == 0) {  // rare: the entries again, one by one
      for (int j = 0; j < 8 && i + j < end; j++) {
        bool this_one = false;
        const I index = __ldg(indices + i + j);
        row_of(index, reading, this_one);
        if (this_one) report(record, raised, KIND_INDEX, (u64)(i + j), (i64)index, reading.rows);
      }
    }
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
  count_rows<I, P, FAMILY>(found, table, indices, begin, end, word, width, reading, deep, record, raised);
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
