// Weighted bags: sums of f = w * s, each with the sign of its bit, four rows at a time, ((f0 + f1) + (f2 + f3)).
//
// A run of up to 64 rows is summed in float32: quads of rows in turn join one of two chains, which start at 0. A factor
// meets a rounding of its own, two in its quad, at most seven in its chain, whose first sum is exact, one where the
// chains are added, and a mean's division: 12 u = 7.2e-7 of the sum of |f|, u = 2^-24; DESIGN 2.1 allows 1e-6. Runs are
// added in float64.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "count_kernel.h"
#include "lanes.h"

namespace packedbag {
namespace {

constexpr int RUN_ROWS = 64, QUAD = 4;
// Inside these limits no product loses bits to underflow and no chain overflows; outside, a run is summed
// in float64, so that the bound holds for every input.
constexpr float LARGEST_FACTOR = 0x1p120f, SMALLEST_FACTOR = 0x1p-100f;
constexpr int TILE_WORDS = Isa::SUMS_BY_TABLE ? 8 : 1;  // words of a row that are summed at once

struct Run {
    const Word* rows[RUN_ROWS];
    int64_t first, last;                  // entries
    alignas(64) float factors[RUN_ROWS];  // weight * scale, and zeros up to a whole quad
    alignas(64) float tables[Isa::SUMS_BY_TABLE ? RUN_ROWS / QUAD * 16 : 1];
    int count;    // of rows: entries that were not dropped
    bool narrow;  // float32 will do

    int quads() const { return (count + QUAD - 1) / QUAD; }
};

typedef uint32_t Eight __attribute__((vector_size(32)));

// Take over the run's factors, of which a multiple of eight can be read, and find out whether float32 will do.
template <class I = Isa>
inline void settle(Run& run, const Float* factors) {
    const uint32_t low = bits_of(SMALLEST_FACTOR), range = bits_of(LARGEST_FACTOR) - low;
    const Eight position = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32_t count = static_cast<uint32_t>(run.count);
    Eight outside = {};
    for (uint32_t part = 0; part < count; part += 8) {
        Eight bits;
        memcpy(&bits, factors + part, sizeof bits);
        bits &= reinterpret_cast<Eight>(position + part < count);
        memcpy(run.factors + part, &bits, sizeof bits);
        // As integers the sizes of floats keep their order, with inf and NaN above all: one comparison for both limits.
        Eight size = bits & 0x7FFFFFFF;
        outside |= reinterpret_cast<Eight>(size - low > range) & reinterpret_cast<Eight>(size != 0);
    }
    uint32_t any = 0;
    for (int j = 0; j < 8; ++j) any |= outside[j];
    run.narrow &= any == 0;
    for (int i = run.count; i < run.quads() * QUAD; ++i) run.rows[i] = run.rows[run.count - 1];  // of factor 0
    if constexpr (I::SUMS_BY_TABLE) I::Tables::make(run.factors, run.quads(), run.tables);
}

inline int64_t index_at(const BagCall& c, int64_t at) {
    return c.index_bytes == 8 ? Indices64(c.indices)[at] : Indices32(c.indices)[at];
}

// Call act(entry, row) for each entry of the run that was not dropped: for the few runs that need to know which.
template <class Act>
inline void each_kept(const BagCall& c, const Run& run, const Act& act) {
    for (int64_t at = run.first; at < run.last; ++at) {
        int64_t row = judge(index_at(c, at), c.num_rows, c.bounds, c.padding);
        if (row >= 0) act(at, row);
    }
}

// Take rows from entry `from` on until the run is full or the bag ends, and move it there; false where it then has a
// bad index.
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
    int64_t count = 0;
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
            run.rows[count++] = words + row * width;
        }
        return true;
    };
    bool inside = take_until(fetching_until(c, end), std::true_type{}) && take_until(end, std::false_type{});
    from = at;
    if (!inside) return false;
    run.first = first;
    run.last = at;
    run.count = static_cast<int>(count);
    run.narrow = narrow;
    if (!Scaled && count == at - first && first + RUN_ROWS <= c.total) {
        settle(run, weights + first);
        return true;
    }
    if (!Scaled) {
        float* to = factors;
        each_kept(c, run, [&](int64_t entry, int64_t) { *to++ = weights[entry]; });
    }
    for (int64_t i = count; i < (count + 7) / 8 * 8; ++i) factors[i] = 0;
    settle(run, factors);
    return true;
}

// Sums of the columns of at most TILE_WORDS words from `word` on; returns of how many.
template <class I = Isa>  // a template, or the branch not taken would have to compile
inline int64_t sum_words(const Run& run, int64_t word, int64_t words, Float* sums) {
    if constexpr (I::SUMS_BY_TABLE) {
        words = least(words, TILE_WORDS);
        I::Tables::sum(run.rows, run.tables, run.quads(), word, words, sums);
        return words;
    } else {
        Lanes chains[2] = {zeros(), zeros()};
        auto row = [&](int i) { return signed_by(run.rows[i][word], splat(run.factors[i])); };
        for (int i = 0, chain = 0; i < run.count; i += QUAD, chain ^= 1)
            chains[chain] = chains[chain] + ((row(i) + row(i + 1)) + (row(i + 2) + row(i + 3)));
        store(sums, chains[0] + chains[1], BLOCK);
        return 1;
    }
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
    each_kept(c, run, [&](int64_t entry, int64_t row) {
        double factor = c.weights ? static_cast<const Float*>(c.weights)[entry] : 1.0f;
        if (c.row_scale) factor *= static_cast<double>(static_cast<const Float*>(c.row_scale)[row]);
        const Word* bits = static_cast<const Word*>(c.words) + row * c.width;
        for (int64_t w = 0; w < c.width; ++w)
            for (int j = 0; j < BLOCK; ++j) totals[w * BLOCK + j] += bits[w] >> j & 1 ? factor : -factor;
    });
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
