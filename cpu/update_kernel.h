// The k-bit counters of distinct rows: row statistic and step (DESIGN 2.1). `update_units`, the stochastic
// rounding and the counters themselves, comes from update_plain.h, update_avx2.h or update_avx512.h.
#pragma once

#include "gradient_kernel.h"
#include "row_state.h"
#include "update_units.h"

namespace packedbag {
namespace {

constexpr int64_t BLOCK_ROWS = 16;  // worked on together, while the next as many are fetched: about 1 us
constexpr int64_t BLOCK_FLOATS = STEP_COLUMNS;  // gradients of a block that have to be summed: 8 KB of L1
constexpr float TAME_RATE = 0x1p40f;

// The mean of a row's squared gradients.
inline float mean_square(const Float* grad, int64_t dim) {
    Lanes squares = zeros();
    for (int64_t j = 0; j < dim; j += 32) {
        Lanes g = load(grad + j, dim - j);
        squares = squares + g * g;
    }
    return sum_lanes(squares) / static_cast<float>(dim);
}

// Ask for the lines of `count` words that will be changed; they may start anywhere in a line of 16 words.
// Inlined by order: GCC finds that a function of prefetches has no effect, and removes calls of it.
[[gnu::always_inline]] inline void prefetch_write(const Word* words, int64_t count) {
    for (int64_t w = 0; w < count; w += 16) __builtin_prefetch(words + w, 1);
    if (count) __builtin_prefetch(words + count - 1, 1);
}

// Update the rows row(i) for i in [first, last). gradient(i, slot) is where that row's gradient stands, good until the
// slot, one of `block`, is used again. Gradients, statistics and counters take turns, so that those of different rows
// overlap.
template <class Row, class Gradient>
[[gnu::always_inline]] inline void update_rows(const pb_counter_update_args& args, int64_t first, int64_t last,
                                               int64_t block, const Row& row, const Gradient& gradient) {
    const int64_t width = (args.dim + 31) / 32, counters = args.dim / args.columns_per_counter;
    Word* states = static_cast<Word*>(args.row_state);
    Word* words = static_cast<Word*>(args.words);
    Word* planes = static_cast<Word*>(args.planes);
    const UpdatePlan plan(args);
    const RowRule rule(args);
    const Float* squares = static_cast<const Float*>(args.mean_squares);
    Totals totals;
    const Float* grads[BLOCK_ROWS];
    float rates[BLOCK_ROWS], shrinks[BLOCK_ROWS];
    bool tame[BLOCK_ROWS];
    auto fetch = [&](int64_t i) __attribute__((always_inline)) {
        if (i >= last) return;
        const int64_t later = row(i);
        prefetch_write(words + later * width, width);
        prefetch_write(planes + later * width * (args.bits - 1), width * (args.bits - 1));
        if (states && !squares) __builtin_prefetch(states + later, 1);
    };
    for (int64_t i = first; i < first + block; ++i) fetch(i);
    for (int64_t start = first; start < last; start += block) {
        const int64_t count = last - start < block ? last - start : block;
        for (int64_t i = 0; i < count; ++i) grads[i] = gradient(start + i, i);
        float q = 0;
        for (int64_t i = 0; i < count; ++i) {
            if (squares) {
                q = squares[start + i];
            } else if (i == 0 || grads[i] != grads[i - 1]) {  // else the same bag's
                q = mean_square(grads[i], counters);
            }
            rates[i] = rule.rate;
            shrinks[i] = rule.shrink;
            if (states) {
                Word& kept = states[squares ? start + i : row(start + i)];
                uint32_t state = kept;
                rule.touch(state, plan.first_row + static_cast<uint64_t>(row(start + i)), q, rates[i], shrinks[i]);
                totals.count_state(state);
                kept = state;
            }
            tame[i] = q < FLT_MAX && rates[i] < TAME_RATE;
        }
        Unit units[BATCH] = {};  // those behind the last hold rows of before, whose numbers nobody uses
        int waiting = 0;
        for (int64_t i = 0; i < count; ++i) {
            fetch(start + block + i);
            for (int64_t word = 0; word * 32 < counters; ++word) {
                units[waiting++] = {static_cast<uint64_t>(row(start + i)), word, counters - word * 32,
                                    grads[i] + word * 32, rates[i], shrinks[i], tame[i]};
                if (waiting == BATCH) {
                    totals.flips += update_units(plan, units, BATCH);
                    waiting = 0;
                }
            }
        }
        if (waiting) totals.flips += update_units(plan, units, waiting);
    }
    totals.add_to(args.totals, last - first);
}

void counter_update_kernel(const pb_counter_update_args& args, int64_t first, int64_t last) {
    const Index64* rows = static_cast<const Index64*>(args.rows);
    const Float* grad = static_cast<const Float*>(args.grad);
    update_rows(
        args, first, last, BLOCK_ROWS, [&](int64_t u) { return rows[u]; },
        [&](int64_t u, int64_t) { return grad + u * (args.dim / args.columns_per_counter); });
}

// `sum_rows` and `counter_update` in one pass, of visits [first, last): a block's gradients are summed while they are
// in L1, and a row that occurred once, as most do, is updated from grad_out itself. `wide` has room for a row, or is
// null where BLOCK_FLOATS are enough.
void counter_step_kernel(const pb_counter_step_args& args, const Visit* visits, int64_t first, int64_t last,
                         float* wide) {
    const pb_sum_rows_args& sum = args.sum;
    const int64_t dim = sum.dim;
    alignas(64) float near[BLOCK_FLOATS];
    Float* sums = wide ? wide : near;
    int64_t block = wide ? 1 : BLOCK_FLOATS / dim;
    block = block < BLOCK_ROWS ? block : BLOCK_ROWS;
    const Float* grad = static_cast<const Float*>(sum.grad);
    update_rows(
        args.update, first, last, block, [&](int64_t i) { return visits[i].row; },
        [&](int64_t i, int64_t slot) -> const Float* {
            if (i + SOON < last && visits[i + SOON].gradient < 0) fetch_gradients(sum, ~visits[i + SOON].gradient);
            if (visits[i].gradient >= 0) return grad + visits[i].gradient * dim;
            sum_row(sum, ~visits[i].gradient, sums + slot * dim);
            return sums + slot * dim;
        });
}

}  // namespace
}  // namespace packedbag
