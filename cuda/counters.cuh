// k-bit counters: the rule by which a row changes. Float operations stand one by one, each rounded (--fmad=false).
enum { PLAIN = 0, EMA = 1, ADAGRAD = 2 };
#define LARGEST 3.402823466e38f
#define EPSILON 1e-8f
#define MOST 0.125f  // of a confidence is lost at a touch at most

// The row's statistic S after this touch, from the mean of squares of its gradient; `state` becomes its new state word.
__device__ __forceinline__ float touch(u32 &state, float mean, int adaptivity, u32 random) {
  const u32 code = touched(state & TOUCHES, random), averaged = code < 100u ? code : 100u;  // codes to 128 are exact
  const float old = __uint_as_float(state & ~TOUCHES);
  const float q = mean < LARGEST ? mean : LARGEST;
  const float added = old + q;
  const float now = adaptivity == EMA ? old + (q - old) / (float)averaged : (added < LARGEST ? added : LARGEST);
  state = (__float_as_uint(now) & ~TOUCHES) | code;
  return now;
}

// The part of its counters' distance to a flip that a row loses: decay falls due at each of `step` + 1 steps, but is
// only done when the row is touched. `root`: what its gradients are divided by.
__device__ __forceinline__ float shrink_of(float statistic, float root, u32 code, float decay, float typical,
                                           u32 step) {
  const float overdue = (float)((u64)step + 1u) / (float)touches_of(code);
  const float due = decay * sqrtf(typical) * overdue / root;
  return statistic > 0.0f ? (due > MOST ? MOST : due) : 0.0f;
}

// x, rounded to an integer by 16 random bits, at most 2^bits in size; 0 where it is NaN.
__device__ __forceinline__ int rounded_step(float x, u32 random, int bits) {
  const float most = (float)(1 << bits), size = fabsf(x);
  const float taken = size < most ? size : (size >= most ? most : 0.0f);
  const float whole = truncf(taken);
  const int n = (int)whole + ((float)random + 0.5f < 65536.0f * (taken - whole) ? 1 : 0);
  return x < 0.0f ? -n : n;
}

// A counter of so many bits, moved by -x.
__device__ __forceinline__ int moved(int v, float x, u32 random, int bits) {
  const int half = 1 << (bits - 1);
  v -= rounded_step(x, random, bits);
  return v < -half ? -half : (v > half - 1 ? half - 1 : v);
}

// What a lane's counter decays toward, its sign turned. Exact: `spacing` is a multiple of 1/32.
__device__ __forceinline__ float rest_of(u32 lane, float spacing, u32 group) {
  return 0.5f - spacing * ((float)(lane % group) - 0.5f * (float)(group - 1u));
}

// As `update_word`, of counters that have `columns` neighbouring columns each, a power of two: `number` = v + half is
// written out in their bits, the highest in the words, the others in the planes, the lowest in plane 0. The 32 counters
// lie in `columns` words, and in as many times k - 1 of the planes; of the last of a row, `left` exist.
__device__ __forceinline__ u32 update_joined(u32 *words, u32 *planes, float x, float shrink, u32 random, int bits,
                                             u32 columns, u32 left, u32 lane) {
  const u32 each = 32u / columns, digit = (1u << columns) - 1u, word = lane / each, shift = lane % each * columns;
  const int half = 1 << (bits * (int)columns - 1);
  u32 *const mine = planes + word * (u32)(bits - 1);
  const bool exists = lane < left;
  u32 number = 0u, old = 0u;
  if (exists) {
    old = words[word] >> shift & digit;
    number = old << (columns * (u32)(bits - 1));
    for (int p = 0; p + 1 < bits; p++) number |= (mine[p] >> shift & digit) << (columns * (u32)p);
  }
  int v = (int)number - half;
  if (shrink != 0.0f) x = x + shrink * ((float)v + 0.5f);
  v = moved(v, x, random, bits * (int)columns);
  number = exists ? (u32)(v + half) : 0u;
  u32 flips = (u32)__popc(old ^ (number >> (columns * (u32)(bits - 1))));
  __syncwarp();  // all lanes have read words and planes
  for (int p = 0; p < bits; p++) {
    u32 layer = (number >> (columns * (u32)p) & digit) << shift;
    for (u32 distance = 1u; distance < each; distance *= 2u) layer |= __shfl_xor_sync(WHOLE_WARP, layer, (int)distance);
    if (exists && shift == 0u) *(p + 1 < bits ? mine + p : words + word) = layer;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) flips += __shfl_xor_sync(WHOLE_WARP, flips, distance);
  return flips;
}

// Moves 32 counters, one a lane, by -x, and by `shrink` of their distance to where they rest. `old` is their word, and
// `mine` of lane p their word of plane p; `planes` are the k - 1 words of confidence, consecutive. `exists`: this lane's;
// where lane 0's does not, none does. All lanes must call. Returns how many bits of the word flipped.
__device__ __forceinline__ u32 update_word(u32 *word, u32 *planes, u32 old, u32 mine, float x, float shrink, float rest,
                                           u32 random, int bits, bool exists, u32 lane) {
  const u32 bit_of_lane = 1u << lane;
  int m = 0;
#pragma unroll
  for (int p = 0; p < 7; p++) {
    if (p % 3 == 0 && p + 1 >= bits) break;  // three at once: those that are not there are 0
    if (__shfl_sync(WHOLE_WARP, mine, p) & bit_of_lane) m |= 1 << p;
  }
  int v = old & bit_of_lane ? m : ~m;
  if (shrink != 0.0f) x = x + shrink * ((float)v + rest);
  v = moved(v, x, random, bits);
  const u32 mask = __ballot_sync(WHOLE_WARP, exists), bit = __ballot_sync(WHOLE_WARP, exists && v >= 0);
  m = exists ? (v >= 0 ? v : ~v) : 0;
  u32 changed = 0u;
#pragma unroll
  for (int p = 0; p < 7; p++) {
    if (p % 3 == 0 && p + 1 >= bits) break;
    const u32 plane = __ballot_sync(WHOLE_WARP, (m & (1 << p)) != 0);
    if (lane == (u32)p) changed = plane;
  }
  if ((mask & 1u) && lane + 1u < (u32)bits) planes[lane] = changed;
  if ((mask & 1u) && lane == 0u) *word = bit;
  return (u32)__popc((old ^ bit) & mask);
}
