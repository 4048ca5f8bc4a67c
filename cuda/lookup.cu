// Rows, unpacked: one row of +1 and -1 for each index, zeros where the entry is dropped.

// Args: indices (entries,); out (entries, D). GROUP = 4 where D is a multiple of 4: a thread writes 4 columns, else one.
template <class I, int OUT, int GROUP>
__global__ void __launch_bounds__(256)
    lookup(const u32 *__restrict__ table, const I *__restrict__ indices, void *__restrict__ out, i64 entries, u32 width,
           u32 dim, i64 rows, i64 padding, int policy, u64 *record, int *raised) {
  const u64 t = thread_number();
  if (t >= (u64)entries * (dim / GROUP)) return;
  u64 entry;
  u32 group;
  divide(t, dim / GROUP, entry, group);
  const u32 column = group * GROUP;
  const Reading reading = {rows, padding, policy};
  bool outside = false;
  const I index = __ldg(indices + entry), row = row_of(index, reading, outside);
  if (outside && column == 0) report(record, raised, KIND_INDEX, entry, (i64)index, rows);
  const bool kept = row >= 0;
  const u32 bits = kept ? __ldg(table + row_start(row, width) + column / 32u) >> (column % 32u) : 0u;
  float v[4];
#pragma unroll
  for (int j = 0; j < GROUP; j++) v[j] = kept ? sign_of(bits, (u32)j) : 0.0f;
  if (GROUP == 4) {
    store_four<OUT>(out, entry * dim + column, v[0], v[1], v[2], v[3]);
  } else {
    store_element<OUT>(out, entry * dim + column, v[0]);
  }
}

// Bits as bytes 0 and 1, what torch takes for bool: (lines, W) words to (lines, D).
__global__ void __launch_bounds__(256)
    unpack(const u32 *__restrict__ words, u8 *__restrict__ out, i64 lines, u32 width, u32 dim) {
  const u64 t = thread_number();
  if (t >= (u64)lines * dim) return;
  u64 line;
  u32 column;
  divide(t, dim, line, column);
  out[t] = (u8)((__ldg(words + line * width + column / 32u) >> (column % 32u)) & 1u);
}
