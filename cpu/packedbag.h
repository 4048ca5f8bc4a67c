// The C ABI of packedbag's CPU kernels: no torch, no Python, no C++ in the interface.
//
// Every function takes one pointer to a block of 8-byte fields, because a ctypes call with twelve arguments
// costs 1.2 us and one with a packed block 0.3 us. Shapes: V rows, D columns (`dim`), W = ceil(D / 32) words
// a row, B bags, K entries, U distinct rows. Buffers are contiguous and need no alignment. Integers are
// already validated; only index values are judged here. A bag has fewer than 2^31 entries: counts and the int32
// output hold no more.
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define PB_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define PB_EXPORT extern "C"
#endif

// Raised with every change of a struct or of a function below; Python refuses another number.
#define PB_ABI_VERSION 7

enum { PB_SUM = 0, PB_MEAN = 1, PB_MAJORITY = 2, PB_MAX = 3 };
enum { PB_FLOAT32 = 0, PB_FLOAT16 = 1, PB_BFLOAT16 = 2, PB_INT32 = 3, PB_PACKED = 4 };
enum { PB_RAISE = 0, PB_CLAMP = 1, PB_SKIP = 2, PB_UNCHECKED = 3 };
enum { PB_NO_ADAPTIVITY = 0, PB_EMA = 1, PB_ADAGRAD = 2 };
enum { PB_DONE = -1, PB_OUT_OF_MEMORY = -2 };

typedef struct {
    int64_t isa;  // row of the dispatch table
    const void* words;
    int64_t num_rows, dim;
    const void* indices;
    int64_t index_bytes;  // 4 or 8
    const void* offsets;  // int64 (B + 1), or null: bag b is indices[b * length : (b + 1) * length]
    int64_t bags, length;
    const void* weights;    // float32, one an index, or null
    const void* row_scale;  // float32 (V), or null
    void* out;
    int64_t mode, output, bounds, padding;  // padding -1: none
} pb_bag_args;

typedef struct {
    const void* indices;
    int64_t index_bytes;
    const void* offsets;
    int64_t bags, length, num_rows, bounds, padding;
    void* rows;       // int64, room for every index
    void* positions;  // int64, likewise
    void* ends;       // int64 (B + 1)
} pb_keep_args;

typedef struct {
    const void* words;
    int64_t dim;
    const void* rows;     // int64 (K)
    const void* offsets;  // int64 (B + 1)
    int64_t bags;
    void* out;  // (K, W) words
} pb_max_columns_args;

typedef struct {
    const void* rows;  // int64 (K)
    int64_t count;
    void* distinct;  // int64 (K), U used
    void* starts;    // int64 (K + 1), U + 1 used
    void* order;     // int64 (K)
} pb_merge_args;

typedef struct {
    int64_t isa;
    const void* grad;  // float32 (B, D)
    int64_t dim;
    const void* bags;    // int64 (K)
    const void* order;   // int64 (K)
    const void* starts;  // int64 (U + 1)
    int64_t count;       // U
    const void* weights;  // float32 (K) or null
    const void* scale;    // float32 (U) or null
    const void* counts;   // float32 (B) or null
    const void* columns;  // (K, W) words or null
    double factor;        // a float32
    void* out;            // float32 (U, D)
} pb_sum_rows_args;

typedef struct {
    int64_t isa;
    const void* words;
    int64_t dim;
    const void* rows;  // int64 (K)
    const void* bags;  // int64 (K): the row of grad, or null: entry i takes grad[i]
    int64_t count;     // K
    const void* grad;
    const void* row_scale;  // float32 (V) or null
    const void* counts;     // float32 (B) or null
    void* out;              // float32 (K)
} pb_row_dot_args;

typedef struct {
    int64_t isa;
    void* words;
    void* planes;     // int32 (V, W, bits - 1)
    void* row_state;  // int32 (V), or null without adaptivity
    void* totals;     // int64 (8): packedbag/core/totals.py
    int64_t dim;
    const void* rows;  // int64 (U), distinct
    int64_t count;     // U
    const void* grad;  // float32 (U, D / columns_per_counter)
    int64_t bits;      // of a column
    double rate;  // a float32
    int64_t adaptivity;
    double decay;      // a float32 >= 0
    double threshold;  // a float32: of votes, or negative for counters
    double spacing;    // a multiple of 1/32 in 0..255: packedbag/core/thermometer.py
    int64_t group;     // a power of two, at most 32; 1 where a counter has several columns
    int64_t columns_per_counter;  // p: 1, 2, 4 or 8, p * bits at most 8: packedbag/backends/counter_rule.py
    uint64_t seed;
    int64_t step, table;
    int64_t first_row, first_column;  // where a shard begins in its table; the column is a multiple of 32
    const void* mean_squares;  // float32 (U): of whole rows, where grad has some columns of them; or null. If it is
                               // there, row_state is (U), of `rows`
} pb_counter_update_args;

// The distinct rows of both parts are the same; `sum.out` and `update.grad` are not used.
typedef struct {
    pb_sum_rows_args sum;
    pb_counter_update_args update;
} pb_counter_step_args;

typedef struct {
    int64_t isa;
    const void* words;
    int64_t num_rows, dim;
    const void* queries;  // (Q, W) words; tail bits of these and of rows count for nothing
    int64_t queries_count;
    void* out;  // int32 (Q, V)
} pb_hamming_args;

typedef struct {
    int64_t isa;
    const void* words;
    int64_t num_rows, dim;  // V below 2^40
    const void* queries;    // (Q, W) words
    int64_t queries_count, k;  // k <= V
    void* distances;           // int32 (Q, k), ascending
    void* rows;                // int64 (Q, k); of equal distance the lower first
} pb_nearest_args;

PB_EXPORT int64_t pb_abi_version(void);

// Rows of the dispatch table, best first. `pb_isa_name` is null past the end.
PB_EXPORT const char* pb_isa_name(int64_t isa);
PB_EXPORT int64_t pb_isa_usable(int64_t isa);

// Returns PB_DONE, PB_OUT_OF_MEMORY, or with PB_RAISE the lowest flat position of an index outside the table.
PB_EXPORT int64_t pb_bag(const pb_bag_args* args);
// Returns how many entries are kept.
PB_EXPORT int64_t pb_keep(const pb_keep_args* args);
PB_EXPORT void pb_max_columns(const pb_max_columns_args* args);
// Returns U, or PB_OUT_OF_MEMORY.
PB_EXPORT int64_t pb_merge(const pb_merge_args* args);
PB_EXPORT void pb_sum_rows(const pb_sum_rows_args* args);
PB_EXPORT void pb_row_dot(const pb_row_dot_args* args);
PB_EXPORT void pb_counter_update(const pb_counter_update_args* args);
// Both in one pass. Returns PB_DONE, or PB_OUT_OF_MEMORY before anything has changed.
PB_EXPORT int64_t pb_counter_step(const pb_counter_step_args* args);

PB_EXPORT void pb_hamming(const pb_hamming_args* args);
// Returns PB_DONE or PB_OUT_OF_MEMORY.
PB_EXPORT int64_t pb_nearest(const pb_nearest_args* args);

// Ask the kernel to back the whole pages inside a buffer with huge pages. Returns 1 if it accepted, else 0.
PB_EXPORT int64_t pb_advise_huge_pages(const void* data, int64_t bytes);
// Threads of OpenMP that a call from this thread may use; `pb_set_threads` is omp_set_num_threads.
PB_EXPORT int64_t pb_threads(void);
PB_EXPORT void pb_set_threads(int64_t threads);
