// `update_units` in plain C++: eight counters in a 64-bit register, the rest left to the compiler.
#pragma once

#include <math.h>

#include "lanes.h"
#include "update_joined.h"
#include "update_units.h"

namespace packedbag {
namespace {

// 16 random bits for each column of the units: column j of unit u is halves[u][j].
inline void random_halves(const UpdatePlan& plan, const Unit* units, uint16_t (*halves)[32]) {
    uint32_t c0[STREAMS], c1[STREAMS], c2[STREAMS], c3[STREAMS];
    for (int i = 0; i < STREAMS; ++i) {
        const Unit& unit = units[i / 4];
        const uint64_t row = plan.first_row + unit.row;
        c0[i] = static_cast<uint32_t>(row);
        c1[i] = static_cast<uint32_t>(row >> 32);
        c2[i] = plan.step;
        c3[i] = plan.block + static_cast<uint32_t>(unit.word * 4 + i % 4);
    }
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
        for (int i = 0; i < STREAMS; ++i) {
            uint64_t a = uint64_t{PHILOX_M0} * c0[i], b = uint64_t{PHILOX_M1} * c2[i];
            c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ plan.key0[round];
            c1[i] = static_cast<uint32_t>(b);
            c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ plan.key1[round];
            c3[i] = static_cast<uint32_t>(a);
        }
    }
    for (int i = 0; i < STREAMS; ++i) {
        uint32_t out[4] = {c0[i], c1[i], c2[i], c3[i]};
        memcpy(halves[i / 4] + i % 4 * 8, out, sizeof out);  // little-endian: low half first
    }
}

// Bit j of a byte in lane j, as 0 or 1.
inline uint64_t spread(uint32_t byte) {
    uint64_t one = uint64_t{byte & 0xFF} * 0x0101010101010101 & 0x8040201008040201;
    return (one + 0x7F7F7F7F7F7F7F7F) >> 7 & 0x0101010101010101;
}

// The inverse: lanes of 0 or 1 into a byte. The product brings lane j to bit 56 + j; no two terms meet.
inline uint32_t collect(uint64_t lanes) { return static_cast<uint32_t>(lanes * 0x0102040810204080 >> 56); }

// The counters of one word: value v is held as v + 128 in a byte.
inline void read_word(const Word* word, const Word* planes, int bits, uint8_t* value) {
    constexpr uint64_t ONES = 0x0101010101010101;
    for (int i = 0; i < 4; ++i) {
        uint64_t m = 0;
        for (int p = 0; p + 1 < bits; ++p) m |= spread(planes[p] >> (8 * i)) << p;
        uint64_t sign = spread(*word >> (8 * i));
        m ^= 0x7F * ONES ^ sign * 0xFF;  // m + 128, or 127 - m where the bit is 0
        memcpy(value + 8 * i, &m, 8);
    }
}

// The steps x of a word's counters.
inline void steps(const UpdatePlan& plan, const Unit& unit, const uint8_t* value, float* x) {
    float g[32];
    Lanes lanes = load(unit.grad, unit.columns);
    memcpy(g, &lanes, sizeof g);
    for (int j = 0; j < 32; ++j) x[j] = unit.rate * g[j];
    if (!plan.is_shaped) return;
    if (plan.votes)
        for (int j = 0; j < 32; ++j) x[j] = fabsf(x[j]) > plan.threshold ? copysignf(plan.vote, x[j]) : 0.0f;
    if (plan.decays)
        for (int j = 0; j < 32; ++j) x[j] = x[j] + unit.shrink * (static_cast<float>(value[j]) - plan.rest[j]);
}

// How far each counter of a word moves, at most 255 (further saturates any counter just as well), and 0xFF for
// the columns that move up.
inline void moves(const float* x, const uint16_t* halves, float limit, uint8_t* distance, uint8_t* up) {
    int32_t n[32], rises[32];
    for (int j = 0; j < 32; ++j) {
        float size = fabsf(x[j]);
        size = size > limit ? limit : size;
        size = size == size ? size : 0.0f;  // sums that overflowed both ways have no direction
        int32_t whole = static_cast<int32_t>(size);
        float rest = 65536.0f * (size - static_cast<float>(whole));
        n[j] = whole + (static_cast<float>(static_cast<int32_t>(halves[j])) + 0.5f < rest);
        rises[j] = x[j] < 0 ? 0xFF : 0;
    }
    for (int j = 0; j < 32; ++j) distance[j] = static_cast<uint8_t>(n[j] > 255 ? 255 : n[j]);
    for (int j = 0; j < 32; ++j) up[j] = static_cast<uint8_t>(rises[j]);
}

// Move 32 counters.
inline void move(int bits, uint8_t* value, const uint8_t* distance, const uint8_t* up) {
    int32_t floor = 128 - (1 << (bits - 1)), ceiling = 127 + (1 << (bits - 1));
    for (int j = 0; j < 32; ++j) {
        int32_t v = up[j] ? value[j] + distance[j] : value[j] - distance[j];
        v = v < floor ? floor : v;
        value[j] = static_cast<uint8_t>(v > ceiling ? ceiling : v);
    }
}

// Put the counters of one word back; return how many signs changed.
inline int64_t write_word(Word* word, Word* planes, int bits, const uint8_t* value, uint32_t tail) {
    constexpr uint64_t ONES = 0x0101010101010101;
    uint32_t sign = 0;
    uint64_t moved[4];
    for (int i = 0; i < 4; ++i) {
        memcpy(&moved[i], value + 8 * i, 8);
        sign |= collect(moved[i] >> 7 & ONES) << (8 * i);
    }
    for (int p = 0; p + 1 < bits; ++p) {
        uint32_t plane = 0;
        for (int i = 0; i < 4; ++i) plane |= collect(moved[i] >> p & ONES) << (8 * i);
        planes[p] = (plane ^ ~sign) & tail;  // m is v, or -1 - v: the other bits where v is negative
    }
    const int flips = __builtin_popcount((*word ^ sign) & tail);
    *word = sign & tail;
    return flips;
}

inline int64_t update_group(const UpdatePlan& plan, const Unit* units, int64_t count) {
    uint16_t halves[UNITS][32];
    random_halves(plan, units, halves);
    int64_t flips = 0;
    for (int64_t i = 0; i < count; ++i) {
        int64_t at = static_cast<int64_t>(units[i].row) * plan.width + units[i].word;
        Word *word = plan.words + at, *planes = plan.planes + at * (plan.bits - 1);
        uint8_t value[32], distance[32], up[32];
        float x[32];
        if (plan.group == 1) {
            read_word(word, planes, plan.bits, value);
        } else {
            read_joined(plan, units[i], value);
        }
        steps(plan, units[i], value, x);
        moves(x, halves[i], static_cast<float>(1 << plan.bits), distance, up);
        move(plan.bits, value, distance, up);
        flips += plan.group == 1 ? write_word(word, planes, plan.bits, value, unit_tail(units[i]))
                                 : write_joined(plan, units[i], value);
    }
    return flips;
}

inline int64_t update_units(const UpdatePlan& plan, const Unit* units, int64_t count) {
    int64_t flips = 0;
    for (int64_t i = 0; i < count; i += UNITS)
        flips += update_group(plan, units + i, count - i < UNITS ? count - i : UNITS);
    return flips;
}

}  // namespace
}  // namespace packedbag
