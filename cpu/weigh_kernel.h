// Weighted bags: the sum of w * s * (+-1). A run of 32 rows is summed in float32: two groups of 16, each in two
// chains of 8, so that no term passes through more than 7 + 1 + 1 additions; runs are summed in float64. With the
// rounding of the product the error stays below 10 * 2^-24 = 6e-7 of sum |w s|; DESIGN 2.1 allows 1e-6.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "count_kernel.h"
#include "lanes.h"

namespace packedbag {
namespace {

constexpr int GROUP_ROWS = 16, RUN_ROWS = 2 * GROUP_ROWS;
// Inside these limits no product loses bits to underflow and no sum of 32 overflows; outside, a run is summed
// in float64, so that the bound holds for every input.
constexpr double LARGEST_FACTOR = 0x1p120, SMALLEST_FACTOR = 0x1p-100;

struct Run {
    const Word* rows[RUN_ROWS];
    double factors[RUN_ROWS];
    float floats[RUN_ROWS];
    int count = 0;
    bool narrow = true;  // float32 will do

    void add(const Word* row, double factor) {
        double size = fabs(factor);
        narrow &= size <= LARGEST_FACTOR && (size >= SMALLEST_FACTOR || size == 0);  // false for NaN
        rows[count] = row;
        floats[count] = static_cast<float>(factor);
        factors[count++] = factor;
    }
};

// The sums of one word's 32 columns over up to GROUP_ROWS rows.
[[gnu::always_inline]] inline Lanes sum_group(const Word* const* rows, const float* factors, int count, int64_t word) {
    Lanes even = zeros(), odd = zeros();
    int i = 0;
#pragma GCC unroll 2
    for (; i + 1 < count; i += 2) {
        even = even + signed_by(rows[i][word], splat(factors[i]));
        odd = odd + signed_by(rows[i + 1][word], splat(factors[i + 1]));
    }
    if (i < count) even = even + signed_by(rows[i][word], splat(factors[i]));
    return even + odd;
}

inline void sum_narrow(const Run& run, int64_t word, float* sums) {
    int first = run.count < GROUP_ROWS ? run.count : GROUP_ROWS;
    Lanes sum = sum_group(run.rows, run.floats, first, word);
    if (run.count > GROUP_ROWS)
        sum = sum + sum_group(run.rows + GROUP_ROWS, run.floats + GROUP_ROWS, run.count - GROUP_ROWS, word);
    memcpy(sums, &sum, sizeof sum);
}

inline void add_run(const Run& run, int64_t width, double* totals) {
    if (run.narrow) {
        for (int64_t w = 0; w < width; ++w) {
            alignas(64) float sums[BLOCK];
            sum_narrow(run, w, sums);
            for (int j = 0; j < BLOCK; ++j) totals[w * BLOCK + j] += static_cast<double>(sums[j]);
        }
        return;
    }
    for (int i = 0; i < run.count; ++i)
        for (int64_t w = 0; w < width; ++w)
            for (int j = 0; j < BLOCK; ++j)
                totals[w * BLOCK + j] += run.rows[i][w] >> j & 1 ? run.factors[i] : -run.factors[i];
}

// Divide by the divisor of a mean (1 for a sum), convert and write.
inline void finish_block(const BagCall& c, const float* sums, float n, int64_t bag, int64_t column) {
    if (n == 1.0f) return write_block(c, sums, bag, column, least(BLOCK, c.dim - column));
    alignas(64) float values[BLOCK];
    for (int j = 0; j < BLOCK; ++j) values[j] = sums[j] / n;
    write_block(c, values, bag, column, least(BLOCK, c.dim - column));
}

template <class Indices>
int64_t weigh_bags(const BagCall& c, int64_t first, int64_t last) {
    constexpr int64_t NEAR_COLUMNS = 512;
    alignas(64) double near[NEAR_COLUMNS];
    int64_t columns = c.width * BLOCK;
    double* far = columns > NEAR_COLUMNS ? static_cast<double*>(malloc(static_cast<size_t>(columns) * 8)) : nullptr;
    double* totals = far ? far : near;
    if (columns > NEAR_COLUMNS && !far) return PB_OUT_OF_MEMORY;
    const Word* words = static_cast<const Word*>(c.words);
    const Indices indices(c.indices);
    const Float* weights = static_cast<const Float*>(c.weights);
    const Float* row_scale = static_cast<const Float*>(c.row_scale);
    for (int64_t bag = first; bag < last; ++bag) {
        int64_t end = begin_of(c, bag + 1), kept = 0, runs = 0;
        Run run;
        for (int64_t at = begin_of(c, bag); at < end; ++at) {
            if (c.ahead) prefetch(c, indices, at, c.width);
            int64_t row = judge(indices[at], c.num_rows, c.bounds, c.padding);
            if (row == OUTSIDE) {
                free(far);
                return at;
            }
            if (row == DROPPED) continue;
            if (run.count == RUN_ROWS) {
                if (runs++ == 0) memset(totals, 0, static_cast<size_t>(columns) * 8);
                add_run(run, c.width, totals);
                run.count = 0;
                run.narrow = true;
            }
            ++kept;
            double w = weights ? weights[at] : 1.0f, s = row_scale ? row_scale[row] : 1.0f;
            run.add(words + row * c.width, w * s);
        }
        float n = c.mode == PB_MEAN && kept > 0 ? static_cast<float>(kept) : 1.0f;
        alignas(64) float sums[BLOCK];
        if (runs == 0 && run.narrow) {
            for (int64_t w = 0; w < c.width; ++w) {
                sum_narrow(run, w, sums);
                finish_block(c, sums, n, bag, w * BLOCK);
            }
            continue;
        }
        if (runs == 0) memset(totals, 0, static_cast<size_t>(columns) * 8);
        add_run(run, c.width, totals);
        for (int64_t w = 0; w < c.width; ++w) {
            for (int j = 0; j < BLOCK; ++j) sums[j] = static_cast<float>(totals[w * BLOCK + j]);
            finish_block(c, sums, n, bag, w * BLOCK);
        }
    }
    free(far);
    return PB_DONE;
}

int64_t bag_kernel(const BagCall& c, int64_t first, int64_t last) {
    bool wide = c.index_bytes == 8;
    if (c.weights || c.row_scale) return wide ? weigh_bags<Indices64>(c, first, last) : weigh_bags<Indices32>(c, first, last);
    return wide ? count_bags<Indices64>(c, first, last) : count_bags<Indices32>(c, first, last);
}

}  // namespace
}  // namespace packedbag
