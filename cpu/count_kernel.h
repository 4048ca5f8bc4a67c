// Unweighted bags: how many rows of a bag have each bit set, in 8-bit lanes, then `emit`.
// Source: the positional population count of Klarqvist, Mula, Lemire, arXiv:1911.02696; masked byte adds
// beat their bit-sliced counters here because bags are short.
#pragma once

#include <stdlib.h>

#include <type_traits>

#include "emit.h"
#include "entries.h"
#include "fetch.h"

namespace packedbag {
namespace {

constexpr int64_t LANE_ROWS = 255;  // an 8-bit lane is full after 255 rows
constexpr int WORDS = Isa::COLUMNS / 32;
constexpr int64_t SPAN = Isa::BLOCKS * Isa::COLUMNS;  // columns counted in registers at once

// Bag b's entries are indices[begin(b)] up to indices[begin(b + 1)].
inline int64_t begin_of(const BagCall& c, int64_t bag) {
    return c.offsets ? static_cast<const Index64*>(c.offsets)[bag] : bag * c.length;
}

// Count one more row into Blocks registers. Odd: the last register has a single word, and reading two
// could leave the table.
template <int Blocks, bool Odd>
[[gnu::always_inline]] inline void count_row(typename Isa::Bytes* ones, const Word* row) {
#pragma GCC unroll 8
    for (int k = 0; k < Blocks; ++k)
        ones[k] = Odd && k + 1 == Blocks ? Isa::add_word(ones[k], row + k * WORDS) : Isa::add(ones[k], row + k * WORDS);
}

template <class Count>
inline void add_counts(uint32_t* totals, const Count* ones, int64_t columns) {
    for (int64_t j = 0; j < columns; ++j) totals[j] += ones[j];
}

// Bags of a table whose row fits in Blocks registers.
template <class Indices, int Blocks, bool Odd>
int64_t count_narrow(const BagCall& c, int64_t first, int64_t last) {
    constexpr int64_t width = Blocks * WORDS - Odd;
    constexpr int64_t columns = Blocks * Isa::COLUMNS;
    const Word* words = static_cast<const Word*>(c.words);
    const Indices indices(c.indices);
    const int64_t num_rows = c.num_rows, bounds = c.bounds, padding = c.padding;
    const Rows rows(words, width);
    alignas(64) uint8_t ones[columns];
    alignas(64) uint32_t totals[columns];
    int64_t at = begin_of(c, first);
    for (int64_t bag = first; bag < last; ++bag) {
        int64_t begin = at, end = begin_of(c, bag + 1), kept = 0;
        for (;;) {
            typename Isa::Bytes lanes[Blocks];
#pragma GCC unroll 8
            for (int k = 0; k < Blocks; ++k) lanes[k] = Isa::zero();
            int64_t stop = least(end, at + LANE_ROWS), dropped = 0;
            auto count_until = [&](int64_t limit, auto fetches) __attribute__((always_inline)) {
                for (; at < limit; ++at) {
                    if (fetches) rows.ask_far(indices[at + FAR]), rows.ask_near(indices[at + NEAR]);
                    int64_t row = judge(indices[at], num_rows, bounds, padding);
                    if (__builtin_expect(row < 0, 0)) {
                        if (row == OUTSIDE) return false;
                        ++dropped;
                        continue;
                    }
                    count_row<Blocks, Odd>(lanes, words + row * width);
                }
                return true;
            };
            if (!count_until(fetching_until(c, stop), std::true_type{})) return at;
            if (!count_until(stop, std::false_type{})) return at;
#pragma GCC unroll 8
            for (int k = 0; k < Blocks; ++k) Isa::store(ones + k * Isa::COLUMNS, lanes[k]);
            kept -= dropped;
            if (__builtin_expect(end - begin <= LANE_ROWS, 1)) {
                emit(c, ones, end - begin + kept, bag, 0, c.dim);
                break;
            }
            if (stop - begin <= LANE_ROWS) memset(totals, 0, sizeof totals);
            add_counts(totals, ones, columns);
            if (at == end) {
                emit(c, totals, end - begin + kept, bag, 0, c.dim);
                break;
            }
        }
    }
    return PB_DONE;
}

// Count the columns of one span of wide rows into `ones`; `width` words of each row belong to it.
inline void count_span(const Word* const* rows, int64_t count, int64_t word, int64_t width, uint8_t* ones) {
    for (int64_t w = 0; w < width; w += WORDS, ones += Isa::COLUMNS) {
        typename Isa::Bytes lanes = Isa::zero();
        bool single = width - w < WORDS;
        for (int64_t i = 0; i < count; ++i)
            lanes = single ? Isa::add_word(lanes, rows[i] + word + w) : Isa::add(lanes, rows[i] + word + w);
        Isa::store(ones, lanes);
    }
}

// Bags of a table with rows of any width: up to 255 row addresses are noted, then counted span by span.
template <class Indices>
int64_t count_wide(const BagCall& c, int64_t first, int64_t last) {
    const Word* words = static_cast<const Word*>(c.words);
    const Indices indices(c.indices);
    const Rows table(words, c.width);
    const Word* rows[LANE_ROWS];
    alignas(64) uint8_t ones[SPAN];
    uint32_t* totals = nullptr;
    for (int64_t bag = first; bag < last; ++bag) {
        int64_t begin = begin_of(c, bag), end = begin_of(c, bag + 1), at = begin, kept = 0;
        bool fits = end - begin <= LANE_ROWS;
        if (!fits) {
            if (!totals) totals = static_cast<uint32_t*>(malloc(static_cast<size_t>(c.width) * BLOCK * 4));
            if (!totals) return PB_OUT_OF_MEMORY;
            memset(totals, 0, static_cast<size_t>(c.width) * BLOCK * 4);
        }
        do {
            int64_t stop = least(end, at + LANE_ROWS), count = 0;
            int64_t fetching = fetching_until(c, stop);
            for (; at < stop; ++at) {
                if (at < fetching) table.ask_far(indices[at + FAR]), table.ask_near(indices[at + NEAR]);
                int64_t row = judge(indices[at], c.num_rows, c.bounds, c.padding);
                if (row == OUTSIDE) {
                    free(totals);
                    return at;
                }
                if (row != DROPPED) rows[count++] = words + row * c.width;
            }
            kept += count;
            for (int64_t word = 0; word < c.width; word += SPAN / BLOCK) {
                int64_t span = least(SPAN / BLOCK, c.width - word);
                count_span(rows, count, word, span, ones);
                int64_t columns = least(SPAN, c.dim - word * BLOCK);
                if (fits) emit(c, ones, kept, bag, word * BLOCK, columns);
                else add_counts(totals + word * BLOCK, ones, span * BLOCK);
            }
        } while (at < end);
        if (!fits) emit(c, totals, kept, bag, 0, c.dim);
    }
    free(totals);
    return PB_DONE;
}

template <class Indices>
int64_t count_bags(const BagCall& c, int64_t first, int64_t last) {
    switch (c.width) {
#define PB_WIDTHS(blocks)                                                       \
    case (blocks) * WORDS:                                                      \
        return count_narrow<Indices, (blocks), false>(c, first, last);
        PB_WIDTHS(1)
        PB_WIDTHS(2)
        PB_WIDTHS(4)
        PB_WIDTHS(8)
#undef PB_WIDTHS
    }
    if (WORDS == 2 && c.width == 1) return count_narrow<Indices, 1, WORDS == 2>(c, first, last);
    if (WORDS == 2 && c.width == 3) return count_narrow<Indices, 2, WORDS == 2>(c, first, last);
    if (WORDS == 1 && c.width == 3) return count_narrow<Indices, 3, false>(c, first, last);
    return count_wide<Indices>(c, first, last);
}

}  // namespace
}  // namespace packedbag
