// k-bit counters: the rule by which a row changes. Float operations stand one by one, each rounded (--fmad=false).
enum { PLAIN = 0, EMA = 1, ADAGRAD = 2 };
#define LARGEST 3.402823466e38f
#define EPSILON 1e-8f

// The row's statistic S after this touch, from the sum of squares of its gradient; `state` becomes its new state word.
__device__ __forceinline__ float touch(u32 &state, float squares, u32 dim, int adaptivity) {
  const u32 before = state & 0xffu, touches = before + 1u < 100u ? before + 1u : 100u;
  const float old = __uint_as_float(state & ~0xffu), mean = squares / (float)dim;
  const float q = mean < LARGEST ? mean : LARGEST;
  const float added = old + q;
  const float now = adaptivity == EMA ? old + (q - old) / (float)touches : (added < LARGEST ? added : LARGEST);
  state = (__float_as_uint(now) & ~0xffu) | touches;
  return now;
}

// x, rounded to an integer by 16 random bits, at most 2^bits in size; 0 where it is NaN.
__device__ __forceinline__ int rounded_step(float x, u32 random, int bits) {
  const float most = (float)(1 << bits), size = fabsf(x);
  const float taken = size < most ? size : (size >= most ? most : 0.0f);
  const float whole = truncf(taken);
  const int n = (int)whole + ((float)random + 0.5f < 65536.0f * (taken - whole) ? 1 : 0);
  return x < 0.0f ? -n : n;
}

// Updates 32 counters, one a lane. `planes` are the k - 1 words of confidence, consecutive. All lanes must call.
__device__ __forceinline__ void update_word(u32 *word, u32 *planes, int step, int bits, u32 mask, u32 lane) {
  const int half = 1 << (bits - 1);
  const u32 old = *word, mine = lane + 1u < (u32)bits ? planes[lane] : 0u;
  int m = 0;
  for (int p = 0; p + 1 < bits; p++) m |= (int)((__shfl_sync(WHOLE_WARP, mine, p) >> lane) & 1u) << p;
  int v = (old >> lane) & 1u ? m : ~m;
  v -= step;
  v = v < -half ? -half : (v > half - 1 ? half - 1 : v);
  const u32 bit = __ballot_sync(WHOLE_WARP, v >= 0) & mask;
  m = v >= 0 ? v : ~v;
  u32 changed = 0u;
  for (int p = 0; p + 1 < bits; p++) {
    const u32 plane = __ballot_sync(WHOLE_WARP, (m >> p) & 1) & mask;
    if (lane == (u32)p) changed = plane;
  }
  if (lane + 1u < (u32)bits) planes[lane] = changed;
  __syncwarp();  // all lanes have read the word
  if (lane == 0) *word = bit;
}
