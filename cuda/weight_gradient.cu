// Gradients of per-sample weights: dot(gradient of the bag, +-row) * scale / count. A warp has one entry.

// Args: row, bag (N,), as mark.cu gives them: V is a dropped entry, whose result is 0; gradient (bags, D);
//   scale (V,) or null; counts (bags,) or null.
template <class R>
__global__ void __launch_bounds__(128, 4)
    weight_gradient(const u32 *__restrict__ table, const R *__restrict__ row, const i64 *__restrict__ bag,
                    const float *__restrict__ gradient, const float *__restrict__ scale,
                    const float *__restrict__ counts, float *__restrict__ out, i64 entries, u32 width, u32 dim,
                    i64 rows) {
  const i64 entry = (i64)(thread_number() / 32u);
  if (entry >= entries) return;
  const u32 lane = threadIdx.x & 31u;
  const R r = row[entry];
  if ((i64)r >= rows) {
    if (lane == 0) out[entry] = 0.0f;
    return;
  }
  const u64 line = (u64)bag[entry] * dim;
  float sum = 0.0f;
  for (u32 word = 0; word < width; word++) {
    const u32 column = word * 32u + lane;
    const u32 bits = __ldg(table + row_start(r, width) + word);
    sum = sum + (column < dim ? times_sign(__ldg(gradient + line + column), bits, lane) : 0.0f);
  }
  float result = sum_of_lanes(sum);
  if (scale) result = result * __ldg(scale + r);
  if (counts) result = result / __ldg(counts + bag[entry]);
  if (lane == 0) out[entry] = result;
}
