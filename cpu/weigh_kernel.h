// Weighted bags: the sum of w * s * (+-1). float32 in runs of 16 rows, two chains of 8, then float64: the
// error stays below 9 * 2^-24 = 5.4e-7 of sum |w s|, half of what DESIGN 2.1 allows.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "count_kernel.h"
#include "lanes.h"

namespace packedbag {
namespace {

constexpr int RUN_ROWS = 16;
// Inside these limits no product loses bits to underflow and no sum of 16 overflows; outside, a run is summed
// in float64, so that the bound holds for every input.
constexpr double LARGEST_FACTOR = 0x1p120, SMALLEST_FACTOR = 0x1p-100;

struct Run {
    const Word* rows[RUN_ROWS];
    double factors[RUN_ROWS];
    int count = 0;
    bool narrow = true;  // float32 will do

    void add(const Word* row, double factor) {
        double size = fabs(factor);
        narrow &= size <= LARGEST_FACTOR && (size >= SMALLEST_FACTOR || size == 0);  // false for NaN
        rows[count] = row;
        factors[count++] = factor;
    }
};

inline void add_run(Run& run, int64_t width, double* totals) {
    if (run.narrow) {
        float factors[RUN_ROWS];
        for (int i = 0; i < run.count; ++i) factors[i] = static_cast<float>(run.factors[i]);
        for (int64_t w = 0; w < width; ++w) {
            Lanes even = zeros(), odd = zeros();
            for (int i = 0; i < run.count; i += 2) {
                even = even + signed_by(run.rows[i][w], splat(factors[i]));
                if (i + 1 < run.count) odd = odd + signed_by(run.rows[i + 1][w], splat(factors[i + 1]));
            }
            alignas(64) float a[BLOCK], b[BLOCK];
            memcpy(a, &even, sizeof a);
            memcpy(b, &odd, sizeof b);
            double* to = totals + w * BLOCK;
            for (int j = 0; j < BLOCK; ++j) to[j] += static_cast<double>(a[j]) + static_cast<double>(b[j]);
        }
    } else {
        for (int i = 0; i < run.count; ++i)
            for (int64_t w = 0; w < width; ++w)
                for (int j = 0; j < BLOCK; ++j)
                    totals[w * BLOCK + j] += run.rows[i][w] >> j & 1 ? run.factors[i] : -run.factors[i];
    }
    run.count = 0;
    run.narrow = true;
}

template <class Index>
int64_t weigh_bags(const BagCall& c, int64_t first, int64_t last) {
    constexpr int64_t NEAR_COLUMNS = 512;
    alignas(64) double near[NEAR_COLUMNS];
    int64_t columns = c.width * BLOCK;
    double* far = columns > NEAR_COLUMNS ? static_cast<double*>(malloc(static_cast<size_t>(columns) * 8)) : nullptr;
    double* totals = far ? far : near;
    if (columns > NEAR_COLUMNS && !far) return PB_OUT_OF_MEMORY;
    const Word* words = static_cast<const Word*>(c.words);
    const Index* indices = static_cast<const Index*>(c.indices);
    const Float* weights = static_cast<const Float*>(c.weights);
    const Float* row_scale = static_cast<const Float*>(c.row_scale);
    for (int64_t bag = first; bag < last; ++bag) {
        int64_t end = begin_of(c, bag + 1), kept = 0;
        memset(totals, 0, static_cast<size_t>(columns) * 8);
        Run run;
        for (int64_t at = begin_of(c, bag); at < end; ++at) {
            if (c.ahead) prefetch(c, indices, at, c.width);
            int64_t row = judge(indices[at], c.num_rows, c.bounds, c.padding);
            if (row == OUTSIDE) {
                free(far);
                return at;
            }
            if (row == DROPPED) continue;
            ++kept;
            double w = weights ? weights[at] : 1.0f, s = row_scale ? row_scale[row] : 1.0f;
            run.add(words + row * c.width, w * s);
            if (run.count == RUN_ROWS) add_run(run, c.width, totals);
        }
        if (run.count) add_run(run, c.width, totals);
        float n = c.mode == PB_MEAN && kept > 0 ? static_cast<float>(kept) : 1.0f;
        for (int64_t column = 0; column < c.dim; column += BLOCK) {
            alignas(64) float values[BLOCK];
            for (int j = 0; j < BLOCK; ++j) values[j] = static_cast<float>(totals[column + j]) / n;
            write_block(c, values, bag, column, least(BLOCK, c.dim - column));
        }
    }
    free(far);
    return PB_DONE;
}

int64_t bag_kernel(const BagCall& c, int64_t first, int64_t last) {
    bool wide = c.index_bytes == 8;
    if (c.weights || c.row_scale) return wide ? weigh_bags<Index64>(c, first, last) : weigh_bags<Index32>(c, first, last);
    return wide ? count_bags<Index64>(c, first, last) : count_bags<Index32>(c, first, last);
}

}  // namespace
}  // namespace packedbag
