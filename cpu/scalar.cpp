// Plain C++ for every little-endian machine: eight 8-bit lanes in a 64-bit register.
#include <string.h>

#include "kernels.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words, lanes and files are little-endian");

namespace packedbag {
namespace {

struct Isa {
    static constexpr bool SHIFTS_LANES = false, BLENDS_BY_SIGN = false, SUMS_BY_TABLE = false, WIDENS_BYTES = false;
    static constexpr int COLUMNS = 32, BLOCKS = 8, VECTOR_BYTES = 16;
    struct Bytes {
        uint64_t v[4];
    };

    static Bytes zero() { return {}; }

    static Bytes add(Bytes ones, const Word* word) {
        uint32_t bits = *word;
        for (int i = 0; i < 4; ++i) {
            // Bit j of the byte moves to lane j: copies of the byte, one bit of each kept, made 0 or 1.
            uint64_t spread = uint64_t{bits >> (8 * i) & 0xFF} * 0x0101010101010101 & 0x8040201008040201;
            ones.v[i] += (spread + 0x7F7F7F7F7F7F7F7F) >> 7 & 0x0101010101010101;
        }
        return ones;
    }
    static Bytes add_word(Bytes ones, const Word* word) { return add(ones, word); }
    static void store(uint8_t* to, const Bytes& ones) { memcpy(to, &ones, sizeof ones); }

    static uint32_t at_least(const uint8_t* ones, uint8_t threshold) {
        uint32_t bits = 0;
        for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(ones[j] >= threshold) << j;
        return bits;
    }

    // To nearest, ties to even, with subnormals; a NaN keeps its sign and high mantissa bits.
    static uint16_t float16_of(uint32_t bits) {
        uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
        if (size > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (size >> 13 & 0x3FF));
        if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above round to inf
        if (size < 0x38800000) {  // below 2^-14: a multiple of 2^-24, which the addition of 0.5 rounds
            float value, half = 0.5f;
            memcpy(&value, &size, 4);
            value += half;
            memcpy(&size, &value, 4);
            return static_cast<uint16_t>(sign | (size - 0x3F000000));
        }
        uint32_t rounded = size - (uint32_t{112} << 23) + 0xFFF + (size >> 13 & 1);
        return static_cast<uint16_t>(sign | rounded >> 13);
    }

    static void to_float16(const float* values, uint16_t* halves) {
        for (int j = 0; j < 32; ++j) {
            uint32_t bits;
            memcpy(&bits, values + j, 4);
            halves[j] = float16_of(bits);
        }
    }
};

}  // namespace
}  // namespace packedbag

#include "update_plain.h"

#include "isa_kernels.h"

PB_KERNELS(scalar)
