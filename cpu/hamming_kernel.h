// Hamming distances of one query to a run of rows, 64 bits at a time: the population count of what differs.
#pragma once

#include "fetch_ahead.h"

namespace packedbag {
namespace {

typedef uint64_t Word64 __attribute__((aligned(1), may_alias));

// W is the number of words of a row, or 0 where only `width` says it.
template <int64_t W>
void distances_of(const Word* rows, int64_t count, int64_t width, const Word* query, uint32_t tail, bool fetch,
                  int32_t* out) {
    if (W) width = W;
    const int64_t pairs = width / 2, whole = width % 2 ? pairs : pairs - 1;
    const uint64_t pair_tail = uint64_t{tail} << 32 | UINT32_MAX;
    for (int64_t r = 0; r < count; ++r, rows += width) {
        int64_t ones = 0;
        if (fetch) fetch_ahead(rows);
        for (int64_t p = 0; p < whole; ++p)
            ones += __builtin_popcountll(*reinterpret_cast<const Word64*>(rows + 2 * p) ^
                                         *reinterpret_cast<const Word64*>(query + 2 * p));
        if (width % 2)
            ones += __builtin_popcount((rows[width - 1] ^ query[width - 1]) & tail);
        else
            ones += __builtin_popcountll((*reinterpret_cast<const Word64*>(rows + width - 2) ^
                                          *reinterpret_cast<const Word64*>(query + width - 2)) &
                                         pair_tail);
        out[r] = static_cast<int32_t>(ones);
    }
}

[[maybe_unused]] void distances_kernel(const Word* rows, int64_t count, int64_t width, const Word* query, uint32_t tail,
                                       bool fetch, int32_t* out) {
    switch (width) {
        case 1: return distances_of<1>(rows, count, width, query, tail, fetch, out);
        case 2: return distances_of<2>(rows, count, width, query, tail, fetch, out);
        case 4: return distances_of<4>(rows, count, width, query, tail, fetch, out);
        case 8: return distances_of<8>(rows, count, width, query, tail, fetch, out);
        default: return distances_of<0>(rows, count, width, query, tail, fetch, out);
    }
}

// The first of distances [from, count) that is below `limit`, or `count`.
[[maybe_unused]] int64_t below_kernel(const int32_t* distances, int64_t from, int64_t count, int32_t limit) {
    for (; from + 16 <= count; from += 16) {
        int32_t any = 0;
        for (int64_t j = 0; j < 16; ++j) any |= distances[from + j] - limit;  // negative where below
        if (any < 0) break;
    }
    while (from < count && distances[from] >= limit) ++from;
    return from;
}

}  // namespace
}  // namespace packedbag
