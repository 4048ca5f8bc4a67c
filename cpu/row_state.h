// A row's state word: the float32 statistic S without its low 8 bits, which hold a code of how often it was touched; and
// what a table's updates add up to. packedbag/core/touches.py and packedbag/core/totals.py define both.
#pragma once

#include <float.h>
#include <math.h>
#include <string.h>

#include "lanes.h"

namespace packedbag {
namespace {

constexpr uint32_t TOUCHES = 0xFF;
constexpr uint32_t EXACT_TOUCHES = 128;
constexpr uint32_t MAX_TOUCHES = 100;  // where the moving average stops lengthening
constexpr float EPSILON = 1e-8f;
constexpr float MOST = 0.125f;  // of a confidence is lost at a touch

enum Field { FLIPS, ROWS, STEP_ROWS, STEP_BITS, FOLDS, TYPICAL };

inline uint32_t touches_of(uint32_t code) {
    uint32_t over = code - EXACT_TOUCHES;
    return code < EXACT_TOUCHES ? code : (8 + over % 8) << (over / 8 + 4);
}

// The same for every row of an update.
struct RowRule {
    bool averages, votes, decays;
    float rate, decay, steps;  // `decay` times the root of the typical statistic; `steps` done, this one included
    uint32_t hash;             // the part that seed, step and table give
    float shrink;              // without a statistic: how much of itself a confidence shrinks by

    explicit RowRule(const pb_counter_update_args& args)
        : averages(args.adaptivity == PB_EMA),
          votes(args.threshold >= 0),
          decays(args.decay > 0),
          rate(votes ? 1.0f : static_cast<float>(args.rate)),
          decay(static_cast<float>(args.decay) *
                sqrtf(float_of(static_cast<uint32_t>(static_cast<const int64_t*>(args.totals)[TYPICAL])))),
          steps(static_cast<float>(int64_t{static_cast<uint32_t>(args.step)} + 1)),
          hash(static_cast<uint32_t>(args.seed) ^ static_cast<uint32_t>(args.step) * 0xC2B2AE3Du ^
               static_cast<uint32_t>(args.table) * 0x27D4EB2Fu),
          shrink(static_cast<float>(args.decay < MOST ? args.decay : MOST)) {}

    // The code after one more touch; above 128, a chance of one in the gap between codes.
    uint32_t touched(uint32_t code, uint64_t row) const {
        if (code < EXACT_TOUCHES) return code + 1;
        uint32_t h = static_cast<uint32_t>(row) * 0x9E3779B1u ^ static_cast<uint32_t>(row >> 32) * 0x85EBCA77u ^ hash;
        h ^= h >> 16;  // MurmurHash3's finalizer, public domain
        h *= 0x85EBCA6Bu;
        h ^= h >> 13;
        h *= 0xC2B2AE35u;
        h ^= h >> 16;
        uint32_t gap = 16u << (code - EXACT_TOUCHES) / 8;
        return (h & (gap - 1)) == 0 && code < TOUCHES ? code + 1 : code;
    }

    // Update a row's state word with the mean square q of its gradient; set what gradients are multiplied by, and how
    // much of itself a confidence shrinks by.
    void touch(uint32_t& state, uint64_t row, float q, float& factor, float& shrinks) const {
        q = q < FLT_MAX ? q : FLT_MAX;  // the statistic stays finite whatever the gradient
        const uint32_t code = touched(state & TOUCHES, row), touches = touches_of(code);
        const float old = float_of(state & ~TOUCHES);
        float now;
        if (averages) {
            now = old + (q - old) / static_cast<float>(touches < MAX_TOUCHES ? touches : MAX_TOUCHES);
        } else {
            now = old + q < FLT_MAX ? old + q : FLT_MAX;
        }
        state = (bits_of(now) & ~TOUCHES) | code;
        const float root = sqrtf(now) + EPSILON;
        factor = rate / root;
        if (decays) {  // due at every step, done when the row is touched
            const float due = decay * (steps / static_cast<float>(touches)) / root;
            shrinks = now > 0 ? (due < MOST ? due : MOST) : 0.0f;
        }
    }
};

// What some rows of an update add to a table's totals: sums of integers, in any order.
struct Totals {
    int64_t flips = 0, step_rows = 0, step_bits = 0;

    void count_state(uint32_t state) {
        step_rows += (state & ~TOUCHES) != 0;
        step_bits += state & ~TOUCHES;
    }
    void add_to(void* totals, int64_t rows) const {
        int64_t* fields = static_cast<int64_t*>(totals);
        __atomic_fetch_add(fields + FLIPS, flips, __ATOMIC_RELAXED);
        __atomic_fetch_add(fields + ROWS, rows, __ATOMIC_RELAXED);
        __atomic_fetch_add(fields + STEP_ROWS, step_rows, __ATOMIC_RELAXED);
        __atomic_fetch_add(fields + STEP_BITS, step_bits, __ATOMIC_RELAXED);
    }
};

}  // namespace
}  // namespace packedbag
