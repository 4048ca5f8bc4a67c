// The k-bit counters of distinct rows: row statistic and step (DESIGN 2.1). `update_units`, the stochastic
// rounding and the counters themselves, comes from update_plain.h, update_avx2.h or update_avx512.h.
#pragma once

#include <float.h>
#include <math.h>

#include "lanes.h"
#include "update_units.h"

namespace packedbag {
namespace {

constexpr uint32_t TOUCHES = 0xFF;  // low bits of a row's state word: how often it was touched
constexpr uint32_t MAX_TOUCHES = 100;
constexpr float EPSILON = 1e-8f;
constexpr int64_t SOON_ROWS = 8;  // rows asked for ahead: a row takes about 0.1 us, as long as a miss

// Update a row's state word and return what to divide the rate by.
inline float row_statistic(const pb_counter_update_args& args, uint32_t& state, const Float* grad) {
    Lanes squares = zeros();
    for (int64_t j = 0; j < args.dim; j += 32) {
        Lanes g = load(grad + j, args.dim - j);
        squares = squares + g * g;
    }
    float q = sum_lanes(squares) / static_cast<float>(args.dim);
    q = q < FLT_MAX ? q : FLT_MAX;  // the statistic stays finite whatever the gradient
    uint32_t touches = (state & TOUCHES) + 1 < MAX_TOUCHES ? (state & TOUCHES) + 1 : MAX_TOUCHES;
    uint32_t kept = state & ~TOUCHES;
    float old;
    memcpy(&old, &kept, 4);
    float now;
    if (args.adaptivity == PB_EMA) {
        now = old + (q - old) / static_cast<float>(touches);
    } else {
        now = old + q < FLT_MAX ? old + q : FLT_MAX;
    }
    uint32_t bits;
    memcpy(&bits, &now, 4);
    state = (bits & ~TOUCHES) | touches;
    return now;
}

// Ask for the lines of `count` words that will be changed; they may start anywhere in a line of 16 words.
// Inlined by order: GCC finds that a function of prefetches has no effect, and removes calls of it.
[[gnu::always_inline]] inline void prefetch_write(const Word* words, int64_t count) {
    for (int64_t w = 0; w < count; w += 16) __builtin_prefetch(words + w, 1);
    if (count) __builtin_prefetch(words + count - 1, 1);
}

void counter_update_kernel(const pb_counter_update_args& args, int64_t first, int64_t last) {
    int64_t width = (args.dim + 31) / 32;
    const Index64* rows = static_cast<const Index64*>(args.rows);
    const Float* grad = static_cast<const Float*>(args.grad);
    Word* states = static_cast<Word*>(args.row_state);
    Word* words = static_cast<Word*>(args.words);
    Word* planes = static_cast<Word*>(args.planes);
    UpdatePlan plan(args);
    Unit units[UNITS] = {};
    int waiting = 0;
    for (int64_t u = first; u < last; ++u) {
        int64_t row = rows[u];
        if (u + SOON_ROWS < last) {
            int64_t later = rows[u + SOON_ROWS];
            prefetch_write(words + later * width, width);
            prefetch_write(planes + later * width * (args.bits - 1), width * (args.bits - 1));
            if (states) __builtin_prefetch(states + later, 1);
        }
        const Float* g = grad + u * args.dim;
        float rate = static_cast<float>(args.rate);
        if (states) {
            uint32_t state = states[row];
            rate = rate / (sqrtf(row_statistic(args, state, g)) + EPSILON);
            states[row] = state;
        }
        for (int64_t word = 0; word < width; ++word) {
            units[waiting++] = {static_cast<uint64_t>(row), word, args.dim - word * 32, g + word * 32, rate};
            if (waiting == UNITS) {
                update_units(plan, units, UNITS);
                waiting = 0;
            }
        }
    }
    if (waiting) update_units(plan, units, waiting);
}

}  // namespace
}  // namespace packedbag
