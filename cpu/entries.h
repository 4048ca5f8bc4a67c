// Which entries of a bag count: padding is dropped first, then the bounds rule judges the rest (DESIGN 2.1).
#pragma once

#include "packedbag.h"

namespace packedbag {
namespace {

constexpr int64_t DROPPED = -1;
constexpr int64_t OUTSIDE = -2;

// What becomes of an index outside the table. PB_UNCHECKED never gets here by its contract; dropping such an
// entry keeps a broken promise from reading foreign memory, at no cost, since the comparison is made anyway.
[[gnu::noinline, gnu::cold, maybe_unused]] int64_t judge_outside(int64_t index, int64_t num_rows, int64_t bounds) {
    if (bounds == PB_RAISE) return OUTSIDE;
    if (bounds != PB_CLAMP || num_rows == 0) return DROPPED;
    return index < 0 ? 0 : num_rows - 1;
}

// The row to read for an index, or DROPPED, or OUTSIDE. padding -1 equals no index inside the table, but an
// index of -1 must still meet its bounds rule.
[[gnu::always_inline]] inline int64_t judge(int64_t index, int64_t num_rows, int64_t bounds, int64_t padding) {
    if (__builtin_expect(static_cast<uint64_t>(index) >= static_cast<uint64_t>(num_rows), 0))
        return judge_outside(index, num_rows, bounds);
    return __builtin_expect(index == padding, 0) ? DROPPED : index;
}

}  // namespace
}  // namespace packedbag
