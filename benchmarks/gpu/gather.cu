// The ceiling of a GPU: fetches every row of every bag, XORs its words, writes one row a bag. What reduces bags of packed
// rows cannot do less. A row is read in pieces of VEC words, one load each; SPLIT threads share the entries of a bag;
// FLIGHT loads of a thread are under way at once; STAGED: a block first copies its indices into shared memory.
// Which of these is the fastest depends on the row and on the card, so the host tries them.

template <int VEC> struct Piece;
template <> struct Piece<1> { typedef unsigned int type; };
template <> struct Piece<2> { typedef uint2 type; };
template <> struct Piece<4> { typedef uint4 type; };

__device__ inline void clear(unsigned int& a) { a = 0; }
__device__ inline void clear(uint2& a) { a.x = a.y = 0; }
__device__ inline void clear(uint4& a) { a.x = a.y = a.z = a.w = 0; }

__device__ inline void join(unsigned int& a, const unsigned int& b) { a ^= b; }
__device__ inline void join(uint2& a, const uint2& b) { a.x ^= b.x, a.y ^= b.y; }
__device__ inline void join(uint4& a, const uint4& b) { a.x ^= b.x, a.y ^= b.y, a.z ^= b.z, a.w ^= b.w; }

__device__ inline unsigned int across(unsigned int a, int lane) { return __shfl_xor_sync(0xffffffffu, a, lane); }
__device__ inline uint2 across(uint2 a, int lane) { return make_uint2(across(a.x, lane), across(a.y, lane)); }
__device__ inline uint4 across(uint4 a, int lane) {
    return make_uint4(across(a.x, lane), across(a.y, lane), across(a.z, lane), across(a.w, lane));
}

// Threads of a bag lie next to each other: the pieces of a row innermost, so that they are one access.
// With SPLIT > 1 the host sees to it that a bag's threads are a power of two and at most a warp; with STAGED, that a
// block holds whole bags and has (bags of a block) x length integers of shared memory.
template <int VEC, int SPLIT, int FLIGHT, bool STAGED>
__global__ void gather(const unsigned int* __restrict__ words, const int* __restrict__ indices,
                       unsigned int* __restrict__ out, unsigned int bags, unsigned int length, unsigned int width) {
    typedef typename Piece<VEC>::type piece;
    extern __shared__ int staged[];
    const unsigned int pieces = width / VEC, team = pieces * SPLIT;
    const unsigned long long thread = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long bag = thread / team;
    const unsigned int own = (unsigned int)(thread - bag * team) % pieces;
    const unsigned int first = (unsigned int)(thread - bag * team) / pieces;
    // No early return: every lane takes part in the shuffles below.
    const unsigned int count = bag < bags ? length : 0;
    const int* entries = indices + bag * length;
    if (STAGED) {
        const unsigned int held = blockDim.x / team;
        const unsigned long long begin = (unsigned long long)blockIdx.x * held * length;
        const unsigned long long end = (unsigned long long)bags * length;
        for (unsigned int i = threadIdx.x; i < held * length; i += blockDim.x)
            if (begin + i < end) staged[i] = indices[begin + i];
        __syncthreads();
        entries = staged + threadIdx.x / team * length;
    }
    const piece* table = reinterpret_cast<const piece*>(words) + own;
    piece sum;
    clear(sum);
    unsigned int i = first;
    for (; i + (FLIGHT - 1) * SPLIT < count; i += SPLIT * FLIGHT) {
        piece seen[FLIGHT];
        // No branch stands between these loads: with one, the compiler would wait for a row before it asks for the next.
#pragma unroll
        for (int j = 0; j < FLIGHT; j++) seen[j] = table[(unsigned long long)entries[i + j * SPLIT] * pieces];
#pragma unroll
        for (int j = 0; j < FLIGHT; j++) join(sum, seen[j]);
    }
    for (; i < count; i += SPLIT) join(sum, table[(unsigned long long)entries[i] * pieces]);
#pragma unroll
    for (int s = 1; s < SPLIT; s *= 2) join(sum, across(sum, s * pieces));
    if (first == 0 && bag < bags) reinterpret_cast<piece*>(out)[bag * pieces + own] = sum;
}
