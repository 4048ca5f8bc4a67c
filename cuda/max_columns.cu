// Which columns of each entry receive the gradient of "max": those in which it is the first kept entry of its bag that
// has the bag's maximum. A thread has one word of one bag.

// Args: row (N,), V where the entry is dropped, as mark.cu gives them; columns (N, W), 0 where it is.
template <class R>
__global__ void __launch_bounds__(128, 4)
    max_columns(const u32 *__restrict__ table, const R *__restrict__ row, const i64 *__restrict__ offsets,
                u32 *__restrict__ columns, i64 bags, i64 length, u32 width, u32 dim, i64 rows) {
  const u64 t = thread_number();
  if (t >= (u64)bags * width) return;
  u64 bag;
  u32 word;
  divide(t, width, bag, word);
  const i64 begin = offsets ? __ldg(offsets + bag) : (i64)bag * length;
  const i64 end = offsets ? __ldg(offsets + bag + 1) : begin + length;
  u32 any = 0u;
  for (i64 i = begin; i < end; i++) {
    const R r = row[i];
    if ((i64)r < rows) any |= __ldg(table + row_start(r, width) + word);
  }
  u32 open = column_mask(word, dim);  // columns that nobody has taken
  for (i64 i = begin; i < end; i++) {
    const R r = row[i];
    u32 takes = 0u;
    if ((i64)r < rows) {
      // Where the maximum is -1, the first entry has it as all others do.
      takes = open & (__ldg(table + row_start(r, width) + word) | ~any);
      open &= ~takes;
    }
    columns[(u64)i * width + word] = takes;
  }
}
