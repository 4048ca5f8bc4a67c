// The k-bit counters of distinct rows: row statistic, step, and the stochastic rounding (DESIGN 2.1).
// Random numbers: Philox4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011.
#pragma once

#include <float.h>
#include <math.h>

#include "lanes.h"

namespace packedbag {
namespace {

constexpr int UNITS = 4;           // words of 32 columns that one batch of random numbers serves
constexpr int STREAMS = UNITS * 4;  // Philox counters in a batch: one gives 8 columns
constexpr uint32_t TOUCHES = 0xFF;  // low bits of a row's state word: how often it was touched
constexpr uint32_t MAX_TOUCHES = 100;
constexpr float EPSILON = 1e-8f;

// One word of one row, waiting for its random numbers.
struct Unit {
    uint64_t row;
    int64_t word, columns;
    const Float* grad;
    float rate;
};

struct Philox {
    uint32_t c0[STREAMS], c1[STREAMS], c2[STREAMS], c3[STREAMS];
};

// Ten rounds on every stream. Each line is one operation on all streams, which is what vectorises.
inline void philox_rounds(Philox& p, uint64_t seed) {
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < STREAMS; ++i) {
            uint64_t a = uint64_t{0xD2511F53} * p.c0[i], b = uint64_t{0xCD9E8D57} * p.c2[i];
            p.c0[i] = static_cast<uint32_t>(b >> 32) ^ p.c1[i] ^ low;
            p.c1[i] = static_cast<uint32_t>(b);
            p.c2[i] = static_cast<uint32_t>(a >> 32) ^ p.c3[i] ^ high;
            p.c3[i] = static_cast<uint32_t>(a);
        }
        low += 0x9E3779B9;
        high += 0xBB67AE85;
    }
}

// 16 random bits for each column of the units: column j of unit u is halves[u][j].
inline void random_halves(const pb_counter_update_args& args, const Unit* units, uint16_t (*halves)[32]) {
    Philox p;
    for (int i = 0; i < STREAMS; ++i) {
        const Unit& unit = units[i / 4];
        p.c0[i] = static_cast<uint32_t>(unit.row);
        p.c1[i] = static_cast<uint32_t>(unit.row >> 32);
        p.c2[i] = static_cast<uint32_t>(args.step);
        p.c3[i] = static_cast<uint32_t>(args.table) << 16 | static_cast<uint32_t>(unit.word * 4 + i % 4);
    }
    philox_rounds(p, args.seed);
    for (int i = 0; i < STREAMS; ++i) {
        uint32_t out[4] = {p.c0[i], p.c1[i], p.c2[i], p.c3[i]};
        for (int h = 0; h < 8; ++h) halves[i / 4][i % 4 * 8 + h] = static_cast<uint16_t>(out[h / 2] >> (h % 2 * 16));
    }
}

// How far each counter of a word moves, at most 255 (further saturates any counter just as well), and the
// columns that move up.
inline uint32_t moves(const Unit& unit, const uint16_t* halves, float limit, uint8_t* distance) {
    float g[32];
    Lanes lanes = load(unit.grad, unit.columns);
    memcpy(g, &lanes, sizeof g);
    uint32_t up = 0;
    for (int j = 0; j < 32; ++j) {
        float x = unit.rate * g[j];
        float size = fabsf(x);
        size = size > limit ? limit : size;
        size = size == size ? size : 0.0f;  // sums that overflowed both ways have no direction
        int32_t whole = static_cast<int32_t>(size);
        float rest = 65536.0f * (size - static_cast<float>(whole));
        int32_t n = whole + (static_cast<float>(halves[j]) + 0.5f < rest);
        distance[j] = static_cast<uint8_t>(n > 255 ? 255 : n);
        up |= static_cast<uint32_t>(x < 0) << j;
    }
    return up;
}

// Move the counters of one word: value v is held as v + 128 in a byte.
inline void update_word(Word* word, Word* planes, int bits, const uint8_t* distance, uint32_t up, uint32_t tail) {
    uint8_t value[32];
    int floor = 128 - (1 << (bits - 1)), ceiling = 127 + (1 << (bits - 1));
    uint32_t sign = *word;
    for (int j = 0; j < 32; ++j) {
        int m = 0;
        for (int p = 0; p + 1 < bits; ++p) m |= static_cast<int>(planes[p] >> j & 1) << p;
        int v = (sign >> j & 1 ? m : -1 - m) + 128;
        v = up >> j & 1 ? v + distance[j] : v - distance[j];
        v = v < floor ? floor : v > ceiling ? ceiling : v;
        value[j] = static_cast<uint8_t>(v);
    }
    sign = 0;
    for (int j = 0; j < 32; ++j) sign |= static_cast<uint32_t>(value[j] >> 7) << j;
    for (int p = 0; p + 1 < bits; ++p) {
        uint32_t plane = 0;
        for (int j = 0; j < 32; ++j) plane |= static_cast<uint32_t>(value[j] >> p & 1) << j;
        planes[p] = (plane ^ ~sign) & tail;  // m is v, or -1 - v: the other bits where v is negative
    }
    *word = sign & tail;
}

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

inline void update_units(const pb_counter_update_args& args, const Unit* units, int count) {
    uint16_t halves[UNITS][32];
    random_halves(args, units, halves);
    int64_t width = (args.dim + 31) / 32;
    int bits = static_cast<int>(args.bits);
    for (int i = 0; i < count; ++i) {
        const Unit& unit = units[i];
        uint8_t distance[32];
        uint32_t up = moves(unit, halves[i], static_cast<float>(1 << bits), distance);
        int64_t at = static_cast<int64_t>(unit.row) * width + unit.word;
        uint32_t tail = unit.columns >= 32 ? UINT32_MAX : (uint32_t{1} << unit.columns) - 1;
        update_word(static_cast<Word*>(args.words) + at, static_cast<Word*>(args.planes) + at * (bits - 1), bits,
                    distance, up, tail);
    }
}

void counter_update_kernel(const pb_counter_update_args& args, int64_t first, int64_t last) {
    int64_t width = (args.dim + 31) / 32;
    const Index64* rows = static_cast<const Index64*>(args.rows);
    const Float* grad = static_cast<const Float*>(args.grad);
    Word* states = static_cast<Word*>(args.row_state);
    Word* words = static_cast<Word*>(args.words);
    Word* planes = static_cast<Word*>(args.planes);
    Unit units[UNITS] = {};
    int waiting = 0;
    for (int64_t u = first; u < last; ++u) {
        int64_t row = rows[u];
        if (u + 4 < last) {
            int64_t later = rows[u + 4] * width;
            __builtin_prefetch(words + later, 1);
            for (int64_t w = 0; w < width * (args.bits - 1); w += 16)
                __builtin_prefetch(planes + later * (args.bits - 1) + w, 1);
            if (states) __builtin_prefetch(states + rows[u + 4], 1);
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
                update_units(args, units, UNITS);
                waiting = 0;
            }
        }
    }
    if (waiting) update_units(args, units, waiting);
}

}  // namespace
}  // namespace packedbag
