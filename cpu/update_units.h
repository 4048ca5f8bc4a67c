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

// One word of one row, waiting for its random numbers.
struct Unit {
    uint64_t row;
    int64_t word, columns;  // columns from this word on: 32 or more where it is full
    const Float* grad;
    float rate;
    bool tame;  // no product of rate and gradient leaves float32's range, even 2^16 times as large
};

// What is the same for every word of an update.
struct UpdatePlan {
    Word* words;
    Word* planes;
    int64_t width;
    int bits;
    uint32_t step, table;  // table << 16
    // Philox's key of each round, from Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
    // SC 2011.
    uint32_t key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];

    explicit UpdatePlan(const pb_counter_update_args& args)
        : words(static_cast<Word*>(args.words)),
          planes(static_cast<Word*>(args.planes)),
          width((args.dim + 31) / 32),
          bits(static_cast<int>(args.bits)),
          step(static_cast<uint32_t>(args.step)),
          table(static_cast<uint32_t>(args.table) << 16) {
        for (uint32_t round = 0; round < PHILOX_ROUNDS; ++round) {
            key0[round] = static_cast<uint32_t>(args.seed) + round * 0x9E3779B9u;
            key1[round] = static_cast<uint32_t>(args.seed >> 32) + round * 0xBB67AE85u;
        }
    }
};

// Call a function template with the number of bits as its argument.
#define PB_FOR_BITS(bits, function, ...)          \
    switch (bits) {                               \
        case 1: return function<1>(__VA_ARGS__);  \
        case 2: return function<2>(__VA_ARGS__);  \
        case 3: return function<3>(__VA_ARGS__);  \
        case 4: return function<4>(__VA_ARGS__);  \
        case 5: return function<5>(__VA_ARGS__);  \
        case 6: return function<6>(__VA_ARGS__);  \
        case 7: return function<7>(__VA_ARGS__);  \
        default: return function<8>(__VA_ARGS__); \
    }

inline uint32_t unit_tail(const Unit& unit) {
    return unit.columns >= 32 ? UINT32_MAX : (uint32_t{1} << unit.columns) - 1;
}

}  // namespace
}  // namespace packedbag
