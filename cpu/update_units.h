// The words of a counter update, as they are handed to an instruction set in batches of four.
#pragma once

#include "kernels.h"

namespace packedbag {
namespace {

constexpr int UNITS = 4;            // words of 32 columns that one group of random numbers serves
constexpr int64_t BATCH = 2 * UNITS;  // words that are handed over at once
constexpr int STREAMS = UNITS * 4;  // Philox counters in a group: one gives 8 columns
constexpr int PHILOX_ROUNDS = 10;
constexpr uint32_t PHILOX_M0 = 0xD2511F53, PHILOX_M1 = 0xCD9E8D57;

// 32 counters of one row, waiting for their random numbers: a word of them, or as many words as a counter has columns.
struct Unit {
    uint64_t row;
    int64_t word, columns;  // counters from this one on: 32 or more where it is full
    const Float* grad;
    float rate;
    float shrink;  // by how much of itself the confidence shrinks
    bool tame;  // no product of rate and gradient leaves float32's range, even 2^16 times as large
};

// What is the same for every word of an update.
struct UpdatePlan {
    Word* words;
    Word* planes;
    int64_t width;
    int group;   // columns of a counter
    int layers;  // bits of a column: one in the words, the others in planes
    int bits;    // of a counter
    bool is_shaped;  // steps are votes, or confidences shrink: more than a rate times a gradient
    bool votes, decays;
    float threshold, vote;  // a vote's weight
    float rest[32];  // what a column's v + 128 decays toward, without rounding: multiples of 1/64
    uint64_t first_row;
    uint32_t step, block;  // table << 16 | first counter / 8: of the number that serves the first 8 counters
    // Philox's key of each round, from Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
    // SC 2011.
    uint32_t key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];

    explicit UpdatePlan(const pb_counter_update_args& args)
        : words(static_cast<Word*>(args.words)),
          planes(static_cast<Word*>(args.planes)),
          width((args.dim + 31) / 32),
          group(static_cast<int>(args.columns_per_counter)),
          layers(static_cast<int>(args.bits)),
          bits(layers * group),
          is_shaped(args.threshold >= 0 || args.decay > 0),
          votes(args.threshold >= 0),
          decays(args.decay > 0),
          threshold(static_cast<float>(args.threshold)),
          vote(static_cast<float>(args.rate)),
          first_row(static_cast<uint64_t>(args.first_row)),
          step(static_cast<uint32_t>(args.step)),
          block((static_cast<uint32_t>(args.table) << 16) + static_cast<uint32_t>(args.first_column / args.columns_per_counter / 8)) {
        const float spacing = static_cast<float>(args.spacing), middle = 0.5f * static_cast<float>(args.group - 1);
        for (int64_t j = 0; j < 32; ++j) rest[j] = 127.5f + spacing * (static_cast<float>(j % args.group) - middle);
        for (uint32_t round = 0; round < PHILOX_ROUNDS; ++round) {
            key0[round] = static_cast<uint32_t>(args.seed) + round * 0x9E3779B9u;
            key1[round] = static_cast<uint32_t>(args.seed >> 32) + round * 0xBB67AE85u;
        }
    }
};

// Call a function template with the number of bits, and whether steps are shaped, as its arguments.
#define PB_FOR_PLAN(plan, function, ...)                                                                        \
    switch ((plan).bits) {                                                                                      \
        case 1: return (plan).is_shaped ? function<1, true>(__VA_ARGS__) : function<1, false>(__VA_ARGS__);  \
        case 2: return (plan).is_shaped ? function<2, true>(__VA_ARGS__) : function<2, false>(__VA_ARGS__);  \
        case 3: return (plan).is_shaped ? function<3, true>(__VA_ARGS__) : function<3, false>(__VA_ARGS__);  \
        case 4: return (plan).is_shaped ? function<4, true>(__VA_ARGS__) : function<4, false>(__VA_ARGS__);  \
        case 5: return (plan).is_shaped ? function<5, true>(__VA_ARGS__) : function<5, false>(__VA_ARGS__);  \
        case 6: return (plan).is_shaped ? function<6, true>(__VA_ARGS__) : function<6, false>(__VA_ARGS__);  \
        case 7: return (plan).is_shaped ? function<7, true>(__VA_ARGS__) : function<7, false>(__VA_ARGS__);  \
        default: return (plan).is_shaped ? function<8, true>(__VA_ARGS__) : function<8, false>(__VA_ARGS__); \
    }

inline uint32_t unit_tail(const Unit& unit) {
    return unit.columns >= 32 ? UINT32_MAX : (uint32_t{1} << unit.columns) - 1;
}

}  // namespace
}  // namespace packedbag
