// Gradients of rows: their sums over occurrences and their products with +-1 rows, in the order of DESIGN 2.1.
#pragma once

#include "lanes.h"

namespace packedbag {
namespace {

constexpr int64_t RUN_OCCURRENCES = 64;  // summed from 0 in one go, whatever the number of threads
constexpr int64_t SOON = 8;  // occurrences whose gradient rows are asked for ahead

// What occurrence e of distinct row u contributes to 32 columns: each product rounded, in the oracle's order.
struct Contribution {
    const pb_sum_rows_args& args;
    int64_t width = (args.dim + 31) / 32;
    const Float* grad = static_cast<const Float*>(args.grad);
    const Index64* bags = static_cast<const Index64*>(args.bags);
    const Float* weights = static_cast<const Float*>(args.weights);
    const Float* scale = static_cast<const Float*>(args.scale);
    const Float* counts = static_cast<const Float*>(args.counts);
    const Word* kept = static_cast<const Word*>(args.columns);

    Lanes operator()(int64_t u, int64_t e, int64_t word) const {
        int64_t bag = bags[e];
        Lanes g = load(grad + bag * args.dim + word * 32, args.dim - word * 32);
        if (weights) g = g * splat(weights[e]);
        if (scale) g = g * splat(scale[u]);
        if (counts) g = g / splat(counts[bag]);
        return kept ? only(kept[e * width + word], g) : g;
    }
};

void sum_rows_kernel(const pb_sum_rows_args& args, int64_t first, int64_t last) {
    Contribution contribution{args};
    const Index64* order = static_cast<const Index64*>(args.order);
    const Index64* starts = static_cast<const Index64*>(args.starts);
    Float* out = static_cast<Float*>(args.out);
    Lanes factor = splat(static_cast<float>(args.factor));
    int64_t final = starts[last];
    for (int64_t u = first; u < last; ++u) {
        int64_t begin = starts[u], end = starts[u + 1];
        if (begin + SOON < final)
            for (int64_t j = 0; j < args.dim; j += 16)
                __builtin_prefetch(contribution.grad + contribution.bags[order[begin + SOON]] * args.dim + j);
        for (int64_t word = 0; word < contribution.width; ++word) {
            Lanes total = zeros();
            for (int64_t run = begin; run < end; run += RUN_OCCURRENCES) {
                int64_t stop = run + RUN_OCCURRENCES < end ? run + RUN_OCCURRENCES : end;
                Lanes partial = zeros();
                for (int64_t i = run; i < stop; ++i) partial = partial + contribution(u, order[i], word);
                total = total + partial;
            }
            store(out + u * args.dim + word * 32, total * factor, args.dim - word * 32);
        }
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
