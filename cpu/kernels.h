// What one instruction set provides: a row of the dispatch table.
#pragma once

#include "packedbag.h"

namespace packedbag {

// Buffers come from NumPy and torch at any alignment.
typedef uint32_t Word __attribute__((aligned(1), may_alias));
typedef int32_t Index32 __attribute__((aligned(1), may_alias));
typedef int64_t Index64 __attribute__((aligned(1), may_alias));
typedef float Float __attribute__((aligned(1), may_alias));
typedef uint16_t Half __attribute__((aligned(1), may_alias));

// The same for templates, which would drop the alignment from a type they are given as an argument.
struct Indices32 {
    const Index32* at;
    explicit Indices32(const void* p) : at(static_cast<const Index32*>(p)) {}
    int64_t operator[](int64_t i) const { return at[i]; }
};
struct Indices64 {
    const Index64* at;
    explicit Indices64(const void* p) : at(static_cast<const Index64*>(p)) {}
    int64_t operator[](int64_t i) const { return at[i]; }
};

// Rows of more columns need a buffer from the heap for their summed gradients.
constexpr int64_t STEP_COLUMNS = 2048;

// A distinct row of a step. `gradient`: the row of grad_out that is its gradient, or ~u where that is still to be
// summed for the step's row u.
struct Visit {
    int64_t row, gradient;
};

// Whether the sums are of gradients without factors of their own.
inline bool plain(const pb_sum_rows_args& args) {
    return !(args.weights || args.scale || args.counts || args.columns);
}

struct BagCall : pb_bag_args {
    int64_t width;  // W
    int64_t total;  // indices that lie in bags
    bool fetches;   // rows are prefetched: the table is more than a core's cache holds
};

// How one thread scans a run of rows; `query` and rows have `width` words, whose last one counts under `tail`. `fetch`:
// rows come from memory, as for the first query of a block.
struct ScanKernels {
    void (*distances)(const Word* rows, int64_t count, int64_t width, const Word* query, uint32_t tail, bool fetch,
                      int32_t* out);
    // The first of distances [from, count) that is below `limit`, or `count`.
    int64_t (*below)(const int32_t* distances, int64_t from, int64_t count, int32_t limit);
};

// Each function does [first, last) of its bags or rows, for one thread, and calls nothing that allocates
// except `bag` for tables wider than its stack buffers.
struct Kernels {
    const char* name;
    int (*usable)();
    int64_t (*bag)(const BagCall&, int64_t first, int64_t last);
    void (*sum_rows)(const pb_sum_rows_args&, int64_t first, int64_t last);
    void (*row_dot)(const pb_row_dot_args&, int64_t first, int64_t last);
    void (*counter_update)(const pb_counter_update_args&, int64_t first, int64_t last);
    void (*counter_step)(const pb_counter_step_args&, const Visit* visits, int64_t first, int64_t last, float* wide);
    ScanKernels scan;
};

// The row `isa` of the table in dispatch.cpp.
const Kernels& kernels(int64_t isa);

}  // namespace packedbag
