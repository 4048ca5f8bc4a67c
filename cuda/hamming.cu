// Hamming scan: in how many of D columns each row of a table differs from each query. A thread has one row, and eight
// queries of it at once: neighbouring threads read neighbouring rows, each word once for eight queries.
#define QUERIES 8

// Args: table (V, W); queries (count, W); out (count, V).
__global__ void __launch_bounds__(256)
    hamming(const u32 *__restrict__ table, const u32 *__restrict__ queries, int *__restrict__ out, i64 rows, int count,
            u32 width, u32 dim) {
  const u64 row = thread_number();
  if (row >= (u64)rows) return;
  const int first = (int)blockIdx.y * QUERIES;
  int distance[QUERIES];
#pragma unroll
  for (int q = 0; q < QUERIES; q++) distance[q] = 0;
  for (u32 word = 0; word < width; word++) {
    const u32 bits = __ldg(table + row * width + word), mask = column_mask(word, dim);
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
      if (first + q < count) distance[q] += __popc((bits ^ __ldg(queries + (u64)(first + q) * width + word)) & mask);
    }
  }
#pragma unroll
  for (int q = 0; q < QUERIES; q++) {
    if (first + q < count) out[(u64)(first + q) * rows + row] = distance[q];
  }
}
