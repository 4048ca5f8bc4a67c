// Counters of several neighbouring columns: the words hold the high bits of v + 2^(bits - 1), each plane a part of the
// low ones. They are brought into the bytes that all else works on, v + 128, 32 counters at a time; eight of them, or the
// four of a word, in a 64-bit register.
#pragma once

#include <string.h>

#include "update_units.h"

namespace packedbag {
namespace {

// The part of a table that a unit's counters lie in: `words` of them, as many as a counter has columns, or fewer.
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

constexpr uint64_t EACH_BYTE = 0x0101010101010101;

// Digits of P bits, lowest first, each into a byte of its own: eight, or the four of 8 bits that a word has.
template <int P>
inline uint64_t digits_to_bytes(uint64_t x) {
    if (P == 2) {
        x = (x | x << 24) & 0x000000FF000000FF;
        x = (x | x << 12) & 0x000F000F000F000F;
        return (x | x << 6) & 0x0303030303030303;
    }
    if (P == 4) {
        x = (x | x << 16) & 0x0000FFFF0000FFFF;
        x = (x | x << 8) & 0x00FF00FF00FF00FF;
        return (x | x << 4) & 0x0F0F0F0F0F0F0F0F;
    }
    return x;
}

// The inverse; the other bits of the bytes count for nothing.
template <int P>
inline uint32_t bytes_to_digits(uint64_t x) {
    if (P == 2) {
        x &= 0x0303030303030303;
        x = (x | x >> 6) & 0x000F000F000F000F;
        x = (x | x >> 12) & 0x000000FF000000FF;
        return static_cast<uint32_t>(x | x >> 24) & 0xFFFF;
    }
    if (P == 4) {
        x &= 0x0F0F0F0F0F0F0F0F;
        x = (x | x >> 4) & 0x00FF00FF00FF00FF;
        x = (x | x >> 8) & 0x0000FFFF0000FFFF;
        return static_cast<uint32_t>(x | x >> 16);
    }
    return static_cast<uint32_t>(x);
}

template <int P>
struct Joined {
    static constexpr int EACH = 32 / P;                    // counters of a word
    static constexpr int AT_ONCE = EACH < 8 ? EACH : 8;    // of them in a register
    static constexpr int PARTS = EACH / AT_ONCE;           // registers of a word

    // The part of a word that is part number `part` of PARTS.
    static uint32_t of_part(uint32_t word, int part) { return PARTS == 1 ? word : word >> (part * AT_ONCE * P) & 0xFFFF; }

    static void read(const JoinedWords& from, uint8_t lowest, uint8_t* value) {
        if (from.words < P) memset(value, lowest, 32);
        for (int64_t w = 0; w < from.words; ++w) {
            for (int part = 0; part < PARTS; ++part) {
                uint64_t bytes = digits_to_bytes<P>(of_part(from.high[w], part)) << (P * from.planes);
                for (int q = 0; q < from.planes; ++q)
                    bytes |= digits_to_bytes<P>(of_part(from.low[w * from.planes + q], part)) << (P * q);
                bytes += lowest * EACH_BYTE;  // no byte is carried into the next
                memcpy(value + w * EACH + part * AT_ONCE, &bytes, AT_ONCE);
            }
        }
    }

    // Returns how many bits of the words have changed.
    static int64_t write(const JoinedWords& to, uint8_t lowest, const uint8_t* value, int64_t counters) {
        int64_t flips = 0;
        for (int64_t w = 0; w < to.words; ++w) {
            const int64_t columns = (counters - w * EACH) * P;
            const uint32_t tail = columns >= 32 ? UINT32_MAX : (uint32_t{1} << columns) - 1;
            uint64_t bytes[PARTS] = {};
            for (int part = 0; part < PARTS; ++part) {
                memcpy(&bytes[part], value + w * EACH + part * AT_ONCE, AT_ONCE);
                bytes[part] -= lowest * (AT_ONCE == 8 ? EACH_BYTE : EACH_BYTE >> 32);
            }
            auto layer = [&](int shift) {
                uint32_t found = 0;
                for (int part = 0; part < PARTS; ++part)
                    found |= bytes_to_digits<P>(bytes[part] >> shift) << (part * AT_ONCE * P % 32);
                return found & tail;
            };
            for (int q = 0; q < to.planes; ++q) to.low[w * to.planes + q] = layer(P * q);
            const uint32_t high = layer(P * to.planes);
            flips += __builtin_popcount((to.high[w] ^ high) & tail);
            to.high[w] = high;
        }
        return flips;
    }
};

// The byte of a counter's lowest value.
inline uint8_t lowest_byte(const UpdatePlan& plan) { return static_cast<uint8_t>(128 - (1 << (plan.bits - 1))); }

inline void read_joined(const UpdatePlan& plan, const Unit& unit, uint8_t* value) {
    const JoinedWords from(plan, unit);
    switch (plan.group) {
        case 2: return Joined<2>::read(from, lowest_byte(plan), value);
        case 4: return Joined<4>::read(from, lowest_byte(plan), value);
        default: return Joined<8>::read(from, lowest_byte(plan), value);
    }
}

inline int64_t write_joined(const UpdatePlan& plan, const Unit& unit, const uint8_t* value) {
    const JoinedWords to(plan, unit);
    switch (plan.group) {
        case 2: return Joined<2>::write(to, lowest_byte(plan), value, unit.columns);
        case 4: return Joined<4>::write(to, lowest_byte(plan), value, unit.columns);
        default: return Joined<8>::write(to, lowest_byte(plan), value, unit.columns);
    }
}

}  // namespace
}  // namespace packedbag
