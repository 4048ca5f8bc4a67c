// From counts of ones to a finished row of output: the reduction's rule and the conversion, fused.
// Included by one file per instruction set, which defines `Isa` first; everything here has internal linkage,
// so that no linker may pick the copy built for registers that another machine lacks.
#pragma once

#include <string.h>

#include "kernels.h"

namespace packedbag {
namespace {

constexpr int BLOCK = 32;  // columns handled at a time: one word

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline uint32_t tail_mask(int64_t columns) { return columns >= 32 ? UINT32_MAX : (uint32_t{1} << columns) - 1; }

// float32 -> bfloat16, to nearest, ties to even. Rounding could carry a NaN into the sign: every NaN becomes the
// quiet one.
inline uint16_t bfloat16_of(uint32_t bits) {
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

// Write 32 floats, or the first `columns` of them, at `column` of row `bag`.
inline void write_block(const BagCall& c, const float* values, int64_t bag, int64_t column, int64_t columns) {
    int64_t at = bag * c.dim + column;
    if (c.output == PB_FLOAT32) {
        char* out = static_cast<char*>(c.out) + at * 4;
        if (columns >= BLOCK) memcpy(out, values, BLOCK * 4);  // of a known size: no call
        else memcpy(out, values, static_cast<size_t>(columns) * 4);
        return;
    }
    alignas(64) uint16_t halves[BLOCK];
    if (c.output == PB_FLOAT16) {
        Isa::to_float16(values, halves);
    } else {
        for (int j = 0; j < BLOCK; ++j) {
            uint32_t bits;
            memcpy(&bits, values + j, 4);
            halves[j] = bfloat16_of(bits);
        }
    }
    char* out = static_cast<char*>(c.out) + at * 2;
    if (columns >= BLOCK) memcpy(out, halves, BLOCK * 2);
    else memcpy(out, halves, static_cast<size_t>(columns) * 2);
}

// The column sums 2 * ones - kept. Byte counts stand for at most 255 rows; only the wide ones need 64 bits.
inline int32_t column_sum(uint8_t ones, int64_t kept) { return 2 * ones - static_cast<int32_t>(kept); }
inline int64_t column_sum(uint32_t ones, int64_t kept) { return 2 * static_cast<int64_t>(ones) - kept; }

// The values of 32 columns as float32, before the output conversion.
template <class Count>
inline void block_values(const BagCall& c, const Count* ones, int64_t kept, Float* values) {
    float n = static_cast<float>(kept > 0 ? kept : 1);
    Count half = static_cast<Count>((kept + 1) / 2);
    switch (c.mode) {
        case PB_SUM:
            for (int j = 0; j < BLOCK; ++j) values[j] = static_cast<float>(column_sum(ones[j], kept));
            break;
        case PB_MEAN:
            for (int j = 0; j < BLOCK; ++j) values[j] = static_cast<float>(column_sum(ones[j], kept)) / n;
            break;
        case PB_MAJORITY:
            for (int j = 0; j < BLOCK; ++j) values[j] = ones[j] >= half ? 1.0f : -1.0f;
            break;
        default:
            for (int j = 0; j < BLOCK; ++j) values[j] = kept == 0 ? 0.0f : ones[j] > 0 ? 1.0f : -1.0f;
    }
}

// Bit j: whether ones[j] >= threshold, for 32 columns.
inline uint32_t at_least(const uint8_t* ones, int64_t threshold) {
    return Isa::at_least(ones, static_cast<uint8_t>(threshold));
}
inline uint32_t at_least(const uint32_t* ones, int64_t threshold) {
    uint32_t bits = 0;
    for (int j = 0; j < BLOCK; ++j) bits |= static_cast<uint32_t>(ones[j] >= threshold) << j;
    return bits;
}

// The sums of 32 columns, of at most 127 rows: they fit into a byte, which saves half of the conversion.
template <class I = Isa>  // a template, or the branch not taken would have to compile
inline void byte_sums(const uint8_t* ones, int64_t kept, Float* values) {
    const uint8_t rows = static_cast<uint8_t>(kept);
    if constexpr (I::WIDENS_BYTES) {
        I::byte_sums(ones, rows, values);
    } else {
        for (int j = 0; j < BLOCK; ++j) values[j] = static_cast<int8_t>(static_cast<uint8_t>(2 * ones[j] - rows));
    }
}

enum class Values { ANY, BYTE_SUMS, BYTE_MEANS };  // the latter are of bags that `byte_sums` can take

// Write the values of columns as floats of the size asked for.
template <Values Kind, class Count>
inline void write_values(const BagCall& c, const Count* ones, int64_t kept, int64_t bag, int64_t column,
                         int64_t columns) {
    const float n = static_cast<float>(kept > 0 ? kept : 1);
    auto block = [&](const Count* from, Float* values) __attribute__((always_inline)) {
        if constexpr (Kind == Values::ANY) block_values(c, from, kept, values);
        else byte_sums(from, kept, values);
        if constexpr (Kind == Values::BYTE_MEANS)
            for (int j = 0; j < BLOCK; ++j) values[j] = values[j] / n;
    };
    Float* floats = static_cast<Float*>(c.out) + bag * c.dim + column;
    int64_t j = 0;
    if (c.output == PB_FLOAT32)
        for (; j + BLOCK <= columns; j += BLOCK) block(ones + j, floats + j);
    for (; j < columns; j += BLOCK) {
        alignas(64) float values[BLOCK];
        block(ones + j, values);
        write_block(c, values, bag, column + j, least(BLOCK, columns - j));
    }
}

// Finish `columns` columns from `column`, a multiple of 32, on. `ones` is readable up to the next multiple of 32.
template <class Count>
inline void emit(const BagCall& c, const Count* ones, int64_t kept, int64_t bag, int64_t column, int64_t columns) {
    if (c.output == PB_PACKED) {
        int64_t threshold = c.mode == PB_MAJORITY ? (kept + 1) / 2 : 1;
        Word* out = static_cast<Word*>(c.out) + bag * c.width + column / BLOCK;
        for (int64_t j = 0; j < columns; j += BLOCK)
            out[j / BLOCK] = at_least(ones + j, threshold) & tail_mask(columns - j);
        return;
    }
    if (c.output == PB_INT32) {
        Index32* out = static_cast<Index32*>(c.out) + bag * c.dim + column;
        for (int64_t j = 0; j < columns; ++j) out[j] = static_cast<int32_t>(column_sum(ones[j], kept));
        return;
    }
    if constexpr (sizeof(Count) == 1) {
        if (kept <= INT8_MAX && c.mode == PB_SUM)
            return write_values<Values::BYTE_SUMS>(c, ones, kept, bag, column, columns);
        if (kept <= INT8_MAX && c.mode == PB_MEAN)
            return write_values<Values::BYTE_MEANS>(c, ones, kept, bag, column, columns);
    }
    write_values<Values::ANY>(c, ones, kept, bag, column, columns);
}

}  // namespace
}  // namespace packedbag
