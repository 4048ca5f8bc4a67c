// Weighted bags: the sum of w * s * (+-1) = 2 * (the sum where the bit is 1) - (the sum of all w * s), so a row costs one
// masked addition a column instead of a change of sign and an addition.
//
// A run of up to 24 rows is summed in float32, in two chains (even and odd rows) that start at minus the sum of their
// factors f and add 2f where the bit is 1. After each addition a chain holds a sum of +-f over all of its rows, never
// more than F, its sum of |f|. So it errs by u = 2^-24 of F for each of at most 12 additions and for its start; with the
// rounding of the products and of the sum of the chains that is 15 u, with a mean's division 16 u = 9.54e-7 of
// the sum of |w s|; DESIGN 2.1 allows 1e-6. Runs are added in float64.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "count_kernel.h"
#include "lanes.h"

namespace packedbag {
namespace {

constexpr int RUN_ROWS = 24;
// Inside these limits no product loses bits to underflow and no chain overflows; outside, a run is summed
// in float64, so that the bound holds for every input.
constexpr float LARGEST_FACTOR = 0x1p120f, SMALLEST_FACTOR = 0x1p-100f;
// Words of a row whose sums stay in registers at once: two chains of 4 words take 16 of AVX-512's 32 registers.
constexpr int TILE_WORDS = Isa::VECTOR_BYTES == 64 ? 4 : 1;

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

struct Run {
    const Word* rows[RUN_ROWS];
    int64_t entries[RUN_ROWS];
    alignas(64) float twice[RUN_ROWS];  // 2 * weight * scale
    int count;              // of rows
    bool narrow;            // float32 will do
    float starts[2];        // of the chains of even and odd rows
};

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightBits __attribute__((vector_size(32)));
typedef double EightDoubles __attribute__((vector_size(64)));

// From the factors, of which 24 can be read, whatever stands behind the run's: twice of them, whether float32 will do,
// and the starts. The even rows' sum is taken in float64 in a fixed order: (0+8+16) + (4+12+20), (2+10+18) + (6+14+22)
// and then the two; the odd rows' likewise.
inline void settle(Run& run, const Float* factors) {
    const uint32_t low = bits_of(SMALLEST_FACTOR), range = bits_of(LARGEST_FACTOR) - low;
    const EightBits position = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32_t count = static_cast<uint32_t>(run.count);
    EightDoubles sums = {};
    EightBits outside = {};
#pragma GCC unroll 3
    for (uint32_t part = 0; part < RUN_ROWS; part += 8) {
        EightBits bits;
        memcpy(&bits, factors + part, sizeof bits);
        bits &= reinterpret_cast<EightBits>(position + part < count);
        Eight twice = reinterpret_cast<Eight>(bits);
        twice += twice;
        memcpy(run.twice + part, &twice, sizeof twice);
        sums += __builtin_convertvector(twice, EightDoubles);
        // As integers the sizes of floats keep their order, with inf and NaN above all: one comparison for both limits.
        EightBits size = bits & 0x7FFFFFFF;
        outside |= reinterpret_cast<EightBits>(size - low > range) & reinterpret_cast<EightBits>(size != 0);
    }
    uint32_t any = 0;
    for (int j = 0; j < 8; ++j) any |= outside[j];
    run.narrow &= any == 0;
    // From 0, so that no start is -0: then adding 0, where a bit is not set, never changes anything.
    for (int chain = 0; chain < 2; ++chain)
        run.starts[chain] = 0.0f - static_cast<float>(0.5 * ((sums[chain] + sums[chain + 4]) + (sums[chain + 2] + sums[chain + 6])));
}

// Take rows from entry `from` on until the run is full or the bag ends, and move it there; false where it then has a bad index.
template <class Indices, bool Scaled>
[[gnu::noinline]] bool fill(Run& run, const BagCall& c, int64_t& from, int64_t end) {
    const Word* words = static_cast<const Word*>(c.words);
    const Indices indices(c.indices);
    const Float* weights = static_cast<const Float*>(c.weights);
    const Float* row_scale = static_cast<const Float*>(c.row_scale);
    const int64_t width = c.width, num_rows = c.num_rows, bounds = c.bounds, padding = c.padding;
    const Rows table(words, width), scales(row_scale, 1);
    const int64_t first = from;
    int64_t at = first;
    float factors[RUN_ROWS];
    int count = 0;
    bool narrow = true;
    auto take_until = [&](int64_t limit, auto fetches) __attribute__((always_inline)) {
        for (; at < limit && count < RUN_ROWS; ++at) {
            if (fetches) {
                int64_t later = indices[at + FAR], soon = indices[at + NEAR];
                table.ask_far(later), table.ask_near(soon);
                if (Scaled) scales.ask_far(later), scales.ask_near(soon);
            }
            int64_t row = judge(indices[at], num_rows, bounds, padding);
            if (__builtin_expect(row < 0, 0)) {
                if (row == OUTSIDE) return false;
                continue;
            }
            if (Scaled) {
                float weight = weights ? weights[at] : 1.0f, scale = row_scale[row], factor = weight * scale;
                narrow &= factor != 0 || weight == 0 || scale == 0;  // an underflow is not a zero
                factors[count] = factor;
            }
            run.rows[count] = words + row * width;
            run.entries[count++] = at;
        }
        return true;
    };
    bool inside = take_until(fetching_until(c, end), std::true_type{}) && take_until(end, std::false_type{});
    from = at;
    if (!inside) return false;
    run.count = count;
    run.narrow = narrow;
    if (count & 1) run.rows[count] = run.rows[count - 1];  // rows are summed in pairs; this one's factor is 0
    if (!Scaled && count == at - first && first + RUN_ROWS <= c.total) {
        settle(run, weights + first);
        return true;
    }
    for (int i = 0; !Scaled && i < count; ++i) factors[i] = weights[run.entries[i]];
    for (int i = count; i < RUN_ROWS; ++i) factors[i] = 0;
    settle(run, factors);
    return true;
}

// Sums of the columns of Words words from `word` on. A function of its own: inlined, GCC 12 keeps some of the chains in
// memory, and a table in L1 gives 9.3 instead of 10.8 M bags/s (128 columns, 20 rows).
template <int Words>
[[gnu::noinline]] void sum_tile(const Run& run, int64_t word, Float* sums) {
    Lanes even[Words], odd[Words];
#pragma GCC unroll 4
    for (int k = 0; k < Words; ++k) even[k] = splat(run.starts[0]), odd[k] = splat(run.starts[1]);
    for (int i = 0; i < run.count; i += 2) {  // an odd count is followed by a row that adds nothing
        const Word *first = run.rows[i] + word, *second = run.rows[i + 1] + word;
        const Vector one = run.twice[i] - Vector{}, other = run.twice[i + 1] - Vector{};
#pragma GCC unroll 4
        for (int k = 0; k < Words; ++k) add_where(even[k], first + k, one);
#pragma GCC unroll 4
        for (int k = 0; k < Words; ++k) add_where(odd[k], second + k, other);
    }
#pragma GCC unroll 4
    for (int k = 0; k < Words; ++k) store(sums + k * BLOCK, even[k] + odd[k], BLOCK);
}

// The same for at most TILE_WORDS words. Returns how many it did.
inline int64_t sum_words(const Run& run, int64_t word, int64_t words, Float* sums) {
    if (TILE_WORDS >= 4 && words >= 4) return sum_tile<4>(run, word, sums), 4;
    if (TILE_WORDS >= 2 && words >= 2) return sum_tile<2>(run, word, sums), 2;
    return sum_tile<1>(run, word, sums), 1;
}

inline void add_run(const BagCall& c, const Run& run, double* totals) {
    if (run.narrow) {
        alignas(64) float sums[TILE_WORDS * BLOCK];
        for (int64_t w = 0, done; w < c.width; w += done) {
            done = sum_words(run, w, c.width - w, sums);
            for (int64_t j = 0; j < done * BLOCK; ++j) totals[w * BLOCK + j] += static_cast<double>(sums[j]);
        }
        return;
    }
    for (int i = 0; i < run.count; ++i) {
        int64_t row = (run.rows[i] - static_cast<const Word*>(c.words)) / c.width;
        double factor = c.weights ? static_cast<const Float*>(c.weights)[run.entries[i]] : 1.0f;
        if (c.row_scale) factor *= static_cast<double>(static_cast<const Float*>(c.row_scale)[row]);
        for (int64_t w = 0; w < c.width; ++w)
            for (int j = 0; j < BLOCK; ++j) totals[w * BLOCK + j] += run.rows[i][w] >> j & 1 ? factor : -factor;
    }
}

// Sum and write a bag of a single run, all in float32.
inline void write_run(const BagCall& c, const Run& run, int64_t bag) {
    const bool mean = c.mode == PB_MEAN;
    const float n = static_cast<float>(run.count > 0 ? run.count : 1);
    Float* out = static_cast<Float*>(c.out) + bag * c.dim;
    if (c.output == PB_FLOAT32 && !mean && c.dim % BLOCK == 0) {
        for (int64_t w = 0; w < c.width;) w += sum_words(run, w, c.width - w, out + w * BLOCK);
        return;
    }
    alignas(64) float sums[TILE_WORDS * BLOCK];
    for (int64_t w = 0, done; w < c.width; w += done) {
        done = sum_words(run, w, c.width - w, sums);
        for (int64_t j = 0; mean && j < done * BLOCK; ++j) sums[j] /= n;
        for (int64_t k = 0; k < done; ++k)
            write_block(c, sums + k * BLOCK, bag, (w + k) * BLOCK, least(BLOCK, c.dim - (w + k) * BLOCK));
    }
}

// Write a bag that was summed in float64.
inline void write_totals(const BagCall& c, const double* totals, int64_t kept, int64_t bag) {
    double n = c.mode == PB_MEAN && kept > 0 ? static_cast<double>(kept) : 1.0;
    for (int64_t w = 0; w < c.width; ++w) {
        alignas(64) float values[BLOCK];
        for (int j = 0; j < BLOCK; ++j) values[j] = static_cast<float>(totals[w * BLOCK + j] / n);
        write_block(c, values, bag, w * BLOCK, least(BLOCK, c.dim - w * BLOCK));
    }
}

template <class Indices, bool Scaled>
int64_t weigh_bags(const BagCall& c, int64_t first, int64_t last) {
    constexpr int64_t NEAR_COLUMNS = 512;
    alignas(64) double near[NEAR_COLUMNS];
    const int64_t columns = c.width * BLOCK;
    double* far = columns > NEAR_COLUMNS ? static_cast<double*>(malloc(static_cast<size_t>(columns) * 8)) : nullptr;
    double* totals = far ? far : near;
    if (columns > NEAR_COLUMNS && !far) return PB_OUT_OF_MEMORY;
    Run run;
    for (int64_t bag = first; bag < last; ++bag) {
        int64_t at = begin_of(c, bag), end = begin_of(c, bag + 1), kept = 0;
        bool inside = fill<Indices, Scaled>(run, c, at, end);
        if (inside && at == end && run.narrow) {
            write_run(c, run, bag);
            continue;
        }
        memset(totals, 0, static_cast<size_t>(columns) * 8);
        while (inside) {
            add_run(c, run, totals);
            kept += run.count;
            if (at == end) break;
            inside = fill<Indices, Scaled>(run, c, at, end);
        }
        if (!inside) {
            free(far);
            return at;
        }
        write_totals(c, totals, kept, bag);
    }
    free(far);
    return PB_DONE;
}

template <class Indices>
int64_t weigh_or_count(const BagCall& c, int64_t first, int64_t last) {
    if (c.row_scale) return weigh_bags<Indices, true>(c, first, last);
    if (c.weights) return weigh_bags<Indices, false>(c, first, last);
    return count_bags<Indices>(c, first, last);
}

int64_t bag_kernel(const BagCall& c, int64_t first, int64_t last) {
    return c.index_bytes == 8 ? weigh_or_count<Indices64>(c, first, last) : weigh_or_count<Indices32>(c, first, last);
}

}  // namespace
}  // namespace packedbag
