// The ceiling: fetches every row of every bag, XORs its words, writes one row a bag. What reduces bags of packed rows
// cannot do less. The row `distance` entries ahead is prefetched: into L1 where near < 0, else into L2 and, where near > 0,
// into L1 when it is `near` entries ahead. A distance of 0 leaves that to the processor.
#include <stdint.h>

typedef uint32_t words1 __attribute__((aligned(4), may_alias));
typedef uint64_t words2 __attribute__((aligned(4), may_alias));
typedef uint32_t words4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t words8 __attribute__((vector_size(32), aligned(4), may_alias));

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#define GATHER(TYPE, ZERO)                                                                                      \
    static void gather_##TYPE(const TYPE* table, const int64_t* indices, int64_t first, int64_t last,           \
                              int64_t total, int64_t length, int64_t distance, int64_t near, TYPE* out) {       \
        for (int64_t b = first; b < last; b++) {                                                                \
            const int64_t* bag = indices + b * length;                                                          \
            TYPE sum = ZERO;                                                                                    \
            int64_t ahead = distance ? least(length, total - b * length - distance) : 0;                        \
            int64_t i = 0;                                                                                      \
            for (; i < ahead; i++) {                                                                            \
                if (near < 0) {                                                                                 \
                    __builtin_prefetch(table + bag[i + distance], 0, 3);                                        \
                } else {                                                                                        \
                    __builtin_prefetch(table + bag[i + distance], 0, 2);                                        \
                    if (near) __builtin_prefetch(table + bag[i + near], 0, 3);                                  \
                }                                                                                               \
                sum ^= table[bag[i]];                                                                           \
            }                                                                                                   \
            for (; i < length; i++) sum ^= table[bag[i]];                                                       \
            out[b] = sum;                                                                                       \
        }                                                                                                       \
    }

GATHER(words1, 0)
GATHER(words2, 0)
GATHER(words4, (words4){0})
GATHER(words8, (words8){0})

static void gather_any(const uint32_t* table, const int64_t* indices, int64_t first, int64_t last, int64_t total,
                       int64_t length, int64_t distance, uint32_t* out, int64_t width) {
    for (int64_t b = first; b < last; b++) {
        uint32_t* sum = out + b * width;
        for (int64_t w = 0; w < width; w++) sum[w] = 0;
        for (int64_t i = b * length; i < (b + 1) * length; i++) {
            if (distance && i + distance < total) {
                const uint32_t* next = table + indices[i + distance] * width;
                for (int64_t w = 0; w < width; w += 16) __builtin_prefetch(next + w, 0, 3);
            }
            const uint32_t* row = table + indices[i] * width;
            for (int64_t w = 0; w < width; w++) sum[w] ^= row[w];
        }
    }
}

void gather(const void* table, const int64_t* indices, int64_t bags, int64_t length, int64_t width, void* out,
            int64_t distance, int64_t near, int64_t threads) {
    int64_t total = bags * length;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)
    for (int64_t t = 0; t < threads; t++) {
        int64_t first = bags * t / threads, last = bags * (t + 1) / threads;
        switch (width) {
            case 1: gather_words1(table, indices, first, last, total, length, distance, near, out); break;
            case 2: gather_words2(table, indices, first, last, total, length, distance, near, out); break;
            case 4: gather_words4(table, indices, first, last, total, length, distance, near, out); break;
            case 8: gather_words8(table, indices, first, last, total, length, distance, near, out); break;
            default: gather_any(table, indices, first, last, total, length, distance, out, width);
        }
    }
}
