// Counters of several neighbouring columns: the words hold the high bits of v + 2^(bits - 1), each plane a part of the
// low ones. They are brought into the bytes that all else works on, v + 128, 32 counters at a time.
#pragma once

#include <string.h>

#include "update_units.h"

namespace packedbag {
namespace {

// The part of a table that a unit's counters lie in: `words` of them, P at most.
struct JoinedWords {
    Word* high;
    Word* low;  // `words` times `planes`
    int64_t words;
    int planes;

    JoinedWords(const UpdatePlan& plan, const Unit& unit)
        : high(plan.words + at(plan, unit)), low(plan.planes + at(plan, unit) * (plan.layers - 1)), planes(plan.layers - 1) {
        const int64_t needed = (unit.columns * plan.group + 31) / 32;
        words = needed < plan.group ? needed : plan.group;
    }

   private:
    static int64_t at(const UpdatePlan& plan, const Unit& unit) {
        return static_cast<int64_t>(unit.row) * plan.width + unit.word * plan.group;
    }
};

template <int P>
inline void read_joined_of(const JoinedWords& from, uint8_t first, uint8_t* value) {
    constexpr int EACH = 32 / P;  // counters of a word
    constexpr uint32_t DIGIT = (1u << P) - 1;
    memset(value, first, 32);
    for (int64_t w = 0; w < from.words; ++w) {
        uint8_t* mine = value + w * EACH;
        for (int i = 0; i < EACH; ++i)
            mine[i] = static_cast<uint8_t>(mine[i] + ((from.high[w] >> (i * P) & DIGIT) << (P * from.planes)));
        for (int q = 0; q < from.planes; ++q) {
            const uint32_t plane = from.low[w * from.planes + q];
            for (int i = 0; i < EACH; ++i)
                mine[i] = static_cast<uint8_t>(mine[i] + ((plane >> (i * P) & DIGIT) << (P * q)));
        }
    }
}

// Returns how many bits of the words have changed.
template <int P>
inline int64_t write_joined_of(const JoinedWords& to, uint8_t first, const uint8_t* value, int64_t counters) {
    constexpr int EACH = 32 / P;
    constexpr uint32_t DIGIT = (1u << P) - 1;
    int64_t flips = 0;
    for (int64_t w = 0; w < to.words; ++w) {
        const int64_t columns = (counters - w * EACH) * P;
        const uint32_t tail = columns >= 32 ? UINT32_MAX : (uint32_t{1} << columns) - 1;
        const uint8_t* mine = value + w * EACH;
        auto layer = [&](int shift) {
            uint32_t bits = 0;
            for (int i = 0; i < EACH; ++i)
                bits |= (static_cast<uint32_t>(static_cast<uint8_t>(mine[i] - first)) >> shift & DIGIT) << (i * P);
            return bits & tail;
        };
        for (int q = 0; q < to.planes; ++q) to.low[w * to.planes + q] = layer(P * q);
        const uint32_t high = layer(P * to.planes);
        flips += __builtin_popcount((to.high[w] ^ high) & tail);
        to.high[w] = high;
    }
    return flips;
}

// The byte of a counter's lowest value.
inline uint8_t lowest_byte(const UpdatePlan& plan) { return static_cast<uint8_t>(128 - (1 << (plan.bits - 1))); }

inline void read_joined(const UpdatePlan& plan, const Unit& unit, uint8_t* value) {
    const JoinedWords from(plan, unit);
    switch (plan.group) {
        case 2: return read_joined_of<2>(from, lowest_byte(plan), value);
        case 4: return read_joined_of<4>(from, lowest_byte(plan), value);
        default: return read_joined_of<8>(from, lowest_byte(plan), value);
    }
}

inline int64_t write_joined(const UpdatePlan& plan, const Unit& unit, const uint8_t* value) {
    const JoinedWords to(plan, unit);
    switch (plan.group) {
        case 2: return write_joined_of<2>(to, lowest_byte(plan), value, unit.columns);
        case 4: return write_joined_of<4>(to, lowest_byte(plan), value, unit.columns);
        default: return write_joined_of<8>(to, lowest_byte(plan), value, unit.columns);
    }
}

}  // namespace
}  // namespace packedbag
