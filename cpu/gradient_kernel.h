// Gradients of rows: their sums over occurrences and their products with +-1 rows, in the order of DESIGN 2.1.
#pragma once

#include "lanes.h"

namespace packedbag {
namespace {

constexpr int64_t RUN_OCCURRENCES = 64;  // summed from 0 in one go, whatever the number of threads
constexpr int64_t SOON = 8;  // occurrences, or rows, ahead of which gradients are asked for
constexpr int64_t FEW = 4;   // occurrences of a row whose gradients are asked for

// What occurrence e of distinct row u contributes: each product rounded, in the oracle's order. Plain: nothing but
// the gradient, without a question asked for each word.
template <bool Plain>
struct Contribution {
    const pb_sum_rows_args& args;
    const Float* grad;
    const Word* kept = nullptr;
    float weight = 1, scale = 1, count = 1;

    Contribution(const pb_sum_rows_args& args_, int64_t u, int64_t e) : args(args_) {
        int64_t bag = static_cast<const Index64*>(args.bags)[e];
        grad = static_cast<const Float*>(args.grad) + bag * args.dim;
        if (Plain) return;
        if (args.weights) weight = static_cast<const Float*>(args.weights)[e];
        if (args.scale) scale = static_cast<const Float*>(args.scale)[u];
        if (args.counts) count = static_cast<const Float*>(args.counts)[bag];
        if (args.columns) kept = static_cast<const Word*>(args.columns) + e * ((args.dim + 31) / 32);
    }

    Lanes operator()(int64_t word) const {
        Lanes g = load(grad + word * 32, args.dim - word * 32);
        if (Plain) return g;
        if (args.weights) g = g * splat(weight);
        if (args.scale) g = g * splat(scale);
        if (args.counts) g = g / splat(count);
        return kept ? only(kept[word], g) : g;
    }
};

// Ask for the gradient of occurrence `at`, if there is one.
[[gnu::always_inline]] inline void fetch_gradient(const pb_sum_rows_args& args, int64_t at, int64_t final) {
    if (at >= final) return;
    int64_t bag = static_cast<const Index64*>(args.bags)[static_cast<const Index64*>(args.order)[at]];
    const Float* later = static_cast<const Float*>(args.grad) + bag * args.dim;
    for (int64_t j = 0; j < args.dim; j += 16) __builtin_prefetch(later + j);
}

// Ask for the gradients of the step's row u, the first few: behind them come others' turns anyway.
[[gnu::always_inline]] inline void fetch_gradients(const pb_sum_rows_args& args, int64_t u) {
    const Index64* starts = static_cast<const Index64*>(args.starts);
    int64_t end = starts[u + 1] < starts[u] + FEW ? starts[u + 1] : starts[u] + FEW;
    for (int64_t at = starts[u]; at < end; ++at) fetch_gradient(args, at, end);
}

template <bool Plain>
inline void sum_row(const pb_sum_rows_args& args, int64_t u, Float* out) {
    const Index64* order = static_cast<const Index64*>(args.order);
    const Index64* starts = static_cast<const Index64*>(args.starts);
    const Lanes factor = splat(static_cast<float>(args.factor));
    const int64_t width = (args.dim + 31) / 32, begin = starts[u], end = starts[u + 1];
    if (end - begin == 1) {  // as most rows: a run of one, summed from 0
        Contribution<Plain> only_one(args, u, order[begin]);
        for (int64_t word = 0; word < width; ++word)
            store(out + word * 32, (zeros() + only_one(word)) * factor, args.dim - word * 32);
        return;
    }
    for (int64_t word = 0; word < width; ++word) {
        Lanes total = zeros();
        for (int64_t run = begin; run < end; run += RUN_OCCURRENCES) {
            int64_t stop = run + RUN_OCCURRENCES < end ? run + RUN_OCCURRENCES : end;
            Lanes partial = zeros();
            for (int64_t i = run; i < stop; ++i) partial = partial + Contribution<Plain>(args, u, order[i])(word);
            total = total + partial;
        }
        store(out + word * 32, total * factor, args.dim - word * 32);
    }
}

inline void sum_row(const pb_sum_rows_args& args, int64_t u, Float* out) {
    plain(args) ? sum_row<true>(args, u, out) : sum_row<false>(args, u, out);
}

void sum_rows_kernel(const pb_sum_rows_args& args, int64_t first, int64_t last) {
    const Index64* starts = static_cast<const Index64*>(args.starts);
    for (int64_t u = first; u < last; ++u) {
        fetch_gradient(args, starts[u] + SOON, starts[last]);
        sum_row(args, u, static_cast<Float*>(args.out) + u * args.dim);
    }
}

void row_dot_kernel(const pb_row_dot_args& args, int64_t first, int64_t last) {
    int64_t width = (args.dim + 31) / 32;
    const Word* words = static_cast<const Word*>(args.words);
    const Index64* rows = static_cast<const Index64*>(args.rows);
    const Index64* bags = static_cast<const Index64*>(args.bags);
    const Float* grad = static_cast<const Float*>(args.grad);
    const Float* row_scale = static_cast<const Float*>(args.row_scale);
    const Float* counts = static_cast<const Float*>(args.counts);
    Float* out = static_cast<Float*>(args.out);
    for (int64_t i = first; i < last; ++i) {
        int64_t row = rows[i], from = bags ? bags[i] : i;
        Lanes sum = zeros();
        for (int64_t w = 0; w < width; ++w)
            sum = sum + signed_by(words[row * width + w], load(grad + from * args.dim + w * 32, args.dim - w * 32));
        float result = sum_lanes(sum);
        if (row_scale) result = result * row_scale[row];
        if (counts) result = result / counts[from];
        out[i] = result;
    }
}

}  // namespace
}  // namespace packedbag
